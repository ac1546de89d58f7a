"""`gateway.api.frames`: the hidden frame and the engine's errors, under every way bytes may be cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.dialect import Framing
from gateway.api.frames import FrameFilter
from gateway.api.stream import TAIL
from tests.api.streams import Stream, cuts, events, lines

USAGE = b'{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}'
EXTRA = b'data: {"choices":[],"usage":%b}\n\n' % USAGE
DONE = b"data: [DONE]\n\n"
FRAME = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
LINE = b'{"message":{"content":"hi"},"done":false}\n'
SECRET = b"CUDA failed at 10.0.0.5"

ERRORS = [
    (Framing.SSE, b'data: {"error":{"message":"%b"}}\n\n' % SECRET),
    (Framing.SSE, b'data: {"error":{"message":"%b"}}\r\n\r\n' % SECRET),
    (Framing.SSE, b'data: {"error":{"message":"%b"}}\r\r' % SECRET),
    (Framing.SSE, b'event: error\ndata: {"message":"%b"}\n\n' % SECRET),
    (Framing.SSE, b'event:error\r\ndata: "%b"\r\n\r\n' % SECRET),
    (Framing.SSE, b'error: {"code":500,"message":"%b"}\n\n' % SECRET),
    (Framing.SSE, b'data: {"type":"error","message":"%b","code":"x"}\n\n' % SECRET),
    (Framing.SSE, b'data: {"type":"response.failed","response":{"error":{"message":"%b"}}}\n\n' % SECRET),
    (Framing.SSE, b'data: {"id":"c","choices":[{"finish_reason":"error"}],"error":{"message":"%b"}}\n\n' % SECRET),
    (Framing.SSE, b'data: {"error":\ndata: {"message":"%b"}}\n\n' % SECRET),
    (Framing.SSE, b'data: {"error":"%b","usage":"none","choices":7}\n\n' % SECRET),
    (Framing.SSE, b'data: {"error":{"code":NaN,"message":"%b"}}\n\n' % SECRET),
    (Framing.SSE, b'data: 1\n\rdata: {"error":"%b"}\n\n' % SECRET),
    (Framing.NDJSON, b'{"error":"%b"}\n' % SECRET),
    (Framing.SSE, b'\xef\xbb\xbfdata: {"error":{"message":"%b"}}\n\n' % SECRET),
    (Framing.SSE, b'\xef\xbb\xbfevent: error\ndata: {"message":"%b"}\n\n' % SECRET),
    (Framing.NDJSON, b'{"model":"m","error":"%b"}\r\n' % SECRET),
]


@pytest.mark.parametrize(("framing", "error"), ERRORS)
@pytest.mark.parametrize("hide", [True, False])
def test_an_error_stays_inside_wherever_it_is_cut(framing: Framing, error: bytes, hide: bool) -> None:
    """H8: no byte of the frame passes, nor of what follows; what came before does, whole."""
    before = FRAME if framing is Framing.SSE else LINE
    stream = before + error + before
    for cut in range(len(stream)):
        frames = FrameFilter(framing, hide_usage=hide)
        assert frames.feed(stream[:cut]) + frames.feed(stream[cut:]) + frames.flush() == before
        assert SECRET.decode() in frames.failed
        assert frames.at_boundary
    bytewise = FrameFilter(framing, hide_usage=hide)
    assert b"".join(bytewise.feed(stream[at : at + 1]) for at in range(len(stream))) == before


@pytest.mark.parametrize(("framing", "error"), ERRORS)
def test_an_error_without_its_end_stays_inside_too(framing: Framing, error: bytes) -> None:
    """H8: an engine that dies while it tells of it."""
    frames = FrameFilter(framing)
    text = error.rstrip(b"\r\n")
    assert frames.feed(text[:10]) + frames.feed(text[10:]) + frames.flush() == b""
    assert frames.failed


@given(st.data(), st.sampled_from(ERRORS), st.booleans())
def test_what_comes_before_an_error_passes_however_it_is_cut(
    data: st.DataObject, case: tuple[Framing, bytes], hide: bool
) -> None:
    framing, error = case
    stream = data.draw(events() if framing is Framing.SSE else lines())
    frames = FrameFilter(framing, hide_usage=hide)
    passed = b"".join(frames.feed(part) for part in data.draw(cuts(stream.payload + error + stream.payload)))
    assert passed + frames.flush() == (stream.passed if hide else stream.payload)
    assert SECRET.decode() in frames.failed


@pytest.mark.parametrize("size", [70_000, 900_000])
def test_a_huge_error_is_held_to_its_end(size: int) -> None:
    frames = FrameFilter(Framing.NDJSON)
    error = b'{"error":"%b"}\n' % (b"x" * size)
    passed = b"".join(frames.feed(error[at : at + 30_000]) for at in range(0, len(error), 30_000))
    assert (passed, bool(frames.failed)) == (b"", True)


@pytest.mark.parametrize(
    "frame",
    [
        b'data: {"choices":[{"delta":{"content":"{\\"error\\": \\"no\\"}"}}]}\n\n',
        b'data: {"error":null,"choices":[{"finish_reason":"error"}]}\n\n',
        *[b'data: {"error":%b}\n\n' % empty for empty in (b"null", b'""', b"{}", b"[]", b"false", b"0")],
        b'event: errors\ndata: {"a":1}\n\n',
        b": error: none so far\n\n",
        b"data: an error?\n\n",
    ],
)
def test_what_only_speaks_of_errors_passes(frame: bytes) -> None:
    frames = FrameFilter(hide_usage=True)
    assert frames.feed(frame) == frame
    assert not frames.failed


@given(st.data(), events())
def test_the_filter_takes_out_the_extra_frame_and_nothing_else(data: st.DataObject, stream: Stream) -> None:
    """A7, and the third rule: no surprise on the wire."""
    frames = FrameFilter(hide_usage=True)
    passed = b""
    for part in data.draw(cuts(stream.payload)):
        passed += frames.feed(part)
        assert stream.passed.startswith(passed)
        assert not passed or passed.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))
        assert frames.at_boundary
    assert passed + frames.flush() == stream.passed


@given(st.data(), st.one_of(events().map(lambda s: (Framing.SSE, s)), lines().map(lambda s: (Framing.NDJSON, s))))
def test_every_byte_passes_where_nothing_is_to_hide(data: st.DataObject, case: tuple[Framing, Stream]) -> None:
    framing, stream = case
    frames = FrameFilter(framing)
    passed = b"".join(frames.feed(part) for part in data.draw(cuts(stream.payload)))
    assert passed + frames.flush() == stream.payload


def test_an_unfinished_frame_waits_for_its_end() -> None:
    """Only its end shows whether it is the extra one, or an error."""
    frames = FrameFilter(hide_usage=True)
    assert frames.feed(FRAME[:30]) == b""
    assert not frames.idle
    assert frames.feed(FRAME[30:-1]) == b""
    assert frames.feed(FRAME[-1:]) == FRAME
    assert frames.idle
    assert frames.feed(EXTRA[:-1]) == b""
    assert frames.flush() == b""
    assert frames.at_boundary


def test_usage_that_rides_on_a_frame_with_choices_passes() -> None:
    """transformers serve and vLLM's continuous statistics: only the extra frame is ours to hide."""
    riding = b'data: {"choices":[{"index":0}],"usage":%b}\n\n' % USAGE
    frames = FrameFilter(hide_usage=True)
    assert frames.feed(riding + EXTRA + DONE) == riding + DONE
    alone = b'data: {"type":"x","usage":%b}\n\n' % USAGE
    assert FrameFilter(hide_usage=True).feed(alone) == alone
    early = b'data: {"choices":[],"prompt_filter_results":[],"usage":null}\n\n'
    assert FrameFilter(hide_usage=True).feed(early) == early


