"""A gateway's limits as a process of its own, to be killed: settles one reservation after the other and says so.

`python -m tests.services.worker STORE REDIS TOKENS`: prints `settled N` after each settlement that its gateway would
have answered, `refused CODE` when there is no more, until it is killed.
"""

import asyncio
import sys
import time

from gateway.config import Quotas
from gateway.errors import GatewayError
from gateway.services.limits import LimitService
from gateway.services.shared import SharedCounts, shared_lender
from gateway.store import open_store
from gateway.store.limits import Limits
from tests.services.limited import asker

LIMITS = Limits(tokens_total=20_000, concurrent=8)
CONFIG = Quotas(lease=1.0, deadline=2.0, store_deadline=5.0)


async def one(service: LimitService, tokens: int) -> None:
    """One request after the other; several of these run at once."""
    who = asker(LIMITS)
    while True:
        try:
            reservation = await service.acquire(who, tokens, 0.0)
        except GatewayError as error:
            print(f"refused {error.code}", flush=True)
            await asyncio.sleep(0.05)
            continue
        print(f"began {reservation.number}", flush=True)
        await asyncio.sleep(0.003)
        service.settle(reservation, tokens, 0.0)
        print(f"settled {tokens} {reservation.number}", flush=True)


async def main(store_url: str, redis: str, tokens: int) -> None:
    store = await open_store(store_url)
    counts = SharedCounts(redis, CONFIG, clock=time.monotonic)
    service = LimitService(store, CONFIG, shared=shared_lender(counts, CONFIG, time.monotonic))
    service.start()
    await asyncio.gather(*(one(service, tokens) for _ in range(6)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
