"""The request reader beyond verdicts: what it holds, gives back and says of itself."""

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http1.wire import RequestReader, WireError, WireLimits

GET = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"


def _post(body: bytes, *fields: bytes, target: bytes = b"/") -> bytes:
    lines = [b"POST %b HTTP/1.1" % target, b"Host: a", b"Content-Length: %d" % len(body), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _chunked(*chunks: bytes) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def _read(data: bytes) -> RequestReader:
    reader = RequestReader()
    reader.feed(data)
    return reader


def test_head_says_all_there_is() -> None:
    """H1: method, target, decoded path, version, fields in order and in lower case, framing."""
    reader = _read(_post(b"{}", b"X-B: 1", b"Content-Type: application/json", target=b"/v1/m%2Fx?q=%41"))
    head = reader.head
    assert head is not None
    assert (head.method, head.target, head.path) == ("POST", b"/v1/m%2Fx?q=%41", "/v1/m/x")
    assert head.version == 11
    assert list(head.headers) == [b"host", b"x-b", b"content-type"]
    assert (head.content_length, head.chunked, head.keep_alive, head.expect_continue) == (2, False, True, False)


def test_body_of_one_read_is_that_read() -> None:
    """A body that comes as one piece is not copied."""
    body = bytes(1000)
    reader = _read(_post(body)[:-1000])
    reader.feed(body)
    assert reader.complete
    assert reader.take_body() is body


def test_body_can_be_taken_as_it_comes() -> None:
    """`take_body` before the end gives what is there, and the count goes on."""
    reader = _read(_post(b"hello")[:-2])
    assert (reader.take_body(), reader.buffered, reader.body_received) == (b"hel", 0, 3)
    reader.feed(b"lo")
    assert (reader.take_body(), reader.body_received, reader.complete) == (b"lo", 5, True)


def test_buffered_counts_all_that_is_held() -> None:
    """Of an unfinished head, of a body, and of requests sent ahead."""
    reader = _read(GET[:10])
    assert reader.buffered == 10
    reader.feed(GET[10:] + GET)
    assert reader.buffered == len(GET)
    reader.feed(GET)
    assert reader.buffered == 2 * len(GET)
    reader.advance()
    assert reader.buffered == len(GET)
    reader.advance()
    reader.advance()
    assert reader.buffered == 0
    reader.feed(_post(b"hello")[:-1])
    assert reader.buffered == 4


def test_idle_is_between_two_requests() -> None:
    """H4: the keep-alive clock runs only while no byte of a next request has come."""
    reader = RequestReader()
    assert reader.idle
    reader.feed(b"\r\n")
    assert reader.idle
    reader.feed(b"G")
    assert not reader.idle
    reader.feed(GET[1:])
    assert not reader.idle
    reader.advance()
    assert reader.idle


def test_second_request_waits_for_advance() -> None:
    """H1: pipelined bytes are not read before the first request is dealt with, errors in them neither."""
    reader = _read(GET + b"BAD\r\n\r\n")
    assert reader.complete
    assert reader.refusal is None
    with pytest.raises(WireError) as caught:
        reader.advance()
    assert caught.value.status == 400
    assert reader.dead
    assert reader.head is None


def test_advance_needs_a_complete_request() -> None:
    """Dropping half a request would read its body as the next one."""
    reader = _read(_post(b"hello")[:-1])
    with pytest.raises(RuntimeError):
        reader.advance()


def test_too_large_by_length_has_a_head() -> None:
    """H3: refused before a byte is buffered, with the head there for an answer in dialect."""
    reader = RequestReader(WireLimits(body_bytes=10))
    with pytest.raises(WireError) as caught:
        reader.feed(_post(b"12345678901", target=b"/api/chat"))
    assert caught.value.status == 413
    assert reader.refusal is caught.value
    assert reader.head is not None
    assert reader.head.path == "/api/chat"
    assert (reader.complete, reader.buffered, reader.dead) == (False, 0, True)


def test_too_large_by_chunks_is_noticed_at_the_size_line() -> None:
    """H3: chunked bodies are counted on bytes, announced ones included."""
    reader = RequestReader(WireLimits(body_bytes=10))
    wire = _chunked(b"12345", b"123456")
    reader.feed(wire[: wire.index(b"6\r\n1")])
    with pytest.raises(WireError) as caught:
        reader.feed(b"6\r\n")
    assert caught.value.status == 413
    assert reader.head is not None


@pytest.mark.parametrize("wire", [_post(b"hello")[:-1], _chunked(b"hello")[:-5]], ids=["length", "chunked"])
def test_the_body_limit_to_the_byte(wire: bytes) -> None:
    """H3: it holds at once for what has been announced or received."""
    within = RequestReader(WireLimits(body_bytes=5))
    within.feed(wire)
    assert not within.dead
    reader = RequestReader(WireLimits(body_bytes=4))
    with pytest.raises(WireError) as caught:
        reader.feed(wire)
    assert caught.value.status == 413
    assert reader.dead


def test_body_dribbled_in_costs_little_more_than_its_bytes() -> None:
    """H3: 100 KB in reads of two bytes; kept as they came they would cost two megabytes."""
    body = bytes(range(250)) * 400
    reader = _read(_post(body)[: -len(body)])
    tracemalloc.start()
    try:
        for at in range(0, len(body), 2):
            reader.feed(body[at : at + 2])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 4 * len(body)
    assert reader.take_body() == body


def test_second_parser_reads_along() -> None:
    """H2: llhttp gets the same bytes; it refuses this size line before its end, where ours still waits."""
    reader = _read(_chunked())
    reader.advance()
    reader.feed(_chunked()[:-5])
    with pytest.raises(WireError, match="chunk size"):
        reader.feed(b"fg")


def test_repeated_lookups_do_not_leak_between_requests() -> None:
    """The target and Host of one request are never taken for those of the next."""
    reader = RequestReader()
    for target, host, path in (
        (b"/a", b"a", "/a"),
        (b"/a", b"b", "/a"),
        (b"/b", b"b", "/b"),
        (b"http://b/a", b"b", "/a"),
    ):
        reader.feed(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, host))
        assert reader.head is not None
        assert (reader.head.path, reader.head.headers[b"host"]) == (path, host)
        reader.advance()
    with pytest.raises(WireError):
        reader.feed(b"GET http://b/a HTTP/1.1\r\nHost: a\r\n\r\n")