def test_a_stream_cut_within_the_extra_frame_hides_what_was_held() -> None:
    frames = FrameFilter(hide_usage=True)
    assert frames.feed(FRAME + EXTRA[:-2]) == FRAME
    assert frames.flush() == b""
    frames = FrameFilter(hide_usage=True)
    assert frames.feed(FRAME + EXTRA[:20]) == FRAME
    assert frames.at_boundary
    assert frames.flush() == EXTRA[:20]
    assert not frames.at_boundary


@pytest.mark.parametrize("framing", list(Framing))
@pytest.mark.parametrize("ends", [b"\r", b"\n\r", b"a\r"])
def test_ends_of_lines_that_end_no_frame_are_not_held(framing: Framing, ends: bytes) -> None:
    """P-D2: an engine could fill the memory with them."""
    frames = FrameFilter(framing, hide_usage=True)
    data = b"a" * TAIL + ends * TAIL
    passed = frames.feed(data)
    assert len(passed) >= len(data) - 2
    assert passed + frames.feed(b"\n\n") + frames.flush() == data + b"\n\n"


def test_a_huge_frame_is_not_held_to_its_end() -> None:
    """Memory per stream is bounded."""
    frames = FrameFilter(hide_usage=True)
    start = b'data: {"other":"' + b"x" * 70_000
    assert frames.feed(start) == start
    assert not frames.at_boundary
    assert frames.feed(b'"}\n\n' + EXTRA) == b'"}\n\n'
    assert frames.at_boundary
    assert FrameFilter(Framing.NDJSON).feed(b'{"error":"' + b"x" * 1_100_000)


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def bytewise(payload: bytes) -> bytes:
    return b"".join(chunk(payload[at : at + 1]) for at in range(len(payload)))


