"""A request leaves nothing for the garbage collector: a full collection would stall every stream (performance.md 6)."""

import gc

import pytest
import uvloop

from gateway import config as cfg
from tests.flow.engine import Answer, Engine, cut, plain, stream
from tests.gateway import chat, gateway

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("answer", "body", "status"),
    [
        (plain, chat(), 200),
        (stream, chat(stream=True), 200),
        (plain, b"{", 400),
        (plain, chat(model="none"), 403),
        (cut(), chat(), 502),
    ],
    ids=["plain", "stream", "bad body", "forbidden", "engine fails"],
)
def test_a_request_makes_no_cycles(answer: Answer, body: object, status: int) -> None:
    async def main() -> int:
        quiet = cfg.Discovery(interval=600.0, eject_after=1000)
        async with Engine(answer) as engine, gateway(engine.url, discovery=quiet) as g:
            client = await g.connect()

            async def ask(times: int) -> None:
                for _ in range(times):
                    await client.send(g.request(CHAT, body))
                    assert (await client.answer())[0] == status

            await ask(20)
            gc.collect()
            gc.disable()
            try:
                await ask(100)
                return gc.collect()
            finally:
                gc.enable()

    assert uvloop.run(main()) < 50  # a cycle in each request would make hundreds; timers and tests may leave a few
