"""Runs the fuzz targets under atheris, one process each, one after the other.

Seeds come from the corpus; an input that breaks a target is written to `tests/fuzz/crashes/TARGET/`, where the test
suite finds it from then on. Without `--keep` what coverage found on the way is thrown away at the end.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.seeds import CRASHES, LONGEST, seeds
from tests.fuzz.targets import TARGETS

_ATHERIS_MISSING = "atheris is not installed: run `tox -e fuzz`, or pip install atheris (Python 3.11 or 3.12)"
_DICTIONARY = Path(__file__).parent / "http.dict"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=int(os.environ.get("FUZZ_SECONDS", "60")), help="a target")
    parser.add_argument("--runs", type=int, default=-1, help="most inputs a target; default: as many as fit")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; default: drawn and printed")
    parser.add_argument("--keep", type=Path, help="folder that keeps, by target, the inputs that reach new code")
    arguments = parser.parse_args()
    if not set(arguments.targets) <= set(TARGETS):
        parser.error(f"unknown target; there are {', '.join(TARGETS)}")
    return arguments


def _run(target: str, arguments: argparse.Namespace, folder: Path) -> tuple[int, bool]:
    """Fuzz one target; returns the inputs run and whether all went well."""
    found = folder / target
    found.mkdir(parents=True, exist_ok=True)
    (CRASHES / target).mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(seeds(target)):
        (found / f"seed-{index:03}").write_bytes(seed)
    seed_number = arguments.seed or int(time.time())
    print(f"{target}: {arguments.seconds} s, seed {seed_number}", flush=True)
    command = [sys.executable, "-m", "tests.fuzz.child", target]
    command += [f"-max_total_time={arguments.seconds}", f"-runs={arguments.runs}", f"-seed={seed_number}"]
    command += [f"-max_len={LONGEST}", "-timeout=30", "-rss_limit_mb=2048", f"-artifact_prefix={CRASHES / target}/"]
    command += ["-print_final_stats=1", "-verbosity=0", f"-dict={_DICTIONARY}", str(found), str(CRASHES / target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    counted = re.search(r"stat::number_of_executed_units:\s+(\d+)", done.stderr)
    inputs = int(counted[1]) if counted else 0
    print(f"{target}: {inputs} inputs, {len(list(found.iterdir()))} kept, exit {done.returncode}", flush=True)
    if done.returncode != 0:
        print(done.stdout[-3000:], done.stderr[-6000:], flush=True)
    return inputs, done.returncode == 0


def main() -> int:
    """0 if no target broke."""
    arguments = _arguments()
    if importlib.util.find_spec("atheris") is None:
        print(_ATHERIS_MISSING, file=sys.stderr)
        return 2
    os.nice(10)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = arguments.keep or Path(temporary)
        results = [_run(target, arguments, folder) for target in arguments.targets or TARGETS]
    print(f"in all: {sum(inputs for inputs, _ in results)} inputs")
    return 0 if all(well for _, well in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
