"""`python -m bench.profile`: where the microseconds of a request (S1) and of a frame (S5) go, as a Markdown page.

Runs fairgate, everything on, below the scenario three times: alone for the CPU time of a unit, below py-spy for stacks,
below perf for shares of kernel and libraries. A sample of the loop's thread goes to the innermost frame that `PHASES`
knows; its share of the samples is multiplied by that thread's CPU time, measured alone. Samples come by the wall clock:
those that found the loop waiting are taken off by what the thread's CPU clock says, and on a busy machine `--nice -15`
keeps the gateway from being stopped just anywhere. Needs py-spy (PyPI), for the last table perf (Debian: linux-perf),
and the right to trace a child.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import machine
from bench.peers.fairgate import Fairgate
from bench.run import Plan, holding, measure, say
from bench.scenarios import SCENARIOS
from bench.tools import HERE, OUT, Backend, BenchError

RATE = 400  # samples a second; each stops the process for a moment
TOP = 25
LOOP = "asyncio/runners.py Runner.run"
PROJECT = str(HERE.parent) + "/"
KERNEL = "kernel, loop, callbacks"
# (phase, budget in us of a request, patterns of "file function"): the first pattern that matches a frame decides.
PHASES: tuple[tuple[str, float | None, str], ...] = (
    (
        "accounting, metrics, audit",
        1.5,
        r"gateway/flow/settle|gateway/services/(metrics|audit|spool|samples|trail|chain)",
    ),
    ("authentication", 0.4, r"gateway/services/(keys|keyfmt|throttle|acting)|gateway/flow/phases\.py authenticate"),
    (
        "limits and scheduler",
        1.0,
        r"^scheduler/|gateway/flow/(quota|ticket)|gateway/services/(limits|meters|pace|lender)",
    ),
    ("limits and scheduler", 1.0, r"gateway/flow/(phases|forward)\.py (admit|queue)|gateway/flow/ledger"),
    ("body: decode and edit", 0.6, r"gateway/api/(body|openai|ollama|dialect)|gateway/flow/phases\.py read"),
    ("heads: parse and check", 3.0, r"gateway/http1/(wire|head|message|reply)"),
    (
        "backend: choice and health",
        0.5,
        r"gateway/services/(backends|breaker|discovery)|gateway/flow/phases\.py (route|_usable)",
    ),
    (
        "ids, routes, our fields",
        0.7,
        r"gateway/flow/(fields|cors|names|peer)|gateway/api/routes|gateway/flow/ids|phases\.py classify",
    ),
    ("relay: frames, usage, passing on", None, r"gateway/flow/relay|gateway/api/stream|gateway/http1/chunks"),
    (KERNEL, 10.8, r"gateway/http1/(connection|server|client|eager|listener)|uvloop|asyncio|runners\.py"),
    ("phases themselves", None, r"gateway/flow/"),
)
_COMPILED = [(phase, re.compile(pattern)) for phase, _, pattern in PHASES]
Stack = tuple[list[str], int]
"""Frames from the outermost as "file function", and how often it was met."""


def stacks(raw: str) -> Iterable[Stack]:
    """py-spy's raw format: `frame;frame;frame count`, a frame being `function (file:line)`."""
    for line in raw.splitlines():
        path, _, count = line.rpartition(" ")
        frames = []
        for frame in path.split(";"):
            found = re.fullmatch(r"(.*) \((.*?)(?::\d+)?\)", frame)
            frames.append(f"{found[2].removeprefix(PROJECT)} {found[1]}" if found else frame)
        yield frames, int(count)


def phase_of(frames: list[str]) -> str:
    for frame in reversed(frames):
        for phase, pattern in _COMPILED:
            if pattern.search(frame):
                return phase
    return "other"


class Tool:
    """A profiler that attaches when the measured window begins and runs as long as it does."""

    def __init__(self, peer: Fairgate, command: list[str], delay: float) -> None:
        self._command = [*command, *([] if "--" in command else ["--pid", str(peer.pids()[0])])]
        self._process: subprocess.Popen[str] | None = None
        self._timer = threading.Timer(delay, self._start)
        self._timer.start()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self) -> None:
        """Wait for its end. Raises BenchError."""
        self._timer.join()
        assert self._process is not None
        said, _ = self._process.communicate()
        if self._process.returncode:
            raise BenchError(f"{self._command[0]}: {said.strip()[-500:]}")


def sampled(peer: Fairgate, backend: Backend, plan: Plan, name: str) -> list[Stack]:
    """The stacks of one run."""
    program = Path(sys.executable).with_name("py-spy")
    if not program.exists():
        raise BenchError("py-spy is not installed (pip install py-spy)")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "raw")
        options = ["--format", "raw", "--rate", str(RATE), "--duration", str(int(plan.seconds)), "--threads"]
        command = [str(program), "record", "--output", str(out), *options]
        _profiled(peer, backend, plan, name, command)
        return list(stacks(out.read_text()))


