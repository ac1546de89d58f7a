"""Chat UIs name their end users, and nobody else does (K10)."""

import asyncio
from typing import Any

import pytest

from gateway.services.accounts import create_user, find_tenant, now_us
from gateway.store.limits import Limits
from tests.flow.engine import Engine, plain
from tests.flow.run import run
from tests.gateway import Gateway, chat
from tests.wire import WAIT

CHAT = "/v1/chat/completions"
HEADER = "X-OpenWebUI-User-Email"


async def ask(g: Gateway, key: str, header: str = "", **body: Any) -> int:
    extra = f"{HEADER}: {header}\r\n" if header else ""
    return (await g.ask(CHAT, chat(**body), key=key, extra=extra))[0]


def test_the_named_user_is_scheduled_limited_and_billed() -> None:
    """K10: one identity for all three, with its own share and limits; each unknown name for itself."""

    async def test(g: Gateway, engine: Engine) -> None:
        ui = await g.add_key(user="ui", on_behalf=True)
        tenant = await find_tenant(g.store, "t")
        ann = await create_user(g.store, tenant, "ann@example.com", limits=Limits(requests_per_minute=2))
        owner = await g.store.user(tenant.id, "ui")
        assert owner is not None
        await g.store.set_limits("user", owner.id, Limits(requests_per_minute=1))
        g.app.keys.invalidate()
        assert [await ask(g, ui, "ann@example.com") for _ in range(3)] == [200, 200, 429]
        assert [await ask(g, ui, user="bob") for _ in range(2)] == [200, 429]
        assert await ask(g, ui, "carl", user="bob") == 200
        assert await ask(g, ui) == 200
        head, _ = engine.chats.get_nowait()
        assert HEADER.lower().encode() not in head.lower()
        users = [record["user"] for record in await g.records(7)]
        assert users == [ann.id] * 3 + ["~bob"] * 2 + ["~carl", owner.id]

    run(plain, test)


def test_two_users_keys_do_not_share_the_limits_of_whom_they_name() -> None:
    """K10: each limits them as it is limited itself, in whatever order they come."""

    async def test(g: Gateway, engine: Engine) -> None:
        slow, quick = await g.add_key(user="slow", on_behalf=True), await g.add_key(user="quick", on_behalf=True)
        tenant = await find_tenant(g.store, "t")
        for name, rate in (("slow", 1), ("quick", 600)):
            owner = await g.store.user(tenant.id, name)
            assert owner is not None
            await g.store.set_limits("user", owner.id, Limits(requests_per_minute=rate))
        g.app.keys.invalidate()
        assert [await ask(g, slow, user="bob") for _ in range(2)] == [200, 429]
        assert [await ask(g, quick, user="bob") for _ in range(3)] == [200] * 3
        assert await ask(g, slow, user="bob") == 429
        assert {record["user"] for record in await g.records(6)} == {"~bob"}

    run(plain, test)


def test_a_long_name_is_one() -> None:
    """K10: Anthropic's API allows 256 characters, and its tools use many of them."""

    async def test(g: Gateway, engine: Engine) -> None:
        assert await ask(g, await g.add_key(user="ui", on_behalf=True), user="x" * 256) == 200

    run(plain, test)


def test_no_other_key_may_name_anyone() -> None:
    """K10: the names are ignored, and never passed on in the head."""

    async def test(g: Gateway, engine: Engine) -> None:
        key = await g.add_key(user="plain", limits=Limits(requests_per_minute=2))
        answers = [await ask(g, key, f"user{n}@example.com", user=f"body{n}") for n in range(3)]
        assert answers == [200, 200, 429]
        assert len({record["user"] for record in await g.records(3)}) == 1
        head, _ = engine.chats.get_nowait()
        assert HEADER.lower().encode() not in head.lower()

    run(plain, test)


def test_a_disabled_end_user_is_refused_within_a_second() -> None:
    async def test(g: Gateway, engine: Engine) -> None:
        ui = await g.add_key(user="ui", on_behalf=True)
        ann = await create_user(g.store, await find_tenant(g.store, "t"), "ann")
        assert await ask(g, ui, "ann") == 200
        await g.store.disable_user(ann.id, now_us())
        async with asyncio.timeout(WAIT):
            while await ask(g, ui, "ann") != 403:
                await asyncio.sleep(0.05)
        assert await ask(g, ui, "bob") == 200

    run(plain, test)


@pytest.mark.parametrize("name", ["x" * 257, "tab\there"])
def test_an_invalid_name_of_an_end_user_is_an_error(name: str) -> None:
    async def test(g: Gateway, engine: Engine) -> None:
        ui = await g.add_key(user="ui", on_behalf=True)
        assert await ask(g, ui, user=name) == 400

    run(plain, test)
