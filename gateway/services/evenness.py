"""The fairness index: how evenly the queues of a model serve parties that always have requests waiting.

Keeps what was seen at earlier looks. Must not know labels or what a scrape looks like.

Only parties that had requests waiting during the whole time are compared. The others were served all they had asked
for, which says nothing about turns.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from scheduler.model import Backlog

WINDOW: Final = 300.0
"""Seconds; the index covers the last one to two windows."""

Seen = dict[tuple[tuple[str, ...], tuple[str, str]], Backlog]


class Evenness:
    """How much parties with a queue have been served since an earlier look."""

    def __init__(self) -> None:
        self._before: Seen = {}
        self._last: Seen = {}
        self._turned = float("-inf")

    def look(self, now: float, backlogs: Iterable[Backlog]) -> dict[str, float]:
        """Jain's index by model; the least even of its queues and tenants counts. A model is left out if fewer than two
        parties that take turns had a queue throughout, or if fewer requests have ended than there are such parties:
        then not everybody could have had a turn."""
        seen: Seen = {(each.group, each.party): each for each in backlogs}
        if now - self._turned >= WINDOW:
            self._before, self._last, self._turned = self._last, seen, now
        groups: dict[tuple[str, ...], list[tuple[Backlog, Backlog]]] = {}
        for key, each in seen.items():
            then = self._before.get(key)
            if then is not None and then.since == each.since:
                groups.setdefault(each.group, []).append((then, each))
        found: dict[str, float] = {}
        for group, pairs in groups.items():
            index = _index(pairs)
            if index is not None:
                model = group[0].partition("\t")[0]
                found[model] = min(index, found.get(model, 1.0))
        return found


def _index(pairs: Sequence[tuple[Backlog, Backlog]]) -> float | None:
    ended = sum(now.ended - then.ended for then, now in pairs)
    if len(pairs) < 2 or ended < len(pairs):
        return None
    # A late refund of a charge from before the first look may exceed all charges since.
    return jain([max(0.0, now.served - then.served) / now.share for then, now in pairs])


def jain(values: Sequence[float]) -> float | None:
    """(sum x)^2 / (n sum x^2), Jain, Chiu and Hawe 1984; None without values or if all are zero."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares > 0 else None
