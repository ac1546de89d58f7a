"""A gateway process under load: its keys, and what it costs the machine.

Owns a scratch directory. Must not know what load runs against it.
"""

import asyncio
import os
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from gateway import config as cfg
from gateway import loading
from gateway.services.accounts import KeyTerms, create_key, create_tenant, create_user
from gateway.store import open_store
from tests.process import START_SECONDS, GatewayProcess

PAGE = os.sysconf("SC_PAGE_SIZE")


class Rig(GatewayProcess):
    """One gateway; `async with` starts and ends it. `settings` are the sections of its file besides the addresses."""

    def __init__(self, settings: dict[str, Any], users: int = 4, tenants: tuple[str, ...] = ("load",)) -> None:
        """`users` of each tenant, with a key each."""
        self._scratch = tempfile.TemporaryDirectory(prefix="fairgate-load-")
        super().__init__(Path(self._scratch.name), settings)
        self.users = users
        self.keys: list[str] = []
        self.keys_of: dict[str, list[str]] = {tenant: [] for tenant in tenants}

    async def __aenter__(self) -> "Rig":
        self.write()
        await self._make_keys(loading.load(self.file))
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

    async def until_ready(self) -> None:
        async with asyncio.timeout(START_SECONDS):
            while not await asyncio.to_thread(self.ready):  # noqa: ASYNC110 -- another process gives no event
                await asyncio.sleep(0.05)

    async def stats(self) -> dict[str, Any]:
        return await asyncio.to_thread(self.figures)

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
        await asyncio.to_thread(self.stop, signal.SIGINT)
        self._scratch.cleanup()
