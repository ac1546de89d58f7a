"""Tampering is found, and the application's role cannot tamper (U4)."""

import asyncio
import datetime
import json
import sqlite3
from pathlib import Path

import asyncpg
import msgspec
import pytest

from gateway.services import trail
from gateway.services.audit import AuditService
from gateway.services.trail import Verified
from gateway.store import StoreError
from gateway.store.base import AuditRow, Head, Store
from gateway.store.postgresql import drop_partitions, grants, migrate
from gateway.store.usage import UsageQuery
from tests.databases import DATABASE, statement
from tests.servers import PostgreSQL
from tests.services.keyring import CHEAP, IP, connection, revoke, ring, service
from tests.services.test_audit import FULL, config, record

ROWS = 12


async def write(url: str, folder: Path, rows: int = ROWS) -> None:
    """A chain of rows r1, r2, ..."""
    async with connection(url) as store:
        trail_writer = AuditService(store, config(folder, batch_rows=5))
        for number in range(1, rows + 1):
            trail_writer.put(record(f"r{number}"))
        await trail_writer.close()


def tamper(url: str, sql: str) -> None:
    """As someone who owns the database and knows how it works."""
    if url.startswith("postgresql"):
        asyncio.run(statement(url, sql))
        return
    raw = sqlite3.connect(url)
    raw.executescript(f"DROP TRIGGER audit_never_updated; DROP TRIGGER audit_never_deleted; {sql};")
    raw.close()


def verified(url: str, anchors: trail.Anchors | None = None) -> Verified:
    async def body() -> list[Verified]:
        async with connection(url) as store:
            return await trail.verify(store, anchors or {})

    (chain,) = asyncio.run(body())
    return chain


COPY = (
    'INSERT INTO audit SELECT id, started_at, tenant, "user", "key", ip, dialect, route, method, \'forged\', '
    "model_served, backend, status, outcome, error, prompt_tokens, completion_tokens, cached_tokens, usage_estimated, "
    'queue_us, first_byte_us, total_us, bytes_in, bytes_out, "rank", queue_len, usage_before, slot_us, writer, '
)


SWAP = """
    UPDATE audit SET seq = 1007 WHERE seq = 7;
    UPDATE audit SET seq = 7 WHERE seq = 8;
    UPDATE audit SET seq = 8 WHERE seq = 1007
"""
SHIFT = "UPDATE audit SET seq = seq + 1000 WHERE seq >= 7; UPDATE audit SET seq = seq - 999 WHERE seq >= 1000; "
"""Make room for a row in the middle."""


def test_an_untouched_chain_is_whole(store_url: str, tmp_path: Path) -> None:
    """U4"""
    asyncio.run(write(store_url, tmp_path))
    asyncio.run(write(store_url, tmp_path, 3))
    chain = verified(store_url)
    assert (chain.rows, chain.last, chain.unproven, chain.broken) == (ROWS + 3, ROWS + 3, False, None)


@pytest.mark.parametrize(
    ("sql", "seq", "row"),
    [
        ("UPDATE audit SET completion_tokens = 0, status = 1 WHERE seq = 7", 7, "r7"),
        ("UPDATE audit SET usage_before = 0.5 WHERE seq = 1", 1, "r1"),
        ("UPDATE audit SET recorded_at = recorded_at + 1 WHERE seq = 7", 7, "r7"),
        ("UPDATE audit SET hash = audit_heads.hash FROM audit_heads WHERE audit.seq = 7", 7, "r7"),
        ("DELETE FROM audit WHERE seq = 7", 7, ""),
        ("DELETE FROM audit WHERE seq = 12", 12, ""),
        ("DELETE FROM audit WHERE seq >= 3", 3, ""),
        ("DELETE FROM audit", 1, ""),
        ("UPDATE audit SET id = CASE seq WHEN 7 THEN 'r8' ELSE 'r7' END WHERE seq IN (7, 8)", 7, "r8"),
        (SWAP, 7, "r8"),
        (COPY + "13, recorded_at, hash FROM audit WHERE seq = 12", 13, "r12"),
        (SHIFT + COPY + "7, recorded_at, hash FROM audit WHERE seq = 6", 7, "r6"),
        ("DELETE FROM audit_heads", 1, ""),
        ("DELETE FROM audit WHERE seq = 12; UPDATE audit_heads SET seq = 11", 12, ""),
    ],
)
def test_the_first_broken_row_is_named(store_url: str, tmp_path: Path, sql: str, seq: int, row: str) -> None:
    """U4: changed, deleted, reordered and inserted rows, at the start, middle and end."""
    asyncio.run(write(store_url, tmp_path))
    tamper(store_url, sql)
    broken = verified(store_url).broken
    assert broken is not None
    assert (broken.seq, broken.row) == (seq, row)


