"""`gateway.api.stream`: usage and ends, under every way bytes may be cut."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.dialect import Framing
from gateway.api.routes import Routes
from gateway.api.stream import Opening, Tap, payload_end, usage_of_body
from gateway.api.usage import Usage
from tests.api.streams import Stream, content, cuts, events, framed, lines, messages

ROUTES = Routes()
CHAT = ROUTES.match("POST", "/v1/chat/completions")
MESSAGES = ROUTES.match("POST", "/v1/messages")
NATIVE = ROUTES.match("POST", "/api/chat")
USAGE = b'{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}'
EXTRA = b'data: {"choices":[],"usage":%b}\n\n' % USAGE
CACHED = b'{"cached_tokens":5}'
DONE = b"data: [DONE]\n\n"
FRAME = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def tapped(buffers: list[bytes], framing: Framing = Framing.SSE) -> Tap:
    tap = Tap(framing)
    for buffer in buffers:
        tap.feed(buffer)
    return tap


@given(st.data(), st.one_of(events().map(lambda s: (Framing.SSE, s)), lines().map(lambda s: (Framing.NDJSON, s))))
def test_the_tap_finds_the_truth_however_the_bytes_are_cut(data: st.DataObject, case: tuple[Framing, Stream]) -> None:
    """A7: usage and the dialect's own end, from raw buffers with HTTP framing around them."""
    framing, stream = case
    raw = data.draw(framed(stream.payload)) if data.draw(st.booleans()) else stream.payload
    tap = tapped(data.draw(cuts(raw)), framing)
    assert tap.finish() == stream.usage
    assert tap.terminated is stream.terminated


def opened(buffers: list[bytes], *, chunked: bool) -> Tap:
    """As `tapped`, for an API whose first event tells the prompt."""
    tap, opening = Tap(Framing.SSE), Opening(chunked=chunked)
    tap.opening = opening
    wanted = True
    for buffer in buffers:
        wanted = wanted and not opening.feed(buffer)
        tap.feed(buffer)
    return tap


@given(st.data(), messages(), st.booleans())
def test_a_message_tells_its_tokens_at_both_ends(data: st.DataObject, stream: Stream, chunked: bool) -> None:
    """A3, A7: the prompt from the first event or the last, the output from the last, however the bytes are cut."""
    raw = data.draw(framed(stream.payload)) if chunked else stream.payload
    tap = opened(data.draw(cuts(raw)), chunked=chunked)
    assert tap.finish() == stream.usage
    assert tap.terminated is stream.terminated


def event(value: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (value["type"].encode(), json.dumps(value).encode())


START = event({"type": "message_start", "message": {"usage": {"input_tokens": 9, "cache_read_input_tokens": 4}}})
DELTA = event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}})
UNTOLD = [b'data: {"type":"message_start"}\n\n', b"data: {\n\n", b"data: 1\n\n", b": no\n\n", b"\n\n"]


def test_a_message_broken_off_has_its_prompt_and_its_frames() -> None:
    """A7: the prompt as told, the output counted from what was relayed, the whole marked."""
    tap = opened([chunk(START), *[chunk(DELTA)] * 5], chunked=True)
    assert tap.finish() is None
    assert not tap.terminated
    assert tap.estimate() == Usage(13, 6, 4, reported=False)
    assert opened([chunk(DELTA)] * 5, chunked=True).estimate() == Usage(0, 5, reported=False)


def test_a_first_event_may_count_with_a_fraction() -> None:
    """As some writers of JSON do, which know one kind of number."""
    assert opened([START.replace(b"9", b"9.0"), DELTA], chunked=False).estimate() == Usage(13, 2, 4, reported=False)


@pytest.mark.parametrize("first", UNTOLD)
def test_a_message_that_tells_no_prompt_is_an_estimate(first: bytes) -> None:
    """L2: nobody is billed a prompt of no tokens as the truth."""
    last = event({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}})
    tap = opened([first, DELTA, last, event({"type": "message_stop"})], chunked=False)
    assert tap.finish() == Usage(0, 5, reported=False)
    assert tap.terminated


def test_a_line_end_cut_in_two_ends_no_event() -> None:
    """The data of an event may be several lines."""
    opening = Opening(chunked=False)
    first, last = b'data: {"type":"message_start",\r', b'\ndata: "message":{"usage":{"input_tokens":9}}}\r\n\r\n'
    assert [opening.feed(first), opening.feed(last)] == [False, True]
    assert opening.usage.input_tokens == 9


