"""A gateway process under test: its configuration, its keys, and what can be seen of it from outside.

Owns the process (started, stopped and killed by id) and a scratch directory. Must not know what load runs against it.
"""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from gateway import config as cfg
from gateway.services.accounts import KeyTerms, create_key, create_tenant, create_user
from gateway.store import open_store

PAGE = os.sysconf("SC_PAGE_SIZE")
START_SECONDS = 30.0
ROOT = Path(__file__).parents[1]


class RigError(RuntimeError):
    """The gateway did not start or stop as it must."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Rig:
    """One gateway; `async with` starts and ends it. `settings` are the sections of its file besides the addresses."""

    def __init__(self, settings: dict[str, Any], users: int = 4, tenants: tuple[str, ...] = ("load",)) -> None:
        """`users` of each tenant, with a key each."""
        self._scratch = tempfile.TemporaryDirectory(prefix="fairgate-load-")
        self.folder = Path(self._scratch.name)
        self.port, self.admin_port = free_port(), free_port()
        self.settings = settings
        self.users = users
        self.keys: list[str] = []
        self.keys_of: dict[str, list[str]] = {tenant: [] for tenant in tenants}
        self.process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> "Rig":
        everything = {
            "listen": f"127.0.0.1:{self.port}",
            "store": str(self.folder / "fairgate.db"),
            "admin": {"listen": f"127.0.0.1:{self.admin_port}"},
            "log": {"level": "error"},
            **self.settings,
        }
        (self.folder / "fairgate.yaml").write_text(json.dumps(everything))  # JSON is YAML
        await self._make_keys(cfg.load(self.folder / "fairgate.yaml"))
        self.start()
        await self.until_ready()
        return self

    async def _make_keys(self, config: cfg.Config) -> None:
        store = await open_store(config.store)
        try:
            for name, keys in self.keys_of.items():
                tenant = await create_tenant(store, name, allow_all_models=True)
                for number in range(self.users):
                    user = await create_user(store, tenant, f"user{number}")
                    keys.append((await create_key(store, user, KeyTerms(), config.identity))[1])
                self.keys += keys
        finally:
            await store.close()
        (self.folder / "keys").write_text("\n".join(self.keys) + "\n")

    def start(self) -> "subprocess.Popen[bytes]":
        """Another process on the same file; the rig keeps the newest."""
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(self.folder / "fairgate.yaml")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stderr=log, stdout=log, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )
        return self.process

    async def until_ready(self) -> None:
        async with asyncio.timeout(START_SECONDS):
            while not await asyncio.to_thread(self._ready):
                if self.process is not None and self.process.poll() is not None:
                    raise RigError(self.log()[-1000:])
                await asyncio.sleep(0.05)

    def _ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.fetch("/readyz")[0] == 200
        return False

    def fetch(self, target: str) -> tuple[int, bytes]:
        """One GET of the admin listener."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=60)  # full loops answer late
        try:
            connection.request("GET", target)
            got = connection.getresponse()
            return got.status, got.read()
        finally:
            connection.close()

    async def stats(self) -> dict[str, Any]:
        return dict(json.loads((await asyncio.to_thread(self.fetch, "/stats"))[1]))

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def rss(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def cpu(self) -> float:
        """Seconds of user and system time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                await asyncio.to_thread(self.process.wait, 40)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._scratch.cleanup()
