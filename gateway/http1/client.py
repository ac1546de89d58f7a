"""A connection to a backend: one exchange at a time, bodies as raw bytes.

Received buffers go to the exchange's `Sink` unchanged, HTTP chunk framing included; chunk sizes are read only to find
the end of the body. Must not know who the client is and must not decide on retries: `StaleConnection` says that a retry
is safe (RFC 9112 section 9.3.1).
"""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum, auto
from fcntl import ioctl
from termios import FIONREAD
from typing import TYPE_CHECKING, Final, Protocol, cast

from gateway.errors import UpstreamBroke, UpstreamError, UpstreamTimeout
from gateway.http1.chunks import ChunkWalker
from gateway.http1.eager import Signal
from gateway.http1.message import ResponseHead, UpstreamWireError

if TYPE_CHECKING:
    from gateway.http1.pool import Pool

log: Final = logging.getLogger("fairgate.http1")

NEVER: Final = float("inf")
JOIN_LIMIT: Final = 16 * 1024  # bytes up to which one joined write is cheaper than two writes
MAX_INFORMATIONAL: Final = 8  # 1xx heads allowed before the final head; engines send none
AFTER_END: Final = 1.0
"""Seconds to wait between a stream's own end (`[DONE]`) and the end of its HTTP body. After that the answer counts as
complete, and the connection is closed because later bytes could not be attributed to a request."""
_unread: Final = bytearray(4)  # a C int that `ioctl` writes into; reusing it is faster than allocating one
_NONE_UNREAD: Final = bytes(4)


class StaleConnection(UpstreamBroke):
    """A kept-alive connection closed before the first byte of an answer: the request may be sent again."""


class Sink(Protocol):
    """Receives the body of one answer."""

    def data(self, data: bytes) -> None:
        """A received buffer that does not end the body, framing included."""
        ...

    def last(self, data: bytes) -> None:
        """The end of the body, with its last bytes (maybe none), framing included."""
        ...

    def broke(self, error: UpstreamError) -> None:
        """The rest of the body will not arrive."""
        ...

    def over(self) -> bool:
        """Whether the application protocol marked the body as finished, so that it may end here even if its HTTP
        framing goes on."""
        ...


