"""An answer that comes in pieces, each a read of its own: its head, its chunks, and its time on the test's clock."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from gateway.errors import UpstreamTimeout
from gateway.http1.client import UpstreamConnection
from gateway.http1.facts import Address
from gateway.http1.pool import Pool
from tests.http1.test_client import OK, Body, exchange, run, send, wait
from tests.wire import WAIT, Backend, read_request


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


Piece = Callable[[bytes], Coroutine[Any, Any, float]]
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def in_pieces(test: Callable[[UpstreamConnection, Body, Clock, Piece], Coroutine[Any, Any, None]]) -> None:
    """An answer in chunks whose head has come; `test` gives each piece of its body, which is a read of its own."""
    clock, pieces, reads = Clock(), asyncio.Queue[bytes](), asyncio.Queue[float]()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(CHUNKED)
        while True:
            writer.write(await pieces.get())

    async def piece(data: bytes) -> float:
        pieces.put_nowait(data)
        async with asyncio.timeout(WAIT):
            return await reads.get()

    async with Backend(script) as backend:
        pool = Pool(Address("127.0.0.1", backend.port), idle_expiry=4.0, rest=0.0)
        pool.now = clock
        connection = await pool.dial(WAIT)
        await wait(send(connection))
        body = connection.sink = Body()
        connection.gaps = reads.put_nowait
        await test(connection, body, clock, piece)
        pool.close()


def test_each_read_of_a_body_puts_the_end_of_its_time_off() -> None:
    """R4: an engine may take `between` for each part; the seconds between two reads are told as they come."""

    async def test(connection: UpstreamConnection, body: Body, clock: Clock, piece: Piece) -> None:
        for _ in range(3):
            clock.time += 9.0
            assert await piece(b"2\r\nhi\r\n") == pytest.approx(9.0)
            connection.pool.sweep(clock.time)
        assert (body.parts, body.error) == ([b"2\r\nhi\r\n"] * 3, None)
        connection.pool.sweep(clock.time + 9.9)
        assert body.error is None
        connection.pool.sweep(clock.time + 10.0)
        assert isinstance(body.error, UpstreamTimeout)

    uvloop.run(in_pieces(test))


def test_a_size_line_that_a_read_cuts_reaches_the_sink_whole() -> None:
    """It may be the last one, which is told from the others by its first bytes."""

    async def test(connection: UpstreamConnection, body: Body, clock: Clock, piece: Piece) -> None:
        for data in (b"2\r\nhi\r\n", b"0", b"2\r\nhi\r\n0", b"\r\n", b"\r\n"):
            await piece(data)
        assert body.ended.is_set()
        assert body.parts == [b"2\r\nhi\r\n", b"02\r\nhi\r\n", b"0\r\n", b"\r\n"]

    uvloop.run(in_pieces(test))


def test_a_head_that_comes_in_pieces_is_read_whole_and_leaves_nothing_to_the_next() -> None:
    rest = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        writer.write(OK[:20])
        await rest.wait()
        writer.write(OK[20:])
        await read_request(reader)
        writer.write(OK)
        await reader.read()

    async def test(pool: Pool, backend: Backend) -> None:
        connection = await pool.dial(WAIT)
        await exchange(connection)
        assert pool.take() is connection
        got = send(connection)
        async with asyncio.timeout(WAIT):
            while connection.reused:  # until it answers
                await asyncio.sleep(0)
        assert not got.is_set
        rest.set()
        assert await exchange(connection, got) == (200, b"ok", None)
        assert pool.take() is connection
        assert await exchange(connection) == (200, b"ok", None)

    run(script, test)


def test_a_head_in_pieces_is_not_read_anew_with_each() -> None:
    """H5: an engine's longest head, a byte a read, would hold the loop for a minute."""
    many = b"".join(b"X-%d: %b\r\n" % (number, b"v" * 400) for number in range(60))

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def test(pool: Pool, backend: Backend) -> None:
        connection = await pool.dial(WAIT)
        answered = asyncio.ensure_future(exchange(connection))
        await asyncio.sleep(0)
        began = time.process_time()
        for byte in OK.replace(b"\r\n", b"\r\n" + many, 1):
            connection.data_received(bytes([byte]))
        assert time.process_time() - began < 3  # 0.1, and 13 where all is read anew
        assert await answered == (200, b"ok", None)

    run(script, test)
