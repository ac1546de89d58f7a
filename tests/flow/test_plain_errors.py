"""An engine that fails and says so under a status of success, in an answer that is no stream (A5, H8)."""

import asyncio
import json
from collections.abc import Iterator

import pytest
import uvloop

from gateway import config as cfg
from tests.flow.engine import PLAIN, USAGE, Answer, Engine, chunk
from tests.gateway import chat, gateway

JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SAYS = "CUDA failed at 10.0.0.5:/srv/x.cu"
ERRORS = {
    "openai": ("/v1/chat/completions", {"error": {"message": SAYS, "code": 500}}),
    "ollama": ("/api/chat", {"error": SAYS}),
    "anthropic": ("/v1/messages", {"type": "error", "error": {"type": "api_error", "message": SAYS}}),
}
FRAMINGS = ("length", "chunks", "end of connection")


def wires(body: bytes, framing: str, size: int) -> Iterator[bytes]:
    """The answer in pieces of `size` bytes of its body."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    if framing == "length":
        yield JSON_HEAD + b"Content-Length: %d\r\n\r\n" % len(body)
    elif framing == "chunks":
        yield JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
        parts = [*map(chunk, parts), b"0\r\n\r\n"]
    else:
        yield JSON_HEAD + b"\r\n"
    yield from parts


def saying(body: bytes, framing: str, size: int) -> Answer:
    async def answer(_: bytes, __: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for wire in wires(body, framing, size):
            writer.write(wire)
            await writer.drain()
            await asyncio.sleep(0)
        if framing == "end of connection":
            raise ConnectionError

    return answer


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream asked"])
@pytest.mark.parametrize("size", [1000, 3], ids=["at once", "torn"])
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("dialect", ERRORS)
def test_an_error_is_no_success_whatever_its_status(dialect: str, framing: str, size: int, streamed: bool) -> None:
    """A5, H8, U1: a status of failure, our words in the caller's dialect, and a row that says so; the engine lives."""
    path, error = ERRORS[dialect]

    async def main() -> None:
        answer = saying(json.dumps(error, indent=1).encode(), framing, size)
        trial = cfg.Discovery(interval=3600.0, eject_after=1)
        async with Engine(answer) as engine, gateway(engine.url, "ollama", discovery=trial) as g:
            status, _, body = await g.ask(path, chat(stream=streamed, max_tokens=5))
            assert status == 502
            assert b"10.0.0.5" not in body
            assert json.loads(body).keys() >= error.keys()
            assert b"reported an error as its answer" in body
            (row,) = await g.records(1)
            assert (row["status"], row["outcome"], row["error"]) == (502, "upstream_failed", "upstream_broke")
            assert [stats.state for stats in g.app.backends.stats()] == ["closed"]
            await g.idle()

    uvloop.run(main())


@pytest.mark.parametrize("size", [1000, 3], ids=["at once", "torn"])
@pytest.mark.parametrize("dialect", ["ollama", "anthropic"])
def test_an_error_that_would_have_to_be_translated_is_told_the_same(dialect: str, size: int) -> None:
    """A4, A5, R5: who asks in another API's words ejects the engine no sooner."""
    path, error = ERRORS[dialect]

    async def main() -> None:
        answer = saying(json.dumps(ERRORS["openai"][1]).encode(), "chunks", size)
        trial = cfg.Discovery(interval=3600.0, eject_after=1)
        async with Engine(answer) as engine, gateway(engine.url, discovery=trial) as g:
            status, _, body = await g.ask(path, chat(stream=False, max_tokens=5))
            assert (status, b"reported an error as its answer" in body) == (502, True)
            assert json.loads(body).keys() >= error.keys()
            assert [stats.state for stats in g.app.backends.stats()] == ["closed"]
            await g.idle()

    uvloop.run(main())


@pytest.mark.parametrize("size", [1000, 3], ids=["at once", "torn"])
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize(
    "body",
    [
        PLAIN,
        json.dumps({"error": None, "choices": [], "usage": USAGE}).encode(),
        json.dumps({"choices": [{"text": '{"error":"no"}'}], "usage": USAGE}).encode(),
        json.dumps({"choices": [{"text": "x" * 300}], "usage": USAGE}).encode(),
        b'{"error":"","usage":%b}' % json.dumps(USAGE).encode(),
    ],
    ids=["an answer", "none", "a text", "a long one", "an empty one"],
)
def test_an_answer_that_is_no_error_keeps_its_bytes_and_counts(body: bytes, framing: str, size: int) -> None:
    """A4, A7"""

    async def main() -> None:
        async with Engine(saying(body, framing, size)) as engine, gateway(engine.url) as g:
            status, _, got = await g.ask("/v1/chat/completions", chat())
            assert (status, got) == (200, body)
            (row,) = await g.records(1)
            assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) == ("done", 7, 3)

    uvloop.run(main())
