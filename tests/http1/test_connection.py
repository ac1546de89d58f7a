"""What a handler does with its connection, and what is behind its request: over real sockets, on the test's clock."""

import asyncio

import pytest

from gateway.errors import ClientGone, Interrupted
from gateway.http1.connection import BEHIND_REFUSAL, LONG_READ, PIPELINE_BYTES, Connection
from gateway.http1.eager import Signal
from gateway.http1.server import HttpServer
from tests.http1.test_server import HOST, Clock, Echo, run
from tests.wire import WAIT, Client

WAITING = b"GET /wait HTTP/1.1\r\n%b\r\n" % HOST
A_READ = 256_000  # bytes; the most that uvloop takes at once
NEXT = b"GET /next HTTP/1.1\r\n%b\r\n" % HOST


class Own(Echo):
    """Answers in its own way what is not for `Echo`."""

    async def request(self, connection: Connection) -> None:
        assert connection.head is not None
        path = connection.head.path
        if path == "/until-the-end":
            connection.begin(200, b"", framing=b"", first=b"all")
        elif path == "/nothing":
            connection.begin(204, b"", framing=b"")
        elif path == "/broken":
            connection.begin(200, b"", framing=b"Content-Length: 5\r\n", first=b"x")
            connection.abort()
        elif path == "/long":
            await self.long(connection)
        elif path == "/refused":
            await self.refused(connection)
        else:
            await super().request(connection)

    async def long(self, connection: Connection) -> None:
        """Waits before it asks for the body, and for ever behind that."""
        self.gate = Signal()
        self.note("waiting")
        await self.gate
        self.note(f"{len(await connection.body())} bytes")
        self.gate = Signal()
        try:
            await self.gate
        except ClientGone:
            self.note("gone")
        except Interrupted:
            self.note("interrupted")

    async def refused(self, connection: Connection) -> None:
        """Answers late, and asks for no body."""
        connection.hold_nothing()
        self.gate = Signal()
        self.note("waiting")
        await self.gate
        connection.respond(401, b"", b"no")


def open_gate(echo: Echo) -> None:
    assert echo.gate is not None
    echo.gate.set(None)


def test_a_request_behind_one_that_waited_is_answered_too() -> None:
    """H1: also when no more bytes come."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        await client.send(WAITING + NEXT)
        await echo.until("waiting")
        open_gate(echo)
        assert (await client.answer())[2] == b"GET /wait "
        assert (await client.answer())[2] == b"GET /next "

    run(test)


def test_a_burst_of_requests_lets_those_of_others_come_between() -> None:
    """H1: a read may bring thousands, of a stranger too."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        busy, other = await Client.connect(port), await Client.connect(port)
        await busy.send(NEXT * 3000)
        await other.send(NEXT)
        assert (await other.answer())[0] == 200
        assert server.requests < 300
        for _ in range(3000):
            assert (await busy.answer())[0] == 200

    run(test)


@pytest.mark.parametrize("body", [b"", b"abc"], ids=["without a body", "with a body"])
def test_requests_sent_ahead_are_bounded_however_many_are_answered(body: bytes) -> None:
    """H5: an answer lets no read in that brings more than it took."""

    class Slow(Echo):
        most = 0

        async def request(self, connection: Connection) -> None:
            await asyncio.sleep(0)
            await super().request(connection)
            self.most = max(self.most, connection.reader.buffered)

    slow = Slow()

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        request = b"POST /ahead HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (HOST, len(body)) + body
        client.writer.write(request * 60_000)
        for _ in range(300):
            assert (await client.answer())[2] == b"POST /ahead " + body
        assert slow.most < PIPELINE_BYTES + 2 * A_READ

    run(test, handler=slow)


