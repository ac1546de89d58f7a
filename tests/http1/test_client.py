"""The backend side over real sockets: reuse, framing, what must never be reused, timers on the test's clock."""

import asyncio
import contextlib
import os
import resource
import select
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from gateway.errors import ConnectFailed, Overloaded, UpstreamBroke, UpstreamError, UpstreamTimeout
from gateway.http1.client import StaleConnection, State, UpstreamConnection
from gateway.http1.eager import Call, Signal
from gateway.http1.facts import Address
from gateway.http1.pool import Pool
from tests.wire import WAIT, Backend, read_request

REQUEST = b"POST /x HTTP/1.1\r\nHost: engine\r\nContent-Length: 2\r\n\r\n"


class Body:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.ended = asyncio.Event()
        self.error: UpstreamError | None = None
        self.came = asyncio.Event()
        self.whole = False  # by its own words

    def data(self, data: bytes) -> None:
        self.parts.append(data)
        self.came.set()

    def last(self, data: bytes) -> None:
        self.parts.append(data)
        self.ended.set()

    def broke(self, error: UpstreamError) -> None:
        self.error = error
        self.ended.set()

    def over(self) -> bool:
        return self.whole


async def wait(signal: "Signal[Any]") -> Any:
    """Await a signal from a Task."""
    future = asyncio.get_running_loop().create_future()

    async def watch() -> None:
        try:
            future.set_result(await signal)
        except UpstreamError as error:
            future.set_exception(error)

    Call(watch(), lambda: None).resume()
    async with asyncio.timeout(WAIT):
        return await future


def send(connection: UpstreamConnection, **timers: float) -> "Signal[Any]":
    options = {"first_byte": 10.0, "between": 10.0, "total": 100.0} | timers
    return connection.send(REQUEST, b"{}", "POST", **options)


async def exchange(
    connection: UpstreamConnection,
    got: "Signal[Any] | None" = None,
    *,
    paused: bool = False,
    body: Body | None = None,
) -> tuple[int, bytes, UpstreamError | None]:
    """One exchange: status, raw body bytes, how it broke. `paused`: its client takes nothing when it begins."""
    body = body or Body()
    got = got or send(connection)
    head: list[Any] = []

    async def own() -> None:
        head.append(await got)
        connection.sink = body
        if paused:
            connection.pause()

    failed: list[BaseException] = []

    async def guarded() -> None:
        try:
            await own()
        except UpstreamError as error:
            failed.append(error)
            body.ended.set()

    Call(guarded(), lambda: None).resume()
    async with asyncio.timeout(WAIT):
        await body.ended.wait()
    if failed:
        raise failed[0]
    connection.release()
    return head[0].status, b"".join(body.parts), body.error


def run(script: Any, test: Callable[[Pool, Backend], Coroutine[Any, Any, None]], rest: float = 0.0) -> None:
    async def main() -> None:
        async with Backend(script) as backend:
            pool = Pool(Address("127.0.0.1", backend.port), idle_expiry=4.0, rest=rest)
            try:
                await test(pool, backend)
            finally:
                pool.close()

    uvloop.run(main())


