"""The client side over real sockets: keep-alive, pipelining, caps, timers (on a clock the test owns) and drain."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from gateway.config import Caps, Timeouts
from gateway.errors import ClientGone, RequestTimeout
from gateway.http1.eager import Signal
from gateway.http1.server import Connection, HttpServer, Phase
from gateway.http1.wire import WireError
from tests.wire import WAIT, Client

HOST = b"Host: gateway\r\n"


class Echo:
    """Answers with method, path and body; remembers what happened."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.changed = asyncio.Event()
        self.gate: Signal[None] | None = None

    def note(self, event: str) -> None:
        self.events.append(event)
        self.changed.set()

    async def until(self, event: str) -> None:
        async with asyncio.timeout(WAIT):
            while event not in self.events:
                self.changed.clear()
                await self.changed.wait()

    async def request(self, connection: Connection) -> None:
        try:
            head = connection.head
            assert head is not None
            if head.path == "/wait":
                self.note("waiting")
                self.gate = Signal()
                await self.gate
            body = await connection.body()
            if head.path == "/flood":
                connection.begin(200, b"", framing=b"Content-Length: 100000000\r\n", first=b"x" * 10_000_000)
                self.gate = Signal()
                await self.gate
            connection.respond(200, b"", f"{head.method} {head.path} ".encode() + body)
        except WireError as error:
            connection.respond(error.status, b"", error.reason.encode())
        except RequestTimeout:
            connection.respond(408, b"", b"slow body")
        except ClientGone:
            self.note("gone")

    def malformed(self, connection: Connection, error: WireError) -> None:
        self.note(f"malformed {error.status}")
        connection.keep = False
        connection.respond(error.status, b"", error.reason.encode())


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def run(
    test: Callable[[HttpServer, Echo, int, Clock], Coroutine[Any, Any, None]],
    caps: Caps | None = None,
    timeouts: Timeouts | None = None,
) -> None:
    async def main() -> None:
        echo, clock = Echo(), Clock()
        server = HttpServer(echo, caps or Caps(), timeouts or Timeouts())
        server.now = clock
        port = await server.listen("127.0.0.1", 0)
        try:
            await test(server, echo, port, clock)
        finally:
            await Client.close_all()
            server.close()

    uvloop.run(main())


def test_keep_alive_serves_many_requests_in_order() -> None:
    """H1"""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        for n in range(3):
            await client.send(b"POST /%d HTTP/1.1\r\n%bContent-Length: 1\r\n\r\n%d" % (n, HOST, n))
            status, fields, body = await client.answer()
            assert (status, body) == (200, b"POST /%d %d" % (n, n))
            assert "connection" not in fields
        assert server.stats().accepted == 1

    run(test)


@pytest.mark.parametrize("sizes", [1, 7, 10_000])
def test_pipelined_requests_are_answered_one_by_one(sizes: int) -> None:
    """H1: also when the bytes come in pieces, and an error in the middle ends the connection after what came before."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        wire = b"".join(
            [
                b"POST /1 HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc",
                b"HEAD /2 HTTP/1.1\r\n" + HOST + b"\r\n",
                b"POST /3 HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
                b"GET /4 HTTP/1.1\r\nBad : field\r\n\r\n",
                b"GET /5 HTTP/1.1\r\n" + HOST + b"\r\n",
            ]
        )
        for at in range(0, len(wire), sizes):
            await client.send(wire[at : at + sizes])
        assert (await client.answer())[2] == b"POST /1 abc"
        status, fields, _ = await client.answer(head_only=True)
        assert (status, fields["content-length"]) == (200, "8")
        assert (await client.answer())[2] == b"POST /3 hi"
        assert (await client.answer())[0] == 400
        assert await client.at_end()

    run(test)


def test_a_burst_of_pipelined_requests_does_not_grow_the_stack() -> None:
    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        await client.send(b"GET / HTTP/1.1\r\n%b\r\n" % HOST * 3000)
        for _ in range(3000):
            assert (await client.answer())[0] == 200

    run(test)


def test_expect_continue_is_answered_when_the_body_is_wanted() -> None:
    """H1"""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        await client.send(b"POST / HTTP/1.1\r\n%bExpect: 100-continue\r\nContent-Length: 2\r\n\r\n" % HOST)
        assert await client.head() == (100, {})
        await client.send(b"ok")
        assert (await client.answer())[2] == b"POST / ok"

    run(test)


def test_http_1_0_closes_unless_asked_to_keep() -> None:
    """H1"""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await client.answer())[1]["connection"] == "keep-alive"
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await client.answer())[1]["connection"] == "close"
        assert await client.at_end()

    run(test)


def test_a_body_too_large_is_refused_and_the_answer_survives() -> None:
    """H3: 413 before the body is buffered; the client that goes on sending still reads its answer."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        await client.send(b"POST / HTTP/1.1\r\n%bContent-Length: 999999\r\n\r\n" % HOST + b"x" * 100_000)
        status, fields, _ = await client.answer()
        assert (status, fields["connection"]) == (413, "close")
        assert await client.at_end()

    run(test, Caps(body_bytes=1024))


