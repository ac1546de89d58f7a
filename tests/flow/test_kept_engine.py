"""What a kept connection to an engine remembers of one answer (its head, its framing) changes nothing for the next.

Answers of many kinds, sound and broken, follow each other at random. Each client must see what it sees where nothing
went before, and an answer that breaks the rules must be met by nobody else.
"""

import asyncio
import json
import os
import random
import re
from typing import Any

import pytest
import uvloop

from gateway import config as cfg
from tests.flow.engine import DONE, PLAIN, SSE_HEAD, Engine, chunk, frame, json_answer
from tests.gateway import Gateway, chat, gateway
from tests.wire import WAIT, Client

SEED = int(os.environ.get("FAIRGATE_TEST_SEED") or random.SystemRandom().randrange(2**32))
STEPS = 200
CHAT = "/v1/chat/completions"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
STREAM = frame("a") + frame("b") + DONE
ERROR = b'data: {"error": {"message": "out of memory"}}\n\n'
LOADING = b'{"error": "loading model"}'
VARYING_FIELDS = re.compile("date|content-length|retry-after.*|x-fairgate-(queue|overhead)-ms|x-request-id")
VARYING_TEXT = re.compile(r"\b[0-9a-f]{12}-\d+\b")

ANSWERS: dict[str, bytes] = {
    "plain": json_answer(PLAIN),
    "other fields": json_answer(PLAIN).replace(b"Content-Type", b"X-Other: 1\r\ncontent-type"),
    "chunked": CHUNKED + chunk(PLAIN) + END,
    "chunks": CHUNKED + b"".join(chunk(PLAIN[at : at + 9]) for at in range(0, len(PLAIN), 9)) + END,
    "trailers": CHUNKED + chunk(PLAIN) + b"0\r\nX: y\r\nConnection: close\r\n\r\n",
    "interim": b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + json_answer(PLAIN),
    "text": json_answer(PLAIN).replace(b"application/json", b"text/plain"),
    "empty": HEAD + b"Content-Length: 0\r\n\r\n",
    "stream": SSE_HEAD + chunk(frame("a")) + chunk(frame("b")) + chunk(DONE) + END,
    "cut frames": SSE_HEAD + b"".join(chunk(STREAM[at : at + 13]) for at in range(0, len(STREAM), 13)) + END,
    "stream with length": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b"
    % (len(STREAM), STREAM),
    "stream without end": SSE_HEAD + chunk(frame("a")) + END,
    "error in stream": SSE_HEAD + chunk(frame("a")) + chunk(ERROR) + END,
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "204 with fields": b"HTTP/1.1 204 No Content\r\nContent-Type: text/event-stream\r\nContent-Length: 0\r\n\r\n",
    "207": json_answer(PLAIN, "207 Multi-Status"),
    "299": json_answer(PLAIN, "299 Whatever"),
    "error in another stream": SSE_HEAD.replace(b"text/event-stream", b"Text/Event-Stream")
    + chunk(frame("a"))
    + chunk(ERROR)
    + END,
    "404": json_answer(b"{}", "404 Not Found"),
    "429": json_answer(b"{}", "429 Too Many Requests"),
    "500": json_answer(b"{}", "500 Internal Server Error"),
    "503": json_answer(LOADING, "503 Service Unavailable"),
    "closes": HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(PLAIN), PLAIN),
    "behind the end": json_answer(PLAIN) + json_answer(b'{"theirs": true}'),
    "behind the last chunk": CHUNKED + chunk(PLAIN) + END + json_answer(b'{"theirs": true}'),
    "bad head": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "bad chunk": CHUNKED + b"zz\r\n",
    "not HTTP": b"hello\r\n\r\n",
}
ENDS_WITH_CONNECTION: dict[str, bytes] = {
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + PLAIN,
    "stream until close": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + STREAM,
    "too short": HEAD + b"Content-Length: 900\r\n\r\n" + PLAIN,
    "chunk cut": CHUNKED + chunk(PLAIN)[:-5],
    "head cut": HEAD,
    "nothing": b"",
}
KINDS = [*ANSWERS, *ENDS_WITH_CONNECTION]
NEVER_EJECTS = cfg.Discovery(interval=600.0, eject_after=1000)
Seen = tuple[Any, ...]


