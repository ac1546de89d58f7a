"""What is particular to the SQLite file: modes, migrations, other processes."""

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from gateway.store import StoreError, open_store
from gateway.store.base import Store, Tenant
from gateway.store.prompts import Prompt
from gateway.store.schema import Database, migrations, statements
from gateway.store.sqlite import OPEN_BUSY_MS, SqliteStore, _wal
from tests.services.keyring import connection

MODULES = "import asyncio, sys; from gateway.store import open_store;"


def test_only_the_owner_reads_the_file(tmp_path: Path) -> None:
    """Mode 0600, the write-ahead log and its index included; a file that was open to others is closed to them."""
    path = tmp_path / "fairgate.db"

    async def body() -> None:
        async with connection(path) as store:
            await store.add_tenant(Tenant(id="t", name="t", created_at=0))
            modes = {name: stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in os.listdir(tmp_path)}
            assert modes == dict.fromkeys((path.name, f"{path.name}-wal", f"{path.name}-shm"), 0o600)

    asyncio.run(body())
    path.chmod(0o644)
    asyncio.run(body_open(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


LEFT = (
    MODULES
    + "from gateway.store.base import Tenant; import os\nasync def body():\n"
    + (
        " store = await open_store(sys.argv[1])\n"
        " await store.add_tenant(Tenant(id='t', name='t', created_at=0))\n os._exit(9)\nasyncio.run(body())"
    )
)


def test_what_a_killed_process_left_open_to_others_is_closed_to_them(tmp_path: Path) -> None:
    """Its log and index too, as a copy or another umask left them."""
    path = tmp_path / "fairgate.db"
    assert subprocess.run([sys.executable, "-c", LEFT, str(path)], check=False).returncode == 9
    files = [tmp_path / name for name in (path.name, f"{path.name}-wal", f"{path.name}-shm")]
    for file in files:
        file.chmod(0o644)

    async def body() -> None:
        async with connection(path) as store:
            assert [tenant.id for tenant in await store.tenants()] == ["t"]
            assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3

    asyncio.run(body())


async def body_open(path: Path) -> None:
    await (await open_store(str(path))).close()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_migrations_are_numbered_without_a_gap(database: Database) -> None:
    """O6"""
    assert [migration.number for migration in migrations(database)] == list(range(1, len(migrations(database)) + 1))


def test_both_databases_have_the_same_migrations() -> None:
    """D"""
    assert [m.name for m in migrations("sqlite")] == [m.name for m in migrations("postgresql")]


def test_statements_keep_the_bodies_of_triggers_whole() -> None:
    script = (
        "-- a; comment\nCREATE TABLE t (a);\nCREATE TRIGGER x AFTER UPDATE ON t BEGIN\n SELECT 1;\n SELECT 2;\nEND;\n"
    )
    assert len(statements(script)) == 2


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """O6: forward only."""
    path = tmp_path / "fairgate.db"
    asyncio.run(body_open(path))
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version = 999")
    raw.close()
    with pytest.raises(StoreError, match="newer"):
        asyncio.run(open_store(str(path)))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fairgate.db"
    path.write_bytes(b"not a database " * 100)
    with pytest.raises(StoreError, match=r"fairgate\.db: file is not a database"):
        asyncio.run(open_store(str(path)))


def test_only_a_lock_is_waited_for(tmp_path: Path) -> None:
    """A file that may not be written is said at once: each command would seem to hang."""
    path = tmp_path / "fairgate.db"
    with closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE t (x)")
    begun = time.monotonic()
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    with closing(connection), pytest.raises(sqlite3.OperationalError, match="readonly"):
        _wal(connection)
    assert time.monotonic() - begun < OPEN_BUSY_MS / 2000


def test_many_processes_may_create_it_at_once(tmp_path: Path) -> None:
    """O6: the migration is locked."""
    work = f"{MODULES} s = asyncio.run(open_store(sys.argv[1]))"
    line = [sys.executable, "-c", f"{work}; asyncio.run(s.close())", str(tmp_path / "fairgate.db")]
    started = [subprocess.Popen(line, stderr=subprocess.PIPE) for _ in range(4)]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()


def test_no_statement_runs_on_the_loops_thread(tmp_path: Path) -> None:
    """SQL never blocks the loop."""

    async def body() -> None:
        async with connection(tmp_path / "fairgate.db") as store:
            assert isinstance(store, SqliteStore)
            ran_in = await store._run(lambda _: threading.current_thread())
            assert ran_in is not threading.main_thread()

    asyncio.run(body())


def test_a_locked_file_is_an_error_in_time(tmp_path: Path) -> None:
    """K5: another process that holds the lock does not hang us."""
    path = tmp_path / "fairgate.db"

    async def body() -> None:
        async with connection(path) as store:
            holder = sqlite3.connect(path, isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="locked"):
                await store.add_tenant(Tenant(id="t", name="t", created_at=0))
            holder.close()
            await store.add_tenant(Tenant(id="t", name="t", created_at=0))

    asyncio.run(body())


def test_a_file_that_nobody_can_write_is_read(tmp_path: Path) -> None:
    """O5: `fairgate audit tail` in the night in which the disk is full; here somebody holds the lock."""
    path = tmp_path / "fairgate.db"

    async def body() -> None:
        async with connection(path) as store:
            await store.add_tenant(Tenant(id="t", name="t", created_at=0))
        with closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            async with connection(path) as store:
                assert [tenant.name for tenant in await store.tenants()] == ["t"]

    asyncio.run(body())


@pytest.mark.parametrize("how", ["purged", "expired"])
def test_deleted_prompts_are_on_no_disk(tmp_path: Path, how: str) -> None:
    """U5: neither in the file nor in its log while the gateway runs; what a reader keeps goes with the next ones."""
    path = tmp_path / "fairgate.db"
    body = b"nobody else's business" * 50
    kept = Prompt(
        id="r", at=1, expires_at=5, tenant="t", user="u", key="k", route="/", model="m", size=len(body), body=body
    )

    def there() -> bool:
        return any(body[:22] in file.read_bytes() for file in tmp_path.iterdir())

    async def delete(store: Store) -> None:
        assert await (store.delete_prompts(key="k") if how == "purged" else store.expire_prompts(5)) == 1

    async def scenario() -> None:
        async with connection(str(path)) as gateway, connection(str(path)) as other:
            await gateway.add_prompts([kept])
            await delete(other)
            assert not there()
            await gateway.add_prompts([kept])
            with closing(sqlite3.connect(path, isolation_level=None)) as reader:
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM prompts").fetchone()
                await delete(other)
                assert there()
            await other.expire_prompts(0)
            assert not there()

    asyncio.run(scenario())
