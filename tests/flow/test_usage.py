"""GET /api/usage: a key's own usage (U6)."""

import asyncio
import json
from typing import Any

import pytest
import uvloop

from gateway import config as cfg
from gateway.services.usage import KEEP_SECONDS, UsageService
from gateway.store.base import StoreError
from gateway.store.usage import UsageQuery, UsageRow
from tests.flow.engine import Engine, plain
from tests.gateway import chat, gateway
from tests.wire import WAIT

CHAT, USAGE = "/v1/chat/completions", "/api/usage"


@pytest.mark.parametrize(("kind", "served"), [("openai", "m"), ("ollama", "m:latest")])
def test_a_key_sees_its_own_usage_and_no_other(kind: cfg.EngineKind, served: str) -> None:
    """U6: with the price of the model, whose name may lack Ollama's `:latest`."""

    async def main() -> None:
        prices = {"m": cfg.Price(input=1000.0, output=2000.0)}
        async with Engine(plain, (served,)) as engine, gateway(engine.url, kind, prices=prices) as g:
            other = await g.add_key(user="other")
            for key in (g.key, g.key, other):
                assert (await g.ask(CHAT, chat(), key=key))[0] == 200
            await g.records(3)
            status, head, body = await g.ask(USAGE)
            assert (status, head["content-type"]) == (200, "application/json")
            report = json.loads(body)
            (model,) = report["models"]
            (day,) = report["days"]
            assert (model["model"], model["requests"], model["errors"]) == (served, 2, 0)
            assert (day["prompt_tokens"], day["completion_tokens"]) == (14, 6)
            assert model["cost"] == pytest.approx((14 * 1000 + 6 * 2000) / 1e6)
            assert model["total_p95_ms"] >= model["total_p50_ms"] >= 0
            assert (await g.ask(USAGE, key=""))[0] == 401
            assert (await g.ask(USAGE, {}))[0] == 405

    uvloop.run(main())


def test_a_store_that_is_away_is_503_and_a_client_may_leave() -> None:
    """U6, H6: the wait ends with the client, the read does not break anything."""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            slow = Slow()
            g.app.usage._store = slow  # type: ignore[assignment]
            client = await g.connect()
            await client.send(g.request(USAGE))
            async with asyncio.timeout(WAIT):
                await slow.asked.wait()
            client.close()
            (record,) = await g.records(1)
            assert (record["outcome"], record["route"]) == ("client_gone", USAGE)
            slow.broken = True
            slow.go.set()
            status, _, body = await g.ask(USAGE)
            assert status == 503
            assert b"broken on purpose" not in body

    uvloop.run(main())


class Slow:
    """A store that answers when it is told to."""

    def __init__(self) -> None:
        self.asked, self.go = asyncio.Event(), asyncio.Event()
        self.broken = False
        self.reads = 0

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        self.reads += 1
        self.asked.set()
        await self.go.wait()
        if self.broken:
            raise StoreError("broken on purpose")
        return []


def test_one_read_for_all_that_wait_and_for_a_while_after() -> None:
    """Two statements for a report, however often it is asked for."""

    async def main() -> None:
        store: Any = Slow()
        service = UsageService(store)
        flights = [service.read("k", 100.0, {}) for _ in range(5)]
        store.go.set()
        first, *rest = await asyncio.gather(*flights)
        assert rest == [first] * 4
        assert store.reads == 2
        assert service.known("k", 100.0 + KEEP_SECONDS - 1) == first
        assert service.known("k", 100.0 + KEEP_SECONDS) is None
        assert service.known("other", 100.0) is None
        await service.close()

    uvloop.run(main())


def test_the_end_does_not_wait_for_a_store_that_answers_no_report() -> None:
    """H13: whoever asked has left; a drain has its own end."""
    asked = asyncio.Event()

    class Silent:
        async def usage(self, query: UsageQuery) -> list[UsageRow]:
            asked.set()
            await asyncio.Event().wait()
            return []

    async def main() -> None:
        store: Any = Silent()
        service = UsageService(store)
        flights = [service.read(f"k{number}", 100.0, {}) for number in range(5)]
        await asked.wait()
        async with asyncio.timeout(WAIT):
            await service.close()
        assert all(flight.cancelled() for flight in flights)

    uvloop.run(main())
