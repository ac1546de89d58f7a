"""Usage reports (U6): one aggregating statement over the audit trail, for both databases.

Owns the statement and what its row means. Must not know who asks or how rows are shown. Requests belong to the time
they ended at (`recorded_at`), which is what the trail is partitioned and indexed by. Percentiles are of the nearest
rank, over the requests that reached an engine.
"""

import array
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

By = Literal["tenant", "user", "key", "model", "day", "hour"]
BY: tuple[By, ...] = get_args(By)
DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
REPORT_SECONDS = 60.0
"""A report over years is slow; nobody waits longer."""

MEASURES = ("queue_us", "first_byte_us", "total_us")
RANKS = (50, 95)

_GROUPS: dict[By, str] = {
    "tenant": "tenant",
    "user": '"user"',
    "key": '"key"',
    "model": "CASE model_served WHEN '' THEN model_asked ELSE model_served END",
    "day": f"recorded_at / {DAY_US} * {DAY_US}",
    "hour": f"recorded_at / {HOUR_US} * {HOUR_US}",
}


_Six = tuple[float | None, float | None, float | None, float | None, float | None, float | None]


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Times are Unix microseconds, `until` is outside; empty ids mean all. `prices`: model -> price of a million
    prompt tokens and of a million completion tokens."""

    by: By
    since: int = 0
    until: int = (1 << 63) - 1
    tenant: str = ""
    key: str = ""
    prices: Mapping[str, tuple[float, float]] = {}


class UsageRow(msgspec.Struct, frozen=True):
    """One group: `group` is an id, a model's name, or the begin of a day or hour in Unix microseconds (as text).
    Milliseconds are None where no request reached an engine, `cost` where no price was given."""

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


def percentile(values: Sequence[int], rank: int) -> int:
    """The nearest rank in sorted values, as SQL's percentile_disc."""
    return values[(len(values) * rank + 99) // 100 - 1]


class Percentiles:
    """SQLite's aggregate `percentiles(queue_us, first_byte_us, total_us)` -> JSON array of MEASURES by RANKS.

    Sorting in SQL (window functions) takes four times as long on a million rows.
    """

    def __init__(self) -> None:
        self._values = [array.array("q") for _ in MEASURES]

    def step(self, *measures: int) -> None:
        for values, measure in zip(self._values, measures, strict=True):
            values.append(measure)

    def finalize(self) -> str:
        found = [sorted(values) for values in self._values]
        return msgspec.json.encode(
            [percentile(values, rank) if values else None for values in found for rank in RANKS]
        ).decode()


_SQLITE = f"percentiles({', '.join(MEASURES)}) FILTER (WHERE backend <> '') AS percentiles"
_POSTGRESQL = ", ".join(
    f"percentile_disc(ARRAY[{', '.join(str(rank / 100) for rank in RANKS)}]) WITHIN GROUP (ORDER BY {measure}) "
    f"FILTER (WHERE backend <> '') AS p_{measure}"
    for measure in MEASURES
)


def statement(query: UsageQuery, percentiles: str) -> tuple[str, list[str | int | float]]:
    """SQL and its values. Names and prices travel as values."""
    values: list[str | int | float] = [query.since, query.until]
    where = "recorded_at >= $1 AND recorded_at < $2"
    for column, wanted in (("tenant", query.tenant), ('"key"', query.key)):
        if wanted:
            values.append(wanted)
            where += f" AND {column} = ${len(values)}"
    group, cost = _GROUPS[query.by], _cost(query.prices, values)
    order = "1" if query.by in ("day", "hour") else "sum(prompt_tokens) + sum(completion_tokens) DESC, 1"
    sql = (
        f"SELECT {group} AS grouped, count(*) AS requests, "  # noqa: S608 -- constants of ours and numbered values
        "count(*) FILTER (WHERE outcome NOT IN ('done', 'client_gone')) AS errors, "
        "sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens, "
        f"sum(cached_tokens) AS cached_tokens, sum(slot_us) AS slot_us, {cost} AS cost, {percentiles} "
        f"FROM audit WHERE {where} GROUP BY 1 ORDER BY {order}"
    )
    return sql, values


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
    return f"sum(CASE model_served {' '.join(cases)} ELSE 0 END) / 1e6"


def usage_row(row: Any) -> UsageRow:
    """A row of either database."""
    if "percentiles" in row.keys():  # noqa: SIM118 -- not all rows iterate keys
        ranks = msgspec.json.decode(row["percentiles"]) if row["percentiles"] else [None] * 6
    else:
        ranks = [us for measure in MEASURES for us in row[f"p_{measure}"] or (None, None)]
    cost = row["cost"]
    return UsageRow(
        str(row["grouped"]),
        int(row["requests"]),
        int(row["errors"]),
        int(row["prompt_tokens"]),
        int(row["completion_tokens"]),
        int(row["cached_tokens"]),
        int(row["slot_us"]) / 1e6,
        *_milliseconds(ranks),
        None if cost is None else round(float(cost), 6),
    )


def _milliseconds(ranks: Sequence[int | None]) -> _Six:
    a, b, c, d, e, f = (None if us is None else int(us) / 1000 for us in ranks)
    return a, b, c, d, e, f


class UsageSql:
    """The part of `SqlStore` that reports. A database adds `_report` and its form of percentiles."""

    _percentiles = _SQLITE

    async def _report(self, sql: str, values: Sequence[Any]) -> Sequence[Any]:
        """Fetch with a deadline of REPORT_SECONDS, beside other work."""
        raise NotImplementedError

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """Groups in order: of time, else the most tokens first."""
        return [usage_row(row) for row in await self._report(*statement(query, self._percentiles))]


POSTGRESQL_PERCENTILES = _POSTGRESQL
