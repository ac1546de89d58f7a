"""What scheduling costs: `python -m bench.scheduler.cost [--write]`.

Time per call of the synchronous form with 10, 1 000 and 100 000 requests queued, the longest pause of any call across
landmarks, memory per queued request, and the uncontended path of the asyncio form. Times are CPU time of the thread
(a shared machine would otherwise count its other work); means over blocks of 500 calls, median and best block.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from statistics import median

from bench.scheduler.report import put_section, table
from scheduler.aio import Lease, Scheduler
from scheduler.model import Ticket
from scheduler.request import Request
from scheduler.sync import SyncScheduler

BLOCK = 500
CASES = ((10, 10, 1), (1_000, 1_000, 1), (10_000, 100_000, 1), (10_000, 100_000, 100))
"""(users, queued, tenants)."""


def overhead() -> float:
    """Seconds that reading the clock twice takes."""
    clock = time.thread_time
    return median(-clock() + clock() for _ in range(5001))


class Load:
    """A scheduler with a steady queue: each step ends one request, sends one and starts one."""

    def __init__(self, users: int, queued: int, tenants: int) -> None:
        self.rng = random.Random(1)
        self.users, self.tenants, self.now = users, tenants, 0.0
        self.made = SyncScheduler()
        self.made.set_slots("m", 8, 0.0)
        self.handles: list[Request | None] = []
        for n in range(queued):
            self.handles.append(self.made.enqueue(self.client(n % users), "m", self.cost(), 0.0))
        self.running = [self.made.next("m", 0.0) for _ in range(8)]

    def client(self, n: int) -> tuple[str, str, str]:
        return f"t{n % self.tenants}", f"u{n}", "k"

    def cost(self) -> float:
        return self.rng.expovariate(1 / 500)

    def steps(self, count: int) -> dict[str, list[float]]:
        """Seconds of each call. 100 dispatches a second of simulated time: a landmark every 3 000 steps."""
        clock, made, base = time.thread_time, self.made, overhead()
        times: dict[str, list[float]] = {"enqueue": [], "next": [], "finish": []}
        for n in range(count):
            self.now += 0.01
            ended, cost, estimate = self.running[n % 8], self.cost(), self.cost()
            client = self.client(self.rng.randrange(self.users))
            assert ended is not None
            t0 = clock()
            made.finish(ended, cost, self.now)
            t1 = clock()
            made.enqueue(client, "m", estimate, self.now)
            t2 = clock()
            self.running[n % 8] = made.next("m", self.now)
            t3 = clock()
            for name, seconds in (("finish", t1 - t0), ("enqueue", t2 - t1), ("next", t3 - t2)):
                times[name].append(seconds - base)
        return times


def blocks(seconds: list[float]) -> tuple[float, float]:
    """(median, best) block mean in microseconds."""
    means = [sum(seconds[n : n + BLOCK]) / BLOCK * 1e6 for n in range(0, len(seconds), BLOCK)]
    return median(means), min(means)


def decision_rows(steps: int) -> list[list[str]]:
    """One line per case."""
    rows = []
    for users, queued, tenants in CASES:
        load = Load(users, queued, tenants)
        gc.collect()
        gc.freeze()
        times = load.steps(steps)
        gc.unfreeze()
        cells = [
            f"{blocks(times[name])[0]:.1f} ({blocks(times[name])[1]:.1f})" for name in ("enqueue", "next", "finish")
        ]
        total = sum(blocks(values)[0] for values in times.values())
        best = sum(blocks(values)[1] for values in times.values())
        p99 = sorted(times["next"])[int(0.99 * steps)] * 1e6
        pause = max(max(values) for values in times.values()) * 1e3
        rows.append([f"{queued:,} of {users:,} users, {tenants} tenant{'s' if tenants > 1 else ''}", *cells,
                     f"{total:.1f} ({best:.1f})", f"{p99:.0f}", f"{pause:.2f}"])  # fmt: skip
    return rows


def memory() -> float:
    """Bytes per queued request at 100 000 queued of 10 000 users, tickets and parties included."""
    gc.collect()
    tracemalloc.start()
    load = Load(10_000, 100_000, 1)
    load.handles.clear()
    gc.collect()
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return used / load.made.waiting("m")


async def uncontended() -> tuple[float, float]:
    """Microseconds of submit -> lease -> release while a slot is free: (median, best) block."""
    made = Scheduler()
    made.set_gate("g", 8)
    made.set_pool("m", [("g", 0)])
    ticket = Ticket("m", "t", "u", cost=100.0)
    return _per_call(lambda: _once(made, ticket))


def _once(made: Scheduler, ticket: Ticket) -> None:
    lease = made.submit(ticket)
    assert type(lease) is Lease
    lease.release(120.0)


def _per_call(call: Callable[[], None]) -> tuple[float, float]:
    means = []
    for _ in range(60):
        begin = time.thread_time()
        for _ in range(BLOCK):
            call()
        means.append((time.thread_time() - begin) / BLOCK * 1e6)
    return median(means), min(means)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = decision_rows(options.steps)
    middle, best = asyncio.run(uncontended())
    head = ["queued", "enqueue", "next", "finish", "sum", "next p99", "longest pause, ms"]
    text = "\n\n".join([
        "## What a decision costs",
        "`python -m bench.scheduler.cost --write`. Microseconds of CPU per call, median (best) of blocks of "
        f"{BLOCK} calls, landmark renewals included; {platform.python_implementation()} "
        f"{sys.version.split()[0]}, pure Python, on a shared 2-core virtual machine.",
        table(head, rows),
        f"Uncontended submit, lease and release through asyncio: {middle:.1f} ({best:.1f}) us.",
        f"Memory: {memory():.0f} bytes per queued request (100,000 of 10,000 users; ticket and party included).",
    ])  # fmt: skip
    print(text)
    if options.write:
        put_section("cost", text)


if __name__ == "__main__":
    main()
