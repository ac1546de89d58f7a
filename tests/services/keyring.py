"""What tests of identity share: a store with a tenant, user and key, cheap hashing, a gate before a store."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from gateway.config import Identity
from gateway.services import accounts
from gateway.services.accounts import KeyTerms
from gateway.services.keys import KeyService
from gateway.store import Store, StoreError, open_store
from gateway.store.base import Chain, Key, Tenant, User

CHEAP = Identity(argon2_time_cost=1, argon2_memory_kib=8, argon2_threads=2)
IP = "192.0.2.7"


class Clock:
    """A time the test owns; also good as the wall."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Gate:
    """The real store behind a gate: reads of keys wait while it is closed, and fail while it is broken."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.open = asyncio.Event()
        self.open.set()
        self.broken = False
        self.reads = 0
        self.read = asyncio.Event()  # set once a read has its answer, before the gate lets it through

    async def chains(self, key_ids: Sequence[str]) -> dict[str, Chain]:
        self.reads += 1
        if self.broken:
            raise StoreError("broken on purpose")
        found = await self._store.chains(key_ids)
        self.read.set()
        await self.open.wait()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Ring(msgspec.Struct):
    """One of each, and the key's text."""

    store: Store
    tenant: Tenant
    user: User
    key: Key
    token: bytes

    async def another(self, **terms: Any) -> tuple[Key, bytes]:
        """One more key of the same user."""
        key, token = await accounts.create_key(self.store, self.user, KeyTerms(**terms), CHEAP)
        return key, token.encode()


async def revoke(store: Store, keys: KeyService, key_id: str, at: float = 1.0) -> bool:
    """As an admin's call does at this process: in the store first, then here at once. `at` in Unix seconds."""
    known = await store.revoke_key(key_id, int(at * 1e6))
    keys.forget(key_id)
    return known


@asynccontextmanager
async def connection(url: str | Path) -> AsyncIterator[Store]:
    """A store of one's own, as another process has."""
    store = await open_store(str(url))
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def ring(url: str | Path, **tenant: Any) -> AsyncIterator[Ring]:
    """An open store with one tenant (all models unless said), user and key."""
    async with connection(url) as store:
        made = await accounts.create_tenant(store, "acme", **(tenant or {"allow_all_models": True}))
        user = await accounts.create_user(store, made, "ann")
        key, token = await accounts.create_key(store, user, KeyTerms(), CHEAP)
        yield Ring(store, made, user, key, token.encode())


@asynccontextmanager
async def service(store: Any, config: Identity = CHEAP, **clocks: Any) -> AsyncIterator[KeyService]:
    """A started key service."""
    keys = KeyService(store, config, **clocks)
    await keys.start()
    try:
        yield keys
    finally:
        await keys.close()
