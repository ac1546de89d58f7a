"""How long a model keeps a slot busy, learned from what it did: the estimate behind reservations of GPU time.

Must not know budgets or requests. Output is made a token at a time while a prompt is read in parallel, so a prompt's
token weighs a tenth of an output token here.
"""

from typing import Final

FIRST: Final = 0.02
"""Seconds per output token before anything was learned: 50 tokens a second."""
PROMPT_WEIGHT: Final = 0.1
_WEIGHT: Final = 0.1


class Pace:
    """Seconds per output token of each model, averaged with exponentially falling weight."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def seconds(self, model: str, tokens_in: float, tokens_out: float) -> float:
        """Seconds of a slot that such a request is expected to take."""
        return self._seconds.get(model, FIRST) * (tokens_out + PROMPT_WEIGHT * tokens_in)

    def observe(self, model: str, tokens_in: int, tokens_out: int, seconds: float) -> None:
        """Learn from a finished request whose tokens were reported."""
        work = tokens_out + PROMPT_WEIGHT * tokens_in
        if work > 0:
            known = self._seconds.get(model, seconds / work)
            self._seconds[model] = known + _WEIGHT * (seconds / work - known)
