"""What the ledger of budgets keeps, on each database."""

import asyncio
import datetime
import time

import anyio

from gateway.config import Config
from gateway.hub import LocalHub
from gateway.store.base import Store
from gateway.store.ledger import FORGOTTEN_AT_ONCE
from gateway.store.limits import Claim, window
from tests.services.keyring import connection

NOW = datetime.datetime(2026, 11, 28, 15, 30, tzinfo=datetime.UTC).timestamp()


async def note(store: Store, *budgets: str, scope: str = "key:k") -> None:
    await store.claim([Claim(scope, budget, "h", 1, limit=100, spent=7, kept=0) for budget in budgets], 1, 1)


async def known(store: Store, scope: str = "key:k") -> list[str]:
    return [row.budget for row in await store.budgets(scope)]


def test_windows_that_are_long_over_are_forgotten(store_url: str) -> None:
    """L1: what counts, and what a late request may still settle, stays."""
    kept = ["gpu/day/2026-10-28", "gpu/month/2026-10", "gpu/total"]
    kept += [
        "tokens/day/2026-10-28",
        "tokens/day/2026-11-28",
        "tokens/month/2026-10",
        "tokens/month/2026-11",
        "tokens/total",
    ]
    over = [
        "gpu/day/2026-10-27",
        "gpu/month/2026-09",
        "tokens/day/2025-12-31",
        "tokens/day/2026-10-27",
        "tokens/month/2025-12",
    ]

    async def body() -> None:
        async with connection(store_url) as store:
            await note(store, *kept, *over)
            await note(store, "tokens/day/2026-10-27", "tokens/day/2026-11-28", scope="user:u")
            assert await store.forget_budgets(NOW) == len(over) + 1
            assert await known(store) == kept
            assert await known(store, "user:u") == ["tokens/day/2026-11-28"]
            assert await store.forget_budgets(NOW) == 0

    asyncio.run(body())


def test_many_are_forgotten_in_steps(store_url: str) -> None:
    """Each statement has a short deadline, and others use the table meanwhile."""
    scopes = [f"key:{number}" for number in range(FORGOTTEN_AT_ONCE + 10)]

    async def body() -> None:
        async with connection(store_url) as store, connection(store_url) as other:
            await store.claim([Claim(scope, "tokens/day/2026-01-01", "h", 1, 100, 7, 0) for scope in scopes], 1, 1)
            gone = await asyncio.gather(store.forget_budgets(NOW), other.forget_budgets(NOW))
            assert sum(gone) == len(scopes)
            assert await known(store, scopes[0]) == []

    asyncio.run(body())


def test_a_gateway_forgets_by_itself(store_url: str) -> None:
    """However long a limited key is used, the ledger holds its last days and months."""

    async def body() -> None:
        now = time.time()
        async with connection(store_url) as store:
            hub = LocalHub(Config(), store, lambda topology: None)
            await note(store, *("tokens/" + window("day", now - days * 86_400)[0] for days in (0, 1, 40, 400)))
            async with anyio.create_task_group() as group, asyncio.timeout(10):
                hub.run(group)
                while len(await known(store)) > 2:
                    await asyncio.sleep(0.01)
                group.cancel_scope.cancel()
            await hub.close()

    asyncio.run(body())
