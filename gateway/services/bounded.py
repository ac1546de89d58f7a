"""Dictionaries that forget their oldest entry: what strangers can fill has a bound. Knows nothing of what they hold."""

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def put(cache: dict[K, V], key: K, value: V, most: int) -> None:
    """Put at the young end; the oldest goes when there are more than `most`."""
    cache.pop(key, None)
    cache[key] = value
    if len(cache) > most:
        del cache[next(iter(cache))]
