"""A key's own usage (U6), and the roll-up that it is read from. Must not know HTTP or who may ask.

Reports are read in Tasks of their own, so that a client may leave. A key's report is kept for KEEP_SECONDS and read
once for all that wait for it. At most AT_ONCE reports run at a time, since each costs the store more than a request
does.
"""

import asyncio
import datetime
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.api.model_names import meant
from gateway.config import Price
from gateway.services import bounded
from gateway.services.principal import ISSUED
from gateway.store.base import Store, StoreError
from gateway.store.usage import DAY_US, By, UsageQuery, UsageRow

_log = logging.getLogger("fairgate.usage")

DAYS = 30
KEEP_SECONDS = 10.0
AT_ONCE = 2
ROLL_SECONDS = 10.0
"""Seconds between two roll-ups: no report finds more than that left to do."""
KEPT = 1000
"""Reports kept in memory, of about 10 KiB each."""


class UsageService:
    """Usage reports of the last DAYS days, including today."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[str, tuple[float, bytes]] = {}
        self._flights: dict[str, asyncio.Task[bytes | None]] = {}
        self._running = asyncio.Semaphore(AT_ONCE)

    def known(self, key: str, now: float) -> bytes | None:
        """The cached report if it is recent. `now` is in Unix seconds."""
        at, report = self._kept.get(key, (0.0, b""))
        return report if report and 0 <= now - at < KEEP_SECONDS else None

    def read(self, key: str, now: float, prices: Mapping[str, Price]) -> "asyncio.Task[bytes | None]":
        """A JSON document with the key's usage by day and by model, or None if the store cannot be read now."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.get_running_loop().create_task(self._flight(key, now, prices))
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
        return flight

    async def _flight(self, key: str, now: float, prices: Mapping[str, Price]) -> bytes | None:
        table = price_table(prices)
        since = (int(now * 1e6) // DAY_US - DAYS + 1) * DAY_US
        try:
            async with self._running:
                days = await self._store.usage(UsageQuery(by="day", since=since, key=key, prices=table))
                models = await self._store.usage(UsageQuery(by="model", since=since, key=key, prices=table))
        except StoreError as err:
            _log.error("a key's usage could not be read: %s", err)
            return None
        report = msgspec.json.encode(
            {
                "since": _date(since),
                "days": [_shown("day", _date(int(row.group)), row) for row in days],
                "models": [_shown("model", row.group, row) for row in models],
            }
        )
        bounded.put(self._kept, key, (now, report), KEPT)
        return report

    async def close(self) -> None:
        """Cancel running reports. Nobody waits for them any more, and with a store that does not answer, each would
        delay the exit by a report's timeout."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)


async def keep_rolled_up(store: Store) -> None:
    """Roll up delivered rows periodically, until cancelled."""
    while True:
        await asyncio.sleep(ROLL_SECONDS)
        try:
            await store.roll_up()
        except StoreError as err:
            _log.warning("usage was not rolled up: %s", err)


_TIMES: Mapping[str, str] = {"day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H:00Z"}


async def named(store: Store, by: By, rows: Sequence[UsageRow]) -> list[str]:
    """The name of each group of a report. Something deleted keeps its id."""
    groups = [row.group for row in rows]
    if by in _TIMES:
        return [_time(int(group)).strftime(_TIMES[by]) for group in groups]
    if by == "model":
        return groups
    known = await store.labels(by, groups)  # type: ignore[arg-type]  # the other three are its kinds
    if by == "key":
        known |= await _issued(store, groups)
    return [known.get(group, group) for group in groups]


async def _issued(store: Store, groups: Sequence[str]) -> dict[str, str]:
    """Names for groups of users with tokens of an issuer."""
    users = [group.removeprefix(ISSUED) for group in groups if group.startswith(ISSUED)]
    return {ISSUED + user: f"{name}/{ISSUED.rstrip(':')}" for user, name in (await store.labels("user", users)).items()}


def price_table(prices: Mapping[str, Price]) -> dict[str, tuple[float, float]]:
    """Model -> the price of its input and output tokens. `name` also applies to `name:latest`, unless that has its
    own."""
    stated = {model: (price.input, price.output) for model, price in prices.items()}
    return {name: price for model, price in stated.items() for name in meant([model])} | stated


def _date(micros: int) -> str:
    return _time(micros).strftime("%Y-%m-%d")


def _time(micros: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(micros / 1e6, datetime.UTC)


def _shown(by: str, name: str, row: UsageRow) -> dict[str, Any]:
    fields = msgspec.structs.asdict(row)
    del fields["group"]
    return {by: name, **fields}
