"""One client connection: keep-alive, pipelining, timers, flow control.

Knows sockets and messages; must not know keys, models or dialects. A `Handler` answers each request through the
connection's `begin`, `write`, `end`, or `respond`. The requests of a connection are answered one at a time, in order.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from gateway.errors import BODIES_FULL, ClientGone, Interrupted, Overloaded, RequestTimeout
from gateway.http1.eager import Call, Signal
from gateway.http1.message import STATUS_LINES, RequestHead
from gateway.http1.wire import RequestReader, WireError

if TYPE_CHECKING:  # import cycle: the server creates connections
    from gateway.http1.server import HttpServer

NEVER: Final = float("inf")
FIRST_LOOK: Final = 0.25  # fraction of `slow_reader` until a client that does not read is checked for the first time
LINGER: Final = 2.0  # seconds of reading after an early refusal: a reset would destroy its answer (RFC 9112 9.6)
PIPELINE_BYTES: Final = 64 * 1024  # of an unread body and of pipelined requests, held before reading pauses
BEHIND_REFUSAL: Final = 4 * 1024  # bytes of later requests held while a refusal waits; with more, the connection ends
LONG_READ: Final = 128 * 1024  # bytes of a body; after 256 kB uvloop reads again at once, up to 32 times
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Handler(Protocol):
    """Answers requests. `connection.head` is set in `request`, and may be set in `malformed`."""

    def request(self, connection: "Connection") -> Coroutine[Any, Any, None]:
        """Answer one request. Must not raise."""
        ...

    def malformed(self, connection: "Connection", error: WireError) -> None:
        """Record and answer a request that cannot be read; the connection closes afterwards."""
        ...

    def crowded(self, connection: "Connection") -> None:
        """Answer a connection that exceeds a cap: nothing is read from it, and it closes afterwards."""
        ...


class Stream(Protocol):
    """The producer of a connection's answer; told to pause while the client does not keep up."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Phase(Enum):
    """The state of a connection; each has its timer (H4)."""

    IDLE = auto()  # between requests: keep-alive
    HEAD = auto()  # first byte of a head seen
    BODY = auto()  # a handler runs and waits for the body
    ANSWER = auto()  # a handler runs and has all it needs
    REFUSAL = auto()  # a handler runs, reads nothing more, and its refusal is delayed
    NEXT = auto()  # the next request is here already and starts in a later turn of the loop
    LINGER = auto()  # answered and closing: reads until the client closes too
    CLOSED = auto()


