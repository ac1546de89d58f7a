"""Slots: how many requests each backend may run, and which backend takes the next one.

Owns the counts per gate (the slots of one backend) and the choice of a gate for a pool. Must not know parties or ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import ceil, inf, log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scheduler.pool import Pool


class Gate:
    """One backend's slots. Lowering `slots` ends no running requests; nothing is granted until enough of them have
    ended."""

    __slots__ = ("latest", "name", "past", "pools", "running", "slots")

    def __init__(self, name: str, slots: int) -> None:
        self.name = name
        self.slots = slots
        self.running = 0
        self.past: set[int] | None = None
        """While the gate is on trial: the requests that ran before and still run. Each has a slot in addition to those
        of the trial."""
        self.pools: list[Pool] = []
        self.latest: Pool | None = None
        """The model whose request was the last to start here."""

    def would_load(self, pool: Pool) -> bool:
        """Whether the backend would have to load this model, as far as is known. If it has begun to load another model
        that discovery has not seen there yet, it may have evicted every model it had."""
        latest = self.latest
        if latest is not None and self._preference(latest) > 0:
            return pool is not latest
        return self._preference(pool) > 0

    def _preference(self, pool: Pool) -> int:
        for gate, preference in pool.places:
            if gate is self:
                return preference
        return 0

    def try_beside(self, running: list[int] | None) -> None:
        """Start a trial: `slots` are for new requests, in addition to those that run. No effect during a trial. None:
        end the trial."""
        if running is None:
            self.past = None
            return
        if self.past is None:
            self.past = set(running)
        self.slots += len(self.past)

    def __repr__(self) -> str:
        return f"<Gate {self.name} {self.running}/{self.slots}>"


Place = tuple[Gate, int]
"""A gate that serves a pool, and its preference (lower first, above 0: the backend would have to load the model)."""


def best_gate(places: Sequence[Place], avoid: tuple[str, ...] = ()) -> Gate | None:
    """The gate for the next request: lowest preference, then most free slots, then in the order given; None if all are
    full. Gates in `avoid` count as full as long as another gate has slots, free or not."""
    if avoid:
        others = [place for place in places if place[0].name not in avoid]
        places = others if any(gate.slots > 0 for gate, _ in others) else places
    if len(places) == 1:
        only = places[0][0]
        return only if only.running < only.slots else None
    best: Gate | None = None
    best_preference, best_free = 0, 0
    for gate, preference in places:
        free = gate.slots - gate.running
        if free <= 0:
            continue
        if best is None or preference < best_preference or (preference == best_preference and free > best_free):
            best, best_preference, best_free = gate, preference, free
    return best


def home_gate(places: Sequence[Place], conversation: int, load: float, avoid: tuple[str, ...] = ()) -> Gate | None:
    """The gate that a conversation prefers among those with a free slot; None if each of them has too much to do or is
    in `avoid`.

    Considers the gates of the lowest preference, as `best_gate` does. Each conversation has its own order of them
    (highest random weight, Thaler and Ravishankar 1998, weighted by slots: twice the slots, twice the conversations),
    so when gates come and go, only their own conversations move. The first gate that runs at most `load` times its fair
    part of the requests takes it (bounded loads, Mirrokni et al. 2018). Requests beyond the slots of a gate, for
    example on a closed one, count for no gate's part.
    """
    free = [place for place in places if place[0].running < place[0].slots and place[0].name not in avoid]
    if not free:
        return None
    least = min([preference for _, preference in free])
    equals = [gate for gate, preference in places if preference == least]
    running = sum([min(gate.running, gate.slots) for gate in equals])
    part = load * (running + 1) / sum([gate.slots for gate in equals])
    best: Gate | None = None
    highest = -inf
    for gate, preference in free:
        if preference == least and gate.running < ceil(part * gate.slots):
            weight = _weight(conversation, gate)
            if weight > highest:
                best, highest = gate, weight
    return best


def _weight(conversation: int, gate: Gate) -> float:
    """ln(u) / slots, where u in (0, 1] is a number derived from the gate and the conversation."""
    drawn = int.from_bytes(blake2b(gate.name.encode(), digest_size=6, key=b"%d" % conversation).digest(), "big")
    return log((drawn + 1) / (1 << 48)) / gate.slots
