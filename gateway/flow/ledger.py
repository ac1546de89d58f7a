"""What all requests together hold: body bytes, open requests of each key, and who waits for a slot.

Plain counters of one process, kept exact by `settle`. Must not know how a request is served.
"""

from typing import TYPE_CHECKING, Final

from gateway.flow.held import LedgerStats, Waiting

if TYPE_CHECKING:
    from gateway.flow.exchange import Exchange

LARGE: Final = 64 * 1024
"""Bytes of a body from which on it counts for its key; smaller ones are too many to be counted, and too small to fill
the room before other bounds of a key are met."""


class Ledger:
    """Bounds of the process (H3) and the view behind `GET /api/queue`."""

    def __init__(self, body_bytes: int) -> None:
        self.body_limit = body_bytes
        self.body_bytes = 0
        self._unproven_bytes = 0  # of them
        self._large: dict[str, int] = {}  # key -> bytes of its large bodies
        self._open: dict[str, int] = {}
        # By identity: two requests may carry the same id, which clients choose.
        self._waiting: dict[str, dict[Exchange, None]] = {}

    def hold_body(self, x: "Exchange", size: int) -> bool:
        """Count the `size` bytes of this request's body that are here. False: no room for more of it."""
        grown = size - x.body_held
        room = self.body_limit - self.body_bytes - grown
        if room < 0 or (size > LARGE and not self._shares_room(x, size, room)):
            return False
        self.body_bytes += grown
        x.body_held = size
        return True

    def shrink_body(self, x: "Exchange", size: int) -> None:
        """The body turned out smaller than what was held for it; 0 when it is no longer needed."""
        if x.body_held > LARGE:
            self._count_large(x, size)
        self.body_bytes += size - x.body_held
        x.body_held = size

    def _shares_room(self, x: "Exchange", size: int, room: int) -> bool:
        """Count a large body for its key. False: it is one of several that would leave others less `room` than a third
        of what they take. So one key gets three quarters of all, of two busy ones each three sevenths (a dynamic
        threshold, Choudhury and Hahne 1998)."""
        others = self._large.get(x.principal.key, 0) - _large(x.body_held)
        if others and others + size > 3 * room:
            return False
        self._count_large(x, size)
        return True

    def _count_large(self, x: "Exchange", size: int) -> None:
        key = x.principal.key
        held = self._large.get(key, 0) + _large(size) - _large(x.body_held)
        if held:
            self._large[key] = held
        else:
            del self._large[key]

    def hold_unproven(self, size: int) -> bool:
        """Count what came with a head whose key is looked up. False: no room. Half of it is taken by such at most, so
        that strangers leave some to the others."""
        full = self._unproven_bytes > self.body_limit // 2 or self.body_bytes + size > self.body_limit
        if size and full:
            return False
        self.body_bytes += size
        self._unproven_bytes += size
        return True

    def drop_unproven(self, size: int) -> None:
        """That key is known, or none."""
        self.body_bytes -= size
        self._unproven_bytes -= size

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


def _large(size: int) -> int:
    return size if size > LARGE else 0