async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    kind = json.loads(body)["messages"][0]["content"]
    writer.write(ANSWERS.get(kind) or ENDS_WITH_CONNECTION[kind])
    if kind in ENDS_WITH_CONNECTION:
        writer.close()


async def ask(g: Gateway, kind: str) -> Seen:
    """What a client sees that asks for that answer: status, fields and payload, or that it was cut."""
    client = await Client.connect(g.port)
    await client.send(g.request(CHAT, chat(messages=[{"role": "user", "content": kind}], stream="stream" in kind)))
    status, fields = await client.head()
    kept = [item for item in fields.items() if not VARYING_FIELDS.fullmatch(item[0])]
    try:
        payload = b"" if status == 204 else await payload_of(client, fields)
    except asyncio.IncompleteReadError:
        payload = b"cut"
    client.close()
    return status, *map(repr, kept), VARYING_TEXT.sub("ID", payload.decode())


async def payload_of(client: Client, fields: dict[str, str]) -> bytes:
    async with asyncio.timeout(WAIT):
        if "content-length" in fields:
            return await client.reader.readexactly(int(fields["content-length"]))
        return b"".join([part async for part in client.chunks()])


async def fresh(kind: str) -> Seen:
    """The same through a gateway that has seen nothing else."""
    async with Engine(answer) as engine, gateway(engine.url, discovery=NEVER_EJECTS) as g:
        return await ask(g, kind)


def test_answers_of_a_kept_connection_do_not_colour_each_other() -> None:
    """R6; and none of them leaves a slot, a body or a connection behind."""
    print(f"FAIRGATE_TEST_SEED={SEED}")
    draw = random.Random(SEED)

    async def main() -> None:
        alone = {kind: await fresh(kind) for kind in KINDS}
        async with Engine(answer) as engine, gateway(engine.url, slots=1, discovery=NEVER_EJECTS) as g:
            pool = g.app.pools["engine"]
            pool.rest = 0.0  # the next request follows at once
            walk: list[str] = []
            for _ in range(STEPS):
                walk.append(draw.choice(walk[-3:]) if walk and draw.random() < 0.4 else draw.choice(KINDS))
                assert (walk[-1], await ask(g, walk[-1])) == (walk[-1], alone[walk[-1]]), walk
            assert pool.stats().reused > STEPS / 4
            await g.idle()

    uvloop.run(main())


def test_a_media_type_in_capitals_is_the_same_media_type() -> None:
    """RFC 9110 section 8.3.1; H8: an engine's words are held back there too."""

    async def main() -> None:
        _, *_, payload = await fresh("error in another stream")
        assert "upstream_broke" in payload
        assert "out of memory" not in payload

    uvloop.run(main())


@pytest.mark.parametrize("kind", ["204", "204 with fields"])
def test_an_answer_without_a_body_has_no_framing_and_keeps_the_connection(kind: str) -> None:
    """RFC 9112 section 6.1: neither Transfer-Encoding nor Content-Length in a 204."""

    async def main() -> None:
        async with Engine(answer) as engine, gateway(engine.url, discovery=NEVER_EJECTS) as g:
            client = await g.connect()
            for _ in range(2):
                await client.send(g.request(CHAT, chat(messages=[{"role": "user", "content": kind}])))
                status, fields = await client.head()
                assert status == 204
                assert not fields.keys() & {"transfer-encoding", "content-length", "connection"}
            (row, _) = await g.records(2)
            assert (row["status"], row["outcome"]) == (204, "done")

    uvloop.run(main())
