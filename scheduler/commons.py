"""The common figures by which models that share backends are ranked: one S, one C, one number of slots, one crowd.

Owns these figures for pools that have a gate in common, directly or through other pools, and the choice between the
heads of their queues. Must not know how a queue is ranked.

The heads of these queues compete for the next slot of a shared gate, and usage is counted over all models. If each
model were measured in its own units, a little usage would weigh more in the queue of a small model than much usage in
the queue of a large one, and a wait of seconds more than one of minutes. So these queues are ranked like those of one
model whose requests differ in size. A model that shares nothing is ranked by its own figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scheduler.averages import Averages, mixed

if TYPE_CHECKING:
    from scheduler.gates import Gate
    from scheduler.party import Node, User
    from scheduler.pool import Pool
    from scheduler.position import Snapshot

LOAD: Final = 5.0
"""Mean service times that a request waits longer than requests for loaded models if its own model must be loaded.
Without this, an engine that cannot hold two models at once would load one for every turn, and do little else."""


class Commons:
    """Pools that are ranked by the same figures; also used for a single pool."""

    __slots__ = ("averages", "pools", "slots", "snapshot")

    def __init__(self, pools: list[Pool]) -> None:
        self.pools = pools
        self.averages = self._mixed()
        self.slots = self._count()
        """The slots of all their gates."""
        self.snapshot: Snapshot | None = None

    def _mixed(self) -> Averages:
        return self.pools[0].averages if len(self.pools) == 1 else mixed([pool.averages for pool in self.pools])

    def _count(self) -> float:
        if len(self.pools) == 1:
            return self.pools[0].slots
        return float(sum([gate.slots for gate in {gate for pool in self.pools for gate, _ in pool.places}]))

    def add(self, now: float, pool: Pool) -> None:
        """Add a pool that has learned nothing of its own."""
        self.pools.append(pool)
        pool.commons = self
        if len(self.pools) == 2 or (pool.averages.guesses and not self.averages.samples):
            self.averages = self._mixed()
            self.refreeze(now)
        pool.refreeze(now)
        if any(len(gate.pools) == 1 for gate, _ in pool.places):  # a gate that only this pool has
            self.resized(now)

    def refreeze(self, now: float) -> None:
        """Rank all pools by the present figures."""
        for pool in self.pools:
            pool.refreeze(now)

    def resized(self, now: float) -> None:
        """The slots of a gate may have changed."""
        slots = self._count()
        if slots != self.slots:
            self.slots = slots
            self.refreeze(now)

    def restored(self, now: float) -> None:
        """A pool got what an earlier run learned; it is used until one of the pools learns."""
        if not self.averages.samples:
            self.averages = self._mixed()
            self.refreeze(now)

    def guess(self, now: float, own: Averages, cost: float) -> None:
        """Use an estimate of the pool with these averages, while nothing better is known."""
        due = own.guess(cost)
        if self.averages is not own:
            due = not self.averages.samples and self.averages.guess(cost)
        if due:
            self.refreeze(now)

    def learn(self, now: float, own: Averages, seconds: float, cost: float) -> None:
        """Learn from an ended request of the pool with these averages."""
        due = own.learn(seconds, cost)
        if self.averages is not own:
            due = self.averages.learn(seconds, cost)
        if due:
            self.refreeze(now)

    def crowd(self, node: User) -> tuple[float, float]:
        """The total shares that queue, of the users of this tenant and of all tenants, this party included. A party
        that waits in several of the pools is assumed to wait in as many of them as this party does: for exact counts,
        every dispatch would have to look at all parties."""
        tenant = node.tenant
        if len(self.pools) == 1:
            return tenant.users.shares, self.pools[0].root.shares
        users = tenants = 0.0
        as_user = as_tenant = 0
        for pool in self.pools:
            tenants += pool.root.shares
            there = pool.tenants.get(tenant.account.key[0])
            if there is not None and there.inside:
                users += there.users.shares
                as_tenant += 1
                own = pool.nodes.get(node.account.key)
                if own is not None and own.inside:
                    as_user += 1
        return users / as_user, tenants / as_tenant


def linked(pool: Pool) -> list[Pool]:
    """All pools that share a gate with it, directly or through other pools; itself first."""
    found = {pool: None}
    gates = set()
    waiting = [pool]
    while waiting:
        for gate, _ in waiting.pop().places:
            if gate not in gates:
                gates.add(gate)
                new = [other for other in gate.pools if other not in found]
                found.update(dict.fromkeys(new))
                waiting += new
    return list(found)


def first(now: float, gate: Gate) -> tuple[Pool, User] | None:
    """The best head over all models that the gate serves; their points have the same unit. Compares tenants first, then
    the users of the best tenant."""
    heads: list[tuple[Pool, User]] = [
        (pool, node) for pool in gate.pools if pool.queued and (node := pool.choose(now)) is not None
    ]
    if len(heads) < 2:
        return heads[0] if heads else None
    later = {pool: LOAD * pool.settings.wait_weight for pool, _ in heads if gate.would_load(pool)}

    def points(pool: Pool, node: Node, tie: int) -> tuple[float, int]:
        return pool.priority(now, node) - later.get(pool, 0.0), -tie

    if len({node.owner.tenant for _, node in heads}) > 1:
        tenant = max(heads, key=lambda head: points(head[0], head[1].tenant, head[1].tie))[1].owner.tenant
        heads = [head for head in heads if head[1].owner.tenant is tenant]
    return max(heads, key=lambda head: points(head[0], head[1], head[1].tie))
