"""The definition of the order, computed the slow way: every charge kept with its time, every party looked at.

Owns an independent account of one pool's parties for checking the scheduler's choices. It must not use the scheduler's
heaps, stored sums or keys; of the scheduler it reads only the figures frozen at the last landmark.
"""

from __future__ import annotations

from math import inf, isclose, log
from typing import Any

from scheduler.party import Node, Tenant
from scheduler.pool import Pool
from scheduler.ranking import Epoch, Ranking
from scheduler.request import Request
from scheduler.settings import Settings

TOLERANCE = 1e-9


def _key(node: Node) -> object:
    return node.account.key[0] if isinstance(node, Tenant) else node.account.key


class Sum:
    """A sum of amounts that halve every `half_life`."""

    def __init__(self, half_life: float) -> None:
        self.half_life = half_life
        self.parts: list[tuple[float, float]] = []

    def add(self, now: float, amount: float) -> None:
        self.parts.append((now, amount))

    def at(self, now: float) -> float:
        return max(0.0, sum(amount * 2.0 ** (-(now - then) / self.half_life) for then, amount in self.parts))


class Party:
    """A user or a tenant on the pool."""

    def __init__(self, half_life: float) -> None:
        self.usage = Sum(half_life)
        self.lift = Sum(half_life)
        self.share = 1.0
        self.queue: list[Request] = []
        self.began = 0.0
        self.running = 0
        self.paid = -inf
        self.costs: list[float] = []
        self.mean = 0.0

    def learn(self, cost: float) -> None:
        self.costs.append(cost)
        if len(self.costs) <= 10:
            self.mean = sum(self.costs) / len(self.costs)
        else:
            self.mean = 0.9 * self.mean + 0.1 * cost


