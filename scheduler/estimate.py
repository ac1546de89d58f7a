"""Estimates the cost of a request before it runs: input tokens from bytes, output tokens from the user's habit.

Owns the cost function and the two learned figures: bytes per token of each model, output tokens of each (user, model).
Must not know queues or HTTP. A client's `max_tokens` alone is never charged, since many clients always send 4096.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from scheduler.settings import Settings

FIRST_RATIO: Final = 4.0
"""Bytes per input token before anything is known: typical for English text in JSON."""
LEAST_RATIO: Final = 1.0
MOST_RATIO: Final = 16.0
"""A token of text is between one byte and a long word. Ratios outside of this come from something else (white space
around a prompt, an image or its address) and must not affect the estimates for text, since budgets reserve by them."""
_RATIO_WEIGHT: Final = 0.05
_OUTPUT_WEIGHT: Final = 0.1


def cost(settings: Settings, uncached: float, cached: float, output: float, factor: float = 1.0) -> float:
    """Cost units of a request: weighted input, cached input and output tokens, times the model's own factor."""
    return factor * (
        settings.input_weight * uncached + settings.cached_weight * cached + settings.output_weight * output
    )


class Estimator:
    """Learns from finished requests what the next one will use.

    `limit` bounds the number of remembered (user, model) pairs; the least recently used one is dropped first.
    """

    def __init__(self, settings: Settings, limit: int = 50_000) -> None:
        self.settings = settings
        self._limit = limit
        self._ratios: dict[str, float] = {}
        self._outputs: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def input_tokens(self, model: str, size: int) -> float:
        """Expected input tokens for `size` bytes of prompt."""
        return size / self._ratios.get(model, FIRST_RATIO)

    def output_tokens(self, model: str, tenant: str, user: str, cap: float | None) -> float:
        """Expected output tokens: this user's habit with this model, at most `cap` (the request's max_tokens)."""
        habit = self._outputs.get((tenant, user, model), self.settings.first_output)
        return habit if cap is None else min(habit, cap)

    def request_cost(
        self, model: str, tenant: str, user: str, size: int, cap: float | None, factor: float = 1.0
    ) -> float:
        """Cost units for the ticket. `cap=0` for requests that produce no tokens (embeddings)."""
        output = self.output_tokens(model, tenant, user, cap)
        return cost(self.settings, self.input_tokens(model, size), 0.0, output, factor)

    def observe(self, model: str, tenant: str, user: str, size: int, tokens_in: int, tokens_out: int) -> None:
        """Learn from the backend's own usage figures of a finished request; do not pass estimated figures."""
        if size > 0 and tokens_in > 0:
            old = self._ratios.get(model, FIRST_RATIO)
            seen = min(max(size / tokens_in, LEAST_RATIO), MOST_RATIO)
            self._ratios[model] = old + _RATIO_WEIGHT * (seen - old)
        if tokens_out <= 0:
            return
        key = (tenant, user, model)
        known = self._outputs.get(key)
        self._outputs[key] = float(tokens_out) if known is None else known + _OUTPUT_WEIGHT * (tokens_out - known)
        self._outputs.move_to_end(key)
        if len(self._outputs) > self._limit:
            self._outputs.popitem(last=False)
