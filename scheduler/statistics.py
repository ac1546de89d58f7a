"""The frozen statistics of a core, collected on demand.

Owns the mapping from live state to the `Stats` record. Must not change anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.model import Backlog, GateStats, PartyStats, PoolStats, Stats
from scheduler.party import Node
from scheduler.pool import Pool
from scheduler.usage import Account, Ledger, UserAccount

if TYPE_CHECKING:
    from scheduler.core import Core


def collect(core: Core, now: float) -> Stats:
    """Everything at this moment."""
    fleet = core.fleet
    return Stats(
        now=now,
        queued=core.queued,
        running=core.running,
        pools=tuple(_pool(pool, now) for pool in fleet.pools.values()),
        gates=tuple(GateStats(gate.name, gate.slots, gate.running) for gate in fleet.gates.values()),
        parties=tuple(_party(fleet.ledger, account, now) for account in fleet.ledger.users.values()),
        tenants=_tenants(fleet.ledger, now),
        granted=core.granted,
        refused={reason.value: count for reason, count in core.refused.items()},
        stray_releases=core.stray_releases,
    )


def backlogs(core: Core) -> list[Backlog]:
    """Who has requests waiting now: users, compared within their tenant, and tenants, compared with each other."""
    found: list[Backlog] = []
    for pool in core.fleet.pools.values():
        found.extend(_backlog((pool.name,), tenant) for tenant in pool.tenants.values() if tenant.n)
        found.extend(_backlog((pool.name, node.owner.tenant.key[0]), node) for node in pool.nodes.values() if node.n)
    return found


def _backlog(group: tuple[str, ...], node: Node) -> Backlog:
    account = node.account
    return Backlog(group, account.key, node.backlog, account.share, node.served, node.ended)


def _pool(pool: Pool, now: float) -> PoolStats:
    oldest = min((request.arrival for node in pool.nodes.values() if node.n for request in node.heads()), default=now)
    return PoolStats(
        pool=pool.name,
        queued=pool.queued,
        running=pool.running,
        slots=int(pool.slots),
        oldest_wait=now - oldest,
        service_time=pool.averages.service,
        mean_cost=pool.averages.cost,
        scale=pool.epoch.scale,
    )


def _party(ledger: Ledger, account: UserAccount, now: float) -> PartyStats:
    return PartyStats(
        tenant=account.key[0],
        user=account.key[1],
        usage=ledger.usage(account, now),
        share=account.share,
        queued=account.queued,
        running=account.running,
        grants=account.grants,
        waited=account.waited,
    )


def _tenants(ledger: Ledger, now: float) -> tuple[PartyStats, ...]:
    """Tenants, with counts summed over their remembered users."""
    users: dict[int, list[UserAccount]] = {}
    for account in ledger.users.values():
        users.setdefault(id(account.tenant), []).append(account)
    return tuple(_tenant(ledger, tenant, users.get(id(tenant), []), now) for tenant in ledger.tenants.values())


def _tenant(ledger: Ledger, tenant: Account, users: list[UserAccount], now: float) -> PartyStats:
    return PartyStats(
        tenant=tenant.key[0],
        user="",
        usage=ledger.usage(tenant, now),
        share=tenant.share,
        queued=sum(user.queued for user in users),
        running=tenant.running,
        grants=sum(user.grants for user in users),
        waited=sum(user.waited for user in users),
    )
