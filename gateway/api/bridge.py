"""Routes of one API on engines that speak another (A4): what stands between the client's words and the engine's.

Owns what a bridge is; each pair of APIs has modules of its own, and `bridges` the table. Pure: a bridge is asked with
the time where an API tells of durations. Nothing here is used where client and engine speak the same API.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.api.dialect import Framing


class Sieve(Protocol):
    """What a stream's payload goes through on its way to the client: `frames.FrameFilter`, or a translation.

    `failed` has the text by which the engine says that it failed, "" until then; behind it nothing passes.
    `at_boundary`: what was given back so far ends where a frame of the client's ends.
    """

    failed: str
    at_boundary: bool

    def feed(self, data: bytes) -> bytes:
        """What may pass of the payload so far."""
        ...

    def flush(self) -> bytes:
        """The rest, when the stream has ended."""
        ...


class Translation(Sieve, Protocol):
    """Also takes for a failure what it cannot read: `garbled` says that it was this, not the engine's own word."""

    garbled: bool


@dataclass(frozen=True)
class Bridge:
    """One route of the client's API by one of the engine's. The engine streams server-sent events, as OpenAI's API.

    `request`: body, model and the most output tokens -> the engine's body; raises BadRequest for what has no
    counterpart. `answer`: a whole answer and the seconds it took -> the client's; raises ValueError for what is none.
    `stream`: a clock in seconds and when the request was sent by it -> the translation of one stream.
    """

    upstream: bytes
    request: Callable[[bytes, str, int], bytes]
    answer: Callable[[bytes, float], bytes]
    stream: Callable[[Callable[[], float], float], Translation]
    media: bytes
    framing: Framing = Framing.SSE


class Crossing:
    """One exchange over a bridge: `clock` in seconds, `sent` when the request was sent by it.

    `media` is the type of a stream, and of a whole answer if `as_stream`.
    """

    as_stream = False

    def __init__(self, bridge: Bridge, clock: Callable[[], float], sent: float) -> None:
        self._bridge = bridge
        self._clock = clock
        self._sent = sent
        self.framing = bridge.framing
        self.media = bridge.media

    def stream(self) -> Translation:
        """The translation of its stream."""
        return self._bridge.stream(self._clock, self._sent)

    def answer(self, body: bytes) -> bytes:
        """The translation of its whole answer. Raises ValueError for what is none."""
        return self._bridge.answer(body, self._clock() - self._sent)
