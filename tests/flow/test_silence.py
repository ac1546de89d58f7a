"""Streams that began with comments (A11): what is measured of them, and how they fail."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

import pytest
import uvloop

from gateway import config as cfg
from tests.flow.engine import DONE, PLAIN, SSE_HEAD, USAGE_FRAME, Engine, chunk, frame, json_answer
from tests.gateway import Gateway, chat, gateway
from tests.wire import Client

COMMENT = b": keep-alive\n\n"
FRAMES = (frame("a"), USAGE_FRAME, DONE)


@contextlib.asynccontextmanager
async def silent(at_once: bytes, later: bytes) -> AsyncIterator[tuple[Gateway, Engine]]:
    """A gateway in front of an engine that answers with `at_once`, and with `later` when it is told to go on."""

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(at_once)
        await engine.go.wait()
        writer.write(later)

    async with Engine(answer) as engine:
        adaptive = cfg.Adaptive(tpot=60.0, low=8, high=9)
        backends = [cfg.Backend(name="engine", url=engine.url, engine="openai", adaptive=adaptive)]
        async with gateway("", backends=backends, timeouts=cfg.Timeouts(comment=0.05)) as g:
            yield g, engine
            await g.idle()


async def after_comments(client: Client, engine: Engine) -> bytes:
    """What the engine sends when two comments have gone out, without the comments."""
    assert (await client.head())[0] == 200
    chunks = client.chunks()
    assert [await anext(chunks), await anext(chunks)] == [COMMENT, COMMENT]
    engine.go.set()
    return b"".join([data async for data in chunks]).replace(COMMENT, b"")


@pytest.mark.parametrize("early", [True, False])
def test_the_first_byte_is_the_answers_own_and_no_comment(early: bool) -> None:
    """U1, O2, scheduler.md 5.6: comments hide no time to the first token and make no engine look slow."""
    whole = b"".join(chunk(each) for each in FRAMES) + b"0\r\n\r\n"

    async def main() -> None:
        async with silent(*((SSE_HEAD, whole) if early else (b"", SSE_HEAD + whole))) as (g, engine):
            client = await g.connect()
            await client.send(g.request("/v1/chat/completions", chat(stream=True)))
            await engine.chats.get()
            asked = time.monotonic()
            assert await after_comments(client, engine) == frame("a") + DONE
            (row,) = await g.records(1)
            assert row["outcome"] == "done"
            assert 90_000 <= row["first_byte_us"] <= row["total_us"]
            aimd = g.app.backends._watched["engine"].aimd
            assert aimd is not None
            assert 0.0 < aimd.tpot <= time.monotonic() - asked

    uvloop.run(main())


def test_an_answer_without_a_stream_is_no_end_of_one() -> None:
    """A5: behind a comment a plain answer would look like a stream that ended well, without a word."""

    async def main() -> None:
        async with silent(b"", json_answer(PLAIN)) as (g, engine):
            client = await g.connect()
            await client.send(g.request("/v1/chat/completions", chat(stream=True)))
            told = await after_comments(client, engine)
            assert json.loads(told.removeprefix(b"data: "))["error"]["code"] == "upstream_broke"
            assert (await g.records(1))[0]["outcome"] == "upstream_failed"

    uvloop.run(main())


def test_an_answer_in_one_piece_is_told_as_a_stream() -> None:
    """A5, A11: behind a comment too."""
    whole = {"id": "c", "choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}

    async def main() -> None:
        async with silent(b"", json_answer(json.dumps(whole).encode())) as (g, engine):
            client = await g.connect()
            await client.send(g.request("/v1/chat/completions", chat(stream=True)))
            told = await after_comments(client, engine)
            first, done, _ = told.split(b"\n\n")
            assert json.loads(first.removeprefix(b"data: "))["choices"][0]["delta"] == {"content": "hi"}
            assert done == b"data: [DONE]"
            assert (await g.records(1))[0]["outcome"] == "done"

    uvloop.run(main())


def test_who_waits_in_the_queue_hears_comments() -> None:
    """A11: before any engine has the request."""

    async def main() -> None:
        async with silent(SSE_HEAD, b"".join(chunk(each) for each in FRAMES) + b"0\r\n\r\n") as (g, engine):
            ahead = [await g.connect() for _ in range(8)]  # as many as there are slots
            for client in ahead:
                await client.send(g.request("/v1/chat/completions", chat(stream=True)))
                await engine.chats.get()
            waiting = await g.connect()
            await waiting.send(g.request("/v1/chat/completions", chat(stream=True)))
            assert (await waiting.head())[0] == 200
            assert await anext(waiting.chunks()) == COMMENT
            assert g.app.scheduler.stats().queued == 1
            assert engine.chats.empty()
            engine.go.set()
            assert {row["outcome"] for row in await g.records(9)} == {"done"}

    uvloop.run(main())


def test_a_head_before_the_answer_tells_the_times_that_are_known() -> None:
    """A11: the slot was waited for, and the engine was asked, before the first comment."""

    async def main() -> None:
        async with silent(b"", b"") as (g, _):
            client = await g.connect()
            await client.send(g.request("/v1/chat/completions", chat(stream=True)))
            status, fields = await client.head()
            assert (status, await anext(client.chunks())) == (200, COMMENT)
            assert int(fields["x-fairgate-queue-ms"]) >= 0
            assert float(fields["x-fairgate-overhead-ms"]) > 0.0
            client.reset()

    uvloop.run(main())
