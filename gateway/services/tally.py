"""The counters of one model: histograms and tokens.

Plain numbers, which can be added up over processes. Must not know labels or what a scrape looks like.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.utils import floatToGoString

from gateway.services.counts import ModelCounts
from gateway.services.metrics_table import DURATION, GAP, QUEUE, TTFT


class Histogram:
    """Counts per bucket (not cumulated; the last is +Inf) and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """A value on a boundary belongs to the bucket with that upper bound (`le`)."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def drawn(self) -> tuple[list[int], float]:
        return self.counts, self.sum

    def add(self, drawn: tuple[list[int], float]) -> None:
        self.counts = [mine + more for mine, more in zip(self.counts, drawn[0], strict=True)]
        self.sum += drawn[1]

    def cumulated(self) -> list[tuple[str, float]]:
        bounds = [*map(floatToGoString, self.bounds), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


class ModelTally:
    """The counters of one model."""

    __slots__ = (
        "cached",
        "completion",
        "duration",
        "estimated",
        "gap",
        "observe_gap",
        "prompt",
        "queue",
        "ttft",
    )

    def __init__(self) -> None:
        self.queue = Histogram(QUEUE)
        self.ttft = Histogram(TTFT)
        self.gap = Histogram(GAP)
        self.observe_gap = self.gap.observe  # bound once for all streams
        self.duration = Histogram(DURATION)
        self.prompt = self.completion = self.cached = self.estimated = 0

    def histograms(self) -> tuple[Histogram, ...]:
        return self.queue, self.ttft, self.gap, self.duration

    def drawn(self) -> ModelCounts:
        tokens = (self.prompt, self.completion, self.cached, self.estimated)
        return ModelCounts(tuple(each.drawn() for each in self.histograms()), tokens)

    def add(self, counts: ModelCounts) -> None:
        for mine, drawn in zip(self.histograms(), counts.histograms, strict=True):
            mine.add(drawn)
        prompt, completion, cached, estimated = counts.tokens
        self.prompt += prompt
        self.completion += completion
        self.cached += cached
        self.estimated += estimated
