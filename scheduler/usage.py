"""The recent use of each party: decayed cost, including the estimates of requests in flight.

Owns the accounts and the arithmetic of decay. Must not know queues, ranks or pools.

*Landmark decay.* Usage is U(t) = sum of cost_i * 2^(-(t - t_i)/half_life). Stored is the grown sum u = sum of cost_i *
e^(rate * (t_i - origin)), rate = ln 2 / half_life, so that U(t) = u * e^(-rate * (t - origin)): time passes without
changing an account, and the ratio of two usages is the ratio of the stored numbers. Before the exponent leaves the
range of a double, the origin is moved (`Ledger.rebase`).
"""

from __future__ import annotations

from math import exp, inf, log
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from scheduler.party import Node

REBASE_AT: Final = 200.0
"""Growth exponent at which the origin is moved: e^200 * 1e12 is far within a double; by default this is once a day."""
FORGET_AT: Final = 600.0
"""After a gap of this many decay times nothing is left of any usage (e^-600): accounts are cleared instead of
scaled."""


class Account:
    """The account of a tenant, and the base of a user's account."""

    __slots__ = ("charges", "children", "grown", "key", "nodes", "running", "share")

    def __init__(self, key: tuple[str, str], share: float) -> None:
        self.key = key
        self.share = share
        self.grown = 0.0
        self.charges = 0
        """Incremented when `grown` or a tenant's class changes for the worse: keys computed before must be checked
        again."""
        self.nodes: list[Node] = []
        """Its places in rankings, one per pool in which it is waiting and eligible."""
        self.children = 0
        """Number of a tenant's users that have an account."""
        self.running = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'/'.join(self.key)} grown={self.grown:g} running={self.running}>"


class UserAccount(Account):
    """A user's account; charged together with its tenant's."""

    __slots__ = ("grants", "left", "queued", "tenant", "waited")

    def __init__(self, key: tuple[str, str], share: float, tenant: Account) -> None:
        super().__init__(key, share)
        self.tenant = tenant
        self.grants = 0
        self.left = -inf
        """When one of its queues last became empty without service."""
        self.queued = 0
        self.waited = 0.0


class Ledger:
    """All accounts and the clock of their decay."""

    def __init__(self, now: float, half_life: float) -> None:
        self.origin = now
        self.rate = log(2.0) / half_life
        self.limit = now + REBASE_AT / self.rate
        """The time at which `rebase` becomes due."""
        self.users: dict[tuple[str, str], UserAccount] = {}
        self.tenants: dict[str, Account] = {}
        self.falls = 0
        """How often the share of a user was lowered, which makes each of its queues longer for its share."""
        self._at = now
        self._growth = 1.0

    def growth(self, now: float) -> float:
        """e^(rate * (now - origin)): what a cost incurred now adds to the stored sum, per unit. Bounded, since an idle
        scheduler may be looked at long after `limit`, when every usage is practically 0."""
        if now != self._at:
            self._at = now
            self._growth = exp(min(self.rate * (now - self.origin), FORGET_AT))
        return self._growth

    def growth_at(self, then: float) -> float:
        """`growth` of an earlier moment."""
        return exp(self.rate * (then - self.origin))

    def user(self, key: tuple[str, str], group: str, share: float, group_share: float) -> UserAccount:
        """The account of the user `key` = (tenant, user), created under the tenant account `group` if necessary."""
        account = self.users.get(key)
        if account is None:
            parent = self.tenants.get(group)
            if parent is None:
                parent = self.tenants[group] = Account((group, ""), group_share)
            parent.children += 1
            account = self.users[key] = UserAccount(key, share, parent)
        return account

    def usage(self, account: Account, now: float) -> float:
        """U(now) in cost units."""
        return account.grown / self.growth(now)

    def drop(self, account: UserAccount) -> None:
        """Forget an idle user, and its tenant if it was the last user."""
        del self.users[account.key]
        tenant = account.tenant
        tenant.children -= 1
        if tenant.children == 0:
            del self.tenants[tenant.key[0]]

    def regroup(self, *, two_levels: bool) -> None:
        """Put the users under one account per tenant, or all under one; tenants start with the sum of their users."""
        old, self.tenants = self.tenants, {}
        for account in self.users.values():
            name = account.key[0] if two_levels else ""
            parent = self.tenants.get(name)
            if parent is None:
                share = old[name].share if name in old else 1.0
                parent = self.tenants[name] = Account((name, ""), share)
            account.tenant = parent
            parent.children += 1
            parent.grown += account.grown
            parent.running += account.running

    def rebase(self, now: float, half_life: float) -> float:
        """Move the origin to `now` (and change the rate). Returns the factor by which all stored sums, here and
        elsewhere (lifts, levels), must be multiplied; 0.0 if so much time has passed that nothing is left of them."""
        exponent = self.rate * (now - self.origin)
        factor = exp(-exponent) if exponent < FORGET_AT else 0.0
        for account in self.users.values():
            account.grown *= factor
        for tenant in self.tenants.values():
            tenant.grown *= factor
        self.origin = self._at = now
        self._growth = 1.0
        self.rate = log(2.0) / half_life
        self.limit = now + REBASE_AT / self.rate
        return factor
