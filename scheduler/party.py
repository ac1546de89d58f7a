"""One party in one pool: its waiting requests and what determines its rank there.

Owns the first-in-first-out queue of each class of a party and the choice among its classes. Must not know other
parties, slots or how ranks are computed.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, Final

from scheduler.request import QUEUED, Request
from scheduler.usage import Account, UserAccount

if TYPE_CHECKING:
    from scheduler.ranking import Ranking

_GAP_WEIGHT: Final = 0.3
_MEAN_WEIGHT: Final = 0.1
PAUSE: Final = 10.0
"""A backlog goes on if the party asks again within this many seconds after a refusal or giving up."""


class Node:
    """What determines the rank of one party (a user, or a tenant over its users) in one pool."""

    __slots__ = (
        "account",
        "backlog",
        "ended",
        "free",
        "inside",
        "left",
        "lift",
        "mean",
        "n",
        "number",
        "offset",
        "paid",
        "ranking",
        "running",
        "served",
        "since",
        "tie",
    )

    def __init__(self, account: Account, ranking: Ranking[Any], free: float) -> None:
        self.account = account
        self.ranking = ranking
        self.free = free
        self.n = 0
        """Waiting requests, without cancelled ones."""
        self.running = 0
        self.inside = False
        """Whether it competes in its ranking."""
        self.number = 0
        """Identifies its live entry in the ranking; 0: none."""
        self.tie = 0
        """Id of its head: among equals, the older one goes first."""
        self.offset = 0.0
        self.since = 0.0
        self.backlog = 0.0
        """Time since which it has always had a request waiting; see `opens`."""
        self.left = -inf
        """When its last waiting request left without being served."""
        self.served = 0.0
        """Cost units ever charged here; unlike usage they do not decay."""
        self.paid = -inf
        self.mean = 0.0
        """Mean actual cost of its requests here; 0 until one has ended."""
        self.ended = 0
        self.lift = 0.0
        """Usage added when it returned from idleness, as a grown sum."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'/'.join(self.account.key)} n={self.n} running={self.running}>"

    def opens(self, now: float) -> None:
        """Its first waiting request has come. If its last one left unserved at most `PAUSE` seconds ago, its backlog
        counts as uninterrupted."""
        if now > self.left + PAUSE:
            self.backlog = now
        self.left = -inf

    def learn(self, cost: float) -> None:
        """Update the running mean (of ten, then exponential with 0.1) with the actual cost of an ended request."""
        self.ended = n = self.ended + 1
        self.mean += (cost - self.mean) * (_MEAN_WEIGHT if n > 10 else 1.0 / n)


class Tenant(Node):
    """A tenant on one pool."""

    __slots__ = ("began", "offsets", "users")

    def __init__(self, account: Account, ranking: Ranking[Tenant], free: float, users: Ranking[User]) -> None:
        super().__init__(account, ranking, free)
        self.users = users
        self.began = 0.0
        """Time since which at least one of its users has been waiting."""
        self.offsets: dict[float, int] | None = None
        """Its waiting users by class offset; None while no classes are used. It competes with the highest offset."""

    def offer(self, offset: float) -> bool:
        """One more waiting user in this class. True if the tenant's own class rose."""
        counts = self.offsets
        if counts is None:
            return False
        counts[offset] = counts.get(offset, 0) + 1
        old, self.offset = self.offset, max(counts)
        return self.offset > old

    def withdraw(self, offset: float) -> None:
        """One waiting user fewer in this class. If the tenant's own class fell, its key must be checked again."""
        counts = self.offsets
        if counts is None:
            return
        counts[offset] -= 1
        if not counts[offset]:
            del counts[offset]
        if counts:
            old, self.offset = self.offset, max(counts)
            if self.offset < old:
                self.account.charges += 1


