"""Client bytes -> requests: the parser of one connection, with its limits and its rules against request smuggling.

Owns what a request must look like (RFC 9112, RFC 9110) and refuses everything that two parsers could read in different
ways. It decides all framing itself and has llhttp (httptools) parse the same bytes: if the two disagree, the request is
refused. The rules for a single head are in `head`. Must not know asyncio, sockets, clocks, keys or models.
"""

import re
from typing import Final
from weakref import WeakValueDictionary

from gateway.http1 import head as rules
from gateway.http1.chunks import ChunkDecoder
from gateway.http1.head import WireError
from gateway.http1.llhttp import Llhttp, borrow, give_back
from gateway.http1.message import RequestHead, WireLimits
from gateway.http1.repeated import Repeated

__all__ = ["RequestReader", "WireError", "WireLimits"]

_PARTS: Final = 1024
"""Body slices held before they are joined: a body sent byte by byte must not cost 40 bytes of objects per byte."""
_REPEAT_BYTES: Final = 4 * 1024
"""Longest head that is remembered: thousands of idle connections keep one each, and real clients' are shorter."""
_REPEAT_DIGITS: Final = 9
"""Maximum digits of a Content-Length in a repeated head; no body limit needs more."""
_LENGTH_FIELD: Final = re.compile(rb"\r\ncontent-length:[\t ]*([0-9]++)\r\n", re.IGNORECASE)

_HEAD: Final = 0
_LENGTH: Final = 1
_CHUNKED: Final = 2
_COMPLETE: Final = 3
_DEAD: Final = 4
_STATES: Final = ("head", "body by length", "body by chunks", "complete", "dead")


_SHARED: Final[WeakValueDictionary[int, Repeated]] = WeakValueDictionary()
"""The first heads of open connections, by the hash of the repeated bytes: all connections of a client share one."""


