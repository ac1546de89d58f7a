"""How long usage reports take over a large audit trail (U6): rows made by the database itself, rolled up, reported.

    python -m bench.usage --rows 10000000 --store /big/disk/usage.db
    python -m bench.usage --rows 10000000 --store postgresql://owner@127.0.0.1/empty

The store must be empty; for PostgreSQL, as its owner. 400 keys of 200 users of 20 tenants, unevenly busy, use 6 models
for 90 days; 3 % of the rows were refused. Ten million such rows leave about four in a cell of an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import os
import sqlite3
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg

from bench.machine import TICK, prioritise
from gateway.store import Store, open_store
from gateway.store.base import STORED_COLUMNS
from gateway.store.postgresql import migrate
from gateway.store.rollup import LONG_STEP, roll_step, sketch_add
from gateway.store.usage import DAY_US, HOUR_US, UsageQuery

DAYS = 90
BATCH = 500_000
RUNS = 5
BEGIN = int(datetime.datetime.now(datetime.UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp())

# Two random numbers a row (a, b) from 0 to 1; their powers are uneven, as users and durations are.
MADE = """
    SELECT 'r' || n, at, 't' || (u % 20), 'u' || u, 'k' || u || '-' || CASE WHEN b < 0.3 THEN 1 ELSE 0 END,
        '192.0.2.7', 'openai', '/v1/chat/completions', 'POST', 'model-' || m,
        CASE WHEN b > 0.97 THEN '' ELSE 'model-' || m END, CASE WHEN b > 0.97 THEN '' ELSE 'b' || m END,
        CASE WHEN b > 0.97 THEN 429 ELSE 200 END, CASE WHEN b > 0.97 THEN 'refused' ELSE 'done' END, '',
        CAST(2000 * a AS {int}), CAST(500 * b AS {int}), 0, {false},
        CAST(20e6 * a * a * b * b * b AS {int}), CAST(20e6 * a * a * b * b * b + 1e5 + 2e6 * b * b * b AS {int}),
        CAST(20e6 * a * a * b * b * b + 1e6 + 30e6 * a * a * a AS {int}), 900, 4000, 1, 1, 0.5,
        CAST(1e6 + 30e6 * a * a * a AS {int}), 'bench', n, at, {hash}
    FROM (
        SELECT n, a, b, at, u, CASE WHEN b < 0.7 THEN u % 6 ELSE CAST(6 * a AS {int}) % 6 END AS m
        FROM (SELECT n, a, b, {begin} + n * {step} AS at, CAST(199 * a * b AS {int}) AS u FROM chances) AS y
    ) AS z
"""
CHANCES_SQLITE = """
    WITH RECURSIVE x (n) AS (SELECT :first UNION ALL SELECT n + 1 FROM x WHERE n < :last),
    chances AS MATERIALIZED (
        SELECT n, random() / 18446744073709551616.0 + 0.5 AS a, random() / 18446744073709551616.0 + 0.5 AS b FROM x
    )
"""
CHANCES_POSTGRESQL = """
    WITH chances AS MATERIALIZED (
        SELECT n, random() AS a, random() AS b FROM generate_series($1::BIGINT, $2::BIGINT) AS n
    )
"""
COLUMNS = ", ".join(f'"{name}"' for name in STORED_COLUMNS)
CELLS = "SELECT span, count(*) FROM usage_cells GROUP BY span UNION ALL SELECT 0, count(*) FROM usage_hours"
HEAD = "INSERT INTO audit_heads (writer, seq, recorded_at, hash) VALUES ('bench', {rows}, {last}, {hash})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--store", required=True, help="an empty SQLite file or PostgreSQL database")
    parser.add_argument("--again", action="store_true", help="make no rows: of a store made before")
    parser.add_argument("--nice", type=int, default=0, help="below 0 (root): before other work of a shared machine")
    args = parser.parse_args()
    prioritise(os.getpid(), args.nice)
    asyncio.run(run(args.store, 0 if args.again else args.rows))


async def run(url: str, rows: int) -> None:
    """Make, roll up, report; prints a table."""
    shared = url.startswith("postgresql://")
    if rows:
        await _fill(url, rows)
    server = await _server(url) if shared else 0
    store = await open_store(url)
    try:
        if rows:
            await _measure_roll_up(store)
        began, spent = time.monotonic(), _spent(server)
        await migrate(url) if shared else _upgrade_sqlite(Path(url))
        taken = time.monotonic() - began, _spent(server) - spent
        print("the rest rolled up as an upgrade does it: {:.1f} s, {:.1f} s of processors".format(*taken))
        await _measure_reports(store, server)
    finally:
        await store.close()
    print(await _size_postgresql(url) if shared else _size_sqlite(Path(url)))


async def _fill(url: str, rows: int) -> None:
    began = time.monotonic()
    if url.startswith("postgresql://"):
        await migrate(url)
        await _fill_postgresql(url, rows)
    else:
        await (await open_store(url)).close()
        _fill_sqlite(Path(url), rows)
    print(f"{rows} rows made in {time.monotonic() - began:.0f} s")


async def _server(url: str) -> int:
    """The process id of a PostgreSQL server on this machine."""
    connection = await asyncpg.connect(url)
    lines = await connection.fetchval("SELECT pg_read_file('postmaster.pid')")
    await connection.close()
    return int(lines.split()[0])


def _spent(server: int) -> float:
    """Processor seconds so far: ours, and those of a server with its children, ended ones included (proc(5))."""
    ticks = 0
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split() if server else []
    for pid in [str(server), *children] if server else []:
        with contextlib.suppress(OSError):  # it ended while we looked: then it is in the server's own figures
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11 : 15 if pid == str(server) else 13]))
    return time.process_time() + ticks * TICK


def _select(rows: int, **words: str) -> str:
    step = DAYS * DAY_US // rows
    return MADE.format(begin=BEGIN * 1_000_000, step=step, **words)


def _fill_sqlite(path: Path, rows: int) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    made = _select(rows, int="INTEGER", false="0", hash="x'00'")
    for first in range(1, rows + 1, BATCH):
        part = {"first": first, "last": first + BATCH - 1}
        connection.execute(f"{CHANCES_SQLITE} INSERT INTO audit ({COLUMNS}) {made}", part)
    connection.execute(HEAD.format(rows=rows, last=(BEGIN + DAYS * 86_400) * 1_000_000, hash="x'00'"))
    connection.close()


def _upgrade_sqlite(path: Path) -> None:
    """What opening an older file ends with."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.create_function("sketch_add", 2, sketch_add, deterministic=True)
    rolled = 1
    while rolled:
        connection.execute("BEGIN IMMEDIATE")
        rolled = roll_step(connection, LONG_STEP)
        connection.execute("COMMIT")
    connection.close()


