"""Chunked bodies: the walk, the decoding and h11 find the same payload and the same end."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http1.chunks import LAST_CHUNK, ChunkDecoder, ChunkWalker, encode_chunk
from gateway.http1.message import UpstreamWireError
from tests.http1 import corpus

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def _size_line(draw: random.Random, size: int) -> bytes:
    """One of the ways to write a size."""
    digits = b"%x" % size if draw.random() < 0.7 else b"%X" % size
    if draw.random() < 0.2:
        digits = digits.rjust(draw.randint(len(digits), 16), b"0")
    if draw.random() < 0.2:
        digits += draw.choice((b";a", b";a=b", b';a="b c"', b";a=1;b=2"))
    return digits + b"\r\n"


def _body(draw: random.Random, payloads: list[bytes]) -> bytes:
    parts = [_size_line(draw, len(payload)) + payload + b"\r\n" for payload in payloads]
    trailers = b"".join(b"X-%d: y\r\n" % index for index in range(draw.choice((0, 0, 1, 3))))
    return b"".join(parts) + _size_line(draw, 0) + trailers + b"\r\n"


def _cut(draw: random.Random, data: bytes) -> list[bytes]:
    return corpus.random_cuts(data, draw, draw.choice((1, 3, 20, 200, 10_000)))


PAYLOADS = st.lists(
    st.binary(min_size=1, max_size=60) | st.integers(200, 5000).map(lambda size: (b"\r\n0\r" * size)[:size]), max_size=9
)
DRAWS = st.randoms(use_true_random=False)


@settings(deadline=None)  # the machine may be busy
@given(payloads=PAYLOADS, draw=DRAWS, behind=st.binary(max_size=20))
def test_same_payload_and_end(payloads: list[bytes], draw: random.Random, behind: bytes) -> None:
    """H1: any writing of the chunks, any cut: payload and end are those of the sender, and h11's."""
    body = _body(draw, payloads)
    walker, decoder, got, after = ChunkWalker(), ChunkDecoder(), b"", b""
    for read in _cut(draw, body + behind):
        if walker.ended:
            after += read
            continue
        end = corpus.walked(walker, read)
        got += decoder.decode(read)
        if end >= 0:
            assert decoder.rest == read[end:]
            after = read[end:]
    assert (got, after, walker.ended, decoder.done) == (b"".join(payloads), behind, True, True)
    assert walker.trailers_seen == decoder.trailers_seen
    text = got.decode("latin-1")
    assert corpus.h11_response(HEAD + body, "POST", eof=False) == ("200" + (f" ={text}" if text else ""))


@settings(deadline=None)  # the machine may be busy
@given(payloads=PAYLOADS, draw=DRAWS)
def test_last_chunk_is_where_one_can_be_put_in(payloads: list[bytes], draw: random.Random) -> None:
    """A chunk inserted at `last_chunk_at` is the body's last payload, however the reads are cut.

    Half size lines are kept back with `rewind`, so that the place is always in hand when it is known.
    """
    walker, out, kept, inserted = ChunkWalker(), b"", b"", False
    for read in _cut(draw, _body(draw, payloads)):
        data = kept + read
        walker.walk(data)
        undone = walker.rewind()
        kept = data[len(data) - undone :]
        data = data[: len(data) - undone]
        if walker.last_chunk_at >= 0:
            out += data[: walker.last_chunk_at] + encode_chunk(b"more")
            data, inserted = data[walker.last_chunk_at :], True
        out += data
    assert inserted
    decoder = ChunkDecoder()
    assert decoder.decode(out) == b"".join(payloads) + b"more"
    assert decoder.done


@settings(deadline=None)  # the machine may be busy
@given(payloads=PAYLOADS, draw=DRAWS)
def test_damage_is_judged_alike(payloads: list[bytes], draw: random.Random) -> None:
    """H2: one byte changed: walker and decoder agree, and where they accept, h11 reads the same payload."""
    body = bytearray(_body(draw, payloads))
    body[draw.randrange(len(body))] = draw.choice(b'\0\t\n\r 0159afgAF;:="+-_x\x7f\x80\xff')
    walker, decoder, got = ChunkWalker(), ChunkDecoder(), b""
    try:
        for read in _cut(draw, bytes(body)):
            corpus.walked(walker, read)
            got += decoder.decode(read)
            if walker.ended:
                break
    except UpstreamWireError:
        with pytest.raises(UpstreamWireError):
            ChunkDecoder().decode(bytes(body))
        with pytest.raises(UpstreamWireError):
            ChunkWalker().walk(bytes(body))
        return
    assert decoder.done == walker.ended
    if walker.ended:
        text = got.decode("latin-1")
        said = corpus.h11_response(HEAD + bytes(body), "POST", eof=False).removesuffix(" | extra")
        assert said == "200" + (f" ={text}" if text else "")


def test_boundary_is_between_chunks_only() -> None:
    """The relay may put in a frame of its own only there."""
    walker = ChunkWalker()
    for piece, boundary, remaining in (
        (b"5\r\nhello\r\n", True, 0),
        (b"5", False, 0),
        (b"\r\n", False, 5),
        (b"hel", False, 2),
        (b"lo", False, 0),
        (b"\r", False, 0),
        (b"\n", True, 0),
        (b"1000\r\n", False, 4096),
    ):
        assert walker.walk(piece) == -1
        assert (walker.boundary, walker.remaining) == (boundary, remaining), piece


def test_end_inside_content_is_not_the_end() -> None:
    """Content may hold the last chunk's bytes: the walk counts, it does not look for them."""
    body = encode_chunk(b"x" + LAST_CHUNK)
    walker = ChunkWalker()
    assert walker.walk(body) == -1
    assert walker.walk(body + LAST_CHUNK) == len(body) + len(LAST_CHUNK)


@pytest.mark.parametrize("body", [b"5\r\nhelloXX", b"5\r\nhello\r\n5\r\nhelloXX1\r\nx\r\n", b"5\r\nhello\n\r"])
def test_short_cuts_check_what_they_skip(body: bytes) -> None:
    """H2: the fast ways over whole chunks look at the CRLF behind the data too."""
    with pytest.raises(UpstreamWireError, match="not followed by CRLF"):
        ChunkWalker().walk(body)


def test_nothing_behind_the_end_is_walked() -> None:
    """Bytes behind the end belong to nobody: index 0 says so."""
    walker = ChunkWalker()
    assert walker.walk(LAST_CHUNK) == len(LAST_CHUNK)
    assert walker.walk(b"garbage") == 0


def test_a_payload_is_encoded_as_one_chunk() -> None:
    """An empty payload must not become the last chunk."""
    assert encode_chunk(b"hello") == b"5\r\nhello\r\n"
    assert encode_chunk(b"") == b""


def test_reprs_tell_the_state() -> None:
    """For logs and for a debugger."""
    walker, decoder = ChunkWalker(), ChunkDecoder()
    walker.walk(b"5\r\nhe")
    decoder.decode(b"0\r\n\r\nrest")
    assert repr(walker) == "<ChunkWalker data remaining=3 pending=0>"
    assert repr(decoder) == "<ChunkDecoder done=True rest=4 <ChunkWalker ended remaining=0 pending=0>>"


def test_failure_is_of_the_kind_asked_for() -> None:
    """The request side makes its own error of the same faults."""
    with pytest.raises(LookupError, match="size line"):
        ChunkDecoder(LookupError).decode(b"x\r\n")
