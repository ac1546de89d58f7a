"""Running estimates for one model: S (mean service time), C (mean cost) and the late end of the service time.

Owns the arithmetic of three moving figures. Must not know who ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_WEIGHT: Final = 0.02
_WARM_UP: Final = 64
"""Up to this many samples, ranks are renewed at every power of two, and not only at landmarks."""


class Averages:
    """Plain means of the first 50 samples, exponential means with weight 0.02 after that.

    Before any request has ended, C is the mean of the estimates so far, and S is `assumed`, or unknown (0).
    """

    __slots__ = ("assumed", "cost", "guesses", "late", "samples", "service")

    def __init__(self) -> None:
        self.service = 0.0
        """Seconds; 0 until a request has ended."""
        self.cost = 0.0
        """Cost units."""
        self.late = 0.0
        """About the 95th percentile of the service time, seconds."""
        self.assumed = 0.0
        """Service time to use before the first request ends: the mean of other models, or what an earlier run
        learned."""
        self.samples = 0
        self.guesses = 0

    def guess(self, cost: float) -> bool:
        """Use an estimate while nothing better is known. True if ranks should follow now."""
        self.guesses = n = self.guesses + 1
        self.cost += (cost - self.cost) / n
        return n & (n - 1) == 0

    def learn(self, seconds: float, cost: float) -> bool:
        """Learn from an ended request. True if ranks should follow now (warm-up) and not only at the next landmark."""
        self.samples = n = self.samples + 1
        if n == 1:
            self.service, self.cost, self.late = seconds, cost, seconds
            return True
        weight = 1.0 / n if n < 50 else _WEIGHT
        self.service += (seconds - self.service) * weight
        self.cost += (cost - self.cost) * weight
        # Stochastic quantile: if steps up are 19 times as large as steps down, it settles where 1 in 20 is longer.
        step = 0.1 * self.service
        self.late = max(0.0, self.late + step * (0.95 if seconds > self.late else -0.05))
        return n <= _WARM_UP and n & (n - 1) == 0

    def restore(self, service: float, cost: float) -> None:
        """Start with what an earlier run learned; the first samples of this run replace it."""
        if not self.samples:
            self.assumed, self.cost, self.guesses = service, cost, _WARM_UP

    def expected(self, cost: float) -> float:
        """Expected seconds of a request with this estimated cost."""
        service = self.service if self.samples else self.assumed
        return service * cost / self.cost if self.cost > 0.0 else service


def mixed(parts: Sequence[Averages]) -> Averages:
    """Averages over the samples of all of these; the late end of the service time is not included."""
    made = Averages()
    made.samples = sum(part.samples for part in parts)
    made.guesses = sum(part.guesses for part in parts)
    if made.samples:
        made.service = sum(part.service * part.samples for part in parts) / made.samples
        made.cost = sum(part.cost * part.samples for part in parts) / made.samples
        return made
    if made.guesses:
        made.cost = sum(part.cost * part.guesses for part in parts) / made.guesses
    assumed = [part.assumed for part in parts if part.assumed]
    if assumed:
        made.assumed = sum(assumed) / len(assumed)
    return made
