"""Clients of Ollama's and Anthropic's API on engines that speak OpenAI's: what the engine gets, what the client sees
when it fails, and what is recorded (A4)."""

import asyncio
import contextlib
import json
from typing import Any

import pytest
import uvloop

from gateway import config as cfg
from tests.flow.engine import (
    DONE,
    SSE_HEAD,
    USAGE,
    USAGE_FRAME,
    Engine,
    answering,
    chunk,
    frame,
    json_answer,
    plain,
    streamed,
)
from tests.gateway import Gateway, chat, gateway
from tests.wire import WAIT

NATIVE, MESSAGES = "/api/chat", "/v1/messages"
ROUTES = pytest.mark.parametrize("path", [NATIVE, MESSAGES])
SECRET = "at 10.0.0.5"
Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


COMPLETION: dict[str, Any] = {
    "id": "c",
    "model": "m",
    "created": 1,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": USAGE,
}
SAID = {
    NATIVE: lambda answer: answer["message"]["content"],
    MESSAGES: lambda answer: answer["content"][0]["text"],
}


def said(path: str, body: bytes) -> str:
    """The words of a streamed answer."""
    if path == NATIVE:
        return "".join(json.loads(line).get("message", {}).get("content", "") for line in body.splitlines())
    events = [json.loads(event.split(b"data: ")[1]) for event in body.split(b"\n\n") if event]
    return "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")


def error_of(path: str, body: bytes) -> str:
    """The code of the error in the last frame."""
    if path == NATIVE:
        return str(json.loads(body.splitlines()[-1])["code"])
    return str(json.loads(body.strip().split(b"\n\n")[-1].removeprefix(b"event: error\ndata: "))["error"]["code"])


async def asked(engine: Engine) -> tuple[str, dict[str, Any]]:
    """Path and body of the request that the engine got."""
    head, body = await asyncio.wait_for(engine.chats.get(), WAIT)
    return head.split(b" ")[1].decode(), json.loads(body)


@ROUTES
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_in_the_words_of_the_client(path: str, stream: bool) -> None:
    """A4, A6, A7: the engine is asked in its own words, within the cap, and its counts are recorded."""
    frames = (frame("h"), frame("i"), USAGE_FRAME, DONE)

    async def main() -> None:
        script = streamed(*frames) if stream else answering(json_answer(json.dumps(COMPLETION).encode()))
        async with Engine(script) as engine, gateway(engine.url, "openai") as g:
            status, head, body = await g.ask(path, chat(stream=stream, keep_alive=0, max_tokens=9_999_999))
            assert status == 200
            target, sent = await asked(engine)
            assert target == "/v1/chat/completions"
            assert (sent["max_tokens"], sent.get("stream", False), "keep_alive" in sent) == (4096, stream, False)
            assert sent.get("stream_options") == ({"include_usage": True} if stream else None)
            media = {(NATIVE, True): "application/x-ndjson", (MESSAGES, True): "text/event-stream"}
            assert head["content-type"] == media.get((path, stream), "application/json")
            assert (said(path, body) if stream else SAID[path](json.loads(body))) == "hi"
            (row,) = await g.records(1)
            assert (row["outcome"], row["backend"], row["route"]) == ("done", "engine", path)
            assert (row["prompt_tokens"], row["completion_tokens"], row["usage_estimated"]) == (7, 3, 0)

    uvloop.run(main())


TORN = {
    "no end": (frame("a"), frame("b")),
    "an error in the stream": (frame("a"), frame("b"), b'data: {"error":{"message":"%b"}}\n\n' % SECRET.encode(), DONE),
    "no chunk": (frame("a"), frame("b"), b"data: {%b\n\n" % SECRET.encode(), DONE),
    "given up": (frame("a"), frame("b"), b'data: {"choices":[{"delta":{},"finish_reason":"abort"}]}\n\n', DONE),
}


NO_CHUNKS = [b"[1, 2]", b"310952", b'"no chunk"', b"<html>Bad Gateway</html>", b'{"choices": 3}', b"x" * 1_100_000]


@ROUTES
@pytest.mark.parametrize("first", [True, False], ids=["at once", "after a frame"])
@pytest.mark.parametrize("sent", NO_CHUNKS, ids=["array", "number", "string", "page", "other shape", "no end"])
def test_a_frame_that_is_no_chunk_is_told_as_that(path: str, sent: bytes, first: bool) -> None:
    """H8: the engine has not spoken of a failure, so nothing says that it has."""
    end = b"" if len(sent) > 1_000_000 else b"\n\n"
    frames = (b"data: " + sent + end, DONE) if first else (frame("a"), b"data: " + sent + end, DONE)

    async def main() -> None:
        async with Engine(streamed(*frames)) as engine, gateway(engine.url, "openai") as g:
            status, _, body = await g.ask(path, chat(stream=True))
            assert status == (502 if first else 200)
            assert b"The engine sent a frame that cannot be read." in body
            assert sent not in body
            (row,) = await g.records(1)
            assert (row["outcome"], row["error"]) == ("upstream_failed", "upstream_broke")

    uvloop.run(main())


