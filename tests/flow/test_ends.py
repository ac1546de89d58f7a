"""Ends that are nobody's wish: a gateway that is stopped, streams that break off, engines that do not end theirs."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from gateway import config as cfg
from gateway.store.limits import Limits
from tests.flow.engine import (
    DONE,
    SSE_HEAD,
    USAGE_FRAME,
    Answer,
    Engine,
    answering,
    chunk,
    cut,
    frame,
    hang,
    start_and_hang,
)
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
        told = [(row["prompt_tokens"] > 0, row["completion_tokens"] > 0, row["usage_estimated"]) for row in rows]
        assert sorted(told) == [(False, False, 0), (True, False, 1), (True, True, 1)]  # the first one waited
        assert g.app.metrics._requests == {("openai", CHAT, 5, "interrupted"): 3}

    run(start_and_hang, test, slots=2)


def test_a_stream_that_breaks_off_counts_for_the_record_what_it_counts_for_limits() -> None:
    """A7, L2: the frames that came, and the prompt by estimate; what breaks before a frame counts nothing."""

    async def test(g: Gateway, engine: Engine) -> None:
        key = await g.add_key(limits=Limits(tokens_per_day=10_000))
        assert (await g.ask(CHAT, chat(stream=True), key=key))[0] == 200
        engine.answer = cut(SSE_HEAD)
        assert (await g.ask(CHAT, chat(stream=True), key=key))[0] == 502
        broken, unborn = await g.records(2)
        assert (broken["outcome"], broken["completion_tokens"], broken["usage_estimated"]) == ("upstream_failed", 2, 1)
        assert broken["prompt_tokens"] > 0
        assert (unborn["prompt_tokens"], unborn["completion_tokens"]) == (0, 0)
        await g.app.limits.close()
        spent = {row.budget: row.spent for row in await g.store.budgets(f"key:{broken['key']}")}
        assert list(spent.values()) == [broken["prompt_tokens"] + 2]

    run(cut(SSE_HEAD, chunk(frame("a")), chunk(frame("b"))), test)


CLOSING = SSE_HEAD.replace(b"Transfer-Encoding: chunked", b"Connection: close")
UNENDED = {
    "chunks": (SSE_HEAD, chunk(frame("a")), chunk(USAGE_FRAME), chunk(DONE)),
    "half its last line": (SSE_HEAD, chunk(frame("a")), chunk(USAGE_FRAME), chunk(DONE), b"0\r"),
    "trailers": (SSE_HEAD, chunk(frame("a")), chunk(USAGE_FRAME), chunk(DONE), b"0\r\nx: y\r\n"),
    "one read": (SSE_HEAD + chunk(frame("a") + USAGE_FRAME + DONE),),
    "cut frames": (
        SSE_HEAD,
        chunk(frame("a")[:9]),
        chunk(frame("a")[9:] + USAGE_FRAME),
        chunk(DONE[:8]),
        chunk(DONE[8:]),
    ),
    "no chunks": (CLOSING, frame("a"), USAGE_FRAME, DONE),
}


def never_ending(*wires: bytes) -> Answer:
    """An engine that sends these, and leaves its body open."""
    send = answering(*wires)

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await send(head, body, reader, writer)
        await hang(head, body, reader, writer)

    return answer


@pytest.mark.parametrize("path", [CHAT, "/api/chat", "/v1/messages"])
@pytest.mark.parametrize("how", UNENDED)
def test_behind_its_own_end_a_stream_holds_no_slot(how: str, path: str) -> None:
    """R4, R6: the client has its whole answer within seconds, and the engine's connection, whose body goes on for all
    that is known, closes."""

    async def test(g: Gateway, engine: Engine) -> None:
        asked = time.monotonic()
        status, _, body = await g.ask(path, chat(stream=True, max_tokens=9))
        assert status == 200
        assert time.monotonic() - asked < WAIT
        if path == CHAT:
            assert body == frame("a") + DONE
        (row,) = await g.records(1)
        assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) == ("done", 7, 3)
        await asyncio.wait_for(engine.aborted.get(), WAIT)
        assert not g.app.pools["engine"].connections

    run(never_ending(*UNENDED[how]), test, upstream=cfg.Upstream(connect=0.2))
