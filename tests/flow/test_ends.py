"""Ends that are nobody's wish: a gateway that is stopped, streams that break off, engines that do not end theirs."""

import asyncio
import time
from typing import Any

import pytest

from gateway import config as cfg
from gateway.http1.chunks import LAST_CHUNK
from gateway.http1.client import AFTER_END
from gateway.http1.server import CUT
from gateway.store.limits import Limits
from tests.flow.engine import (
    DONE,
    PLAIN,
    SSE_HEAD,
    START,
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
from tests.flow.run import run
from tests.gateway import Gateway, chat
from tests.wire import WAIT, Client

CHAT = "/v1/chat/completions"


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


def never_ending(*wires: bytes) -> Answer:
    """An engine that sends these, and leaves its body open."""
    send = answering(*wires)

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await send(head, body, reader, writer)
        await hang(head, body, reader, writer)

    return answer


NDJSON_HEAD = SSE_HEAD.replace(b"text/event-stream", b"application/x-ndjson")
LINE = b'{"model":"m","message":{"role":"assistant","content":"a"},"done":false}\n'
SAID = b"The gateway is shutting down."
STREAMS: dict[str, tuple[str, cfg.EngineKind, bytes, bytes]] = {
    "openai": (CHAT, "openai", SSE_HEAD + chunk(frame("a")), frame("a")),
    "anthropic": ("/v1/messages", "ollama", SSE_HEAD + chunk(START), START),
    "translated": ("/v1/messages", "openai", SSE_HEAD + chunk(frame("a")), b'"text":"a"}}\n\n'),
    "ollama": ("/api/chat", "ollama", NDJSON_HEAD + chunk(LINE), LINE),
}
"""Dialect -> path, engine, what that sends, and the end of what the client gets of it."""


async def asked(g: Gateway, path: str = CHAT, seen: bytes = b"", version: str = "1.1", **more: Any) -> Client:
    """A client of a stream that has got its answer up to `seen`."""
    client = await g.connect()
    request = g.request(path, chat(**({"stream": True, "max_tokens": 9} | more)))
    await client.send(request.replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
    if seen:
        await client.head()
        async with asyncio.timeout(WAIT):
            client.seen = await client.reader.readuntil(seen)
    return client


async def interrupted(g: Gateway, count: int = 1) -> None:
    rows = await g.records(count)
    assert {(row["status"], row["outcome"], row["error"]) for row in rows} == {(503, "interrupted", "draining")}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("dialect", STREAMS)
def test_the_end_of_the_gateway_is_told_in_a_stream(dialect: str, version: str) -> None:
    """H13, A5: between two frames, in the dialect's own words, and the body ends as its framing wants."""
    path, kind, sent, seen = STREAMS[dialect]

    async def test(g: Gateway, engine: Engine) -> None:
        client = await asked(g, path, seen, version)
        g.app.server.close()
        rest = await client.rest()
        assert SAID in rest
        assert rest.endswith(b"\r\n0\r\n\r\n") == (version == "1.1")
        await interrupted(g)
        await g.app.server.ended()
        assert not g.app.server.connections

    run(never_ending(sent), test, engine=kind)


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/api/chat"])
@pytest.mark.parametrize("stream", [True, False])
def test_who_has_nothing_yet_is_told_of_the_end_of_the_gateway(path: str, stream: bool) -> None:
    """H13, A10: `503 draining`, which says to try again."""

    async def test(g: Gateway, engine: Engine) -> None:
        client = await asked(g, path, stream=stream)
        await asyncio.wait_for(engine.chats.get(), WAIT)
        g.app.server.close()
        status, fields, body = await client.answer()
        assert (status, fields["connection"]) == (503, "close")
        assert "retry-after" in fields
        assert SAID in body
        assert await client.rest() == b""
        await interrupted(g)

    run(hang, test)


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
@pytest.mark.parametrize("answer", [hang, never_ending(SSE_HEAD)], ids=["nothing", "a head"])
def test_who_has_comments_is_told_of_the_end_of_the_gateway(answer: Answer, path: str) -> None:
    """H13, A11: in a frame, as the status is out."""

    async def test(g: Gateway, engine: Engine) -> None:
        client = await asked(g, path, b": keep-alive\n\n\r\n")
        g.app.server.close()
        rest = await client.rest()
        assert SAID in rest
        assert rest.endswith(b"\r\n0\r\n\r\n")
        await interrupted(g)

    run(answer, test, timeouts=cfg.Timeouts(comment=0.02))


def test_an_answer_that_takes_no_word_more_is_cut() -> None:
    """H13: within a frame, and in a plain answer, no byte may follow; the client sees that the end is missing."""
    long = b"data: " + b"x" * 70_000
    plain = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(PLAIN)

    async def test(g: Gateway, engine: Engine) -> None:
        clients = [await asked(g, seen=b"xxx")]
        engine.answer = never_ending(plain)
        clients.append(await asked(g, seen=PLAIN, stream=False))
        g.app.server.close()
        for client in clients:
            rest = await client.rest()
            assert SAID not in rest
            assert not rest.endswith(b"0\r\n\r\n")
        await interrupted(g, 2)

    run(never_ending(SSE_HEAD + chunk(long)), test)


def test_a_client_that_does_not_read_holds_no_end_up() -> None:
    """H13, H4: neither one whose window is closed nor one that leaves its last word unread."""

    async def flood(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD)
        while True:
            writer.write(chunk(frame("x" * 9000)))
            await writer.drain()

    async def test(g: Gateway, engine: Engine) -> None:
        client = await asked(g)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(WAIT):
            while not any(not each.writable for each in g.app.server.connections):
                await asyncio.sleep(0)
        g.app.server.close()
        async with asyncio.timeout(CUT / 2):
            await g.app.server.ended()
        assert not g.app.server.connections
        await interrupted(g)

    run(flood, test)


def test_a_stream_with_its_own_end_is_whole_when_the_gateway_ends() -> None:
    """H13, R4: the engine has left its body open; nothing of the answer is missing."""

    async def test(g: Gateway, engine: Engine) -> None:
        client = await asked(g, seen=DONE)
        g.app.server.close()
        assert await client.rest() == b"\r\n0\r\n\r\n"
        await interrupted(g)

    run(never_ending(SSE_HEAD, chunk(frame("a")), chunk(DONE)), test)


@pytest.mark.parametrize(("stream", "tokens"), [(False, 500), (True, 0)])
def test_what_a_plain_answer_may_have_had_is_not_free_in_fair_use(stream: bool, tokens: int) -> None:
    """scheduler.md 5.3: nothing is seen of it before its end, so whoever leaves early pays for the time it took."""

    async def test(g: Gateway, engine: Engine) -> None:
        g.app.limits.pace.observe("m", 0, 10**12, 1.0)  # an engine that has made any number of tokens by now
        client = await g.connect()
        await client.send(g.request(CHAT, chat(stream=stream, max_tokens=500)))
        await asyncio.wait_for(engine.chats.get(), WAIT)
        client.close()
        (row,) = await g.records(1)
        assert (row["outcome"], row["completion_tokens"]) == ("client_gone", 0)
        (party,) = g.app.scheduler.stats().parties
        weight = g.app.estimator.settings.output_weight
        assert party.usage == pytest.approx(row["prompt_tokens"] + weight * tokens, abs=2)

    run(hang, test)


def test_a_stream_that_breaks_off_counts_for_the_record_what_it_counts_for_limits() -> None:
    """A7, L2: the frames that came, and the prompt by estimate; what breaks before a frame counts nothing."""

    async def test(g: Gateway, engine: Engine) -> None:
        key = await g.add_key(limits=Limits(tokens_per_day=10_000))
        assert (await g.ask(CHAT, chat(stream=True), key=key))[0] == 200
        engine.answer = cut(SSE_HEAD)
        (party,) = g.app.scheduler.stats().parties
        assert (await g.ask(CHAT, chat(stream=True), key=key))[0] == 502
        assert 0.0 < g.app.scheduler.stats().parties[0].usage <= party.usage
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


@pytest.mark.parametrize("path", [CHAT, "/api/chat", "/v1/messages"])
@pytest.mark.parametrize("how", UNENDED)
def test_an_engine_that_dies_behind_its_own_end_has_answered(how: str, path: str) -> None:
    """R6, A5: nothing of the answer is missing, so no client is told of a failure, and no engine is ejected for one."""

    async def test(g: Gateway, engine: Engine) -> None:
        status, _, body = await g.ask(path, chat(stream=True, max_tokens=9))
        assert status == 200
        assert b"error" not in body
        if path == CHAT:
            assert body == frame("a") + DONE
        (row,) = await g.records(1)
        assert (row["outcome"], row["error"], row["prompt_tokens"], row["completion_tokens"]) == ("done", "", 7, 3)
        assert not g.app.pools["engine"].connections

    run(cut(*UNENDED[how]), test)


LAST = b'{"model":"m","message":{"content":""},"done":true,"prompt_eval_count":7,"eval_count":3,"context":[1,2'


def test_an_engine_that_dies_in_its_last_line_has_not_answered() -> None:
    """A5: what is there of the line has the counts already, and is no line that a client could read."""

    async def test(g: Gateway, engine: Engine) -> None:
        status, _, body = await g.ask("/api/chat", chat(stream=True))
        assert status == 200
        assert body.startswith(LINE + b'{"error":')
        (row,) = await g.records(1)
        assert (row["outcome"], row["error"]) == ("upstream_failed", "upstream_broke")

    run(cut(NDJSON_HEAD, chunk(LINE), chunk(LAST)), test, engine="ollama")


def test_an_engine_that_rests_in_its_last_line_is_waited_for() -> None:
    """R4: the look for ends that are only left out takes no half line for the last one."""
    go_on = asyncio.Event()

    async def resting(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(NDJSON_HEAD, chunk(LINE), chunk(LAST))(head, body, reader, writer)
        await go_on.wait()
        await answering(chunk(b"]}\n"), LAST_CHUNK)(head, body, reader, writer)

    async def test(g: Gateway, engine: Engine) -> None:
        client = await asked(g, "/api/chat", seen=LINE)
        pool = g.app.pools["engine"]
        (upstream,) = pool.connections
        async with asyncio.timeout(WAIT):
            while upstream.bytes_in < len(chunk(LINE) + chunk(LAST)):
                await asyncio.sleep(0)
        pool.sweep(pool.now() + 2 * AFTER_END)
        go_on.set()
        async with asyncio.timeout(WAIT):
            assert b'"context":[1,2]}\n' in await client.reader.readuntil(LAST_CHUNK)
        (row,) = await g.records(1)
        assert (row["outcome"], row["completion_tokens"]) == ("done", 3)

    run(resting, test, engine="ollama")


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
