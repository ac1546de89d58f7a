"""An engine that fails inside a stream and says why: the client hears that, not the engine's words (H8, A5)."""

import asyncio
import json

import pytest
import uvloop

from tests.flow.engine import DONE, PLAIN, SSE_HEAD, START, Engine, chunk, event, frame, hang, json_answer
from tests.gateway import Gateway, chat, gateway
from tests.wire import WAIT

NDJSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
LINE = b'{"model":"m","message":{"role":"assistant","content":"a"},"done":false}\n'
OPENAI = b'data: {"error":{"message":"CUDA failed at 10.0.0.5:/srv/x.cu","code":500}}\n\n'
OLLAMA = b'{"error":"llama runner at 10.0.0.5 exited"}\n'
ANTHROPIC = event("error", error={"type": "api_error", "message": "CUDA failed at 10.0.0.5:/srv/x.cu"})
ENGINES = {
    "openai": ("/v1/chat/completions", SSE_HEAD, frame("a"), OPENAI),
    "anthropic": ("/v1/messages", SSE_HEAD, START, ANTHROPIC),
    "ollama": ("/api/chat", NDJSON_HEAD, LINE, OLLAMA),
}
"""Dialect -> path, head of a stream, a frame, and the one by which its engine says that it failed."""
ENDS = {"and ends": b"0\r\n\r\n", "with its end": chunk(DONE) + b"0\r\n\r\n"}


@pytest.mark.parametrize("first", [True, False], ids=["at once", "after a frame"])
@pytest.mark.parametrize("asked", [True, False], ids=["passed", "filtered"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("dialect", ["openai", "anthropic", "ollama"])
def test_the_engines_words_stay_inside(dialect: str, end: str, asked: bool, first: bool) -> None:
    """H8, A5, U1: a status where nothing was sent yet, an error frame of ours after it, and a row that says so."""
    path, media, good, bad = ENGINES[dialect]
    seen = asyncio.Event()

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(media)
        if not first:
            writer.write(chunk(good))
            await seen.wait()
        writer.write(chunk(bad) + ENDS[end])

    async def main() -> None:
        async with Engine(answer) as engine, gateway(engine.url, "ollama") as g:
            client = await g.connect()
            more = {"stream_options": {"include_usage": True}} if asked else {}
            await client.send(g.request(path, chat(stream=True, **more), extra="Connection: close\r\n"))
            status, _ = await client.head()
            seen.set()
            raw = await client.rest()
            assert status == (502 if first else 200)
            assert b"10.0.0.5" not in raw
            assert b"reported an error" in raw
            assert b"[DONE]" not in raw
            assert first or raw.endswith(b"0\r\n\r\n")
            (row,) = await g.records(1)
            assert (row["outcome"], row["error"]) == ("upstream_failed", "upstream_broke")
            await g.idle()

    uvloop.run(main())


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "ollama"])
def test_an_engine_that_tells_its_failure_and_stays_is_not_waited_for(dialect: str) -> None:
    """A5: its client hears of it at once, and the slot is free again."""
    path, media, good, bad = ENGINES[dialect]

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(media + chunk(good) + chunk(bad))
        await hang(head, body, reader, writer)

    async def main() -> None:
        async with Engine(answer) as engine, gateway(engine.url, "ollama") as g:
            status, _, body = await g.ask(path, chat(stream=True))
            assert status == 200
            assert b"reported an error" in body
            await g.idle()

    uvloop.run(main())


def test_a_text_that_speaks_of_errors_is_no_error() -> None:
    """Tokens, names and empty fields pass unchanged."""
    text = frame('{"error": "no"}') + b'data: {"error":null,"choices":[{"finish_reason":"error"}]}\n\n'

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(text) + chunk(DONE) + b"0\r\n\r\n")

    async def main() -> None:
        async with Engine(answer) as engine, gateway(engine.url) as g:
            status, _, body = await g.ask("/v1/chat/completions", chat(stream=True))
            assert (status, body) == (200, text + DONE)
            assert json.loads(text.split(b"\n\n")[0][6:])["choices"]

    uvloop.run(main())


SPLITS = {
    "passed": ("/v1/chat/completions", {"stream_options": {"include_usage": True}}, SSE_HEAD, frame("a"), OPENAI),
    "filtered": ("/v1/chat/completions", {}, SSE_HEAD, frame("a"), OPENAI),
    "events": ("/v1/messages", {}, SSE_HEAD, START, ANTHROPIC),
    "lines": ("/api/chat", {}, NDJSON_HEAD, LINE, OLLAMA),
}


@pytest.mark.parametrize("size", [1000, 13], ids=["one chunk", "many chunks"])
@pytest.mark.parametrize("case", SPLITS)
def test_the_engines_words_stay_inside_wherever_a_read_splits_them(case: str, size: int) -> None:
    """H8: the frames before the error, then ours; two reads, with the second sent once the first was taken."""
    path, more, head, before, error = SPLITS[case]
    wire = chunk(before) + b"".join(chunk(error[at : at + size]) for at in range(0, len(error), size)) + b"0\r\n\r\n"

    async def main() -> None:
        cut = 0

        async def answer(_: bytes, __: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(head + wire[:cut])
            async with asyncio.timeout(WAIT):
                while taken() < cut and g.app.scheduler.stats().running:
                    await asyncio.sleep(0)
            writer.write(wire[cut:])

        def taken() -> int:
            return max((c.bytes_in for c in g.app.pools["engine"].connections if c.head is not None), default=0)

        async with Engine(answer) as engine, gateway(engine.url, "ollama") as g:
            for cut in range(len(chunk(before)), len(wire)):
                status, _, body = await g.ask(path, chat(stream=True, **more))
                assert (status, body[: len(before)]) == (200, before), cut
                assert b"10.0.0.5" not in body, cut
                assert b"reported an error" in body, cut

    uvloop.run(main())


def test_what_an_engine_sends_behind_its_answer_reaches_nobody() -> None:
    """R6: with one slot the next request waits for this very answer, and must not be given what follows it."""
    stolen = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n"stolen"'

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        started = g.app.scheduler.stats().granted
        while g.app.scheduler.stats().queued == 0 and b"last" not in body:
            await asyncio.sleep(0)
        writer.write(json_answer(PLAIN))
        async with asyncio.timeout(WAIT):
            while g.app.scheduler.stats().granted == started and b"last" not in body:
                await asyncio.sleep(0)
        writer.write(stolen)

    async def main() -> None:
        nonlocal g
        async with Engine(answer) as engine, gateway(engine.url, slots=1) as g:
            asks = [g.ask("/v1/chat/completions", chat(user=user)) for user in ("first", "second", "third", "last")]
            answers = await asyncio.gather(*asks)
            assert [(status, body) for status, _, body in answers] == [(200, PLAIN)] * 4
            await g.idle()

    g: Gateway
    uvloop.run(main())
