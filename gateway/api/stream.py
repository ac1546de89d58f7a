"""Reads token usage and the dialect's own end marker from answers as they pass.

Parses frames (SSE and NDJSON) and changes nothing. Must not know sockets or who is asking. Frames follow the WHATWG
event stream format as official clients read it: a frame ends at an empty line; lines end in LF, CR LF or CR.
"""

import re
from typing import Final

import msgspec

from gateway.api.dialect import Framing
from gateway.api.usage import Usage
from gateway.api.views import BLOCK, FRAME, STARTED, Block, Frame, Response, Timings
from gateway.http1.chunks import ChunkDecoder

TAIL: Final = 64 * 1024
"""Of a larger buffer only the last bytes up to this number are kept: only the end of a stream matters, and its last
frame is small."""
BOM: Final = b"\xef\xbb\xbf"
SHORT: Final = 128
RUN: Final = 512
"""Buffers shorter than SHORT are gathered into runs of at least RUN bytes: bytes that arrive one by one must not push
the usage out of what is kept."""
LONGEST_FRAME: Final = 1024 * 1024
"""Maximum bytes kept of an incomplete frame. Ollama's last line may contain a whole context as numbers."""
LONGEST_USAGE: Final = 1024  # maximum bytes of a usage object with all details
PARSED_WHOLE: Final = 16 * 1024
"""A plain answer up to this size is decoded for its usage; of a larger one the tail is searched first."""
_LONGEST_OPENING: Final = 8 * 1024  # bytes that are searched for the first event of a stream
_LOOK_BACK: Final = 12  # frames searched from the end: usage, finish, `[DONE]` and some comments


_LAST_TYPES: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "message_stop"})
"""Types of the event that ends a stream of OpenAI's responses or of Anthropic's messages."""

_CHUNK_SIZE: Final = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})(?:;[^\r\n]*)?(?=\r\n)")
_BODY_END: Final = re.compile(rb"\r\n0{1,16}(?:;[^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*+\r\n\Z")
_SHORT_TRAILERS: Final = 1024  # bytes before the end of the body that are searched for the last chunk
_MOST_LINES: Final = 4096  # possible size lines to examine before settling for a guess
_SIZE_LINE: Final = re.compile(_CHUNK_SIZE.pattern + rb"\r\n")
_USAGE_AT_END: Final = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_TIMINGS_AT_END: Final = re.compile(rb'"timings"\s*:\s*(\{[^{}]*\})')
_COUNT_AT_END: Final = re.compile(rb'"(prompt_eval_count|eval_count|total_duration)"\s*:\s*(\d{1,18})')


class Opening:
    """The first event of a stream, in APIs that report the prompt's tokens there (Anthropic's `message_start`)."""

    __slots__ = ("_decoder", "_left", "_text", "usage")

    def __init__(self, *, chunked: bool) -> None:
        self.usage = Block()
        self._decoder = ChunkDecoder() if chunked else None
        self._text = b""
        self._left = _LONGEST_OPENING

    def feed(self, data: bytes) -> bool:
        """Look at the next received buffer; True when no more are needed."""
        self._left -= len(data)
        payload = data if self._decoder is None else self._decoder.decode(data)
        text = self._text + payload[:_LONGEST_OPENING]
        after = b"\r" if text.endswith(b"\r") else b""  # possibly the first half of a line end
        *whole, rest = lines_of(text.removesuffix(after)).split(b"\n\n")
        self._text = rest + after
        for event in whole:
            started = _started(event_data(event))
            if started is not None:
                self.usage = started
                return True
        return self._left < 0


def _started(data: bytes) -> Block | None:
    try:
        message = STARTED.decode(data).message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return message.usage if message is not None else None


