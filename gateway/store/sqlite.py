"""The embedded store: one SQLite file, used by one thread that owns the connection.

Write-ahead log, synchronous=FULL: a committed key, revocation or audit batch survives a power cut. Audit rows are
committed in batches, so no request waits for an fsync. Only the owner can read the file and its companions.
"""

import asyncio
import contextlib
import os
import re
import sqlite3
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from gateway.store.base import AuditRow, Conflict, Head, StoreError
from gateway.store.ledger import BUDGETS, NEW_BUDGET, SAVE_BUDGET, budget_of, budget_values
from gateway.store.limits import Claim, Standing, decide
from gateway.store.operations import OPERATE
from gateway.store.rollup import LONG_STEP, STEP, SketchSum, roll_step, sketch_add
from gateway.store.schema import migrations, statements
from gateway.store.slices import SLICE, slices
from gateway.store.sql import ADD_AUDIT, MOVE_HEAD, NEW_HEAD, SqlStore, Value
from gateway.store.usage import REPORT_SECONDS

T = TypeVar("T")

OLDEST_SQLITE = (3, 37, 0)
"""For STRICT tables (sqlite.org/stricttables.html)."""
OPEN_BUSY_MS = 10_000
"""While opening, another process may be migrating."""
BUSY_MS = 1_000
"""Other writers (the command line) hold the lock for milliseconds."""
_IN_USE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL)
"""Another process holds a lock. Waiting does not help against other errors (a read-only folder, a full disk)."""
_ADD_ROW = re.sub(r"\$\d+", "?", ADD_AUDIT)
"""Values in order and without numbers, so that thousands of rows a second can be bound without a mapping for each."""
_ADD_SLICE = _ADD_ROW + (", " + _ADD_ROW[_ADD_ROW.rindex("(") :]) * (SLICE - 1)
"""Inserts a slice of rows with one statement. Each statement releases the interpreter and waits for it again, which
beside a busy loop costs more than the rows themselves."""


async def open_sqlite(path: Path) -> "SqliteStore":
    """Open, create or migrate the file. Raises StoreError if that fails."""
    thread = ThreadPoolExecutor(1, "fairgate-sqlite")
    try:
        connection = await asyncio.get_running_loop().run_in_executor(thread, _connect, path)
    except BaseException:
        thread.shutdown(wait=False)
        raise
    return SqliteStore(path, connection, thread)


class _Life:
    """What a store and its views (`acting`) share. `remains`: deleted prompts may still be in the write-ahead log."""

    def __init__(self) -> None:
        self.closed = False
        self.remains = False