def test_the_first_event_is_looked_for_in_the_first_bytes_only() -> None:
    """What comes later costs no more looking."""
    opening = Opening(chunked=False)
    assert [opening.feed(b"x" * 3000) for _ in range(3)] == [False, False, True]
    opening = Opening(chunked=False)
    assert opening.feed(START + DELTA)


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        (b'{"input_tokens":9,"output_tokens":2}', Usage(9, 2)),
        (b'{"input_tokens":9,"cache_read_input_tokens":4,"output_tokens":2}', Usage(13, 2, 4)),
        (b'{"input_tokens":0,"cache_read_input_tokens":4,"output_tokens":2}', Usage(4, 2, 4)),
        (
            b'{"input_tokens":9,"cache_creation_input_tokens":5,"cache_read_input_tokens":4,"output_tokens":2}',
            Usage(18, 2, 4),
        ),
        (b'{"input_tokens":9,"cache_creation_input_tokens":null,"output_tokens":2}', Usage(9, 2)),
        (b'{"input_tokens":9.0,"cache_read_input_tokens":4.0,"output_tokens":2.0}', Usage(13, 2, 4)),
        # A proxy of Anthropic's API that writes OpenAI's: its prompt has all.
        (b'{"prompt_tokens":13,"completion_tokens":2,"cache_read_input_tokens":4}', Usage(13, 2)),
    ],
)
def test_usage_of_messages(counts: bytes, usage: Usage) -> None:
    """A3: Anthropic's input tokens leave the cached ones out, our prompt has them."""
    for body in (
        b'{"type":"message","content":[],"usage":%b}',
        b'{"usage":%b,"type":"message"}',
        b'{"content":"' + b"x" * 70_000 + b'", "usage": %b , "type":"message"}',
    ):
        assert usage_of_body(MESSAGES.framing, body % counts) == usage


def test_counted_tokens_are_no_usage() -> None:
    assert usage_of_body(ROUTES.match("POST", "/v1/messages/count_tokens").framing, b'{"input_tokens":14}') is None


@pytest.mark.parametrize(
    ("frame", "usage"),
    [
        (b'{"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":%b}}' % CACHED, Usage(9, 2, 5)),
        (b'{"usage":{"prompt_tokens":9,"completion_tokens":null,"prompt_tokens_details":null}}', Usage(9, 0)),
        (b'{"usage":{"prompt_tokens":9,"completion_tokens":2},"timings":{"cache_n":4,"prompt_n":5}}', Usage(9, 2, 4)),
        (b'{"timings":{"cache_n":4,"prompt_n":5,"prompt_ms":1.5,"predicted_n":2}}', Usage(9, 2, 4)),
        (b'{"usage":{"input_tokens":9,"output_tokens":2,"input_tokens_details":{"cached_tokens":1}}}', Usage(9, 2, 1)),
        (b'{"usage":{"prompt_tokens":8,"total_tokens":8},"data":[]}', Usage(8, 0)),
        (b'{"results":[],"usage":{"total_tokens":8}}', Usage(8, 0)),
        (b'{"usage":{"total_tokens":8,"completion_tokens":3}}', Usage(5, 3)),
        (b'{"usage":{"completion_tokens":3}}', Usage(0, 3)),
        (b'{"usage":{"prompt_tokens":9.0,"completion_tokens":2e0,"prompt_tokens_details":null}}', Usage(9, 2)),
        (b'{"usage":null}', None),
        (b'{"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}', None),
        (b'{"data":[],"usage":{"prompt_tokens":0,"total_tokens":0}}', None),
        (b'{"choices":[]}', None),
        (b'{"usage":{"prompt_tokens":"many"}}', None),
        (b"[]", None),
        (b"", None),
        (b'{"usage":', None),
    ],
)  # fmt: skip
def test_usage_of_openai_answers(frame: bytes, usage: Usage | None) -> None:
    assert usage_of_body(CHAT.framing, frame) == usage
    assert tapped([chunk(b"data: %b\n\n" % frame), chunk(DONE)]).finish() == usage


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"done":true,"prompt_eval_count":5,"eval_count":6}', Usage(5, 6)),
        (b'{"done":true,"eval_count":6}', Usage(0, 6)),
        (b'{"done":true,"prompt_eval_count":5.0,"eval_count":6.0}', Usage(5, 6)),
        (b'{"done":true}', Usage(0, 0)),
        (b'{"embeddings":[[1]],"prompt_eval_count":5}', Usage(5, 0)),
        (b'{"embedding":[1]}', None),
        (b'{"response":"text","done":true,"prompt_eval_count":5}', Usage(5, 0)),
        (b"{", None),
    ],
)
def test_usage_of_ollama_answers(body: bytes, usage: Usage | None) -> None:
    assert usage_of_body(NATIVE.framing, body) == usage


