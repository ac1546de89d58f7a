"""One budget, a part of which is leased from the store's ledger. Pure: time is an argument, nothing waits.

Owns what a gateway tells the ledger (`store/limits.py`) and how a budget refuses; the rest is as for every leased limit
(`meters.Leased`).
"""

import itertools
import math
from typing import Final

from gateway.errors import BudgetSpent, GatewayError, RateLimited
from gateway.services.meters import GPU, HELD_RETRY, NOUNS, Leased, duration, who
from gateway.store.limits import Claim, Standing

REUSED: Final = 600.0
"""Seconds that an ended lease may rest and still be resumed: a new lease for each burst of use would make the ledger's
rows long. The ledger remembers each lease for an hour; the rest of that hour allows for differing clocks."""
_leases: Final = itertools.count()
"""Lease numbers, each used once in this process. A meter that was forgotten and created again must not reuse a number:
the ledger would take its claims for old ones."""


class Budget(Leased):
    """Tokens or GPU time of one window, leased from the store's ledger. `ends` is the end of the window."""

    __slots__ = ("_lease", "_number", "_reported", "_rests", "_seen", "_told", "ends", "holder", "spent")

    def __init__(self, scope: str, name: str, unit: int, most: int, ends: float, holder: str) -> None:
        super().__init__(scope, name, unit, most)
        self.ends = ends
        self.holder = holder
        self.spent = 0  # under the current lease
        self._reported = 0
        self._told = 0  # the part of `spent` that the ledger has acknowledged
        self._seen = Standing(0, 0, 0)
        self._lease = next(_leases)
        self._number = 0
        self._rests = math.inf  # when the lease ended

    def retune(self, most: int, ends: float) -> None:
        """Change the limit: of the leased amount, only what the new limit leaves may be spent."""
        self.most, self.ends = most, ends
        self._trim()

    def _trim(self) -> None:
        self.free = min(self.free, self.left())

    def settle(self, taken: int, used: int) -> None:
        """Use beyond what was taken is subtracted from `free`, and is reported as spent in the next round."""
        self.held -= taken
        self.spent += used
        self.free += taken - used

    def claim(self, now: float) -> Claim:
        """The figures for the ledger. A debt (`free` below zero) is already part of `spent`."""
        if now - self._rests > REUSED:
            self._begin_lease()
        self._rests = math.inf  # even if the answer is lost: the ledger may know more than this process
        need, want = self._wanted()
        self.free = max(self.free, 0)
        self._reported = self.spent
        self._number += 1
        name = f"{self.holder}.{self._lease}"
        kept = self.held + self.free
        return Claim(self.scope, self.name, name, self._number, self.most, self.spent, kept, need, want, self._told)

    def apply(self, standing: Standing, until: float, now: float) -> bool:
        """True: nothing is held and everything is reported, so no further round is needed until something is asked
        for."""
        self._seen, self._told = standing, self._reported
        self._granted(standing.granted, until, now)
        self._trim()
        if self.held or self.free > 0 or self.waiting or self.spent != self._reported:
            return False
        self._rests = now
        return True

    def _begin_lease(self) -> None:
        """Begin a new lease. The last claim of the previous one was acknowledged, so the ledger knows what it reported;
        only the rest is reported under the new lease."""
        self._lease, self._number = next(_leases), 0
        self.spent, self._reported, self._told = self.spent - self._reported, 0, 0

    @property
    def untold(self) -> bool:
        """Whether something was spent after the lease had ended, by a request that took nothing but used something."""
        return self._rests < math.inf and self.spent != self._reported

    def left(self) -> int:
        """What nobody has spent, reserved or leased, as far as is known here."""
        used = self._seen.spent + self.spent - self._told
        return max(0, self.most - used - self.held - self._seen.others)

    def refusal(self, amount: int, now: float) -> GatewayError:
        unspent = self.most - self._seen.spent - self.spent + self._told
        span = self.name.partition("/")[2].partition("/")[0]
        of = f"the {NOUNS[self.unit]} of {who(self.scope)}" + ("" if span == "total" else f" for this {span}")
        if amount <= unspent:
            return RateLimited(f"Running requests hold what is left of {of}.", retry_after=HELD_RETRY)
        wait = None if self.ends == math.inf else max(1.0, self.ends - now)
        spent = "are spent" if unspent <= 0 else f"do not suffice: this request may use {self._shown(amount)}"
        again = "" if wait is None else f"; they return in {duration(wait)}"
        if amount > self.most:  # it can never fit
            wait, again = None, "; a smaller max_tokens may fit"
            spent = f"do not suffice: this request may use {self._shown(amount)}"
        return BudgetSpent(f"{of[:1].upper()}{of[1:]} {spent} of {self._shown(self.most)}{again}.", retry_after=wait)

    def _shown(self, amount: int) -> str:
        return f"{amount / 1000:g}" if self.unit == GPU else str(amount)

    def remaining(self, now: float) -> int:
        return self.left()

    def reset(self, now: float) -> float:
        return max(0.0, self.ends - now)

    def __repr__(self) -> str:
        return f"<Budget {self.scope} {self.name} spent={self.spent} held={self.held} free={self.free}>"
