"""Connections of the admin listener: none keeps its place by saying nothing, or by reading nothing.

Owns how long a request may take to come and its answer to go, and who leaves when the listener is full. Knows uvicorn's
protocol by its public members and by what is overridden here; HTTP itself is uvicorn's.
"""

import asyncio
import itertools
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS: Final = 64  # a scraper, a console and a few probes need less; from here on a request gets a 503
HEAD_SECONDS: Final = 10.0  # from a connection, or the answer before, to a whole head
ANSWER_SECONDS: Final = 300.0  # from there to the last byte that the client has read
_PLACES: Final = itertools.count(1)


class Door(H11Protocol):
    """One connection."""

    head_seconds = HEAD_SECONDS
    answer_seconds = ANSWER_SECONDS
    place = 0  # among all that wait: who began to wait before has a lower one
    _end: asyncio.TimerHandle | None = None

    @property
    def answering(self) -> bool:
        """Whether a request is here whose answer is not written."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._allow(self.head_seconds)
        if len(self.connections) >= CONNECTIONS:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        if not self.answering and len(self.connections) >= CONNECTIONS:
            self._make_room()
        super().data_received(data)
        if self.cycle is not before and self.answering:
            self._allow(self.answer_seconds)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        unread = self.answering or self.transport.get_write_buffer_size()
        self._allow(self.answer_seconds if unread else self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)

    def _allow(self, seconds: float) -> None:
        """End in so many seconds, unless something happens before."""
        if self._end is not None:
            self._end.cancel()
        self._end = self.loop.call_later(seconds, self.transport.abort)
        self.place = next(_PLACES)

    def _make_room(self) -> None:
        """Another one leaves: that which has waited longest for a head, before any whose answer is still on its way;
        where all are being answered, uvicorn tells this one so."""
        others = [other for other in self.connections if isinstance(other, Door) and other is not self]
        idle = [
            (other.transport.get_write_buffer_size() > 0, other.place, other) for other in others if not other.answering
        ]
        if idle:
            _, _, longest = min(idle)
            self.connections.discard(longest)  # at once: its end is told in a later turn of the loop
            longest.transport.abort()
