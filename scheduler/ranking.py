"""The order of parties waiting for one model: a heap with static keys that equals the exhaustive choice.

Owns the rank formula, the frozen figures it is computed with (`Epoch`) and the heap (`Ranking`). Must not know slots,
requests' contents, reservations or the wall clock.

A party's priority at time t, highest first, is

    base + offset + ww * (t - since) / S - uw * ln(1 + (U + lift) / (scale * share))

Between two waiting parties `ww * t / S` cancels and decay, applied to usage and scale alike, cancels inside the
logarithm, so the rank below (lowest first) does not change until the party is charged, refunded or gets a new head:

    rank = ww * (since - landmark) / S + uw * ln(1 + (u + lift) * f / share) - offset,   f = e^(...) / scale

Keys in the heap may be too good (after a charge, or another model's dispatch): an entry records how often its account
had been charged when the key was made, and is corrected when it reaches the top. Keys may never be too bad: code that
improves a party (refund, larger share, better class) calls `renew` at once. At a landmark the pool gets a new `Epoch`.
A ranking moves to it in slices of `SLICE` parties per operation, so that no operation takes long. It keeps the old
order exact until the new heap is complete.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from math import inf, log1p
from typing import Final, Generic, TypeVar

from scheduler.party import Node

SLICE: Final = 64
"""Parties re-keyed per operation while a ranking moves to a new epoch: about 0.05 ms."""


class Epoch:
    """The figures frozen between two landmarks of one pool."""

    __slots__ = (
        "at",
        "credit",
        "factor",
        "mean_cost",
        "per_cost",
        "per_wait",
        "scale",
        "service",
        "slots",
        "usage_weight",
    )

    def __init__(
        self,
        *,
        at: float,
        service: float,
        mean_cost: float,
        slots: float,
        scale: float,
        credit: float,
        wait_weight: float,
        usage_weight: float,
        decayed: float,
    ) -> None:
        self.at = at
        self.service = service
        self.mean_cost = mean_cost
        self.slots = slots
        self.scale = scale
        self.credit = credit
        """Cost units by which a returning party may be ahead of the level; infinity: no bound."""
        self.per_wait = wait_weight / service
        self.usage_weight = usage_weight
        self.factor = decayed / scale
        """Converts a stored (grown) sum into multiples of the scale: e^(-rate * (at - origin)) / scale."""
        self.per_cost = 1.0 / mean_cost

    def rank(self, node: Node) -> float:
        """The static key, lowest first."""
        account = node.account
        return (
            self.per_wait * (node.since - self.at)
            + self.usage_weight * log1p((account.grown + node.lift) * self.factor / account.share)
            - node.offset
        )


N = TypeVar("N", bound=Node)


class Ranking(Generic[N]):
    """A heap of waiting parties; `top` is the exact best.

    Entries hold numbers only, so that the garbage collector need not walk them: (key, tie, number, charges). `number`
    names the party in `live` until it gets another key; `charges` is how often its account had been charged by then.
    """

    __slots__ = (
        "_number",
        "active",
        "coming",
        "entries",
        "epoch",
        "fresh",
        "leader",
        "level",
        "live",
        "shares",
        "source",
        "waste",
    )

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch
        self.entries: list[tuple[float, int, int, int]] = []
        self.live: dict[int, N] = {}
        self.active = 0
        """Number of competing parties."""
        self.shares = 0.0
        """Their total share."""
        self.level = 0.0
        """V: the highest (U + lift) / share at a dispatch that left somebody waiting, as a grown sum."""
        self.leader: N | None = None
        """The party of that dispatch. Its later refunds lower the level, or overestimates would eat others' credit."""
        self.fresh: list[tuple[float, int, int, int]] | None = None
        """The heap of the coming epoch while it is being built from `source`."""
        self.coming = epoch
        self.source: list[int] = []
        """Numbers that still have to be added to `fresh`."""
        self.waste: list[tuple[float, int, int, int]] = []
        """The heap of the previous epoch, freed a slice at a time: freeing it at once takes milliseconds."""
        self._number = 0

    def __repr__(self) -> str:
        return f"<Ranking active={self.active} entries={len(self.entries)} building={self.fresh is not None}>"

    def enter(self, node: N) -> None:
        """The party begins to compete."""
        node.inside = True
        if not self.active:
            # Only dead entries are left: start with an empty heap.
            self.entries.clear()
            self.fresh = None
            self.shares = 0.0
        self.active += 1
        self.shares += node.account.share
        node.account.nodes.append(node)
        self.renew(node)

    def leave(self, node: N) -> None:
        """The party stops competing; its entry is dead."""
        node.inside = False
        del self.live[node.number]
        node.number = 0
        self.active -= 1
        self.shares -= node.account.share
        node.account.nodes.remove(node)

    def renew(self, node: N) -> None:
        """Give the party a new key. Required as soon as it has improved, allowed at any time."""
        if self.active == 1 and self.fresh is None:
            self._alone(node)
            return
        number = self._name(node)
        charges = node.account.charges
        heappush(self.entries, (self.epoch.rank(node), node.tie, number, charges))
        if self.fresh is not None:
            heappush(self.fresh, (self.coming.rank(node), node.tie, number, charges))
        elif self.waste:
            del self.waste[-SLICE:]
        elif len(self.entries) > 4 * self.active + 64:
            self._build(self.epoch)

    def replace_top(self, node: N) -> None:
        """Like `renew`, for the party that `top` returned last; leaves no dead entry."""
        if self.active == 1 and self.fresh is None:
            self._alone(node)
            return
        number = self._name(node)
        charges = node.account.charges
        heapreplace(self.entries, (self.epoch.rank(node), node.tie, number, charges))
        if self.fresh is not None:
            heappush(self.fresh, (self.coming.rank(node), node.tie, number, charges))

    def _name(self, node: N) -> int:
        """A new number for the party; entries under its old one are dead."""
        live = self.live
        if node.number:
            del live[node.number]
        self._number = node.number = number = self._number + 1
        live[number] = node
        return number

    def _alone(self, node: N) -> None:
        """A lone party needs no real key: minus infinity is "too good", and is corrected once there is a rival."""
        entries = self.entries
        if len(entries) == 1 and entries[0][0] == -inf and entries[0][2] == node.number:
            return
        number = self._name(node)
        entries.clear()
        entries.append((-inf, node.tie, number, -1))

    def top(self) -> N | None:
        """The best party now, or None. Corrects keys that are too good on the way."""
        entries, live = self.entries, self.live
        while entries:
            key, tie, number, charges = entries[0]
            node = live.get(number)
            if node is None:
                heappop(entries)
                continue
            known = node.account.charges
            if charges == known or self.active == 1:
                return node
            exact = self.epoch.rank(node)
            if exact <= key:
                return node
            heapreplace(entries, (exact, tie, number, known))
        return None

    def advance(self, epoch: Epoch) -> None:
        """Move towards `epoch` by one slice; the order stays that of the old one until the move is complete."""
        if self.fresh is None:
            if self.active <= 1:
                self.epoch = epoch
                self._only()
                return
            self._build(epoch)
        self._slice()

    def _only(self) -> None:
        """Drop the dead entries; a lone party has minus infinity as its key (`_alone`)."""
        self.entries = [(-inf, node.tie, number, -1) for number, node in self.live.items()]

    def _build(self, epoch: Epoch) -> None:
        self.fresh = []
        self.coming = epoch
        self.source = list(self.live)

    def _slice(self) -> None:
        fresh, rank, live = self.fresh, self.coming.rank, self.live
        if fresh is None:
            return
        source = self.source
        for number in source[-SLICE:]:
            node = live.get(number)
            if node is not None:
                heappush(fresh, (rank(node), node.tie, number, node.account.charges))
        del source[-SLICE:]
        if not source:
            self.waste = self.entries
            self.entries = fresh
            self.epoch = self.coming
            self.fresh = None

    def rebuild(self, epoch: Epoch) -> None:
        """Move to `epoch` at once, however long it takes: for a gap so long that every stored sum is void."""
        self.fresh, self.source, self.waste = None, [], []
        self.epoch = self.coming = epoch
        self.entries = [
            (epoch.rank(node), node.tie, number, node.account.charges) for number, node in self.live.items()
        ]
        heapify(self.entries)