def test_usage_of_large_answers_is_read_from_their_end() -> None:
    vectors = json.dumps([[0.25] * 5000]).encode()
    openai = b'{"data":%b,"usage":{"prompt_tokens":8,"total_tokens":8}}' % vectors
    native = b'{"embeddings":%b,"total_duration":1,"prompt_eval_count":5}' % vectors
    assert usage_of_body(CHAT.framing, openai) == Usage(8, 0)
    assert usage_of_body(CHAT.framing, openai[-3000:]) == Usage(8, 0)
    assert usage_of_body(NATIVE.framing, native) == Usage(5, 0)
    timed = (
        b'{"data":%b,"usage":{"prompt_tokens":8,"completion_tokens":2},"timings":{"cache_n":3,"prompt_n":5}}' % vectors
    )
    assert usage_of_body(CHAT.framing, timed) == Usage(8, 2, 3)
    first = b'{"usage":{"prompt_tokens":8},"data":%b}' % vectors
    assert usage_of_body(CHAT.framing, first) == Usage(8, 0)
    assert usage_of_body(NATIVE.framing, b'{"embedding":%b}' % vectors) is None


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("read", [1, 2, 7, 64, 127, 128, 129, 300, 10**6])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_chunks_of_a_byte_or_two_do_not_hide_the_usage(size: int, read: int, end: bytes) -> None:
    """`da`, the start of `data`, is also a chunk size; every payload byte may bring a line end of the framing."""
    for shift in range(0, min(read, 40), 3):
        payload = (FRAME * (shift % 4) + EXTRA + DONE).replace(b"\n\n", end)
        raw = b"".join(chunk(payload[at : at + size]) for at in range(0, len(payload), size)) + b"0\r\n\r\n"
        tap = tapped([raw[:shift], *(raw[at : at + read] for at in range(shift, len(raw), read))])
        assert tap.finish() == Usage(3, 4)
        assert tap.terminated


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
def test_responses_end_with_an_event_of_their_own(kind: str) -> None:
    body = b'{"type":"response.%b","response":{"usage":{"input_tokens":4,"output_tokens":2}}}' % kind.encode()
    tap = tapped([b"event: response.%b\ndata: %b\n\n" % (kind.encode(), body)])
    assert tap.finish() == Usage(4, 2)
    assert tap.terminated


def test_a_stream_broken_off_is_estimated_by_its_frames() -> None:
    """A7: counted from what was relayed, and marked."""
    tap = tapped([chunk(FRAME)] * 5)
    assert tap.finish() is None
    assert not tap.terminated
    assert tap.frames == 5
    assert tap.estimate() == Usage(0, 5, reported=False)


def test_continuous_statistics_give_the_exact_usage_of_a_broken_stream() -> None:
    running = [content("x") | {"usage": {"prompt_tokens": 3, "completion_tokens": n}} for n in range(9)]
    tap = tapped([chunk(b"data: %b\n\n" % json.dumps(frame).encode()) for frame in running])
    assert tap.finish() == Usage(3, 8)
    assert not tap.terminated


def test_a_usage_of_nothing_in_each_frame_is_no_usage() -> None:
    """A7: Ollama writes it into each chunk of a completion but the last, which a stream broken off has not."""
    running = b'data: {"choices":[{"text":"x"}],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}\n\n'
    tap = tapped([chunk(running)] * 20)
    assert (tap.finish(), tap.estimate()) == (None, Usage(0, 20, reported=False))
    assert tapped([chunk(running)] * 20 + [chunk(EXTRA), chunk(DONE)]).finish() == Usage(3, 4)


