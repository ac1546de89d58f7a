"""A whole completion as a stream, for engines that ignore `stream` although the client asked for one.

Owns its form as a stream of OpenAI's API; the engine's own values keep their bytes. Must not know who is asking. Not
compiled (`hatch_build.py`): it has records that need msgspec's options.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from gateway.api.bridge import Bridge, Crossing, Translation
from gateway.api.completion import read

SSE: Final = b"text/event-stream"

_Members = dict[str, msgspec.Raw]
_WHOLE: Final = msgspec.json.Decoder(_Members)
_CHOICES: Final = msgspec.json.Decoder(list[_Members])
_CALLS: Final = msgspec.json.Decoder(list[_Members] | None)


def stream_of(body: bytes, *, usage: bool) -> bytes:
    """A whole completion as the frames of a stream: one frame with all of it, and one with the usage if asked for.
    Raises ValueError for an invalid completion."""
    made = read(_WHOLE, body)
    choices = read(_CHOICES, bytes(made.get("choices", b"[]")))
    if not choices:
        raise ValueError(f"no choices in {body[:500]!r}")
    counts = made.pop("usage", None)
    if any("message" in choice for choice in choices):
        made["object"] = msgspec.Raw(b'"chat.completion.chunk"')
    frames = [made | {"choices": _raw([_chunk(choice) for choice in choices])}]
    if usage and counts is not None:
        frames.append(made | {"choices": _raw([]), "usage": counts})
    return b"".join([b"data: %b\n\n" % _line(frame) for frame in frames]) + b"data: [DONE]\n\n"


def _chunk(choice: _Members) -> _Members:
    """A choice in the form it has in a chunk, where tool calls are numbered."""
    if "message" not in choice:
        return choice
    message = read(_WHOLE, bytes(choice["message"]))
    calls = read(_CALLS, bytes(message.get("tool_calls", b"null")))
    if calls:
        message["tool_calls"] = _raw([{"index": _raw(number)} | call for number, call in enumerate(calls)])
    return {name: value for name, value in choice.items() if name != "message"} | {"delta": _raw(message)}


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _line(frame: _Members) -> bytes:
    """The frame on one line. Engines may spread JSON over several lines; outside strings, line ends are white space."""
    return msgspec.json.encode(frame).translate(_SPACES)


_SPACES: Final = bytes.maketrans(b"\r\n", b"  ")


class Unstreamed(Crossing):
    """A stream made of an engine's whole answer, over a bridge or in OpenAI's own API; includes the usage if
    `usage`."""

    as_stream = True

    def __init__(self, bridge: Bridge | None, clock: Callable[[], float], sent: float, *, usage: bool) -> None:
        super().__init__(bridge or _OWN, clock, sent)
        self._usage = usage or bridge is not None

    def answer(self, body: bytes) -> bytes:
        """The whole stream. Raises ValueError for an invalid completion."""
        frames = stream_of(body, usage=self._usage)
        if self._bridge is _OWN:
            return frames
        sieve = self.stream()
        made = sieve.feed(frames) + sieve.flush()
        if sieve.failed:
            raise ValueError(sieve.failed)
        return made


def _no_sieve(clock: Callable[[], float], sent: float) -> Translation:
    raise ValueError("no bridge is crossed")


_OWN: Final = Bridge(
    upstream=b"",
    request=lambda body, model, cap: body,
    answer=lambda body, seconds: body,
    stream=_no_sieve,
    media=SSE,
)
