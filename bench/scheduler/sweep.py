"""What a change of each setting does: `python -m bench.scheduler.sweep [--seeds 3] [--write]`.

One setting at a time, the others at their defaults, users of one tenant. docs/scheduler.md quotes these figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import fmean
from typing import Any

from bench.scheduler.measure import Result, run
from bench.scheduler.policies import Fifo, ours
from bench.scheduler.report import put_section, table
from bench.scheduler.scenarios import Scenario, abuser, accounts, busy, crowd, mixed, newcomer

SCENARIOS: tuple[Callable[[], Scenario], ...] = (busy, abuser, accounts, crowd, newcomer, mixed)
SWEEP: dict[str, tuple[Any, ...]] = {
    "wait_weight": (0.0, 0.1, 0.2, 0.4, 0.8, 1.6),
    "rounds": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
    "half_life": (60.0, 300.0, 1200.0, 3600.0),
    "credit": (0.0, 1.0, 2.0, 4.0, None),
    "free": (0.0, 1.0, 2.0, 4.0),
}
Task = tuple[int, str, Any, int]


def play(task: Task) -> Result:
    """One run; the name "FIFO" stands for that policy."""
    index, name, value, seed = task
    make = Fifo if name == "FIFO" else ours(levels=1, **{name: value})
    return run(SCENARIOS[index](), make, seed)


def row(name: str, value: Any, of: dict[Task, Result], seeds: int) -> list[str]:
    """The figures of one setting."""

    def mean(index: int, what: Callable[[Result], float]) -> str:
        return f"{fmean(what(of[index, name, value, seed]) for seed in range(seeds)):.2f}"

    ratio = fmean(of[0, name, value, seed].p99 / of[0, "FIFO", None, seed].p99 for seed in range(seeds))
    jain = min(of[index, name, value, seed].jain for index in (4, 5) for seed in range(seeds))
    light = [mean(index, lambda r: r.p99) for index in (1, 2, 3)]
    return [f"{name} = {value}", f"{ratio:.2f}", *light, mean(4, lambda r: r.drought), f"{jain:.3f}"]


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    cases = [("FIFO", None), *((name, value) for name, values in SWEEP.items() for value in values)]
    tasks = [
        (index, name, value, seed)
        for name, value in cases
        for index in range(len(SCENARIOS))
        for seed in range(options.seeds)
    ]
    with ProcessPoolExecutor(options.workers) as pool:
        of = dict(zip(tasks, pool.map(play, tasks, chunksize=4), strict=True))
    head = ["setting", "busy, p99 over FIFO's", "abuser, light p99", "20 accounts, light p99", "crowd, light p99",
            "newcomer, drought", "worst Jain"]  # fmt: skip
    rows = [row(name, value, of, options.seeds) for name, value in cases[1:]]
    text = "\n\n".join([
        "## What each setting does",
        f"`python -m bench.scheduler.sweep --seeds {options.seeds} --write`. One setting changed at a time, others at "
        "their defaults (wait_weight 0.4, rounds 8, half_life 300, credit 2, free 2), all users in one tenant; waits "
        "and droughts in service times, means of the seeds.",
        table(head, rows),
    ])  # fmt: skip
    print(text)
    if options.write:
        put_section("settings", text)


if __name__ == "__main__":
    main()
