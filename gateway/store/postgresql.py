"""The shared store: PostgreSQL through asyncpg. Many gateways use one database.

Every statement has a timeout. A connection that exceeds it is closed, since its state is unknown. The server has a
timeout of its own, a little later, because a statement that waits for a lock does not notice that its client has gone.
The schema is migrated by `migrate` under an advisory lock, never by a gateway that merely starts (O6).
"""

import asyncio
import contextlib
import datetime
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec

from gateway.store.base import STORED_COLUMNS, AuditRow, Conflict, Head, StoreError
from gateway.store.ledger import BUDGETS, NEW_BUDGET, SAVE_BUDGET, budget_of, budget_values
from gateway.store.limits import Claim, Standing, decide
from gateway.store.operations import OPERATE
from gateway.store.schema import NEEDED, migrations
from gateway.store.sql import MOVE_HEAD, NEW_HEAD, SqlStore, Value
from gateway.store.usage import REPORT_SECONDS
from gateway.urls import database_fault

_log = logging.getLogger("fairgate.store")

STATEMENT_SECONDS = 5.0
"""Callers that cannot wait that long have timeouts of their own."""
GRACE = 1.0
"""Seconds between the timeout here and the server's own for the same statement."""
CONNECT_SECONDS = 5.0
CONNECTIONS = 4
"""Per gateway: identity reads, the audit writer, and some to spare; PostgreSQL's default limit is 100 in total."""
REPORTS = 2
"""How many of the connections may be used for reports and the roll-up, which may take REPORT_SECONDS each."""
PARTITION_MONTHS = 12
PARTITION_SECONDS = 86_400.0
"""Seconds between checks for missing partitions: a gateway may run for longer than the existing ones last."""
ROLL_STEP = 5_000
"""Rows per step of the usage roll-up: a fraction of a second, for which the steps of other gateways wait."""
LONG_ROLL_STEP = 200_000
"""For the owner's commands, which have no timeout: with more rows per step, more of them share a cell."""
COPY_ROWS = 200
"""Audit rows per COPY: encoding them blocks the loop for 2 to 4 us a row (U2: never for 1 ms)."""
CHANNEL = "fairgate_changes"
_MIGRATION_LOCK = 0x6661_6972
"""An arbitrary number that nothing else in the database uses: "fair"."""


_ROLL_UP = "SELECT usage_roll_up($1) AS rolled"
_LOCK_BUDGETS = (
    f"{BUDGETS} JOIN unnest($1::text[], $2::text[]) AS named (scope, budget) USING (scope, budget) "
    "ORDER BY scope, budget FOR UPDATE OF budgets"
)


async def open_postgresql(url: str) -> "PostgreSQLStore":
    """Connect and check the schema. Raises StoreError."""
    check_url(url)
    with _translated():
        pool = await asyncpg.create_pool(
            url,
            min_size=0,
            max_size=CONNECTIONS,
            timeout=CONNECT_SECONDS,
            command_timeout=STATEMENT_SECONDS,
            server_settings={
                "application_name": "fairgate",
                "timezone": "UTC",
                "statement_timeout": _server_deadline(STATEMENT_SECONDS),
            },
        )
    store = PostgreSQLStore(url, pool)
    try:
        await store.check_schema()
        await store.make_partitions()
    except BaseException:
        await store.close()
        raise
    return store


