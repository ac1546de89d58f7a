"""PostgreSQL that stops in the midst of a transaction, or answers reports slowly: deadlines hold for all else."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from gateway.store.base import Head, StoreError
from gateway.store.limits import Claim
from gateway.store.postgresql import REPORTS, PostgreSQLStore, open_postgresql
from gateway.store.sql import _WRITERS
from gateway.store.usage import UsageQuery
from tests.databases import DATABASE, statement
from tests.servers import PostgreSQL

CLAIM = Claim("user:u", "tokens/total", "holder", 1, limit=100, spent=0, kept=0)
REPORTS_ASKED = 6
"""More than there are connections: two keys' own, two of the admin API, the roll-up, and one to spare."""
WAITING = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'budgets'::regclass"
HELD_UP = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'usage_cells'::regclass"
LOCK = "BEGIN; LOCK TABLE budgets IN ACCESS EXCLUSIVE MODE"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgreSQLStore]:
    store = await open_postgresql(url)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def stuck(store: PostgreSQLStore, url: str) -> AsyncIterator[tuple["asyncio.Task[object]", int]]:
    """A claim that waits for its table within its transaction, and the process that serves it."""
    other, look = await asyncpg.connect(url), await asyncpg.connect(url)
    try:
        await other.execute(LOCK)
        claim: asyncio.Task[object] = asyncio.create_task(store.claim([CLAIM], 1, 1))
        async with asyncio.timeout(10):
            while (pid := await look.fetchval(WAITING)) is None:
                pass
        yield claim, pid
    finally:
        other.terminate()
        look.terminate()


def test_a_server_that_freezes_within_a_transaction_does_not_outlast_the_deadline(
    postgresql: PostgreSQL, postgresql_url: str
) -> None:
    """L3: who has a deadline is not held by a ROLLBACK that nobody answers (`STATEMENT_SECONDS`)."""

    async def check() -> None:
        async with opened(postgresql_url) as store, stuck(store, postgresql_url) as (claim, _):
            postgresql.pause()
            try:
                claim.cancel()
                await asyncio.wait([claim], timeout=2.0)
                assert claim.done()
                assert claim.cancelled()
            finally:
                postgresql.resume()

    asyncio.run(check())


def test_a_transaction_that_was_refused_leaves_its_connection_whole(
    postgresql: PostgreSQL, postgresql_url: str
) -> None:
    """What the server refuses is rolled back, and the same connection serves the next one."""

    async def check() -> None:
        async with opened(postgresql_url) as store:
            async with stuck(store, postgresql_url) as (claim, pid):
                await statement(postgresql.url(DATABASE), f"SELECT pg_cancel_backend({pid})")
                with pytest.raises(StoreError, match="QueryCanceled"):
                    await claim
            assert len(await store.claim([CLAIM], 1, 1)) == 1
            async with store._connection() as connection:
                assert await connection.fetchval("SELECT pg_backend_pid()") == pid

    asyncio.run(check())


def test_a_cancellation_on_a_lost_connection_stays_one(postgresql: PostgreSQL, postgresql_url: str) -> None:
    """Else a task that follows the store takes it for one more failure of the store, and never ends."""

    async def cancelled_on(store: PostgreSQLStore) -> None:
        lost = asyncio.Event()
        async with store._connection() as connection:
            connection.add_termination_listener(lambda _: lost.set())
            pid = await connection.fetchval("SELECT pg_backend_pid()")
            await statement(postgresql.url(DATABASE), f"SELECT pg_terminate_backend({pid})")
            await lost.wait()
            raise asyncio.CancelledError

    async def check() -> None:
        async with opened(postgresql_url) as store:
            with pytest.raises(asyncio.CancelledError):
                await cancelled_on(store)
            assert len(await store.claim([CLAIM], 1, 1)) == 1

    asyncio.run(check())


def test_reports_that_take_long_leave_connections_for_what_requests_need(postgresql_url: str) -> None:
    """K5, L3: keys and budgets do not wait for reports, whoever asks for how many of them."""

    async def check() -> None:
        other, look = await asyncpg.connect(postgresql_url), await asyncpg.connect(postgresql_url)
        async with opened(postgresql_url) as store:
            await other.execute("BEGIN; LOCK TABLE usage_cells IN ACCESS EXCLUSIVE MODE")
            reports = [asyncio.create_task(store.usage(UsageQuery(by="day", since=0))) for _ in range(REPORTS_ASKED)]
            try:
                async with asyncio.timeout(10):
                    while await look.fetchval(HELD_UP) < REPORTS:
                        pass
                async with asyncio.timeout(2):
                    assert len(await store.claim([CLAIM], 1, 1)) == 1
            finally:
                other.terminate()
                look.terminate()
            assert await asyncio.gather(*reports) == [[]] * REPORTS_ASKED

    asyncio.run(check())


WRITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'audit_heads'::regclass"


def test_a_statement_that_nobody_waits_for_ends_on_the_server_too(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U3: one that waits for a lock does not notice that its connection is closed; tries would fill the server."""
    monkeypatch.setattr("gateway.store.postgresql.STATEMENT_SECONDS", 0.2)
    monkeypatch.setattr("gateway.store.postgresql.GRACE", 0.3)

    async def check() -> None:
        other, look = await asyncpg.connect(postgresql_url), await asyncpg.connect(postgresql_url)
        async with opened(postgresql_url) as store:
            await other.execute("BEGIN; LOCK TABLE audit_heads IN ACCESS EXCLUSIVE MODE")
            try:
                for _ in range(3):
                    with pytest.raises(StoreError, match="Timeout"):
                        await store.add_audit(Head("w"), Head("w"), [])
                assert await look.fetchval(WRITING) > 0
                async with asyncio.timeout(5):
                    while await look.fetchval(WRITING):
                        pass
            finally:
                other.terminate()
                look.terminate()

    asyncio.run(check())


def test_a_report_has_its_own_deadline_on_the_server(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """U6: and what comes after it on the same connection has the common one again."""
    deadline = "SELECT current_setting('statement_timeout') AS told"

    async def check() -> None:
        async with opened(postgresql_url) as store:
            told = [(await rows)[0]["told"] for rows in (store._report(deadline, []), store._fetch(deadline))]
            assert told == ["61s", "6s"]

    asyncio.run(check())


def test_the_names_of_writers_are_read_without_the_trail(postgresql_url: str) -> None:
    """U4: `audit verify` begins with them, however long the trail is."""
    rows = "generate_series(1, 5000) AS seq, unnest(ARRAY['a', 'b', 'c']) AS writer"
    values = ", ".join(["'', 0", *["''"] * 10, "0, '', '', 0, 0, 0, FALSE", *["0"] * 9, "writer, seq, seq, ''"])

    async def check() -> None:
        await statement(postgresql_url, f"INSERT INTO audit SELECT {values} FROM {rows}")  # noqa: S608 -- constants
        await statement(postgresql_url, "ANALYZE audit")
        async with opened(postgresql_url) as store:
            assert await store.audit_writers() == ["a", "b", "c"]
            plan = "\n".join(row[0] for row in await store._fetch(f"EXPLAIN (ANALYZE) {_WRITERS}"))
            assert max(int(rows) for rows in re.findall(r"actual time=\S+ rows=(\d+)", plan)) < 10, plan

    asyncio.run(check())
