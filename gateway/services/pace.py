"""Learns how long a model keeps a slot busy, to estimate reservations of GPU time and the cost of unfinished answers.

Must not know budgets or requests. Output is generated token by token while a prompt is processed in parallel, so a
prompt token counts as a tenth of an output token here.
"""

from typing import Final

FIRST: Final = 0.02
"""Seconds per output token before anything is known: 50 tokens a second."""
PROMPT_WEIGHT: Final = 0.1
_KEPT: Final = 0.95
_FIRST_WORK: Final = 1000.0
_MOST: Final = 4.0
"""A request counts as at most this many times slower than average. One that waited for its model to be loaded says
nothing about the next; and an estimate above all budgets would refuse the very requests that could correct it."""


class Pace:
    """Seconds per output token of each model: the mean over recent requests, weighted by their work."""

    def __init__(self) -> None:
        self._done: dict[str, tuple[float, float]] = {}  # model -> seconds and work

    def seconds(self, model: str, tokens_in: float, tokens_out: float) -> float:
        """Expected seconds that such a request holds a slot."""
        return self._rate(model) * (tokens_out + PROMPT_WEIGHT * tokens_in)

    def tokens(self, model: str, tokens_in: float, seconds: float) -> float:
        """Output tokens that a request with such a prompt is expected to have after so long."""
        return max(0.0, seconds / self._rate(model) - PROMPT_WEIGHT * tokens_in)

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