class PostgreSQLStore(SqlStore):
    """`Store` on one PostgreSQL database."""

    _sketch_sum = "sum({})::text"

    def __init__(self, url: str, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._url = url
        self._pool = pool
        self._listener: asyncpg.Connection[asyncpg.Record] | None = None
        self._changed = asyncio.Event()
        self._reports = asyncio.Semaphore(REPORTS)
        self._partitions_due = -math.inf

    async def check_schema(self) -> None:
        """Raise StoreError unless the schema is the one that this program knows."""
        try:
            async with self._connection() as connection:
                done = await _applied(connection)
        except StoreError as err:
            raise StoreError(f"{_shown(self._url)}: {err}") from err
        known = len(migrations("postgresql"))
        if done < known:
            raise StoreError(f"{_shown(self._url)}: schema {done} is older than {known}; run `fairgate migrate`")
        _refuse_newer(self._url, done)

    async def make_partitions(self) -> None:
        """Create the audit trail's partitions of coming months. If it fails, rows go to the default partition."""
        self._partitions_due = time.monotonic() + PARTITION_SECONDS
        try:
            await self._fetch("SELECT audit_make_partitions($1)", PARTITION_MONTHS)
        except StoreError as err:
            _log.error("the audit trail's partitions could not be made: %s", err)

    @contextlib.asynccontextmanager
    async def _connection(self, seconds: float = 0.0) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
        """A connection of the pool for one statement or transaction, with a timeout over all of it: STATEMENT_SECONDS,
        or `seconds` for one statement if that is more. The pool resets the server's timeout."""
        with _translated():
            connection = await self._pool.acquire(timeout=CONNECT_SECONDS)
            try:
                async with asyncio.timeout(seconds or STATEMENT_SECONDS):
                    if seconds:
                        await connection.execute(f"SET statement_timeout = {_server_deadline(seconds)}")
                    yield connection  # type: ignore[misc]  # the pool's proxy has the connection's methods
            except asyncpg.PostgresError:  # an error from the server: the connection is still good
                raise
            except BaseException:
                with contextlib.suppress(asyncpg.InterfaceError):  # already lost; a cancellation must stay one
                    connection.terminate()
                raise
            finally:
                await self._pool.release(connection)

    @contextlib.asynccontextmanager
    async def _transaction(self) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
        """`_connection`, in a transaction. Rolls back only after an error from the server: it does so by itself when
        the connection closes, and if it does not answer, a rollback would exceed the timeout."""
        async with self._connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                yield connection
            except asyncpg.PostgresError:
                with contextlib.suppress(asyncpg.InterfaceError):  # the connection is lost
                    await transaction.rollback()
                raise
            await transaction.commit()

    async def _fetch(self, sql: str, *values: Value) -> Sequence[Any]:
        async with self._connection() as connection:
            return await connection.fetch(sql, *values)

    async def _report(self, sql: str, values: Sequence[Value]) -> Sequence[Any]:
        async with self._reports, self._connection(REPORT_SECONDS) as connection:
            return await connection.fetch(sql, *values, timeout=REPORT_SECONDS)

    async def roll_up(self) -> int:
        """Runs every few seconds while a gateway runs, so it also creates partitions, once a day."""
        if time.monotonic() >= self._partitions_due:
            await self.make_partitions()
        return await super().roll_up()

    async def _roll_step(self) -> int:
        """Uses a report's timeout: a step that never finished in time would block the roll-up for good."""
        rows = await self._report(_ROLL_UP, [ROLL_STEP])
        return int(rows[0]["rolled"])

    async def _execute(self, sql: str, rows: Sequence[Sequence[Value]], note: Sequence[Value] = ()) -> int:
        if note:
            async with self._transaction() as connection:
                changed = int((await connection.execute(sql, *rows[0])).rpartition(" ")[2])
                if changed:
                    await connection.execute(OPERATE, *note)
            return changed
        async with self._connection() as connection:
            if len(rows) == 1:
                status = await connection.execute(sql, *rows[0])
                return int(status.rpartition(" ")[2])
            await connection.executemany(sql, rows)
            return len(rows)

    @property
    def home(self) -> str:
        return "fairgate"

    async def add_audit(self, before: Head, after: Head, rows: Sequence[AuditRow]) -> bool:
        async with self._transaction() as connection:
            await connection.execute(NEW_HEAD, before.writer, b"")
            move = (before.writer, before.seq, after.seq, after.recorded_at, after.hash)
            if await connection.execute(MOVE_HEAD, *move) == "UPDATE 0":
                return False
            for some in (rows[first : first + COPY_ROWS] for first in range(0, len(rows), COPY_ROWS)):
                await connection.copy_records_to_table("audit", records=some, columns=STORED_COLUMNS)
        return True

    async def claim(self, claims: list[Claim], now: int, lease: int) -> list[Standing]:
        """Rows are created and locked in a fixed order, so that two gateways never deadlock."""
        names = sorted({(claim.scope, claim.budget) for claim in claims})
        scopes, budgets = [scope for scope, _ in names], [budget for _, budget in names]
        async with self._transaction() as connection:
            await connection.executemany(NEW_BUDGET, names)
            found = await connection.fetch(_LOCK_BUDGETS, scopes, budgets)
            rows = {(row["scope"], row["budget"]): budget_of(row) for row in found}
            standings = [decide(rows[claim.scope, claim.budget], claim, now, lease) for claim in claims]
            await connection.executemany(SAVE_BUDGET, [budget_values(row) for row in rows.values()])
        return standings

    async def wait_change(self, seconds: float) -> None:
        """Wait until PostgreSQL notifies, or for `seconds`: a lost notification costs only that."""
        await self._listen()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()

    async def _listen(self) -> None:
        """Make sure that a connection listens; without one (the database is down) the caller polls."""
        if self._listener is not None and not self._listener.is_closed():
            return
        try:
            with _translated():
                made = await asyncpg.connect(self._url, timeout=CONNECT_SECONDS, command_timeout=STATEMENT_SECONDS)
                try:
                    await made.add_listener(CHANNEL, self._notified)
                except BaseException:  # a connection that does not listen is useless
                    made.terminate()
                    raise
            self._listener = made
            self._changed.set()  # something may have happened while nobody listened
        except StoreError as err:
            _log.debug("not listening for changes: %s", err)

    def _notified(self, *_: object) -> None:
        self._changed.set()

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.terminate()
        try:
            async with asyncio.timeout(STATEMENT_SECONDS):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    def __repr__(self) -> str:
        return f"<PostgreSQLStore {_shown(self._url)}>"


async def migrate(url: str, app_role: str = "") -> list[str]:
    """Migrate the schema and grant `app_role` what a gateway needs -> what was done, one line each."""
    check_url(url)
    with _translated():
        connection = await asyncpg.connect(url, timeout=CONNECT_SECONDS)
        try:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATION_LOCK)
                _refuse_newer(url, await _applied(connection))
                done = await _apply_missing(connection)
                for grant in await _grants(connection, app_role) if app_role else []:
                    await connection.execute(grant)
                    done.append(grant)
            if rolled := await _roll_up(connection):
                done.append(f"rolled up {rolled} rows for usage reports")
        finally:
            await connection.close(timeout=STATEMENT_SECONDS)
    return done