def test_expect_continue_only_where_a_body_waits() -> None:
    """H1: 100 is due for 1.1 with a body, else not."""
    with_body = _read(_post(b"hi", b"Expect: 100-continue")[:-2]).head
    without = _read(b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n").head
    old = _read(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").head
    assert [head.expect_continue for head in (with_body, without, old) if head] == [True, False, False]


def test_repr_tells_the_state() -> None:
    """For logs and for a debugger."""
    reader = RequestReader()
    assert repr(reader) == "<RequestReader head - body=0 buffered=0>"
    reader.feed(_post(b"hello")[:-1])
    assert repr(reader) == "<RequestReader body by length POST / body=4 buffered=4>"
    reader.feed(b"o")
    assert repr(reader) == "<RequestReader complete POST / body=5 buffered=5>"


BODIES = st.binary(max_size=300)
MESSAGES = st.lists(st.tuples(st.booleans(), BODIES, st.lists(BODIES, max_size=4)), min_size=1, max_size=5)


@settings(deadline=None)  # the machine may be busy
@given(messages=MESSAGES, cuts=st.randoms(use_true_random=False))
def test_pipelined_requests_come_out_whole(
    messages: list[tuple[bool, bytes, list[bytes]]], cuts: random.Random
) -> None:
    """H1: any mix of framings on one connection, cut anywhere: the same bodies in the same order."""
    sent = [b"".join(chunks) if chunked else body for chunked, body, chunks in messages]
    wire = b"".join(_chunked(*filter(None, chunks)) if chunked else _post(body) for chunked, body, chunks in messages)
    reader, got, at = RequestReader(), [], 0
    while at < len(wire):
        size = cuts.randint(1, 400)
        reader.feed(wire[at : at + size])
        at += size
        while reader.complete:
            got.append(reader.take_body())
            reader.advance()
    assert got == sent
    assert reader.idle


def test_idle_connection_holds_no_large_head() -> None:
    """H3: ten thousand idle connections must not keep the largest head that each ever sent."""
    reader = RequestReader()
    reader.feed(GET)
    reader.advance()
    tracemalloc.start()
    try:
        reader.feed(GET[:-2] + b"X: " + b"y" * 30_000 + b"\r\n\r\n")
        reader.advance()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 10_000
