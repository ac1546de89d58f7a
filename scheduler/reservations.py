"""Exclusive and preferred windows: who may run when.

Owns the window record and the calendar of boundaries. Must not know queues, storage or HTTP. Windows are plain data in
the caller's clock. A caller that stores them in wall-clock time converts them here, so they also survive a restart.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, isfinite
from typing import Literal

import msgspec

PREFERRED_POINTS = 1000.0
"""Points for the holder of a `preferred` window: more than any usage or wait can outweigh with ordinary settings."""


class Window(msgspec.Struct, frozen=True):
    """A reservation. `ValueError` for an end before the start, an infinite time or a usage factor outside 0..1.

    `exclusive`: during the window only the holder's requests are started. Before it, for about the 95th percentile of
    the service time, requests of others are started only if they are expected to end in time. `preferred`: the holder
    goes first, and others use what it leaves.
    """

    id: str
    tenant: str
    start: float
    end: float
    user: str | None = None
    """None: every user of the tenant."""
    pools: frozenset[str] | None = None
    """None: all models. A name also covers the pools whose name is that name, a tab and more text."""
    mode: Literal["exclusive", "preferred"] = "preferred"
    usage_factor: float = 0.0
    """The fraction of the holder's cost inside the window that counts as usage."""

    def __post_init__(self) -> None:
        if not (isfinite(self.start) and isfinite(self.end) and self.start < self.end):
            raise ValueError(f"reservation {self.id}: the end must come after the start")
        if not 0.0 <= self.usage_factor <= 1.0:
            raise ValueError(f"reservation {self.id}: usage_factor must be within 0..1")

    def covers(self, pool: str) -> bool:
        """Whether the window applies to this model."""
        return self.pools is None or pool.partition("\t")[0] in self.pools

    def holds(self, key: tuple[str, str]) -> bool:
        """Whether (tenant, user) is its holder."""
        return key[0] == self.tenant and (self.user is None or key[1] == self.user)

    def admits(self, now: float, key: tuple[str, str], seconds: float) -> bool:
        """Whether a request of `key` with this expected duration may start now."""
        if self.mode == "preferred" or now >= self.end or self.holds(key):
            return True
        return now < self.start and now + seconds <= self.start

    def bonus(self, now: float, key: tuple[str, str]) -> float:
        """Points the party gains now."""
        inside = self.mode == "preferred" and self.start <= now < self.end
        return PREFERRED_POINTS if inside and self.holds(key) else 0.0

    def factor(self, now: float, key: tuple[str, str]) -> float:
        """The fraction of a cost of the party that counts as usage now."""
        return self.usage_factor if self.start <= now < self.end and self.holds(key) else 1.0


class Calendar:
    """All windows that have not ended."""

    def __init__(self) -> None:
        self.windows: dict[str, Window] = {}

    def replace(self, now: float, windows: dict[str, Window]) -> None:
        """Replace all windows by these, by id; those that have ended are dropped."""
        self.windows = windows
        self.prune(now)

    def binding(self, now: float, pool: str, lead: float) -> list[Window]:
        """The windows that bind this model now; an exclusive one binds from `lead` seconds before its start."""
        return [w for w in self.windows.values() if w.covers(pool) and _from(w, lead) <= now < w.end]

    def next_boundary(self, now: float, pool: str, lead: float) -> float:
        """The next time at which `binding`, or the effect of a window, changes for this model; infinity if never."""
        times = (t for w in self.windows.values() if w.covers(pool) for t in (_from(w, lead), w.start, w.end))
        return min((t for t in times if t > now), default=inf)

    def prune(self, now: float) -> None:
        """Drop the windows that have ended."""
        over = [window.id for window in self.windows.values() if window.end <= now]
        for name in over:
            del self.windows[name]


def by_id(windows: Iterable[Window]) -> dict[str, Window]:
    """The windows by their ids; `ValueError` for a duplicate id."""
    named: dict[str, Window] = {}
    for window in windows:
        if window.id in named:
            raise ValueError(f"reservation {window.id} occurs twice")
        named[window.id] = window
    return named


def _from(window: Window, lead: float) -> float:
    return window.start - lead if window.mode == "exclusive" else window.start
