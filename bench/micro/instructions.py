"""Instructions of one exchange, counted by callgrind: the same on a busy machine as on a quiet one.

`python -m bench.micro.instructions` (Debian: valgrind, gcc; under a minute) runs `rig` below callgrind with counting
switched on only around the measured loops, and prints instructions per exchange and per frame, of the loop's thread:
request bytes in -> engine bytes out, engine bytes in -> client bytes out and the audit record spooled. System calls
count as the one instruction that enters the kernel; other threads (audit shipping, SQLite) are left out.

Behind them stand the watched parts one by one (`parts`). `--save FILE` keeps the figures as JSON, `--against FILE`
compares and fails where one is more than 10 % worse.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import uvloop

from bench.micro.compare import Figures, conclude, options
from bench.micro.parts import Part, parts
from bench.micro.rig import ANSWER, BODY, FRAME, QUIET, STREAM_END, STREAM_HEAD, Rig, rig
from gateway.process import GC_THRESHOLDS

PAIRS = 20
WARM_UP, STEPS = 20, 20  # rounds of PAIRS exchanges
FRAMES = 50
CALLS, BEFORE = 20, 5  # of each watched part: counted, and not counted
LAST = b"0\r\n\r\n"
SWITCH = """\
#include <valgrind/callgrind.h>
void prepare(void) { CALLGRIND_START_INSTRUMENTATION; }
void toggle(void) { CALLGRIND_TOGGLE_COLLECT; }
void dump(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }
"""


class Counter:
    """Callgrind's switch. Outside of valgrind it does nothing."""

    def __init__(self, library: Path) -> None:
        loaded = ctypes.PyDLL(str(library))  # PyDLL: no other thread gets its turn in between
        self.prepare: Callable[[], None] = loaded.prepare
        self._toggle: Callable[[], None] = loaded.toggle
        self._dump = loaded.dump

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        self._toggle()
        yield
        self._toggle()

    def dump(self, name: str) -> None:
        """What was counted since the last dump is called so."""
        self._dump(name.encode())


# ---- below valgrind


async def child(library: Path) -> None:
    """Run every part, each counted on its own."""
    counter = Counter(library)
    async with rig(PAIRS, audit=QUIET) as made:
        requests = {
            "1k": made.request(900),
            "32k": made.request(32_000),
            "unlimited": made.request(900, key=made.unlimited),
            "stream": made.request(900, stream=True),
        }
        for name, request in requests.items():
            for _ in range(WARM_UP):
                await (_stream if name == "stream" else _plain)(made, request)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        counter.prepare()
        for _ in range(STEPS):
            with counter.counting():
                pass
        counter.dump("nothing")
        for name in ("1k", "32k", "unlimited"):
            await _exchanges(made, counter, name, requests[name])
        await _streams(made, counter, requests["stream"])
        for part in parts(made.beside(1)):
            _part(counter, part)


async def _plain(made: Rig, request: bytes) -> None:
    """PAIRS exchanges, then one turn of the loop, in which the spool is written."""
    made.ask(request)
    made.answer(ANSWER)
    await asyncio.sleep(0)
    made.check(BODY)


async def _stream(made: Rig, request: bytes) -> None:
    """As `_plain`, with an answer of one frame."""
    made.ask(request)
    for data in (STREAM_HEAD, FRAME, STREAM_END):
        made.answer(data)
    await asyncio.sleep(0)
    made.check(LAST)


async def _exchanges(made: Rig, counter: Counter, name: str, request: bytes) -> None:
    for _ in range(STEPS):
        with counter.counting():
            made.ask(request)
            made.answer(ANSWER)
            await asyncio.sleep(0)
        made.check(BODY)
    counter.dump(f"exchange-{name}")
    for half in ("request", "answer"):
        for _ in range(STEPS):
            with counter.counting() if half == "request" else contextlib.nullcontext():
                made.ask(request)
            with counter.counting() if half == "answer" else contextlib.nullcontext():
                made.answer(ANSWER)
            await asyncio.sleep(0)
            made.check(BODY)
        counter.dump(f"{half}-{name}")


async def _streams(made: Rig, counter: Counter, request: bytes) -> None:
    """Whole streams of one frame, then the frames of open ones."""
    for _ in range(STEPS):
        with counter.counting():
            made.ask(request)
            made.answer(STREAM_HEAD)
            made.answer(FRAME)
            made.answer(STREAM_END)
            await asyncio.sleep(0)
        made.check(LAST)
    counter.dump("stream")
    made.ask(request)
    made.answer(STREAM_HEAD)
    made.answer(FRAME)
    with counter.counting():
        for _ in range(FRAMES):
            made.answer(FRAME)
    counter.dump("frame")
    made.answer(STREAM_END)
    made.check(LAST)


def _part(counter: Counter, part: Part) -> None:
    for number in range(BEFORE + CALLS):
        part.prepare()
        with counter.counting() if number >= BEFORE else contextlib.nullcontext():
            part.call()
    counter.dump(f"part: {part.name}")


# ---- above valgrind


def count() -> Figures:
    """Instructions per unit of every part. Raises RuntimeError without valgrind or compiler, or if the run fails."""
    for tool in ("valgrind", "cc"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} is not installed (Debian: apt-get install valgrind gcc)")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "switch.c"), Path(folder, "switch.so")
        source.write_text(SWITCH)
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
        valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--collect-atstart=no", "-q"]
        out = [f"--callgrind-out-file={folder}/out", "--compress-pos=no"]
        python = [sys.executable, "-m", "bench.micro.instructions", "--child", str(library)]
        environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONMALLOC": "pymalloc"}
        done = subprocess.run([*valgrind, *out, *python], env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the measured run failed: {done.stderr[-2000:]}")
        return dict(_figures(_dumps(Path(folder))))


def _dumps(folder: Path) -> dict[str, int]:
    """Name of a dump -> instructions of the loop's thread in it."""
    found = {}
    for path in sorted(folder.glob("out.*"), key=lambda path: int(path.suffix[1:])):
        lines = path.read_text(errors="replace").splitlines()
        name = next((line.partition("Client Request: ")[2] for line in lines if "Client Request: " in line), "")
        total = next((line.split()[1] for line in lines if line.startswith(("totals:", "summary:"))), "0")
        if name:
            found[name] = int(total)
    return found


def _figures(dumps: dict[str, int]) -> Iterator[tuple[str, float]]:
    """Per unit, without what the switch itself costs."""
    wholes = [name for name in dumps if name.startswith(("exchange", "request", "answer", "stream"))]
    for name in wholes:
        yield name, (dumps[name] - dumps["nothing"]) / (STEPS * PAIRS)
    yield "frame", dumps["frame"] / (FRAMES * PAIRS)
    switch = dumps["nothing"] / STEPS
    for name, total in dumps.items():
        if name.startswith("part: "):
            yield name.removeprefix("part: "), total / CALLS - switch


def main() -> int:
    parser = options(__doc__.partition("\n")[0])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        uvloop.run(child(given.child))
        return 0
    return conclude(count(), "instructions per unit", given)


if __name__ == "__main__":
    sys.exit(main())
