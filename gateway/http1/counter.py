"""Caps on the number of connections, in total and per address (H3). Only counts; must not know what is sent on them.

A TLS connection counts from its accept on. Otherwise clients that never finish a handshake would escape the caps.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from gateway.config import Caps


class ConnectionCounter:
    """Counts connections. Every connection calls `opened` and `closed`; a TLS handshake before it calls `enter` and
    `leave`. `shared` tells which addresses stand for many clients (trusted proxies): the cap per address does not apply
    to them. `refused` counts refusals."""

    def __init__(self, caps: Caps, shared: Callable[[str], bool]) -> None:
        self.caps = caps
        self.shared = shared
        self.refused = 0
        self._open = 0
        self._greeting: dict[Any, str] = {}
        self._of_address: Counter[str] = Counter()

    def enter(self, connection: Any, peer: str) -> bool:
        """A handshake with this address begins. False: it exceeds a cap."""
        self._greeting[connection] = peer
        self._of_address[peer] += 1
        return self._has_room(peer)

    def leave(self, connection: Any) -> None:
        """The handshake succeeded or failed. Idempotent."""
        peer = self._greeting.pop(connection, None)
        if peer is not None:
            self._forget(peer)

    def opened(self, connection: Any, peer: str) -> bool:
        """A connection is open. False: it exceeds a cap. `closed` must be called for it either way."""
        self._open += 1
        self._of_address[peer] += 1
        self.leave(connection)
        return self._has_room(peer)

    def closed(self, peer: str) -> None:
        self._open -= 1
        self._forget(peer)

    def _has_room(self, peer: str) -> bool:
        """Whether the connection counted last is within the caps."""
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
        return f"<ConnectionCounter open={self._open} greeting={len(self._greeting)} addresses={len(self._of_address)}>"
