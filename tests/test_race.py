"""200 requests race for a budget that pays 100, on two gateways, with PostgreSQL and Redis, failing engines, clients
that leave, and kill -9 of gateways and of Redis (L2). The long form is `python -m loadtests.race`."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.race import ADMITS, Race
from tests.servers import Redis
from tests.services.limited import command

SEED = "FAIRGATE_SEED"


@pytest.mark.timeout(300)
def test_no_race_overspends_and_nothing_leaks(postgresql_url: str, redis: Redis, tmp_path: Path) -> None:
    """L2, L3"""
    seed = int(os.environ.get(SEED, random.randrange(10**6)))
    print(f"{SEED}={seed}")
    command(redis.port, "FLUSHALL")

    async def body() -> None:
        async with Race(tmp_path, postgresql_url, redis, random.Random(seed)).running() as race:
            await race.run()
            faults = await race.faults()
            print(race)
            assert faults == []
            assert race.paid() > ADMITS // 4

    asyncio.run(body())
