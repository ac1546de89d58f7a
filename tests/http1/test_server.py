"""The client side over real sockets: keep-alive, pipelining, caps, timers (on a clock the test owns) and drain."""

import asyncio
import select
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from gateway.config import Caps, Timeouts
from gateway.errors import ClientGone, RequestTimeout
from gateway.http1.connection import Connection, Phase
from gateway.http1.eager import Signal
from gateway.http1.server import HttpServer
from gateway.http1.wire import WireError
from tests.wire import WAIT, Client

HOST = b"Host: gateway\r\n"
LARGE = 16_000_000  # bytes; more than the kernel takes for a client that does not read


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
            large = b"x" * LARGE if head.path == "/large" else b""
            connection.respond(200, b"", f"{head.method} {head.path} ".encode() + body + large)
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

    def crowded(self, connection: Connection) -> None:
        connection.respond(503, b"", b"crowded")


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def run(
    test: Callable[[HttpServer, Echo, int, Clock], Coroutine[Any, Any, None]],
    caps: Caps | None = None,
    timeouts: Timeouts | None = None,
    handler: Echo | None = None,
) -> None:
    async def main() -> None:
        echo, clock = handler or Echo(), Clock()
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


def test_an_answer_goes_out_when_its_handler_has_ended() -> None:
    """U2: what a handler writes down of a request is there before the client sees the answer, whatever ends us then."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        seen: list[bool] = []

        class Late(Echo):
            async def request(self, connection: Connection) -> None:
                await super().request(connection)
                seen.append(readable())

            def malformed(self, connection: Connection, error: WireError) -> None:
                super().malformed(connection, error)
                seen.append(readable())

        def readable() -> bool:
            return bool(select.select([client], [], [], 0)[0])

        server = HttpServer(Late(), Caps(), Timeouts())
        port = await server.listen("127.0.0.1", 0)
        client = socket.create_connection(("127.0.0.1", port))
        client.setblocking(False)
        try:
            for request in (b"GET /1 HTTP/1.1\r\n%b\r\n" % HOST, b"GET /2 HTTP/1.1\r\nBad : field\r\n\r\n"):
                await loop.sock_sendall(client, request)
                async with asyncio.timeout(WAIT):
                    assert (await loop.sock_recv(client, 65536)).startswith(b"HTTP/1.1 ")
        finally:
            client.close()
            server.close()
        assert seen == [False, False]

    uvloop.run(main())


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


def test_a_body_that_nobody_asked_for_yet_is_left_with_the_client() -> None:
    """H3: a request whose key is still being verified holds little memory, whatever length it announced."""
    sent = b"b" * 9_000_000

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        await client.send(b"POST /wait HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (HOST, len(sent)))
        await echo.until("waiting")
        (connection,) = server.connections
        sending = asyncio.create_task(client.send(sent))
        async with asyncio.timeout(WAIT):
            while connection.transport.is_reading():
                await asyncio.sleep(0)
        assert connection.reader.buffered < 1_000_000
        assert echo.gate is not None
        echo.gate.set(None)
        status, _, body = await client.answer()
        assert (status, body) == (200, b"POST /wait " + sent)
        await sending

    run(test)


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


def test_drain_waits_for_what_the_queue_let_in_behind_the_last_connection() -> None:
    """H13: where another process takes over the port, the queue of this one is emptied first."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        last = await Client.connect(port)
        await last.send(b"GET / HTTP/1.1\r\n%b\r\n" % HOST)
        await last.answer()
        (listener,) = server._listeners
        close_after_queue = listener.close_after_queue

        async def empty_meanwhile() -> None:
            last.close()
            async with asyncio.timeout(WAIT):
                while server.connections:
                    await asyncio.sleep(0)
            late = await Client.connect(port)
            await late.send(b"GET /wait HTTP/1.1\r\n%b\r\n" % HOST)
            await echo.until("waiting")
            await close_after_queue()

        listener.close_after_queue = empty_meanwhile  # type: ignore[method-assign]
        drained = asyncio.create_task(server.drain(WAIT))
        await echo.until("waiting")
        for _ in range(20):
            await asyncio.sleep(0)
        assert not drained.done()
        assert echo.gate is not None
        echo.gate.set(None)
        assert await drained

    run(test)


