"""The race for one budget on two gateways, again and again: is it ever overspent, does anything leak?

    python -m loadtests.race [--rounds 20] [--seed N]

Each round is that of `tests/test_race.py`: 200 requests, a budget that pays 100, failing engines, clients that leave,
kill -9 of both gateways and of Redis. Writes `race.md`; exits 1 when a round breaks a promise.
"""

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from gateway.store.postgresql import migrate
from loadtests.report import RESULTS, machine, page, table
from tests.databases import statement
from tests.race import ADMITS, OPEN, REQUESTS, Race
from tests.servers import PostgreSQL, Redis
from tests.services.limited import command

Row = tuple[int, int, int, int, str, str]


async def play(server: PostgreSQL, redis: Redis, seed: int) -> Row:
    """One round on a database of its own."""
    await statement(server.url("postgres"), f"CREATE DATABASE round{seed}")
    await migrate(server.url(f"round{seed}"))
    command(redis.port, "FLUSHALL")
    with tempfile.TemporaryDirectory(prefix="fairgate-race-") as folder:
        async with Race(Path(folder), server.url(f"round{seed}"), redis, random.Random(seed)).running() as race:
            await race.run()
            faults = await race.faults()
            said = ", ".join(f"{count} {what}" for what, count in race.said.most_common())
            return seed, race.paid(), race.finished(), race.engine.most, said, "; ".join(faults)


def run(options: argparse.Namespace) -> list[Row]:
    server, redis = PostgreSQL(), Redis()
    try:
        server.start()
        redis.start()
        return [asyncio.run(play(server, redis, options.seed + n)) for n in range(options.rounds)]
    finally:
        server.close()
        redis.close()


def main() -> int:
    known = argparse.ArgumentParser(prog="python -m loadtests.race", description=__doc__.split("\n")[0])
    known.add_argument("--rounds", type=int, default=20)
    known.add_argument("--seed", type=int, default=random.randrange(10**6))
    known.add_argument("--out", type=Path, default=RESULTS)
    options = known.parse_args()
    rows = run(options)
    broken = [row for row in rows if row[-1]]
    facts = {
        "rounds": options.rounds,
        "seeds": f"{options.seed} and up",
        "machine": machine(),
        "each": f"{REQUESTS} requests, a budget that pays {ADMITS}, at most {OPEN} open at once",
        "most answered, most that ran at once": f"{max(row[1] for row in rows)}, {max(row[3] for row in rows)}",
        "verdict": f"{len(broken)} rounds broke a promise" if broken else "never overspent, nothing leaked",
    }
    header = ["seed", "answered", "engine finished", "at once", "how attempts ended", "fault"]
    page(options.out / "race.md", "A race for one budget", "python -m loadtests.race", facts, table(header, rows))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
