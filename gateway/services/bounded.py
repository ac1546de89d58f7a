"""Dictionaries with a maximum size that forget their oldest entries, for what strangers can fill. Must not know the
entries."""

import itertools
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def put(cache: dict[K, V], key: K, value: V, most: int) -> None:
    """Add as the newest entry; above `most` entries, drop the oldest ones: one, and a 64th of all.

    Several at once, because each deletion at the front of a dict leaves a hole that later searches for the first key
    walk over.
    """
    cache.pop(key, None)
    cache[key] = value
    if len(cache) > most:
        for oldest in list(itertools.islice(cache, 1 + most // 64)):
            del cache[oldest]
