"""How many requests a backend should run concurrently, derived from its speed: additive increase, multiplicative
decrease.

Owns the limit of one gate. Must not know the gate: its owner reports finished requests and applies `limit`. For engines
whose capacity is unknown or changes; a fixed number is better if it is known.
"""

from __future__ import annotations

from math import isfinite

_WEIGHT = 0.1


class Aimd:
    """Keeps the time per output token (TPOT) at an objective.

    After every `limit` finished requests, the limit rises by one if the moving mean of their TPOT is within `objective`
    seconds, and falls by a tenth otherwise; always within `low`..`high`. `ValueError` for invalid bounds.
    """

    __slots__ = ("_ended", "_settled", "high", "limit", "low", "objective", "tpot")

    def __init__(self, objective: float, low: int = 1, high: int = 256) -> None:
        if not (isfinite(objective) and objective > 0.0):
            raise ValueError(f"objective: {objective!r} is not a positive number of seconds")
        if not 1 <= low <= high:
            raise ValueError(f"limits: 1 <= {low} <= {high} does not hold")
        self.objective = objective
        self.low, self.high = low, high
        self.limit = low
        self.tpot = 0.0
        """Moving mean, seconds; 0 before the first sample."""
        self._ended = 0
        self._settled = -1.0

    def observe(self, tpot: float, started: float, now: float) -> int:
        """A request that started at `started` has ended with this mean time per output token. Returns the new limit.

        Samples that are not positive numbers are ignored. Requests that started before the last decrease do not count
        towards the next one, since they still reflect the load that caused it.
        """
        if not (isfinite(tpot) and tpot > 0.0):
            return self.limit
        if started < self._settled:
            return self.limit
        self.tpot = tpot if not self._ended and not self.tpot else self.tpot + _WEIGHT * (tpot - self.tpot)
        self._ended += 1
        if self._ended >= self.limit:
            self._ended = 0
            self._decide(now)
        return self.limit

    def _decide(self, now: float) -> None:
        if self.tpot <= self.objective:
            self.limit = min(self.high, self.limit + 1)
            return
        self.limit = max(self.low, int(self.limit * 0.9))
        self._settled = now
        self.tpot = 0.0
