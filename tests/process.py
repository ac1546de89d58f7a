"""A gateway as a process of its own: its file, its ports, its life, and what can be seen of it from outside.

Owns the process, by its id. Must not know what load runs against it.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from gateway.services import accounts
from gateway.services.accounts import KeyTerms
from gateway.store.limits import NO_LIMITS, Limits
from tests.servers import free_port, until
from tests.services.keyring import CHEAP, connection

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 30.0
CHEAP_IDENTITY: dict[str, Any] = {"argon2_time_cost": 1, "argon2_memory_kib": 8}


class RigError(RuntimeError):
    """The gateway did not start or stop as it must; the message is the end of its log."""


class GatewayProcess:
    """`settings` are the sections of its file besides the addresses; `folder` holds file, log, spool and, unless
    `settings` name another, the store."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.port, self.admin_port = free_port(), free_port()
        self.file = folder / "fairgate.yaml"
        self.settings: dict[str, Any] = {
            "listen": f"127.0.0.1:{self.port}",
            "store": str(folder / "fairgate.db"),
            "audit": {"spool": str(folder / "spool")},
            "admin": {"listen": f"127.0.0.1:{self.admin_port}"},
            "log": {"level": "error"},
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def write(self) -> None:
        """Its file, from `settings`."""
        self.file.touch(0o600)
        self.file.write_text(json.dumps(self.settings))  # JSON is YAML

    def start(self) -> "subprocess.Popen[bytes]":
        """Another process on the same file; this one keeps the newest."""
        self.write()
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(self.file)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stderr=log, stdout=log, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )
        return self.process

    def started(self) -> "GatewayProcess":
        """Start and wait until it is ready."""
        self.start()
        until(self.ready, START_SECONDS, self.log)
        return self

    def ready(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise RigError(self.log()[-2000:])
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.fetch("/readyz")[0] == 200
        return False

    def fetch(self, target: str) -> tuple[int, bytes]:
        """One GET of the admin listener."""
        return fetch(self.admin_port, target)

    def figures(self) -> dict[str, Any]:
        """What `/stats` says."""
        return dict(json.loads(self.fetch("/stats")[1]))

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """An orderly end, or its death after a while -> exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(45)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


def fetch(port: int, target: str) -> tuple[int, bytes]:
    """One GET without a key."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)  # full loops answer late
    try:
        connection.request("GET", target)
        got = connection.getresponse()
        return got.status, got.read()
    finally:
        connection.close()


async def provision(store: str, limits: Limits = NO_LIMITS, keys: int = 1, **terms: Any) -> list[str]:
    """A tenant that may use everything, a user, and keys of it; the limits are the user's."""
    async with connection(store) as opened:
        tenant = await accounts.create_tenant(opened, "acme", allow_all_models=True)
        user = await accounts.create_user(opened, tenant, "ann", limits=limits)
        return [(await accounts.create_key(opened, user, KeyTerms(**terms), CHEAP))[1] for _ in range(keys)]