def answers(*wires: bytes) -> Any:
    """A backend that gives these answers to successive requests of a connection, then closes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for wire in wires:
            await read_request(reader)
            writer.write(wire)
            await writer.drain()

    return script


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"


def test_a_complete_answer_keeps_the_connection_for_the_next() -> None:
    """R6: newest first, and raw bytes pass with their chunk framing."""

    async def test(pool: Pool, backend: Backend) -> None:
        connection = await pool.dial(1.0)
        assert await exchange(connection) == (200, b"ok", None)
        again = pool.take()
        assert again is connection
        assert again.reused
        assert await exchange(again) == (200, b"2\r\nhi\r\n0\r\n\r\n", None)
        assert pool.take() is connection
        assert pool.take() is None
        assert backend.connections == 1

    run(answers(OK, CHUNKS, OK), test)


def test_a_body_without_length_ends_with_the_connection() -> None:
    async def test(pool: Pool, backend: Backend) -> None:
        assert await exchange(await pool.dial(1.0)) == (200, b"until the end", None)
        assert pool.take() is None

    run(answers(b"HTTP/1.1 200 OK\r\n\r\nuntil the end"), test)


def test_informational_heads_are_passed_over() -> None:
    async def test(pool: Pool, backend: Backend) -> None:
        assert await exchange(await pool.dial(1.0)) == (200, b"ok", None)

    run(answers(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK), test)


@pytest.mark.parametrize(("count", "fails"), [(8, False), (9, True)])
def test_informational_heads_are_counted_over_all_reads(count: int, fails: bool) -> None:
    """R4: an engine cannot go on without an answer by saying that it goes on."""

    async def hint_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for _ in range(count):
            writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0)  # a read of its own for each
        writer.write(OK)
        await reader.read()

    async def test(pool: Pool, backend: Backend) -> None:
        connection = await pool.dial(1.0)
        if fails:
            with pytest.raises(UpstreamBroke, match="malformed"):
                await exchange(connection)
        else:
            assert await exchange(connection) == (200, b"ok", None)

    run(hint_on, test)


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        CHUNKS + b"x",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    ],
    ids=["a second head", "garbage after the end", "close announced"],
)
def test_a_connection_with_anything_odd_is_not_used_again(wire: bytes) -> None:
    async def test(pool: Pool, backend: Backend) -> None:
        status, body, error = await exchange(await pool.dial(1.0))
        assert (status, error) == (200, None)
        assert body in (b"ok", b"2\r\nhi\r\n0\r\n\r\n")
        assert pool.take() is None

    run(answers(wire, OK), test)


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhi",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi!\r\n",
    ],
    ids=["short body", "short chunk", "chunk longer than said"],
)
def test_an_answer_that_stops_short_or_breaks_its_framing_fails(wire: bytes) -> None:
    async def test(pool: Pool, backend: Backend) -> None:
        _, _, error = await exchange(await pool.dial(1.0))
        assert isinstance(error, UpstreamBroke)
        assert pool.take() is None

    run(answers(wire), test)


class Crash(Body):
    """A sink with a bug, which shows at the body's first bytes or at its last."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def data(self, data: bytes) -> None:
        if self.at == "data":
            raise RecursionError

    def last(self, data: bytes) -> None:
        raise RecursionError


@pytest.mark.parametrize("at", ["data", "last"])
@pytest.mark.parametrize(
    "wire",
    [
        b"Content-Length: 4\r\n\r\nab",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        b"Connection: close\r\n\r\nab",
    ],
)
def test_a_bug_in_what_reads_an_answer_ends_that_answer_only(
    wire: bytes, at: str, caplog: pytest.LogCaptureFixture
) -> None:
    rest = b"0\r\n\r\n" if b"chunked" in wire else b"cd"

    async def test(pool: Pool, backend: Backend) -> None:
        connection = await pool.dial(1.0)
        body = Crash(at)
        _, _, error = await exchange(connection, body=body)
        assert isinstance(error, UpstreamBroke)
        assert connection.state is State.CLOSED
        assert pool.take() is None
        assert "by a bug" in caplog.text

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n" + wire)
        await writer.drain()
        writer.write(rest)
        if b"close" in wire:
            writer.close()
        await reader.read()

    run(script, test)


@pytest.mark.parametrize(
    "wire",
    [b"HTTP/1.1 200 OK\r\nContent-Le", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 9],
    ids=["half a head", "no HTTP", "endless 1xx"],
)
def test_a_head_that_is_none_fails(wire: bytes) -> None:
    async def test(pool: Pool, backend: Backend) -> None:
        with pytest.raises(UpstreamBroke):
            await exchange(await pool.dial(1.0))

    run(answers(wire), test)


def test_a_kept_connection_that_died_before_answering_is_told_apart() -> None:
    """R5: only this failure may be retried although the request was sent."""

    async def close_on_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)

    async def test(pool: Pool, backend: Backend) -> None:
        await exchange(await pool.dial(1.0))
        kept = pool.take()
        assert kept is not None
        with pytest.raises(StaleConnection):
            await exchange(kept)
        with pytest.raises(UpstreamBroke) as broke:
            await exchange_on_closing(pool)
        assert not isinstance(broke.value, StaleConnection)

    async def exchange_on_closing(pool: Pool) -> None:
        pool.close()
        async with Backend(answers()) as silent:
            other = Pool(Address("127.0.0.1", silent.port), idle_expiry=4.0)
            await exchange(await other.dial(1.0))

    run(close_on_second, test)


