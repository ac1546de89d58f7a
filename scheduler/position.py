"""How many go first and about how long it takes: estimates for people, never inputs of a decision.

Owns the once-a-second snapshot of a pool and the arithmetic on it. Must not change any state of the pool but its
snapshot.

For a request with k of its party's own before it, every other party sends at most as many before it, one more if it
ranks ahead now:

    ahead = k + sum over others of min(n, k + [ranked before])        wait = max((ahead + 1/2) * S / slots, k * gap)

first among the users of its tenant, then, with that figure as k, among the tenants. gap = mean time between the party's
own dispatches.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate, islice
from typing import Any, Final

from scheduler.model import Place
from scheduler.party import Node, User
from scheduler.pool import Pool
from scheduler.ranking import Epoch, Ranking
from scheduler.request import Request

_SAMPLE: Final = 2048
"""Parties a snapshot looks at; of more, every so many-th counts for the others."""
REFRESH: Final = 1.0
"""Seconds a snapshot serves."""


class _Level:
    """The waiting parties of one ranking at one moment: their queue lengths and keys, sorted for counting."""

    __slots__ = ("_by_depth", "_counts", "_epoch", "_pairs", "_sums", "_weight")

    def __init__(self, ranking: Ranking[Any]) -> None:
        stride = max(1, -(-ranking.active // _SAMPLE))
        live = list(islice(ranking.live.values(), None, None, stride))
        self._epoch: Epoch = ranking.epoch
        self._weight = ranking.active / len(live) if live else 0.0
        self._pairs: list[tuple[float, int]] = [(ranking.epoch.rank(node), node.n) for node in live]
        self._counts = sorted(n for _, n in self._pairs)
        self._sums = [0, *accumulate(self._counts)]
        self._by_depth: dict[int, list[float]] = {}

    def ahead(self, node: Node, k: int) -> int:
        """Requests that go before the (k+1)-th of the party, its own included."""
        deeper = bisect_left(self._counts, k + 1)
        total = self._sums[deeper] + k * (len(self._counts) - deeper)
        before = bisect_left(self._deeper(k), self._epoch.rank(node))
        # The party itself was counted with min(n, k) among "others" and stands for k.
        own = min(node.n, k) if node.inside else 0
        return max(k, round((total + before - own) * self._weight) + k)

    def _deeper(self, k: int) -> list[float]:
        keys = self._by_depth.get(k)
        if keys is None:
            keys = self._by_depth[k] = sorted(rank for rank, n in self._pairs if n > k)
        return keys


class Snapshot:
    """What `place` knows about a pool; made at most once a second."""

    __slots__ = ("_levels", "made")

    def __init__(self, now: float) -> None:
        self.made = now
        self._levels: dict[int, _Level] = {}

    def level(self, ranking: Ranking[Any]) -> _Level:
        """The counted parties of a ranking."""
        level = self._levels.get(id(ranking))
        if level is None:
            level = self._levels[id(ranking)] = _Level(ranking)
        return level


def place(pool: Pool, now: float, node: User, k: int) -> tuple[int, float]:
    """(requests ahead, seconds) of a request of the party with `k` of its own before it; 0.0 s if S is unknown."""
    snapshot = pool.snapshot
    if snapshot is None or not 0.0 <= now - snapshot.made < REFRESH:
        snapshot = pool.snapshot = Snapshot(now)
    ahead = snapshot.level(node.ranking).ahead(node, k)
    tenant = node.tenant
    if pool.root.active > (1 if tenant.inside else 0):
        ahead = snapshot.level(pool.root).ahead(tenant, ahead)
    return ahead, max((ahead + 0.5) * pool.averages.service / max(pool.slots, 1.0), k * node.gap)


def stands(now: float, request: Request, k: int) -> Place:
    """Where a waiting request stands that has `k` of its own party before it."""
    pool, node = request.pool, request.node
    ahead, seconds = place(pool, now, node, k)
    if pool.windows and not pool.eligible(now, request):
        seconds = max(seconds, pool.blocked_for(now, node))
    return Place(request.id, pool.name, request.ticket.tag, ahead, seconds, now - request.arrival)