class RequestReader:
    """Reads the requests of one connection, one after the other.

    `feed` takes what the peer sent. `head` is set as soon as the head is complete, `complete` once the body is.
    `advance` moves on to the next request, whose bytes may be here already. After a WireError the reader is dead and
    drops whatever it is fed; `refusal` keeps the error. If the error concerns the body, `head` stays set, so that the
    answer can take the client's dialect.

    Clients repeat their heads. A head that equals the last accepted one of the connection, except for its length, is
    not parsed again, which saves a third of the reader's cost. The first head of a connection is compared with those of
    other connections. llhttp sees neither a repeated head nor its body.
    """

    __slots__ = (  # noqa: RUF023  # grouped by lifetime
        # of the connection
        "_accepted", "_limits", "_repeated", "_target_seen",
        # of the message
        "_blank", "_decoder", "_held", "_joined", "_known", "_length", "_line_checked", "_parts", "_parts_bytes",
        "_path_hint", "_peer", "_scanned", "_state", "body_received", "head", "refusal",
    )  # fmt: skip

    def __init__(self, limits: WireLimits | None = None) -> None:
        self._limits = limits or WireLimits()
        self._target_seen: tuple[bytes, bytes | None, str] = (b"", None, "")
        self._repeated: Repeated | None = None
        self._accepted: tuple[bytes, RequestHead] | None = None  # accepted, but not turned into a `Repeated` yet
        self.refusal: WireError | None = None
        self._held = b""
        self._path_hint = ""
        self._begin()

    def _begin(self) -> None:
        self._state = _HEAD
        self._known = False  # the head is a repeated one, so llhttp does not parse this message
        self._peer: Llhttp | None = None
        self._blank = False
        self._line_checked = False
        self._scanned = 0
        self.head: RequestHead | None = None
        self._length = 0
        self._decoder: ChunkDecoder | None = None
        self.body_received = 0
        self._parts: list[bytes] | None = None
        self._parts_bytes = 0
        self._joined = 0

    def __repr__(self) -> str:
        what = f"{self.head.method} {self.head.path}" if self.head else "-"
        return f"<RequestReader {_STATES[self._state]} {what} body={self.body_received} buffered={self.buffered}>"

    @property
    def complete(self) -> bool:
        """The whole request, body included, has been received."""
        return self._state == _COMPLETE

    @property
    def idle(self) -> bool:
        """Between two requests: no byte of the next one has arrived (an empty line does not count)."""
        return self._state == _HEAD and not self._held

    @property
    def dead(self) -> bool:
        """Nothing more is read from this connection, after an error or after the last request."""
        return self._state == _DEAD

    @property
    def path_hint(self) -> str:
        """For a head that was refused or is incomplete: see `head.path_hint`."""
        return self._path_hint or rules.path_hint(self._held)

    @property
    def buffered(self) -> int:
        """Bytes held: of an incomplete head, of the body, of pipelined requests."""
        return len(self._held) + self._parts_bytes

    def feed(self, data: bytes) -> None:
        """Read `data`, the next bytes of the connection. Raises WireError."""
        state = self._state
        if state == _HEAD:
            self._held = self._held + data if self._held else data
            self._read_head()
        elif state == _LENGTH:
            self._read_length(data)
        elif state == _CHUNKED:
            self._read_chunks(data)
        elif state == _COMPLETE:
            self._held += data

    def take_body(self) -> bytes:
        """The body bytes received and not taken yet; if they came in one piece, the very object received."""
        parts, self._parts = self._parts, None
        self._parts_bytes = self._joined = 0
        if parts is None:
            return b""
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def let_go(self, ahead: int) -> None:
        """Drop the received part of a body that nobody will ask for; more of it may still be fed. If more than `ahead`
        bytes of later requests are held, they are dropped as well and the reader is dead."""
        self._parts = None
        self._parts_bytes = self._joined = 0
        if len(self._held) > ahead:
            self._state = _DEAD
            self._held = b""

    def advance(self) -> None:
        """Forget the finished request and parse the bytes after it. Raises WireError for the next request."""
        if self._state != _COMPLETE or self.head is None:
            raise RuntimeError("advance() before the request is complete")
        keep_alive = self.head.keep_alive
        self._begin()
        if not keep_alive:
            # RFC 9112 section 9.6: anything after the last request is ignored.
            self._state = _DEAD
            self._held = b""
        elif self._held:
            self._read_head()

    # ---- the head

    def _read_head(self) -> None:
        buffer = self._held
        if self._read_repeated(buffer):
            return
        if not self._blank and buffer.startswith(b"\r\n"):
            # RFC 9112 section 2.2: an empty line before the request line may be skipped; we skip one.
            self._blank = True
            self._held = buffer = buffer[2:]
        end = buffer.find(b"\r\n\r\n", self._scanned) + 4
        try:
            if end < 4:
                self._check_partial(buffer)
                return
            if self._recall(buffer, end) and self._read_repeated(buffer):
                return
            if end == len(buffer):
                self._open(buffer)
                rest = b""
            else:
                self._open(buffer[:end])
                rest = buffer[end:]
        except WireError as error:
            raise self._die(error) from error.__cause__
        self._held = b""
        self._expect_body(rest)

    def _read_repeated(self, buffer: bytes) -> bool:
        """Reuse the remembered head if `buffer` begins with an equal one. False: the head must be parsed."""
        if self._accepted is not None:
            self._repeated, self._accepted = _repeatable(*self._accepted, self._limits), None
        known = self._repeated
        if known is None:
            return False
        # Compares slices: in compiled code that costs half as much as `startswith`.
        head, start, after = known.head, len(known.before), known.after
        if buffer[:start] != known.before:
            return False
        if after:
            stop = buffer.find(b"\r", start, start + _REPEAT_DIGITS + 1)
            if stop < 0 or buffer[stop : stop + len(after)] != after:
                return False
            digits = buffer[start:stop]
            start = stop + len(after)
            if not digits.isdigit() or start > self._limits.head_bytes:
                return False
            head = _with_length(head, digits)
        self._known = True
        self.head = head
        self._held = b""
        self._expect_body(buffer[start:])
        return True

    def _recall(self, buffer: bytes, end: int) -> bool:
        """Whether the connection's first head, which ends at `end`, equals one that another connection remembered."""
        if self._repeated is not None or self._accepted is not None or end > _REPEAT_BYTES:
            return False
        before, after = _around_length(buffer[:end])
        known = _SHARED.get(hash((before, after)))
        if known is None or (known.before, known.after, known.limits) != (before, after, self._limits):
            return False
        self._repeated = known
        return True

    def _check_partial(self, buffer: bytes) -> None:
        """Refuse an incomplete head that no further byte can make valid."""
        rules.check_partial(buffer, self._limits.target_bytes, max(self._scanned - 1, 0))
        if not self._line_checked and b"\r\n" in buffer:
            rules.check_line(buffer, self._limits.target_bytes)
            self._line_checked = True
        if len(buffer) > self._limits.head_bytes:
            raise WireError(431, "request head too long")
        if buffer.count(b"\n") - 1 > self._limits.header_count:
            raise WireError(431, "too many header fields")
        self._scanned = max(len(buffer) - 3, 0)

    def _open(self, head: bytes) -> None:
        """Check a complete head by our rules and by llhttp's, and decide the framing."""
        limits = self._limits
        if len(head) > limits.head_bytes:
            rules.check_line(head, limits.target_bytes)
            raise WireError(431, "request head too long")
        method, target, version = rules.match(head, limits.target_bytes)
        count = head.count(b"\n") - 2
        if count > limits.header_count:
            raise WireError(431, "too many header fields")
        read = rules.without_upgrade(head)
        peer = self._peer = borrow()
        peer.agree(read)
        fields = rules.fields(read, peer.fields, read.count(b"\n") - 2)
        host = rules.host(fields, version)
        seen = self._target_seen
        if target != seen[0] or host != seen[1]:
            self._target_seen = seen = (target, host, rules.target(method, target, host))
        length, chunked = rules.framing(fields, version)
        fields.pop(b"content-length", None)
        self.head = RequestHead(
            method,
            target,
            seen[2],
            version,
            fields,
            length,
            chunked,
            rules.keep_alive(fields, version),
            rules.expects(fields, version) and (chunked or bool(length)),
        )
        if len(head) <= _REPEAT_BYTES:
            self._keep_head(head, self.head)

    def _keep_head(self, raw: bytes, head: RequestHead) -> None:
        """Remember a head for the next request; the first one also for other connections."""
        if self._repeated is None and self._accepted is None:
            self._repeated = known = _repeatable(raw, head, self._limits)
            if known is not None:
                _SHARED[hash((known.before, known.after))] = known
        else:
            self._accepted = raw, head

    # ---- the body

    def _agree(self, data: bytes) -> None:
        if self._peer is not None:
            self._peer.agree(data)

    def _expect_body(self, rest: bytes) -> None:
        head = self.head
        if head is None:
            raise RuntimeError("a body is read behind a head")
        length = head.content_length
        if self._peer is not None and bool(self._peer.unfinished) != (head.chunked or bool(length)):
            raise self._die(_disagreement())
        if length:
            self._length = length
            if length > self._limits.body_bytes:
                raise self._die(WireError(413, "body too large"))
            self._state = _LENGTH
            if rest:
                self._read_length(rest)
        elif head.chunked:
            self._state = _CHUNKED
            self._decoder = ChunkDecoder(_malformed_body)
            if rest:
                self._read_chunks(rest)
        else:
            self._complete(head)
            self._held = rest

    def _read_length(self, data: bytes) -> None:
        missing = self._length - self.body_received
        if len(data) > missing:
            self._held = data[missing:]
            data = data[:missing]
        self._keep(data)
        try:
            self._agree(data)
        except WireError as error:
            raise self._die(error) from error.__cause__
        self._check_end(self.body_received == self._length)

    def _read_chunks(self, data: bytes) -> None:
        decoder = self._decoder
        if decoder is None:
            raise RuntimeError("chunks are read with a decoder")
        try:
            payload = decoder.decode(data)
            if self.body_received + len(payload) + decoder.remaining > self._limits.body_bytes:
                raise WireError(413, "body too large")
            if payload:
                self._keep(payload)
            if decoder.done:
                # All but the last byte first, to check that llhttp does not end the body before we do.
                self._held = decoder.rest
                data = data[: len(data) - len(decoder.rest)]
                self._agree(data[:-1])
                self._check_end(False)
                data = data[-1:]
            self._agree(data)
        except WireError as error:
            raise self._die(error) from error.__cause__
        self._check_end(decoder.done)

    def _check_end(self, ended: bool) -> None:
        """Both parsers must see the message end at the same byte, and no second one begin within it."""
        peer = self._peer
        if peer is not None and (ended == bool(peer.unfinished) or not peer.fields):
            raise self._die(_disagreement())
        if ended and self.head is not None:
            self._complete(self.head)

    def _complete(self, head: RequestHead) -> None:
        """The request is complete: return the llhttp parser for other connections, if it considers this connection
        persistent.

        Not after trailers: llhttp obeys a Connection field among them and would refuse the next client's request.
        """
        self._state = _COMPLETE
        peer, self._peer = self._peer, None
        if peer is not None and (self._decoder is None or not self._decoder.trailers_seen):
            give_back(peer, head)

    def _keep(self, data: bytes) -> None:
        self.body_received += len(data)
        self._parts_bytes += len(data)
        parts = self._parts
        if parts is None:
            self._parts = [data]
            return
        parts.append(data)
        if len(parts) - self._joined > _PARTS:
            parts[self._joined :] = [b"".join(parts[self._joined :])]
            self._joined += 1

    def _die(self, error: WireError) -> WireError:
        self._state = _DEAD
        self.refusal = error
        self._path_hint = rules.path_hint(self._held) if self.head is None else ""
        self._held = b""
        self._parts = None
        self._parts_bytes = self._joined = 0
        self._peer = None
        return error