class Tap:
    """Sees every raw buffer of one stream, HTTP chunk framing included, and keeps just enough of its end.

    `frames` counts the frames so far. After the last buffer, `finish` finds the usage and sets `terminated` (the
    dialect's own end marker was seen). `opening` is for APIs whose first event reports the prompt's tokens.
    """

    __slots__ = (
        "_end",
        "_framing",
        "_last",
        "_older",
        "_oldest",
        "_open",
        "frames",
        "opening",
        "terminated",
    )

    def __init__(self, framing: Framing) -> None:
        self.opening: Opening | None = None
        self.frames = 0
        self.terminated = False
        self._framing = framing
        self._end = b"\n\n" if framing is Framing.SSE else b"}\n"
        # Three runs of buffers, each of which ends with a buffer that ends a frame, and whatever came after them. Only
        # `[DONE]` follows the frame with the usage, so that frame always begins within these runs, even if each byte is
        # a chunk.
        self._oldest = b""
        self._older = b""
        self._last = b""
        self._open: bytearray | None = None  # rarely needed

    def feed(self, data: bytes) -> None:
        """Look at one received buffer."""
        ends = data.count(self._end)
        if ends and not self._open and SHORT <= len(data) <= TAIL:
            self.frames += ends
            self._oldest = self._older
            self._older = self._last
            self._last = data
        else:
            self._gather(data, ends)

    def _gather(self, data: bytes, ends: int) -> None:
        """The less common buffers: without a frame end, after one without, short or large."""
        if not ends:
            # Frame ends of streams with CR LF lines are recognised only here.
            ends = data.count(b"}\r\n\r\n" if self._framing is Framing.SSE else b"}\r\n")
        self.frames += ends
        held = self._open
        if held is None:
            held = self._open = bytearray()
        held += data
        if len(held) > LONGEST_FRAME:
            del held[:-TAIL]
        if ends and len(held) >= RUN:
            self._oldest = self._older
            self._older = self._last
            self._last = self._end_of(held)
            held.clear()

    def _end_of(self, run: bytearray) -> bytes:
        """The last frames of a run. It is cut where a frame ends, so that the last one stays complete whatever its
        size."""
        cut = run.rfind(self._end, 0, len(run) - TAIL) if len(run) > TAIL else -1
        return bytes(run[cut + len(self._end) :] if cut >= 0 else run)

    def finish(self) -> Usage | None:
        """The usage the engine reported in its last frames, or None. May be called again after more buffers."""
        payload = self._payload()
        if self._framing is Framing.NDJSON:
            return self._finish_lines(payload)
        return self._finish_events(payload)

    def estimate(self) -> Usage:
        """A lower bound of what an unfinished stream used: one token per frame, and the prompt's tokens if the stream
        reported them."""
        if self.opening is None:
            return Usage(0, self.frames, reported=False)
        told = _of_block(self.opening.usage)
        return Usage(told.prompt_tokens, self.frames, told.cached_tokens, reported=False)

    def _payload(self) -> bytes:
        """The kept end of the stream without HTTP chunk framing, and with LF line ends."""
        tail = b"".join((self._oldest, self._older, self._last, self._open or b""))
        if b"\r" in tail:
            tail = _unchunked(b"\r\n" + tail)  # it may begin with a chunk size
        return lines_of(tail)

    def _finish_events(self, payload: bytes) -> Usage | None:
        for text in reversed(payload.rsplit(b"\n\n", _LOOK_BACK)):
            data = event_data(text)
            if data.startswith(b"[DONE]"):
                self.terminated = True
                continue
            frame = _decode(data)
            if frame is None:
                continue
            self.terminated = self.terminated or frame.type in _LAST_TYPES
            usage = _usage_of(frame) if self.opening is None else _of_message(frame.usage, self.opening.usage)
            if usage is not None:
                return usage
        return None

    def _finish_lines(self, payload: bytes) -> Usage | None:
        lines = [line for line in payload.rsplit(b"\n", _LOOK_BACK) if line.strip()]
        for line in reversed(lines):
            frame = _decode(line)
            if frame is None:
                usage = _lines_tail(line) if line is lines[-1] else None
                self.terminated = self.terminated or usage is not None
                if usage is not None:
                    return usage
                continue
            if frame.done:
                self.terminated = True
                return _counts(frame)
        return None


