"""A running gateway, its engine, and keys of every kind of check that may fail; for tests of what is down."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from gateway.services import accounts
from gateway.services.accounts import KeyTerms
from gateway.store.limits import NO_LIMITS, Limits
from tests.load import Engine, Load, account, answer, engine_section, request
from tests.process import CHEAP_IDENTITY, GatewayProcess
from tests.services.keyring import CHEAP, connection

LEASE = 1.0
LONGEST = 12.0
"""Seconds for one answer, whatever is down: the deadlines below, and what a busy machine adds."""
RECOVERY = 30.0
KINDS: dict[str, Limits] = {
    "cached": NO_LIMITS,
    "fresh": NO_LIMITS,
    "rated": Limits(requests_per_minute=600_000),
    "few": Limits(concurrent=8),
    "budget": Limits(tokens_total=10**9),
}
"""Keys by what must be checked of them; `fresh` was never used before."""
SETTINGS: dict[str, Any] = {
    "identity": {**CHEAP_IDENTITY, "store_timeout": 3.0, "failures_per_minute": 1_000_000},
    "limits": {"lease": LEASE, "deadline": 1.0, "store_deadline": 3.0},
    "discovery": {"eject_after": 10_000},
}


class Site(msgspec.Struct, kw_only=True):
    """One gateway, its engine and the keys of its users; `owner` is its store without anything between."""

    gateway: GatewayProcess
    engine: Engine
    owner: str
    keys: dict[str, str] = {}
    turns: int = 0

    async def provide(self) -> None:
        """Keys, all but `fresh` known to the gateway."""
        async with connection(self.owner) as store:
            tenant = await accounts.create_tenant(store, f"t{self.turns}", allow_all_models=True)
            for kind, limits in KINDS.items():
                user = await accounts.create_user(store, tenant, kind, limits=limits)
                self.keys[kind] = (await accounts.create_key(store, user, KeyTerms(), CHEAP))[1]
        await self.until(dict.fromkeys(set(KINDS) - {"fresh"}, "200"))

    async def ask(self, kind: str) -> str:
        """One request of a key -> its status and the error's code; never late."""
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        try:
            async with asyncio.timeout(LONGEST):
                writer.write(request(f"{kind}-{self.turns}-{began}", self.keys[kind]))
                status, body = await answer(reader)
        finally:
            writer.transport.abort()
        return "200" if status == 200 else f"{status} {json.loads(body)['error']['code']}"

    async def ask_all(self, kinds: Iterable[str]) -> dict[str, str]:
        """One request of each, all at once."""
        kinds = list(kinds)
        return dict(zip(kinds, await asyncio.gather(*map(self.ask, kinds)), strict=True))

    async def until(self, wanted: dict[str, str]) -> list[dict[str, str]]:
        """Ask for all kinds until each is answered as wanted -> the answers before."""
        before: list[dict[str, str]] = []
        async with asyncio.timeout(RECOVERY):
            while True:
                got = await self.ask_all(wanted)
                if got == wanted:
                    return before
                before.append(got)
                await asyncio.sleep(0.05)

    async def remains(self, wanted: dict[str, str], seconds: float) -> None:
        """For a while each is answered as wanted, every time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            got = await self.ask_all(wanted)
            assert got == wanted, got
            await asyncio.sleep(0.05)


async def delivered(world: Site, load: Load) -> None:
    """Every row has come, once."""
    await shipped(world)
    assert (await account(world.owner)).faults(load, world.engine) == []


async def shipped(world: Site) -> None:
    async with asyncio.timeout(RECOVERY):
        while world.gateway.figures()["audit"]["pending"]:
            await asyncio.sleep(0.1)


@asynccontextmanager
async def site(folder: Path, **settings: Any) -> AsyncIterator[Site]:
    """A running gateway of one test; it ends in an orderly way."""
    async with Engine(random.Random(1), delay=0.0).listening() as engine:
        gateway = GatewayProcess(folder, {**SETTINGS, **settings, "backends": engine_section(engine)})
        await asyncio.to_thread(gateway.started)
        try:
            yield Site(gateway=gateway, engine=engine, owner=gateway.settings["store"])
        finally:
            assert await asyncio.to_thread(gateway.stop) == 0