@pytest.mark.parametrize("page", [2, 3, 1000])
def test_a_second_row_of_a_number_is_found_wherever_pages_end(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """U4: PostgreSQL's key includes the time, so it lets a second one in."""
    asyncio.run(write(postgresql_url, tmp_path))
    tamper(postgresql_url, COPY + "seq, recorded_at + 1, hash FROM audit WHERE seq = 7")
    monkeypatch.setattr(trail, "_PAGE", page)
    broken = verified(postgresql_url).broken
    assert broken is not None
    assert broken.seq == 7


def test_a_chain_computed_anew_is_found_by_an_anchor(store_url: str, tmp_path: Path) -> None:
    """U4: who owns the database can forge rows and hashes and the head, but not the file of anchors."""
    asyncio.run(write(store_url, tmp_path))
    anchors = trail.read_anchors(tmp_path / "spool" / "anchors.jsonl")
    assert verified(store_url, anchors).broken is None
    asyncio.run(forge(store_url))
    assert verified(store_url).broken is None
    broken = verified(store_url, anchors).broken
    assert broken is not None
    assert broken.seq == ROWS
    assert "anchor" in broken.reason


async def forge(url: str) -> None:
    """Write another history under the same writer's name."""
    async with connection(url) as store:
        (writer,) = await store.audit_writers()
        head = await store.audit_head(writer)
        if not url.startswith("postgresql"):
            raw = sqlite3.connect(url)
            raw.executescript("DROP TRIGGER audit_never_deleted; DELETE FROM audit; DELETE FROM audit_heads;")
            raw.close()
        else:
            await statement(url, "DELETE FROM audit; DELETE FROM audit_heads")
        await add_chain(store, head.writer)


async def add_chain(store: Store, writer: str) -> None:
    from gateway.services.chain import link

    before = head = Head(writer)
    rows: list[AuditRow] = []
    for number in range(1, ROWS + 1):
        forged = record(f"forged{number}")
        head = link(head, number, number, msgspec.msgpack.encode(forged))
        rows.append((*msgspec.structs.astuple(forged), writer, number, number, head.hash))
    assert await store.add_audit(before, head, rows)


def test_rows_that_retention_dropped_are_not_missed_but_said(store_url: str, tmp_path: Path) -> None:
    """U4: what is left is checked from its first row on."""
    asyncio.run(write(store_url, tmp_path))
    tamper(store_url, "DELETE FROM audit WHERE seq < 5")
    chain = verified(store_url)
    assert (chain.rows, chain.unproven, chain.broken) == (ROWS - 4, True, None)
    tamper_again = "UPDATE audit SET status = 1 WHERE seq = 9"
    if store_url.startswith("postgresql"):
        tamper(store_url, tamper_again)
    else:
        raw = sqlite3.connect(store_url, isolation_level=None)
        raw.execute(tamper_again)
        raw.close()
    broken = verified(store_url).broken
    assert broken is not None
    assert broken.seq == 9


def test_a_file_of_anchors_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("{}\n")
    for path in (tmp_path / "a", tmp_path / "missing"):
        with pytest.raises(trail.AnchorError):
            trail.read_anchors(path)
    (tmp_path / "b").write_text('{"writer": "w", "seq": 1, "hash": "00"}\n{"wri')
    assert trail.read_anchors(tmp_path / "b") == {"w": {1: b"\0"}}


def test_export_gives_each_row_of_a_time_once(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """U4: pages end anywhere."""
    monkeypatch.setattr(trail, "_PAGE", 5)

    async def body() -> None:
        await write(store_url, tmp_path)
        async with connection(store_url) as store:
            rows = [row async for row in trail.export(store, 0, 1 << 62)]
            assert [row["id"] for row in rows] == [f"r{number}" for number in range(1, ROWS + 1)]
            json.dumps(rows)
            first = int(str(rows[0]["recorded_at"]))
            assert [row async for row in trail.export(store, 0, first)] == []

    asyncio.run(body())


# -- the application's role (PostgreSQL)


@pytest.fixture
def as_gateway(postgresql: PostgreSQL, postgresql_url: str) -> str:
    """The store as the role `gateway`, granted by `migrate`."""

    async def body() -> None:
        link = await asyncpg.connect(postgresql_url)
        try:
            if not await link.fetchval("SELECT 1 FROM pg_roles WHERE rolname = 'gateway'"):
                await link.execute("CREATE ROLE gateway LOGIN")
        finally:
            await link.close()
        assert await migrate(postgresql_url, "gateway") == grants("gateway")

    asyncio.run(body())
    return postgresql.url(DATABASE, "gateway")


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE audit SET status = 0",
        "DELETE FROM audit",
        "TRUNCATE audit",
        "DROP TABLE audit",
        "ALTER TABLE audit DROP COLUMN status",
        "DELETE FROM audit_rest",
        "UPDATE audit_rest SET status = 0",
        "DELETE FROM audit_heads",
        "DELETE FROM schema_migrations",
        "INSERT INTO changes VALUES (99, 'key', 'x')",
        "UPDATE change_counter SET version = 0",
        "UPDATE usage_cells SET requests = 0",
        "DELETE FROM usage_cells",
        "UPDATE usage_hours SET requests = 0",
        "INSERT INTO usage_rolled VALUES ('w', 9)",
    ],
)
def test_the_applications_role_cannot_rewrite_history(as_gateway: str, tmp_path: Path, sql: str) -> None:
    """U4: the database refuses what `audit verify` would find."""
    asyncio.run(write(as_gateway, tmp_path, 2))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        asyncio.run(statement(as_gateway, sql))


