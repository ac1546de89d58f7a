"""A running gateway with its admin API on, keys of each kind, and a client of it. For the tests of the API."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from gateway.services import accounts
from gateway.services.accounts import KeyTerms
from gateway.services.rights import SCOPES
from tests.load import Engine, engine_section
from tests.process import CHEAP_IDENTITY, GatewayProcess
from tests.services.keyring import CHEAP, connection

BASE = "/admin/v1"
SETTINGS: dict[str, Any] = {"identity": CHEAP_IDENTITY, "log": {"level": "info"}}
WITHIN = 10.0
"""Seconds; what changes elsewhere is seen within one."""
SCOPES_OF: dict[str, tuple[str, ...]] = {
    "data": SCOPES,
    "read": ("admin:read",),
    "write": ("admin:write",),
    "admin": ("admin:read", "admin:write"),
    "other": ("admin:read", "admin:write"),
}


class Desk(msgspec.Struct, kw_only=True):
    """`keys`: the tokens by name; `ids`: their public ids."""

    gateway: GatewayProcess
    http: httpx.AsyncClient
    keys: dict[str, str]
    ids: dict[str, str]

    @property
    def store(self) -> str:
        return str(self.gateway.settings["store"])

    async def ask(self, method: str, path: str, body: Any = None, *, key: str = "admin", **more: Any) -> httpx.Response:
        """One request; `key` is the name of one of `keys`, or nothing. A change without a body sends none."""
        headers = more.pop("headers", {})
        if key:
            headers = {"authorization": f"Bearer {self.keys.get(key, key)}"} | headers
        if method not in ("GET", "HEAD", "OPTIONS"):
            headers = {"content-type": "application/json"} | headers
        content = more.pop("content", None if body is None else msgspec.json.encode(body))
        return await self.http.request(method, path, headers=headers, content=content, **more)

    async def get(self, path: str, **more: Any) -> Any:
        """What a good one answers."""
        answer = await self.ask("GET", BASE + path, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def chat(self, key: str) -> int:
        """A request on the data plane -> its status."""
        url = f"http://127.0.0.1:{self.gateway.port}/v1/chat/completions"
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        return (await self.http.post(url, json=body, headers={"authorization": f"Bearer {key}"})).status_code


@asynccontextmanager
async def desk(folder: Path, store: str = "", **settings: Any) -> AsyncIterator[Desk]:
    """Running until the block ends, in front of an engine with the model `m`."""
    async with Engine(random.Random(1), delay=0.0).listening() as engine:
        sections = SETTINGS | ({"store": store} if store else {}) | settings
        gateway = GatewayProcess(folder, sections | {"backends": engine_section(engine)})
        address = f"127.0.0.1:{gateway.admin_port}"
        gateway.settings["admin"] = admin = {"listen": address, "api": True} | settings.get("admin", {})
        if "oidc" in admin:
            admin["oidc"] = {"url": f"http://{address}/admin/"} | admin["oidc"]
        keys, ids = await provide(gateway.settings["store"])
        await asyncio.to_thread(gateway.started)
        try:
            url = f"http://127.0.0.1:{gateway.admin_port}"
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
                yield Desk(gateway=gateway, http=http, keys=keys, ids=ids)
        finally:
            assert await asyncio.to_thread(gateway.stop) == 0


async def provide(store: str) -> tuple[dict[str, str], dict[str, str]]:
    """A tenant `acme` with a user `ann`, and a key of each kind."""
    keys, ids = {}, {}
    async with connection(store) as opened:
        tenant = await accounts.create_tenant(opened, "acme", allow_all_models=True)
        user = await accounts.create_user(opened, tenant, "ann")
        for name, scopes in SCOPES_OF.items():
            key, keys[name] = await accounts.create_key(opened, user, KeyTerms(name=name, scopes=scopes), CHEAP)
            ids[name] = key.id
    return keys, ids