def payload_end(raw: bytes) -> bytes:
    """The last payload bytes of a complete chunked body: enough to find its usage."""
    return _unchunked(raw[-PARSED_WHOLE:])


def _unchunked(tail: bytes) -> bytes:
    """The end of a chunked body without its framing. For a body with other framing, or an incomplete one, a best guess.

    Content may look like a size line, for example the first letters of `data:` where a chunk ends after them. So
    framing is taken to start at the first line from which the sizes lead exactly to the last chunk.
    """
    end = _last_chunk(tail)
    failed: set[int] = set()
    for line in _CHUNK_SIZE.finditer(tail):
        if end < 0 or len(failed) > _MOST_LINES:
            break
        chunks = _chunks_between(tail, line, end, failed)
        if chunks is not None:
            return tail[: line.start()] + b"".join(chunks)
    return _SIZE_LINE.sub(b"", tail)


def _last_chunk(tail: bytes) -> int:
    """Where the size line of the last chunk begins, after which only trailers follow; -1 if there is none."""
    lowest, at = max(0, len(tail) - _SHORT_TRAILERS), len(tail)
    while (at := tail.rfind(b"\r\n0", lowest, at)) >= 0:
        if _BODY_END.match(tail, at):
            return at
    return -1


def _chunks_between(tail: bytes, line: re.Match[bytes], end: int, failed: set[int]) -> list[bytes] | None:
    """The chunks from this size line to the last chunk at `end`; None if the sizes do not lead there.

    `failed` has the lines known not to lead there, and is extended: each line is followed only once.
    """
    chunks: list[bytes] = []
    following: re.Match[bytes] | None = line
    while following is not None and following.start() not in failed:
        if following.start() == end:
            return chunks
        failed.add(following.start())
        start = following.end() + 2
        after = min(start + int(following[1], 16), len(tail))  # content that only looks like a size may be any number
        chunks.append(tail[start:after])
        following = _CHUNK_SIZE.match(tail, after)
    return None


def lines_of(text: bytes) -> bytes:
    """`text` with all line ends as LF."""
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in text else text