@pytest.mark.parametrize(
    ("data", "passes"),
    [
        (chunk(FRAME), True),
        (chunk(FRAME) + chunk(FRAME), True),
        (chunk(FRAME + FRAME), True),
        (chunk(FRAME.replace(b"}]}", b'}],"usage":null}')), True),
        (chunk(b'data: {"a":"\\"usage\\":{"}\n\n'), True),
        (chunk(EXTRA), False),
        (chunk(EXTRA.replace(b'"usage":', b'"usage" : ')), False),
        (chunk(FRAME)[:-9], False),
        (chunk(FRAME + EXTRA[:30]), False),
        (bytewise(EXTRA), False),
        (bytewise(ERRORS[0][1]), False),
        (chunk(FRAME) + chunk(ERRORS[0][1][:12]) + chunk(ERRORS[0][1][12:]), False),
        (chunk(ERRORS[0][1]), False),
        (chunk(ERRORS[5][1]), False),
        (chunk(ERRORS[5][1]) + chunk(FRAME), False),
    ],
)
def test_raw_chunks_pass_only_where_none_can_be_one_to_keep(data: bytes, passes: bool) -> None:
    assert FrameFilter(hide_usage=True).passes(data) is passes


def test_raw_lines_pass_only_where_none_can_be_one_to_keep() -> None:
    frames = FrameFilter(Framing.NDJSON)
    assert frames.passes(chunk(LINE) * 3)
    assert not frames.passes(chunk(LINE[:-1]))
    assert not frames.passes(chunk(ERRORS[-1][1]))
    assert not frames.passes(bytewise(b'{"error":"x"}\n'))


@given(st.data(), events())
def test_whole_chunks_that_pass_by_the_filter_hold_nothing_to_hide(data: st.DataObject, stream: Stream) -> None:
    """The relay's rule: raw buffers pass while the filter is idle and lets them; it takes over in between."""
    frames = FrameFilter(hide_usage=True)
    passed = b""
    for part in data.draw(cuts(stream.payload)):
        if frames.idle and frames.passes(chunk(part)):
            passed += part
        else:
            passed += frames.feed(part)
    assert passed + frames.flush() == stream.passed
