"""Bridges translate between the client's API and another one that the engine speaks (A4).

Defines what a bridge is; each pair of APIs has modules of its own, and `bridges` has the table. Pure: where an API
reports durations, the time is passed in. Nothing here is used if client and engine speak the same API.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.api.dialect import Framing


class Sieve(Protocol):
    """Filters the payload of a stream on its way to the client: `frames.FrameFilter`, or a translation.

    `failed` has the text by which the engine reports a failure, "" until then; nothing after it passes. `at_boundary`:
    the output so far ends where a frame of the client's API ends.
    """

    failed: str
    at_boundary: bool

    def feed(self, data: bytes) -> bytes:
        """The output for the payload so far."""
        ...

    def flush(self) -> bytes:
        """The rest of the output, after the end of the stream."""
        ...


class Translation(Sieve, Protocol):
    """Also treats input that it cannot read as a failure; then `garbled` is set, to tell it from the engine's own
    error."""

    garbled: bool


@dataclass(frozen=True)
class Bridge:
    """Serves one route of the client's API by one of the engine's, whose streams are server-sent events as in OpenAI's
    API.

    `request`: body, model and maximum output tokens -> the engine's body; raises BadRequest for what cannot be
    expressed there. `answer`: a whole answer and the seconds it took -> the client's answer; raises ValueError for an
    invalid one. `stream`: a clock in seconds and the time by it when the request was sent -> the translation of one
    stream.
    """

    upstream: bytes
    request: Callable[[bytes, str, int], bytes]
    answer: Callable[[bytes, float], bytes]
    stream: Callable[[Callable[[], float], float], Translation]
    media: bytes
    framing: Framing = Framing.SSE


class Crossing:
    """The translation of one exchange. `clock` is in seconds; `sent` is when the request was sent, by that clock.

    `media` is the type of a stream. If `as_stream`, it is also the type of a whole answer, which becomes a stream.
    """

    as_stream = False

    def __init__(self, bridge: Bridge, clock: Callable[[], float], sent: float) -> None:
        self._bridge = bridge
        self._clock = clock
        self._sent = sent
        self.framing = bridge.framing
        self.media = bridge.media

    def stream(self) -> Translation:
        """The translation of the exchange's stream."""
        return self._bridge.stream(self._clock, self._sent)

    def answer(self, body: bytes) -> bytes:
        """The translation of its whole answer. Raises ValueError for an invalid one."""
        return self._bridge.answer(body, self._clock() - self._sent)