def test_what_the_applications_role_adds_behind_its_own_back_is_found(
    as_gateway: str, postgresql_url: str, tmp_path: Path
) -> None:
    """U4: it must append, so the database lets it; the chain does not."""
    asyncio.run(write(as_gateway, tmp_path))
    asyncio.run(statement(as_gateway, COPY + "13, recorded_at, hash FROM audit WHERE seq = 12"))
    broken = verified(postgresql_url).broken
    assert broken is not None
    assert (broken.seq, broken.row) == (13, "r12")


@pytest.mark.parametrize("sql", ["UPDATE audit SET status = 0", "DELETE FROM audit", SWAP])
def test_an_embedded_store_refuses_to_rewrite_history(tmp_path: Path, sql: str) -> None:
    """U4: SQLite has no roles; whoever owns the file must first take the guards away, as `tamper` does."""
    url = str(tmp_path / "fairgate.db")
    asyncio.run(write(url, tmp_path))
    raw = sqlite3.connect(url)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        raw.executescript(sql)
    raw.close()
    assert verified(url).broken is None


def test_the_applications_role_can_do_all_that_a_gateway_does(as_gateway: str, tmp_path: Path) -> None:
    """O6: the grants suffice."""

    async def body() -> None:
        async with ring(as_gateway) as it:
            async with service(it.store) as keys:
                assert await keys.verify(it.token, IP)
                assert await revoke(it.store, keys, it.key.id)
            trail_writer = AuditService(it.store, config(tmp_path))
            trail_writer.put(FULL)
            await trail_writer.close()
            assert len(await it.store.audit_tail(9)) == 1
            assert [row.requests for row in await it.store.usage(UsageQuery(by="tenant"))] == [1]
            await it.another()

    assert CHEAP
    asyncio.run(body())


