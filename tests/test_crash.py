"""kill -9 of a whole gateway under load, again and again: one audit row for each request (U3). The long form is
`python -m loadtests.crash`."""

import asyncio
import random
from pathlib import Path

import pytest

from tests.load import Engine, Load, account, engine_section
from tests.process import CHEAP_IDENTITY, GatewayProcess, provision

KILLS = 3
CLIENTS = 16


async def kill_again_and_again(process: GatewayProcess, load: Load, rng: random.Random, kills: int) -> None:
    """The last gateway ends in an orderly way. Between two lies up to a second of load."""
    async with load.running():
        for turn in range(kills + 1):
            process.start()
            await load.forgotten()
            async with asyncio.timeout(60):
                await load.answered.wait()
            await asyncio.sleep(rng.random())
            if turn < kills:
                await asyncio.to_thread(process.kill)
    assert await asyncio.to_thread(process.stop) == 0


@pytest.mark.timeout(300)
def test_every_request_that_a_client_saw_finished_has_one_row(store_url: str, tmp_path: Path) -> None:
    """U3: and each that ran has one too, `interrupted` where it was cut; the chain is whole."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)

    async def body() -> None:
        token = (await provision(store_url))[0]
        async with Engine(rng).listening() as engine:
            settings = {"store": store_url, "identity": CHEAP_IDENTITY, "backends": engine_section(engine, 8)}
            process = GatewayProcess(tmp_path, settings)
            load = Load([process.port], token, CLIENTS)
            try:
                await kill_again_and_again(process, load, rng, KILLS)
            finally:
                process.stop()
            found = await account(store_url)
        assert found.faults(load, engine) == []
        assert found.count("interrupted") > 0
        assert len(load.finished) > 50 * KILLS

    asyncio.run(body())