async def _fill_postgresql(url: str, rows: int) -> None:
    connection = await asyncpg.connect(url)
    made = _select(rows, int="BIGINT", false="FALSE", hash="'\\x00'::BYTEA")
    for first in range(1, rows + 1, BATCH):
        await connection.execute(f"{CHANCES_POSTGRESQL} INSERT INTO audit ({COLUMNS}) {made}", first, first + BATCH - 1)
    await connection.execute(HEAD.format(rows=rows, last=(BEGIN + DAYS * 86_400) * 1_000_000, hash="'\\x00'"))
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


async def _measure_roll_up(store: Store, seconds: float = 20.0) -> None:
    """As a gateway does it, for some time, with and without; beside it, how late the event loop was."""
    for work in (asyncio.sleep, lambda seconds: asyncio.wait_for(store.roll_up(), seconds)):
        late: list[float] = []
        watching = asyncio.create_task(_watch(late))
        with contextlib.suppress(TimeoutError):
            await work(seconds)
        watching.cancel()
        late.sort()
        name = "nothing else" if work is asyncio.sleep else "a gateway's roll-up"
        middle, high, worst = (1000 * late[int(len(late) * part)] for part in (0.5, 0.99, 0.9999))
        print(f"beside {name} the loop is late by {middle:.2f} ms (p50), {high:.2f} (p99), {worst:.2f} (p99.99)")


async def _watch(late: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - began - 0.001)


async def _measure_reports(store: Store, server: int) -> None:
    """Seconds of the first and the median run, processor seconds of the median."""
    end = BEGIN * 1_000_000 + DAYS * DAY_US
    prices = {f"model-{n}": (1.0, 2.0) for n in range(6)}
    week = {"since": end - 7 * DAY_US - 5 * HOUR_US, "until": end - 3 * HOUR_US}
    asked: dict[str, Callable[[], Awaitable[object]]] = {
        f"by {by}, 90 days": lambda by=by: store.usage(UsageQuery(by=by, prices=prices))  # type: ignore[misc]
        for by in ("tenant", "user", "key", "model", "day", "hour")
    }
    asked["by user, one tenant"] = lambda: store.usage(UsageQuery(by="user", tenant="t3"))
    asked["by hour, one tenant"] = lambda: store.usage(UsageQuery(by="hour", tenant="t3"))
    asked["by key, a week and some hours"] = lambda: store.usage(UsageQuery(by="key", prices=prices, **week))
    asked["by hour, a week and some hours"] = lambda: store.usage(UsageQuery(by="hour", **week))
    asked["one key's 30 days (GET /api/usage reads two)"] = lambda: store.usage(
        UsageQuery(by="day", key="k3-0", since=end - 30 * DAY_US)
    )
    for name, ask in asked.items():
        taken, spent = [], []
        for _ in range(RUNS):
            began, before = time.monotonic(), _spent(server)
            await ask()
            taken.append(time.monotonic() - began)
            spent.append(_spent(server) - before)
        first, middle, processor = taken[0], statistics.median(taken), statistics.median(spent)
        print(f"| {name} | {first:.2f} | {middle:.2f} | {processor:.2f} |", flush=True)


def _size_sqlite(path: Path) -> str:
    connection = sqlite3.connect(path)
    cells = connection.execute(CELLS).fetchall()
    connection.close()
    return f"cells {dict(cells)}; the file has {path.stat().st_size >> 20} MiB"


async def _size_postgresql(url: str) -> str:
    connection = await asyncpg.connect(url)
    cells = await connection.fetch(CELLS)
    size = "SELECT (sum(pg_total_relation_size(oid)) / 1048576)::BIGINT FROM pg_class WHERE relname {}"
    trail = await connection.fetchval(size.format("~ '^audit_[0-9r]'"))
    kept = await connection.fetchval(size.format("= 'usage_cells'"))
    await connection.close()
    return f"cells {[tuple(row) for row in cells]}; the trail has {trail} MiB, the cells {kept} MiB"


if __name__ == "__main__":
    main()
