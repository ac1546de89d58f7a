"""Which party has the longest queue for its share, while all queues together are near their limit.

Owns a lazy heap over parties by load = waiting requests / share. Must not know what the result is used for.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

from scheduler.party import User

_Entry = tuple[float, int, User]

_LEAST: Final = 100_000
"""Heap entries before outdated ones are removed. Beyond this, they are removed when half of the entries may be
outdated, so the cost per request does not grow with the crowd."""


class Crowd:
    """An exact maximum. Growing queues are reported at once (`grew`), shrinking ones are noticed at the top of the
    heap. A smaller share also increases the load but is not reported: the owner creates a new Crowd when `Ledger.falls`
    differs from `falls`."""

    __slots__ = ("_heap", "_most", "_serial", "falls")

    def __init__(self, nodes: list[User], falls: int = 0) -> None:
        self.falls = falls
        self._serial = 0
        self._heap: list[_Entry] = []
        self._collect(nodes)

    def _collect(self, nodes: list[User]) -> None:
        self._heap = [(-load(node), serial, node) for serial, node in enumerate(nodes)]
        self._serial = len(nodes)
        heapify(self._heap)
        self._most = max(_LEAST, 2 * len(nodes))

    def grew(self, node: User) -> None:
        """The party's queue became longer."""
        self._serial += 1
        heappush(self._heap, (-load(node), self._serial, node))
        if len(self._heap) > self._most:
            self._collect(list({id(entry[2]): entry[2] for entry in self._heap if entry[2].n}.values()))

    def longest(self) -> User | None:
        """The party with the highest load; None if nobody waits."""
        heap = self._heap
        while heap:
            key, serial, node = heap[0]
            exact = -load(node)
            if exact == 0.0:
                heappop(heap)
            elif exact > key:
                heapreplace(heap, (exact, serial, node))
            else:
                return node
        return None


def load(node: User) -> float:
    """Waiting requests per share."""
    return node.n / node.account.share
