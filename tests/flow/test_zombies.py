"""An engine that works on when its client has left, as llama.cpp does: its slot is not given to the next too early."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import uvloop

from gateway import config as cfg
from gateway.services.zombies import ZombieStats
from scheduler.aio import Scheduler
from tests.flow.engine import LlamaCpp
from tests.gateway import Gateway, chat, gateway
from tests.wire import WAIT

CHAT = "/v1/chat/completions"


def run(
    test: Callable[[Gateway, LlamaCpp], Awaitable[None]], kind: cfg.EngineKind = "llamacpp", **settings: Any
) -> Scheduler:
    async def main() -> Scheduler:
        async with LlamaCpp() as engine, gateway(engine.url, kind, slots=1, **settings) as g:
            await test(g, engine)
        return g.app.scheduler

    return uvloop.run(main())


async def leave(g: Gateway, engine: LlamaCpp, **more: Any) -> None:
    """One request that reaches the engine, and whose client then leaves."""
    client = await g.connect()
    await client.send(g.request(CHAT, chat(**more)))
    await asyncio.wait_for(engine.chats.get(), WAIT)
    client.close()


def test_the_next_is_granted_when_the_engine_is_idle() -> None:
    """R8: the request is settled and recorded at once, its slot stays taken as long as the engine works."""

    async def test(g: Gateway, engine: LlamaCpp) -> None:
        await leave(g, engine)
        (row,) = await g.records(1)
        assert (row["status"], row["outcome"], row["usage_estimated"]) == (499, "client_gone", 1)
        assert g.app.ledger.stats().open == 0
        assert g.app.zombies.stats() == (ZombieStats("engine", 1, 1),)
        (party,) = g.app.scheduler.stats().parties
        expected = party.usage
        following = asyncio.ensure_future(g.ask(CHAT, chat()))
        await engine.looked(3)
        assert g.app.scheduler.stats().queued == 1
        assert engine.chats.empty()
        engine.go.set()
        assert (await following)[0] == 200
        assert engine.most == 1
        assert g.app.zombies.stats() == (ZombieStats("engine", 0, 1),)
        _, row = await g.records(2)
        assert row["queue_us"] > 500_000
        (party,) = g.app.scheduler.stats().parties
        assert party.usage > 0.9 * expected > 100.0  # the whole answer was charged, not the prompt alone

    assert run(test).leases == 0


def test_an_answer_that_comes_too_late_leaves_a_zombie_that_costs_nothing() -> None:
    async def test(g: Gateway, engine: LlamaCpp) -> None:
        status, _, body = await g.ask(CHAT, chat())
        assert (status, json.loads(body)["error"]["code"]) == (504, "upstream_timeout")
        assert g.app.zombies.stats() == (ZombieStats("engine", 1, 1),)
        engine.go.set()
        await g.idle()
        (party,) = g.app.scheduler.stats().parties
        assert party.usage == pytest.approx(0.0, abs=1e-6)

    run(test, upstream=cfg.Upstream(first_byte=0.2))


@pytest.mark.parametrize(
    ("kind", "more"), [("llamacpp", {"stream": True}), ("vllm", {}), ("ollama", {}), ("openai", {})]
)
def test_streams_and_other_engines_end_with_their_connection(kind: cfg.EngineKind, more: dict[str, Any]) -> None:
    async def test(g: Gateway, engine: LlamaCpp) -> None:
        await leave(g, engine, **more)
        await g.records(1)
        assert g.app.zombies.stats() == ((ZombieStats("engine", 0, 0),) if kind == "llamacpp" else ())
        assert (g.app.scheduler.leases, engine.looks) == (0, 0)
        engine.go.set()

    run(test, kind)


def test_the_end_does_not_wait_for_zombies() -> None:
    """H13: nor does it lose a slot."""

    async def test(g: Gateway, engine: LlamaCpp) -> None:
        await leave(g, engine)
        await g.records(1)
        assert g.app.scheduler.leases == 1
        await asyncio.wait_for(g.app.drain(), WAIT)
        assert g.app.scheduler.leases == 1

    assert run(test).leases == 0


def test_a_client_that_leaves_during_the_end_leaves_no_slot_behind() -> None:
    async def test(g: Gateway, engine: LlamaCpp) -> None:
        client = await g.connect()
        await client.send(g.request(CHAT, chat()))
        await asyncio.wait_for(engine.chats.get(), WAIT)

    assert run(test).leases == 0


@pytest.mark.parametrize("name", ["engine", "another"])
def test_a_reload_that_takes_the_engine_away_ends_its_zombies(name: str) -> None:
    """Also where its name is another machine's from now on."""

    async def test(g: Gateway, engine: LlamaCpp) -> None:
        await leave(g, engine)
        await g.records(1)
        async with LlamaCpp() as other:
            backends = [cfg.Backend(name=name, url=other.url, engine="llamacpp", slots=1)]
            g.app.reload(msgspec.structs.replace(g.app.config, log=cfg.Log(level="warning")))
            assert g.app.scheduler.leases == 1  # nothing that concerns it
            g.app.reload(msgspec.structs.replace(g.app.config, backends=backends))
            assert g.app.scheduler.leases == 0
            await g.app.backends.looked()
            other.go.set()
            assert (await g.ask(CHAT, chat()))[0] == 200
        engine.go.set()

    run(test)
