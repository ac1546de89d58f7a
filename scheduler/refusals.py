"""Why a request may not wait, and what a refusal reports: how long it would have waited and when to retry.

Owns the limits that concern a party alone, and reservations. The limit on all queues together belongs to the core,
which evicts. Changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from scheduler.model import Refusal, Refused
from scheduler.position import place
from scheduler.request import Request

if TYPE_CHECKING:
    from scheduler.settings import Settings


def barred(now: float, request: Request, settings: Settings) -> Refusal | None:
    """Why the request may not wait at all, regardless of other parties' queues; None if it may."""
    pool, node, timeout = request.pool, request.node, request.ticket.timeout
    if node.n >= settings.user_cap:
        return Refusal.QUEUE_FULL
    if timeout <= 0.0 or node.n * node.gap > settings.give_up * timeout:
        return Refusal.QUEUE_TIMEOUT
    if pool.windows and not pool.eligible(now, request) and pool.blocked_for(now, node) > timeout:
        return Refusal.RESERVED
    return None


def refused(now: float, request: Request, reason: Refusal) -> Refused:
    """A refusal that says when to retry."""
    pool, node = request.pool, request.node
    ahead, seconds = place(pool, now, node, node.n)
    if reason is Refusal.RESERVED:
        seconds = pool.blocked_for(now, node)
    # Jittered per party, so that a party's figure still grows with its own backlog.
    spread = 1.0 + 0.2 * (crc32("/".join(node.account.key).encode()) / 0xFFFFFFFF)
    retry = min(max(seconds, 1.0), 600.0) * spread
    return Refused(request.id, reason, ahead, seconds, retry, now - request.arrival)
