"""Usage reports (U6): one aggregating statement over the roll-up of the audit trail, for both databases.

Owns the statement and the meaning of its rows. Must not know who asks or how rows are shown.

The roll-up consists of cells: one for each tenant, user, key and model of each hour, and of each day, with counts, sums
and three sketches. In addition there is a line for each hour and model over all parties, for reports by the hour, which
would otherwise read every cell. Rows are added in the order of their writer's chain, in steps. Each step moves the
writer's mark in the same transaction, so every row is added once, whichever gateway takes the step. This is not part of
the transaction that delivers rows: gateways would wait there for each other's locks on the same cells five times a
second, and rows from before the roll-up existed need the steps anyway. A report first takes the steps that are due, so
it includes every stored row. Cells outlive the rows.

Requests count for the time at which they ended (`recorded_at`) and for the model that served them, '' if none was
chosen: model names that clients merely ask for create no cells.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from gateway.store.sketch import counts, percentile

By = Literal["tenant", "user", "key", "model", "day", "hour"]
BY: tuple[By, ...] = get_args(By)
DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
REPORT_SECONDS = 60.0
"""Timeout of a report."""

SKETCHES = ("queue", "first_byte", "total")
CELL_COLUMNS = (
    "span", "start", "tenant", "user", "key", "model",
    "requests", "errors", "prompt_tokens", "completion_tokens", "cached_tokens", "slot_us", *SKETCHES,
)  # fmt: skip
"""`span` and `start` are in microseconds. Sketches cover the requests that reached an engine; `first_byte` those with a
first byte."""
HOUR_COLUMNS = (CELL_COLUMNS[1], *CELL_COLUMNS[5:])
"""Columns of the lines over all tenants, users and keys."""
FAILED = "outcome NOT IN ('done', 'client_gone')"

_GROUPS: dict[By, str] = {
    "tenant": "tenant",
    "user": '"user"',
    "key": '"key"',
    "model": "model",
    "day": f"start / {DAY_US} * {DAY_US}",
    "hour": "start",
}


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Times are Unix microseconds, whole hours, `until` is exclusive; empty ids match everything. `prices`: model ->
    price of a million prompt tokens and of a million completion tokens. `count` groups after skipping `skip`."""

    by: By
    since: int = 0
    until: int = (1 << 63) // HOUR_US * HOUR_US
    tenant: str = ""
    key: str = ""
    prices: Mapping[str, tuple[float, float]] = {}
    count: int = 1 << 62
    skip: int = 0

    def __post_init__(self) -> None:
        if self.since % HOUR_US or self.until % HOUR_US:
            raise ValueError("usage is kept by the hour")


class UsageRow(msgspec.Struct, frozen=True):
    """One group. `group` is an id, a model's name, or the start of a day or hour in Unix microseconds (as text).
    Milliseconds are from sketches (`sketch.ERROR`), None if no request got that far; `cost` is None without a price."""

    group: str
    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    slot_seconds: float
    queue_p50_ms: float | None
    queue_p95_ms: float | None
    first_byte_p50_ms: float | None
    first_byte_p95_ms: float | None
    total_p50_ms: float | None
    total_p95_ms: float | None
    cost: float | None


def statement(query: UsageQuery, sketch_sum: str) -> tuple[str, list[str | int | float]]:
    """SQL and its values. Names and prices are passed as values. `sketch_sum` is the database's aggregate with `{}` for
    its column."""
    table, where, values = _source(query)
    cost = _cost(query.prices, values)
    order = "1" if query.by in ("day", "hour") else "sum(prompt_tokens) + sum(completion_tokens) DESC, 1"
    sums = ", ".join(f"sum({name}) AS {name}" for name in CELL_COLUMNS[6:12])
    sketches = ", ".join(f"{sketch_sum.format(name)} AS {name}" for name in SKETCHES)
    values += [query.count, query.skip]
    part = f"LIMIT ${len(values) - 1} OFFSET ${len(values)}"
    sql = (
        f"SELECT {_GROUPS[query.by]} AS grouped, {sums}, {sketches}, {cost} AS cost "  # noqa: S608 -- constants of ours
        f"FROM {table} WHERE {where} GROUP BY 1 ORDER BY {order} {part}"
    )
    return sql, values


def _source(query: UsageQuery) -> tuple[str, str, list[str | int | float]]:
    """The table, the condition and its values."""
    if query.by == "hour" and not query.tenant and not query.key:
        return "usage_hours", "start >= $1 AND start < $2", [query.since, query.until]
    values: list[str | int | float] = [*_whole_days(query), query.since, query.until]
    where = (
        f"(span = {DAY_US} AND start >= $1 AND start < $2 OR span = {HOUR_US} AND start >= $3 AND start < $1 "
        f"OR span = {HOUR_US} AND start >= $2 AND start < $4)"
    )
    for column, wanted in (("tenant", query.tenant), ('"key"', query.key)):
        if wanted:
            values.append(wanted)
            where += f" AND {column} = ${len(values)}"
    return "usage_cells", where, values


def _whole_days(query: UsageQuery) -> tuple[int, int]:
    """The range for which cells of days suffice; the rest on both sides needs cells of hours."""
    first, last = -(-query.since // DAY_US) * DAY_US, query.until // DAY_US * DAY_US
    return (first, last) if query.by != "hour" and first < last else (query.since, query.since)


def _cost(prices: Mapping[str, tuple[float, float]], values: list[str | int | float]) -> str:
    if not prices:
        return "NULL"
    cases = []
    for model, price in prices.items():
        values += [model, *price]
        n = len(values)
        cases.append(
            f"WHEN ${n - 2} THEN prompt_tokens * CAST(${n - 1} AS DOUBLE PRECISION) "
            f"+ completion_tokens * CAST(${n} AS DOUBLE PRECISION)"
        )
    return f"sum(CASE model {' '.join(cases)} ELSE 0 END) / 1e6"


def usage_row(row: Any) -> UsageRow:
    """A row of either database."""
    cost = row["cost"]
    queue, first_byte, total = (counts(row[name]) for name in SKETCHES)
    return UsageRow(
        str(row["grouped"]),
        int(row["requests"]),
        int(row["errors"]),
        int(row["prompt_tokens"]),
        int(row["completion_tokens"]),
        int(row["cached_tokens"]),
        int(row["slot_us"]) / 1e6,
        percentile(queue, 50),
        percentile(queue, 95),
        percentile(first_byte, 50),
        percentile(first_byte, 95),
        percentile(total, 50),
        percentile(total, 95),
        None if cost is None else round(float(cost), 6),
    )


class UsageSql:
    """The part of `SqlStore` for reports. A database adds `_report` and its own roll-up step."""

    _sketch_sum = "sketch_sum({})"

    async def _report(self, sql: str, values: Sequence[Any]) -> Sequence[Any]:
        """Fetch with a timeout of REPORT_SECONDS, in parallel with other work."""
        raise NotImplementedError

    async def _roll_step(self) -> int:
        """Add some of the rows that are due to the cells, in one transaction -> how many; 0: none was due."""
        raise NotImplementedError

    async def roll_up(self) -> int:
        """Roll up everything that is due. Between steps, an embedded file's lock stays free for as long as a step
        took."""
        rolled = 0
        while True:
            began = time.monotonic()
            rows = await self._roll_step()
            if not rows:
                return rolled
            rolled += rows
            await asyncio.sleep(time.monotonic() - began)

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """Groups ordered by time, or else by tokens, most first."""
        await self.roll_up()
        return [usage_row(row) for row in await self._report(*statement(query, self._sketch_sum))]
