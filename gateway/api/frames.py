"""Which frames of a stream the client may see: neither the usage frame it did not ask for, nor an engine's own error
text.

Decides on whole frames (SSE and NDJSON), and whether a plain answer with a success status is an error. Must not know
sockets, HTTP framing or who is asking.
"""

import re
from typing import Final

import msgspec

from gateway.api.dialect import Framing
from gateway.api.stream import LONGEST_FRAME, TAIL, event_data, lines_of
from gateway.api.views import OUTLINE

FRAME_END: Final = re.compile(rb"\n\r?\n|\r\r")
_END: Final = {Framing.SSE: FRAME_END, Framing.NDJSON: re.compile(rb"\n")}
# Ends of a frame together with the chunk around it
_CLEAN_END: Final = {Framing.SSE: b"\n\n\r\n", Framing.NDJSON: b"\n\r\n"}
_SIZE_LINE: Final = 6  # longest usual size line in bytes; a second chunk cannot begin earlier
_ERROR: Final = b"error"  # in every frame by which an engine reports a failure
_ERROR_KEY: Final = b'"error"'  # quotes in a JSON string are escaped, so this is a key or a whole value
_ERROR_LINE: Final = re.compile(rb"^(?:\xef\xbb\xbf)?(?:error:|event: ?error *$)", re.MULTILINE)
"""An event that official clients raise as an error, and the field name under which older llama.cpp sent its own."""
_ERROR_TYPES: Final = frozenset({b'"error"', b'"response.failed"'})
_FALSY: Final = frozenset({b"null", b"false", b'""', b"{}", b"[]", b"0"})
PLAIN_START: Final = 128
"""Maximum bytes of a plain answer that are inspected to tell whether it is an error."""
_ERROR_STARTS: Final = (b'{"error":', b'{"type":"error","error":')
_PLAIN_ERROR: Final = re.compile(rb'\s*\{\s*(?:"type"\s*:\s*"error"\s*,\s*)?"error"\s*:\s*(?:"[^"]|\{\s*")')
"""Only errors begin like this: normal answers with an `error` key have it further back, or it is null."""
_USAGE_OBJECT: Final = re.compile(rb'"usage"[ \t]*:[ \t]*\{')


class FrameFilter:
    """Takes the payload of a stream and returns what may pass: every byte before a frame that reports a failure.

    That frame and everything after it are kept back; `failed` has its text, "" until then. With `hide_usage` the extra
    usage frame, which has a `usage` object and empty `choices`, is removed (A7). An incomplete frame is held until its
    end shows what it is. It is released earlier only if it is longer than 64 KiB without mentioning an error (1 MiB if
    it does).
    """

    __slots__ = ("_clean", "_framing", "_held", "_hide", "_inside", "at_boundary", "failed")

    def __init__(self, framing: Framing = Framing.SSE, *, hide_usage: bool = False) -> None:
        self._framing = framing
        self._clean = _CLEAN_END[framing]
        self._hide = hide_usage
        self._held = b""
        self._inside = False  # the beginning of the current frame was released
        self.at_boundary = True  # the output so far ends where a frame ends
        self.failed = ""

    def passes(self, data: bytes) -> bool:
        """Whether raw HTTP chunks may bypass this filter, which must be `idle`.

        True only for whole chunks of whole frames, none of which could have to be removed.
        """
        # rfind takes half the time of `in` here, whose preparation does not pay off for a short buffer.
        if not data.endswith(self._clean) or data.rfind(_ERROR) >= 0:
            return False
        # More than one chunk: each has to end a frame, otherwise chunk framing could split a word that is searched for.
        if data.find(b"\r", _SIZE_LINE, -2) > 0 and 2 * data.count(self._clean) != data.count(b"\r"):
            return False
        return not self._hide or data.rfind(b'"usage"') < 0 or _USAGE_OBJECT.search(data) is None

    def feed(self, data: bytes) -> bytes:
        """The bytes that may pass now."""
        if self.failed:
            return b""
        text = self._held + data if self._held else data
        passed = []
        start = 0
        # A frame end has three bytes, at most two of which were held.
        for end in _END[self._framing].finditer(text, max(0, len(self._held) - 2)):
            frame = self._judged(text[start : end.end()])
            if frame is None:
                text = b""  # nothing after it passes
                break
            passed.append(frame)
            self._inside = False
            start = end.end()
        self._rest(text[start:], passed)
        out = b"".join(passed)
        if out:
            self.at_boundary = not self._inside
        return out

    def _judged(self, frame: bytes) -> bytes | None:
        """The frame; empty if it is to be hidden; None if it reports a failure."""
        if self._inside:
            return frame
        if frame.find(_ERROR) >= 0 and _tells_of_failure(frame, self._framing):
            self.failed = frame[:500].decode("utf-8", "replace")
            return None
        return b"" if self._hide and _is_extra(frame) else frame

    def _rest(self, rest: bytes, passed: list[bytes]) -> None:
        """Hold or release the incomplete frame at the end."""
        if self._inside or len(rest) > (LONGEST_FRAME if _ERROR in rest else TAIL):
            self._inside = self._inside or bool(rest)
            # The last two bytes may begin a frame end, which has to be seen as a whole.
            keep = min(len(rest) - len(rest.rstrip(b"\r\n")), 2)
            passed.append(rest[: len(rest) - keep])
            rest = rest[len(rest) - keep :]
        self._held = rest

    @property
    def idle(self) -> bool:
        """Nothing is held, and the output ends between two frames: whole raw buffers may bypass the filter again."""
        return not self._held and not self._inside

    def flush(self) -> bytes:
        """What is still held at the end of the stream; an incomplete frame passes unless it would be removed."""
        held, self._held = self._judged(self._held), b""
        if held:
            self.at_boundary = False
        return held or b""


