"""The policies that are compared: first come first served, round robin, VTC, a log-fair formula with request age, ours.

Owns their decisions, nothing else. The others are plain and exact (scans), not fast: their speed is not compared here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import log
from typing import Any

from scheduler.settings import Settings
from scheduler.sync import SyncScheduler

Client = tuple[str, str, str]


class Item:
    """A request inside one of the policies below."""

    __slots__ = ("arrived", "charged", "model", "user")

    def __init__(self, user: tuple[str, str], model: str, charged: float, arrived: float) -> None:
        self.user, self.model, self.charged, self.arrived = user, model, charged, arrived


class Fifo:
    """First come, first served."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Item]] = {}

    def set_slots(self, model: str, slots: int, now: float) -> None:
        """Not its concern."""

    def set_share(self, tenant: str, user: str, share: float) -> None:
        """It knows no users."""

    def enqueue(self, client: Client, model: str, est_tokens: float, now: float) -> Item:
        item = Item(client[:2], model, est_tokens, now)
        self._queues.setdefault(model, deque()).append(item)
        return item

    def next(self, model: str, now: float) -> Item | None:
        queue = self._queues.get(model)
        return queue.popleft() if queue else None

    def finish(self, handle: Item, actual_tokens: float, now: float) -> None:
        """Ends teach it nothing."""


class PerUser:
    """A queue per user and model; `better` of a user decides, highest first, oldest head among equals."""

    def __init__(self) -> None:
        self._queues: dict[str, dict[tuple[str, str], deque[Item]]] = {}
        self.shares: dict[tuple[str, str], float] = {}

    def set_slots(self, model: str, slots: int, now: float) -> None:
        """Not their concern."""

    def set_share(self, tenant: str, user: str, share: float) -> None:
        self.shares[tenant, user] = share

    def enqueue(self, client: Client, model: str, est_tokens: float, now: float) -> Item:
        item = Item(client[:2], model, est_tokens, now)
        queues = self._queues.setdefault(model, {})
        if item.user not in queues:
            self.returns(item.user, queues)
            queues[item.user] = deque()
        queues[item.user].append(item)
        return item

    def next(self, model: str, now: float) -> Item | None:
        queues = self._queues.get(model)
        if not queues:
            return None
        user = max(queues, key=lambda u: (self.better(u, queues[u][0], now), -queues[u][0].arrived))
        item = queues[user].popleft()
        if not queues[user]:
            del queues[user]
        self.dispatched(item, now)
        return item

    def better(self, user: tuple[str, str], head: Item, now: float) -> float:
        raise NotImplementedError

    def returns(self, user: tuple[str, str], queues: dict[tuple[str, str], deque[Item]]) -> None:
        """The user had no queue."""

    def dispatched(self, item: Item, now: float) -> None:
        """The request starts."""

    def finish(self, handle: Item, actual_tokens: float, now: float) -> None:
        """The request ended."""


class RoundRobin(PerUser):
    """Users take turns; who comes back stands behind all that wait."""

    def __init__(self) -> None:
        super().__init__()
        self._turn: dict[tuple[str, str], int] = {}
        self._count = 0

    def _to_the_end(self, user: tuple[str, str]) -> None:
        self._count += 1
        self._turn[user] = self._count

    def better(self, user: tuple[str, str], head: Item, now: float) -> float:
        return -self._turn[user]

    def returns(self, user: tuple[str, str], queues: dict[tuple[str, str], deque[Item]]) -> None:
        self._to_the_end(user)

    def dispatched(self, item: Item, now: float) -> None:
        self._to_the_end(item.user)


class Vtc(PerUser):
    """Virtual token counter (Sheng et al., OSDI 2024), estimates charged at dispatch and corrected at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._counter: dict[tuple[str, str], float] = {}

    def better(self, user: tuple[str, str], head: Item, now: float) -> float:
        return -self._counter.get(user, 0.0)

    def returns(self, user: tuple[str, str], queues: dict[tuple[str, str], deque[Item]]) -> None:
        if queues:
            lift = min(self._counter.get(other, 0.0) for other in queues)
            self._counter[user] = max(self._counter.get(user, 0.0), lift)

    def _add(self, user: tuple[str, str], cost: float) -> None:
        self._counter[user] = self._counter.get(user, 0.0) + cost / self.shares.get(user, 1.0)

    def dispatched(self, item: Item, now: float) -> None:
        self._add(item.user, item.charged)

    def finish(self, handle: Item, actual_tokens: float, now: float) -> None:
        self._add(handle.user, actual_tokens - handle.charged)


class RequestAge(PerUser):
    """priority = 100 + 1.0 * seconds waited - 10 * ln(1 + tokens of the last hour / 1000), finished requests only: the
    documented formula of an existing gateway, computed live."""

    WINDOW = 3600.0

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[tuple[str, str], float] = {}
        self._past: deque[tuple[float, tuple[str, str], float]] = deque()

    def better(self, user: tuple[str, str], head: Item, now: float) -> float:
        return 100.0 + (now - head.arrived) - 10.0 * log(1.0 + max(0.0, self._sums.get(user, 0.0)) / 1000.0)

    def finish(self, handle: Item, actual_tokens: float, now: float) -> None:
        self._sums[handle.user] = self._sums.get(handle.user, 0.0) + actual_tokens
        self._past.append((now, handle.user, actual_tokens))
        while self._past and self._past[0][0] < now - self.WINDOW:
            _, user, tokens = self._past.popleft()
            self._sums[user] -= tokens


def ours(**settings: Any) -> Callable[[], SyncScheduler]:
    """fairgate's scheduler with some settings changed."""
    return lambda: SyncScheduler(Settings(**settings))


POLICIES: dict[str, Callable[[], Any]] = {
    "FIFO": Fifo,
    "round robin": RoundRobin,
    "VTC": Vtc,
    "request age": RequestAge,
    "fairgate": ours(levels=1),
    "fairgate, tenants": ours(),
}
