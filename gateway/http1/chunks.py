"""The chunked transfer coding (RFC 9112 section 7.1): walking it without copying, decoding it, writing it.

This is the only state machine for chunked bodies; requests and responses share it. Must not know heads, sockets or what
the payload is. It finds the end of a body by counting bytes, never by searching for the final chunk, because the
payload may contain the same bytes.
"""

import re
from collections.abc import Callable
from typing import Final

from gateway.http1.message import UpstreamWireError

CRLF: Final = b"\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
EXTENSION_BYTES: Final = 256
"""Maximum bytes of extensions on one size line. No known client sends any, and long ones are an attack
(CVE-2023-39326)."""
EXTENSIONS_BYTES: Final = 16 * 1024
"""Maximum bytes of extensions in one body; the same allowance as in Go's net/http."""
TRAILER_BYTES: Final = 8 * 1024
TRAILER_COUNT: Final = 32
_SIZE_DIGITS: Final = 16
_LINE_BYTES: Final = _SIZE_DIGITS + EXTENSION_BYTES + len(CRLF)

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
# No white space around ";" and "=": the grammar's BWS exists for old senders only, and parsers disagree about it.
_SIZE_LINE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,16})"
    rb"((?:;"
    + _TOKEN
    + rb"+(?:=(?:"
    + _TOKEN
    + rb'+|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+"))?)*+)\r\n'
)
_TRAILER: Final = re.compile(rb"(" + _TOKEN + rb"++):[\t\x20-\x7e\x80-\xff]*+\r\n")
FORBIDDEN_TRAILERS: Final = frozenset(
    {b"transfer-encoding", b"content-length", b"host", b"trailer", b"authorization", b"content-encoding", b"te"}
)
"""Fields for framing, routing and authentication are not allowed in trailers (RFC 9110 section 6.5.1)."""

# Size lines of ordinary frames, looked up instead of parsed (0.03 instead of 0.4 microseconds). Zero is missing on
# purpose: the last chunk takes the slow path.
_SIZES: Final = {b"%x" % size: size for size in range(1, 4096)} | {b"%X" % size: size for size in range(1, 4096)}
_SIZES_LINE: Final = 3 + len(CRLF)

_SIZE: Final = 0
_DATA: Final = 1
_DATA_END: Final = 2
_TRAILERS: Final = 3
_ENDED: Final = 4
_STATES: Final = ("size line", "data", "data end", "trailers", "ended")