async def _roll_up(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    """Roll up everything that is due, in steps of one transaction each, unless a transaction is open already."""
    rolled = 0
    while rows := await connection.fetchval(_ROLL_UP, LONG_ROLL_STEP):
        rolled += rows
    return rolled


async def drop_partitions(url: str, before: int, actor: str = "owner") -> list[str]:
    """Retention: drop the audit trail's months that ended before `before` (Unix microseconds) -> their names. Requires
    the owner of the database. Their usage is rolled up first, under a lock that keeps late rows out."""
    check_url(url)
    dropped = []
    with _translated():
        connection = await asyncpg.connect(url, timeout=CONNECT_SECONDS)
        try:
            await _roll_up(connection)
            for row in await connection.fetch(_PARTITIONS):
                if _month_after(row["relname"]) <= before:
                    await _drop_partition(connection, row["relname"], actor)
                    dropped.append(row["relname"])
        finally:
            await connection.close(timeout=STATEMENT_SECONDS)
    return dropped


async def _drop_partition(connection: "asyncpg.Connection[asyncpg.Record]", name: str, actor: str) -> None:
    async with connection.transaction():
        await connection.execute(f'LOCK TABLE "{name}" IN SHARE ROW EXCLUSIVE MODE')
        await _roll_up(connection)
        last = f'SELECT DISTINCT ON (writer) writer, seq, hash FROM "{name}" ORDER BY writer, seq DESC'  # noqa: S608
        ends = await connection.fetch(last)
        await connection.execute(f'DROP TABLE "{name}"')
        through = {row["writer"]: row["seq"] for row in ends}
        hashes = {row["writer"]: row["hash"].hex() for row in ends}
        note = msgspec.json.encode({"did": "drop", "through": through, "hashes": hashes}).decode()
        await connection.execute(OPERATE, "audit", name, note, time.time_ns() // 1000, actor)


_PARTITIONS = """
    SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'audit'::regclass AND relname ~ '^audit_[0-9]{4}_[0-9]{2}$' ORDER BY relname
"""


def _month_after(partition: str) -> int:
    """The end of the month of `audit_YYYY_MM`, in Unix microseconds."""
    _, year, month = partition.split("_")
    years, index = divmod(int(month), 12)
    end = datetime.datetime(int(year) + years, index + 1, 1, tzinfo=datetime.UTC)
    return int(end.timestamp()) * 1_000_000


def grants(role: str, months: Sequence[str] = ()) -> list[str]:
    """Statements that give a gateway's role exactly the privileges it needs, whatever it had before. `months` are the
    partitions of the audit trail, on which it needs none."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", role):
        raise StoreError(f"{role!r} is not a plain role name")
    ours = ", ".join([*NEEDED, "change_counter", *months])
    return [f"REVOKE ALL ON {ours} FROM {role}", *(f"GRANT {may} ON {on} TO {role}" for on, may in NEEDED.items())]


async def _grants(connection: "asyncpg.Connection[asyncpg.Record]", role: str) -> list[str]:
    return grants(role, [row["name"] for row in await connection.fetch(_MONTHS)])


_MONTHS = """
    SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'audit'::regclass ORDER BY name
"""


async def _apply_missing(connection: "asyncpg.Connection[asyncpg.Record]") -> list[str]:
    done = await _applied(connection)
    if done == 0:
        await connection.execute(
            "CREATE TABLE schema_migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at TIMESTAMPTZ "
            "NOT NULL DEFAULT now())"
        )
    applied = []
    for migration in migrations("postgresql")[done:]:
        await connection.execute(migration.sql)
        insert = "INSERT INTO schema_migrations (number, name) VALUES ($1, $2)"
        await connection.execute(insert, migration.number, migration.name)
        applied.append(f"applied {migration.name}")
    return applied


def _refuse_newer(url: str, done: int) -> None:
    known = len(migrations("postgresql"))
    if done > known:
        raise StoreError(f"{_shown(url)}: schema {done} is newer than this program knows ({known})")


async def _applied(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    """The number of the last migration applied to this database; 0 = none."""
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return 0
    return int(await connection.fetchval("SELECT coalesce(max(number), 0) FROM schema_migrations"))


def _server_deadline(seconds: float) -> str:
    """PostgreSQL's own format for a timeout, in milliseconds."""
    return str(round((seconds + GRACE) * 1000))


@contextlib.contextmanager
def _translated() -> Any:
    """Translates errors of driver and system into StoreError. Their texts are for logs; none has the password."""
    try:
        yield
    except asyncpg.IntegrityConstraintViolationError as err:
        raise Conflict(f"{type(err).__name__}: {err.args[0]}") from err
    except StoreError:
        raise
    except Exception as err:  # the driver raises more than it documents when a server disappears during a statement
        raise StoreError(f"{type(err).__name__}: {err}") from err


def check_url(url: str) -> None:
    """Check the URL before the driver reads it. Raises StoreError."""
    if fault := database_fault(url):
        raise StoreError(f"store: {fault}")


def _shown(url: str) -> str:
    """The URL without credentials."""
    parts = urlsplit(url)
    return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"
