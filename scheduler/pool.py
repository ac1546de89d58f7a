"""One model's queue: who waits for it and who goes next.

Owns the two-level choice (tenant, then user) and the parties' state for this model. Must not know slots (the core, or
another caller, says when one is free), deadlines, asyncio or a clock. What a request costs its party is in `charging`.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Final

from scheduler.averages import Averages
from scheduler.charging import start
from scheduler.commons import Commons
from scheduler.model import Ticket
from scheduler.party import Node, Tenant, User
from scheduler.ranking import Epoch, Ranking
from scheduler.request import OVER, Request
from scheduler.usage import Account, Ledger, UserAccount

if TYPE_CHECKING:
    from scheduler.gates import Place
    from scheduler.reservations import Window
    from scheduler.settings import Settings

_TINY: Final = 1e-9
_NO_UNIT: Final = 1e12
"""Service time before any is known: waiting times then only break ties."""


class Pool:
    """The queue of one model. All times are the caller's clock, in seconds, and never go back."""

    __slots__ = (
        "averages",
        "commons",
        "epoch",
        "ledger",
        "name",
        "nodes",
        "parked",
        "places",
        "plain",
        "queued",
        "root",
        "running",
        "settings",
        "slots",
        "tenants",
        "windows",
    )

    def __init__(self, name: str, ledger: Ledger, settings: Settings, now: float, slots: float = 1.0) -> None:
        self.name = name
        self.ledger = ledger
        self.settings = settings
        self.slots = slots
        self.places: list[Place] = []
        self.queued = 0
        self.running = 0
        self.averages = Averages()
        """Of this model's requests."""
        self.nodes: dict[tuple[str, str], User] = {}
        self.tenants: dict[str, Tenant] = {}
        self.parked: dict[User, None] = {}
        """Waiting parties that may not run until a window ends."""
        self.windows: list[Window] = []
        """Reservation windows that bind now."""
        self.plain = True
        """No class offset was ever used here: tenants need not track their users' classes."""
        self.commons = Commons([self])
        self.epoch = self._new_epoch(now)
        self.root: Ranking[Tenant] = Ranking(self.epoch)

    # -- landmarks ---------------------------------------------------------------------------------------------

    def _new_epoch(self, now: float) -> Epoch:
        settings, averages = self.settings, self.commons.averages
        slots = max(self.commons.slots, 1.0)
        mean_cost = max(averages.cost, _TINY)
        round_cost = slots * mean_cost
        service = averages.service if averages.samples else averages.assumed or _NO_UNIT
        return Epoch(
            at=now,
            service=max(service, _TINY),
            mean_cost=mean_cost,
            slots=slots,
            scale=settings.rounds * round_cost if settings.usage_scale is None else settings.usage_scale,
            credit=inf if settings.credit is None else settings.credit * round_cost,
            wait_weight=settings.wait_weight,
            usage_weight=settings.usage_weight,
            decayed=1.0 / self.ledger.growth(now),
        )

    def refreeze(self, now: float) -> None:
        """A landmark: freeze S, C, slots and the present decay; the rankings follow in slices."""
        self.epoch = self._new_epoch(now)

    def resize(self, now: float, slots: float) -> None:
        """Set the number of slots of the model; this changes the usage scale, not who runs."""
        self.slots = slots
        self.commons.resized(now)

    def rankings(self) -> list[Ranking[Any]]:
        """The ranking of tenants and each tenant's ranking of users."""
        return [self.root, *(tenant.users for tenant in self.tenants.values())]

    def rescale(self, now: float, factor: float) -> None:
        """The ledger has moved its origin: multiply all stored sums by `factor` (0: clear them)."""
        for node in (*self.nodes.values(), *self.tenants.values()):
            node.lift *= factor
        epochs = {id(epoch): epoch for ranking in self.rankings() for epoch in (ranking.epoch, ranking.coming)}
        epochs[id(self.epoch)] = self.epoch
        for ranking in self.rankings():
            ranking.level *= factor
        if factor:
            for epoch in epochs.values():
                epoch.factor /= factor
            return
        self.refreeze(now)
        for ranking in self.rankings():
            ranking.rebuild(self.epoch)

    # -- parties -----------------------------------------------------------------------------------------------

    def node(self, ticket: Ticket) -> User:
        """The party's state on this model; its shares follow the ticket."""
        node = self.nodes.get((ticket.tenant, ticket.user))
        if node is None:
            return self._open(ticket)
        owner = node.owner
        if owner.share != ticket.share:
            self.ledger.falls += ticket.share < owner.share
            set_share(owner, ticket.share)
        if owner.tenant.share != ticket.tenant_share and self.settings.levels == 2:
            set_share(owner.tenant, ticket.tenant_share)
        return node

    def _open(self, ticket: Ticket) -> User:
        two = self.settings.levels == 2
        group, share = (ticket.tenant, ticket.tenant_share) if two else ("", 1.0)
        account = self.ledger.user((ticket.tenant, ticket.user), group, ticket.share, share)
        self.nodes[account.key] = User(account, self._tenant(account), self.settings.free)
        return self.node(ticket)

    def _tenant(self, account: UserAccount) -> Tenant:
        """The node of the account's tenant, created if necessary."""
        owner = account.tenant
        tenant = self.tenants.get(owner.key[0])
        if tenant is None:
            tenant = Tenant(owner, self.root, self.settings.free, Ranking(self.epoch))
            tenant.offsets = None if self.plain else {}
            self.tenants[owner.key[0]] = tenant
        return tenant

    def forget(self, account: UserAccount) -> None:
        """Drop an idle user's node, after the ledger has dropped the account."""
        self.nodes.pop(account.key, None)
        if not account.tenant.children:
            self.tenants.pop(account.tenant.key[0], None)

    def regroup(self, now: float) -> None:
        """The accounts have other tenants now (`levels` changed): move every node to the right one."""
        waiting = [node for node in self.nodes.values() if node.inside]
        for node in waiting:
            self._leave(node)
        self.tenants.clear()
        self.root = Ranking(self.epoch)
        for node in self.nodes.values():
            node.tenant = tenant = self._tenant(node.owner)
            node.ranking = tenant.users
            tenant.n += node.n
            tenant.running += node.running
            tenant.since = tenant.began = now
            tenant.tie = node.tie
        for node in waiting:
            self._enter(node)

    def _lift(self, now: float, node: Node) -> None:
        """The party returns from idleness: limit its advantage over those that stayed, but never put it behind the
        usage of the one that would go next."""
        account, ranking = node.account, node.ranking
        node.lift = 0.0
        if ranking.level * account.share <= account.grown:
            return
        floor = ranking.level - self.epoch.credit * self.ledger.growth(now)
        if floor * account.share <= account.grown:
            return
        best = ranking.top()
        if best is not None:
            floor = min(floor, (best.account.grown + best.lift) / best.account.share)
        node.lift = max(0.0, floor * account.share - account.grown)

    # -- waiting -----------------------------------------------------------------------------------------------

    def enqueue(self, now: float, request: Request) -> None:
        """Put the request at the end of its class in the party's queue."""
        node = request.node
        tenant = node.tenant
        if not self.averages.samples:
            self.commons.guess(now, self.averages, request.cost)
        if self.plain and request.ticket.class_offset:
            self._count_classes()
        if not node.n and not node.running:
            self._lift(now, node)
        if not tenant.n:
            if not tenant.running:
                self._lift(now, tenant)
            tenant.opens(now)
            tenant.began = now
            tenant.since = now if now > tenant.paid else tenant.paid
            tenant.tie = request.id
        tenant.n += 1
        node.owner.queued += 1
        self.queued += 1
        if node.append(request):
            if node.n == 1:
                self._head(now, node)
                self._enter(node)
            else:
                self._new_head(now, node)
        self.advance(tenant)

    def remove(self, now: float, request: Request) -> None:
        """A waiting request leaves (cancelled, expired, evicted); usage does not change."""
        request.state = OVER
        node = request.node
        tenant = node.tenant
        tenant.n -= 1
        node.owner.queued -= 1
        self.queued -= 1
        if not tenant.n:
            tenant.left = now
        if not node.discard(request):
            return
        if node.n:
            self._new_head(now, node)
            return
        node.left = node.owner.left = now
        if node.inside:
            self._leave(node)
        else:
            del self.parked[node]

    def _head(self, now: float, node: User) -> None:
        """Copy from its head what determines the party's rank."""
        head = node.pick(self.epoch.per_wait)
        node.since = head.arrival if head.arrival > node.paid else node.paid
        node.tie = head.id
        node.offset = head.ticket.class_offset
        if self.windows:
            node.offset += sum(window.bonus(now, node.account.key) for window in self.windows)

    def _new_head(self, now: float, node: User) -> None:
        """The head may have changed: rank the party again. If it was parked, `choose` parks it again if necessary."""
        old = node.offset
        self._head(now, node)
        if node.inside:
            self._move_class(node, old)
            node.ranking.renew(node)
        else:
            del self.parked[node]
            self._enter(node)

    def _enter(self, node: User) -> None:
        tenant = node.tenant
        node.ranking.enter(node)
        risen = tenant.offer(node.offset)
        if not tenant.inside:
            self.root.enter(tenant)
        elif risen:
            self.root.renew(tenant)

    def _leave(self, node: User) -> None:
        tenant = node.tenant
        node.ranking.leave(node)
        tenant.withdraw(node.offset)
        if not node.ranking.active:
            self.root.leave(tenant)

    # A tenant competes with the highest class among its users' heads. A fall is noticed when the ranking is read.

    def _count_classes(self) -> None:
        self.plain = False
        for tenant in self.tenants.values():
            tenant.offsets = {}
        for node in self.nodes.values():
            if node.inside:
                node.tenant.offer(node.offset)

    def _move_class(self, node: User, old: float) -> None:
        if node.offset != old:
            if node.tenant.offer(node.offset) and node.tenant.inside:
                self.root.renew(node.tenant)
            node.tenant.withdraw(old)

    # -- reservations ------------------------------------------------------------------------------------------

    def eligible(self, now: float, request: Request) -> bool:
        """Whether the windows that bind now allow this request to start."""
        key, seconds = request.node.account.key, self.averages.expected(request.cost)
        return all(window.admits(now, key, seconds) for window in self.windows)

    def blocked_for(self, now: float, node: User) -> float:
        """Seconds until the last exclusive window of another party ends, plus the party's own backlog."""
        ends = [w.end for w in self.windows if w.mode == "exclusive" and not w.holds(node.account.key)]
        own = node.n * self.averages.service / max(self.slots, 1.0)
        return max(ends, default=now) - now + own

    def bind(self, now: float, windows: list[Window]) -> None:
        """Other windows bind from now on: all parties compete again, with `since` unchanged."""
        self.windows = windows
        if windows and self.plain:
            self._count_classes()
        for node in [node for node in self.nodes.values() if node.n]:
            self._new_head(now, node)

    # -- choice ------------------------------------------------------------------------------------------------

    def choose(self, now: float) -> User | None:
        """The party whose head goes next, or None if nobody waits that may run."""
        root, epoch = self.root, self.epoch
        if root.epoch is not epoch or root.fresh is not None:
            root.advance(epoch)
        while True:
            tenant = root.top()
            if tenant is None:
                return None
            ranking = tenant.users
            if ranking.epoch is not epoch or ranking.fresh is not None:
                ranking.advance(epoch)
            node = ranking.top()
            if node is None:
                raise RuntimeError(f"{tenant!r} competes without a user")
            if not self.windows or self.eligible(now, node.fifo[0]):
                return node
            self._leave(node)
            self.parked[node] = None

    def advance(self, tenant: Tenant) -> None:
        """Process one slice of each ranking that is moving to another epoch."""
        root, ranking = self.root, tenant.users
        if root.fresh is not None or root.epoch is not self.epoch:
            root.advance(self.epoch)
        if ranking.fresh is not None or ranking.epoch is not self.epoch:
            ranking.advance(self.epoch)

    def priority(self, now: float, node: Node) -> float:
        """The points of a waiting party now, by the formula in `ranking`."""
        epoch = node.ranking.epoch
        return self.settings.base_priority + epoch.per_wait * (now - epoch.at) - epoch.rank(node)

    def take(self, now: float, node: User) -> Request:
        """Dispatch the head of the party that `choose` has just returned."""
        tenant, ranking, root = node.tenant, node.ranking, self.root
        account, owner = node.owner, tenant.account
        request = node.pop(now)
        tenant.n -= 1
        account.queued -= 1
        self.queued -= 1
        # The usage at this dispatch, if somebody still waits: parties that return from idleness are compared with it.
        level = (account.grown + node.lift) / account.share
        if level > ranking.level and (node.n or ranking.active > 1):
            ranking.level, ranking.leader = level, node
        level = (owner.grown + tenant.lift) / owner.share
        if level > root.level and (tenant.n or root.active > 1):
            root.level, root.leader = level, tenant
        users, tenants = self.commons.crowd(node)
        start(now, request, users * tenants / owner.share, tenants)
        tenant.since = tenant.began if tenant.began > tenant.paid else tenant.paid
        tenant.tie = request.id  # otherwise a tenant that never stops waiting would be the oldest among equals for ever
        if not node.n:
            self._leave(node)
        elif self.plain:
            head = node.fifo[0]
            node.since = head.arrival if head.arrival > node.paid else node.paid
            node.tie = head.id
            ranking.replace_top(node)
        else:
            old = node.offset
            self._head(now, node)
            ranking.replace_top(node)
            self._move_class(node, old)
        if tenant.inside:
            root.replace_top(tenant)
        return request

    def admit(self, now: float, request: Request) -> None:
        """Dispatch a request of a party without a queue, bypassing the ranking: only while nobody eligible waits."""
        node = request.node
        tenant = node.tenant
        if not self.averages.samples:
            self.commons.guess(now, self.averages, request.cost)
        if not node.running:
            self._lift(now, node)
        if not tenant.running and not tenant.n:
            self._lift(now, tenant)
        start(now, request, node.account.share, tenant.account.share)
        if tenant.n:  # its other requests may not run now: it is no longer owed the service it just got
            tenant.since = tenant.began if tenant.began > tenant.paid else tenant.paid


def set_share(account: Account, share: float) -> None:
    """Change a party's share, wherever it waits."""
    gained = share - account.share
    account.share = share
    for node in account.nodes:
        node.ranking.shares += gained
        node.ranking.renew(node)
