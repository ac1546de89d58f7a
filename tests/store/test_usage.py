"""Usage reports on each database (U6): the roll-up against the same done by hand from the rows."""

import asyncio
import contextlib
import datetime
import random
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from gateway.services.record import AuditRecord
from gateway.services.usage import keep_rolled_up
from gateway.store.base import AUDIT_COLUMNS, STORED_COLUMNS, AuditRow, Head, Store, StoreError
from gateway.store.postgresql import drop_partitions, migrate
from gateway.store.rollup import sketch_add
from gateway.store.schema import migrations, statements
from gateway.store.sketch import BUCKETS, ERROR, counts, percentile, sketch
from gateway.store.sql import insert
from gateway.store.usage import BY, DAY_US, HOUR_US, By, UsageQuery, UsageRow
from tests.databases import statement
from tests.services.keyring import connection

BEGIN = 20_000 * DAY_US
PRICES = {"m1": (2.0, 10.0), "m2": (0.5, 0.0)}


def records(count: int, seed: int) -> list[AuditRecord]:
    """Requests over three days; some never reached an engine."""
    rnd = random.Random(seed)
    made = []
    for n in range(count):
        reached = rnd.random() < 0.8
        model = rnd.choice(["m1", "m2", "m3"])
        queue = rnd.randrange(10_000)
        made.append(
            AuditRecord(
                id=f"r{n}",
                started_at=BEGIN,
                tenant=f"t{rnd.randrange(2)}",
                user=f"u{rnd.randrange(4)}",
                key=f"k{rnd.randrange(8)}",
                model_asked=model,
                model_served=model if reached else "",
                backend="b" if reached else "",
                outcome=rnd.choice(["done", "client_gone", "upstream_failed"]) if reached else "refused",
                prompt_tokens=rnd.randrange(1000) if reached else 0,
                completion_tokens=rnd.randrange(1000) if reached else 0,
                cached_tokens=rnd.randrange(10),
                queue_us=queue,
                first_byte_us=queue + rnd.randrange(50_000) if rnd.random() < 0.9 else 0,
                total_us=queue + rnd.randrange(50_000, 900_000),
                slot_us=rnd.randrange(10**7),
            )
        )
    return made


def rows_of(made: list[AuditRecord], ended: list[int], writer: str, after: int) -> list[AuditRow]:
    return [
        (*(getattr(record, name) for name in AUDIT_COLUMNS), writer, seq, at, b"h")
        for seq, (record, at) in enumerate(zip(made, ended, strict=True), after + 1)
    ]


async def write(store: Store, made: list[AuditRecord], ended: list[int], writer: str = "w", after: int = 0) -> None:
    """One batch of a writer that stands at `after`."""
    rows = rows_of(made, ended, writer, after)
    assert await store.add_audit(Head(writer, after), Head(writer, after + len(rows), ended[-1], b"h"), rows)


def by_hand(query: UsageQuery, made: list[AuditRecord], ended: list[int]) -> dict[str, UsageRow]:
    groups: dict[str, list[AuditRecord]] = defaultdict(list)
    for record, at in zip(made, ended, strict=True):
        if query.since <= at < query.until and query.tenant in ("", record.tenant) and query.key in ("", record.key):
            group: Any = {
                "day": at - at % DAY_US,
                "hour": at - at % HOUR_US,
                "model": record.model_served,
            }.get(query.by)
            groups[str(group if group is not None else getattr(record, query.by))].append(record)
    return {group: _row(group, held, query) for group, held in groups.items()}


