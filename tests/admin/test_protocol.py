"""The admin listener's connections: what says nothing, asks slowly or does not read makes room in time."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gateway.admin.app import serve_admin
from gateway.admin.protocol import CONNECTIONS, AdminProtocol
from tests.wire import WAIT

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
ASK = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
SOON = 0.05
"""Seconds in place of the real bounds, where a test waits for one."""


class Listener:
    def __init__(self, port: int) -> None:
        self.port = port
        self.go = asyncio.Event()  # until then `/late` answers nobody
        self.begun = asyncio.Semaphore(0)
        self._open: list[Connection] = []

    async def connect(self) -> Connection:
        self._open.append(await asyncio.open_connection("127.0.0.1", self.port))
        return self._open[-1]

    async def ask(self, wire: bytes = ASK) -> bytes:
        """The first line of the answer on a new connection."""
        reader, writer = await self.connect()
        writer.write(wire)
        return await asyncio.wait_for(reader.readline(), WAIT)

    def close(self) -> None:
        for _, writer in self._open:
            writer.transport.abort()


@asynccontextmanager
async def listening() -> AsyncIterator[Listener]:
    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def late(request: Request) -> Response:
        listener.begun.release()
        await listener.go.wait()
        return PlainTextResponse("at last\n")

    async def large(request: Request) -> Response:
        return PlainTextResponse("x" * 50_000_000)

    routes = [Route("/healthz", healthz), Route("/late", late), Route("/large", large)]
    admin = await serve_admin("127.0.0.1:0", Starlette(routes=routes))
    listener = Listener(admin.port)
    try:
        yield listener
    finally:
        listener.go.set()
        listener.close()
        await admin.close()


def run(test: Callable[[Listener], Awaitable[None]]) -> None:
    async def main() -> None:
        async with listening() as listener:
            await test(listener)

    uvloop.run(main())


@pytest.mark.parametrize("said", [b"", b"GET /healthz HT"], ids=["nothing", "half a head"])
def test_connections_that_ask_nothing_keep_nobody_out(said: bytes) -> None:
    """H4: the one that has asked nothing for longest leaves, and no other."""

    async def test(listener: Listener) -> None:
        silent = [await listener.connect() for _ in range(CONNECTIONS)]
        for _, writer in silent:
            writer.write(said)
        for _ in range(5):
            assert await listener.ask() == b"HTTP/1.1 200 OK\r\n"
        assert await asyncio.wait_for(silent[0][0].read(), WAIT) == b""
        reader, writer = silent[-1]
        writer.write(ASK.removeprefix(said))
        assert await asyncio.wait_for(reader.readline(), WAIT) == b"HTTP/1.1 200 OK\r\n"

    run(test)


def test_where_all_are_answered_a_new_request_is_told_so() -> None:
    """H4: what runs goes on."""

    async def test(listener: Listener) -> None:
        asked = [asyncio.ensure_future(listener.ask(b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n")) for _ in range(63)]
        for _ in asked:
            await asyncio.wait_for(listener.begun.acquire(), WAIT)
        assert (await listener.ask()).startswith(b"HTTP/1.1 503 ")
        await listener.connect()
        listener.go.set()
        assert set(await asyncio.gather(*asked)) == {b"HTTP/1.1 200 OK\r\n"}
        assert await listener.ask() == b"HTTP/1.1 200 OK\r\n", "as soon as one is done"

    run(test)


@pytest.mark.parametrize("before", [b"", ASK], ids=["first", "kept"])
@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.1\r\nHost:"], ids=["nothing", "half a head"])
def test_a_head_has_a_time_to_come(before: bytes, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """H3: from the connection, or from the answer before."""
    monkeypatch.setattr(AdminProtocol, "head_seconds", SOON)

    async def test(listener: Listener) -> None:
        reader, writer = await listener.connect()
        writer.write(before + said)
        got = b""
        try:
            while data := await asyncio.wait_for(reader.read(4096), WAIT):
                got += data
        except ConnectionResetError:
            pass
        assert got.count(b"HTTP/1.1 200 OK") == len(before) // len(ASK)

    run(test)


def test_an_answer_has_a_time_to_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """H4: it is given up, and its memory with it."""
    monkeypatch.setattr(AdminProtocol, "answer_seconds", SOON)

    async def test(listener: Listener) -> None:
        lost = asyncio.Event()
        ends = AdminProtocol.connection_lost
        monkeypatch.setattr(AdminProtocol, "connection_lost", lambda door, exc: (ends(door, exc), lost.set()))
        loop = asyncio.get_running_loop()
        with socket.create_connection(("127.0.0.1", listener.port)) as deaf:
            deaf.setblocking(False)
            await loop.sock_sendall(deaf, b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            await asyncio.wait_for(lost.wait(), WAIT)

    run(test)


def test_requests_one_after_the_other_have_their_time_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers may take longer than heads; pipelined requests are answered too."""
    monkeypatch.setattr(AdminProtocol, "head_seconds", SOON)

    async def test(listener: Listener) -> None:
        reader, writer = await listener.connect()
        writer.write(b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n" + ASK * 2)
        await asyncio.wait_for(listener.begun.acquire(), WAIT)
        await asyncio.sleep(2 * SOON)  # what is tested: it passes a bound that does not hold here
        listener.go.set()
        got = await asyncio.wait_for(reader.read(-1), WAIT)
        assert got.count(b"HTTP/1.1 200 OK") == 3

    run(test)
