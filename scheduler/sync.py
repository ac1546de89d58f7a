"""The scheduler for a caller that manages slots and time itself: a simulator, a worker loop, another program's pool.

Only an adapter: requests go in, and `next` says who runs whenever the caller has a free slot. Must not know gates,
deadlines or asyncio; nothing is refused and nothing expires unless the settings say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from scheduler import charging
from scheduler.fleet import Fleet
from scheduler.model import Ticket
from scheduler.pool import Pool
from scheduler.request import MAX_COST, MAX_SHARE, MIN_SHARE, QUEUED, RUNNING, Request
from scheduler.settings import Settings

Client = Sequence[str]
"""(tenant, user, key); the key does not form a party of its own."""


class SyncScheduler:
    """A fair order without slots. Times are seconds of the caller's clock (NaN and a step back count as no step);
    tokens are cost units.

    The number of slots of a model only scales its usage. Set it with `set_slots`; by default it is the highest number
    that ever ran. `user_cap` (None: no limit) bounds the waiting requests of one user per model.
    """

    def __init__(self, settings: Settings | None = None, now: float = 0.0, user_cap: int | None = None) -> None:
        self._fleet = Fleet(Settings() if settings is None else settings, now)
        self._user_cap = inf if user_cap is None else user_cap
        self._pools = self._fleet.pools
        self._told: set[str] = set()
        self._shares: dict[tuple[str, str], float] = {}
        self._tenant_shares: dict[str, float] = {}
        self._now = now
        self._landmark = now + self._fleet.settings.landmark_every
        self._last_id = 0

    def set_slots(self, model: str, slots: int, now: float) -> None:
        """Set how many requests of the model can run at a time."""
        self._told.add(model)
        self._pool(model, self._step(now)).resize(self._now, float(max(1, slots)))

    def set_share(self, tenant: str, user: str, share: float) -> None:
        """Weight of a user among the users of its tenant; applies from its next request."""
        self._shares[tenant, user] = min(max(share, MIN_SHARE), MAX_SHARE)

    def set_tenant_share(self, tenant: str, share: float) -> None:
        """Weight of a tenant among tenants; applies from its next request."""
        self._tenant_shares[tenant] = min(max(share, MIN_SHARE), MAX_SHARE)

    def enqueue(self, client: Client, model: str, est_tokens: float, now: float) -> Request | None:
        """Add a waiting request. Returns its handle, or None if its user has too many waiting. Estimates below 0 or NaN
        count as 0."""
        now = self._step(now)
        pool = self._pools.get(model) or self._pool(model, now)
        tenant, user = client[0], client[1]
        share = self._shares.get((tenant, user), 1.0) if self._shares else 1.0
        tenant_share = self._tenant_shares.get(tenant, 1.0) if self._tenant_shares else 1.0
        cost = _cost(est_tokens)
        ticket = Ticket(model, tenant, user, share, tenant_share, cost, 0.0, inf)
        node = pool.node(ticket)
        if node.n >= self._user_cap:
            return None
        self._last_id = number = self._last_id + 1
        request = Request(number, ticket, pool, node, now, cost)
        pool.enqueue(now, request)
        return request

    def next(self, model: str, now: float) -> Request | None:
        """The request to run now, or None if nobody waits for the model. Call it when the model has a free slot."""
        now = self._step(now)
        pool = self._pools.get(model)
        if pool is None:
            return None
        node = pool.choose(now)
        if node is None:
            return None
        request = pool.take(now, node)
        if pool.running > pool.slots and model not in self._told:
            pool.resize(now, float(pool.running))
        return request

    def finish(self, handle: Request, actual_tokens: float, now: float) -> None:
        """A running request has ended. 0: it produced nothing and is refunded. A second call has no effect."""
        now = self._step(now)
        if handle.state == RUNNING:
            charging.finish(now, handle, _cost(actual_tokens))

    def charge(self, handle: Request, extra_tokens: float, now: float) -> None:
        """A running request has outgrown its estimate by `extra_tokens`."""
        now = self._step(now)
        if handle.state == RUNNING:
            charging.charge(now, handle, _cost(extra_tokens))

    def cancel(self, handle: Request, now: float) -> None:
        """Give up a request: if it waits, it leaves; if it runs, it ends with cost 0; if it has ended, nothing
        happens."""
        now = self._step(now)
        if handle.state == QUEUED:
            handle.pool.remove(now, handle)
        elif handle.state == RUNNING:
            charging.finish(now, handle, 0.0)

    def waiting(self, model: str) -> int:
        """Requests waiting for the model."""
        pool = self._pools.get(model)
        return 0 if pool is None else pool.queued

    def _pool(self, model: str, now: float) -> Pool:
        pool = self._pools.get(model)
        return self._fleet.add_pool(now, model) if pool is None else pool

    def _step(self, now: float) -> float:
        if not now > self._now:
            return self._now
        self._now = now
        if now >= self._landmark:
            self._landmark = now + self._fleet.settings.landmark_every
            self._fleet.landmark(now)
        if self._fleet.sweeping:
            self._fleet.drop_idle(now)
        return now


def _cost(tokens: float) -> float:
    return min(tokens, MAX_COST) if tokens > 0.0 else 0.0
