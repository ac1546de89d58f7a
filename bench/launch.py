"""`python -m bench.launch CONFIG --without auth,audit`: the gateway with features replaced by objects that do nothing.

For the price of each feature alone: the product has no such switches, and nothing here belongs before users. It wraps
the making of a `Runtime`, and fails at start where the product's methods have other names by now. `--watch FILE` also
looks every millisecond how late the loop is; on SIGUSR2 the worst goes to FILE as JSON, and watching begins anew.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import signal
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any
from unittest import mock

import uvloop

from gateway import loading
from gateway.app import App, serve
from gateway.flow.exchange import Runtime
from gateway.logs import setup
from gateway.plane import Plane
from gateway.services.principal import Grant, Principal
from scheduler.aio import Lease

TICK = 0.001
Parts = dict[str, Any]


def ignore(*_: Any, **__: Any) -> None:
    """What a method does that is switched off."""


class Instead:
    """A service, some of whose methods and attributes are replaced by these."""

    def __init__(self, real: Any, **replaced: Any) -> None:
        self._real = real
        for name, instead in replaced.items():
            getattr(real, name)  # AttributeError: the product calls it something else by now
            setattr(self, name, instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class FreeLease(Lease):
    """A slot nobody counts."""

    def __init__(self, gate: str) -> None:
        self.id, self.gate, self.waited, self.rank, self.queue_len, self.usage = 1, gate, 0.0, 0, 0, 0.0

    def release(self, cost: float) -> None:
        """Nothing was taken."""

    def charge(self, extra: float) -> None:
        """Nothing is charged."""


def without_auth(rt: Runtime) -> Parts:
    """The first key is verified; whoever comes then is taken for its owner."""
    known: list[Grant] = []

    async def verify(token: bytes, ip: str) -> Principal:
        known.append(Grant(inf, await rt.keys.verify(token, ip)))
        return known[0].principal

    def lookup(token: bytes, ip: str) -> Grant | None:
        return known[0] if known else None

    return {"keys": Instead(rt.keys, lookup=lookup, verify=verify, holds=lambda grant, epoch: True)}


def without_scheduler(rt: Runtime) -> Parts:
    """Every ticket is granted at once, on the first backend."""
    lease = FreeLease(rt.config.backends[0].name)
    return {"scheduler": Instead(rt.scheduler, submit=lambda ticket: lease)}


def without_audit(rt: Runtime) -> Parts:
    """Records are still made, and then dropped."""
    return {"audit": Instead(rt.audit, put=ignore, begin=lambda record: 0, full=False)}


def without_metrics(rt: Runtime) -> Parts:
    counting = dict.fromkeys(("count_request", "settle", "auth", "refused", "retried"), ignore)
    return {"metrics": Instead(rt.metrics, gaps=lambda model: None, **counting)}


FEATURES: dict[str, Callable[[Runtime], Parts]] = {
    "auth": without_auth,
    "scheduler": without_scheduler,
    "audit": without_audit,
    "metrics": without_metrics,
}
"""Limits are switched off by keys that have none."""


@contextlib.contextmanager
def without(features: list[str]) -> Iterator[None]:
    """Every `Runtime` made inside lacks these features."""
    make = Plane._generation

    def generation(*given: Any, **more: Any) -> Runtime:
        rt = make(*given, **more)
        parts = [FEATURES[name](rt) for name in features]
        return dataclasses.replace(rt, **{name: part for found in parts for name, part in found.items()})

    with mock.patch.object(Plane, "_generation", generation):
        yield


class Watch:
    """How late a timer of one millisecond comes, and how much of that the loop's own thread computed: a thread that was
    not given the processor is late too, but not busy."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGUSR2, self._tell)
        self._begin()
        self._due = self._loop.time() + TICK
        self._own = time.thread_time()
        self._loop.call_at(self._due, self._tick)

    def _begin(self) -> None:
        self._late = self._busy = 0.0
        self._ticks = 0

    def _tick(self) -> None:
        now, own = time.monotonic(), time.thread_time()
        late = now - self._due
        self._late = max(self._late, late)
        self._busy = max(self._busy, min(late, own - self._own))
        self._ticks += 1
        self._due, self._own = self._loop.time() + TICK, own
        self._loop.call_at(self._due, self._tick)

    def _tell(self) -> None:
        worst = {"late_ms": self._late * 1e3, "busy_ms": self._busy * 1e3, "ticks": self._ticks}
        part = self._out.with_suffix(".part")
        part.write_text(json.dumps(worst))
        part.rename(self._out)
        self._begin()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--without", default="", help=f"comma list of {', '.join(FEATURES)}")
    parser.add_argument("--watch", type=Path, help="where the longest stall goes")
    given = parser.parse_args()
    config = loading.load(given.config)

    def ready(app: App) -> None:
        if given.watch:
            Watch(given.watch)

    logging = setup(config.log.level, secrets=[])
    try:
        with without([name for name in given.without.split(",") if name]):
            uvloop.run(serve(config, ready))
    finally:
        logging.stop()


if __name__ == "__main__":
    main()