class Connection:
    """One client connection, an `asyncio.Protocol` by its methods. Attributes by lifetime: connection, then request."""

    __slots__ = (
        "_answer",
        "_body",
        "_body_deadline",
        "_error",
        "_room",
        "_server",
        "_unsent",
        "begun",
        "bytes_out",
        "call",
        "deadline",
        "fresh",
        "head",
        "keep",
        "known",
        "peer_ip",
        "phase",
        "quiet_arg",
        "quiet_at",
        "quiet_call",
        "reader",
        "stall_deadline",
        "stream",
        "transport",
        "writable",
    )

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self.reader = RequestReader(server.limits)
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.peer_ip = ""
        self.phase = Phase.IDLE
        self.deadline = NEVER
        self.writable = True
        self._unsent = 0  # bytes in the write buffer when a slow client was last checked; -1 before the first check
        self.stall_deadline = NEVER  # for a client that does not read what is written; runs beside `deadline`
        self.fresh = True  # no request yet
        self.known: Any = None  # what the handler remembers from one request to the next
        self._error: WireError | None = None
        self._reset()

    def _reset(self) -> None:
        self.call: Call | None = None
        self.head: RequestHead | None = None
        self._body: Signal[None] | None = None
        self._body_deadline = NEVER
        self._room: Callable[[int], bool] | None = None
        self.stream: Stream | None = None
        self._answer = b""  # a whole answer, sent when the handler has ended
        self.begun = False
        self.keep = True
        self.bytes_out = 0
        self.quiet_at = NEVER
        self.quiet_call: Callable[[Any], None] | None = None  # called with `quiet_arg`
        self.quiet_arg: Any = None

    # ---- transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.peer_ip = sys.intern(peer[0]) if isinstance(peer, tuple) else "local"  # one client, many connections
        self.transport.set_write_buffer_limits(high=self._server.caps.buffer_bytes)
        self.deadline = self._server.now() + self._server.timeouts.head
        self._server.opened(self)

    def data_received(self, data: bytes) -> None:
        if self.phase is Phase.LINGER or self.phase is Phase.CLOSED:
            return
        try:
            self.reader.feed(data)
        except WireError as error:
            self._error = error
        if self.call is None and self.writable and self.phase is not Phase.NEXT:
            self._pump()
        elif self._body is not None:
            self._body_progress(self._body, len(data))
        elif self.phase is Phase.REFUSAL:
            self.hold_nothing()
        elif self.reader.buffered > PIPELINE_BYTES:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """A half-close counts as a disconnect: the two cannot be told apart (docs/architecture.md)."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.phase = Phase.CLOSED
        self.deadline = self.stall_deadline = NEVER
        self._server.closed(self)
        if self.call is not None:
            self.call.throw(ClientGone("the client closed the connection"))

    def pause_writing(self) -> None:
        self.writable = False
        self._unsent = -1
        self.stall_deadline = self._server.now() + self._server.timeouts.slow_reader * FIRST_LOOK
        if self.stream is not None:
            self.stream.pause()

    def resume_writing(self) -> None:
        self.writable = True
        self.stall_deadline = NEVER
        if self.stream is not None:
            self.stream.resume()
        elif self.phase is Phase.LINGER:
            self._linger()
        elif self.call is None and self.phase is not Phase.CLOSED:
            self._go_on()

    # ---- requests, one after the other

    def _pump(self) -> None:
        """Start the next request if its head is here. One read may bring thousands; each gets a turn of the loop."""
        if self.reader.head is not None:
            self._start(self.reader.head)
        elif self._error is not None:
            self._server.handler.malformed(self, self._error)
            self._close_gently()
        else:
            self._await_head()

    def _await_head(self) -> None:
        timeouts = self._server.timeouts
        if self._server.draining and self.reader.idle and not self.fresh:
            self.close()
        elif self.reader.idle:
            self.phase = Phase.IDLE
            self.deadline = self._server.now() + timeouts.keep_alive
        elif self.phase is Phase.IDLE:
            self.phase = Phase.HEAD
            self.deadline = self._server.now() + timeouts.head

    def _start(self, head: RequestHead) -> None:
        server = self._server
        server.requests += 1
        self.fresh = False
        self.head = head
        self.keep = head.keep_alive and not server.draining
        self.phase = Phase.ANSWER
        self.deadline = NEVER
        call = self.call = Call(server.handler.request(self), self._ended)
        call.resume()

    def _ended(self) -> None:
        """The handler has returned: send its answer, then go on with the connection or close it."""
        self.send()
        keep = self.keep and self.begun and self.reader.complete and self._error is None
        self._reset()
        if self.phase is Phase.CLOSED:
            return
        if not keep:
            self._close_gently()
            return
        self.phase = Phase.IDLE
        try:
            self.reader.advance()
        except WireError as error:
            self._error = error
        if not self.reader.idle or self._server.draining:
            self._go_on()
            return
        self.deadline = self._server.now() + self._server.timeouts.keep_alive
        if not self.transport.is_reading():
            self.transport.resume_reading()

    def _go_on(self) -> None:
        """Start the next pipelined request in a new turn of the loop, so that a burst does not hold up others."""
        self.phase = Phase.NEXT
        self.read_on()
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Starts no request while the client does not read its answers: this bounds the write buffer."""
        if self.phase is not Phase.NEXT:
            return
        self.phase = Phase.IDLE
        if self.writable:
            self.read_on()
            self._pump()

    def _close_gently(self) -> None:
        """Close after what is written. A peer that is still sending gets the answer before a reset (RFC 9112 9.6)."""
        self.send()
        if self.phase is Phase.CLOSED:
            return
        if (self._error is None and self.reader.complete) or not self.transport.can_write_eof():
            self.close()
            return
        self.reader.let_go(0)
        self._linger()
        if not self.transport.is_reading():
            self.transport.resume_reading()
        self.transport.write_eof()

    def close(self) -> None:
        """Close after what is written; a client that does not read it is cut off when its time is up."""
        self._linger()
        self.transport.close()

    def _linger(self) -> None:
        self.phase = Phase.LINGER
        if not self.writable:  # `stall_deadline` runs already
            self.deadline = NEVER
            return
        unsent = self.transport.get_write_buffer_size()
        self._unsent = -1 if unsent else 0
        self.deadline = self._server.now() + (self._server.timeouts.slow_reader * FIRST_LOOK if unsent else LINGER)

    # ---- what a handler uses

    def clock(self) -> float:
        """The time base of `quiet_at`, in seconds."""
        return self._server.now()

    async def body(self, room: Callable[[int], bool] | None = None) -> bytes:
        """The whole request body. While it arrives, `room` is called with the bytes received so far and says whether
        they may stay. Raises WireError (also 413), RequestTimeout, Overloaded (no room) or ClientGone."""
        if not self.reader.complete:
            self._room = room
            await self._receive_body()
        if self._error is not None and not self.reader.complete:
            raise self._error
        body = self.reader.take_body()
        if not self.transport.is_reading():
            self.read_on()  # it paused at a long body before anyone asked for it; a disconnect would go unnoticed
        return body

    def read_no_more(self) -> None:
        """Pause reading until `read_on` is called, the body is asked for, or the answer is sent."""
        self.transport.pause_reading()

    def read_on(self) -> None:
        """Resume reading, unless too many pipelined bytes are held: the buffer would grow by one read per answer."""
        if self.reader.head is None or self.reader.buffered <= PIPELINE_BYTES:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def hold_nothing(self) -> None:
        """The request will be refused after a delay: drop its bytes now, and those that arrive until then."""
        self.phase = Phase.REFUSAL
        self.reader.let_go(BEHIND_REFUSAL)
        if self.reader.dead or self.reader.body_received > PIPELINE_BYTES:
            self.transport.pause_reading()

    async def _receive_body(self) -> None:
        if self._error is not None:
            return
        assert self.head is not None  # noqa: S101  # a handler runs only for a head
        if self.head.expect_continue and self.reader.body_received == 0:
            self.transport.write(CONTINUE)
        if not self.transport.is_reading():
            self.transport.resume_reading()
        now = self._server.now()
        self.phase = Phase.BODY
        self._body_deadline = now + self._server.timeouts.body
        self.deadline = min(self._body_deadline, now + self._server.timeouts.body_idle)
        self._body = Signal()
        try:
            await self._body
        finally:
            self._body = None
            self.deadline = NEVER
            if self.phase is Phase.BODY:
                self.phase = Phase.ANSWER

    def _body_progress(self, body: Signal[None], read: int) -> None:
        self.deadline = min(self._body_deadline, self._server.now() + self._server.timeouts.body_idle)
        if self._room is not None and not self._room(self.reader.body_received):
            body.fail(Overloaded(BODIES_FULL))
        elif self.reader.complete or self._error is not None:
            body.set(None)
        elif read >= LONG_READ:  # give others a turn: 8 MB in chunks of one byte take seconds to parse
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._next_read)

    def _next_read(self) -> None:
        if self._body is not None:
            self.transport.resume_reading()

    def begin(self, status: int, fields: bytes, *, framing: bytes, first: bytes = b"") -> None:
        """Write the head and the first bytes of the body in one write.

        `fields` and `framing` are complete field lines. Without `framing` the body ends when the connection closes,
        except for a 204, which has no body (RFC 9110 section 15.3.5).
        """
        self.write(self._made(status, fields, framing, first))

    def _made(self, status: int, fields: bytes, framing: bytes, first: bytes) -> bytes:
        server = self._server
        if not framing and status != 204:
            self.keep = False
        if server.draining or not self.reader.complete:
            self.keep = False
        self.begun = True
        connection = b"\r\n" if self.keep and self._is_11() else self._connection_line()
        line = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        return b"".join((line, server.date_line, fields, framing, connection, first))

    def _is_11(self) -> bool:
        return self.head is not None and self.head.version >= 11

    def _connection_line(self) -> bytes:
        return b"Connection: keep-alive\r\n\r\n" if self.keep else b"Connection: close\r\n\r\n"

    def write(self, data: bytes) -> None:
        self.bytes_out += len(data)
        self.transport.write(data)

    def respond(self, status: int, fields: bytes, body: bytes) -> None:
        """Prepare a whole answer. It is sent when the handler has ended, so that the record of a request exists before
        its client sees the answer. A HEAD request gets the length and no body (RFC 9110 section 9.3.2)."""
        head_only = self.head is not None and self.head.method == "HEAD"
        answer = self._made(status, fields, b"Content-Length: %d\r\n" % len(body), b"" if head_only else body)
        self.bytes_out += len(answer)
        self._answer = answer

    def send(self) -> None:
        """Send what `respond` prepared."""
        if self._answer:
            answer, self._answer = self._answer, b""
            self.transport.write(answer)

    def abort(self) -> None:
        """Cut the connection, because an answer that has begun cannot be completed."""
        self.keep = False
        self.transport.abort()

    def cut(self) -> None:
        """The gateway shuts down: interrupt the request, which has settled when this returns. The client may still read
        the last bytes until `HttpServer.ended` gives up; one that is not reading is cut off at once."""
        self.keep = False
        answered = self.call is not None or self.phase is Phase.LINGER
        if not answered or not self.writable:
            self.phase = Phase.CLOSED
            self.transport.abort()
        if self.call is not None:
            self.call.throw(Interrupted("the gateway ended"))

    # ---- timers, driven by the server's sweep

    def expired(self, now: float) -> None:
        """The deadline of the current phase has passed, or the one for a client that does not read."""
        while self.stall_deadline <= now or (self.phase is Phase.LINGER and self.deadline <= now):
            more = self._more_time()
            if not more:
                self._server.timed_out += 1
                self.transport.abort()  # connection_lost ends the call
                return
            if self.stall_deadline <= now:
                self.stall_deadline += more
            else:
                self.deadline += more
        if self.deadline > now:
            return
        self._server.timed_out += 1
        self.deadline = NEVER
        if self._body is not None:
            self._body.fail(RequestTimeout("The request body did not arrive in time."))
        elif self.phase is Phase.HEAD:
            self._server.handler.malformed(self, WireError(408, "the request head did not arrive in time"))
            self._close_gently()
        else:
            self.close()

    def _more_time(self) -> float:
        """Seconds to grant a client that does read, 0 for one that does not. It must read three quarters of
        `buffer_bytes` in `slow_reader` seconds, the same rate that a stream demands. The first check measures nothing:
        by then only the kernel's buffers have filled, and they fill for a client that reads nothing too."""
        before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        enough, patience = self._server.caps.buffer_bytes * 3 // 4, self._server.timeouts.slow_reader
        if before < 0:
            return patience * (1 - FIRST_LOOK)
        return patience if before - self._unsent >= enough else 0.0

    def quiet(self) -> None:
        """`quiet_at` has passed: call the handler back."""
        self.quiet_at = NEVER
        if self.quiet_call is not None:
            self.quiet_call(self.quiet_arg)

    def __repr__(self) -> str:
        return f"<Connection {self.peer_ip} {self.phase.name.lower()} {self.reader!r}>"
