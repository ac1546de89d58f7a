"""Dictionaries that forget their oldest entries."""

import pytest

from gateway.services.bounded import put


@pytest.mark.parametrize("most", [0, 1, 2, 63, 64, 1000])
def test_the_newest_entries_are_kept(most: int) -> None:
    """Never more than `most`, never much less, and always the last ones that were put, in their order."""
    cache: dict[int, int] = {}
    for number in range(5 * most + 3):
        put(cache, number, -number, most)
        assert min(number + 1, most - most // 64) <= len(cache) <= most
        assert list(cache.items()) == [(key, -key) for key in range(number + 1 - len(cache), number + 1)]


def test_who_is_put_again_is_young() -> None:
    cache = {}
    for number in (1, 2, 3, 1, 4):
        put(cache, number, "", 3)
    assert list(cache) == [3, 1, 4]


def test_a_large_one_forgets_several_at_once() -> None:
    """The way to its first entry leads over all that went before: once for a 64th of it, not for each."""
    cache: dict[int, int] = {}
    emptied = 0
    for number in range(20_000):
        before = len(cache)
        put(cache, number, 0, 10_000)
        emptied += len(cache) <= before
    assert emptied <= 65