def may_be_error(answer: bytes) -> bool:
    """Whether a plain answer that starts like this is an engine's error (A5), or might still turn out to be one."""
    # Almost all answers begin so: decided at once
    if len(answer) > 2 and answer[:2] == b'{"' and answer[2] not in b"et":
        return False
    compact = answer[:PLAIN_START].translate(None, b" \t\r\n")
    openai, anthropic = _ERROR_STARTS
    return openai.startswith(compact[: len(openai)]) or anthropic.startswith(compact[: len(anthropic)])


class PlainFilter:
    """Takes the payload of a plain answer. Returns it once its first bytes have shown that it is not an error;
    otherwise returns nothing, and `failed` has the beginning of the error ("" until then)."""

    __slots__ = ("_held", "_judged", "at_boundary", "failed")

    def __init__(self) -> None:
        self._held = b""
        self._judged = False
        self.at_boundary = False  # a plain answer has no frames
        self.failed = ""

    def feed(self, data: bytes) -> bytes:
        """The bytes that may pass now."""
        if self.failed:
            return b""
        if self._judged:
            return data
        self._held += data
        return b"" if len(self._held) < PLAIN_START and may_be_error(self._held) else self.flush()

    def flush(self) -> bytes:
        """What is still held, judged as it is."""
        held, self._held = self._held, b""
        if not self._judged and _PLAIN_ERROR.match(held):
            self.failed = held[:500].decode("utf-8", "replace")
        self._judged = True
        return b"" if self.failed else held


def _data_of(frame: bytes, framing: Framing) -> list[bytes]:
    """The data of the events in `frame`: several if its line ends are mixed, none if it is a comment."""
    if framing is Framing.NDJSON:
        return [frame]
    return [event_data(event) for event in lines_of(frame).split(b"\n\n") if event]


def _tells_of_failure(frame: bytes, framing: Framing) -> bool:
    """Whether the engine reports a failure. A frame that mentions an error and cannot be parsed counts as one (H8)."""
    if framing is Framing.SSE and _ERROR_LINE.search(lines_of(frame)):
        return True
    for data in _data_of(frame, framing):
        if _ERROR_KEY not in data:
            continue
        try:
            judged = OUTLINE.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if data.lstrip().startswith(b"{"):
                return True
        else:
            if bytes(judged.error) not in _FALSY or bytes(judged.type) in _ERROR_TYPES:
                return True
    return False


def _is_extra(frame: bytes) -> bool:
    """Whether this is the extra frame that has the usage of the whole stream and no content."""
    if frame.find(b'"usage"') < 0:
        return False
    try:
        judged = OUTLINE.decode(event_data(lines_of(frame).strip(b"\n")))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return bytes(judged.choices).translate(None, b" \t\r\n") == b"[]" and bytes(judged.usage).startswith(b"{")
