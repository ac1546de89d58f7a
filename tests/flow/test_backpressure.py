"""A backend that sends as fast as it can and clients that do not keep up: what the gateway holds stays bounded (H5)."""

import asyncio
import gc
import os
import resource
import socket
from pathlib import Path

import pytest

from gateway import config as cfg
from gateway.store.limits import Limits
from tests.flow.engine import SSE_HEAD, Engine, chunk, frame, stream
from tests.flow.run import run
from tests.gateway import Gateway, chat
from tests.wire import WAIT, Client

CHAT = "/v1/chat/completions"
BUFFER = 64 * 1024
READ = 256 * 1024  # uvloop reads at most this much at once
BLOCK = chunk(frame("x" * 1000)) * 60
MIB = 1 << 20
SMALL = 16 * 1024  # of the system's own buffers, which are not what is measured


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Flood:
    """An engine that writes whenever it may, up to `most` bytes a stream, and counts them."""

    def __init__(self, most: int, kernel: int) -> None:
        self.most = most
        self.kernel = kernel  # bytes the system may buffer for it
        self.sent = 0
        self.streams = 0

    async def answer(
        self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.streams += 1
        writer.transport.set_write_buffer_limits(high=BUFFER)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.kernel)
        writer.write(SSE_HEAD)
        sent = 0
        while sent < self.most:
            writer.write(BLOCK)
            sent += len(BLOCK)
            self.sent += len(BLOCK)
            await writer.drain()
        writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def held(g: Gateway) -> list[int]:
    """Bytes that wait in the gateway for each client."""
    return [c.transport.get_write_buffer_size() for c in g.app.server.connections if c.call is not None]


async def stalled(g: Gateway, flood: Flood, count: int) -> None:
    """Until every stream's client is full and the engine could not send for a while."""
    async with asyncio.timeout(60):
        while len(held(g)) < count or any(c.writable for c in g.app.server.connections if c.call is not None):
            await asyncio.sleep(0.01)
        sent = -1
        while sent != flood.sent:
            sent = flood.sent
            await asyncio.sleep(0.05)


def test_the_memory_for_a_slow_reader_does_not_grow_with_the_engines_speed() -> None:
    """H5: 1 GB offered, read at a fixed pace; never more than the buffer and one read is held."""
    flood = Flood(1 << 30, MIB)
    most, taken = 0, 0

    async def test(g: Gateway, _: Engine) -> None:
        nonlocal most, taken
        client = await g.connect()
        await client.send(g.request(CHAT, chat(stream=True)))
        await stalled(g, flood, 1)
        before = rss()
        while taken < 64 * MIB:
            taken += len(await asyncio.wait_for(client.reader.read(BUFFER), WAIT))
            most = max([most, *held(g)])
        assert 0 < most <= BUFFER + READ
        assert rss() - before < 16 * MIB
        assert flood.sent - taken < 32 * MIB  # the rest is in the kernel's buffers of four sockets
        client.reset()

    run(flood.answer, test, caps=cfg.Caps(buffer_bytes=BUFFER))


STREAMS = 100


def test_many_stalled_streams_stay_within_their_bounds_and_others_are_served() -> None:
    """H5, H4: 100 clients that do not read at all; then their timer ends them and all is given back."""
    flood = Flood(1 << 30, SMALL)

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (stream if b"quick" in body else flood.answer)(head, body, reader, writer)

    async def test(g: Gateway, _: Engine) -> None:
        gc.collect()
        before = rss()
        await asyncio.gather(*(stalling(g) for _ in range(STREAMS)))
        await stalled(g, flood, STREAMS)
        assert max(held(g)) <= BUFFER + READ
        assert sum(held(g)) == g.app.server.stats().buffered <= STREAMS * (BUFFER + READ)
        assert rss() - before < STREAMS * MIB  # engine and clients live in this process too
        key = await g.add_key(user="quick", limits=Limits(concurrent=1))
        status, _, body = await g.ask(CHAT, chat(stream=True, user="quick"), key=key)
        assert status == 200
        assert body.endswith(b"data: [DONE]\n\n")
        loop = asyncio.get_running_loop()
        g.app.server.now = lambda: loop.time() + 61
        g.app.server.sweep()
        g.app.server.now = loop.time
        await g.idle()
        assert {record["outcome"] for record in await g.records(STREAMS + 1)} == {"client_gone", "done"}
        assert not g.app.pools["engine"].connections or g.app.pools["engine"].stats().idle == 1

    run(answer, test, slots=STREAMS + 10, caps=cfg.Caps(buffer_bytes=BUFFER, connections_per_key=STREAMS))


async def stalling(g: Gateway) -> Client:
    """A client whose receive window stays shut."""
    client = await g.connect()
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    await client.send(g.request(CHAT, chat(stream=True)))
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    return client


@pytest.fixture(autouse=True)
def _descriptors() -> None:
    """Four sockets a stream, all in this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