ASK = b"GET /large HTTP/1.1\r\n%b\r\n" % HOST


async def stalled(server: HttpServer, port: int, wire: bytes) -> tuple[Client, Connection]:
    """A client that has asked and does not read, and its connection once bytes wait for it."""
    client = await Client.connect(port)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    client.writer.write(wire)
    async with asyncio.timeout(WAIT):
        while not server.stats().buffered:
            await asyncio.sleep(0)
    (connection,) = server.connections
    return client, connection


def taking(client: Client) -> None:
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]


def pass_time(server: HttpServer, clock: Clock, seconds: float) -> None:
    clock.time += seconds
    server.sweep()


def test_answers_to_a_client_that_does_not_read_are_not_piled_up() -> None:
    """H5: pipelined requests wait until the answers before them have gone."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client, _ = await stalled(server, port, ASK * 5)
        for _ in range(5):
            await client.send(ASK)
            await asyncio.sleep(0.001)
        assert server.stats().buffered < 2 * LARGE
        assert server.requests <= 2
        taking(client)
        for _ in range(10):
            _, _, body = await client.answer()
            assert len(body) > LARGE
        assert server.requests == 10

    run(test)


def test_a_body_sent_behind_an_answer_that_is_not_taken_is_read_later() -> None:
    """H5: reading stops while requests wait, and goes on with them."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        body = b"b" * 2_000_000
        client, connection = await stalled(server, port, ASK)
        client.writer.write(b"POST /b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (HOST, len(body)) + body)
        async with asyncio.timeout(WAIT):
            while connection.transport.is_reading():
                await asyncio.sleep(0)
        assert connection.reader.buffered < 1_000_000
        taking(client)
        assert len((await client.answer())[2]) > LARGE
        assert (await client.answer())[2] == b"POST /b " + body

    run(test)


def test_a_client_that_does_not_read_gets_no_more_time_by_asking_again() -> None:
    """H4"""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client, _ = await stalled(server, port, ASK)
        for _ in range(3):
            pass_time(server, clock, 19)
            await client.send(ASK)
            await asyncio.sleep(0.001)
        assert server.stats().open == 1
        pass_time(server, clock, 4)
        async with asyncio.timeout(WAIT):
            while server.connections:
                await asyncio.sleep(0)

    run(test)


@pytest.mark.parametrize("closing", [False, True])
def test_a_client_that_reads_slowly_gets_its_answer_whole(closing: bool) -> None:
    """H4: an answer that is written in one piece ends for who takes nothing, not for who takes it bit by bit."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client, connection = await stalled(server, port, ASK.replace(HOST, HOST + b"Connection: close\r\n" * closing))
        assert (connection.phase is Phase.LINGER) is closing
        pass_time(server, clock, 16)
        read = 0
        while server.stats().buffered > 2_000_000:
            before = server.stats().buffered
            taking(client)
            while server.stats().buffered > before - 1_000_000:
                read += len(await client.reader.read(1 << 16))
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            pass_time(server, clock, 50)
        assert clock.time > 180
        assert server.connections == {connection}
        pass_time(server, clock, 61)
        pass_time(server, clock, 61)
        async with asyncio.timeout(WAIT):
            while server.connections:
                await asyncio.sleep(0)
        assert 0 < read < LARGE

    run(test)


def test_a_client_that_was_slow_still_idles_out() -> None:
    """H4: the timer of the reader leaves that of the next request in place."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client, _ = await stalled(server, port, ASK)
        taking(client)
        await client.answer()
        async with asyncio.timeout(WAIT):
            while server.stats().buffered:
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        pass_time(server, clock, 76)
        assert await client.at_end()

    run(test)


def test_an_idle_connection_with_an_answer_that_is_not_taken_ends() -> None:
    """H4: closing waits for what is written, but not for ever; the cap is above what waits, so nothing was paused."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        await stalled(server, port, ASK)
        pass_time(server, clock, 76)
        await asyncio.sleep(0)
        assert server.connections
        pass_time(server, clock, 61)
        async with asyncio.timeout(WAIT):
            while server.connections:
                await asyncio.sleep(0)

    run(test, caps=Caps(buffer_bytes=2 * LARGE))


def test_the_last_answer_of_a_connection_may_be_taken_slowly() -> None:
    """H4: what is written is not cut by the short time for a peer that goes on sending."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client, connection = await stalled(server, port, ASK.replace(HOST, HOST + b"Connection: close\r\n"))
        assert connection.phase is Phase.LINGER
        pass_time(server, clock, 30)
        taking(client)
        assert len((await client.answer())[2]) > LARGE
        assert await client.at_end()

    run(test, caps=Caps(buffer_bytes=2 * LARGE))


POST = b"POST /b HTTP/1.1\r\n%bContent-Length: 5\r\n\r\n" % HOST
HALF_CLOSED = {
    "nothing": (b"", []),
    "an empty line": (b"\r\n", []),
    "half a head": (b"GET / HTTP/1.1\r\nHo", []),
    "half a body": (POST + b"ab", ["gone"]),
    "half a chunk": (POST.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"5\r\nab", ["gone"]),
    "a request that waits": (b"GET /wait HTTP/1.1\r\n%b\r\n" % HOST, ["waiting", "gone"]),
    "one that waits and another": (b"GET /wait HTTP/1.1\r\n%b\r\n" % HOST + ASK, ["waiting", "gone"]),
}


@pytest.mark.parametrize("how", ["half-close", "close", "reset"])
@pytest.mark.parametrize("case", HALF_CLOSED)
def test_a_client_that_leaves_or_stops_sending_is_gone(case: str, how: str) -> None:
    """H1, H4: nothing is answered, nothing behind it is begun, and the connection is given back."""
    wire, events = HALF_CLOSED[case]

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        await client.send(wire)
        async with asyncio.timeout(WAIT):
            while not server.connections or (events and not any(c.call for c in server.connections)):
                await asyncio.sleep(0)
        {"half-close": client.writer.write_eof, "close": client.close, "reset": client.reset}[how]()
        async with asyncio.timeout(WAIT):
            while server.connections:
                await asyncio.sleep(0)
        assert echo.events == events
        assert server.requests == bool(events)
        if how == "half-close":
            assert await client.rest() == b""

    run(test)


def test_an_opening_that_is_interrupted_by_a_cut_ends() -> None:
    """H13: of who stood in the queue at the drain, the first is being let in and others wait when it is cut short."""

    async def main() -> None:
        drains: list[asyncio.Task[bool]] = []

        def cut(peer: str) -> bool:
            """Called as a connection is made: uvloop then closes it and does not say so."""
            return drains[0].cancel()

        server = HttpServer(Echo(), Caps(connections_per_ip=0), Timeouts(), cut)
        port = await server.listen("127.0.0.1", 0, reuse_port=True, alone=False)

        async def drain() -> bool:
            clients.extend(socket.create_connection(("127.0.0.1", port)) for _ in range(2))  # nobody accepts them yet
            return await server.drain(WAIT)

        clients: list[socket.socket] = []
        drains.append(asyncio.create_task(drain()))
        with pytest.raises(asyncio.CancelledError):
            await drains[0]
        assert server.accepted == 1
        assert not server.connections
        for client in clients:
            client.settimeout(WAIT)
            assert await asyncio.to_thread(client.recv, 1) == b""
            client.close()
        server.close()

    uvloop.run(main())
