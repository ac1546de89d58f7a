"""Inspects a database before a gateway uses it: its schema, its file, the privileges of its role. Changes nothing.

Must not judge what it finds.
"""

import contextlib
import sqlite3
import stat
from pathlib import Path

import msgspec

from gateway.store.base import StoreError
from gateway.store.schema import NEEDED, migrations
from gateway.urls import database_fault

TIMEOUT = 5.0
"""Seconds for the connection and for each query."""


class SqliteFacts(msgspec.Struct, frozen=True):
    """`mode` are the file's permission bits; `schema` is the number of its last migration, `known` this program's."""

    exists: bool
    mode: int
    schema: int
    known: int


class PostgreSQLFacts(msgspec.Struct, frozen=True):
    """`schema`, `known` as above. `may` are the role's privileges that allow rewriting history; `lacks` are needed
    privileges that it does not have, such as `SELECT on prompts`. If the role may not even read the schema, that is
    reported as `known`."""

    role: str
    schema: int
    known: int
    may: tuple[str, ...]
    lacks: tuple[str, ...] = ()


def sqlite_path(url: str) -> Path | None:
    """The file named by a store's URL; None if the URL names another database."""
    scheme, sep, rest = url.partition("://")
    if not sep:
        return Path(url)
    return Path(rest.removeprefix("/")) if scheme == "sqlite" else None


def sqlite_facts(path: Path) -> SqliteFacts:
    """Inspect a file, which need not exist. Raises StoreError if it is not a readable database."""
    known = len(migrations("sqlite"))
    try:
        if not path.parent.is_dir():
            raise StoreError(f"{path}: there is no folder {path.parent}")
        if not path.exists():
            return SqliteFacts(False, 0, 0, known)
        mode = stat.S_IMODE(path.stat().st_mode)
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            schema = int(connection.execute("PRAGMA user_version").fetchone()[0])
    except (sqlite3.Error, OSError) as err:
        raise StoreError(f"{path}: {err}") from err
    return SqliteFacts(True, mode, schema, known)


async def postgresql_facts(url: str) -> PostgreSQLFacts:
    """Query the server as the role in `url`. Raises StoreError."""
    import asyncpg  # the embedded store must not need the driver

    if fault := database_fault(url):
        raise StoreError(fault)
    known = len(migrations("postgresql"))
    try:
        connection = await asyncpg.connect(url, timeout=TIMEOUT, command_timeout=TIMEOUT)
        try:
            role = await connection.fetchval("SELECT current_user")
            if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
                return PostgreSQLFacts(role, 0, known, ())
            lacks = tuple(row["name"] for row in await connection.fetch(_LACKS, *_needed()))
            if "SELECT on schema_migrations" in lacks:
                return PostgreSQLFacts(role, known, known, (), lacks)
            schema = await connection.fetchval("SELECT coalesce(max(number), 0) FROM schema_migrations")
            rows = await connection.fetch(_MAY)
        finally:
            await connection.close(timeout=TIMEOUT)
    except Exception as err:  # the driver raises more than it documents; the texts contain no password
        raise StoreError(f"{type(err).__name__}: {err}") from err
    return PostgreSQLFacts(role, int(schema), known, tuple(row["name"] for row in rows), lacks)


def _needed() -> tuple[list[str], list[str]]:
    """The needed privileges as tables and, in the same order, privileges."""
    pairs = [
        (table, may) for tables, mays in NEEDED.items() for table in tables.split(", ") for may in mays.split(", ")
    ]
    return [table for table, _ in pairs], [may for _, may in pairs]


_MAY = """
    SELECT name FROM unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE']) AS name
    WHERE EXISTS (
        SELECT 1 FROM (
            SELECT to_regclass('audit') UNION SELECT to_regclass('operations')
            UNION SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass('audit')
        ) AS history (tab)
        WHERE tab IS NOT NULL AND has_table_privilege(current_user, tab, name)
    )
"""
"""Privileges on tables that must only be appended to: the audit trail with each of its months, and operations."""
_LACKS = """
    SELECT may || ' on ' || tab AS name FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS needed (tab, may, place)
    WHERE to_regclass(tab) IS NOT NULL AND NOT has_table_privilege(current_user, to_regclass(tab), may) ORDER BY place
"""