def objects(peer: Fairgate, backend: Backend, plan: Plan, name: str) -> dict[str, float]:
    """Share of CPU time by library, by perf; empty where there is no perf."""
    if shutil.which("perf") is None:
        say("perf is not installed (Debian: apt-get install linux-perf): no table of libraries")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder, "data"))
        record = ["perf", "record", "--quiet", "--freq", "999", "--event", "cpu-clock", "--output", data]
        command = [*record, "--pid", str(peer.pids()[0]), "--", "sleep", str(int(plan.seconds))]
        _profiled(peer, backend, plan, name, command)
        words = ["perf", "report", "--input", data, "--stdio", "--sort", "dso", "--percent-limit", "0.5"]
        text = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    found = re.findall(r"^\s+([\d.]+)%\s+(\S+)", text, re.MULTILINE)
    return {dso: float(share) for share, dso in found}


def _profiled(peer: Fairgate, backend: Backend, plan: Plan, name: str, command: list[str]) -> None:
    scenario = SCENARIOS[name]
    tool = Tool(peer, command, scenario.ramp + scenario.warmup)
    measure(peer, scenario, backend, plan, True)
    tool.finish()


# ---- the page


def busy(found: list[Stack], share: float) -> list[Stack]:
    """The samples of the loop's thread, without those in which it waited: it worked for `share` of the time."""
    main = [(frames, count) for frames, count in found if "MainThread" in frames[0]]
    total = sum(count for _, count in main)
    waited = total * (1 - min(share, 1.0))
    kept: list[Stack] = []
    for frames, count in main:
        idle = int(min(count, waited)) if frames[-1] == LOOP else 0
        waited -= idle
        kept.append((frames, count - idle))
    return kept


def page(name: str, row: dict[str, Any], found: list[Stack], shares: dict[str, float]) -> str:
    """One scenario's section."""
    scenario, cost, whole = SCENARIOS[name], row["cpu_main_us"], row["cpu_us"]
    found = busy(found, cost * row["units_per_s"] / 1e6)
    each = cost / max(1, sum(count for _, count in found))
    phases: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for frames, count in found:
        phases[phase_of(frames)] += count
        functions[frames[-1]] += count
    budget = {phase: allowed for phase, allowed, _ in PHASES} if scenario.unit == "request" else {}
    lines = [f"## {name}: {scenario.title}", ""]
    rate = f"{row['units_per_s']:,.0f}".replace(",", " ")
    lines.append(
        f"{rate} {scenario.unit}s/s; {whole:.1f} us of CPU each, {cost:.1f} of them the loop's thread, "
        f"{whole - cost:.1f} others (records to the store); {sum(phases.values())} samples."
    )
    lines += ["", "| phase | share | us | budget us |", "|---|---:|---:|---:|"]
    for phase, count in phases.most_common():
        allowed = budget.get(phase)
        lines.append(f"| {phase} | {count * each / cost:.1%} | {count * each:.2f} | {allowed if allowed else '-'} |")
    lines += ["", "| function, own time | us |", "|---|---:|"]
    lines += [f"| `{function}` | {count * each:.2f} |" for function, count in functions.most_common(TOP)]
    if shares:
        lines += ["", "| library, all threads | share | us |", "|---|---:|---:|"]
        lines += [f"| {dso} | {share:.1f} % | {share / 100 * whole:.1f} |" for dso, share in list(shares.items())[:12]]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__.partition("\n")[0])
    parser.add_argument("--scenarios", default="S1,S5")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each of the three runs of a scenario")
    parser.add_argument("--proxy-core", type=int, default=0)
    parser.add_argument("--load-core", type=int, default=1)
    parser.add_argument("--nice", type=int, default=0, help="priority of gateway and tools (below 0: root only)")
    parser.add_argument("--lock", type=Path, help="hold this file while a scenario runs")
    parser.add_argument("--save", type=Path, default=HERE / "results" / "profile.md")
    given = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    plan = Plan([], [], seconds=given.seconds, proxy_core=given.proxy_core, load_core=given.load_core)
    machine.allow_many_files()
    facts = [f"- {name}: {value}" for name, value in machine.facts().items()]
    sections = [
        "# Where the microseconds go",
        "\n".join([*facts, "- `python -m bench.profile`, everything on, load side spins"]),
    ]
    with Backend(plan.load_core) as backend:
        peer = Fairgate(plan.proxy_core, backend.port)
        try:
            peer.nice = given.nice
            if given.nice:
                machine.prioritise(os.getpid(), given.nice)
            peer.start()
            sections.append(peer.version())
            for name in given.scenarios.split(","):
                with holding(given.lock):
                    alone = measure(peer, SCENARIOS[name], backend, plan, True)
                    found = sampled(peer, backend, plan, name)
                    sections.append(page(name, alone, found, objects(peer, backend, plan, name)))
        except BenchError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        finally:
            peer.stop()
    text = "\n\n".join(sections) + "\n"
    given.save.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
