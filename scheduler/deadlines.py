"""One heap of queue deadlines for all pools.

Owns the order of deadlines. Must not know why a request expires. Requests that stopped waiting leave dead entries; when
these outnumber the live ones, they are moved to a new heap in slices, one per operation, so that no operation takes
long.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from typing import Final

from scheduler.request import QUEUED, Request

_SLICE: Final = 64


class Deadlines:
    """`next` and `pop_due` return live entries only; the owner maintains `live`."""

    __slots__ = ("_heap", "_old", "live")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._old: list[tuple[float, int, Request]] = []
        """The heap being replaced. Removing entries from its end keeps it a heap."""
        self.live = 0

    def push(self, request: Request) -> None:
        """A request with a finite deadline starts to wait."""
        self.live += 1
        heappush(self._heap, (request.deadline, request.id, request))
        if self._old:
            self._move()
        elif len(self._heap) > 2 * self.live + 64:
            self._heap, self._old = [], self._heap

    def _move(self) -> None:
        old = self._old
        for _ in range(min(_SLICE, len(old))):
            entry = old.pop()
            if entry[2].state == QUEUED:
                heappush(self._heap, entry)

    def next(self) -> float:
        """The earliest deadline of a waiting request; infinity if there is none."""
        return min(_first(self._heap), _first(self._old))

    def pop_due(self, now: float) -> Request | None:
        """A waiting request whose deadline has passed, the earliest first."""
        heap = self._heap if _first(self._heap) <= _first(self._old) else self._old
        if _first(heap) > now:
            return None
        return heappop(heap)[2]


def _first(heap: list[tuple[float, int, Request]]) -> float:
    while heap and heap[0][2].state != QUEUED:
        heappop(heap)
    return heap[0][0] if heap else inf
