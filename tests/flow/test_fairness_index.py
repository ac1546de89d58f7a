"""What the index of fairness is of: requests that had to wait for a slot."""

import asyncio

import uvloop

from tests.flow.engine import Engine, plain
from tests.gateway import Gateway, chat, gateway
from tests.wire import WAIT

CHAT = "/v1/chat/completions"


def index(g: Gateway) -> bool:
    return any(b"fairgate_jain_index{" in part for part in g.app.metrics.exposition()[1])


def test_users_of_free_slots_are_not_compared() -> None:
    """One asks often and one seldom: nobody waited, so nothing is unfair."""

    async def main() -> None:
        async def when_told(
            head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            await engine.go.wait()
            await plain(head, body, reader, writer)

        async with Engine(when_told) as engine, gateway(engine.url, slots=1) as g:
            engine.go.set()
            other = await g.add_key(user="other")
            for key in (g.key, g.key, g.key, other):
                assert (await g.ask(CHAT, chat(), key=key))[0] == 200
            await g.idle()
            assert not index(g)
            engine.go.clear()
            asked = [asyncio.create_task(g.ask(CHAT, chat(), key=key)) for key in (g.key, other, g.key, other)]
            async with asyncio.timeout(WAIT):
                while g.app.scheduler.stats().queued < 3:
                    await asyncio.sleep(0)
                queued_at = asyncio.get_running_loop().time()
                while asyncio.get_running_loop().time() == queued_at:  # the loop's clock has steps of a millisecond
                    await asyncio.sleep(0)
            engine.go.set()
            assert {status for status, _, _ in await asyncio.gather(*asked)} == {200}
            await g.idle()
            assert index(g)

    uvloop.run(main())
