"""What a gateway under test is: how to install, start, reach and stop it.

A peer owns its process, its folder under bench/out/peers/ and what is installed for it in the user's cache. It must not
know the scenarios or the load.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from bench import machine
from bench.tools import CACHE, OUT, BenchError, fetch, pinned

START_SECONDS = 90.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Peer:
    """One gateway in front of the backend; subclasses say how. Attributes are facts about its kind."""

    name = "direct"
    note = ""
    speaks = frozenset({"openai", "ollama"})
    exact = True  # passes the body's bytes on unchanged
    usage_hidden = True  # no usage frame reaches a client that did not ask
    needs_key = False
    slow = False  # takes seconds of CPU for what others do in milliseconds: only gentle scenarios

    def __init__(self, core: int, backend_port: int) -> None:
        self.core = core
        self.backend_port = backend_port
        self.port = backend_port
        self.nice = 0  # priority from its start on; below 0: root only
        self.started_in = 0.0  # seconds from the start of the process to its first good answer
        self.base_mb = 0.0
        self._process: subprocess.Popen[str] | None = None

    # ---- what a subclass says

    def missing(self) -> str | None:
        """Why this peer cannot run here, after `install`; None if it can."""
        return None

    def install(self) -> None:
        """Make it runnable, if a registry or package can."""

    def prepare(self) -> None:
        """Write what the process needs; not part of its start time."""

    def command(self) -> list[str] | None:
        """The command line that serves on self.port, or None for no process at all."""
        return None

    def cores(self) -> int | str:
        """Where it runs."""
        return self.core

    def environment(self) -> dict[str, str]:
        return {}

    def headers(self) -> list[str]:
        """Header lines every request to this peer carries."""
        return []

    def keys_file(self, *, many: bool = False) -> Path | None:
        """A file of bearer keys to use in turn, a few or a thousand, instead of an Authorization header."""
        return None

    def watched(self) -> dict[str, float]:
        """What the gateway watched in itself since the last call, if it does."""
        return {}

    def version(self) -> str:
        return ""

    # ---- what all do

    @property
    def folder(self) -> Path:
        folder = OUT / "peers" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def kept(self) -> Path:
        """What was installed for it."""
        folder = CACHE / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def start(self) -> None:
        """Start it on the proxy core and wait for one good chat answer through it."""
        self.port = free_port()
        self.prepare()
        command = self.command()
        if command is None:
            self.port = self.backend_port
            return
        began = time.monotonic()
        with (self.folder / "log.txt").open("w") as log:
            self._process = subprocess.Popen(
                pinned(self.cores(), command),
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment()},
                cwd=self.folder,
                start_new_session=True,
                text=True,
            )
        if self.nice:
            machine.prioritise(self._process.pid, self.nice)  # its children inherit it
        self._wait_ready(self._process)
        self.started_in = time.monotonic() - began
        self.base_mb = machine.pss_mb(self.pids())

    def _wait_ready(self, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + START_SECONDS
        answer: object = "no answer"
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise BenchError(f"{self.name} ended at start with {process.returncode}: see its log.txt")
            try:
                status, body = self.ask()
            except OSError as error:
                answer = error
            else:
                if status == 200:
                    return
                answer = f"status {status}: {body[:200]!r}"
            time.sleep(0.02)
        self.stop()
        raise BenchError(f"{self.name} does not answer: {answer}")

    def ask(self, header_lines: list[str] | None = None) -> tuple[int, bytes]:
        """One short chat through the gateway, with these header lines or its usual ones."""
        api = "openai" if "openai" in self.speaks else "ollama"
        target = "/v1/chat/completions" if api == "openai" else "/api/chat"
        body = {"model": "bench", "stream": False, "messages": [{"role": "user", "content": "hello"}]}
        lines = dict(line.split(": ", 1) for line in header_lines or self.headers())
        return fetch(self.port, target, json.dumps(body).encode(), {**lines, "Content-Type": "application/json"})

    def pids(self) -> list[int]:
        """All processes that serve; empty for no gateway."""
        return machine.tree(self._process.pid) if self._process else []

    def stop(self) -> None:
        """End the process group we started, politely, then not."""
        process, self._process = self._process, None
        if process is None:
            return
        for ending in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, ending)
                process.wait(timeout=5)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
            break


def need_package(package: str, program: str) -> str | None:
    """Install a Debian package for a program that is not there, if we are root. Why it is missing, or None."""
    if shutil.which(program):
        return None
    if os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", package]):
            subprocess.run(
                command, check=False, capture_output=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            )
    return None if shutil.which(program) else f"{program} is not installed (Debian: apt-get install {package})"


def make_venv(
    folder: Path, packages: list[str], base: str = sys.executable, environment: Mapping[str, str] | None = None
) -> Path:
    """A virtual environment with these packages by name; its python. Kept once made."""
    python = folder / "venv" / "bin" / "python"
    if not (folder / "venv" / ".ready").exists():
        subprocess.run([base, "-m", "venv", "--clear", str(folder / "venv")], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        variables = {**os.environ, **(environment or {})}
        done = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False, env=variables)
        if done.returncode:
            raise BenchError(f"pip could not install {', '.join(packages)}: {done.stderr.strip()[-300:]}")
        (folder / "venv" / ".ready").touch()
    return python


def distribution(python: Path, name: str) -> str:
    """`name version` of an installed distribution, or just the name."""
    code = f"from importlib.metadata import version; print(version({name!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return f"{name} {done.stdout.strip()}".strip()