def _around_length(raw: bytes) -> tuple[bytes, bytes]:
    """`raw` before and after the digits of its Content-Length; without that field all of it is before."""
    field = _LENGTH_FIELD.search(raw)
    return (raw[: field.start(1)], raw[field.end(1) :]) if field else (raw, b"")


def _repeatable(raw: bytes, head: RequestHead, limits: WireLimits) -> Repeated | None:
    """The bytes that another head must repeat to mean the same as `head`, whose own bytes are `raw`. None if every such
    head must be parsed: chunked bodies have no length, and whether an expectation applies depends on the length."""
    if head.chunked or b"expect" in head.headers:
        return None
    before, after = _around_length(raw)
    if bool(after) != (head.content_length is not None):
        return None
    return Repeated(before, after, head, limits)


def _with_length(head: RequestHead, digits: bytes) -> RequestHead:
    """`head` with another Content-Length. Shares the `headers` object, by which `flow` recognises a repeated head."""
    return RequestHead(
        head.method,
        head.target,
        head.path,
        head.version,
        head.headers,
        int(digits),
        False,
        head.keep_alive,
        False,
    )


def _disagreement() -> WireError:
    return WireError(400, "ambiguous message framing")


def _malformed_body(reason: str) -> WireError:
    return WireError(400, reason)
