"""Connections of the admin listener: no client can keep one by sending nothing or by reading nothing.

Owns the timeouts of a request and of its answer, and which connection is closed when the listener is full. Extends
uvicorn's protocol by its public members and the methods overridden here; HTTP itself is uvicorn's.
"""

import asyncio
import itertools
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS: Final = 64  # enough for a scraper, a console and a few probes; further requests get a 503
HEAD_SECONDS: Final = 10.0  # from the start of a connection, or the previous answer, to a complete head
ANSWER_SECONDS: Final = 300.0  # from the head to the last byte that the client has read
_PLACES: Final = itertools.count(1)


class AdminProtocol(H11Protocol):
    """One connection."""

    head_seconds = HEAD_SECONDS
    answer_seconds = ANSWER_SECONDS
    place = 0  # order of waiting: a connection that began to wait earlier has a lower number
    _end: asyncio.TimerHandle | None = None

    @property
    def answering(self) -> bool:
        """Whether a request is here whose answer is not complete."""
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
        """Close the connection in so many seconds, unless this is called again before."""
        if self._end is not None:
            self._end.cancel()
        self._end = self.loop.call_later(seconds, self.transport.abort)
        self.place = next(_PLACES)

    def _make_room(self) -> None:
        """Close another connection: the one that has waited longest for a head, or else one whose answer is still being
        read. If all are being answered, uvicorn refuses this one."""
        others = [other for other in self.connections if isinstance(other, AdminProtocol) and other is not self]
        idle = [
            (other.transport.get_write_buffer_size() > 0, other.place, other) for other in others if not other.answering
        ]
        if idle:
            _, _, longest = min(idle)
            self.connections.discard(longest)  # now, because uvicorn learns of its end only in a later turn of the loop
            longest.transport.abort()
