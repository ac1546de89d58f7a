"""What one faulty engine, or one caller who provokes it, must not do to all others."""

import asyncio
import gzip
import json

import msgspec
import pytest
import uvloop

from gateway import config as cfg
from gateway.api.usage import MOST
from gateway.store.limits import Limits
from tests.flow.engine import (
    DONE,
    PLAIN,
    SSE_HEAD,
    Answer,
    Engine,
    chunk,
    deaf_port,
    frame,
    json_answer,
    plain,
    start_and_hang,
)
from tests.gateway import Gateway, chat, gateway
from tests.wire import WAIT

CHAT = "/v1/chat/completions"
FAR_OFF = cfg.Discovery(interval=3600.0)  # nothing is found out but by requests
TOOL_CALL = b'data: {"error":{"message":"invalid tool call arguments"}}\n\n'


def reporting(tokens: int) -> Answer:
    usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 1}
    body = json.dumps({"object": "chat.completion", "choices": [], "usage": usage}).encode()

    async def answer(head: bytes, body_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(body))

    return answer


@pytest.mark.parametrize(
    ("reported", "kept"), [(2**64 - 1, MOST), (2**65, MOST), (2**63, MOST), (MOST, MOST), (-(10**9), 0)]
)
def test_absurd_counts_neither_stop_the_trail_nor_give_budgets_back(reported: int, kept: int) -> None:
    """U1, U2, L2"""

    async def main() -> None:
        async with Engine(reporting(reported)) as engine, gateway(engine.url) as g:
            limited = await g.add_key(user="limited", limits=Limits(tokens_per_day=1 << 40))
            assert (await g.ask(CHAT, chat(), key=limited))[0] == 200
            engine.answer = plain
            _, fields, _ = await g.ask(CHAT, chat(), key=limited)
            assert int(fields["x-ratelimit-remaining-tokens"]) <= (1 << 40) - 7 - kept
            rows = await g.records(2)
            assert [row["completion_tokens"] for row in rows] == [kept, 3]

    uvloop.run(main())


def test_an_engine_that_takes_no_connection_in_time_is_late() -> None:
    """R4, R5: 504 in dialect, unless another backend takes the request."""

    async def main() -> None:
        async with Engine(plain) as engine:
            backends = [cfg.Backend(name=name, url=engine.url, engine="openai", slots=4) for name in ("late", "good")]
            settings = {"upstream": cfg.Upstream(connect=0.05), "discovery": FAR_OFF, "backends": backends}
            async with gateway("", **settings) as g:
                for name, expected in (("late", (200, "done", "")), ("good", (504, "timed_out", "upstream_timeout"))):
                    pool = g.app.pools[name]
                    pool.close()
                    pool.address = msgspec.structs.replace(pool.address, port=deaf_port())
                    status, _, body = await g.ask(CHAT, chat())
                    assert json.loads(body).get("error", {}).get("code", "") == expected[2]
                    row = (await g.records(2 if name == "good" else 1))[-1]
                    assert (row["status"], row["outcome"], row["error"]) == (status, *expected[1:])
                    assert status == expected[0]
                assert [stats.failures["connect"] for stats in g.app.backends.stats()] == [2, 1]

    uvloop.run(main())


def test_a_retry_goes_to_another_backend() -> None:
    """R5: an idle backend that is gone is as free as an idle one that lives."""

    async def main() -> None:
        async with Engine(plain) as good:
            async with Engine(plain) as dead:
                urls = {"dead": dead.url, "worse": dead.url, "good": good.url}
                backends = [cfg.Backend(name=name, url=url, engine="openai", slots=4) for name, url in urls.items()]
                running = gateway("", backends=backends, discovery=FAR_OFF)
                g = await running.__aenter__()
            try:
                assert (await g.ask(CHAT, chat()))[0] == 200
                (row,) = await g.records(1)
                assert row["backend"] == "good"
                assert good.chats.qsize() == 1
                failures = {stats.name: stats.failures["connect"] for stats in g.app.backends.stats()}
                assert failures == {"dead": 1, "worse": 1, "good": 0}
            finally:
                await running.__aexit__(None, None, None)

    uvloop.run(main())


