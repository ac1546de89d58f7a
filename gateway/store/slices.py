"""Lets a thread that processes many rows hand the interpreter to the event loop now and then."""

import time
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

SLICE: Final = 50
BREATH: Final = 50e-6
"""Seconds that the thread sleeps after every 50 rows (0.1 to 0.2 ms of work). Binding or creating rows holds the
interpreter; without the sleep, a waiting loop would get it only after the switch interval (5 ms)."""


def slices(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """The rows in slices, with a short sleep after each."""
    for first in range(0, len(rows), SLICE):
        yield rows[first : first + SLICE]
        time.sleep(BREATH)
