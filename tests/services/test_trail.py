"""Tampering is found, and the application's role cannot tamper (U4)."""

import asyncio
import datetime
import json
import sqlite3
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from gateway.services import trail
from gateway.services.audit import AuditService
from gateway.services.record import AuditRecord
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


@pytest.mark.parametrize("anchored", [{}, {5: b""}, {9: b""}])
def test_the_oldest_rows_are_missed_where_retention_did_not_drop_them(
    store_url: str, tmp_path: Path, anchored: dict[int, bytes]
) -> None:
    """U4: with and without anchors on what is left, and on what is gone."""
    asyncio.run(write(store_url, tmp_path))
    anchors = {verified(store_url).writer: {seq: hash_of(store_url, seq) for seq in anchored}}
    tamper(store_url, "DELETE FROM audit WHERE seq < 7")
    broken = verified(store_url, anchors).broken
    assert broken is not None
    assert (broken.seq, broken.row, broken.reason) == (1, "", "the row is missing")


def hash_of(url: str, seq: int) -> bytes:
    async def body() -> bytes:
        async with connection(url) as store:
            (row,) = [row for row in await store.audit_tail(ROWS) if row[-3] == seq]
            return bytes(row[-1])  # type: ignore[arg-type]  # the column's type

    return asyncio.run(body())


DROPPED = 4


async def age(url: str, seq: int = DROPPED) -> str:
    """Put the rows up to `seq` into a month of their own, chained as if they had been written then -> the month."""
    from gateway.services.chain import link

    async with connection(url) as store:
        (writer,) = await store.audit_writers()
        rows = await store.audit_chain(writer, 0, ROWS)
    made, head = [], Head(writer)
    for row in rows:
        record, number, at = row[:-4], int(str(row[-3])), int(str(row[-2]))
        then = at if number > seq else 1_000_000 * number
        head = link(head, number, then, msgspec.msgpack.encode(AuditRecord.of(record)))
        made.append((*record, writer, number, then, head.hash))
    await statement(
        url,
        "DELETE FROM audit; DELETE FROM audit_heads; DELETE FROM usage_rolled; "
        "CREATE TABLE audit_1970_01 PARTITION OF audit FOR VALUES FROM (0) TO (2678400000000)",
    )
    async with connection(url) as store:
        assert await store.add_audit(Head(writer), head, made)
    return "audit_1970_01"


FEBRUARY_1970 = 31 * 86_400 * 1_000_000


def test_what_is_left_by_retention_is_checked_from_its_first_row_on(postgresql_url: str, tmp_path: Path) -> None:
    """U4: the first one follows from what retention noted of the last row it dropped."""
    asyncio.run(write(postgresql_url, tmp_path))
    month = asyncio.run(age(postgresql_url))
    assert asyncio.run(drop_partitions(postgresql_url, FEBRUARY_1970)) == [month]
    chain = verified(postgresql_url)
    assert (chain.rows, chain.unproven, chain.broken) == (ROWS - DROPPED, False, None)
    tamper(postgresql_url, "UPDATE audit SET status = 1 WHERE seq = 5")
    broken = verified(postgresql_url).broken
    assert broken is not None
    assert (broken.seq, broken.row) == (5, "r5")
    tamper(postgresql_url, "DELETE FROM audit WHERE seq < 8")
    broken = verified(postgresql_url).broken
    assert broken is not None
    assert (broken.seq, broken.reason) == (5, "the row is missing")


def test_a_first_row_that_nothing_vouches_for_is_said(postgresql_url: str, tmp_path: Path) -> None:
    """U4: where retention noted no hash; an anchor on the row before it says the same, one on later rows does not."""
    asyncio.run(write(postgresql_url, tmp_path))
    asyncio.run(age(postgresql_url))
    writer, last, later = verified(postgresql_url).writer, hash_of(postgresql_url, 4), hash_of(postgresql_url, 9)
    asyncio.run(drop_partitions(postgresql_url, FEBRUARY_1970))
    tamper(postgresql_url, "UPDATE operations SET body = (body::jsonb - 'hashes')::text")
    for anchors, unproven in (({}, True), ({9: later}, True), ({4: last}, False)):
        chain = verified(postgresql_url, {writer: anchors})
        assert (chain.rows, chain.unproven, chain.broken) == (ROWS - DROPPED, unproven, None)
    tamper(postgresql_url, "UPDATE audit SET status = 1 WHERE seq = 5")
    assert verified(postgresql_url, {writer: {9: later}}).unproven
    broken = verified(postgresql_url, {writer: {4: last}}).broken
    assert broken is not None
    assert broken.seq == 5