def nearest(values: list[int], rank: int) -> int | None:
    """The nearest rank in sorted values, as SQL's percentile_disc."""
    return values[(len(values) * rank + 99) // 100 - 1] if values else None


def near(us: int | None) -> Any:
    """What a sketch may say of it, in milliseconds."""
    if us is None:
        return None
    return pytest.approx(us / 1000, rel=ERROR, abs=0.001) if us >= 1000 else 0.0


def _row(group: str, held: list[AuditRecord], query: UsageQuery) -> UsageRow:
    reached = [record for record in held if record.backend]
    begun = [record.first_byte_us for record in reached if record.first_byte_us]
    times = ([record.queue_us for record in reached], begun, [record.total_us for record in reached])
    ranks = [near(nearest(sorted(values), rank)) for values in times for rank in (50, 95)]
    cost = 0.0
    for record in held:
        price = query.prices.get(record.model_served, (0.0, 0.0))
        cost += (record.prompt_tokens * price[0] + record.completion_tokens * price[1]) / 1e6
    return UsageRow(
        group,
        len(held),
        sum(record.outcome not in ("done", "client_gone") for record in held),
        sum(record.prompt_tokens for record in held),
        sum(record.completion_tokens for record in held),
        sum(record.cached_tokens for record in held),
        sum(record.slot_us for record in held) / 1e6,
        *ranks,
        pytest.approx(cost, abs=1e-5) if query.prices else None,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("seed", [1])
def test_reports_are_what_the_rows_say(store_url: str, seed: int) -> None:
    """U6: every grouping, with and without filters and prices."""
    made = records(400, seed)
    ended = sorted(BEGIN + random.Random(seed).randrange(3 * DAY_US) for _ in made)
    within: dict[str, Any] = {"since": BEGIN + 5 * HOUR_US, "until": BEGIN + 9 * HOUR_US, "key": "k1"}
    clipped: dict[str, Any] = {"since": BEGIN + 5 * HOUR_US, "until": BEGIN + 29 * HOUR_US}
    across: dict[str, Any] = {"since": BEGIN + 23 * HOUR_US, "until": BEGIN + 49 * HOUR_US, "tenant": "t1"}
    parts: tuple[dict[str, Any], ...] = (
        {},
        {"prices": PRICES},
        within,
        across,
        {"key": "k3", "prices": PRICES},
        {"since": BEGIN + DAY_US},
        clipped,
    )

    async def body() -> None:
        async with connection(store_url) as store:
            await write(store, made, ended)
            for by in BY:
                for more in parts:
                    query = UsageQuery(by=by, **more)
                    rows = await store.usage(query)
                    assert [row.group for row in rows] == _order(by, rows)
                    same(rows, by_hand(query, made, ended))

    asyncio.run(body())


def same(rows: list[UsageRow], expected: dict[str, UsageRow]) -> None:
    assert {row.group for row in rows} == set(expected)
    for row in rows:
        assert msgspec.structs.astuple(row) == msgspec.structs.astuple(expected[row.group])


def _order(by: By, rows: list[UsageRow]) -> list[str]:
    if by in ("day", "hour"):
        return sorted((row.group for row in rows), key=int)
    ranked = sorted(rows, key=lambda row: (-row.prompt_tokens - row.completion_tokens, row.group))
    return [row.group for row in ranked]


def test_nothing_reached_an_engine(store_url: str) -> None:
    """No percentile of nothing; and nothing at all is no row."""

    async def body() -> None:
        async with connection(store_url) as store:
            assert await store.usage(UsageQuery(by="day")) == []
            await write(store, [AuditRecord(id="r", started_at=1, tenant="t", outcome="refused")], [BEGIN])
            (row,) = await store.usage(UsageQuery(by="tenant", prices=PRICES))
            assert (row.requests, row.errors, row.queue_p50_ms, row.total_p95_ms, row.cost) == (1, 1, None, None, 0.0)

    asyncio.run(body())


def test_every_row_counts_once_whoever_rolls_up(store_url: str) -> None:
    """U6: two gateways and a report roll up while two writers ship, one of them hours late."""
    made, late = records(900, 2), records(300, 3)
    ended = [BEGIN + DAY_US + n * HOUR_US // 100 for n in range(900)]
    ended_late = [BEGIN + n * HOUR_US // 50 for n in range(300)]

    async def body() -> None:
        async with connection(store_url) as store, connection(store_url) as other:
            for part in range(3):
                at = slice(300 * part, 300 * part + 300)
                await write(store, made[at], ended[at], after=at.start)
                at = slice(100 * part, 100 * part + 100)
                await write(other, late[at], ended_late[at], "late", after=at.start)
                counts = await asyncio.gather(store.roll_up(), other.roll_up(), other.roll_up())
                assert sum(counts) == 400
            query = UsageQuery(by="key", prices=PRICES)
            same(await store.usage(query), by_hand(query, made + late, ended + ended_late))
            assert await store.roll_up() == 0

    asyncio.run(body())


def test_a_roll_up_that_is_given_up_loses_and_doubles_nothing(store_url: str) -> None:
    """U6: the mark moves in the transaction that adds."""
    made = records(2000, 4)
    ended = [BEGIN + n * HOUR_US // 100 for n in range(2000)]

    async def body() -> None:
        async with connection(store_url) as store:
            await write(store, made, ended)
            for _ in range(5):
                task = asyncio.create_task(store.roll_up())
                await asyncio.sleep(0.002)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        async with connection(store_url) as store:
            query = UsageQuery(by="day")
            same(await store.usage(query), by_hand(query, made, ended))

    asyncio.run(body())


def test_a_step_that_fails_adds_nothing(store_url: str) -> None:
    """U6: the cells and the mark are one transaction."""
    made, ended = records(50, 8), [BEGIN] * 50

    async def body() -> None:
        async with connection(store_url) as store:
            await write(store, made, ended)
            with marks_refused(store_url), pytest.raises(StoreError):
                await store.roll_up()
            query = UsageQuery(by="user")
            same(await store.usage(query), by_hand(query, made, ended))

    asyncio.run(body())


@contextlib.contextmanager
def marks_refused(url: str) -> Iterator[None]:
    """The database refuses to move a mark."""
    if url.startswith("postgresql"):
        on = "ALTER TABLE usage_rolled ADD CONSTRAINT refused CHECK (seq < 0)"
        off = "ALTER TABLE usage_rolled DROP CONSTRAINT refused"
    else:
        on = "CREATE TRIGGER refused BEFORE INSERT ON usage_rolled BEGIN SELECT RAISE(ABORT, 'refused'); END"
        off = "DROP TRIGGER refused"
    by_sql(url, on)
    try:
        yield
    finally:
        by_sql(url, off)


def by_sql(url: str, sql: str) -> None:
    """As another client of the database, beside a running loop."""
    if url.startswith("postgresql"):
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, statement(url, sql)).result()
    else:
        with contextlib.closing(sqlite3.connect(url, isolation_level=None)) as raw:
            raw.execute(sql)


def test_a_gateway_rolls_up_by_itself(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """U6: without a report, and after the store was away."""
    monkeypatch.setattr("gateway.services.usage.ROLL_SECONDS", 0.01)

    async def body() -> None:
        async with connection(store_url) as store:
            with marks_refused(store_url):
                await write(store, records(50, 9), [BEGIN] * 50)
                task = asyncio.create_task(keep_rolled_up(store))
                await asyncio.sleep(0.05)
            async with asyncio.timeout(10):
                while not (await store._fetch("SELECT count(*) AS n FROM usage_cells"))[0]["n"]:  # type: ignore[attr-defined]
                    await asyncio.sleep(0.01)
            task.cancel()
            assert await store.roll_up() == 0

    asyncio.run(body())


def test_usage_outlives_the_rows(postgresql_url: str) -> None:
    """U4, U6: what retention drops was rolled up before, the rows that nobody had rolled up yet included."""
    may, june = (
        int(datetime.datetime(2020, month, 15, tzinfo=datetime.UTC).timestamp()) * 1_000_000 for month in (5, 6)
    )
    month = "CREATE TABLE audit_2020_05 PARTITION OF audit FOR VALUES FROM ({}) TO ({})"

    async def body() -> None:
        await statement(postgresql_url, month.format(may - 14 * DAY_US, may + 17 * DAY_US))
        async with connection(postgresql_url) as store:
            await write(store, records(100, 5), [may] * 100)
            assert await drop_partitions(postgresql_url, june) == ["audit_2020_05"]
            assert await store.audit_tail(10) == []
            query = UsageQuery(by="user")
            same(await store.usage(query), by_hand(query, records(100, 5), [may] * 100))

    asyncio.run(body())


def test_rows_from_before_the_roll_up_are_in_the_reports(tmp_path: Path) -> None:
    """O6, U6: an upgrade of a store with a trail."""
    made, ended = records(700, 6), [BEGIN + n * HOUR_US // 100 for n in range(700)]
    path = tmp_path / "old.db"
    raw = sqlite3.connect(path)
    for migration in migrations("sqlite")[:5]:
        raw.executescript(";".join(statements(migration.sql)))
    raw.execute("PRAGMA user_version = 5")
    raw.executemany(re.sub(r"\$\d+", "?", insert("audit", STORED_COLUMNS)), rows_of(made, ended, "w", 0))
    raw.execute("INSERT INTO audit_heads VALUES ('w', 700, ?, x'00')", (ended[-1],))
    raw.commit()
    raw.close()

    async def body() -> None:
        async with connection(path) as store:
            assert await store.roll_up() == 0
            query = UsageQuery(by="model")
            same(await store.usage(query), by_hand(query, made, ended))

    asyncio.run(body())


def test_hours_of_before_the_table_of_hours_are_in_the_reports(store_url: str) -> None:
    """O6, U6: an upgrade of a store whose cells there are already; rows from after it are added."""
    made, ended = records(700, 10), [BEGIN + n * HOUR_US // 100 for n in range(700)]
    undone = ["DROP TABLE usage_hours", "ALTER TABLE usage_rolled RENAME TO usage_marks"]
    shared = store_url.startswith("postgresql")
    undone.append("DELETE FROM schema_migrations WHERE number >= 8" if shared else "PRAGMA user_version = 7")

    async def body() -> None:
        async with connection(store_url) as store:
            await write(store, made[:500], ended[:500])
            await store.roll_up()
        for sql in undone:
            by_sql(store_url, sql)
        if shared:
            assert (await migrate(store_url))[0] == "applied 0008_usage_hours.sql"
        async with connection(store_url) as store:
            await write(store, made[500:], ended[500:], after=500)
            query = UsageQuery(by="hour", prices=PRICES)
            same(await store.usage(query), by_hand(query, made, ended))

    asyncio.run(body())


def test_usage_is_asked_by_whole_hours() -> None:
    with pytest.raises(ValueError, match="hour"):
        UsageQuery(by="day", since=HOUR_US + 1)


@pytest.mark.parametrize("rank", [1, 50, 95, 100])
def test_a_sketch_is_as_good_as_it_says(rank: int) -> None:
    rnd = random.Random(7)
    for _ in range(200):
        values = sorted(int(10 ** rnd.uniform(0, 10.5)) for _ in range(rnd.randrange(1, 60)))
        assert percentile(counts(sketch(values)), rank) == near(nearest(values, rank))


def test_adding_two_sketches_gives_the_sketch_of_all_values() -> None:
    one, other = [2000, 10**7], [5, 2100, 10**12, 10**12]
    both = sketch_add(sketch(one), sketch(other))
    assert both == sketch(one + other)
    assert percentile(counts(both), 100) == pytest.approx(2 ** ((BUCKETS - 1.5) / 6), rel=1e-6)  # beyond the last
    assert sum(counts(both)) == 6
    nothing = sketch([])
    assert percentile(counts(nothing), 50) is percentile(counts("0"), 50) is None
    assert sketch_add(nothing, both) == sketch_add(both, nothing) == both
    assert counts(sketch_add(nothing, both)) == counts(both)
    assert sketch_add(nothing, sketch(one)) == sketch(one), "no bucket below its own"


def test_both_databases_have_the_same_buckets(postgresql_url: str) -> None:
    """D: SQL and Python agree on every boundary but those that floating point may round."""
    durations = [0, 1, 999, 1000, 1122, 1123, 10**6, 7 * 10**7, 10**11, 10**12]

    async def body() -> None:
        connection = await asyncpg.connect(postgresql_url)
        try:
            for us in durations:
                kept = await connection.fetchval("SELECT usage_sketch($1)::text", us)
                assert counts(kept) == counts(sketch([us]))
        finally:
            await connection.close()

    asyncio.run(body())