class State(Enum):
    """What is read next."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    CLOSED = auto()


class UpstreamConnection:
    """One connection to a backend. Implements `asyncio.Protocol` by its methods."""

    __slots__ = (
        "_answer",
        "_between",
        "_buffer",
        "_descriptor",
        "_interim",
        "_line",
        "_looked_at",
        "_method",
        "_remaining",
        "_reusable",
        "bytes_in",
        "deadline",
        "gaps",
        "head",
        "idle_since",
        "pool",
        "reused",
        "sink",
        "state",
        "total_deadline",
        "transport",
        "walker",
    )

    def __init__(self, pool: "Pool") -> None:
        self.pool = pool
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.state = State.IDLE
        self.reused = False
        self.idle_since = 0.0
        self.deadline = NEVER
        self.total_deadline = NEVER
        self.walker: ChunkWalker | None = None
        self.sink: Sink | None = None
        self.head: ResponseHead | None = None
        self._answer: Signal[ResponseHead] | None = None
        self.gaps: Callable[[float], None] | None = None  # called with the seconds since the previous read
        self._buffer = b""
        self._method = "POST"
        self._remaining: int | None = None
        self._reusable = False
        self._between = NEVER
        self._looked_at = NEVER  # the `deadline` at which `due` last asked the sink whether the body is over
        self._line = b""  # an unfinished chunk size line of the answer
        self._descriptor = -1
        self._interim = 0  # informational (1xx) heads of this answer so far
        self.bytes_in = 0

    # ---- one exchange

    def send(
        self, head: bytes, body: bytes, method: str, *, first_byte: float, between: float, total: float
    ) -> "Signal[ResponseHead]":
        """Send a request; the signal gives the final response head, or fails with an UpstreamError.

        Attach a `sink` as soon as the head arrives: the first bytes of the body follow in the same call. Times are in
        seconds.
        """
        now = self.pool.now()
        self.state = State.HEAD
        self.head = None
        self.sink = None
        self.bytes_in = 0
        self.gaps = None
        self._interim = 0
        self._method = method
        self._between = between
        self.deadline = now + first_byte
        self.total_deadline = now + total
        self._answer = Signal()
        if len(body) <= JOIN_LIMIT:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)
        return self._answer

    def pause(self) -> None:
        """Stop reading because the client cannot keep up. The read timeout stops too, since the engine is not to
        blame."""
        if self.state is State.BODY:
            self.transport.pause_reading()
            self.deadline = NEVER

    def resume(self) -> None:
        if self.state is State.BODY and not self.transport.is_reading():
            self.transport.resume_reading()
            self.deadline = self.pool.now() + self._between

    def release(self) -> None:
        """The owner is done with this exchange: keep the connection if its answer was complete, otherwise close it
        now."""
        self.sink = None
        if self.state is State.IDLE:
            self.pool.put(self)
        else:
            self.abort()

    def abort(self) -> None:
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self.transport.abort()

    # ---- transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._descriptor = transport.get_extra_info("socket").fileno()

    def pause_writing(self) -> None:
        """Nothing to do: the whole request has already been handed to the transport."""

    def resume_writing(self) -> None:
        """Nothing to do; see `pause_writing`."""

    def usable(self) -> bool:
        """Whether the connection may carry another request. It may not if unsolicited bytes wait in the kernel, which a
        busy loop has not read yet."""
        if self.state is not State.IDLE or self.transport.is_closing():
            return False
        ioctl(self._descriptor, FIONREAD, _unread)
        return _unread == _NONE_UNREAD

    def data_received(self, data: bytes) -> None:
        try:
            if self.state is State.BODY:
                self._body(data)
            elif self.state is State.HEAD:
                self._read_head(data)
            else:  # unsolicited bytes: the next answer could not be told from them
                self.abort()
        except UpstreamWireError as error:
            self._broke(UpstreamBroke("The engine's answer was malformed.", cause=str(error)))
        except Exception as bug:
            self._unread(bug)

    def _unread(self, bug: Exception) -> None:
        """A bug in the code that reads this answer fails this answer only. The event loop goes on, and the owner is
        told."""
        log.error("an answer could not be read by a bug", exc_info=bug)
        self._broke(UpstreamBroke("The engine's answer could not be read.", cause=repr(bug)))

    def _read_head(self, data: bytes) -> None:
        # An answer has begun: from here on a closed connection is a failure and no reason to retry (R5)
        self.reused = False
        searched = len(self._buffer)
        buffer = self._buffer + data if searched else data
        while self._interim <= MAX_INFORMATIONAL:
            parsed = self.pool.heads.read(buffer, self._method, searched)
            if parsed is None:
                self._buffer = buffer
                return
            head, start = parsed
            if head.status >= 200:
                self._buffer = b""
                self._begin_body(head, buffer, start)
                return
            buffer, searched = buffer[start:], 0
            self._interim += 1
        raise UpstreamWireError("too many informational answers")

    def _begin_body(self, head: ResponseHead, buffer: bytes, start: int) -> None:
        self.head = head
        self.state = State.BODY
        self._reusable = head.keep_alive
        self.walker = ChunkWalker() if head.chunked and not head.no_body else None
        self._line = b""
        self._remaining = 0 if head.no_body else head.content_length
        self.deadline = self.pool.now() + self._between
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.set(head)  # resumes the owner, which attaches its sink before this returns
        if self.state is not State.BODY:
            return
        rest = buffer[start:]
        if rest or (self._remaining == 0 and self.walker is None):
            self._body(rest)
            if not self.transport.is_reading():
                self.deadline = NEVER  # the sink paused at once: the engine is not to blame for the silence

    def _body(self, data: bytes) -> None:
        self.bytes_in += len(data)
        now = self.pool.now()
        if self.gaps is not None:
            self.gaps(now - self.deadline + self._between)
        self.deadline = now + self._between
        if self.walker is not None:
            if self._line:
                data, self._line = self._line + data, b""
            end = self.walker.walk(data)
            if self.walker.line_at >= 0:
                data = self._whole_lines(self.walker, data)
        elif self._remaining is None:
            end = -1
        else:
            end = self._remaining if len(data) >= self._remaining else -1
            self._remaining -= len(data)
        if end < 0:
            if self.sink is not None and data:
                self.sink.data(data)
            return
        if end != len(data):  # more than was announced: never guess whose bytes these are
            self._reusable = False
            data = data[:end]
        self._complete(data)

    def _whole_lines(self, walker: ChunkWalker, data: bytes) -> bytes:
        """`data` without an unfinished size line at its end: it may be the one of the last chunk, which sinks must
        recognise."""
        start = len(data) - walker.rewind()
        self._line = data[start:]
        return data[:start]

    def _complete(self, data: bytes) -> None:
        self.deadline = self.total_deadline = NEVER
        self.state = State.IDLE
        # If the engine answered before it read the whole request, the unread rest would delay the next request.
        if not self._reusable or self.transport.get_write_buffer_size():
            self.abort()
        if self.sink is not None:
            self.sink.last(data)

    def eof_received(self) -> bool:
        """The engine closed its sending side. Do not wait until the unsent rest of the request is written: it will not
        be read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.forget(self)
        state, self.state = self.state, State.CLOSED
        if state is State.BODY and self.walker is None and self._remaining is None and exc is None:
            self._closed_after_all()
        elif state is State.HEAD and self.reused:
            self._fail(StaleConnection("The engine closed the connection.", cause=repr(exc)))
        elif state is State.HEAD or state is State.BODY:
            self._fail(
                UpstreamBroke("The engine closed the connection before its answer was complete.", cause=repr(exc))
            )

    def _closed_after_all(self) -> None:
        """A body without length or chunks ends when its connection closes."""
        try:
            if self.sink is not None:
                self.sink.last(b"")
        except Exception as bug:
            self._unread(bug)

    def _broke(self, error: UpstreamError) -> None:
        self.abort()
        self._fail(error)

    def _fail(self, error: UpstreamError) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.fail(error)
        elif self.sink is not None:
            self.sink.broke(error)

    # ---- timers

    def due(self, now: float) -> bool:
        """Whether a timer has passed. For a body this includes AFTER_END, reported once after each read."""
        if self.deadline <= now or self.total_deadline <= now:
            return True
        read_at = self.deadline - self._between
        return self.state is State.BODY and self.deadline != self._looked_at and read_at + AFTER_END <= now

    def expired(self, now: float) -> None:
        """Called when `due`: either the sink says that the body is over, or `deadline` or `total_deadline` has passed
        (R4)."""
        if self.state is State.BODY and self.sink is not None and self.sink.over():
            self._reusable = False
            self._complete(b"")
        elif self.deadline <= now or self.total_deadline <= now:
            self._late(now)
        else:
            self._looked_at = self.deadline

    def _late(self, now: float) -> None:
        what = "answer in time" if self.state is State.HEAD else "go on with its answer in time"
        if self.total_deadline <= now:
            what = "finish within the time of this model"
        self._broke(UpstreamTimeout(f"The engine did not {what}."))

    def __repr__(self) -> str:
        kept = " kept" if self.reused else ""
        return f"<UpstreamConnection {self.pool.address.host}:{self.pool.address.port} {self.state.name.lower()}{kept}>"
