"""Explains an order: every term of the formula for a given set of parties.

Makes the table that `python -m scheduler` prints. It uses the real `Pool`, so it cannot disagree with the scheduler.
"""

from __future__ import annotations

from itertools import pairwise
from math import inf, isfinite, log1p

import msgspec

from scheduler.model import Ticket
from scheduler.pool import Pool
from scheduler.request import MAX_SHARE, MIN_SHARE, Request
from scheduler.settings import Settings
from scheduler.usage import Ledger


class Party(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A waiting party: its recent usage (cost units), and for how many seconds it has been owed service."""

    name: str
    usage: float = 0.0
    waited: float = 0.0
    share: float = 1.0
    offset: float = 0.0


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A moment of one model: slots, mean service time S (s), mean cost C (units), and who waits."""

    parties: list[Party]
    slots: int = 8
    service_time: float = 5.0
    mean_cost: float = 1000.0
    settings: Settings = msgspec.field(default_factory=Settings)


class Line(msgspec.Struct, frozen=True):
    """The terms of one party; `priority` is their sum."""

    party: Party
    owed: float
    """Points for owed service."""
    used: float
    """Points for usage, at most 0."""
    priority: float


EXAMPLE = Case(
    [
        Party("ann", usage=320_000, waited=25.0),
        Party("bob"),
        Party("eve", usage=3_200_000, waited=25.0),
        Party("dan", usage=3_200_000, waited=25.0, share=4.0),
        Party("night-job", usage=0.0, waited=300.0, offset=-20.0),
    ]
)


def rank(case: Case) -> list[Line]:
    """The parties in order, the first to run first. `ValueError` for invalid figures."""
    _check(case)
    now = max([party.waited for party in case.parties], default=0.0)
    pool = Pool("model", Ledger(0.0, case.settings.half_life), case.settings, 0.0, float(case.slots))
    pool.averages.learn(case.service_time, case.mean_cost)
    pool.refreeze(now)
    for number, party in enumerate(case.parties):
        ticket = Ticket("model", "", party.name, share=party.share, class_offset=party.offset)
        request = Request(number, ticket, pool, pool.node(ticket), now - party.waited, 0.0)
        pool.enqueue(now, request)
        request.node.account.grown = party.usage * pool.ledger.growth(now)
        request.node.ranking.renew(request.node)
    lines = []
    while (node := pool.choose(now)) is not None:
        lines.append(_line(case, case.parties[node.tie], pool, pool.priority(now, node)))
        pool.remove(now, node.fifo[0])
    return lines


def _check(case: Case) -> None:
    if case.slots < 1 or not 0.0 < case.service_time < inf or not 0.0 < case.mean_cost < inf:
        raise ValueError("slots, service_time and mean_cost must be positive")
    if len({party.name for party in case.parties}) < len(case.parties):
        raise ValueError("two parties of one name")
    for party in case.parties:
        if not (0.0 <= party.usage < inf and 0.0 <= party.waited < inf and isfinite(party.offset)):
            raise ValueError(f"{party.name}: usage and seconds owed must not be negative, the offset a number")
        if not MIN_SHARE <= party.share <= MAX_SHARE:
            raise ValueError(f"{party.name}: a share is {MIN_SHARE:g} to {MAX_SHARE:g}")


def _line(case: Case, party: Party, pool: Pool, priority: float) -> Line:
    owed = case.settings.wait_weight * party.waited / case.service_time
    used = -case.settings.usage_weight * log1p(party.usage / (pool.epoch.scale * party.share))
    return Line(party, owed, used, priority)


def render(case: Case, lines: list[Line]) -> str:
    """The table, with a sentence about each pair of neighbours."""
    settings = case.settings
    scale = settings.usage_scale or settings.rounds * case.slots * case.mean_cost
    text = [
        f"{case.slots} slots, S = {case.service_time:g} s, C = {case.mean_cost:g} units, scale = {scale:g} units",
        f"priority = {settings.base_priority:g} + offset + {settings.wait_weight:g} * owed/S"
        f" - {settings.usage_weight:g} * ln(1 + usage / (scale * share))",
        "",
        f"{'':>3} {'party':<16}{'usage':>12}{'share':>7}{'owed s':>8}{'offset':>8}{'+ owed':>8}{'- usage':>9}"
        f"{'= points':>10}",
    ]
    for place, line in enumerate(lines, 1):
        party = line.party
        text.append(
            f"{place:>3} {party.name:<16}{party.usage:>12.0f}{party.share:>7g}{party.waited:>8.1f}{party.offset:>+8.0f}"
            f"{line.owed:>+8.2f}{line.used:>+9.2f}{line.priority:>10.2f}"
        )
    text.append("")
    text.extend(_why(case, first, second) for first, second in pairwise(lines))
    return "\n".join(text)


def _why(case: Case, first: Line, second: Line) -> str:
    ahead = first.priority - second.priority
    weight = case.settings.wait_weight
    if not weight:
        return f"{first.party.name} is {ahead:.2f} points ahead of {second.party.name}; waiting does not count."
    owed = ahead * case.service_time / weight
    return (
        f"{first.party.name} is {ahead:.2f} points ahead of {second.party.name}, "
        f"who would go first once owed {owed:.0f} s more."
    )
