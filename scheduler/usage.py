"""What each party used lately: decayed cost, including the estimates of what is in flight.

Owns the accounts and the arithmetic of decay. Must not know queues, ranks or pools.

*Landmark decay.* Usage is U(t) = sum of cost_i * 2^(-(t - t_i)/half_life). Stored is the grown sum
u = sum of cost_i * e^(rate * (t_i - origin)), rate = ln 2 / half_life, so that U(t) = u * e^(-rate * (t - origin)):
time passes without touching an account, and any ratio of two usages is the ratio of the stored numbers. Before the
exponent leaves the range of a double the origin moves (`Ledger.rebase`).
"""

from __future__ import annotations

from math import exp, inf, log
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from scheduler.party import Node

REBASE_AT: Final = 200.0
"""Growth exponent at which the origin moves: e^200 * 1e12 is far inside a double, and it is once a day by default."""
FORGET_AT: Final = 600.0
"""A gap of this many rates leaves nothing of any usage (e^-600): accounts are cleared instead of scaled."""


class Account:
    """A tenant's account, and what every account has."""

    __slots__ = ("charges", "children", "grown", "key", "nodes", "running", "share")

    def __init__(self, key: tuple[str, str], share: float) -> None:
        self.key = key
        self.share = share
        self.grown = 0.0
        self.charges = 0
        """How often `grown` or a tenant's class changed for the worse: keys made before are to be looked at again."""
        self.nodes: list[Node] = []
        """Its places in rankings, one per pool where it is waiting and eligible."""
        self.children = 0
        """Users of a tenant that have an account."""
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
        """When a queue of it last ended unserved."""
        self.queued = 0
        self.waited = 0.0


class Ledger:
    """All accounts and the clock of their decay."""

    def __init__(self, now: float, half_life: float) -> None:
        self.origin = now
        self.rate = log(2.0) / half_life
        self.limit = now + REBASE_AT / self.rate
        """Time from which `rebase` is due."""
        self.users: dict[tuple[str, str], UserAccount] = {}
        self.tenants: dict[str, Account] = {}
        self.falls = 0
        """How often the share of a user fell: each of its queues has become longer for its share."""
        self._at = now
        self._growth = 1.0

    def growth(self, now: float) -> float:
        """e^(rate * (now - origin)): what a cost incurred now adds to the stored sum, per unit. Bounded: a view of an
        idle scheduler may come long after `limit`, when every usage is 0 for all purposes."""
        if now != self._at:
            self._at = now
            self._growth = exp(min(self.rate * (now - self.origin), FORGET_AT))
        return self._growth

    def growth_at(self, then: float) -> float:
        """`growth` of an earlier moment."""
        return exp(self.rate * (then - self.origin))

    def user(self, key: tuple[str, str], group: str, share: float, group_share: float) -> UserAccount:
        """The account of the user `key` = (tenant, user), opened under the tenant account `group` if need be."""
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
        """Forget an idle user, and its tenant with its last user."""
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
        """Move the origin to `now` (and change the rate). Returns the factor all stored sums, here and elsewhere
        (lifts, levels), are multiplied by; 0.0 when so much time passed that nothing is left of them."""
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
