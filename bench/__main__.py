"""The command: ``python -m bench`` compares; ``python -m bench check`` proves that broken answers are noticed."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from bench import check, report
from bench.peers import PEERS
from bench.peers.fairgate import Fairgate
from bench.run import Plan, run
from bench.scenarios import SCENARIOS
from bench.tools import OUT, BenchError

QUICK_PEERS = "direct,nginx,fairgate,aiohttp,fastapi"
QUICK_SCENARIOS = "S1,S2,S4,S5"


def names(text: str, known: dict[str, object]) -> list[str]:
    chosen = list(known) if text == "all" else text.split(",")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise BenchError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return chosen


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    arguments.add_argument("action", nargs="?", default="run", choices=["run", "check", "list", "table"])
    arguments.add_argument("rows", nargs="?", type=Path, help="for `table`: a JSON lines file of an earlier run")
    arguments.add_argument("--peers", default=QUICK_PEERS, help=f"comma list or all (default {QUICK_PEERS})")
    arguments.add_argument("--scenarios", default=QUICK_SCENARIOS, help=f"likewise (default {QUICK_SCENARIOS})")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=5.0, help="measured window of one run")
    arguments.add_argument("--spin", choices=["yes", "no", "both"], default="yes", help="load side never sleeps")
    arguments.add_argument("--proxy-core", type=int, default=0)
    arguments.add_argument("--load-core", type=int, default=min(1, (os.cpu_count() or 1) - 1))
    arguments.add_argument("--nice", type=int, default=0, help="priority of gateways and tools (below 0: root only)")
    arguments.add_argument("--python", help="interpreter of an environment with fairgate's dependencies")
    arguments.add_argument("--title", default="fairgate beside its peers")
    arguments.add_argument("--save", type=Path, help="also write the table here and the rows beside it (.jsonl)")
    return arguments


def compare(given: argparse.Namespace) -> None:
    """Run and print the table; rows and table also land in bench/out/."""
    if given.python:
        Fairgate.python = str(Path(given.python).absolute())
    spins = {"yes": (True,), "no": (False,), "both": (True, False)}[given.spin]
    plan = Plan(
        peers=names(given.peers, dict(PEERS)),
        scenarios=names(given.scenarios, dict(SCENARIOS)),
        rounds=given.rounds,
        seconds=given.seconds,
        spins=spins,
        proxy_core=given.proxy_core,
        load_core=given.load_core,
        nice=given.nice,
    )
    OUT.mkdir(exist_ok=True)
    rows_path = OUT / time.strftime("run-%Y%m%d-%H%M%S.jsonl")
    page = report.report(run(plan, rows_path), given.title)
    rows_path.with_suffix(".md").write_text(page)
    if given.save:
        given.save.write_text(page)
        given.save.with_suffix(".jsonl").write_text(rows_path.read_text())
    print(page)


def main() -> int:
    given = parser().parse_args()
    try:
        if given.action == "check":
            return check.main(given.load_core)
        if given.action == "list":
            for scenario in SCENARIOS.values():
                print(f"{scenario.name:10} {scenario.title}")
            print("peers:", ", ".join(PEERS))
        elif given.action == "table":
            print(report.report(report.read_rows(given.rows), given.title))
        else:
            compare(given)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
