"""A ticket inside: what the scheduler keeps of a request from its arrival to its end. Must not know any rule.

Not compiled (`hatch_build.py`): its fields name types of modules that import this one.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import msgspec

from scheduler.model import Ticket

if TYPE_CHECKING:
    from scheduler.gates import Gate
    from scheduler.party import User
    from scheduler.pool import Pool

QUEUED, RUNNING, OVER = 0, 1, 2


class Request(msgspec.Struct, gc=False):
    """A ticket inside. Not tracked by the garbage collector (100 000 may wait): a scheduler that is thrown away with
    requests still in it must be closed first, or their memory stays."""

    id: int
    ticket: Ticket
    pool: Pool
    node: User
    arrival: float
    cost: float
    charged: float = 0.0
    """Cost units charged so far: the estimate, then the corrections of its stream."""
    factor: float = 1.0
    """What part of the cost counts as usage: 0 inside a paid window."""
    deadline: float = inf
    state: int = QUEUED
    started: float = 0.0
    gate: Gate | None = None
    rank: int = 0
    queue_len: int = 0
    usage: float = 0.0
