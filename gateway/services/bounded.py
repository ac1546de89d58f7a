"""Dictionaries that forget their oldest entry: what strangers can fill has a bound. Knows nothing of what they hold."""

import itertools
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def put(cache: dict[K, V], key: K, value: V, most: int) -> None:
    """Put at the young end; when there are more than `most`, the oldest go: one, and a 64th of all.

    Several at once: each deletion at the front of a dict leaves a hole that every later search for the first key walks
    over."""
    cache.pop(key, None)
    cache[key] = value
    if len(cache) > most:
        for oldest in list(itertools.islice(cache, 1 + most // 64)):
            del cache[oldest]
