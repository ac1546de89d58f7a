"""Where the instructions of an exchange go in the compiled wheel, by function, as callgrind counts them.

`python -m bench.micro.compiled --python PYTHON` (Debian: valgrind), where PYTHON is the interpreter of an environment
with the compiled wheel and the group `test` (`FAIRGATE_COMPILE=1 pip install . --group test`). Runs `rig` below
callgrind, which counts while bytes that arrived are worked on, and prints a Markdown table: instructions of a function
and all it calls, for one exchange. The kernel's part is not in it, nor are other threads.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bench.tools import HERE

WARM_UP, EXCHANGES = 200, 300
ENTRIES = ("client___UpstreamConnection___data_received", "connection___Connection___data_received")
LEAST = 1_000  # instructions of a row
ROWS = 45
_NAME = re.compile(r"\((\d+)\)(?: (.*))?$")
_OURS = re.compile(r"CPyDef_(\w+?)(?:_gen_____mypyc_generator_helper__)?$")


def child() -> None:
    """Below callgrind: run the exchanges. Raises ImportError where the product is not compiled."""
    import uvloop  # of that environment

    import scheduler.core  # as above

    if not str(scheduler.core.__file__).endswith(".so"):
        raise ImportError("this environment has no compiled wheel")
    uvloop.run(_exchanges())


async def _exchanges() -> None:
    from bench.micro.rig import ANSWER, BODY, QUIET, rig  # as above

    async with rig(1, audit=QUIET) as made:
        request = made.request(900)
        for number in range(WARM_UP + EXCHANGES):
            made.ask(request)
            made.answer(ANSWER)
            made.check(BODY)
            if number % 50 == 0:
                await asyncio.sleep(0.001)


def inclusive(lines: Iterable[str]) -> tuple[Counter[str], int]:
    """Instructions by function with all it calls, and of all. A recursive function counts once for each level."""
    names: dict[str, str] = {}
    total: Counter[str] = Counter()
    own = 0
    function = called = ""
    call = False

    def named(text: str) -> str:
        match = _NAME.match(text)
        if match is None:
            return text
        return names.setdefault(match[1], match[2] or "")

    for line in lines:
        if line.startswith("fn="):
            function = named(line[3:].strip())
        elif line.startswith("cfn="):
            called = named(line[4:].strip())
        elif line.startswith("calls="):
            call = True
        elif line[:1] in "0123456789+-*" and line.strip():
            words = line.split()
            count = int(words[1]) if len(words) > 1 else 0
            if call and called != function:
                total[function] += count
            elif not call:
                total[function] += count
                own += count
            call = False
    return total, own


def table(total: Counter[str], own: int) -> str:
    each = WARM_UP + EXCHANGES
    rows = []
    for function, count in total.most_common():
        match = _OURS.match(function)
        if match is not None and count >= LEAST * each and "___" in match[1]:
            rows.append(f"| `{match[1].replace('___', '.')}` | {count // each} | {count / own:.0%} |")
    lines = ["| function, with all it calls | instructions | share |", "|---|---:|---:|"]
    return "\n".join([*lines, f"| an exchange | {own // each} | 100% |", *rows[:ROWS]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="of an environment with the compiled wheel")
    given = parser.parse_args()
    # Behind the environment's packages: the product's own sources would be found first.
    code = f"import sys; sys.path.append({str(HERE.parent)!r}); from bench.micro.compiled import child; child()"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--collect-atstart=no"]
        command += [f"--toggle-collect=CPyDef_{entry}" for entry in ENTRIES]
        done = subprocess.run([*command, given.python, "-P", "-c", code], capture_output=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stderr.decode(errors="replace")[-2000:])
            return 1
        with out.open(encoding="utf-8", errors="replace") as lines:
            print(table(*inclusive(lines)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