def test_between_two_long_reads_of_a_body_others_have_their_turn() -> None:
    """H1: uvloop alone would read 8 MB in one turn of the loop, which in chunks of one byte take seconds."""
    turns, reads = [0], list[tuple[int, int]]()

    class Counting(Echo):
        async def request(self, connection: Connection) -> None:
            def room(here: int) -> bool:
                reads.append((turns[0], here))
                return True

            connection.respond(200, b"", b"%d" % len(await connection.body(room)))

    async def count() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        counting = asyncio.ensure_future(count())
        client = await Client.connect(port)
        body = b"b" * 9_000_000
        client.writer.write(b"POST / HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (HOST, len(body)) + body)
        assert (await client.answer())[2] == b"9000000"
        counting.cancel()

    run(test, handler=Counting())
    long = [turn for (turn, here), (_, before) in zip(reads[1:], reads, strict=False) if here - before >= LONG_READ]
    assert long
    assert len(long) == len(set(long))


def test_an_answer_without_framing_ends_with_its_connection_and_a_204_does_not() -> None:
    """H1: RFC 9112 section 6.3, RFC 9110 section 15.3.5."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        await client.send(NEXT.replace(b"/next", b"/nothing"))
        assert (await client.answer())[0] == 204
        await client.send(NEXT.replace(b"/next", b"/until-the-end"))
        status, fields, body = await client.answer()
        assert (status, fields["connection"], body) == (200, "close", b"all")

    run(test, handler=Own())


def test_behind_an_answer_that_was_cut_nothing_is_begun() -> None:
    """H8: its client cannot tell another answer from the rest of this one."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        await client.send(NEXT.replace(b"/next", b"/broken") + NEXT)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.answer()
        async with asyncio.timeout(WAIT):
            while server.connections:
                await asyncio.sleep(0)
        assert server.requests == 1

    run(test, handler=Own())


def test_a_client_is_heard_again_once_its_long_body_was_asked_for() -> None:
    """H6: reading had paused behind that body, which was there to its end."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        body = b"b" * (PIPELINE_BYTES + 1)  # no part of it pauses the reading
        client = await Client.connect(port)
        await client.send(b"POST /long HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (HOST, len(body)))
        await echo.until("waiting")
        await client.send(body)
        (connection,) = server.connections
        async with asyncio.timeout(WAIT):
            while not connection.reader.complete:
                await asyncio.sleep(0)
        assert not connection.transport.is_reading()
        open_gate(echo)
        await echo.until(f"{len(body)} bytes")
        client.close()
        await echo.until("gone")

    run(test, handler=Own())


REFUSED = b"POST /refused HTTP/1.1\r\n%b" % HOST
BODY = b"b" * 50_000


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: %d\r\n\r\n" % len(BODY), BODY),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
    ],
    ids=["length", "chunks"],
)
def test_who_waits_for_a_refusal_is_read_and_nothing_is_held(framing: bytes, body: bytes) -> None:
    """H3, H1: the connection goes on behind the body, wherever that was cut."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        await client.send(REFUSED + framing + body[:20_000])
        await echo.until("waiting")
        (connection,) = server.connections
        await client.send(body[20_000:] + NEXT)
        async with asyncio.timeout(WAIT):
            while not connection.reader.complete or not connection.reader.buffered:
                assert connection.reader.buffered == 0
                await asyncio.sleep(0)
        assert connection.reader.buffered == len(NEXT)
        open_gate(echo)
        status, fields, _ = await client.answer()
        assert (status, "connection" in fields) == (401, False)
        assert (await client.answer())[2] == b"GET /next "

    run(test, handler=Own())


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
def test_a_connection_with_much_behind_a_refusal_ends_with_it(at_once: bool) -> None:
    """H3: its client gets the answer, though it goes on sending."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        more = NEXT * (BEHIND_REFUSAL // len(NEXT) + 1)
        await client.send(REFUSED + b"\r\n" + (more if at_once else b""))
        await echo.until("waiting")
        (connection,) = server.connections
        await client.send(more)
        async with asyncio.timeout(WAIT):
            while not connection.reader.dead:
                await asyncio.sleep(0)
        assert connection.reader.buffered == 0
        client.writer.write(more * 100)
        open_gate(echo)
        status, fields, _ = await client.answer()
        assert (status, fields["connection"]) == (401, "close")
        assert await client.at_end()
        assert server.requests == 1

    run(test, handler=Own())


def test_a_connection_that_is_cut_ends_for_its_client_and_its_request() -> None:
    """H13: the request has settled when the call returns."""

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        await client.send(NEXT.replace(b"/next", b"/long"))
        await echo.until("waiting")
        open_gate(echo)
        (connection,) = server.connections
        connection.cut()
        assert echo.events == ["waiting", "0 bytes", "interrupted"]
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.head()

    run(test, handler=Own())


def test_who_asks_to_be_called_when_it_is_quiet_is_called_once() -> None:
    """A11: until it asks again."""
    calls: list[float] = []

    async def test(server: HttpServer, echo: Echo, port: int, clock: Clock) -> None:
        client = await Client.connect(port)
        await client.send(WAITING)
        await echo.until("waiting")
        (connection,) = server.connections
        connection.quiet_at, connection.quiet_call, connection.quiet_arg = clock.time + 5, calls.append, 7.0
        for _ in range(3):
            clock.time += 4
            server.sweep()
        assert calls == [7.0]

    run(test)