def event_data(frame: bytes) -> bytes:
    """The data of one event: its `data:` lines without the field name, joined. A stream may begin with a byte order
    mark."""
    if frame.startswith(b"data: ") and b"\n" not in frame:
        return frame[6:]
    frame = frame.removeprefix(BOM)
    lines = [line[5:].removeprefix(b" ") for line in frame.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


def _decode(text: bytes) -> Frame | None:
    """One frame; None if it is not a JSON object, or if its members have other types than in the APIs."""
    if not text.lstrip().startswith(b"{"):
        return None
    try:
        return FRAME.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _usage_of(frame: Frame) -> Usage | None:
    """The usage of an OpenAI-shaped frame or answer."""
    block = frame.usage
    if block is None and isinstance(frame.response, Response):
        block = frame.response.usage
    if block is not None:
        return _told(_of_block(block, frame.timings))
    timings = frame.timings
    if timings is None:
        return None
    return Usage(timings.prompt_n + timings.cache_n, timings.predicted_n, timings.cache_n)


def _told(usage: Usage) -> Usage | None:
    """None if all counts are zero, since every request has tokens. Ollama writes such a usage into every chunk of a
    completion but the last, and other engines do if they do not count."""
    return usage if usage.prompt_tokens or usage.completion_tokens else None


def _of_message(block: Block | None, opening: Block) -> Usage | None:
    """The usage of an Anthropic stream: its last event has the output, and may report the input again.

    Older versions of Ollama report the input in neither event. Then it is an estimate, since every prompt has tokens.
    """
    if block is None:
        return None
    usage = _of_block(
        Block(
            input_tokens=block.input_tokens or opening.input_tokens,
            output_tokens=block.output_tokens,
            cache_read_input_tokens=block.cache_read_input_tokens or opening.cache_read_input_tokens,
            cache_creation_input_tokens=block.cache_creation_input_tokens or opening.cache_creation_input_tokens,
        )
    )
    if usage.prompt_tokens:
        return usage
    return Usage(0, usage.completion_tokens, reported=False)


def _of_block(block: Block, timings: Timings | None = None) -> Usage:
    details = block.prompt_tokens_details or block.input_tokens_details
    cached = details.cached_tokens if details is not None else None
    if cached is None:
        cached = timings.cache_n if timings is not None else 0
    completion = block.completion_tokens or block.output_tokens or 0
    read, written = block.cache_read_input_tokens or 0, block.cache_creation_input_tokens or 0
    if not block.prompt_tokens and (read or written):
        return Usage((block.input_tokens or 0) + read + written, completion, read)
    # Some rerankers report only the total (Jina's API, older vLLM).
    prompt = block.prompt_tokens or block.input_tokens or (block.total_tokens or 0) - completion
    return Usage(prompt, completion, cached)


def _counts(frame: Frame) -> Usage:
    """Ollama's counts; it leaves out a count of zero."""
    return Usage(frame.prompt_eval_count or 0, frame.eval_count or 0)


def usage_of_body(framing: Framing, body: bytes) -> Usage | None:
    """The usage of a whole JSON answer, or of the tail of a long one; None if the engine reported none."""
    native = framing is Framing.NDJSON
    if not native and (usage := _last_member(body)) is not None:
        return usage
    in_tail = _lines_tail if native else _events_tail
    if len(body) > PARSED_WHOLE and (usage := in_tail(body)) is not None:
        return usage
    frame = _decode(body)
    if frame is None:
        return in_tail(body)
    if not native:
        return _usage_of(frame)
    known = frame.done or frame.prompt_eval_count is not None or frame.eval_count is not None
    return _counts(frame) if known else None


def _last_member(body: bytes) -> Usage | None:
    """The usage of an answer that ends with it, as engines usually write it: a tenth of the cost of decoding the whole
    answer.

    The text between the key and the answer's own closing brace must be one object, otherwise the key belongs to a
    nested object.
    """
    at = body.rfind(b'"usage":{', max(0, len(body) - LONGEST_USAGE))
    # `find`: `in` first tries its left side as a number, which costs as much as the search.
    if at < 0 or not body.endswith(b"}}") or body.find(b'"timings"') >= 0:
        return None
    try:
        return _told(_of_block(BLOCK.decode(body[at + 8 : -1])))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def usage_within(framing: Framing, text: bytes) -> Usage | None:
    """The usage in a part of a long answer, for engines that write more after it (vLLM: `prompt_logprobs`)."""
    if framing is Framing.NDJSON:
        return _lines_tail(text, len(text))
    return _events_tail(text, len(text)) if text.find(b'_tokens"') >= 0 else None


def _events_tail(body: bytes, reach: int = 4096) -> Usage | None:
    """The last `usage` object near the end. A JSON string cannot contain a raw quote, so what looks like the key is
    one."""
    start = max(0, len(body) - reach)
    found = _USAGE_AT_END.findall(body, start)
    if not found:
        return None
    timings = _TIMINGS_AT_END.findall(body, start) or [b"null"]
    frame = _decode(b'{"usage":%b,"timings":%b}' % (found[-1], timings[-1]))
    return _usage_of(frame) if frame is not None else None


def _lines_tail(body: bytes, reach: int = 512) -> Usage | None:
    counts = {key: int(number) for key, number in _COUNT_AT_END.findall(body, max(0, len(body) - reach))}
    if b"total_duration" not in counts and b"prompt_eval_count" not in counts:
        return None
    return Usage(counts.get(b"prompt_eval_count", 0), counts.get(b"eval_count", 0))