class User(Node):
    """A user on one pool, with its waiting requests."""

    __slots__ = ("dead", "extra", "fifo", "gap", "klass", "last", "owner", "tenant")

    def __init__(self, owner: UserAccount, tenant: Tenant, free: float) -> None:
        super().__init__(owner, tenant.users, free)
        self.owner = owner
        """Its account, with its precise type."""
        self.tenant = tenant
        self.fifo: deque[Request] = deque()
        """Waiting requests of class `klass`; the first is alive."""
        self.klass = 0.0
        self.extra: dict[float, deque[Request]] | None = None
        """Waiting requests of other classes by offset; the first of each is alive."""
        self.dead = 0
        """Cancelled requests that are still in the queues."""
        self.gap = 0.0
        """Mean seconds between dispatches from its present queue; 0: unknown. Earlier queues do not count: they say
        nothing about this one, and a figure so bad that no request may wait could never be corrected."""
        self.last = -inf
        """Time of the last dispatch."""

    def append(self, request: Request) -> bool:
        """Put the request at the end of its class. True if the head may have changed."""
        offset = request.ticket.class_offset
        self.n += 1
        if self.n == 1:
            self.gap, self.last = 0.0, -inf
            self.opens(request.arrival)
            self.klass = offset
            self.fifo.append(request)
            return True
        if offset == self.klass:
            self.fifo.append(request)
            return False
        if self.extra is None:
            self.extra = {}
        self.extra.setdefault(offset, deque()).append(request)
        return True

    def pop(self, now: float) -> Request:
        """Remove the head, which is dispatched; learn the time between dispatches."""
        self.n -= 1
        if self.last != -inf:
            gap = now - self.last
            self.gap += (gap - self.gap) * _GAP_WEIGHT if self.gap else gap
        self.last = now if self.n else -inf
        request = self.fifo.popleft()
        if self.dead:
            self._sweep()
        return request

    def discard(self, request: Request) -> bool:
        """A request that is no longer alive leaves. True if it was the head."""
        self.n -= 1
        if not self.n:
            self.fifo.clear()
            self.extra, self.dead = None, 0
            return True
        head = self.fifo[0] is request
        self.dead += 1
        self._sweep()
        if self.dead > self.n + 8:
            self._compact()
        return head

    def pick(self, per_wait: float) -> Request:
        """Choose the class to serve next, make it current, return its head. Classes compare by their offset plus the
        waiting time of their oldest request, so no class of a party starves behind another one of the same party."""
        queues = self.extra
        if queues is None:
            return self.fifo[0]
        queues[self.klass] = self.fifo
        for offset in [offset for offset, queue in queues.items() if not queue]:
            del queues[offset]
        best = min(queues, key=lambda offset: (per_wait * queues[offset][0].arrival - offset, queues[offset][0].id))
        self.fifo, self.klass = queues.pop(best), best
        if not queues:
            self.extra = None
        return self.fifo[0]

    def order(self, per_wait: float) -> list[Request]:
        """All waiting requests in the order in which `pick` takes them."""
        return sorted(self.waiting(), key=lambda r: (per_wait * r.arrival - r.ticket.class_offset, r.id))

    def newest(self) -> Request:
        """The newest waiting request. Drops dead requests after it, so that a long queue is not searched each time."""
        queues = (self.fifo, *(self.extra or {}).values())
        for queue in queues:
            while queue and queue[-1].state != QUEUED:
                queue.pop()
                self.dead -= 1
        return max((queue[-1] for queue in queues if queue), key=lambda request: request.id)

    def heads(self) -> list[Request]:
        """The oldest waiting request of each class."""
        return [queue[0] for queue in (self.fifo, *(self.extra or {}).values()) if queue]

    def waiting(self) -> list[Request]:
        """All waiting requests, oldest first."""
        found = [r for queue in (self.fifo, *(self.extra or {}).values()) for r in queue if r.state == QUEUED]
        return sorted(found, key=lambda request: request.id)

    def _sweep(self) -> None:
        for queue in (self.fifo, *(self.extra or {}).values()):
            while queue and queue[0].state != QUEUED:
                queue.popleft()
                self.dead -= 1

    def _compact(self) -> None:
        self.fifo = deque(request for request in self.fifo if request.state == QUEUED)
        if self.extra:
            self.extra = {o: deque(r for r in queue if r.state == QUEUED) for o, queue in self.extra.items()}
        self.dead = 0
