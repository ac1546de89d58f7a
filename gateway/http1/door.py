"""How many connections there may be, of all clients and of one address (H3). Counts only; must not know what they say.

TLS connections count from their accept on: those that never shake hands would be in no cap otherwise.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from gateway.config import Caps


class Door:
    """Every connection comes in by `opened` and goes by `closed`; one with a handshake before it by `enter` and
    `leave` too. `shared` tells the addresses that stand for many clients (trusted proxies): no cap of one holds for
    them. `refused` counts."""

    def __init__(self, caps: Caps, shared: Callable[[str], bool]) -> None:
        self.caps = caps
        self.shared = shared
        self.refused = 0
        self._open = 0
        self._greeting: dict[Any, str] = {}
        self._of_address: Counter[str] = Counter()

    def enter(self, connection: Any, peer: str) -> bool:
        """A handshake with this address begins. False: there are too many."""
        self._greeting[connection] = peer
        self._of_address[peer] += 1
        return self._has_room(peer)

    def leave(self, connection: Any) -> None:
        """The handshake is over, or it came to nothing. Idempotent."""
        peer = self._greeting.pop(connection, None)
        if peer is not None:
            self._forget(peer)

    def opened(self, connection: Any, peer: str) -> bool:
        """A connection is there. False: it is one too many, and `closed` all the same later."""
        self._open += 1
        self._of_address[peer] += 1
        self.leave(connection)
        return self._has_room(peer)

    def closed(self, peer: str) -> None:
        self._open -= 1
        self._forget(peer)

    def _has_room(self, peer: str) -> bool:
        """Whether the one that was counted last may stay."""
        caps = self.caps
        room = self._open + len(self._greeting) <= caps.connections
        if room and (self._of_address[peer] <= caps.connections_per_ip or self.shared(peer)):
            return True
        self.refused += 1
        return False

    def _forget(self, peer: str) -> None:
        self._of_address[peer] -= 1
        if not self._of_address[peer]:
            del self._of_address[peer]

    def __repr__(self) -> str:
        return f"<Door open={self._open} greeting={len(self._greeting)} addresses={len(self._of_address)}>"
