"""How many go first and about how long it takes: estimates for people, never inputs of a decision.

Owns the once-a-second snapshot of the pools that are ranked together, and the arithmetic on it. Must not change any
of their state except the snapshot.

If k requests of its own party are ahead of a request, every other party gets at most k requests ahead of it, one more
if that party ranks ahead now:

    ahead = k + sum over others of min(n, k + [ranked before])        wait = max((ahead + 1/2) * S / slots, k * gap)

This is computed among the users of its tenant, and then, with the result as k, among the tenants. S and slots are those
of all pools ranked together. gap = mean time between the party's own dispatches.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, chain, islice
from math import inf
from typing import Any, Final

from scheduler.model import Place
from scheduler.party import Node, User
from scheduler.pool import Pool
from scheduler.ranking import Ranking
from scheduler.request import Request

_SAMPLE: Final = 2048
"""Maximum number of parties a snapshot looks at. If there are more, it takes every n-th and scales the counts."""
REFRESH: Final = 1.0
"""Seconds for which a snapshot is reused."""


def _key(node: Node, at: float) -> float:
    """The party's rank at that time, lowest first. Comparable between rankings that were frozen at different times."""
    epoch = node.ranking.epoch
    return epoch.rank(node) - epoch.per_wait * (at - epoch.at)


def _merged(nodes: Sequence[Node], at: float) -> list[tuple[float, int]]:
    """The best key of each party, which may wait for several models, and the number of all its requests."""
    found: dict[tuple[str, str], tuple[float, int]] = {}
    for node in nodes:
        key, n = found.get(node.account.key, (inf, 0))
        found[node.account.key] = min(key, _key(node, at)), n + node.n
    return list(found.values())


class _Level:
    """The waiting parties of rankings at one moment: their queue lengths and keys, sorted for counting."""

    __slots__ = ("_at", "_by_depth", "_counts", "_pairs", "_sums", "_weight")

    def __init__(self, rankings: Sequence[Ranking[Any]], at: float) -> None:
        active = sum([ranking.active for ranking in rankings])
        stride = max(1, -(-active // _SAMPLE))
        every = chain.from_iterable([ranking.live.values() for ranking in rankings])
        live = list(islice(every, None, None, stride))
        self._at = at
        self._weight = active / len(live) if live else 0.0
        self._pairs = _merged(live, at) if len(rankings) > 1 else [(_key(node, at), node.n) for node in live]
        self._counts = sorted(n for _, n in self._pairs)
        self._sums = [0, *accumulate(self._counts)]
        self._by_depth: dict[int, list[float]] = {}

    def ahead(self, node: Node, k: int) -> int:
        """The number of requests ahead of the party's (k+1)-th, its own included."""
        deeper = bisect_left(self._counts, k + 1)
        total = self._sums[deeper] + k * (len(self._counts) - deeper)
        before = bisect_left(self._deeper(k), _key(node, self._at))
        # The total includes min(n, k) requests of the party itself; replace them by its k.
        own = min(sum([each.n for each in node.account.nodes]), k)
        return max(k, round((total + before - own) * self._weight) + k)

    def _deeper(self, k: int) -> list[float]:
        keys = self._by_depth.get(k)
        if keys is None:
            keys = self._by_depth[k] = sorted(rank for rank, n in self._pairs if n > k)
        return keys


class Snapshot:
    """What `place` knows about pools that are ranked together; made at most once a second."""

    __slots__ = ("_levels", "_pools", "made")

    def __init__(self, pools: Sequence[Pool], now: float) -> None:
        self._pools = pools
        self.made = now
        self._levels: dict[str | None, _Level] = {}

    def level(self, tenant: str | None) -> _Level:
        """The waiting users of a tenant, sorted for counting; None: the tenants."""
        level = self._levels.get(tenant)
        if level is None:
            level = self._levels[tenant] = _Level(self._rankings(tenant), self.made)
        return level

    def _rankings(self, tenant: str | None) -> Sequence[Ranking[Any]]:
        if tenant is None:
            return [pool.root for pool in self._pools]
        return [pool.tenants[tenant].users for pool in self._pools if tenant in pool.tenants]


def place(pool: Pool, now: float, node: User, k: int) -> tuple[int, float]:
    """(requests ahead, seconds) of a request with `k` of its own party ahead; 0.0 s if S and the gap are unknown."""
    commons, tenant = pool.commons, node.tenant.account.key[0]
    snapshot = commons.snapshot
    if snapshot is None or not 0.0 <= now - snapshot.made < REFRESH:
        snapshot = commons.snapshot = Snapshot(commons.pools, now)
    ahead = snapshot.level(tenant).ahead(node, k)
    own = [each.tenants[tenant].inside for each in commons.pools if tenant in each.tenants]
    if sum([each.root.active for each in commons.pools]) > sum(own):
        ahead = snapshot.level(None).ahead(node.tenant, ahead)
    return ahead, max((ahead + 0.5) * commons.averages.service / max(commons.slots, 1.0), k * node.gap)


def stands(now: float, request: Request, k: int) -> Place:
    """The place of a waiting request that has `k` requests of its own party ahead of it."""
    pool, node = request.pool, request.node
    ahead, seconds = place(pool, now, node, k)
    if pool.windows and not pool.eligible(now, request):
        seconds = max(seconds, pool.blocked_for(now, node))
    return Place(request.id, pool.name, request.ticket.tag, ahead, seconds, now - request.arrival)
