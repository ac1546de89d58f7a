"""The corpus: bytes on the wire with the verdict that is due, as data; and the drivers that ask for the verdict.

A case's `send` is text that stands for the same Latin-1 bytes; `<<text*count>>` repeats. `want` lists what comes of
them, separated by ` | `: for requests `METHOD path =body`, a status that refuses, `part` for a message begun and not
finished, `closed` when nothing behind the last message would be read; for responses `status =body`, `error`, `part`,
`extra` for bytes behind the end, `closed` for a connection that cannot be used again. Neither cares how the bytes were
cut into reads: `cuts` yields the ways to try.
"""

import random
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h11
import msgspec

from gateway.http1.chunks import ChunkDecoder, ChunkWalker
from gateway.http1.message import UpstreamWireError
from gateway.http1.reply import parse_response_head
from gateway.http1.wire import RequestReader, WireError, WireLimits

FOLDER = Path(__file__).parent
_REPEAT = re.compile(r"<<(.+?)\*(\d+)>>", re.DOTALL)


class Case(msgspec.Struct, frozen=True):
    """One piece of wire with the verdict due; `id` is `file/name`."""

    id: str
    rfc: str
    send: bytes
    want: str
    method: str = "POST"
    eof: bool = False
    limit: int | None = None
    fields: dict[str, str] = {}

    @property
    def limits(self) -> WireLimits:
        """The limits to read the case with."""
        return WireLimits() if self.limit is None else WireLimits(body_bytes=self.limit)


class Seen(msgspec.Struct, frozen=True):
    """A request as a reader saw it."""

    method: str
    path: str
    target: bytes
    fields: dict[bytes, bytes]
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.path}" + (f" ={self.body.decode('latin-1')}" if self.body else "")


def _spread(text: str) -> str:
    return _REPEAT.sub(lambda match: match[1] * int(match[2]), text)


def cases(kind: str) -> list[Case]:
    """All cases of `requests` or `responses`, in the order of files and lines."""
    found = []
    for path in sorted((FOLDER / kind).glob("*.toml")):
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        for entry in document["cases"]:
            fields: dict[str, Any] = dict(entry)
            fields["id"] = f"{path.stem}/{fields.pop('name')}"
            fields["send"] = _spread(document.get("prefix", "") + fields["send"]).encode("latin-1")
            fields["want"] = _spread(fields["want"])
            found.append(msgspec.convert(fields, Case))
    return found


def cuts(data: bytes, seed: int) -> Iterator[tuple[str, list[bytes]]]:
    """The ways to cut `data` into reads: whole, by line, by byte, and at three draws of sizes from `seed`."""
    yield "whole", [data]
    yield "by line", data.splitlines(keepends=True)
    yield "by byte", [data[at : at + 1] for at in range(len(data))]
    draw = random.Random(seed)
    for most in (5, 40, 3000):
        yield f"up to {most} bytes", random_cuts(data, draw, most)


def random_cuts(data: bytes, draw: random.Random, most: int) -> list[bytes]:
    """`data` in reads of 1 to `most` bytes."""
    parts, at = [], 0
    while at < len(data):
        size = draw.randint(1, most)
        parts.append(data[at : at + size])
        at += size
    return parts


class RequestDriver:
    """Reads the requests of one connection as the gateway does. `seen`: those found so far."""

    def __init__(self, limits: WireLimits | None = None) -> None:
        self.seen: list[Seen] = []
        self._reader = RequestReader(limits)

    def feed(self, data: bytes) -> None:
        reader = self._reader
        if reader.dead:
            return
        try:
            reader.feed(data)
            while reader.complete:
                head = reader.head
                assert head is not None
                self.seen.append(Seen(head.method, head.path, head.target, head.headers, reader.take_body()))
                reader.advance()
        except WireError as error:
            _check_dead(reader, error)

    def end(self) -> str:
        """How the reading ended: a status, `part`, `closed` or nothing."""
        reader = self._reader
        if reader.refusal is not None:
            return str(reader.refusal.status)
        if reader.dead:
            return "closed"
        return "" if reader.idle else "part"


def read_requests(reads: Iterable[bytes], limits: WireLimits | None = None) -> tuple[list[Seen], str]:
    """The requests that our reader finds, and how it ends."""
    driver = RequestDriver(limits)
    for read in reads:
        driver.feed(read)
    return driver.seen, driver.end()


def _check_dead(reader: RequestReader, error: WireError) -> None:
    """A refused connection stays refused: nothing that follows is taken for a request."""
    assert reader.refusal is error
    assert reader.dead
    reader.feed(b"GET /after HTTP/1.1\r\nHost: a\r\n\r\n")
    assert not reader.complete
    assert reader.buffered == 0
    assert reader.head is None or reader.head.target != b"/after"


