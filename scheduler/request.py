"""The scheduler's own record of a ticket, from its arrival to its end, and the bounds of a ticket's numbers. Must not
know any rule of the order."""

from __future__ import annotations

from math import inf, isfinite, isnan
from typing import TYPE_CHECKING, Final

import msgspec

from scheduler.model import Ticket

if TYPE_CHECKING:
    from scheduler.gates import Gate
    from scheduler.party import User
    from scheduler.pool import Pool

QUEUED: Final = 0
RUNNING: Final = 1
OVER: Final = 2

MAX_COST: Final = 1e12
MIN_SHARE: Final = 1e-3
MAX_SHARE: Final = 1e6
MAX_OFFSET: Final = 1e4


class Request:
    """A ticket inside the scheduler."""

    __slots__ = (  # noqa: RUF023  # in the order of `__init__`
        "id", "ticket", "pool", "node", "arrival", "cost", "charged", "factor", "deadline", "state", "started", "gate",
        "rank", "queue_len", "usage",
    )  # fmt: skip

    def __init__(self, number: int, ticket: Ticket, pool: Pool, node: User, arrival: float, cost: float) -> None:
        self.id = number
        self.ticket = ticket
        self.pool = pool
        self.node = node
        self.arrival = arrival
        self.cost = cost
        self.charged = 0.0  # cost units so far: the estimate, then the corrections of its stream
        self.factor = 1.0  # the fraction of its cost that counts as usage: 0 inside a paid window
        self.deadline = inf
        self.state = QUEUED
        self.started = 0.0
        self.gate: Gate | None = None
        self.rank = 0
        self.queue_len = 0
        self.usage = 0.0

    def __repr__(self) -> str:
        state = ("queued", "running", "over")[self.state]
        return f"<Request {self.id} {state} of {self.ticket.tenant}/{self.ticket.user} for {self.ticket.pool}>"


def clamped(ticket: Ticket) -> Ticket:
    """The ticket with finite values clamped to their ranges; `ValueError` for NaN and infinities."""
    numbers = (ticket.cost, ticket.share, ticket.tenant_share, ticket.class_offset)
    if not all(map(isfinite, numbers)) or isnan(ticket.timeout):
        raise ValueError("ticket: cost, shares and class_offset must be finite, timeout a number")
    return msgspec.structs.replace(
        ticket,
        cost=min(max(ticket.cost, 0.0), MAX_COST),
        share=min(max(ticket.share, MIN_SHARE), MAX_SHARE),
        tenant_share=min(max(ticket.tenant_share, MIN_SHARE), MAX_SHARE),
        class_offset=min(max(ticket.class_offset, -MAX_OFFSET), MAX_OFFSET),
    )
