"""What tests of limits share: the service in both forms on a clock the test owns, replicas, and bare principals."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec

from gateway.config import Quotas
from gateway.errors import BudgetSpent, GatewayError, LimitsUnavailable, RateLimited
from gateway.services.limits import LimitService, Reservation
from gateway.services.shared import SharedCounts, shared_lender
from gateway.store import Store, open_store
from gateway.store.limits import Limits, Scoped
from tests.services.keyring import Clock


def command(port: int, *words: str) -> bytes:
    """One command to a Redis on loopback -> the first line of its answer."""
    with socket.create_connection(("127.0.0.1", port), 5.0) as link:
        link.sendall(" ".join(words).encode() + b"\r\n")
        return link.recv(4096).split(b"\r\n")[0]


REFUSED = (RateLimited, BudgetSpent, LimitsUnavailable)


class Asker(msgspec.Struct, frozen=True):
    """A principal as far as limits know one."""

    key: str
    user: str = "u"
    limits: tuple[Scoped, ...] = ()


def asker(limits: Limits, key: str = "k", **outer: Limits) -> Asker:
    """Limited at its key, and by name at `tenant` and `user`."""
    scopes = [Scoped(f"{kind}:x", outer[kind]) for kind in ("tenant", "user") if kind in outer]
    return Asker(key, limits=(*scopes, Scoped(f"key:{key}", limits)))


class Form(msgspec.Struct):
    """Where gateways of one test keep and count. `redis` is empty in the embedded form."""

    store: str
    redis: str = ""
    clock: Clock = msgspec.field(default_factory=Clock)
    config: Quotas = Quotas(deadline=5.0, store_deadline=5.0)

    @contextlib.asynccontextmanager
    async def replica(self, *, close: bool = True, store: Store | None = None) -> AsyncIterator[LimitService]:
        """One gateway's limits. `close=False` ends it as kill -9 does: nothing is given back."""
        own = store or await open_store(self.store)
        counts = None
        if self.redis:
            counts = SharedCounts(self.redis, self.config, clock=self.clock, time_ms=lambda: int(self.clock.now * 1000))
        lender = shared_lender(counts, self.config, self.clock) if counts is not None else None
        service = LimitService(own, self.config, shared=lender, clock=self.clock, wall=self.clock)
        service.start()
        try:
            yield service
        finally:
            if not close:
                await _kill(service)
            await service.close()
            if counts is not None:
                await counts.close()
            if store is None:
                await own.close()


async def _kill(service: LimitService) -> None:
    """Its rounds stop where they are."""
    tasks = [lender._task for lender in (service._ledger, service._shared) if lender is not None and lender._task]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    service._ledger._task = None
    if service._shared is not None:
        service._shared._task = None


def run(form: Form, body: Callable[[LimitService], Coroutine[Any, Any, None]]) -> None:
    """A test's body with one gateway's limits."""

    async def main() -> None:
        async with form.replica() as service:
            await body(service)

    asyncio.run(main())


async def outcome(service: LimitService, who: Asker, tokens: int = 0, gpu: float = 0.0) -> Reservation | GatewayError:
    """A reservation, or why there is none."""
    try:
        return await service.acquire(who, tokens, gpu)
    except REFUSED as error:
        return error


async def spent(store: Store, scope: str, budget: str) -> tuple[int, int]:
    """(spent, on lease) of the one window whose name begins so."""
    (row,) = [row for row in await store.budgets(scope) if row.budget.startswith(budget)]
    return row.spent, row.held
