"""What a request will cost, guessed before it runs: tokens from bytes, output from habit.

Owns the cost function and the two learned figures: bytes per token of each model, output tokens of each (user, model).
Must not know queues or HTTP. A client's `max_tokens` alone is never charged: clients send 4096 by habit.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from scheduler.settings import Settings

FIRST_RATIO: Final = 4.0
"""Bytes per input token before anything was learned: the usual figure of English text in JSON."""
LEAST_RATIO: Final = 1.0
MOST_RATIO: Final = 16.0
"""A token of text is between one byte and a long word. What lies outside was no text (white space around a prompt, an
image, an address of one) and must not teach what the text of others will cost: budgets reserve by it."""
_RATIO_WEIGHT: Final = 0.05
_OUTPUT_WEIGHT: Final = 0.1


def cost(settings: Settings, uncached: float, cached: float, output: float, factor: float = 1.0) -> float:
    """Cost units of a request: weighted input, cached input and output tokens, times the model's own factor."""
    return factor * (
        settings.input_weight * uncached + settings.cached_weight * cached + settings.output_weight * output
    )


class Estimator:
    """Learns from finished requests what the next one will use.

    `limit` bounds the remembered (user, model) pairs; the least recently used goes first.
    """

    def __init__(self, settings: Settings, limit: int = 50_000) -> None:
        self.settings = settings
        self._limit = limit
        self._ratios: dict[str, float] = {}
        self._outputs: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def input_tokens(self, model: str, size: int) -> float:
        """Input tokens expected of `size` bytes of prompt."""
        return size / self._ratios.get(model, FIRST_RATIO)

    def output_tokens(self, model: str, tenant: str, user: str, cap: float | None) -> float:
        """Output tokens expected: this user's habit on this model, never above `cap` (the request's max_tokens)."""
        habit = self._outputs.get((tenant, user, model), self.settings.first_output)
        return habit if cap is None else min(habit, cap)

    def request_cost(
        self, model: str, tenant: str, user: str, size: int, cap: float | None, factor: float = 1.0
    ) -> float:
        """Cost units to put on the ticket. `cap=0` for requests that produce no tokens (embeddings)."""
        output = self.output_tokens(model, tenant, user, cap)
        return cost(self.settings, self.input_tokens(model, size), 0.0, output, factor)

    def observe(self, model: str, tenant: str, user: str, size: int, tokens_in: int, tokens_out: int) -> None:
        """Learn from the backend's own usage figures of a finished request; estimated figures teach nothing."""
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
