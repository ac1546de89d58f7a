"""Compare the policies in every scenario: `python -m bench.scheduler.run [--seeds 5] [--write]`.

Prints the tables and the bars they are held against; `--write` puts them into results.md and draws the plot.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from math import isnan
from statistics import fmean

from bench.scheduler.measure import Result, run
from bench.scheduler.policies import POLICIES
from bench.scheduler.report import PLOT, bars, put_section, table
from bench.scheduler.scenarios import SCENARIOS

Results = dict[str, dict[str, list[Result]]]
"""By scenario, by policy, one per seed."""
OURS, TENANTS = "fairgate", "fairgate, tenants"


def play(task: tuple[int, str, int]) -> Result:
    """One run, in a process of its own."""
    index, policy, seed = task
    return run(SCENARIOS[index](), POLICIES[policy], seed)


def play_all(seeds: int, workers: int) -> Results:
    """Everything."""
    tasks = [(index, policy, seed) for index in range(len(SCENARIOS)) for policy in POLICIES for seed in range(seeds)]
    results: Results = {}
    with ProcessPoolExecutor(workers) as pool:
        for (index, policy, _), result in zip(tasks, pool.map(play, tasks, chunksize=4), strict=True):
            results.setdefault(SCENARIOS[index]().name, {}).setdefault(policy, []).append(result)
    return results


def _mean(results: list[Result], what: Callable[[Result], float]) -> float:
    return fmean(what(result) for result in results)


def light_table(results: Results) -> str:
    """Waits of the light users."""
    rows = []
    for make in SCENARIOS:
        scenario = make()
        of = results[scenario.name]
        if isnan(of["FIFO"][0].p99):
            continue
        cells = [f"{_mean(of[p], lambda r: r.p50):.2f} / {_mean(of[p], lambda r: r.p99):.2f}" for p in POLICIES]
        rows.append([f"{scenario.name}: {scenario.title}", *cells])
    return table(["scenario", *POLICIES], rows)


def heavy_table(results: Results) -> str:
    """Fairness among those that always have a queue."""
    rows = []
    for make in SCENARIOS:
        scenario = make()
        of = results[scenario.name]
        if isnan(of["FIFO"][0].jain) or scenario.name == "onoff":
            continue
        cells = [
            f"{min(r.jain for r in of[p]):.3f} / {max(r.gap for r in of[p]):.0f} / {max(r.drought for r in of[p]):.1f}"
            for p in POLICIES
        ]
        rows.append([f"{scenario.name}: {scenario.title}", *cells])
    return table(["scenario", *POLICIES], rows)


def judge(results: Results) -> str:
    """The goals, what was reached, and whether bar and moonshot hold."""
    ours = {name: of[TENANTS] for name, of in results.items()}
    backlogged = ("newcomer", "shares", "many shares", "mixed", "noise", "agents")

    def p99(name: str) -> float:
        return _mean(ours[name], lambda r: r.p99)

    busy = fmean(mine.p99 / fifo.p99 for mine, fifo in zip(ours["busy"], results["busy"]["FIFO"], strict=True))
    split = _mean(ours["accounts"], lambda r: r.roles["honest"] / r.roles["sybil"])
    jain = min(r.jain for name in backlogged for r in ours[name])
    gap = max(r.gap / r.bound for name in backlogged for r in ours[name])
    late = max(r.late for name in ("abuser", "agents", "onoff", "keys") for r in ours[name])
    told = fmean(r.told for of in ours.values() for r in of if not isnan(r.told))
    goals: list[tuple[str, float, float, float]] = [
        *((f"light p99 in S, {name}", p99(name), 1.0, 0.6) for name in ("abuser", "agents", "onoff", "keys")),
        ("light p99 in S, accounts", p99("accounts"), 1.25, 0.7),
        ("light p99 in S, crowd", p99("crowd"), 4.0, 2.5),
        ("light p99 in S, fleet", p99("fleet"), 2.0, 1.0),
        ("p99 over FIFO's, busy", busy, 1.75, 1.25),
        ("1 - Jain, worst of the backlogged", 1 - jain, 0.01, 0.001),
        ("service gap over VTC's bound, worst", gap, 1.0, 0.35),
        *(
            (f"longest drought in S, {name}", _mean(ours[name], lambda r: r.drought), bar, moon)
            for name, bar, moon in (("newcomer", 8.0, 4.0), ("crowd", 20.0, 8.0), ("mixed", 35.0, 15.0))
        ),
        ("light requests that wait 30 s and more under abuse", late, 0.0, 0.0),
        ("announced waits wrong by more than 2x and 3 s", 1 - told, 0.2, 0.1),
    ]
    rows = [
        [
            name,
            f"{value:.3f}",
            f"{bar:g}",
            "yes" if value <= bar else "NO",
            f"{moon:g}",
            "yes" if value <= moon else "no",
        ]
        for name, value, bar, moon in goals
    ]
    text = table(["measure (lower is better)", "reached", "bar", "holds", "moonshot", "holds"], rows)
    return f"{text}\n\nHonest heavy user : 20 accounts of one tenant = {split:.2f} : 1 of the service (goal 1 : 1)."


def draw(results: Results) -> str:
    """The plot of the docs."""
    names = ["abuser", "agents", "onoff", "keys", "accounts", "crowd", "fleet", "busy"]
    series = {p: [_mean(results[name][p], lambda r: r.p99) for name in names] for p in POLICIES}
    return bars(
        "How long light users wait (99th percentile, in service times)",
        "Simulation, 5 seeds, logarithmic. Dashed: one service time, the time a request itself takes.",
        names, series, 1.0,
    )  # fmt: skip


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    results = play_all(options.seeds, options.workers)
    text = "\n\n".join([
        "## Policies in a discrete-event simulation",
        f"`python -m bench.scheduler.run --seeds {options.seeds} --write`. Modelled times, 8 slots unless said: "
        "figures compare policies, they promise nothing about a GPU. S = mean service time, C = mean cost.",
        f"Light users' wait p50 / p99 in S, mean of {options.seeds} seeds:", light_table(results),
        "Users that always have a queue: worst Jain index / largest service gap in C / longest drought in S "
        "(a user with a queue, nothing started for it), over all seeds:", heavy_table(results),
        "### Goals", judge(results),
        "Work conservation: no run had a slot idle with a queue, or a request started twice (both asserted in it).",
    ])  # fmt: skip
    print(text)
    if options.write:
        put_section("simulation", text)
        PLOT.parent.mkdir(parents=True, exist_ok=True)
        PLOT.write_text(draw(results))


if __name__ == "__main__":
    main()
