"""fairgate itself, everything on: key check, limits, fair scheduler, accounting, audit, metrics.

Started through its own command, which prints where it listens and a key.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import machine
from bench.peers.base import Peer, make_venv
from bench.tools import BenchError

PROJECT = Path(__file__).parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"


class Fairgate(Peer):
    """The project as installed beside this harness, or by `--python` in another interpreter's environment."""

    name = "fairgate"
    note = "all features on"
    speaks = frozenset({"openai"})
    needs_key = True
    engine = "openai"
    python = sys.executable

    def __init__(self, core: int, backend_port: int) -> None:
        super().__init__(core, backend_port)
        self.ready: dict[str, Any] = {}

    def interpreter(self) -> str:
        return self.python

    def missing(self) -> str | None:
        if not Path(self.interpreter()).exists():
            return f"{self.interpreter()} is not there"
        return None

    def command(self) -> list[str]:
        backend = ["--backend", f"http://127.0.0.1:{self.backend_port}", "--engine", self.engine, "--model", "bench"]
        listen = ["--listen", f"127.0.0.1:{self.port}", "--slots", "100000"]
        return [self.interpreter(), "-m", "gateway", "demo", "--json", *listen, *backend]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(PROJECT)}

    def output(self, log: int) -> int:
        return subprocess.PIPE

    def after_spawn(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("{"):
            raise BenchError(f"{self.name} printed no ready line: see its log.txt ({line!r})")
        self.ready = json.loads(line)
        self.port = int(self.ready["url"].rstrip("/").rpartition(":")[2])

    def headers(self) -> list[str]:
        return [f"Authorization: Bearer {self.ready['key']}"]

    def version(self) -> str:
        code = "import gateway, platform; print(gateway.__version__, 'on Python', platform.python_version())"
        done = subprocess.run(
            [self.interpreter(), "-c", code], capture_output=True, text=True, check=False, cwd=PROJECT
        )
        return f"fairgate {done.stdout.strip()}"


class FairgateOllama(Fairgate):
    """The same in front of the backend's Ollama face."""

    name = "fairgate-ollama"
    speaks = frozenset({"openai", "ollama"})
    engine = "ollama"


class FairgateSystem(Fairgate):
    """The same on the distribution's python3, which is an optimised build on Debian."""

    name = "fairgate-system"
    note = "all features on, the distribution's Python"

    def install(self) -> None:
        if shutil.which(SYSTEM_PYTHON):
            make_venv(self.folder, ["-e", str(PROJECT)], SYSTEM_PYTHON)

    def interpreter(self) -> str:
        return str(self.folder / "venv" / "bin" / "python")

    def version(self) -> str:
        return super().version() + f" ({machine.first_line([SYSTEM_PYTHON, '--version'])})"