@ROUTES
@pytest.mark.parametrize("fault", TORN)
def test_a_stream_that_breaks_is_told_in_the_clients_shape(path: str, fault: str) -> None:
    """A5, A7, H8: what came stays, the engine's words do not pass, what was relayed is counted."""

    async def main() -> None:
        async with Engine(streamed(*TORN[fault])) as engine, gateway(engine.url, "openai") as g:
            status, _, body = await g.ask(path, chat(stream=True))
            assert (status, error_of(path, body)) == (200, "upstream_broke")
            assert SECRET.encode() not in body
            assert body.count(b'"a"') == body.count(b'"b"') == 1
            (row,) = await g.records(1)
            assert (row["outcome"], row["error"], row["usage_estimated"]) == ("upstream_failed", "upstream_broke", 1)
            assert row["completion_tokens"] >= 2
            await g.idle()

    uvloop.run(main())


@ROUTES
def test_an_engine_that_dies_in_the_middle(path: str) -> None:
    """A5"""

    async def dying(head: bytes, body: bytes, reader: Reader, writer: Writer) -> None:
        writer.write(SSE_HEAD + chunk(frame("a")))
        await writer.drain()
        await engine_may_die.wait()
        raise ConnectionError

    engine_may_die = asyncio.Event()

    async def main() -> None:
        async with Engine(dying) as engine, gateway(engine.url, "openai") as g:
            client = await g.connect()
            await client.send(g.request(path, chat(stream=True)))
            await engine.chats.get()
            engine_may_die.set()
            _, _, body = await client.answer()
            assert error_of(path, body).startswith("upstream_")
            assert body.count(b'"a"') == 1

    uvloop.run(main())


@ROUTES
@pytest.mark.parametrize(
    "wire",
    [
        json_answer(b'{"choices":3}'),
        json_answer(b"no JSON"),
        json_answer(b"{}"),
        json_answer(b'{"choices":[{"message":{"content":"half an"},"finish_reason":"abort"}]}'),
        json_answer(b"[" * 5000),
        json_answer(b'{"error":{"message":"%b"}}' % SECRET.encode(), "500 Oh"),
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}",
    ],
)
def test_a_plain_answer_that_is_none_is_an_error_before_any_byte(path: str, wire: bytes) -> None:
    """A5, H8: with a proper status, since nothing went out."""

    async def broken(head: bytes, body: bytes, reader: Reader, writer: Writer) -> None:
        writer.write(wire)
        await writer.drain()
        writer.close()

    async def main() -> None:
        async with Engine(broken) as engine, gateway(engine.url, "openai") as g:
            status, _, body = await g.ask(path, chat(stream=False))
            assert status == 502
            assert SECRET.encode() not in body
            assert (await g.records(1))[0]["outcome"] == "upstream_failed"
            await g.idle()

    uvloop.run(main())