class ResponseDriver:
    """Reads responses as the gateway does: interim heads, then one head and its body, then nothing more."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._buffer = b""
        self._searched = 0
        self._body: _Body | None = None
        self.seen: list[str] = []

    def feed(self, data: bytes) -> None:
        """Takes the next bytes; raises UpstreamWireError."""
        if self._body is not None:
            self._body.feed(data)
            return
        self._buffer += data
        while self._body is None:
            parsed = parse_response_head(self._buffer, self._method, self._searched)
            if parsed is None:
                self._searched = len(self._buffer)
                return
            head, start = parsed
            self._searched = 0
            self._buffer = self._buffer[start:]
            if head.status >= 200:
                self._body = _Body(head)
                self._body.feed(self._buffer)
            else:
                self.seen.append(str(head.status))

    def verdict(self, eof: bool) -> str:
        """What was seen, in the corpus's notation."""
        if self._body is None:
            return " | ".join([*self.seen, "error" if eof else "part"])
        return " | ".join([*self.seen, *self._body.verdict(eof)])


class _Body:
    """One response's body by its framing; chunks go through the walker and the decoder, which must agree."""

    def __init__(self, head: Any) -> None:
        self._head = head
        self._walker = ChunkWalker() if head.chunked else None
        self._decoder = ChunkDecoder()
        self._missing = 0 if head.no_body else head.content_length or 0
        self._payload = b""
        self._extra = b""
        self._done = head.no_body or head.content_length == 0

    def feed(self, data: bytes) -> None:
        if not data:
            return
        if self._done:
            self._extra += data
        elif self._walker is not None:
            self._chunks(data)
        elif self._head.until_close:
            self._payload += data
        else:
            self._payload += data[: self._missing]
            self._extra += data[self._missing :]
            self._missing -= min(len(data), self._missing)
            self._done = not self._missing

    def _chunks(self, data: bytes) -> None:
        assert self._walker is not None
        end = walked(self._walker, data)
        self._payload += self._decoder.decode(data)
        assert self._decoder.done == (end >= 0)
        if end >= 0:
            assert self._decoder.rest == data[end:]
            self._done, self._extra = True, data[end:]

    def verdict(self, eof: bool) -> list[str]:
        done = self._done or (self._head.until_close and eof)
        if not done:
            return ["error" if eof else "part"]
        text = str(self._head.status) + (f" ={self._payload.decode('latin-1')}" if self._payload else "")
        if self._extra:
            return [text, "extra"]
        return [text] if self._head.keep_alive else [text, "closed"]


def walked(walker: ChunkWalker, data: bytes) -> int:
    """`walker.walk(data)`, with what it says of itself checked."""
    end = walker.walk(data)
    assert walker.ended == (end >= 0)
    assert end <= len(data)
    if walker.boundary:
        assert data.endswith(b"\n")
        assert walker.remaining == 0
    if walker.last_chunk_at >= 0:
        assert data[walker.last_chunk_at : walker.last_chunk_at + 1] == b"0"
    if walker.line_at >= 0:
        assert b"\n" not in data[walker.line_at :]
    return end


def read_response(reads: Iterable[bytes], method: str, eof: bool) -> str:
    """Our verdict on a response, in the corpus's notation."""
    driver = ResponseDriver(method)
    try:
        for read in reads:
            driver.feed(read)
    except UpstreamWireError:
        return " | ".join([*driver.seen, "error"])
    return driver.verdict(eof)


def h11_response(data: bytes, method: str, eof: bool) -> str:
    """h11's verdict as a client, in the corpus's notation."""
    peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=64 * 1024)
    peer.send(h11.Request(method=method, target="/", headers=[("host", "a"), ("content-length", "0")]))
    peer.send(h11.EndOfMessage())
    if data:
        peer.receive_data(data)
    if eof:
        peer.receive_data(b"")
    said: list[str] = []
    status, body = 0, b""
    while True:
        try:
            event = peer.next_event()
        except h11.RemoteProtocolError:
            return " | ".join([*said, "error"])
        if event is h11.NEED_DATA or event is h11.PAUSED:
            return " | ".join([*said, "part"])
        if isinstance(event, h11.InformationalResponse):
            said.append(str(event.status_code))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            said.append(str(status) + (f" ={body.decode('latin-1')}" if body else ""))
            break
        else:
            return " | ".join([*said, "error"])
    if peer.trailing_data[0]:
        return " | ".join([*said, "extra"])
    return " | ".join(said if peer.their_state is h11.DONE and not eof else [*said, "closed"])
