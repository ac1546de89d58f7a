"""PostgreSQL stopped for a minute under load: are rows lost or doubled, and what do clients notice?

    python -m loadtests.outage [--seconds 60] [--rate 300] [--fault stop|kill|pause] [--seed N]

One gateway on a real PostgreSQL; clients of a verified key ask all the time. Writes `outage.md`; exits 1 when a row is
lost or doubled, an answer is late, or a request of the known key is refused.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from gateway.store.postgresql import migrate
from loadtests.report import RESULTS, machine, page, table
from tests.databases import statement
from tests.load import Account, Engine, Load, account, engine_section
from tests.process import GatewayProcess, provision
from tests.servers import PostgreSQL

BEFORE = 5.0
DELIVERY_SECONDS = 120.0


class Outage(msgspec.Struct):
    """Seconds since the beginning -> rows that wait, and figures of the whole."""

    load: Load
    engine: Engine
    waiting: list[tuple[float, int, int]] = []
    down: float = 0.0
    delivered: float = 0.0
    found: Account | None = None


async def sampled(process: GatewayProcess, outage: Outage, seconds: float, began: float) -> None:
    """Note the rows that wait once a second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        audit = (await asyncio.to_thread(process.figures))["audit"]
        outage.waiting.append((time.monotonic() - began, audit["pending"], audit["spool_bytes"]))
        await asyncio.sleep(1.0)


async def strike(process: GatewayProcess, server: PostgreSQL, outage: Outage, options: argparse.Namespace) -> None:
    began = time.monotonic()
    await sampled(process, outage, BEFORE, began)
    await asyncio.to_thread(getattr(server, options.fault))
    stopped = time.monotonic()
    await sampled(process, outage, options.seconds, began)
    await asyncio.to_thread(server.resume if options.fault == "pause" else server.start)
    outage.down = time.monotonic() - stopped
    back = time.monotonic()
    async with asyncio.timeout(DELIVERY_SECONDS):
        while outage.waiting[-1][1] > options.rate:
            await sampled(process, outage, 0.5, began)
    outage.delivered = time.monotonic() - back
    await sampled(process, outage, BEFORE, began)


async def run(options: argparse.Namespace) -> Outage:
    server = await asyncio.to_thread(PostgreSQL)
    try:
        await asyncio.to_thread(server.start)
        await statement(server.url("postgres"), "CREATE DATABASE fairgate")
        url = server.url("fairgate")
        await migrate(url)
        with tempfile.TemporaryDirectory(prefix="fairgate-outage-") as name:
            return await _under_load(options, server, url, Path(name))
    finally:
        await asyncio.to_thread(server.close)


async def _under_load(options: argparse.Namespace, server: PostgreSQL, url: str, folder: Path) -> Outage:
    async with Engine(random.Random(options.seed)).listening() as engine:
        token = (await provision(url))[0]
        identity = {"cache_seconds": 3600.0}
        settings: dict[str, Any] = {"store": url, "identity": identity, "backends": engine_section(engine)}
        process = GatewayProcess(folder, settings)
        await asyncio.to_thread(process.started)
        outage = Outage(Load([process.port], token, options.clients, options.rate), engine)
        try:
            async with outage.load.running():
                await strike(process, server, outage, options)
        finally:
            assert await asyncio.to_thread(process.stop) == 0
        outage.found = await account(url)
        return outage


def report(options: argparse.Namespace, outage: Outage) -> list[str]:
    """Write the page -> what is wrong."""
    load, found = outage.load, outage.found
    assert found is not None
    faults = found.faults(load, outage.engine)
    if load.statuses().keys() - {200}:
        faults.append(f"requests of a known key were refused: {load.statuses()}")
    facts = {
        "what": f"PostgreSQL: {options.fault}, for {outage.down:.0f} s; seed {options.seed}",
        "machine": machine(),
        "rate asked": f"{options.rate:g} a second",
        "requests finished": f"{len(load.finished)}, statuses {dict(load.statuses())}",
        "rows that waited, at most": max(pending for _, pending, _ in outage.waiting),
        "spool, at most": f"{max(size for _, _, size in outage.waiting) / (1 << 20):.1f} MiB",
        "all of them delivered": f"{outage.delivered:.1f} s after PostgreSQL answered again",
        "audit rows": f"{found.rows.total()}, of {len(found.rows)} requests",
        "verdict": "; ".join(faults) or "0 rows lost, 0 doubled, the chain is whole",
    }
    rows = [[f"{at:.0f}", pending, f"{size / 1024:.0f}"] for at, pending, size in outage.waiting[::5]]
    words = f"--fault {options.fault} --seconds {options.seconds:g} --rate {options.rate:g}"
    command = f"python -m loadtests.outage {words}"
    name = "outage.md" if options.fault == "stop" else f"outage-{options.fault}.md"
    page(options.out / name, "PostgreSQL away under load", command, facts, table(["s", "rows wait", "spool KiB"], rows))
    return faults


def main() -> int:
    known = argparse.ArgumentParser(prog="python -m loadtests.outage", description=__doc__.split("\n")[0])
    known.add_argument("--seconds", type=float, default=60.0)
    known.add_argument("--fault", choices=("stop", "kill", "pause"), default="stop")
    known.add_argument("--rate", type=float, default=300.0)
    known.add_argument("--clients", type=int, default=32)
    known.add_argument("--seed", type=int, default=random.randrange(10**6))
    known.add_argument("--out", type=Path, default=RESULTS)
    options = known.parse_args()
    return 1 if report(options, uvloop.run(run(options))) else 0


if __name__ == "__main__":
    sys.exit(main())
