"""A whole gateway in the test's own loop: real store, real sockets, in front of whatever backend the test gives."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from gateway import config as cfg
from gateway.app import App
from gateway.http1.connection import Connection
from gateway.services.accounts import KeyTerms, create_key, create_tenant, create_user
from gateway.store import open_store
from gateway.store.base import STORED_COLUMNS, Store
from tests.wire import WAIT, Client

FAST_HASH = cfg.Identity(argon2_time_cost=1, argon2_memory_kib=8)


class Gateway:
    """A running gateway and what tests ask of it."""

    def __init__(self, app: App, store: Store) -> None:
        self.app = app
        self.store = store
        self.port = app.port
        self.url = f"http://127.0.0.1:{app.port}"
        self.key = ""

    async def add_key(self, tenant: str = "t", user: str = "u", **terms: Any) -> str:
        """A key of that user; tenant and user are made when they are new."""
        owner = await self.store.tenant(tenant) or await create_tenant(self.store, tenant, allow_all_models=True)
        person = await self.store.user(owner.id, user) or await create_user(self.store, owner, user)
        _, token = await create_key(self.store, person, KeyTerms(**terms), FAST_HASH)
        return token

    async def connect(self) -> Client:
        return await Client.connect(self.port)

    def request(
        self, path: str, body: Any = None, *, key: str | None = None, method: str = "", extra: str = ""
    ) -> bytes:
        """The bytes of one request; a dict is sent as JSON."""
        payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        key = self.key if key is None else key
        auth = f"Authorization: Bearer {key}\r\n" if key else ""
        length = f"Content-Length: {len(payload)}\r\n" if body is not None else ""
        method = method or ("GET" if body is None else "POST")
        return f"{method} {path} HTTP/1.1\r\nHost: gateway\r\n{auth}{length}{extra}\r\n".encode() + payload

    async def ask(self, path: str, body: Any = None, **more: Any) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""
        client = await self.connect()
        await client.send(self.request(path, body, **more))
        answer = await client.answer()
        client.close()
        return answer

    async def records(self, count: int) -> list[dict[str, Any]]:
        """The first `count` audit rows in order of their end, waiting until they are written."""
        async with asyncio.timeout(WAIT):
            while self.app.audit.stats().written < count:
                await asyncio.sleep(0.01)
        rows = await self.store.audit_tail(count)
        return [dict(zip(STORED_COLUMNS, row, strict=True)) for row in rows]

    async def idle(self) -> None:
        """Until nothing runs and nothing is held."""
        async with asyncio.timeout(WAIT):
            while self.app.scheduler.stats().running or self.app.ledger.stats().open or self.app.ledger.body_bytes:
                await asyncio.sleep(0)

    def busy(self) -> list[Connection]:
        return [c for c in self.app.server.connections if c.call is not None]


def chat(model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}


@contextlib.asynccontextmanager
async def gateway(backend: str, engine: cfg.EngineKind = "openai", **settings: Any) -> AsyncIterator[Gateway]:
    """Run a gateway in front of `backend` (a URL); `settings` are sections or fields of the configuration."""
    with tempfile.TemporaryDirectory() as folder:
        slots = settings.pop("slots", 4)
        models = settings.pop("models_listed", [])
        backends = settings.pop("backends", None) or [
            cfg.Backend(name="engine", url=backend, engine=engine, slots=slots, models=models)
        ]
        config = cfg.Config(
            listen="127.0.0.1:0",
            store=str(Path(folder) / "fairgate.db"),
            admin=cfg.Admin(listen=""),
            audit=cfg.Audit(batch_seconds=0.02),
            identity=FAST_HASH,
            backends=backends,
        )
        config = msgspec.structs.replace(config, **settings)
        store = await open_store(config.store)
        try:
            app = App(config, store)
            async with app.running():
                await app.backends.looked()
                running = Gateway(app, store)
                running.key = await running.add_key()
                try:
                    yield running
                finally:
                    await Client.close_all()
        finally:
            await store.close()