def test_an_answer_beyond_all_bounds_is_given_up() -> None:
    async def endless(head: bytes, body: bytes, reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{")
        while True:
            writer.write(b" " * 1_000_000)
            await writer.drain()

    async def main() -> None:
        async with Engine(endless) as engine, gateway(engine.url, "openai") as g:
            assert (await g.ask(NATIVE, chat(stream=False)))[0] == 502
            await asyncio.wait_for(engine.aborted.get(), WAIT)
            await g.idle()

    uvloop.run(main())


@ROUTES
def test_a_client_that_leaves_is_noticed(path: str) -> None:
    """H6"""

    async def slow(head: bytes, body: bytes, reader: Reader, writer: Writer) -> None:
        writer.write(SSE_HEAD + chunk(frame("a")))
        assert await reader.read(1) == b""
        raise ConnectionError

    async def main() -> None:
        async with Engine(slow) as engine, gateway(engine.url, "openai") as g:
            client = await g.connect()
            await client.send(g.request(path, chat(stream=True)))
            await client.reader.readuntil(b'"a"')
            client.close()
            await asyncio.wait_for(engine.aborted.get(), WAIT)
            (row,) = await g.records(1)
            assert (row["outcome"], row["completion_tokens"], row["usage_estimated"]) == ("client_gone", 1, 1)
            await g.idle()

    uvloop.run(main())


def test_one_model_on_engines_of_both_kinds() -> None:
    """A4: who speaks the client's API gets the client's bytes; a retry on the other kind is translated."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": False, "odd": [1, 2]}
    spoken = b'{"model":"m","message":{"role":"assistant","content":"own"},"done":true,"eval_count":1}'

    async def main() -> None:
        completion = answering(json_answer(json.dumps(COMPLETION).encode()))
        async with Engine(answering(json_answer(spoken))) as own, Engine(completion) as other:
            backends = [
                cfg.Backend(name="own", url=own.url, engine="ollama", slots=1, models=["m"]),
                cfg.Backend(name="other", url=other.url, engine="vllm", slots=1, models=["m"]),
            ]
            async with gateway("", backends=backends) as g:
                await both(g, own, other)

    async def both(g: Gateway, own: Engine, other: Engine) -> None:
        held = [await g.connect() for _ in range(2)]
        for client in held:
            await client.send(g.request(NATIVE, body))
        answers = sorted([json.loads((await client.answer())[2])["message"]["content"] for client in held])
        assert answers == ["hi", "own"]
        assert (await asked(own))[1]["odd"] == [1, 2]
        assert (await asked(other))[0] == "/v1/chat/completions"

    uvloop.run(main())


def test_a_retry_on_an_engine_of_the_other_kind_is_translated() -> None:
    """R5: the body is made anew for each engine that is tried."""

    async def main() -> None:
        async with (
            Engine(answering(json_answer(json.dumps(COMPLETION).encode()))) as other,
            contextlib.AsyncExitStack() as life,
        ):
            own = await life.enter_async_context(Engine(plain))
            backends = [
                cfg.Backend(name="own", url=own.url, engine="ollama", slots=9, models=["m"]),
                cfg.Backend(name="other", url=other.url, engine="openai", slots=1, models=["m"]),
            ]
            async with gateway("", backends=backends) as g:
                await life.aclose()
                _, _, body = await g.ask(NATIVE, chat(stream=False))
                assert json.loads(body)["message"]["content"] == "hi"
                assert own.chats.empty()
                assert g.app.backends.stats()[0].failures["connect"] == 1

    uvloop.run(main())


def test_embeddings_are_translated_and_metered() -> None:
    """A4, U1"""
    vectors = {"model": "m", "data": [{"index": 0, "embedding": [0.5, 1]}], "usage": {"prompt_tokens": 7}}

    async def main() -> None:
        script = answering(json_answer(json.dumps(vectors).encode()))
        async with Engine(script) as engine, gateway(engine.url, "llamacpp") as g:
            _, _, body = await g.ask("/api/embed", {"model": "m", "input": "x"})
            assert json.loads(body)["embeddings"] == [[0.5, 1]]
            assert await asked(engine) == ("/v1/embeddings", {"model": "m", "input": "x"})
            _, _, body = await g.ask("/api/embeddings", {"model": "m", "prompt": "x"})
            assert json.loads(body) == {"embedding": [0.5, 1]}
            assert [row["prompt_tokens"] for row in await g.records(2)] == [7, 7]

    uvloop.run(main())


def test_an_answer_too_deep_to_be_read_is_an_error_of_the_engine() -> None:
    """A5: not a request that never ends."""
    body = b'{"data":[{"embedding":%b%b}]}' % (b"[" * 50_000, b"]" * 50_000)

    async def main() -> None:
        async with Engine(answering(json_answer(body))) as engine, gateway(engine.url, "openai") as g:
            assert (await g.ask("/api/embed", {"model": "m", "input": "x"}))[0] == 502
            await g.idle()

    uvloop.run(main())


def test_what_cannot_be_said_in_the_engines_words_costs_nothing() -> None:
    """A4: a 400 in the client's shape, no request of the engine, and the slot goes back unused."""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url, "openai", slots=1) as g:
            status, _, body = await g.ask("/api/generate", {"model": "m", "prompt": "x", "raw": True})
            assert (status, json.loads(body)["code"]) == (400, "invalid_request")
            assert engine.chats.empty()
            await g.idle()

    uvloop.run(main())


def test_a_client_of_http_1_0_gets_lines_until_the_end() -> None:
    async def main() -> None:
        async with Engine(streamed(frame("a"), USAGE_FRAME, DONE)) as engine, gateway(engine.url, "openai") as g:
            client = await g.connect()
            await client.send(g.request(NATIVE, chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0"))
            text = await asyncio.wait_for(client.reader.read(), WAIT)
            head, _, body = text.partition(b"\r\n\r\n")
            assert b"chunked" not in head.lower()
            assert [json.loads(line)["done"] for line in body.splitlines()] == [False, True]

    uvloop.run(main())