def test_connections_over_a_cap_get_503() -> None:
    """H3"""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        first = await Client.connect(port)
        await first.send(b"GET / HTTP/1.1\r\n%b\r\n" % HOST)
        await first.answer()
        second = await Client.connect(port)
        assert (await second.answer())[0] == 503
        assert await second.at_end()
        first.close()
        async with asyncio.timeout(WAIT):
            while server.connections:
                await asyncio.sleep(0)
        third = await Client.connect(port)
        await third.send(b"GET / HTTP/1.1\r\n%b\r\n" % HOST)
        assert (await third.answer())[0] == 200

    run(test, Caps(connections_per_ip=1))


def test_a_client_that_leaves_interrupts_its_request_at_once() -> None:
    """H6"""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        for leave in (Client.close, Client.reset):
            echo.events.clear()
            client = await Client.connect(port)
            await client.send(b"GET /wait HTTP/1.1\r\n%b\r\n" % HOST)
            await echo.until("waiting")
            leave(client)
            await echo.until("gone")
        assert not server.connections

    run(test)


async def _phase(server: HttpServer, phase: Phase) -> None:
    """Wait until the server's only connection is in `phase`."""
    async with asyncio.timeout(WAIT):
        while [c.phase for c in server.connections] != [phase]:
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("sent", "phase", "after", "status"),
    [
        (b"", Phase.IDLE, 10.0, None),
        (b"GET / HT", Phase.HEAD, 10.0, 408),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nab", Phase.BODY, 15.0, 408),
        (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", Phase.IDLE, 75.0, None),
    ],
    ids=["nothing", "half a head", "half a body", "keep-alive"],
)
def test_timers_end_what_stalls(sent: bytes, phase: Phase, after: float, status: int | None) -> None:
    """H4: with a status where one can still be sent."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        await client.send(sent)
        if phase is Phase.IDLE and sent:
            await client.answer()
        await _phase(server, phase)
        clock.time += after - 0.1
        server.sweep()
        assert server.stats().timed_out == 0
        clock.time += 0.2
        server.sweep()
        if status is not None:
            assert (await client.answer())[0] == status
        assert await client.at_end()
        assert server.stats().timed_out == 1

    run(test)


def test_a_body_that_trickles_meets_the_total_timer() -> None:
    """H4: 60 s in all although no pause is longer than 15 s."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        await client.send(b"POST / HTTP/1.1\r\n%bContent-Length: 100\r\n\r\n" % HOST)
        await _phase(server, Phase.BODY)
        (connection,) = server.connections
        for n in range(1, 7):
            clock.time += 10
            await client.send(b"x")
            async with asyncio.timeout(WAIT):
                while connection.reader.body_received < n:
                    await asyncio.sleep(0)
            server.sweep()
        assert (await client.answer())[0] == 408

    run(test)


def test_a_client_that_does_not_read_is_cut() -> None:
    """H4, H5: the buffer stays bounded by what the handler wrote at once, and the slow-reader timer ends it."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        await client.send(b"GET /flood HTTP/1.1\r\n%b\r\n" % HOST)
        async with asyncio.timeout(WAIT):
            while not server.connections or next(iter(server.connections)).writable:
                await asyncio.sleep(0)
        clock.time += 61
        server.sweep()
        await echo.until("gone")

    run(test)


def test_drain_finishes_what_runs_and_closes_what_idles() -> None:
    """H13"""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        busy, idle = await Client.connect(port), await Client.connect(port)
        await idle.send(b"GET / HTTP/1.1\r\n%b\r\n" % HOST)
        await idle.answer()
        await busy.send(b"GET /wait HTTP/1.1\r\n%b\r\n" % HOST)
        await echo.until("waiting")
        drained = asyncio.create_task(server.drain(WAIT))
        assert await idle.at_end()
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await Client.connect(port)
        assert echo.gate is not None
        echo.gate.set(None)
        status, fields, _ = await busy.answer()
        assert (status, fields["connection"]) == (200, "close")
        assert await drained

    run(test)