def test_no_engine_is_to_blame_for_open_files_that_are_all_in_use() -> None:
    """H3: a breaker that opened for it would turn everybody away."""

    async def test(pool: Pool, backend: Backend) -> None:
        free = os.dup(0)
        os.close(free)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            with pytest.raises(Overloaded):
                await pool.dial(1.0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (await exchange(await pool.dial(1.0)))[0] == 200

    run(answers(OK), test)


@pytest.mark.parametrize("begun", [b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\nHTTP", b"H"])
def test_an_engine_that_had_begun_to_answer_is_not_asked_again(begun: bytes) -> None:
    """R5: an interim answer shows that it has the request, and may be generating."""

    async def hint_on_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        writer.write(begun)
        await writer.drain()

    async def test(pool: Pool, backend: Backend) -> None:
        await exchange(await pool.dial(1.0))
        kept = pool.take()
        assert kept is not None
        with pytest.raises(UpstreamBroke) as broke:
            await exchange(kept)
        assert not isinstance(broke.value, StaleConnection)

    run(hint_on_second, test)


LARGE = b"b" * 16_000_000
"""More than the kernel takes for an engine that does not read."""


def send_large(connection: UpstreamConnection) -> "Signal[Any]":
    head = b"POST /x HTTP/1.1\r\nHost: engine\r\nContent-Length: %d\r\n\r\n" % len(LARGE)
    return connection.send(head, LARGE, "POST", first_byte=10.0, between=10.0, total=100.0)


def test_an_answer_before_the_request_was_read_ends_the_connection() -> None:
    """R6: the rest of that request would stand before the next one."""

    async def answer_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await asyncio.Event().wait()

    async def test(pool: Pool, backend: Backend) -> None:
        connection = await pool.dial(1.0)
        assert await exchange(connection, send_large(connection)) == (200, b"ok", None)
        assert pool.take() is None

    run(answer_early, test)


def test_an_engine_that_stops_talking_before_the_request_was_read_fails_it_at_once() -> None:
    """R4: what is still to be written to it is not waited for."""

    async def half_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write_eof()
        await asyncio.Event().wait()

    async def test(pool: Pool, backend: Backend) -> None:
        connection = await pool.dial(1.0)
        with pytest.raises(UpstreamBroke):
            await exchange(connection, send_large(connection))

    run(half_close, test)


def test_a_long_request_that_an_engine_takes_slowly_is_no_fault() -> None:
    """The loop tells the connection when much is unsent and when it is gone; images make such requests."""
    unsent = asyncio.Event()
    faults: list[dict[str, Any]] = []

    async def take_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await unsent.wait()
        assert (await read_request(reader))[1] == LARGE
        writer.write(OK)
        await reader.read()

    async def test(pool: Pool, backend: Backend) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        connection = await pool.dial(1.0)
        got = send_large(connection)
        assert connection.transport.get_write_buffer_size() > 0
        unsent.set()
        assert await exchange(connection, got) == (200, b"ok", None)

    run(take_late, test)
    assert faults == []


def test_a_connection_that_is_not_read_is_not_used_again() -> None:
    """R6: the client took nothing when the answer came, and the answer came whole."""

    async def test(pool: Pool, backend: Backend) -> None:
        assert await exchange(await pool.dial(1.0), paused=True) == (200, b"ok", None)
        assert pool.take() is None

    run(answers(OK), test)


def test_a_connection_the_engine_closed_while_idle_is_not_taken() -> None:
    """R6"""

    async def test(pool: Pool, backend: Backend) -> None:
        connection = await pool.dial(1.0)
        await exchange(connection)
        await backend.closed.get()
        async with asyncio.timeout(WAIT):
            while connection.state is not State.CLOSED:
                await asyncio.sleep(0)
        assert pool.take() is None
        assert pool.stats().open == 0

    run(answers(OK), test)


def test_idle_connections_expire() -> None:
    async def test(pool: Pool, backend: Backend) -> None:
        connection = await pool.dial(1.0)
        await exchange(connection)
        pool.sweep(connection.idle_since + 3.9)
        assert pool.stats().idle == 1
        pool.sweep(connection.idle_since + 4.1)
        assert pool.stats().idle == 0
        await backend.closed.get()

    run(answers(OK, OK), test)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    await reader.read()


async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def test_no_first_byte_in_time_is_a_timeout() -> None:
    """R4: and the backend sees the connection close."""

    async def test(pool: Pool, backend: Backend) -> None:
        connection = await pool.dial(1.0)
        got = send(connection, first_byte=5.0)
        pool.sweep(pool.now() + 4.0)
        assert not got.is_set
        pool.sweep(pool.now() + 6.0)
        with pytest.raises(UpstreamTimeout):
            await wait(got)
        assert await asyncio.wait_for(backend.closed.get(), WAIT) == 1

    run(mute, test)


@pytest.mark.parametrize(
    ("later", "timers", "what"),
    [(11.0, {}, "go on with its answer"), (101.0, {"between": 1000.0}, "finish within the time")],
    ids=["between", "total"],
)
def test_silence_in_a_stream_and_endless_streams_time_out(later: float, timers: dict[str, float], what: str) -> None:
    """R4"""

    async def test(pool: Pool, backend: Backend) -> None:
        connection = await pool.dial(1.0)
        await wait(send(connection, **timers))
        body = connection.sink = Body()
        pool.sweep(pool.now() + later)
        await body.ended.wait()
        assert isinstance(body.error, UpstreamTimeout)
        assert what in str(body.error)
        assert await asyncio.wait_for(backend.closed.get(), WAIT) == 1

    run(silent, test)


def test_who_gives_a_connection_back_within_an_answer_ends_it_and_hears_no_more_of_it() -> None:
    """H6: the engine sees that nobody listens."""

    async def test(pool: Pool, backend: Backend) -> None:
        connection = await pool.dial(1.0)
        await wait(send(connection))
        body = connection.sink = Body()
        connection.release()
        assert pool.take() is None
        assert await asyncio.wait_for(backend.closed.get(), WAIT) == 1
        assert not body.ended.is_set()

    run(silent, test)


def test_a_body_that_is_whole_by_its_own_words_ends_soon_and_its_connection_with_it() -> None:
    """R6: what its engine may still send is nobody's; one that is not whole is asked once and waited for."""

    async def test(pool: Pool, backend: Backend) -> None:
        connection = await pool.dial(1.0)
        await wait(send(connection))
        body = connection.sink = Body()
        pool.sweep(pool.now() + 1.1)
        assert not body.ended.is_set()
        body.whole = True
        pool.sweep(pool.now() + 1.2)
        assert not body.ended.is_set()
        connection.deadline += 0.001  # as by a read
        pool.sweep(pool.now() + 1.3)
        assert body.ended.is_set()
        assert (body.error, connection.state) == (None, State.CLOSED)
        connection.release()
        assert pool.take() is None
        assert await asyncio.wait_for(backend.closed.get(), WAIT) == 1

    run(silent, test)


@pytest.mark.parametrize("at_head", [False, True])
def test_a_paused_stream_does_not_time_out_on_silence(at_head: bool) -> None:
    """H5: the silence is ours."""

    async def test(pool: Pool, backend: Backend) -> None:
        connection = await pool.dial(1.0)
        got, body = send(connection), Body()

        async def own() -> None:
            await got
            connection.sink = body
            if at_head:  # the first bytes of the body follow in the same call
                connection.pause()

        Call(own(), lambda: None).resume()
        async with asyncio.timeout(WAIT):
            await body.came.wait()
        if not at_head:
            connection.pause()
        pool.sweep(pool.now() + 50)
        assert not body.ended.is_set()
        connection.resume()
        pool.sweep(pool.now() + 50)
        assert body.ended.is_set()

    run(silent, test)


def test_nobody_listening_is_a_connect_failure() -> None:
    async def main() -> None:
        async with Backend(mute) as backend:
            port = backend.port
        pool = Pool(Address("127.0.0.1", port), idle_expiry=4.0)
        with pytest.raises(ConnectFailed):
            await pool.dial(1.0)

    uvloop.run(main())


@contextlib.contextmanager
def hanging_up(*, reset: bool) -> Iterator[int]:
    """The port of an engine, in a thread of its own, that accepts and closes before anything is sent."""

    def serve() -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                peer, _ = listener.accept()
                if reset:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()

    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("reset", [False, True])
def test_an_engine_that_hangs_up_at_once_fails_the_request_at_once(reset: bool) -> None:
    """R4: whether it is gone before the dial returns or behind it."""

    async def main(port: int) -> None:
        pool = Pool(Address("127.0.0.1", port), idle_expiry=4.0)
        for _ in range(200):
            try:
                connection = await pool.dial(WAIT)
            except ConnectFailed:
                continue
            with pytest.raises(UpstreamBroke):
                await wait(send(connection))
            connection.release()
        async with asyncio.timeout(WAIT):  # the end of a connection that fails its dial is told behind it
            while pool.connections:
                await asyncio.sleep(0)

    with hanging_up(reset=reset) as port:
        uvloop.run(main(port))


def test_an_interrupted_dial_leaves_no_connection() -> None:
    """H6 in the phase "connecting"."""

    async def test(pool: Pool, backend: Backend) -> None:
        task = asyncio.create_task(pool.dial(1.0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(WAIT):
            while pool.stats().open:
                await asyncio.sleep(0)

    run(mute, test)


@pytest.mark.parametrize("turns", range(8))
def test_an_opening_that_is_interrupted_leaves_nothing(turns: int) -> None:
    """U3, R6: whenever the client leaves: before, while and after the connection is made."""

    async def test(pool: Pool, backend: Backend) -> None:
        for _ in range(20):
            opening = asyncio.create_task(pool.dial(1.0))
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            (got,) = await asyncio.gather(opening, return_exceptions=True)
            if isinstance(got, UpstreamConnection):  # it was there already
                got.abort()
        async with asyncio.timeout(WAIT):
            while pool.connections:
                await asyncio.sleep(0.001)
        assert (await exchange(await pool.dial(1.0)))[0] == 200
        assert len(pool.connections) == 1

    run(answers(OK), test)


def test_a_connection_rests_before_it_is_used_again() -> None:
    """R6: what an engine sends behind its answer must meet nobody's request."""

    async def test(pool: Pool, backend: Backend) -> None:
        time = 1000.0
        pool.now = lambda: time
        first, second = await pool.dial(1.0), await pool.dial(1.0)
        await exchange(first)
        assert pool.take() is None
        assert pool.stats().idle == 1
        time += 3.0
        await exchange(second)
        time += 2.0
        assert pool.take() is first
        time += 3.0
        pool.put(first)
        time += 5.0
        assert pool.take() is first  # the latest of those that have rested
        assert pool.take() is second
        assert pool.take() is None

    run(answers(OK, OK), test, rest=5.0)


def test_bytes_behind_an_answer_end_the_connection() -> None:
    """R6: read while it idles, whatever they are: the rest of them could come as the next request's answer."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await more.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-")
        await reader.read()

    async def test(pool: Pool, backend: Backend) -> None:
        connection = await pool.dial(1.0)
        assert await exchange(connection) == (200, b"ok", None)
        assert (connection.state, pool.stats().idle) == (State.IDLE, 1)
        more.set()
        async with asyncio.timeout(WAIT):
            await backend.closed.get()
        assert connection.state is State.CLOSED
        assert (pool.take(), pool.stats().open) == (None, 0)

    more = asyncio.Event()
    run(script, test)


def test_bytes_that_a_busy_loop_has_not_read_yet_are_nobodys_answer() -> None:
    """R6: they came behind an answer while the loop did something else for longer than connections rest."""

    async def main(listener: socket.socket) -> None:
        pool = Pool(Address("127.0.0.1", listener.getsockname()[1]), idle_expiry=4.0, rest=0.0)
        connection = await pool.dial(WAIT)
        engine, _ = listener.accept()
        with engine:
            got = send(connection)
            engine.sendall(OK)
            assert await exchange(connection, got) == (200, b"ok", None)
            engine.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ntheirs")
            descriptor = connection.transport.get_extra_info("socket").fileno()
            assert select.select([descriptor], [], [], WAIT)[0], "without a turn of the loop"
            assert pool.take() is None
        pool.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        uvloop.run(main(listener))
