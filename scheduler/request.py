"""A ticket inside: what the scheduler keeps of a request from its arrival to its end. Must not know any rule."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from scheduler.model import Ticket

if TYPE_CHECKING:
    from scheduler.gates import Gate
    from scheduler.party import User
    from scheduler.pool import Pool

QUEUED: Final = 0
RUNNING: Final = 1
OVER: Final = 2


class Request:
    """A ticket inside."""

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
        self.factor = 1.0  # what part of the cost counts as usage: 0 inside a paid window
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
