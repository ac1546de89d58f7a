"""The C tools: compiled on demand into the output folder, started pinned to the load core, read through JSON lines.

Owns the two programs' command lines. Must not know any gateway.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE / "out"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fairgate-bench"
"""What registries gave, kept from run to run."""
SOURCES = HERE / "load"


class BenchError(RuntimeError):
    """A run that cannot be trusted or cannot begin; the message says what to do."""


def compile_tool(name: str) -> Path:
    """Compile bench/load/NAME.c with the machine's cc if the program is missing or older than a source."""
    OUT.mkdir(exist_ok=True)
    program = OUT / name
    newest = max(source.stat().st_mtime for source in SOURCES.iterdir())
    if program.exists() and program.stat().st_mtime > newest:
        return program
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BenchError("a C compiler is needed (Debian: apt-get install gcc libc6-dev)")
    options = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", str(program)]
    subprocess.run([compiler, *options, str(SOURCES / f"{name}.c"), "-lm"], check=True)
    return program


def pinned(cores: int | str, command: list[str]) -> list[str]:
    """`cores` as taskset takes them: 1, or 0,1."""
    return ["taskset", "-c", str(cores), *command]


def fetch(
    port: int, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """One request to loopback: GET, or POST if there is a body. Status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET" if body is None else "POST", target, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class Backend:
    """The deterministic model server, running for the whole session; a context manager."""

    def __init__(self, core: int) -> None:
        self._process = subprocess.Popen(
            pinned(core, [str(compile_tool("backend"))]), stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self.port: int = json.loads(self._process.stdout.readline())["port"]

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def set(self, **settings: object) -> None:
        """Set frames, rate (frames/s per stream, 0 = no pace), spin (0 or 1), break, every."""
        query = "&".join(f"{name}={value}" for name, value in settings.items())
        status, _ = fetch(self.port, f"/bench/set?{query}")
        assert status == 200

    def expected_bytes(self, *, api: str, stream: bool, frames: int, usage: bool) -> int:
        """Length of a sound answer's body in bytes, chunk framing taken off."""
        query = f"api={api}&stream={int(stream)}&frames={frames}&usage={int(usage)}"
        return int(json.loads(fetch(self.port, f"/bench/expect?{query}")[1])["bytes"])

    def stats(self) -> dict[str, Any]:
        """What the backend saw since the last call."""
        return dict(json.loads(fetch(self.port, "/bench/stats?reset=1")[1]))


def run_load(
    core: int, arguments: list[str], on_begin: Callable[[int], object], on_end: Callable[[int], object]
) -> dict[str, Any]:
    """Run the load generator to its end -> its result. The callbacks frame its measured window and get its pid."""
    command = pinned(core, [str(compile_tool("load")), *arguments])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    result: dict[str, Any] = {}
    try:
        for line in process.stdout:
            if line == "begin\n":
                on_begin(process.pid)
            elif line == "end\n":
                on_end(process.pid)
            else:
                result = json.loads(line)
    finally:
        process.kill()
        process.wait()
    if not result:
        raise BenchError("the load generator ended without a result")
    return result
