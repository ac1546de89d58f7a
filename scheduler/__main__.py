"""`python -m scheduler`: who would go first, and why.

Reads a case as JSON from a file or standard input (`-`), or parties from the command line; without arguments, shows a
worked example. JSON: {"parties": [{"name", "usage", "waited", "share", "offset"}], "slots", "service_time",
"mean_cost", "settings": {...}}.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from scheduler.explain import EXAMPLE, Case, Party, rank, render


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the ranking; 0, or 2 for input that cannot be understood."""
    options = _parser().parse_args(arguments)
    try:
        case = _case(options)
        print(render(case, rank(case)))
    except (ValueError, OSError) as error:
        print(f"scheduler: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scheduler", description="Rank parties that wait, and say why.")
    parser.add_argument("party", nargs="*", help="NAME[:USAGE[:SECONDS OWED[:SHARE[:OFFSET]]]]")
    parser.add_argument("--json", metavar="FILE", help="a case as JSON; - for standard input")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--service-time", type=float, default=5.0, help="mean seconds a request holds a slot")
    parser.add_argument("--mean-cost", type=float, default=1000.0, help="mean cost units of a request")
    return parser


def _case(options: argparse.Namespace) -> Case:
    if options.json is not None:
        raw = sys.stdin.buffer.read() if options.json == "-" else Path(options.json).read_bytes()
        return msgspec.json.decode(raw, type=Case)
    if not options.party:
        return EXAMPLE
    parties = [_party(text) for text in options.party]
    return Case(parties, options.slots, options.service_time, options.mean_cost)


def _party(text: str) -> Party:
    name, *numbers = text.split(":")
    if len(numbers) > 4:
        raise ValueError(f"{text}: at most four numbers follow the name")
    return Party(name, *(float(number) for number in numbers))


if __name__ == "__main__":
    sys.exit(main())
