"""What models that share backends are ranked by: one S, one C, one number of slots, one crowd.

Owns these figures for the pools that have a gate in common, directly or by way of others. Must not know ranks or who
goes next.

The first of each model's queue compete for a shared gate's next slot, and usage is over all models. Measured by its own
model's units, a little usage would weigh more before a small model than much before a large one, and a wait of seconds
more than one of minutes; so these queues are ranked as one model's whose requests differ in size. A model that shares
nothing goes by its own figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.averages import Averages, mixed

if TYPE_CHECKING:
    from scheduler.party import User
    from scheduler.pool import Pool
    from scheduler.position import Snapshot


class Commons:
    """Pools that are ranked by the same figures; a pool alone is one too."""

    __slots__ = ("averages", "pools", "slots", "snapshot")

    def __init__(self, pools: list[Pool]) -> None:
        self.pools = pools
        self.averages = self._mixed()
        self.slots = self._count()
        """Those of all their gates."""
        self.snapshot: Snapshot | None = None

    def _mixed(self) -> Averages:
        return self.pools[0].averages if len(self.pools) == 1 else mixed([pool.averages for pool in self.pools])

    def _count(self) -> float:
        if len(self.pools) == 1:
            return self.pools[0].slots
        return float(sum([gate.slots for gate in {gate for pool in self.pools for gate, _ in pool.places}]))

    def add(self, now: float, pool: Pool) -> None:
        """One more, which has learned nothing of its own."""
        self.pools.append(pool)
        pool.commons = self
        if len(self.pools) == 2 or (pool.averages.guesses and not self.averages.samples):
            self.averages = self._mixed()
            self.refreeze(now)
        pool.refreeze(now)
        if any(len(gate.pools) == 1 for gate, _ in pool.places):  # one that only this pool has
            self.resized(now)

    def refreeze(self, now: float) -> None:
        """All go by the figures of now."""
        for pool in self.pools:
            pool.refreeze(now)

    def resized(self, now: float) -> None:
        """A gate of theirs has other slots, perhaps."""
        slots = self._count()
        if slots != self.slots:
            self.slots = slots
            self.refreeze(now)

    def restored(self, now: float) -> None:
        """A pool has been told what an earlier run learned: good until one of them learns."""
        if not self.averages.samples:
            self.averages = self._mixed()
            self.refreeze(now)

    def guess(self, now: float, own: Averages, cost: float) -> None:
        """Take an estimate of the pool with these averages, which has nothing better."""
        due = own.guess(cost)
        if self.averages is not own:
            due = not self.averages.samples and self.averages.guess(cost)
        if due:
            self.refreeze(now)

    def learn(self, now: float, own: Averages, seconds: float, cost: float) -> None:
        """Take an ended request of the pool with these averages."""
        due = own.learn(seconds, cost)
        if self.averages is not own:
            due = self.averages.learn(seconds, cost)
        if due:
            self.refreeze(now)

    def crowd(self, node: User) -> tuple[float, float]:
        """The total shares that queue: beside a waiting user within its tenant, and beside the tenant. Over several
        pools, who waits before more than one of them is taken to do so as often as this party: exact counts would cost
        every dispatch a walk over all."""
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
    """All pools with which it has a gate in common, directly or by way of others; itself first."""
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