class PrunedMeanwhile:
    """A store whose second read of a chain finds that retention went on."""

    def __init__(self, store: Store, url: str) -> None:
        self._store = store
        self._url = url
        self.reads = 0

    async def audit_chain(self, writer: str, after: int, count: int) -> list[AuditRow]:
        self.reads += 1
        if self.reads == 2:
            await drop_partitions(self._url, FEBRUARY_1970)
        return await self._store.audit_chain(writer, after, count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize("rows", [DROPPED, ROWS])
def test_retention_that_meets_a_verification_breaks_nothing(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """U4: rows that were dropped between two pages are not missed; others still are."""
    asyncio.run(write(postgresql_url, tmp_path))
    asyncio.run(age(postgresql_url, rows))
    monkeypatch.setattr(trail, "_PAGE", 2)

    async def body() -> list[Verified]:
        async with connection(postgresql_url) as store:
            return await trail.verify(PrunedMeanwhile(store, postgresql_url), {})  # type: ignore[arg-type]  # a Store

    (chain,) = asyncio.run(body())
    assert (chain.rows, chain.unproven, chain.broken) == (ROWS - rows, False, None)


def test_a_file_of_anchors_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("{}\n")
    for path in (tmp_path / "a", tmp_path / "missing"):
        with pytest.raises(trail.AnchorError):
            trail.read_anchors(path)
    (tmp_path / "b").write_text('{"writer": "w", "seq": 1, "hash": "00"}\n{"wri')
    assert trail.read_anchors(tmp_path / "b") == {"w": {1: b"\0"}}


def test_a_torn_line_among_the_anchors_costs_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """U4: what a full disk took of it is no reason to check nothing."""
    line = '{"writer": "w", "seq": %d, "hash": "00"}\n'
    (tmp_path / "a").write_text(line % 1 + (line % 2)[:9] + "\n" + line % 3)
    assert trail.read_anchors(tmp_path / "a") == {"w": {1: b"\0", 3: b"\0"}}
    assert "line 2 is torn" in caplog.text


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
        done = await migrate(postgresql_url, "gateway")
        assert done[1:] == grants("gateway")[1:]

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


OWNED = "GRANT ALL ON ALL TABLES IN SCHEMA public TO gateway; GRANT UPDATE (status) ON audit TO gateway"


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM audit",
        "UPDATE audit SET status = 0",
        "DELETE FROM audit_rest",
        "DELETE FROM {month}",
        "INSERT INTO {month} SELECT * FROM {month}",
        "UPDATE operations SET actor = 'x'",
        "DELETE FROM operations",
        "UPDATE change_counter SET version = 0",
    ],
)
def test_migrate_takes_back_what_a_role_was_given_before(as_gateway: str, postgresql_url: str, sql: str) -> None:
    """U4: of the months and of the operations too."""

    async def body() -> None:
        await statement(postgresql_url, OWNED)
        await migrate(postgresql_url, "gateway")
        await statement(as_gateway, sql.format(month=f"audit_{datetime.datetime.now(datetime.UTC):%Y_%m}"))

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        asyncio.run(body())


def test_a_new_month_is_changed_by_nobody_whatever_is_given_on_new_tables(as_gateway: str, postgresql_url: str) -> None:
    """U4: gateways make the months to come after `migrate`."""
    given = "ALTER DEFAULT PRIVILEGES IN SCHEMA public {} ALL ON TABLES {} gateway, PUBLIC"

    async def body() -> None:
        owner = await asyncpg.connect(postgresql_url)
        try:
            month = await owner.fetchval(f"{PARTITIONS} ORDER BY relname DESC LIMIT 1")
            await owner.execute(f"DROP TABLE {month}; {given.format('GRANT', 'TO')}")
            await statement(as_gateway, "SELECT audit_make_partitions(12)")
            await owner.execute(given.format("REVOKE", "FROM"))
            assert await owner.fetchval("SELECT has_table_privilege('gateway', $1, 'SELECT')", month)
            assert not await owner.fetchval(
                "SELECT has_table_privilege('gateway', $1, 'INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER')", month
            )
        finally:
            await owner.close()

    asyncio.run(body())


TAKE_OVER = """
    CREATE TEMP TABLE change_counter (singleton BOOLEAN, version BIGINT);
    INSERT INTO change_counter VALUES (TRUE, 0);
    GRANT ALL ON change_counter TO PUBLIC;
    CREATE FUNCTION pg_temp.as_owner() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        DELETE FROM public.audit;
        RETURN NEW;
    END
    $$;
    CREATE TRIGGER as_owner BEFORE UPDATE ON change_counter FOR EACH ROW EXECUTE FUNCTION pg_temp.as_owner();
    UPDATE tenants SET name = name
"""


def test_the_owners_functions_write_to_no_table_of_the_applications_role(
    as_gateway: str, postgresql_url: str, tmp_path: Path
) -> None:
    """U4: what a temporary table's trigger does, it does as whoever writes to it."""

    async def body() -> int:
        await write(as_gateway, tmp_path, 2)
        async with ring(as_gateway), connection(postgresql_url) as store:
            await statement(as_gateway, TAKE_OVER)
            return len(await store.audit_tail(9))

    assert asyncio.run(body()) == 2


def test_every_function_that_runs_as_the_owner_looks_at_temporary_tables_last(postgresql_url: str) -> None:
    """U4: also one that a later migration makes."""
    paths = "SELECT proname, proconfig FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace"

    async def body() -> dict[str, list[str]]:
        link = await asyncpg.connect(postgresql_url)
        try:
            return {row["proname"]: row["proconfig"] for row in await link.fetch(paths)}
        finally:
            await link.close()

    own = asyncio.run(body())
    assert set(own) == {"note_change", "audit_make_partitions", "usage_roll_up"}
    assert all(config == ["search_path=public, pg_temp"] for config in own.values())


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