@pytest.mark.parametrize("size", [100_000, 900_000, 3_000_000])
@pytest.mark.parametrize("piece", [1000, 65_536, 10**9])
def test_ollamas_last_line_may_be_huge(size: int, piece: int) -> None:
    """`context` of /api/generate stands before the counts."""
    last = b'{"model":"m","done":true,"context":[%b1],"total_duration":7,"prompt_eval_count":3,"eval_count":4}\n'
    data = b'{"response":"x","done":false}\n' * 20 + last % (b"1," * (size // 2))
    tap = tapped([data[at : at + piece] for at in range(0, len(data), piece)], Framing.NDJSON)
    assert tap.finish() == Usage(3, 4)
    assert tap.terminated


@pytest.mark.parametrize("size", range(1, 80))
def test_content_that_looks_like_a_chunk_size_stays(size: int) -> None:
    """`da` of `data:` behind CR LF, where a chunk ends behind it, is hexadecimal too."""
    frames = [*[FRAME] * 4, b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}\n\n', DONE]
    payload = b"".join(frames).replace(b"\n", b"\r\n")
    wire = b"".join(chunk(payload[at : at + size]) for at in range(0, len(payload), size)) + b"0\r\n\r\n"
    for read in (1, 7, 10_000):
        tap = tapped([wire[at : at + read] for at in range(0, len(wire), read)])
        assert tap.finish() == Usage(7, 5)
        assert tap.terminated


def test_noughts_in_chunks_of_a_byte_are_not_the_last_chunk() -> None:
    """Where the tap has let go of bytes in between, so that no way leads to the end from the first size line."""
    lines = b'{"message":{"content":"0 0 0"},"done":false}\n' * 3000
    last = b'{"done":true,"total_duration":9,"prompt_eval_count":7,"eval_count":5}\n'
    single = [b"".join(chunk(part[at : at + 1]) for at in range(len(part))) for part in (lines[:1000], last)]
    wire = single[0] + chunk(lines) + single[1] + b"0\r\n\r\n"
    tap = tapped([wire[:20_000], wire[20_000:130_000], wire[130_000:]], Framing.NDJSON)
    assert tap.finish() == Usage(7, 5)
    assert tap.terminated


def test_noughts_at_the_end_of_a_plain_answer_are_not_the_last_chunk() -> None:
    """Nothing but lines stands behind them either."""
    body = b'{"text":"000","done":true,"total_duration":9,"prompt_eval_count":7,"eval_count":5}'
    wire = b"".join(chunk(body[at : at + 1]) for at in range(len(body))) + b"0\r\nX-Trailer: 0\r\n\r\n"
    assert payload_end(b"\r\n" + wire) == body


def test_a_tail_full_of_size_lines_takes_no_long_time() -> None:
    """The work is bounded where nothing but the clock would show it: 200 kB that look like size lines everywhere."""
    for line in (b"\r\n0\r\nx", b"\r\n1\r\na", b"\r\nffff", b"\r\n0"):
        tap = tapped([line * (200_000 // len(line)) + b"\r\n\r\n"])
        began = time.process_time()
        assert tap.finish() is None
        assert time.process_time() - began < 1.0, line


def test_trailers_behind_a_huge_last_line_do_not_hide_it() -> None:
    """The line has lost its beginning, so its end must be known from what stands behind it."""
    context = b",".join(b"%d" % number for number in range(200_000))
    line = b'{"done":true,"context":[%b],"total_duration":9,"prompt_eval_count":7,"eval_count":5}\n' % context
    wire = b"%x\r\n%b\r\n0\r\nX-Trailer: 0\r\n\r\n" % (len(line), line)
    tap = tapped([wire[start : start + 40_000] for start in range(0, len(wire), 40_000)], Framing.NDJSON)
    assert tap.finish() == Usage(7, 5)
    assert tap.terminated


def test_the_tap_keeps_little_of_a_long_stream() -> None:
    """Memory per stream: a few frames, whatever went by and however it was cut."""

    def kept(tap: Tap) -> int:
        held: list[Any] = [getattr(tap, name) or b"" for name in ("_oldest", "_older", "_last", "_open")]
        return sum(map(len, held))

    assert kept(tapped([chunk(FRAME)] * 1000)) < 4 * (512 + len(FRAME))
    large = b"data: %b\n\n" % json.dumps(content("x" * 300)).encode()
    assert kept(tapped([chunk(large)] * 1000)) == 3 * len(chunk(large))
    assert kept(tapped([FRAME * 5000] * 10)) < 4 * 64 * 1024
    assert kept(tapped([b"x" * 10_000] * 1000)) <= 1024 * 1024
    no_ends = [chunk(FRAME.replace(b"\n\n", b"\r\n\r\n"))] * 1000
    assert kept(tapped(no_ends)) < 4 * (512 + len(FRAME))


def test_the_tap_counts_frames_of_every_line_ending() -> None:
    assert tapped([chunk(FRAME.replace(b"\n\n", b"\r\n\r\n"))] * 7 + [b"0\r\n\r\n"]).frames == 7
    assert tapped([chunk(b'{"done":false}\r\n')] * 7 + [b"0\r\n\r\n"], Framing.NDJSON).frames == 7
    assert tapped([chunk(b'{"done":false}\n')] * 7 + [b"0\r\n\r\n"], Framing.NDJSON).frames == 7