def encode_chunk(payload: bytes) -> bytes:
    """`payload` as one chunk; empty payload gives no bytes, since a chunk of size 0 would end the body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""


class ChunkWalker:
    """Follows a chunked body through the buffers that carry it, without copying them.

    `boundary`: the bytes walked so far end exactly between two chunks. `remaining`: payload bytes of the current chunk
    that have not arrived yet. `last_chunk_at`: index in the last `data` where the terminating size line begins, or -1
    if it does not begin there. `line_at`: index in the last `data` where an unfinished size line begins, or -1.
    `trailers_seen`: the body had trailer fields. `fail` turns a reason into the exception to raise for a broken body.
    """

    __slots__ = (
        "_extensions", "_fail", "_line", "_state", "_trailers", "_trailers_bytes",
        "boundary", "last_chunk_at", "line_at", "remaining", "trailers_seen",
    )  # fmt: skip

    def __init__(self, fail: Callable[[str], Exception] = UpstreamWireError) -> None:
        self.boundary = True
        self.remaining = 0
        self.last_chunk_at = -1
        self.line_at = -1
        self.trailers_seen = False
        self._fail = fail
        self._state = _SIZE
        self._line = b""
        self._extensions = 0
        self._trailers = 0
        self._trailers_bytes = 0

    def __repr__(self) -> str:
        return f"<ChunkWalker {_STATES[self._state]} remaining={self.remaining} pending={len(self._line)}>"

    @property
    def ended(self) -> bool:
        """The whole body, with its trailers, has been walked."""
        return self._state == _ENDED

    def walk(self, data: bytes) -> int:
        """Walk `data`, the next bytes of the connection.

        Returns -1 if the body continues after `data`, otherwise the index just past the body's last byte; anything from
        there on does not belong to this body. Raises what `fail` makes (`UpstreamWireError`) on malformed input.
        """
        if self.boundary:
            eol = data.find(CRLF, 0, _SIZES_LINE)
            size = _SIZES.get(data[:eol]) if eol > 0 else None
            if size and eol + size + 4 == len(data) and data.endswith(CRLF):
                self.last_chunk_at = -1
                return -1
        return self.scan(data, None)

    def rewind(self) -> int:
        """Forget an unfinished size line at the end of the last `data`; returns how many of its bytes that undoes.

        For a caller that must not pass on half a size line: it keeps those bytes and prepends them to the next read.
        """
        if self.line_at < 0:
            return 0
        undone = len(self._line)
        self._line, self.line_at, self.boundary = b"", -1, True
        return undone

    def scan(self, data: bytes, spans: list[tuple[int, int]] | None) -> int:
        """Like `walk`, and also append to `spans` the (start, end) of every run of payload bytes in `data`."""
        pos, end = 0, len(data)
        self.last_chunk_at = self.line_at = -1
        while pos < end and self._state != _ENDED:
            if self._state == _SIZE:
                pos = self._size_line(data, self._whole_chunks(data, pos, spans) if not self._line else pos)
            elif self._state == _DATA:
                pos = self._data(data, pos, spans)
            elif self._state == _DATA_END:
                pos = self._data_end(data, pos)
            else:
                pos = self._trailer_line(data, pos)
        self.boundary = self._state == _SIZE and not self._line
        return pos if self._state == _ENDED else -1

    def _whole_chunks(self, data: bytes, pos: int, spans: list[tuple[int, int]] | None) -> int:
        """Step over the ordinary chunks that lie completely in `data`; returns where the first other one begins."""
        length = len(data)
        while True:
            eol = data.find(CRLF, pos, pos + _SIZES_LINE)
            size = _SIZES.get(data[pos:eol]) if eol > 0 else None
            if size is None:
                return pos
            end = eol + size + 4
            if end > length or data[end - 2 : end] != CRLF:
                return pos
            if spans is not None:
                spans.append((eol + 2, end - 2))
            pos = end

    def _size_line(self, data: bytes, pos: int) -> int:
        if pos == len(data):
            return pos
        line, after = self._take_line(data, pos, _LINE_BYTES)
        if not after:
            self.line_at = pos if not self._line else -1
            self._line = line
            return len(data)
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise self._fail("malformed chunk size line")
        digits, extensions = match.groups()
        self._count_extensions(len(extensions))
        begins_here = not self._line
        self._line = b""
        self.remaining = int(digits, 16)
        if self.remaining:
            self._state = _DATA
        else:
            self._state = _TRAILERS
            self.last_chunk_at = pos if begins_here else -1
        return after

    def _count_extensions(self, size: int) -> None:
        self._extensions += size
        if size > EXTENSION_BYTES or self._extensions > EXTENSIONS_BYTES:
            raise self._fail("chunk extensions too long")

    def _data(self, data: bytes, pos: int, spans: list[tuple[int, int]] | None) -> int:
        end = min(pos + self.remaining, len(data))
        if spans is not None:
            spans.append((pos, end))
        self.remaining -= end - pos
        if not self.remaining:
            self._state = _DATA_END
        return end

    def _data_end(self, data: bytes, pos: int) -> int:
        end = pos + len(CRLF) - len(self._line)
        seen = self._line + data[pos:end]
        if not CRLF.startswith(seen):
            raise self._fail("chunk data not followed by CRLF")
        if seen == CRLF:
            self._line = b""
            self._state = _SIZE
        else:
            self._line = seen
        return min(end, len(data))

    def _trailer_line(self, data: bytes, pos: int) -> int:
        line, after = self._take_line(data, pos, TRAILER_BYTES - self._trailers_bytes)
        if not after:
            self._line = line
            return len(data)
        self._line = b""
        if line == CRLF:
            self._state = _ENDED
            return after
        self._check_trailer(line)
        return after

    def _check_trailer(self, line: bytes) -> None:
        match = _TRAILER.fullmatch(line)
        if match is None:
            raise self._fail("malformed trailer field")
        if match[1].lower() in FORBIDDEN_TRAILERS:
            raise self._fail("forbidden trailer field")
        self.trailers_seen = True
        self._trailers += 1
        self._trailers_bytes += len(line)
        if self._trailers > TRAILER_COUNT:
            raise self._fail("too many trailer fields")

    def _take_line(self, data: bytes, pos: int, most: int) -> tuple[bytes, int]:
        """The line that continues at `pos`, including its bytes from earlier reads, and the index after it (0:
        unfinished)."""
        end = data.find(b"\n", pos, pos + most) + 1
        line = self._line + data[pos : end or pos + most + 1]
        if len(line) > most:
            raise self._fail("chunk size or trailer line too long")
        # A carriage return is allowed only directly before the line feed; refuse it before waiting for more bytes.
        if -1 < line.find(b"\r") < len(line) - (2 if end else 1):
            raise self._fail("carriage return inside a chunk size or trailer line")
        return line, end


class ChunkDecoder:
    """Decodes a chunked body, as strictly as `ChunkWalker`. `done`: the body is complete; `rest`: bytes after it."""

    __slots__ = ("_walker", "done", "rest")

    def __init__(self, fail: Callable[[str], Exception] = UpstreamWireError) -> None:
        self._walker = ChunkWalker(fail)
        self.done = False
        self.rest = b""

    def __repr__(self) -> str:
        return f"<ChunkDecoder done={self.done} rest={len(self.rest)} {self._walker!r}>"

    @property
    def remaining(self) -> int:
        """Payload bytes of the current chunk that have not arrived yet."""
        return self._walker.remaining

    @property
    def trailers_seen(self) -> bool:
        """The body had trailer fields; they are dropped."""
        return self._walker.trailers_seen

    def decode(self, data: bytes) -> bytes:
        """The payload bytes that `data` carries. Raises what `fail` makes (`UpstreamWireError`) if it is malformed."""
        spans: list[tuple[int, int]] = []
        end = self._walker.scan(data, spans)
        if end >= 0:
            self.done = True
            self.rest += data[end:]
        if len(spans) == 1:
            start, stop = spans[0]
            return data[start:stop]
        return b"".join([data[start:stop] for start, stop in spans])
