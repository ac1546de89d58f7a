"""The command line: compare gateways (`quick`, `full`, or of one's own choice `run`), and look at what came out."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from bench import check, floors, memory, plots, report
from bench.peers import PEERS
from bench.peers.fairgate import Fairgate
from bench.plans import PLANS
from bench.run import Plan, Row, run
from bench.scenarios import SCENARIOS
from bench.tools import OUT, BenchError

SOME_PEERS = "direct,nginx,fairgate,aiohttp,fastapi"
SOME_SCENARIOS = "S1,S2,S4,S5"
ACTIONS = ("quick", "full", "run", "memory", "check", "list", "table", "floors")


def names(text: str, known: dict[str, object]) -> list[str]:
    chosen = list(known) if text == "all" else text.split(",")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise BenchError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return chosen


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    arguments.add_argument("action", nargs="?", default="quick", choices=ACTIONS)
    arguments.add_argument("rows", nargs="?", type=Path, help="`table`, `floors`: a JSON lines file of an earlier run")
    arguments.add_argument("--peers", help=f"`run`, `memory`: comma list or all (default of `run`: {SOME_PEERS})")
    arguments.add_argument("--scenarios", default=SOME_SCENARIOS, help="`run`: likewise (default %(default)s)")
    arguments.add_argument("--rounds", type=int, default=3, help="`quick`, `full`, `run`")
    arguments.add_argument("--seconds", type=float, default=5.0, help="measured window of one run")
    arguments.add_argument("--spin", choices=["yes", "no", "both"], default="yes", help="load side never sleeps")
    arguments.add_argument("--proxy-core", type=int, default=0)
    arguments.add_argument("--load-core", type=int, default=min(1, (os.cpu_count() or 1) - 1))
    arguments.add_argument("--nice", type=int, default=0, help="priority of gateways and tools (below 0: root only)")
    arguments.add_argument("--lock", type=Path, help="hold this file while a scenario visits all gateways once")
    arguments.add_argument("--python", help="interpreter of an environment with fairgate's dependencies")
    arguments.add_argument("--title", default="fairgate beside its peers")
    arguments.add_argument("--save", type=Path, help="also write the table here and the rows beside it (.jsonl)")
    return arguments


def plans(given: argparse.Namespace) -> list[Plan]:
    """What to run; none for `memory` alone."""
    base = Plan(
        peers=[],
        scenarios=[],
        rounds=given.rounds,
        seconds=given.seconds,
        spins={"yes": (True,), "no": (False,), "both": (True, False)}[given.spin],
        proxy_core=given.proxy_core,
        load_core=given.load_core,
        nice=given.nice,
        lock=given.lock,
    )
    if given.action in PLANS:
        return PLANS[given.action](base)
    peers = names(given.peers or SOME_PEERS, dict(PEERS))
    return [replace(base, peers=peers, scenarios=names(given.scenarios, dict(SCENARIOS)))]


def compare(given: argparse.Namespace) -> None:
    """Run, and keep rows, tables and bars in bench/out/, and where `--save` says."""
    if given.python:
        Fairgate.python = str(Path(given.python).absolute())
    OUT.mkdir(exist_ok=True)
    rows_path = OUT / time.strftime(f"{given.action}-%Y%m%d-%H%M%S.jsonl")
    chosen = plans(given)
    if given.action != "memory":
        for plan in chosen:
            run(plan, rows_path)
    if given.action in ("memory", "full"):
        weighed = memory.rows(chosen[0], given.peers.split(",") if given.peers else None)
        with rows_path.open("a") as out:
            out.writelines(json.dumps(row) + "\n" for row in weighed)
    rows = report.read_rows(rows_path)
    page = show(rows, given)
    for path in (rows_path, *([given.save] if given.save else [])):
        path.with_suffix(".jsonl").write_text(rows_path.read_text())
        path.with_suffix(".md").write_text(page)
        path.with_suffix(".svg").write_text(plots.svg(rows))
    print(page)


def show(rows: list[Row], given: argparse.Namespace) -> str:
    """The page: tables, and for a full run the goals."""
    page = report.report(rows, given.title)
    return f"{page}\n## Goals\n\n{floors.tables(rows)}\n" if given.action == "full" else page


def end(*_: object) -> None:
    """Leave by way of what stops the gateways, which a second signal (`timeout` sends two) must not cut short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main() -> int:
    given = parser().parse_args()
    signal.signal(signal.SIGTERM, end)
    try:
        if given.action == "check":
            return check.main(given.load_core)
        if given.action == "list":
            for scenario in SCENARIOS.values():
                print(f"{scenario.name:10} {scenario.title}")
            print("peers:", ", ".join(PEERS))
        elif given.action in ("table", "floors"):
            rows = report.read_rows(given.rows)
            print(floors.tables(rows) if given.action == "floors" else report.report(rows, given.title))
        else:
            compare(given)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
