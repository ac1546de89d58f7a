"""Response heads beyond verdicts: offsets, fields, what a head says of its framing."""

import pytest

from gateway.http1.message import ResponseHead, UpstreamWireError
from gateway.http1.reply import HEAD_BYTES, parse_response_head

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _parse(data: bytes, method: str = "POST") -> ResponseHead:
    parsed = parse_response_head(data, method)
    assert parsed is not None
    return parsed[0]


def test_fields_in_order_and_where_the_body_begins() -> None:
    """H1 towards backends: lower-case names, stripped values, offset of the first body byte."""
    parsed = parse_response_head(HEAD + b"5\r\n", "POST")
    assert parsed is not None
    head, start = parsed
    assert head.headers == [(b"content-type", b"text/event-stream"), (b"transfer-encoding", b"chunked")]
    assert start == len(HEAD)
    assert head.get(b"content-type") == b"text/event-stream"
    assert head.get(b"x") is None


def test_an_interim_head_and_the_final_one_may_share_a_buffer() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    first = parse_response_head(interim + HEAD, "POST")
    assert first is not None
    assert (first[0].status, first[1]) == (100, len(interim))
    second = parse_response_head((interim + HEAD)[first[1] :], "POST")
    assert second is not None
    assert (second[0].status, second[1]) == (200, len(HEAD))


def test_searched_bytes_are_not_searched_again() -> None:
    """The end of a head is found wherever the earlier buffer was cut."""
    for cut in range(len(HEAD)):
        assert parse_response_head(HEAD[:cut], "POST") is None
        assert parse_response_head(HEAD, "POST", cut) is not None


def test_a_response_head_of_the_maximum_length_is_read_and_a_longer_one_refused() -> None:
    fill = HEAD_BYTES - len(HEAD) - len(b"X: \r\n")
    longest = HEAD[:-2] + b"X: " + b"y" * fill + b"\r\n\r\n"
    assert parse_response_head(longest, "POST") is not None
    with pytest.raises(UpstreamWireError):
        parse_response_head(longest.replace(b"X: ", b"X: z"), "POST")


@pytest.mark.parametrize(
    ("fields", "method", "framing"),
    [
        (b"Content-Length: 5\r\n", "POST", "length"),
        (b"Transfer-Encoding: chunked\r\n", "POST", "chunked"),
        (b"", "POST", "until_close"),
        (b"Content-Length: 5\r\n", "HEAD", "no_body"),
        (b"Transfer-Encoding: chunked\r\n", "HEAD", "no_body"),
        (b"", "HEAD", "no_body"),
    ],
)
def test_exactly_one_framing(fields: bytes, method: str, framing: str) -> None:
    """RFC 9112 section 6.3: a reader of the head never has to choose."""
    head = _parse(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n", method)
    said = {"no_body": head.no_body, "chunked": head.chunked, "until_close": head.until_close}
    assert [name for name, value in said.items() if value] == ([] if framing == "length" else [framing])
    assert (head.content_length == 5) == (b"Length" in fields)
    assert head.keep_alive is (framing != "until_close")


def test_reasons_are_for_the_log() -> None:
    """Each kind of fault is told apart."""
    for data, reason in (
        (b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", "folded"),
        (b"HTTP/1.1 200 OK\r\nX y\r\n\r\n", "malformed header line"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "status line"),
        (b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n", "control byte"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", "content coding"),
    ):
        with pytest.raises(UpstreamWireError, match=reason):
            parse_response_head(data, "POST")


def test_what_says_that_it_is_not_compressed_is_read() -> None:
    """The engine is asked for `identity`, and may say so; where no body follows the coding only describes."""
    assert _parse(b"HTTP/1.1 200 OK\r\nContent-Encoding: Identity\r\n\r\n", "POST").until_close
    assert _parse(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", "HEAD").no_body
