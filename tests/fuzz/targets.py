"""What is fuzzed, and what must hold for any input: one function a target, each takes bytes and raises on a fault.

Not only "no crash": the verdict does not depend on how the bytes are cut into reads, and what we accept h11 accepts
with the same meaning. The first bytes of an input choose the cuts, the rest is the wire.
"""

from collections.abc import Callable

import h11

from gateway.api.dialect import Framing
from gateway.api.frames import FrameFilter
from gateway.api.stream import Opening, Tap
from gateway.config import Config, ConfigError
from gateway.http1.chunks import ChunkDecoder, ChunkWalker
from gateway.http1.llhttp import _SPARE
from gateway.http1.message import UpstreamWireError
from gateway.http1.wire import _SHARED, WireLimits
from gateway.loading import parse
from tests.http1 import corpus

LIMITS = WireLimits(head_bytes=300, header_count=10, target_bytes=60, body_bytes=100)
"""Small, so that inputs of a few hundred bytes, which run fast, reach every one of them."""

NEXT = b"\xff\0\xff"
"""Stands between the wires of several connections."""

_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def cut(data: bytes) -> tuple[bytes, list[bytes]]:
    """The wire of an input, and the reads that its first two bytes cut it into."""
    how, step, wire = data[:1], (data[1:2] or b"\0")[0], data[2:]
    if how < b"\x08":
        return wire, [wire[at : at + 1] for at in range(len(wire))]
    if how < b"\x20":
        return wire, wire.splitlines(keepends=True)
    reads, at, size = [], 0, step
    while at < len(wire):
        size = size * 5 % 67 + 1  # steps of 1 to 67 in an order of its own for each start
        reads.append(wire[at : at + size])
        at += size
    return wire, reads


def request(data: bytes) -> None:
    """Requests: same verdict for any cut, and every accepted one is the same request to h11."""
    wire, reads = cut(data)
    whole, whole_end = corpus.read_requests([wire], LIMITS)
    seen, end = corpus.read_requests(reads, LIMITS)
    assert seen == whole, (seen, whole)
    assert end.isdigit() == whole_end.isdigit(), (end, whole_end)
    assert end.isdigit() or end == whole_end, (end, whole_end)
    rest = wire
    for each in whole:
        rest = _h11_agrees(each, rest.removeprefix(b"\r\n"))


def _h11_agrees(ours: corpus.Seen, wire: bytes) -> bytes:
    """h11 reads the same request at the start of `wire`; returns what is behind it."""
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(wire)
    head = peer.next_event()
    assert isinstance(head, h11.Request), head
    assert (head.method.decode(), head.target) == (ours.method, ours.target)
    assert {name for name, _ in head.headers} - {b"content-length", b"upgrade"} == set(ours.fields)
    body = b""
    event = peer.next_event()
    while isinstance(event, h11.Data):
        body += bytes(event.data)
        event = peer.next_event()
    assert isinstance(event, h11.EndOfMessage), event
    assert body == ours.body
    rest: bytes = peer.trailing_data[0]
    return rest


def together(data: bytes) -> None:
    """Connections side by side and again: what they share (parsers lent, heads recalled) changes nothing for any."""
    size = (data[:1] or b"\0")[0] % 67 + 1
    wires = data[1:].split(NEXT)[:4]
    alone = []
    for each in wires:
        _forget()
        alone.append(corpus.read_requests([each], LIMITS))
    _forget()
    for _ in range(2):
        drivers = [corpus.RequestDriver(LIMITS) for _ in wires]
        for at in range(0, max(map(len, wires)), size):
            for driver, each in zip(drivers, wires, strict=True):
                driver.feed(each[at : at + size])
        for driver, (seen, end) in zip(drivers, alone, strict=True):
            assert driver.seen == seen, (driver.seen, seen)
            assert driver.end().isdigit() == end.isdigit(), (driver.end(), end)


def _forget() -> None:
    _SPARE.clear()
    _SHARED.clear()


def response(data: bytes) -> None:
    """Responses: same verdict for any cut, and every accepted one is the same response to h11."""
    wire, reads = cut(data)
    method = "HEAD" if data[:1] > b"\xdf" else "POST"
    whole = corpus.read_response([wire], method, eof=True)
    assert corpus.read_response(reads, method, eof=True) == whole
    if not whole.endswith("error"):
        theirs = corpus.h11_response(wire, method, eof=True)
        assert whole.removesuffix(" | closed") == theirs.removesuffix(" | closed"), (whole, theirs)


def chunks(data: bytes) -> None:
    """Chunked bodies: walker and decoder agree for any cut, and h11 finds the same payload in an accepted one."""
    wire, reads = cut(data)
    whole = _walk([wire] if wire else [])
    assert _walk(reads) == whole
    verdict, payload, rest = whole
    if verdict == "ended":
        theirs = corpus.h11_response(_CHUNKED + wire[: len(wire) - len(rest)], "POST", eof=False)
        assert theirs == "200" + (f" ={payload.decode('latin-1')}" if payload else ""), theirs


def _walk(reads: list[bytes]) -> tuple[str, bytes, bytes]:
    """Verdict, payload and what is behind the end; of a refused body only the verdict."""
    walker, decoder = ChunkWalker(), ChunkDecoder()
    payload, rest = b"", b""
    for read in reads:
        try:
            end = corpus.walked(walker, read) if not walker.ended else 0
        except UpstreamWireError:
            return "refused", b"", b""
        if decoder.done:
            rest += read
            continue
        payload += decoder.decode(read)
        assert decoder.done == walker.ended
        rest = read[end:] if walker.ended else b""
    return "ended" if walker.ended else "open", payload, rest


def stream(data: bytes) -> None:
    """Taps and filters: no input breaks them; the verdict of the filter, and what opens a message, do not depend on the
    cuts; without a usage frame or an error every byte passes, in order."""
    wire, reads = cut(data)
    assert _opening(reads) == _opening([wire])
    for framing in Framing:
        tap = Tap(framing)
        for read in reads:
            tap.feed(read)
        usage = tap.finish()
        assert usage is None or usage.reported
        assert not tap.estimate().reported
        for hide in (False, True):
            passed = _sieved(reads, framing, hide)
            assert passed == _sieved([wire], framing, hide)
            out, failed = passed
            assert wire.startswith(out) or (hide and b'"usage"' in wire)
            assert failed or out == wire or (hide and b'"usage"' in wire)
            assert not failed or b"error" in wire


def _opening(reads: list[bytes]) -> object:
    opening = Opening(chunked=False)
    any(opening.feed(read) for read in reads)
    return opening.usage


def _sieved(reads: list[bytes], framing: Framing, hide: bool) -> tuple[bytes, str]:
    sieve = FrameFilter(framing, hide_usage=hide)
    return b"".join([*map(sieve.feed, reads), sieve.flush()]), sieve.failed


def config(data: bytes) -> None:
    """Configuration: any text gives a checked Config or a ConfigError with a message."""
    text = data.decode("utf-8", "replace")
    if "file" in text or "\\" in text:
        return  # would read this machine's files, the escape too
    try:
        parsed = parse(text)
    except ConfigError as error:
        message = str(error)
        assert message
    else:
        assert isinstance(parsed, Config)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "request": request,
    "together": together,
    "response": response,
    "chunks": chunks,
    "stream": stream,
    "config": config,
}
