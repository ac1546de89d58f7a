"""Which party has the longest queue for its share, while all queues together are near their cap.

Owns a lazy heap over parties by load = waiting requests / share. Must not know why it is asked.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

from scheduler.party import User

_Entry = tuple[float, int, User]

_LEAST: Final = 100_000
"""Entries before superseded ones are thrown out; from then on it is done when half of them may be superseded, so its
price per request does not grow with the crowd."""


class Crowd:
    """Exact maximum: growth is told at once (`grew`), shrinking is found at the top. A fall of a share is growth
    that nobody tells: the owner makes another when `Ledger.falls` is no longer `falls`."""

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
        """The party with the greatest load; None if nobody waits."""
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