def test_roles_are_names_not_sql() -> None:
    """S-I1"""
    for role in ("x; DROP TABLE audit", "", 'a"b', "A"):
        with pytest.raises(StoreError):
            grants(role)


def test_a_schema_that_is_behind_is_refused(postgresql: PostgreSQL) -> None:
    """O6: a gateway never migrates a shared database by merely starting."""

    async def body() -> None:
        await statement(postgresql.url("postgres"), "DROP DATABASE IF EXISTS bare")
        await statement(postgresql.url("postgres"), "CREATE DATABASE bare")
        url = postgresql.url("bare")
        with pytest.raises(StoreError, match="fairgate migrate"):
            async with connection(url):
                pass
        first, second = await asyncio.gather(migrate(url), migrate(url))
        assert sorted((bool(first), bool(second))) == [False, True]
        async with connection(url) as store:
            await store.ping()
        await statement(url, "INSERT INTO schema_migrations (number, name) VALUES (999, 'x')")
        with pytest.raises(StoreError, match="newer"):
            async with connection(url):
                pass
        with pytest.raises(StoreError, match=r"^postgresql://.*newer"):
            await migrate(url)

    asyncio.run(body())


def test_a_writer_whose_rows_retention_dropped_is_not_broken(postgresql_url: str, tmp_path: Path) -> None:
    """U4: a gateway that is gone for longer than rows are kept; rows that vanish in another way are still missed."""
    asyncio.run(write(postgresql_url, tmp_path))
    chain = verified(postgresql_url)
    anchors = {chain.writer: {5: b"h"}}
    later = int((datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=62)).timestamp() * 1_000_000)
    month = asyncio.run(drop_partitions(postgresql_url, later))
    try:
        gone = verified(postgresql_url, anchors)
        assert (gone.rows, gone.broken) == (0, None)
        tamper(postgresql_url, "DELETE FROM operations")
        gone = verified(postgresql_url)
        assert gone.broken is not None
        assert gone.broken.reason == "rows at the end are missing"
    finally:
        assert month
        asyncio.run(statement(postgresql_url, "SELECT audit_make_partitions(12)"))


PARTITIONS = "SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' AND relname LIKE 'audit_2%'"


def test_a_gateway_that_runs_for_years_makes_the_months_to_come(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U4: rows of a month without a partition would escape retention, and keep it from ever being made."""

    async def body() -> None:
        async with connection(postgresql_url) as store:
            last = await asyncpg.connect(postgresql_url)
            name = await last.fetchval(f"{PARTITIONS} ORDER BY relname DESC LIMIT 1")
            await last.execute(f"DROP TABLE {name}")
            await store.roll_up()
            assert await last.fetchval("SELECT to_regclass($1)::text", name) == name
            await last.close()

    monkeypatch.setattr("gateway.store.postgresql.PARTITION_SECONDS", 0.0)
    asyncio.run(body())


def test_partitions_are_months_and_retention_drops_whole_ones(postgresql: PostgreSQL) -> None:
    """U4: a gateway that starts makes those to come; only the owner drops, and never a month that is not over."""

    async def body() -> None:
        await statement(postgresql.url("postgres"), "DROP DATABASE IF EXISTS months")
        await statement(postgresql.url("postgres"), "CREATE DATABASE months")
        url = postgresql.url("months")
        await migrate(url)
        link = await asyncpg.connect(url)
        try:
            months = sorted(row["relname"] for row in await link.fetch(PARTITIONS))
            assert len(months) == 12
            await link.execute("DROP TABLE audit_" + months[-1].removeprefix("audit_"))
            async with connection(url):
                assert sorted(row["relname"] for row in await link.fetch(PARTITIONS)) == months
            year, month = (int(part) for part in months[2].split("_")[1:])
            third = datetime.datetime(year, month, 1, tzinfo=datetime.UTC)
            middle = int((third + datetime.timedelta(days=15)).timestamp() * 1_000_000)
            assert await drop_partitions(url, middle) == months[:2]
            assert sorted(row["relname"] for row in await link.fetch(PARTITIONS)) == months[2:]
        finally:
            await link.close()

    asyncio.run(body())