def test_failures_that_an_engine_tells_in_its_streams_do_not_eject_it() -> None:
    """R5, N-5: what a caller can provoke (a tool call cut by the output cap, say) must not close a model for all."""

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(frame("a")))
        await writer.drain()
        await engine.go.wait()
        writer.write(chunk(TOOL_CALL) + b"0\r\n\r\n")

    async def main() -> None:
        async with engine, gateway(engine.url, slots=8) as g:
            clients = [await g.connect() for _ in range(6)]
            for client in clients:
                await client.send(g.request(CHAT, chat(stream=True)))
                await client.head()
            engine.go.set()
            rows = await g.records(len(clients))
            assert {row["outcome"] for row in rows} == {"upstream_failed"}
            assert [stats.state for stats in g.app.backends.stats()] == ["closed"]

    engine = Engine(answer)
    uvloop.run(main())


def test_a_stream_that_goes_on_keeps_no_probe_from_an_ejected_engine() -> None:
    """R2: the engine failed some, and was well again while it streamed to somebody for long."""

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if json.loads(body).get("stream"):
            await start_and_hang(head, body, reader, writer)
        elif not engine.go.is_set():
            raise ConnectionError
        await plain(head, body, reader, writer)

    async def main() -> None:
        trial = cfg.Discovery(interval=0.1, eject_after=1, eject_for=0.1)
        async with engine, gateway(engine.url, slots=2, discovery=trial) as g:
            client = await g.connect()
            await client.send(g.request(CHAT, chat(stream=True)))
            await client.head()
            assert (await g.ask(CHAT, chat()))[0] == 502
            engine.go.set()
            assert (await g.ask(CHAT, chat()))[0] == 200
            assert len(g.busy()) == 1, "the stream goes on"

    engine = Engine(answer)
    uvloop.run(main())


async def _slow_key(g: Gateway) -> asyncio.Event:
    """The next key that is verified waits for the event: its requests stand before `authenticate`."""
    read, may = g.app.keys._reader.read, asyncio.Event()

    async def slowly(key_id: str) -> object:
        await may.wait()
        return await read(key_id)

    g.app.keys._reader.read = slowly  # type: ignore[assignment,method-assign]
    return may


@pytest.mark.parametrize("size", [1000, 150_000])
def test_a_client_that_leaves_is_noticed_however_long_its_body_was(size: int) -> None:
    """H6: reading had paused while the key was verified."""

    async def hang(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not await reader.read(1):
            raise ConnectionError

    async def main() -> None:
        async with Engine(hang) as engine, gateway(engine.url) as g:
            may = await _slow_key(g)
            client = await g.connect()
            await client.send(g.request(CHAT, chat(messages=[{"role": "user", "content": "x" * size}])))
            async with asyncio.timeout(WAIT):
                while not (busy := g.busy()) or busy[0].transport.is_reading():
                    await asyncio.sleep(0)
                may.set()
                await engine.chats.get()
                client.reset()
                await engine.aborted.get()

    uvloop.run(main())


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
def test_a_compressed_answer_reaches_nobody(streamed: bool) -> None:
    """A5, A7, H8: without its Content-Encoding no client could read it, and its tokens would count for nobody."""

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"Accept-Encoding: identity\r\n" in head
        packed = gzip.compress(frame("a") + DONE if streamed else PLAIN)
        media = b"text/event-stream" if streamed else b"application/json"
        fields = b"Content-Type: %b\r\nContent-Encoding: gzip\r\nContent-Length: %d" % (media, len(packed))
        writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (fields, packed))

    async def main() -> None:
        async with Engine(answer) as engine, gateway(engine.url) as g:
            status, _, body = await g.ask(CHAT, chat(stream=streamed))
            assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_broke")
            (row,) = await g.records(1)
            assert (row["status"], row["outcome"]) == (502, "upstream_failed")

    uvloop.run(main())
