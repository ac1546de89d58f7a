"""`python -m bench.micro`: the watched parts' medians in nanoseconds, by pytest-benchmark (`--save`, `--against`).

`python -m bench.micro all` times every shape of `wire` and `api` instead: microseconds, the best of many short rounds,
which is what the code costs and not what the machine's neighbours cost.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path

from bench.micro import api, wire
from bench.micro.compare import Figures, conclude, options

ROUNDS = 200
ROUND_SECONDS = 0.0005


def best(call: Callable[[], object]) -> float:
    """Microseconds per call: most of many short rounds fall between two disturbances."""
    timer = timeit.Timer(call)
    loops = 1
    while timer.timeit(loops) < ROUND_SECONDS:
        loops *= 2
    return min(timer.repeat(ROUNDS, loops)) / loops * 1e6


def medians() -> Figures:
    """Name of a watched part -> nanoseconds. Raises CalledProcessError if one could not be measured."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "medians.json")
        test = Path(__file__).with_name("test_parts.py")
        quiet = ["-q", "-W", "ignore", "-p", "no:cacheprovider", "--benchmark-columns=min,median,iqr,rounds"]
        command = [sys.executable, "-m", "pytest", str(test), f"--benchmark-json={out}", *quiet]
        subprocess.run(command, check=True)
        rows = json.loads(out.read_text())["benchmarks"]
        return {row["params"]["name"]: row["stats"]["median"] * 1e9 for row in rows}


def main() -> int:
    parser = options(__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=["watched", "all"], default="watched")
    given = parser.parse_args()
    if given.what == "watched":
        return conclude(medians(), "nanoseconds, medians", given)
    for name, call in (*wire.parts(), *api.parts()):
        print(f"{best(call):9.2f} us  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
