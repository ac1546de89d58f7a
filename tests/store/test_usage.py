"""Usage reports on each database (U6): what SQL aggregates against the same done by hand."""

import asyncio
import random
from collections import defaultdict
from typing import Any

import msgspec
import pytest

from gateway.services.record import AuditRecord
from gateway.store.base import AUDIT_COLUMNS, Head, Store
from gateway.store.usage import BY, DAY_US, HOUR_US, By, UsageQuery, UsageRow, percentile
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
                prompt_tokens=rnd.randrange(1000),
                completion_tokens=rnd.randrange(1000),
                cached_tokens=rnd.randrange(10),
                queue_us=queue,
                first_byte_us=queue + rnd.randrange(50_000),
                total_us=queue + rnd.randrange(50_000, 900_000),
                slot_us=rnd.randrange(10**7),
            )
        )
    return made


async def write(store: Store, made: list[AuditRecord], ended: list[int]) -> None:
    rows = [
        (*(getattr(record, name) for name in AUDIT_COLUMNS), "w", seq, at, b"h")
        for seq, (record, at) in enumerate(zip(made, ended, strict=True), 1)
    ]
    assert await store.add_audit(Head("w"), Head("w", len(rows), ended[-1], b"h"), rows)


def by_hand(query: UsageQuery, made: list[AuditRecord], ended: list[int]) -> dict[str, UsageRow]:
    groups: dict[str, list[AuditRecord]] = defaultdict(list)
    for record, at in zip(made, ended, strict=True):
        if query.since <= at < query.until and query.tenant in ("", record.tenant) and query.key in ("", record.key):
            group: Any = {
                "day": at - at % DAY_US,
                "hour": at - at % HOUR_US,
                "model": record.model_served or record.model_asked,
            }.get(query.by)
            groups[str(group if group is not None else getattr(record, query.by))].append(record)
    return {group: _row(group, held, query) for group, held in groups.items()}


def _row(group: str, held: list[AuditRecord], query: UsageQuery) -> UsageRow:
    reached = [record for record in held if record.backend]
    ranks = []
    for name in ("queue_us", "first_byte_us", "total_us"):
        values = sorted(getattr(record, name) for record in reached)
        ranks += [percentile(values, rank) / 1000 if values else None for rank in (50, 95)]
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
    part: dict[str, Any] = {"since": ended[50], "until": ended[350], "tenant": "t1", "prices": PRICES}

    async def body() -> None:
        async with connection(store_url) as store:
            await write(store, made, ended)
            for by in BY:
                for more in ({}, part, {"key": "k3"}):
                    query = UsageQuery(by=by, **more)
                    rows = await store.usage(query)
                    expected = by_hand(query, made, ended)
                    assert {row.group for row in rows} == set(expected)
                    for row in rows:
                        assert msgspec.structs.astuple(row) == msgspec.structs.astuple(expected[row.group])
                    assert [row.group for row in rows] == _order(by, rows)

    asyncio.run(body())


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


def test_the_nearest_rank() -> None:
    assert [percentile(list(range(1, n + 1)), 50) for n in (1, 2, 3, 4)] == [1, 1, 2, 2]
    assert [percentile(list(range(1, n + 1)), 95) for n in (1, 19, 20, 100)] == [1, 19, 19, 95]
