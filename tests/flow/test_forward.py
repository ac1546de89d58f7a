"""The attempts of one request on its backends: how many, what they are counted as, and which answers pass (R5, H8)."""

import asyncio
import json

import pytest
import uvloop

from gateway import config as cfg
from tests.flow.engine import PLAIN, Engine, hang, json_answer, plain
from tests.gateway import chat, gateway
from tests.wire import WAIT

CHAT = "/v1/chat/completions"
FAR_OFF = cfg.Discovery(interval=3600.0, eject_after=3)  # nothing is found out but by requests


@pytest.mark.parametrize("alone", [True, False])
def test_only_a_backend_among_others_is_given_up_for_another(alone: bool) -> None:
    """R5: one that is alone is tried once, and its failure told; each further attempt is counted."""

    async def main() -> None:
        async with Engine(plain) as good, Engine(plain) as dead:
            urls = {"dead": dead.url} if alone else {"dead": dead.url, "good": good.url}
            backends = [cfg.Backend(name=name, url=url, engine="openai", slots=1) for name, url in urls.items()]
            async with gateway("", backends=backends, discovery=FAR_OFF) as g:
                await dead.__aexit__()
                g.app.pools["dead"].close()
                status, _, body = await g.ask(CHAT, chat())
                code = json.loads(body).get("error", {}).get("code", "")
                assert (status, code) == ((502, "upstream_unreachable") if alone else (200, ""))
                assert g.app.backends.stats()[0].failures["connect"] == 1
                text = b"".join(g.app.metrics.exposition()[1])
                assert (b'fairgate_retries_total{backend="dead"} 1' in text) is not alone

    uvloop.run(main())


def test_a_client_that_leaves_the_queue_for_another_backend_had_no_slot() -> None:
    """U1: its record tells the whole wait, and nothing of the slot that it gave back."""

    async def main() -> None:
        async with Engine(hang) as good, Engine(plain) as dead:
            urls = {"dead": dead.url, "good": good.url}
            backends = [cfg.Backend(name=name, url=url, engine="openai", slots=1) for name, url in urls.items()]
            async with gateway("", backends=backends, discovery=FAR_OFF) as g:
                await dead.__aexit__()
                g.app.pools["dead"].close()
                running, waiting = await g.connect(), await g.connect()
                await running.send(g.request(CHAT, chat()))
                async with asyncio.timeout(WAIT):
                    await good.chats.get()
                    await waiting.send(g.request(CHAT, chat()))
                    while not g.app.scheduler.stats().queued:
                        await asyncio.sleep(0)
                waiting.reset()
                (row,) = await g.records(1)
                assert row["queue_us"] > 0
                assert row["slot_us"] == 0
                running.reset()
                await g.idle()

    uvloop.run(main())


@pytest.mark.parametrize(("answered", "told"), [("299 Odd", 299), ("300 Multiple Choices", 502)])
def test_an_answer_that_is_no_success_is_not_passed_on(answered: str, told: int) -> None:
    """H8"""

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(PLAIN, answered))

    async def main() -> None:
        async with Engine(answer) as engine, gateway(engine.url) as g:
            status, _, body = await g.ask(CHAT, chat())
            assert (status, body == PLAIN) == (told, told == 299)

    uvloop.run(main())


def test_an_engine_that_answers_between_its_failures_is_not_ejected() -> None:
    """R2: failures count in a row."""

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"fail" in body:
            raise ConnectionError
        await plain(head, body, reader, writer)

    async def main() -> None:
        async with Engine(answer) as engine, gateway(engine.url, discovery=FAR_OFF) as g:
            for words in ("fail", "fail", "go on", "fail", "fail"):
                status, _, _ = await g.ask(CHAT, chat(user=words))
                assert status == (502 if words == "fail" else 200)
            assert [stats.state for stats in g.app.backends.stats()] == ["closed"]

    uvloop.run(main())
