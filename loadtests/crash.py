"""kill -9 of a gateway under load, again and again: is there exactly one audit row for each request?

    python -m loadtests.crash [--kills 20] [--rate 1000] [--clients 64] [--store postgresql|sqlite] [--seed N]

One gateway process, an engine and clients that note every request (`tests/load.py`), a kill at a random moment of each
life. Writes `crash.md`; exits 1 when a request is missing, doubled or not told, or the chain is broken.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import uvloop

from gateway.store.postgresql import migrate
from loadtests.report import RESULTS, machine, page, table
from tests.databases import statement
from tests.load import Account, Engine, Load, account, engine_section
from tests.process import CHEAP_IDENTITY, GatewayProcess, RigError, provision
from tests.servers import PostgreSQL

LIFE = (2.0, 6.0)
"""Seconds under load before a kill, at random between these."""


class Life(msgspec.Struct):
    """One process: seconds until its first answer, seconds under load, requests finished in them."""

    start: float
    seconds: float
    finished: int


@contextlib.asynccontextmanager
async def store(kind: str, folder: Path) -> AsyncIterator[str]:
    """An empty store of that kind -> its URL."""
    if kind == "sqlite":
        yield str(folder / "fairgate.db")
        return
    server = await asyncio.to_thread(PostgreSQL)
    try:
        await asyncio.to_thread(server.start)
        await statement(server.url("postgres"), "CREATE DATABASE fairgate")
        await migrate(server.url("fairgate"))
        yield server.url("fairgate")
    finally:
        await asyncio.to_thread(server.close)


async def live(process: GatewayProcess, load: Load, seconds: float) -> Life:
    """Start a gateway and let it serve for a while."""
    began = time.monotonic()
    process.start()
    await load.forgotten()
    async with asyncio.timeout(60):
        await load.answered.wait()
    first, before = time.monotonic(), len(load.finished)
    await asyncio.sleep(seconds)
    return Life(first - began, time.monotonic() - first, len(load.finished) - before)


async def run(options: argparse.Namespace, rng: random.Random) -> tuple[list[Life], Load, Engine, Account]:
    with tempfile.TemporaryDirectory(prefix="fairgate-crash-") as name:
        async with store(options.store, Path(name)) as url, Engine(rng).listening() as engine:
            token = (await provision(url))[0]
            settings = {"store": url, "identity": CHEAP_IDENTITY, "backends": engine_section(engine)}
            process = GatewayProcess(Path(name), settings)
            load = Load([process.port], token, options.clients, options.rate)
            lives = []
            try:
                async with load.running():
                    for _ in range(options.kills):
                        lives.append(await live(process, load, rng.uniform(*LIFE)))
                        process.kill()
                    lives.append(await live(process, load, 2.0))
                if code := await asyncio.to_thread(process.stop):
                    raise RigError(f"exit code {code}: {process.log()[-2000:]}")
            finally:
                process.stop()
            return lives, load, engine, await account(url)


def report(options: argparse.Namespace, lives: list[Life], load: Load, engine: Engine, found: Account) -> list[str]:
    """Write the page -> what is wrong."""
    faults = found.faults(load, engine)
    seconds, finished = sum(life.seconds for life in lives), sum(life.finished for life in lives)
    facts = {
        "kills": options.kills,
        "store": options.store,
        "seed": options.seed,
        "machine": machine(),
        "rate asked, reached while a gateway was up": f"{options.rate:g}, {finished / seconds:.0f} a second",
        "seconds under load": f"{seconds:.0f}",
        "requests sent, begun by the engine, finished": f"{load.sent}, {len(engine.ran)}, {len(load.finished)}",
        "statuses": dict(sorted(load.statuses().items())),
        "audit rows, of them interrupted": f"{found.rows.total()}, {found.count('interrupted')}",
        "finished, but interrupted in the record": found.cut_behind_the_answer(load),
        "verdict": "; ".join(faults) or "all that finished or reached the engine have one row, the chain is whole",
    }
    rows = [[n + 1, f"{life.start:.1f}", f"{life.seconds:.2f}", life.finished] for n, life in enumerate(lives)]
    notes = (
        "*Finished, but interrupted in the record*: the last byte of the answer had left when the kill came, the end "
        "of the row was not written yet."
    )
    lifes = table(["life", "first answer after s", "s under load", "finished"], rows)
    command = f"python -m loadtests.crash --kills {options.kills} --rate {options.rate:g} --store {options.store}"
    name = "crash.md" if options.store == "postgresql" else f"crash-{options.store}.md"
    page(options.out / name, "kill -9 under load", command, facts, notes, lifes)
    return faults


def main() -> int:
    known = argparse.ArgumentParser(prog="python -m loadtests.crash", description=__doc__.split("\n")[0])
    known.add_argument("--kills", type=int, default=20)
    known.add_argument("--rate", type=float, default=1000.0, help="requests a second, as far as the machine gives it")
    known.add_argument("--clients", type=int, default=64)
    known.add_argument("--store", choices=("postgresql", "sqlite"), default="postgresql")
    known.add_argument("--seed", type=int, default=random.randrange(10**6))
    known.add_argument("--out", type=Path, default=RESULTS)
    options = known.parse_args()
    return 1 if report(options, *uvloop.run(run(options, random.Random(options.seed)))) else 0


if __name__ == "__main__":
    sys.exit(main())
