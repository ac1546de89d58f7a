"""H2: taking a repeated head over without parsing changes no verdict, whatever the next head is."""

import os
import random

import pytest

from gateway.http1 import llhttp, wire
from gateway.http1.llhttp import Llhttp
from gateway.http1.wire import RequestReader, WireError, WireLimits
from tests.http1 import corpus

SEED = int(os.environ.get("FAIRGATE_TEST_SEED") or random.SystemRandom().randrange(2**32))
REQUESTS = corpus.cases("requests")
BEFORE = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: "
AFTER = b"\r\nAuthorization: Bearer fg_x\r\nX-Last: 1\r\n\r\n"
FIRST = BEFORE + b"12" + AFTER + b"x" * 12
LENGTHS = (
    [str(n).encode() for n in (0, 1, 9, 10, 12, 13, 99, 999_999_999)]
    + [b"", b"00", b"012", b"0x5", b"+5", b"-5", b" 5", b"5 ", b"\t5", b"5,5", b"5, 5", b"5;", b"1_0", b"5.0", b"5\n"]
    + [b"\xb2", b"\xd9\xa5", b"5\x00", b"5\r", b"5\r\n ", b"5\r\nContent-Length: 5", b"5\r\nTransfer-Encoding: chunked"]
    + [b"1" * digits for digits in (9, 10, 17, 18, 19, 30)]
)


def _said(reader: RequestReader, data: bytes, step: int) -> list[str]:
    """What `reader` makes of `data` in reads of `step` bytes: heads, bodies, and the refusal with its reason."""
    said = []
    try:
        for at in range(0, len(data), step or 1):
            reader.feed(data[at : at + step])
            while reader.complete:
                said.append(f"{reader.head!r} {reader.take_body()!r}")
                reader.advance()
    except WireError as error:
        return [*said, f"{reader.head!r} {error}"]
    state = "dead" if reader.dead else "idle" if reader.idle else "part"
    return [*said, f"{reader.head!r} {reader.buffered} {reader.body_received} {state}"]


def _used(*earlier: bytes, limits: WireLimits | None = None) -> RequestReader:
    """A reader that has read each of `earlier` twice, so that the last one is known."""
    reader = RequestReader(limits)
    for data in (*earlier, *earlier):
        reader.feed(data)
        assert reader.complete
        reader.take_body()
        reader.advance()
    return reader


def _agrees(data: bytes, *earlier: bytes, limits: WireLimits | None = None) -> None:
    for step in (len(data), 7, 1):
        wire._SHARED.clear()
        fresh = _said(RequestReader(limits), data, step)
        assert _said(_used(*earlier, limits=limits), data, step) == fresh, (data, step)
        others = [_used(each, limits=limits) for each in earlier]  # whose first heads this connection may share
        assert others
        assert _said(RequestReader(limits), data, step) == fresh, (data, step)


@pytest.mark.parametrize("length", LENGTHS, ids=repr)
def test_any_text_in_the_place_of_the_length(length: bytes) -> None:
    """Only digits that both parsers would take are taken over; also with a request behind the body."""
    _agrees(BEFORE + length + AFTER + b"y" * 20, FIRST)
    _agrees(BEFORE + length + AFTER + b"yyyyy" + FIRST, FIRST)


def test_any_byte_of_a_known_head() -> None:
    """Each byte of the head replaced, dropped or doubled, by ones that matter and by random ones."""
    draw = random.Random(SEED)
    head = BEFORE + b"12" + AFTER
    for at in range(len(head)):
        for byte in (0x00, 0x0A, 0x0D, 0x20, 0x30, 0x3A, draw.randrange(256)):
            _agrees(head[:at] + bytes([byte]) + head[at + 1 :] + b"x" * 12, FIRST)
        _agrees(head[:at] + head[at + 1 :] + b"x" * 12, FIRST)
        _agrees(head[:at] + head[at : at + 1] + head[at:] + b"x" * 12, FIRST)


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.id)
def test_corpus_behind_a_valid_request(case: corpus.Case) -> None:
    """Every case has its verdict on a connection that has served requests."""
    for _, reads in corpus.cuts(case.send, SEED):
        reader = _used(FIRST, limits=case.limits) if case.limits.body_bytes >= 12 else RequestReader(case.limits)
        said = []
        try:
            for read in reads:
                reader.feed(read)
                while reader.complete and reader.head is not None:
                    body = reader.take_body().decode("latin-1")
                    said.append(f"{reader.head.method} {reader.head.path}" + (f" ={body}" if body else ""))
                    reader.advance()
        except WireError as error:
            said.append(str(error.status))
        else:
            said += ["closed"] if reader.dead else [] if reader.idle else ["part"]
        assert " | ".join(said) == case.want