class Reference:
    """All parties of one pool."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.users: dict[tuple[str, str], Party] = {}
        self.tenants: dict[str, Party] = {}
        self.levels: dict[str | None, Sum] = {}
        self.leaders: dict[str | None, Party] = {}

    def party(self, request: Request) -> tuple[Party, Party]:
        key = (request.ticket.tenant, request.ticket.user)
        return self.users[key], self.tenants[key[0]]

    def _open(self, request: Request) -> tuple[Party, Party]:
        half_life = self.settings.half_life
        ticket = request.ticket
        user = self.users.setdefault((ticket.tenant, ticket.user), Party(half_life))
        tenant = self.tenants.setdefault(ticket.tenant, Party(half_life))
        user.share, tenant.share = ticket.share, ticket.tenant_share
        return user, tenant

    def level(self, group: str | None, now: float) -> float:
        return self.levels[group].at(now) if group in self.levels else 0.0

    def enqueue(self, now: float, request: Request, epoch: Epoch, bests: tuple[Party | None, Party | None]) -> None:
        """`bests`: the (user, tenant) that would have gone next before the request came."""
        user, tenant = self._open(request)
        for party, group, best in zip((user, tenant), (request.ticket.tenant, None), bests, strict=True):
            if not party.queue and not party.running:
                floor = self.level(group, now) - epoch.credit
                if best is not None:
                    floor = min(floor, (best.usage.at(now) + best.lift.at(now)) / best.share)
                party.lift = Sum(self.settings.half_life)
                party.lift.add(now, max(0.0, floor * party.share - party.usage.at(now)))
            if not party.queue:
                party.began = now
            party.queue.append(request)

    def remove(self, request: Request) -> None:
        for party in self.party(request):
            party.queue.remove(request)

    def priority(self, party: Party, now: float, since: float, epoch: Epoch) -> float:
        """Section 5.1, the scale decaying since the landmark."""
        scale = epoch.scale * 2.0 ** (-(now - epoch.at) / self.settings.half_life)
        used = party.usage.at(now) + party.lift.at(now)
        owed = (now - since) / epoch.service
        return self.settings.wait_weight * owed - self.settings.usage_weight * log(1.0 + used / (scale * party.share))

    def user_priority(self, key: tuple[str, str], now: float, epoch: Epoch) -> float:
        party = self.users[key]
        return self.priority(party, now, max(party.queue[0].arrival, party.paid), epoch)

    def tenant_priority(self, name: str, now: float, epoch: Epoch) -> float:
        party = self.tenants[name]
        return self.priority(party, now, max(party.began, party.paid), epoch)

    def check_choice(self, now: float, chosen: Request, pool: Pool) -> None:
        """The chosen request is its user's oldest, its user the best of its tenant, its tenant the best of all."""
        name, user = chosen.ticket.tenant, chosen.ticket.user
        assert self.users[name, user].queue[0] is chosen, "not the oldest of its user"
        epoch = pool.root.epoch
        tenants = {t: self.tenant_priority(t, now, epoch) for t, party in self.tenants.items() if party.queue}
        assert tenants[name] >= max(tenants.values()) - self.tolerance(epoch), (name, tenants)
        epoch = pool.tenants[name].users.epoch
        users = {k: self.user_priority(k, now, epoch) for k, p in self.users.items() if p.queue and k[0] == name}
        assert users[name, user] >= max(users.values()) - self.tolerance(epoch), (user, users)

    def tolerance(self, epoch: Epoch) -> float:
        """Points: 1e-9, and what rounding leaves where charges and refunds cancel."""
        gross = sum(abs(amount) for party in self.tenants.values() for _, amount in party.usage.parts)
        return TOLERANCE + self.settings.usage_weight * 1e-14 * gross / epoch.scale

    def dispatch(self, now: float, request: Request, epoch: Epoch, pool: Pool) -> None:
        """Charge and let pay, as section 5.1 says. Which of two level ones leads is the pool's to say (rounding)."""
        user, tenant = self.party(request)
        name = request.ticket.tenant
        all_shares = sum(party.share for party in self.tenants.values() if party.queue)
        mates = sum(p.share for key, p in self.users.items() if p.queue and key[0] == name)
        crowds = {user: mates * all_shares / tenant.share, tenant: all_shares}
        for party in (user, tenant):
            party.queue.remove(request)
        for party, group in ((user, name), (tenant, None)):
            rivals = [p for k, p in self.users.items() if k[0] == name] if group else list(self.tenants.values())
            level = (party.usage.at(now) + party.lift.at(now)) / party.share
            ranking: Ranking[Any] = pool.root if group is None else pool.tenants[name].users
            key = request.ticket.tenant if group is None else (name, request.ticket.user)
            known, leads = self.level(group, now), ranking.leader is not None and _key(ranking.leader) == key
            ahead = leads if isclose(level, known, rel_tol=1e-9) else level > known
            if any(rival.queue for rival in rivals) and ahead:
                self.levels[group] = Sum(self.settings.half_life)
                self.levels[group].add(now, level)
                self.leaders[group] = party
        for party in (user, tenant):
            party.usage.add(now, request.cost)
            party.running += 1
            party.paid = now
            if party.costs:
                turns = (
                    (party.mean / (epoch.mean_cost * party.share) - self.settings.free) * crowds[party] / epoch.slots
                )
                party.paid += epoch.service * (max(0.0, turns - 0.5) + min(0.0, turns + 0.5))

    def finish(self, now: float, request: Request, cost: float) -> None:
        for party, group in zip(self.party(request), (request.ticket.tenant, None), strict=True):
            if cost < request.charged and self.leaders.get(group) is party:
                self.levels[group].add(request.started, (cost - request.charged) / party.share)
        for party in self.party(request):
            # What was charged too much is taken back as of when it was charged.
            party.usage.add(now if cost >= request.charged else request.started, cost - request.charged)
            party.running -= 1
            if cost > 0.0:
                party.learn(cost)

    def forget_idle(self, now: float, pool: Pool) -> None:
        """Idle parties whose usage is below 1 % of the scale are forgotten some time after a landmark; so here."""
        for key in [key for key in self.users if key not in pool.nodes]:
            self._check_idle(now, self.users.pop(key), pool)
        for name in [name for name in self.tenants if name not in pool.tenants]:
            self._check_idle(now, self.tenants.pop(name), pool)
            self.levels.pop(name, None)
            self.leaders.pop(name, None)

    def _check_idle(self, now: float, party: Party, pool: Pool) -> None:
        assert not party.queue
        assert not party.running
        assert party.usage.at(now) <= 0.0101 * pool.epoch.scale
