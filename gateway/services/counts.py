"""The counters of one process, as plain numbers to send to another one (`metrics.Metrics.counts`, `show`).

Not compiled (`hatch_build.py`): a compiled class would lose its array form.
"""

import msgspec


class ModelCounts(msgspec.Struct, frozen=True, array_like=True):
    """One model's part of `Counts`."""

    histograms: tuple[tuple[list[int], float], ...]
    tokens: tuple[int, int, int, int]


class Counts(msgspec.Struct, frozen=True, array_like=True):
    """All counters of one process, for another to add up: plain numbers by their labels."""

    requests: list[tuple[tuple[str, str, int, str], int]]
    counts: dict[str, dict[str, int]]
    models: dict[str, ModelCounts]
    histograms: tuple[tuple[list[int], float], ...]
    totals: tuple[int, int, int]
