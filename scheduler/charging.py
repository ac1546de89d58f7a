"""What a request costs its party: the charge at its start, the corrections, and the time at which the start is paid
for.

Owns the accounting of running requests. Must not know who waits or who goes next.

At the start, user and tenant are charged the estimate; at the end, the difference to the actual cost. Waiting counts
from

    since = max(arrival of the head, paid)
    paid  = t_start + S * (x reduced towards 0 by 1/2),  x = (mean / (C * share) - free) * A / slots
                                                         A = total share queueing

A deep backlog therefore gains nothing: what counts is how long the party has been owed service.
"""

from __future__ import annotations

from typing import Any, Final

from scheduler.party import Node
from scheduler.ranking import Epoch, Ranking
from scheduler.request import OVER, RUNNING, Request

SLACK: Final = 0.5
"""Service times by which the payment is reduced towards zero. It removes the noise of means from small queues, and a
party that has just been served gains nothing. In the simulator 0.5 costs nothing anywhere; 2 makes shares less
fair in crowds (Jain .994)."""


def start(now: float, request: Request, crowd: float, tenant_crowd: float) -> None:
    """The request runs from now on: charge its estimate to user and tenant, and set when they will have paid for it.
    `crowd` and `tenant_crowd` are the total shares that queue, in the units of the user's and of the tenant's share."""
    pool, node, cost = request.pool, request.node, request.cost
    tenant, account, epoch = node.tenant, node.owner, pool.epoch
    if pool.windows:
        request.factor = min(window.factor(now, account.key) for window in pool.windows)
    request.state = RUNNING
    request.started = now
    request.charged = cost
    grown = cost * request.factor * pool.ledger.growth(now)
    account.grown += grown
    account.charges += 1
    account.running += 1
    account.grants += 1
    account.waited += now - request.arrival
    node.running += 1
    node.served += cost
    node.paid = now + _payment(epoch, node, crowd)
    owner = tenant.account
    owner.grown += grown
    owner.charges += 1
    owner.running += 1
    tenant.running += 1
    tenant.served += cost
    tenant.paid = now + _payment(epoch, tenant, tenant_crowd)
    pool.running += 1


def _payment(epoch: Epoch, node: Node, crowd: float) -> float:
    """Seconds after its start at which the party has paid for it.

    Waiting counts from `free` mean requests (per share) before the party's next turn: more expensive requests are paid
    for by waiting longer, cheaper ones earn time. The running mean of actual costs is used, never an estimate, whose
    noise would starve parties. 0 before a request of the party has ended.
    """
    if not node.mean:
        return 0.0
    turns = (node.mean * epoch.per_cost / node.account.share - node.free) * crowd / epoch.slots
    if turns > SLACK:
        return (turns - SLACK) * epoch.service
    return (turns + SLACK) * epoch.service if turns < -SLACK else 0.0


def charge(now: float, request: Request, extra: float) -> None:
    """Charge `extra` more cost units to a running request. If negative, the excess is refunded as far as it has not
    decayed, so no usage falls below 0 and estimates leave no trace."""
    request.charged += extra
    pool, node = request.pool, request.node
    account = node.owner
    tenant = account.tenant
    node.served += extra
    node.tenant.served += extra
    if extra >= 0.0:
        grown = extra * request.factor * pool.ledger.growth(now)
        account.grown += grown
        account.charges += 1
        tenant.grown += grown
        tenant.charges += 1
        return
    grown = extra * request.factor * pool.ledger.growth_at(request.started)
    account.grown = max(0.0, account.grown + grown)
    tenant.grown = max(0.0, tenant.grown + grown)
    _lower_level(node.ranking, node, grown)
    _lower_level(pool.root, node.tenant, grown)
    # A refund makes stored keys too bad, which the heap does not allow.
    for each in account.nodes:
        each.ranking.renew(each)
    for each in tenant.nodes:
        each.ranking.renew(each)


def _lower_level(ranking: Ranking[Any], node: Node, refund: float) -> None:
    """Take back a level that a later refund has shown to be too high."""
    if ranking.leader is node:
        ranking.level = max(0.0, ranking.level + refund / node.account.share)


def finish(now: float, request: Request, cost: float) -> None:
    """The request has ended with this actual cost. 0: it failed before producing anything; it is refunded in full, and
    S and C ignore it."""
    request.state = OVER
    pool, node = request.pool, request.node
    tenant = node.tenant
    node.running -= 1
    node.account.running -= 1
    tenant.running -= 1
    tenant.account.running -= 1
    pool.running -= 1
    if cost > 0.0:
        node.learn(cost)
        tenant.learn(cost)
        pool.commons.learn(now, pool.averages, now - request.started, cost)
    if cost != request.charged:
        charge(now, request, cost - request.charged)
    pool.advance(tenant)
