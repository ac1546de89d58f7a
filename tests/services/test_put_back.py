"""Stores and spools that were put back to an earlier state (U3; docs/operations.md, Backup)."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from gateway.services.audit import AuditService
from gateway.services.trail import verify
from gateway.store import StoreError
from gateway.store.base import AuditRow, Head
from tests.databases import statement
from tests.services.keyring import connection
from tests.services.test_audit import FULL, config, killed, record, running, stored, until


def test_a_spool_older_than_its_store_is_refused_aloud(tmp_path: Path) -> None:
    """U3: numbers would collide and rows would pass for delivered."""

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            service = AuditService(store, config(tmp_path))
            writer = service._spool.writer
            row: AuditRow = (*msgspec.structs.astuple(FULL), writer, 9, 1, b"h")
            assert await store.add_audit(Head(writer), Head(writer, 9, 1, b"h"), [row])
            service.put(FULL)
            for number in range(9):  # also when its numbers have come to those of the store, and gone beyond
                with pytest.raises(StoreError, match="move"):
                    await service._ship_all()
                service.put(record(f"r{number}"))
            with pytest.raises(StoreError, match="move"):
                await service._ship_all()
            assert service.stats().pending == 10
            killed(service)

    asyncio.run(body())


def test_a_store_put_back_under_a_running_gateway_gets_again_what_the_spool_still_holds(
    postgresql_url: str, tmp_path: Path
) -> None:
    """U3: what a failover to a standby, which lags a little, took from the store."""

    async def body() -> None:
        async with connection(postgresql_url) as store, running(store, config(tmp_path)) as service:
            for number in range(10):
                service.put(record(f"r{number}"))
                await until(lambda: service.stats().pending == 0)
            await put_back(postgresql_url, service._spool.writer, 4)
            service.put(record("r10"))
            await until(lambda: service.stats().pending == 0)
            assert [row.id for row in await stored(store)] == [f"r{number}" for number in range(11)]
            assert [(each.rows, each.broken) for each in await verify(store, {})] == [(11, None)]

    asyncio.run(body())


async def put_back(owner: str, writer: str, seq: int) -> None:
    """The database as it was when `seq` was the last row of its one writer."""
    await statement(owner, f"DELETE FROM audit WHERE writer = '{writer}' AND seq > {seq}")  # noqa: S608 -- ours
    last = "SELECT seq, recorded_at, hash FROM audit ORDER BY seq DESC LIMIT 1"
    await statement(owner, f"UPDATE audit_heads SET (seq, recorded_at, hash) = ({last})")  # noqa: S608 -- ours


def test_a_restored_backup_gets_again_what_the_spool_still_holds(tmp_path: Path) -> None:
    """docs/operations.md, Backup: an older store is put back, the spool stayed with the machine."""
    live, backup = tmp_path / "x.db", tmp_path / "backup.db"

    async def write(*names: str) -> list[str]:
        async with connection(live) as store:
            async with running(store, config(tmp_path)) as service:
                for name in names:
                    service.put(record(name))
                await until(lambda: service.stats().pending == 0)
            return [row.id for row in await stored(store)]

    asyncio.run(write("before"))
    with closing(sqlite3.connect(live)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    asyncio.run(write("after"))
    for file in tmp_path.glob("x.db*"):
        file.unlink()
    backup.rename(live)
    assert asyncio.run(write("restored")) == ["before", "after", "restored"]
