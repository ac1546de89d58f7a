"""The numbered SQL migrations of each database, as statements. Must not know a driver.

Files are named `NNNN_what.sql` in `migrations/<database>/`; they are applied in order, once, and only forward (O6).
"""

import re
import sqlite3
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Literal

import msgspec

Database = Literal["sqlite", "postgresql"]

NEEDED = {
    "tenants, users, keys, key_use, budgets, saved_usage": "SELECT, INSERT, UPDATE, DELETE",
    "changes, schema_migrations, usage_cells, usage_hours, usage_rolled": "SELECT",
    "audit, operations": "SELECT, INSERT",
    "audit_heads": "SELECT, INSERT, UPDATE",
    "prompts": "SELECT, INSERT, DELETE",
}
"""The privileges of a gateway's role on PostgreSQL: free use of identity, append only for the audit trail (U4)."""


class Migration(msgspec.Struct, frozen=True):
    """One file: its number, name and full text."""

    number: int
    name: str
    sql: str


def migrations(database: Database) -> list[Migration]:
    """All migrations in order; numbers run from 1 without a gap."""
    folder = resources.files("gateway.store") / "migrations" / database
    files = sorted((file for file in folder.iterdir() if re.fullmatch(r"\d{4}_\w+\.sql", file.name)), key=_name)
    found = [Migration(int(file.name[:4]), file.name, file.read_text(encoding="utf-8")) for file in files]
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise RuntimeError(f"migrations of {database} are not numbered 1, 2, 3, ...")
    return found


def _name(file: Traversable) -> str:
    return file.name


def statements(sql: str) -> list[str]:
    """Split a SQLite script into statements; bodies of triggers stay whole."""
    found, pending = [], ""
    for line in sql.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            found.append(pending.strip())
            pending = ""
    return found
