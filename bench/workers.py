"""How fairgate scales with `workers`: the same load on one process and on several, the parent's CPU apart.

`python -m bench.workers` starts one gateway per number of workers, all of them free to use every core, and visits them
in turn. Throughput says little where the load side shares the cores; the CPU of a request does: of the workers,
which limits what each can take, and of the parent, which limits all of them together.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from bench import machine
from bench.peers.fairgate import Fairgate
from bench.report import median, text
from bench.run import Plan, load_arguments
from bench.scenarios import SCENARIOS, Scenario
from bench.tools import Backend, run_load

Row = dict[str, Any]
ALL_CORES = ",".join(map(str, range(os.cpu_count() or 1)))


class Several(Fairgate):
    """fairgate with that many workers, on every core."""

    def __init__(self, workers: int, limited: bool, backend_port: int) -> None:
        super().__init__(0, backend_port)
        self.workers = workers
        self.limited = limited
        self.name = f"fairgate-{workers}-workers{'-limited' if limited else ''}"

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "workers": self.workers}

    def command(self) -> list[str]:
        return ["taskset", "-c", ALL_CORES, *super().command()]

    def parts(self) -> tuple[list[int], list[int]]:
        """(the parent, the workers): without workers the one process is the worker."""
        pids = self.pids()
        return (pids[:1], pids[1:]) if self.workers > 1 else ([], pids)


class Watch:
    """CPU of parent, workers and load side over the measured window, and memory at its end."""

    def __init__(self, parts: dict[str, list[int]]) -> None:
        self.parts = parts
        self.used: dict[str, float] = {}
        self.pss = 0.0

    def begin(self, _load: int) -> None:
        self.used = {name: -machine.cpu_of(pids).total for name, pids in self.parts.items()}

    def end(self, _load: int) -> None:
        self.used = {name: used + machine.cpu_of(self.parts[name]).total for name, used in self.used.items()}
        self.pss = machine.pss_mb([*self.parts["parent"], *self.parts["workers"]])


def measure(peer: Several, scenario: Scenario, backend: Backend, plan: Plan) -> Row:
    backend.set(frames=scenario.frames, rate=scenario.frame_rate, spin=0)
    parent, workers = peer.parts()
    watch = Watch({"parent": parent, "workers": workers})
    result = run_load(plan.load_core, load_arguments(peer, scenario, backend, plan, False), watch.begin, watch.end)
    units = result["requests"] if scenario.unit == "request" else result["frames"]
    return {
        "workers": peer.workers,
        "limited": peer.limited,
        "scenario": scenario.name,
        "unit": scenario.unit,
        "units_per_s": units / plan.seconds,
        "worker_us": watch.used["workers"] * 1e6 / units,
        "parent_us": watch.used["parent"] * 1e6 / units,
        "p50_us": result["latency_us"]["p50"],
        "p99_us": result["latency_us"]["p99"],
        "pss_mb": watch.pss,
        "errors": result["errors"],
        "troubles": result["troubles"],
    }


def table(rows: list[Row]) -> str:
    """Medians over the rounds of runs without an error."""
    lines = [
        "| scenario | workers | limits | units/s | us of a worker | us of the parent | p50 us | p99 us | PSS MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if not row["errors"]:
            groups.setdefault((row["scenario"], row["workers"], row["limited"]), []).append(row)
    for (name, workers, limited), group in sorted(groups.items()):
        figures = ("units_per_s", "worker_us", "parent_us", "p50_us", "p99_us", "pss_mb")
        cells = " | ".join(text(median(row[figure] for row in group)) for figure in figures)
        lines.append(f"| {name} ({group[0]['unit']}) | {workers} | {'yes' if limited else 'no'} | {cells} |")
    return "\n".join(lines)


def run(plan: Plan, numbers: list[int], out: Path) -> list[Row]:
    machine.allow_many_files()
    if plan.nice:
        machine.prioritise(os.getpid(), plan.nice)  # gateways and tools inherit it
    rows: list[Row] = []
    with Backend(plan.load_core) as backend, out.open("w") as file:
        file.write(json.dumps({"facts": machine.facts(), "rounds": plan.rounds, "seconds": plan.seconds}) + "\n")
        peers = [Several(number, limited, backend.port) for limited in (False, True) for number in numbers]
        try:
            for peer in peers:
                peer.start()
            for number in range(plan.rounds):
                for name in plan.scenarios:
                    for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
                        row = {"round": number, **measure(peer, SCENARIOS[name], backend, plan)}
                        rows.append(row)
                        file.write(json.dumps(row) + "\n")
                        file.flush()
                        print(json.dumps(row), file=sys.stderr, flush=True)
        finally:
            for peer in peers:
                peer.stop()
    return rows


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m bench.workers", description=__doc__)
    arguments.add_argument("--workers", default="1,2", help="comma list (default 1,2)")
    arguments.add_argument("--scenarios", default="S1,S2,S3,S4")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=4.0)
    arguments.add_argument("--nice", type=int, default=0, help="priority of gateways and tools (below 0: root only)")
    arguments.add_argument("--out", type=Path, default=Path("bench/out/workers.jsonl"))
    given = arguments.parse_args()
    load_core = min(1, (os.cpu_count() or 1) - 1)
    plan = Plan(
        peers=[],
        scenarios=given.scenarios.split(","),
        rounds=given.rounds,
        seconds=given.seconds,
        load_core=load_core,
        nice=given.nice,
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    print(table(run(plan, list(map(int, given.workers.split(","))), given.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
