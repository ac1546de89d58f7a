"""fairgate itself, everything on: key check, limits, fair scheduler, accounting, audit, metrics.

Started as its users do: tenants, users and keys made by its command line, a YAML file, `fairgate serve`. Only caps that
a single client address would meet (connections per address and key) are raised; no feature is turned off.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.peers.base import Peer, free_port, make_venv
from bench.tools import BenchError

PROJECT = Path(__file__).parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"
TENANTS, USERS = 2, 4  # users of each tenant; a key each
CAPS = {"connections": 60_000, "connections_per_ip": 60_000, "connections_per_key": 60_000}


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
        self.keys: list[str] = []

    def interpreter(self) -> str:
        return self.python

    def missing(self) -> str | None:
        if not Path(self.interpreter()).exists():
            return f"{self.interpreter()} is not there"
        return None

    def prepare(self) -> None:
        """A fresh store with its tenants, users and keys, and the configuration file."""
        for old in self.folder.glob("fairgate.db*"):
            old.unlink()
        config = self.folder / "fairgate.yaml"  # JSON is YAML
        config.write_text(json.dumps(self.settings()))
        self.keys = []
        for tenant in range(TENANTS):
            self._make("tenants", "create", f"tenant{tenant}", "--all-models")
            for user in range(USERS):
                self._make("users", "create", "--tenant", f"tenant{tenant}", f"user{user}")
                made = self._make("keys", "create", "--tenant", f"tenant{tenant}", "--user", f"user{user}")
                self.keys.append(made["token"])
        (self.folder / "keys").write_text("\n".join(self.keys) + "\n")

    def settings(self) -> dict[str, Any]:
        backend = {"name": "bench", "url": f"http://127.0.0.1:{self.backend_port}", "engine": self.engine}
        return {
            "listen": f"127.0.0.1:{self.port}",
            "store": str(self.folder / "fairgate.db"),
            "caps": CAPS,
            "admin": {"listen": f"127.0.0.1:{free_port()}"},
            "log": {"level": "warning"},
            "backends": [{**backend, "slots": 100_000}],
        }

    def _make(self, *words: str) -> dict[str, Any]:
        config = ["--config", str(self.folder / "fairgate.yaml"), "--json"]
        command = [self.interpreter(), "-m", "gateway", *words, *config]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT)
        if done.returncode:
            raise BenchError(f"fairgate {' '.join(words)} failed: {done.stderr.strip()[-300:]}")
        return dict(json.loads(done.stdout))

    def command(self) -> list[str]:
        return [self.interpreter(), "-m", "gateway", "serve", "--config", str(self.folder / "fairgate.yaml")]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(PROJECT)}

    def headers(self) -> list[str]:
        return [f"Authorization: Bearer {self.keys[0]}"]

    def keys_file(self) -> Path:
        return self.folder / "keys"

    def version(self) -> str:
        code = "import gateway, platform; print(gateway.__version__, 'on Python', platform.python_version())"
        command = [self.interpreter(), "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT)
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
