"""What all requests together hold: body bytes, open requests of each key, and who waits for a slot.

Plain counters of one process, kept exact by `settle`. Must not know how a request is served.
"""

from typing import TYPE_CHECKING

from gateway.flow.held import LedgerStats, Waiting

if TYPE_CHECKING:
    from gateway.flow.exchange import Exchange


class Ledger:
    """Bounds of the process (H3) and the view behind `GET /api/queue`."""

    def __init__(self, body_bytes: int) -> None:
        self.body_limit = body_bytes
        self.body_bytes = 0
        self._open: dict[str, int] = {}
        # By identity: two requests may carry the same id, which clients choose.
        self._waiting: dict[str, dict[Exchange, None]] = {}

    def hold_body(self, x: "Exchange", size: int) -> bool:
        """Count the `size` bytes of this request's body that are here. False: no room for more of it."""
        if self.body_bytes + size - x.body_held > self.body_limit:
            return False
        self.body_bytes += size - x.body_held
        x.body_held = size
        return True

    def shrink_body(self, x: "Exchange", size: int) -> None:
        """The body turned out smaller than what was held for it; 0 when it is no longer needed."""
        self.body_bytes += size - x.body_held
        x.body_held = size

    def enter(self, x: "Exchange", most: int) -> bool:
        """Count a request of its key as open. False: the key has `most` open already."""
        key = x.principal.key
        count = self._open.get(key, 0)
        if count >= most:
            return False
        self._open[key] = count + 1
        x.counted = True
        return True

    def leave(self, x: "Exchange") -> None:
        """Give back all that `x` holds. Idempotent."""
        if x.body_held:
            self.shrink_body(x, 0)
        if x.counted:
            x.counted = False
            key = x.principal.key
            if self._open[key] == 1:
                del self._open[key]
            else:
                self._open[key] -= 1

    def queued(self, x: "Exchange") -> None:
        self._waiting.setdefault(x.principal.key, {})[x] = None

    def dequeued(self, x: "Exchange") -> None:
        mine = self._waiting.get(x.principal.key)
        if mine is not None:
            mine.pop(x, None)
            if not mine:
                del self._waiting[x.principal.key]

    def waiting(self, key: str) -> "list[Exchange]":
        """The requests of `key` that wait for a slot, oldest first."""
        return list(self._waiting.get(key, {}))

    def places(self, key: str) -> list[Waiting]:
        """The same, with where each stands now."""
        stands = ((x, x.waiter.position()) for x in self.waiting(key) if x.waiter is not None)
        return [
            Waiting(x.id, x.route.model, place.ahead, place.estimate, x.started_wall) for x, place in stands if place
        ]

    def stats(self) -> LedgerStats:
        waiting = sum(len(mine) for mine in self._waiting.values())
        return LedgerStats(open=sum(self._open.values()), body_bytes=self.body_bytes, waiting=waiting)
