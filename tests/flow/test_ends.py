"""Ends that are nobody's wish: a gateway that is stopped, streams that break off, engines that do not end theirs."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from tests.flow.engine import Answer, Engine, hang, start_and_hang
from tests.gateway import Gateway, chat, gateway
from tests.wire import WAIT

CHAT = "/v1/chat/completions"
Test = Callable[[Gateway, Engine], Coroutine[Any, Any, None]]


def run(answer: Answer, test: Test, **settings: Any) -> None:
    async def main() -> None:
        async with Engine(answer) as engine, gateway(engine.url, **settings) as g:
            await test(g, engine)
            await g.idle()

    uvloop.run(main())


async def started(g: Gateway, engine: Engine, *, stream: bool) -> None:
    """A request that its engine has; of a stream the client has the head."""
    client = await g.connect()
    await client.send(g.request(CHAT, chat(stream=stream)))
    await asyncio.wait_for(engine.chats.get(), WAIT)
    if stream:
        await client.head()


def test_what_the_end_of_the_gateway_cuts_is_no_clients_leaving() -> None:
    """H13, U1: in a stream, before the first byte or in the queue, it is `interrupted` by a gateway that drains."""

    async def test(g: Gateway, engine: Engine) -> None:
        await started(g, engine, stream=True)
        engine.answer = hang
        await started(g, engine, stream=False)
        waiting = await g.connect()
        await waiting.send(g.request(CHAT, chat()))
        async with asyncio.timeout(WAIT):
            while not g.app.scheduler.stats().queued:
                await asyncio.sleep(0)
        g.app.server.close()
        rows = await g.records(3)
        assert {(row["status"], row["outcome"], row["error"]) for row in rows} == {(503, "interrupted", "draining")}
        assert sorted((row["completion_tokens"] > 0, row["usage_estimated"]) for row in rows) == [
            (False, 0),  # waited
            (False, 1),
            (True, 1),
        ]
        assert g.app.metrics._requests == {("openai", CHAT, 5, "interrupted"): 3}

    run(start_and_hang, test, slots=2)
