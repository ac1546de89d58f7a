"""How long a model keeps a slot busy, learned from what it did: the estimate behind reservations of GPU time.

Must not know budgets or requests. Output is made a token at a time while a prompt is read in parallel, so a prompt's
token weighs a tenth of an output token here.
"""

from typing import Final

FIRST: Final = 0.02
"""Seconds per output token before anything was learned: 50 tokens a second."""
PROMPT_WEIGHT: Final = 0.1
_KEPT: Final = 0.95
_FIRST_WORK: Final = 1000.0
_MOST: Final = 4.0
"""A request counts as this much slower than known, at most: one that waited for its model to be loaded tells nothing of
the next, and an estimate above all budgets would refuse those by which it could be mended."""


class Pace:
    """Seconds per output token of each model: of its last requests together, weighed by what they did."""

    def __init__(self) -> None:
        self._done: dict[str, tuple[float, float]] = {}  # seconds and work

    def seconds(self, model: str, tokens_in: float, tokens_out: float) -> float:
        """Seconds of a slot that such a request is expected to take."""
        return self._rate(model) * (tokens_out + PROMPT_WEIGHT * tokens_in)

    def observe(self, model: str, tokens_in: int, tokens_out: int, seconds: float) -> None:
        """Learn from a finished request whose tokens were reported."""
        work = tokens_out + PROMPT_WEIGHT * tokens_in
        if work > 0:
            taken = min(seconds, _MOST * self._rate(model) * work)
            before, done = self._done.get(model, (FIRST * _FIRST_WORK, _FIRST_WORK))
            self._done[model] = (before * _KEPT + taken, done * _KEPT + work)

    def _rate(self, model: str) -> float:
        seconds, work = self._done.get(model, (FIRST, 1.0))
        return seconds / work