class SqliteStore(SqlStore):
    """`Store` on one SQLite file."""

    def __init__(self, path: Path, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self._path = path
        self._connection = connection
        self._thread = thread
        self._life = _Life()

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        """Run `work(connection, *args)` in the store's thread. Work that has begun is finished even if nobody waits for
        it."""
        if self._life.closed:
            raise StoreError(f"{self._path}: closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, _guarded, self._connection, work, args)

    async def _fetch(self, sql: str, *values: Value) -> Sequence[Any]:
        return await self._run(_fetch, _numbered(sql), values)

    async def _execute(self, sql: str, rows: Sequence[Sequence[Value]], note: Sequence[Value] = ()) -> int:
        return await self._run(_execute, _numbered(sql), rows, note)

    async def _report(self, sql: str, values: Sequence[Value]) -> Sequence[Any]:
        """Uses a connection and a thread of its own, so that identity can be read meanwhile."""
        if self._life.closed:
            raise StoreError(f"{self._path}: closed")
        return await asyncio.to_thread(_report, self._path, _numbered(sql), values)

    async def _roll_step(self) -> int:
        return await self._run(_roll_step, STEP)

    async def delete_prompts(self, *, request: str = "", key: str = "") -> int:
        return await self._gone(await super().delete_prompts(request=request, key=key))

    async def expire_prompts(self, now: int) -> int:
        return await self._gone(await super().expire_prompts(now))

    async def _gone(self, deleted: int) -> int:
        """Remove deleted prompts from the write-ahead log too, where they would stay until they are overwritten. If a
        reader prevents it, this is tried again with the next deletion."""
        if deleted or self._life.remains:
            self._life.remains = await self._run(_empty_log)
        return deleted

    async def wait_change(self, seconds: float) -> None:
        """SQLite does not notify about other processes: the caller polls."""
        await asyncio.sleep(seconds)

    @property
    def home(self) -> str:
        return str(self._path)

    async def add_audit(self, before: Head, after: Head, rows: Sequence[AuditRow]) -> bool:
        return await self._run(_append, before, after, rows)

    async def claim(self, claims: list[Claim], now: int, lease: int) -> list[Standing]:
        return await self._run(_claim, claims, now, lease)

    async def close(self) -> None:
        if not self._life.closed:
            try:
                await self._run(sqlite3.Connection.close)
            finally:
                self._life.closed = True
                self._thread.shutdown(wait=False)

    def __repr__(self) -> str:
        return f"<SqliteStore {self._path}{' closed' if self._life.closed else ''}>"


def _numbered(sql: str) -> str:
    """`$1` -> `?1`: SQLite would read the first as a name."""
    return sql.replace("$", "?")


def _named(values: Sequence[Value]) -> dict[str, Value]:
    """The values for `?1`, `?2`, ...: Python's driver treats them as names, for which it accepts no sequence from 3.14
    on."""
    return {str(number): value for number, value in enumerate(values, 1)}


def _guarded(connection: sqlite3.Connection, work: Callable[..., T], args: tuple[Any, ...]) -> T:
    """Translates the driver's exceptions into StoreError."""
    try:
        return work(connection, *args)
    except sqlite3.IntegrityError as err:
        raise Conflict(str(err)) from err
    except (sqlite3.Error, OSError) as err:
        raise StoreError(f"{type(err).__name__}: {err}") from err


def _fetch(connection: sqlite3.Connection, sql: str, values: Sequence[Value]) -> list[sqlite3.Row]:
    return connection.execute(sql, _named(values)).fetchall()


def _report(path: Path, sql: str, values: Sequence[Value]) -> list[sqlite3.Row]:
    deadline = time.monotonic() + REPORT_SECONDS
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            connection.create_aggregate("sketch_sum", 1, SketchSum)  # type: ignore[arg-type]  # not only integers
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 1_000_000)
            return _fetch(connection, sql, values)
    except sqlite3.Error as err:
        raise StoreError(f"{type(err).__name__}: {err}") from err


def _execute(connection: sqlite3.Connection, sql: str, rows: Sequence[Sequence[Value]], note: Sequence[Value]) -> int:
    with _transaction(connection):
        changed = connection.executemany(sql, map(_named, rows)).rowcount
        if note and changed:
            connection.execute(_numbered(OPERATE), _named(note))
    return changed


def _append(connection: sqlite3.Connection, before: Head, after: Head, rows: Sequence[AuditRow]) -> bool:
    """One transaction, with the rows in slices."""
    with _transaction(connection):
        connection.execute(_numbered(NEW_HEAD), _named((before.writer, b"")))
        move = (before.writer, before.seq, after.seq, after.recorded_at, after.hash)
        if not connection.execute(_numbered(MOVE_HEAD), _named(move)).rowcount:
            return False
        for some in slices(rows):
            if len(some) == SLICE:
                connection.execute(_ADD_SLICE, tuple(chain.from_iterable(some)))
            else:
                connection.executemany(_ADD_ROW, some)
    return True


def _roll_step(connection: sqlite3.Connection, most: int) -> int:
    with _transaction(connection):
        return roll_step(connection, most)


def _claim(connection: sqlite3.Connection, claims: list[Claim], now: int, lease: int) -> list[Standing]:
    standings = []
    with _transaction(connection):
        for claim in claims:
            names = (claim.scope, claim.budget)
            connection.execute(_numbered(NEW_BUDGET), _named(names))
            found = connection.execute(f"{BUDGETS} WHERE scope = ? AND budget = ?", names).fetchone()
            row = budget_of(found)
            standings.append(decide(row, claim, now, lease))
            connection.execute(_numbered(SAVE_BUDGET), _named(budget_values(row)))
    return standings


def _empty_log(connection: sqlite3.Connection) -> bool:
    """Move the whole log into the file and truncate it -> whether somebody prevented it."""
    return bool(connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Any:
    """BEGIN IMMEDIATE: waits for the lock here, never in the middle of the transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _connect(path: Path) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old; 3.37 or later is needed")
    try:
        _restrict(path)
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            return _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    except (sqlite3.Error, OSError) as err:
        raise StoreError(f"{path}: {err}") from err


def _restrict(path: Path) -> None:
    """Create the file so that only its owner can read it, or restrict an existing one. SQLite gives new companion files
    the same mode; existing ones, left by a process that was killed, are restricted too."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        for one in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_IMODE(one.stat().st_mode) & 0o077:
                    one.chmod(0o600)


def _prepare(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    connection.row_factory = sqlite3.Row
    connection.create_function("sketch_add", 2, sketch_add, deterministic=True)
    connection.create_aggregate("sketch_sum", 1, SketchSum)  # type: ignore[arg-type]  # for a migration
    connection.execute(f"PRAGMA busy_timeout = {OPEN_BUSY_MS}")
    _wal(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # deleted prompts are overwritten and not merely freed
    if _migrate(connection, path):
        while _roll_step(connection, LONG_STEP):  # rows from before the roll-up existed; nothing else runs here yet
            pass
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    return connection


def _wal(connection: sqlite3.Connection) -> None:
    """Retries: switching to the write-ahead log ignores busy_timeout when two processes create the file at the same
    time."""
    deadline = time.monotonic() + OPEN_BUSY_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as err:
            if err.sqlite_errorcode & 0xFF not in _IN_USE or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _migrate(connection: sqlite3.Connection, path: Path) -> bool:
    """Apply missing migrations under the write lock -> whether there were any; a file from a newer program is refused.
    If none is missing nothing is locked or written, so that reading commands work on a full disk too."""
    known = migrations("sqlite")
    if _version(connection) == len(known):
        return False
    with _transaction(connection):
        done = _version(connection)
        if done > len(known):
            raise StoreError(f"{path}: schema {done} is newer than this program knows ({len(known)})")
        for migration in known[done:]:
            for statement in statements(migration.sql):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(known)}")
        return done < len(known)
