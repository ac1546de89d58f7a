"""What all requests together hold: body bytes, open requests of each key, and who waits for a slot.

Plain counters of one process, which `settle` keeps exact. Must not know how a request is served.
"""

from typing import TYPE_CHECKING, Final

from gateway.flow.ledger_facts import LedgerStats, Waiting

if TYPE_CHECKING:
    from gateway.flow.exchange import Exchange

LARGE: Final = 64 * 1024
"""Bodies larger than this many bytes also count for their key. Smaller ones could fill the memory only in numbers that
other limits of the key forbid."""


class Ledger:
    """The limits of the process (H3), and the data behind `GET /api/queue`."""

    def __init__(self, body_bytes: int) -> None:
        self.body_limit = body_bytes
        self.body_bytes = 0
        self._unproven_bytes = 0  # part of `body_bytes`: requests whose key is being looked up
        self._large: dict[str, int] = {}  # key -> bytes of its large bodies
        self._open: dict[str, int] = {}
        # By identity: two requests may carry the same id, since clients choose it.
        self._waiting: dict[str, dict[Exchange, None]] = {}

    def hold_body(self, x: "Exchange", size: int) -> bool:
        """Count the `size` bytes that have arrived of this request's body. False: there is no room for them."""
        grown = size - x.body_held
        room = self.body_limit - self.body_bytes - grown
        if room < 0 or (size > LARGE and not self._shares_room(x, size, room)):
            return False
        self.body_bytes += grown
        x.body_held = size
        return True

    def shrink_body(self, x: "Exchange", size: int) -> None:
        """The body turned out smaller than what was counted for it; 0 when it is no longer needed."""
        if x.body_held > LARGE:
            self._count_large(x, size)
        self.body_bytes += size - x.body_held
        x.body_held = size

    def _shares_room(self, x: "Exchange", size: int, room: int) -> bool:
        """Count a large body for its key. False: the key has other large bodies, and with this one they would take more
        than three times the `room` left. So one key gets at most three quarters of the memory, and two busy keys get
        three sevenths each (a dynamic threshold, Choudhury and Hahne 1998)."""
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
        """Count the bytes of a request whose key is being looked up. False: no room. Such requests get at most half of
        the memory, so that strangers leave some to others."""
        full = self._unproven_bytes > self.body_limit // 2 or self.body_bytes + size > self.body_limit
        if size and full:
            return False
        self.body_bytes += size
        self._unproven_bytes += size
        return True

    def drop_unproven(self, size: int) -> None:
        """The lookup is over."""
        self.body_bytes -= size
        self._unproven_bytes -= size

    def enter(self, x: "Exchange", most: int) -> bool:
        """Count a request as open for its key. False: the key has `most` open requests already."""
        key = x.principal.key
        count = self._open.get(key, 0)
        if count >= most:
            return False
        self._open[key] = count + 1
        x.counted = True
        return True

    def leave(self, x: "Exchange") -> None:
        """Give back everything that `x` holds. Idempotent."""
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
        """The same requests with their current position and estimated wait."""
        stands = ((x, x.waiter.position()) for x in self.waiting(key) if x.waiter is not None)
        return [
            Waiting(x.id, x.route.model, place.ahead, place.estimate, x.started_wall) for x, place in stands if place
        ]

    def stats(self) -> LedgerStats:
        waiting = sum(len(mine) for mine in self._waiting.values())
        return LedgerStats(open=sum(self._open.values()), body_bytes=self.body_bytes, waiting=waiting)


def _large(size: int) -> int:
    return size if size > LARGE else 0
