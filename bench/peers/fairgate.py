"""fairgate itself, everything on: key check, limits, fair scheduler, accounting, audit, metrics.

Started as its users do: tenants, users and limited keys, a YAML file, `fairgate serve`. Only caps that a single client
address would meet (connections per address and key) are raised, and the keys' limits are far away: counted, never met.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.peers.base import Peer, free_port, make_venv
from bench.tools import CACHE, BenchError

PROJECT = Path(__file__).parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"
KEYS, MANY_KEYS = 8, 1000
CAPS = {"connections": 60_000, "connections_per_ip": 60_000, "connections_per_key": 60_000}


class Fairgate(Peer):
    """The project as installed beside this harness, or by `--python` in another interpreter's environment."""

    name = "fairgate"
    note = "all features on"
    speaks = frozenset({"openai"})
    needs_key = True
    engine = "openai"
    python = sys.executable
    limited = True

    def __init__(self, core: int, backend_port: int) -> None:
        super().__init__(core, backend_port)
        self.keys: list[str] = []
        self._many: list[str] = []

    def interpreter(self) -> str:
        return self.python

    def missing(self) -> str | None:
        if not Path(self.interpreter()).exists():
            return f"{self.interpreter()} is not there"
        return None

    def prepare(self) -> None:
        """A fresh store with its tenants, users and keys, and the configuration file."""
        for old in self.folder.glob("fairgate.db*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        self._many = []
        config = self.folder / "fairgate.yaml"  # JSON is YAML
        config.write_text(json.dumps(self.settings()))
        self.keys = self._make_keys("keys", KEYS)

    def store(self) -> str:
        return str(self.folder / "fairgate.db")

    def settings(self) -> dict[str, Any]:
        backend = {"name": "bench", "url": f"http://127.0.0.1:{self.backend_port}", "engine": self.engine}
        return {
            "listen": f"127.0.0.1:{self.port}",
            "store": self.store(),
            "caps": CAPS,
            "admin": {"listen": f"127.0.0.1:{free_port()}"},
            "log": {"level": "warning"},
            "backends": [{**backend, "slots": 100_000}],
        }

    def start(self) -> None:
        super().start()
        self._use_once(self.keys)

    def _use_once(self, keys: list[str]) -> None:
        """The first use of a key is hashed for 20 ms, the next ones are not."""
        with ThreadPoolExecutor(KEYS) as pool:
            list(pool.map(self.ask_with, keys))

    def _make_keys(self, name: str, count: int) -> list[str]:
        """Keys, also in the file of that name."""
        config = [str(self.folder / "fairgate.yaml"), str(count), *(() if self.limited else ("--unlimited",))]
        command = [self.interpreter(), "-m", "bench.keys", *config]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT)
        if done.returncode:
            raise BenchError(f"no keys for {self.name}: {done.stderr.strip()[-300:]}")
        (self.folder / name).write_text(done.stdout)
        return done.stdout.split()

    def command(self) -> list[str]:
        return [self.interpreter(), "-m", "gateway", "serve", "--config", str(self.folder / "fairgate.yaml")]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(PROJECT)}

    def headers(self) -> list[str]:
        return [f"Authorization: Bearer {self.keys[0]}"]

    def keys_file(self, *, many: bool = False) -> Path:
        if many and not self._many:
            self._many = self._make_keys("many-keys", MANY_KEYS)
            self._use_once(self._many)
        return self.folder / ("many-keys" if many else "keys")

    def ask_with(self, key: str) -> None:
        """One short chat by this key. Raises BenchError if it is not answered well."""
        status, body = self.ask([f"Authorization: Bearer {key}"])
        if status != 200:
            raise BenchError(f"{self.name} answered a new key with {status}: {body[:200]!r}")

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


class FairgateCompiled(Fairgate):
    """The compiled wheel, as the container image has it, on the distribution's python3 where there is one."""

    name = "fairgate-compiled"
    note = "all features on, compiled wheel"

    def place(self) -> Path:
        """Its environment, kept as long as nothing of the wheel changes."""
        sources = [*PROJECT.glob("gateway/**/*.py"), *PROJECT.glob("scheduler/*.py"), PROJECT / "hatch_build.py"]
        state = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()[:16]
        return CACHE / f"fairgate-compiled-{state}"

    def missing(self) -> str | None:
        return None if (self.place() / "venv" / ".ready").exists() else "its wheel is not built"

    def install(self) -> None:
        base = SYSTEM_PYTHON if Path(SYSTEM_PYTHON).exists() else sys.executable
        make_venv(self.place(), [str(PROJECT)], base, {"FAIRGATE_COMPILE": "1"})

    def interpreter(self) -> str:
        return str(self.place() / "venv" / "bin" / "python")

    def environment(self) -> dict[str, str]:
        """Not the source tree: what is installed."""
        return {}
