"""Rows of docs/operations.md about disks: a file that somebody locks, a spool that is full (K5, L3, U3)."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from tests.load import Load, account
from tests.servers import PostgreSQL
from tests.site import KINDS, LEASE, Site, delivered, shipped, site


@pytest.mark.timeout(120)
def test_a_locked_sqlite_file_denies_budgets_and_keeps_rows(tmp_path: Path) -> None:
    """K5, L3, U3: readers are not concerned by who writes; who writes waits in the spool, or is refused."""

    async def body() -> None:
        async with site(tmp_path) as it:
            await _locked(it)
            await delivered(it, Load([], "", 0))

    asyncio.run(body())


async def _locked(world: Site) -> None:
    await world.provide()
    link = sqlite3.connect(world.owner, isolation_level=None)
    link.execute("PRAGMA busy_timeout = 5000")
    link.execute("BEGIN IMMEDIATE")
    wanted = dict.fromkeys(KINDS, "200") | {"budget": "503 limits_unavailable"}
    await asyncio.sleep(LEASE)
    await world.until(wanted)
    await world.remains(wanted, LEASE)
    assert world.gateway.figures()["audit"]["pending"] > 0
    link.execute("ROLLBACK")
    link.close()
    await world.until(dict.fromkeys(KINDS, "200"))


@pytest.mark.timeout(180)
def test_a_full_spool_denies_until_the_store_is_back(
    postgresql: PostgreSQL, postgresql_url: str, tmp_path: Path
) -> None:
    """U3: the disk is bounded. What ran is recorded, once; of the refusals that found no room all are counted."""

    async def body() -> None:
        audit = {"spool": str(tmp_path / "spool"), "spool_bytes": 1 << 20}
        async with site(tmp_path, store=postgresql_url, audit=audit) as it:
            await _filled(it, postgresql)

    asyncio.run(body())


async def _filled(world: Site, postgresql: PostgreSQL) -> None:
    await world.provide()
    load = Load([world.gateway.port], world.keys["cached"], 8, name="filling")
    async with load.running():
        await asyncio.to_thread(postgresql.stop)
        try:
            async with asyncio.timeout(90):
                while load.statuses()[503] < 50:
                    await asyncio.sleep(0.05)
        finally:
            await asyncio.to_thread(postgresql.start)
        await world.until({"cached": "200"})
    assert load.statuses().keys() == {200, 503}
    await shipped(world)
    dropped = world.gateway.figures()["audit"]["dropped"]
    rows = (await account(world.owner)).rows
    refused = [name for name, status in load.finished.items() if status == 503 and name not in rows]
    assert 0 < len(refused) <= dropped
    for name in refused:
        del load.finished[name]
    await delivered(world, load)