@pytest.mark.parametrize(
    "case",
    [case for case in REQUESTS if "part" not in case.want and "closed" not in case.want],
    ids=lambda case: case.id,
)
def test_a_repeated_head_of_the_corpus_gets_the_same_verdict(case: corpus.Case) -> None:
    """What was accepted is read the same way again, and again, between other requests."""
    fresh = RequestReader(case.limits)
    once = _said(fresh, case.send, len(case.send))
    if len(once) > 1 and fresh.idle and not fresh.dead:
        reader = RequestReader(case.limits)
        for _ in range(2):
            for _ in range(3):
                assert _said(reader, case.send, len(case.send)) == once
            assert _said(reader, b"GET / HTTP/1.1\r\nHost: b\r\n\r\n", 99)[0].endswith(" b''")


@pytest.mark.parametrize("field", [b"Expect: 100-continue", b"Connection: close", b"Transfer-Encoding: chunked"])
def test_heads_with_an_effect_beyond_their_bytes_are_read_each_time(field: bytes) -> None:
    """A length of 0 hides an expectation, a closing connection has no next request, chunks have no length."""
    behind = BEFORE + b"3" + AFTER.replace(b"X-Last: 1", field) + b"abc"
    _agrees(behind, FIRST)
    if field.startswith(b"Expect"):
        _agrees(behind, behind)
        _agrees(behind, behind.replace(b"3\r\n", b"0\r\n")[:-3])
    if field.startswith(b"Connection"):
        _agrees(FIRST, FIRST.replace(b"X-Last: 1", b"Connection: keep-alive"))


def test_limits_hold_for_repeated_heads() -> None:
    """H3: a longer length may make a head too long; body limits are those of every request."""
    size = len(BEFORE + AFTER) + 2
    _agrees(BEFORE + b"123" + AFTER + b"y" * 123, FIRST, limits=WireLimits(head_bytes=size))
    _agrees(BEFORE + b"99" + AFTER + b"y" * 99, FIRST, limits=WireLimits(body_bytes=50))
    reader = _used(FIRST, limits=WireLimits(body_bytes=98))
    with pytest.raises(WireError, match="413"):
        reader.feed(BEFORE + b"99" + AFTER)


def test_a_known_head_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The point of it: neither our rules nor llhttp see the repeated head."""
    used = _used(FIRST)

    def seen(_: Llhttp, data: bytes) -> None:
        pytest.fail(f"parsed: {data!r}")

    monkeypatch.setattr(Llhttp, "agree", seen)
    for reader in (used, RequestReader()):
        reader.feed(BEFORE + b"3" + AFTER + b"abc")
        assert reader.complete
        assert reader.head is not None
        assert reader.head.content_length == 3
        assert reader.take_body() == b"abc"


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.id)
def test_corpus_behind_the_same_on_another_connection(case: corpus.Case) -> None:
    """A head that another connection's first one is the like of means the same, and is forgotten with it."""
    wire._SHARED.clear()
    alone = _said(RequestReader(case.limits), case.send, len(case.send))
    other = RequestReader(case.limits)
    for reader in (other, RequestReader(case.limits)):
        assert _said(reader, case.send, len(case.send)) == alone
    _said(RequestReader(WireLimits(head_bytes=10)), case.send, len(case.send))
    refused = other.refusal is not None  # which refers to its reader
    del other, reader
    assert refused or not wire._SHARED


def test_other_limits_share_no_head() -> None:
    """H3: after a reload the new limits hold for new connections."""
    other = _used(FIRST)
    reader = RequestReader(WireLimits(header_count=2))
    with pytest.raises(WireError, match="431"):
        reader.feed(FIRST)
    assert other.idle


@pytest.mark.parametrize("field", [b"Connection: close", b"Proxy-Connection: close", b"Connection: x, close", b"X: y"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_the_second_reader_is_ready_for_the_next_connection(field: bytes, version: bytes) -> None:
    """llhttp reads nothing behind a request that closes: it must not be lent on then."""
    llhttp._SPARE.clear()
    wire._SHARED.clear()
    for number in range(3):
        reader = RequestReader()
        reader.feed(b"GET /%d HTTP/%b\r\nHost: a\r\n%b\r\n\r\n" % (number, version, field))
        assert reader.complete
        reader.advance()
        reader = RequestReader()
        reader.feed(b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n%b\r\n\r\nab" % (number, field))
        half = RequestReader()
        half.feed(b"GET /half HTTP/1.1\r\nHost: a\r\n\r\n")
        assert half.complete
        reader.feed(b"cde")
        assert reader.take_body() == b"abcde"
    assert len(llhttp._SPARE) <= 2


@pytest.mark.parametrize("trailer", [b"Connection: close", b"Proxy-Connection: close", b"connection: x, close"])
def test_a_trailer_cannot_close_the_next_connection(trailer: bytes) -> None:
    """llhttp takes a Connection among the trailers for one of the head: it is not lent on after any trailer."""
    llhttp._SPARE.clear()
    reader = RequestReader()
    reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n%b\r\n\r\n" % trailer)
    assert reader.complete
    other = RequestReader()
    other.feed(b"POST /other HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
    other.feed(b"cde")
    assert other.take_body() == b"abcde"
