"""All state of the scheduler: models' queues, backends' slots, parties' accounts, and the settings they use.

Owns the definition and removal of pools and gates, landmarks, forgetting idle parties, and what is saved across a
restart. Must not know tickets, deadlines or who runs next.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Final

from scheduler.commons import Commons, linked
from scheduler.gates import Gate, Place
from scheduler.model import Saved, SavedParty, SavedPool
from scheduler.party import PAUSE
from scheduler.pool import Pool
from scheduler.settings import Settings
from scheduler.usage import Ledger, UserAccount

_SWEEP: Final = 256
"""Idle accounts to look at in one step after a landmark."""
_WORTH: Final = 0.01
"""Usage below this fraction of the smallest scale no longer affects the order."""


class Fleet:
    """Mutable state; `core.Core` decides when it changes."""

    def __init__(self, settings: Settings, now: float) -> None:
        self.settings = settings
        self.ledger = Ledger(now, settings.half_life)
        self.pools: dict[str, Pool] = {}
        self.gates: dict[str, Gate] = {}
        self._retired: dict[str, Gate] = {}
        """Removed gates with running requests: if defined again, they come back with their count."""
        self._closed: dict[str, Pool] = {}
        """Removed pools with running requests."""
        self._sweep: list[tuple[str, str]] = []
        self._learned: dict[str, SavedPool] = {}
        """What an earlier run learned about pools that are not defined yet."""

    def everything(self) -> list[Pool]:
        """All pools with state, including removed ones."""
        return [*self.pools.values(), *self._closed.values()]

    # -- gates and pools ---------------------------------------------------------------------------------------

    def set_gate(self, now: float, name: str, slots: int) -> Gate:
        """Define a gate or change its slots, 0 or more."""
        gate = self.gates.get(name)
        if gate is None:
            gate = self.gates[name] = self._retired.pop(name) if name in self._retired else Gate(name, slots)
        gate.slots = slots
        self._count_slots(gate.pools)
        if gate.pools:
            gate.pools[0].commons.resized(now)
        return gate

    def remove_gate(self, now: float, name: str) -> None:
        """Remove the gate from all pools; no effect if it is unknown."""
        gate = self.gates.pop(name, None)
        if gate is None:
            return
        for pool in gate.pools:
            pool.places = [place for place in pool.places if place[0] is not gate]
        parted, gate.pools = gate.pools, []
        self._count_slots(parted)
        self._link(now, parted)
        gate.slots, gate.past = 0, None
        self._retired = {g.name: g for g in (*self._retired.values(), gate) if g.running}

    def places(self, pool: str, named: Sequence[tuple[str, int]]) -> list[Place]:
        """The gates of these names; `KeyError` for an unknown one, `ValueError` for one named twice."""
        if len({gate for gate, _ in named}) != len(named):
            raise ValueError(f"pool {pool}: a gate is named twice")
        return [(self.gates[gate], preference) for gate, preference in named]

    def set_pool(self, now: float, name: str, places: list[Place]) -> Pool:
        """Define a pool or change its gates."""
        pool = self.pools.get(name)
        if pool is None:
            closed = self._closed
            pool = closed.pop(name) if name in closed else Pool(name, self.ledger, self.settings, now)
            self.pools[name] = pool
        self._recall(now, pool)
        if [gate for gate, _ in places] == [gate for gate, _ in pool.places]:
            pool.places = places
            return pool
        self._leave_gates(pool)
        hosts = {gate.pools[0].commons for gate, _ in places if gate.pools}
        pool.places = places
        for gate, _ in places:
            gate.pools.append(pool)
        self._count_slots([pool])
        if len(hosts) == 1 and pool.commons.pools == [pool] and not pool.averages.samples:
            hosts.pop().add(now, pool)
        else:
            self._link(now, [pool, *pool.commons.pools])
        return pool

    def add_pool(self, now: float, name: str) -> Pool:
        """A pool without gates, whose slots the caller counts."""
        pool = self.pools[name] = Pool(name, self.ledger, self.settings, now)
        return pool

    def remove_pool(self, now: float, pool: Pool) -> None:
        """Remove a pool in which nobody waits any more."""
        self._leave_gates(pool)
        self._link(now, pool.commons.pools)
        del self.pools[pool.name]
        self._closed = {p.name: p for p in (*self._closed.values(), pool) if p.running}

    def _leave_gates(self, pool: Pool) -> None:
        for gate, _ in pool.places:
            gate.pools.remove(pool)
        pool.places = []

    def _count_slots(self, pools: Sequence[Pool]) -> None:
        for pool in pools:
            pool.slots = float(sum(gate.slots for gate, _ in pool.places))

    def _link(self, now: float, pools: Sequence[Pool]) -> None:
        """The gates of these pools have changed: pools that share gates are ranked by common figures."""
        seen: set[Pool] = set()
        for pool in pools:
            if pool in seen:
                continue
            together = linked(pool)
            seen.update(together)
            if {*together} == {*pool.commons.pools}:
                pool.commons.resized(now)
                continue
            commons = Commons(together)
            for each in together:
                each.commons = commons
            commons.refreeze(now)

    # -- time --------------------------------------------------------------------------------------------------

    def landmark(self, now: float) -> None:
        """Freeze the present estimates; start to look for parties that can be forgotten."""
        if now >= self.ledger.limit:
            self._rebase(now)
        known = [pool.averages.service for pool in self.pools.values() if pool.averages.samples]
        for pool in self.everything():
            for averages in (pool.averages, pool.commons.averages):
                if known and not averages.samples and not averages.assumed:
                    averages.assumed = sum(known) / len(known)
            pool.refreeze(now)
        if not self._sweep:
            self._sweep = list(self.ledger.users)

    @property
    def sweeping(self) -> bool:
        """Whether `drop_idle` has accounts left to look at."""
        return bool(self._sweep)

    def _rebase(self, now: float) -> None:
        factor = self.ledger.rebase(now, self.settings.half_life)
        for pool in self.everything():
            pool.rescale(now, factor)

    def drop_idle(self, now: float) -> None:
        """Forget some of the parties that neither wait nor run, and whose usage no longer counts."""
        scale = min((pool.epoch.scale for pool in self.pools.values()), default=0.0)
        floor = _WORTH * scale * self.ledger.growth(now)
        for _ in range(min(_SWEEP, len(self._sweep))):
            account = self.ledger.users.get(self._sweep.pop())
            if account is None or account.queued or account.running or account.grown > floor:
                continue
            if now <= account.left + PAUSE:
                continue
            # The last user is kept while the tenant's own usage, the sum over many users, still counts.
            if account.tenant.children > 1 or account.tenant.grown <= floor:
                self._drop(account)

    def _drop(self, account: UserAccount) -> None:
        self.ledger.drop(account)
        for pool in self.everything():
            pool.forget(account)

    def set_settings(self, now: float, settings: Settings) -> None:
        """Replace the settings; ranks follow in slices, as at a landmark."""
        regroup = settings.levels != self.settings.levels
        self.settings = settings
        self._rebase(now)
        if regroup:
            self.ledger.regroup(two_levels=settings.levels == 2)
        for pool in self.everything():
            pool.settings = settings
            pool.refreeze(now)
            for node in (*pool.nodes.values(), *pool.tenants.values()):
                node.free = settings.free
            if regroup:
                pool.regroup(now)

    # -- memory across restarts --------------------------------------------------------------------------------

    def save(self, now: float) -> Saved:
        """Every party's decayed usage and every pool's S and C."""
        ledger = self.ledger
        return Saved(
            users=tuple(SavedParty(*account.key, ledger.usage(account, now)) for account in ledger.users.values()),
            tenants=tuple(SavedParty(*account.key, ledger.usage(account, now)) for account in ledger.tenants.values()),
            pools=tuple(
                SavedPool(pool.name, pool.averages.service, pool.averages.cost)
                for pool in self.pools.values()
                if pool.averages.samples
            ),
        )

    def restore(self, now: float, saved: Saved, age: float) -> None:
        """Add usage that was saved `age` seconds ago to the accounts, decayed since then."""
        for party in (*saved.users, *saved.tenants):
            if not (isfinite(party.usage) and party.usage >= 0.0):
                raise ValueError(f"saved usage of {party.tenant}/{party.user} is not a finite amount")
        if now >= self.ledger.limit:
            self._rebase(now)
        grown = 2.0 ** (-max(0.0, age) / self.settings.half_life) * self.ledger.growth(now)
        two = self.settings.levels == 2
        named = {party.tenant for party in saved.tenants}
        for party in saved.users:
            group = party.tenant if two else ""
            user = self.ledger.user((party.tenant, party.user), group, 1.0, 1.0)
            user.grown += party.usage * grown
            if group not in named:  # `levels` was different then: use the sum of its users, as when it changes
                user.tenant.grown += party.usage * grown
        for account in (*self.ledger.users.values(), *self.ledger.tenants.values()):
            account.charges += 1
        for party in saved.tenants:
            tenant = self.ledger.tenants.get(party.tenant)
            if tenant is not None:
                tenant.grown += party.usage * grown
        self._learned = {known.pool: known for known in saved.pools}
        for pool in self.pools.values():
            self._recall(now, pool)

    def _recall(self, now: float, pool: Pool) -> None:
        known = self._learned.pop(pool.name, None)
        if known is not None and isfinite(known.service_time) and isfinite(known.mean_cost):
            pool.averages.restore(max(0.0, known.service_time), max(0.0, known.mean_cost))
            pool.commons.restored(now)
