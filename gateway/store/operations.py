"""Changes by operators while gateways run, actions of admins (U7), and state that survives a restart.

Owns the rows and their statements, for both databases. Must not know what a setting does or when a window begins. Times
are Unix microseconds.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

Kind = Literal["setting", "reservation", "tenant", "user", "key", "prompts", "audit"]
"""The latest row of a setting or reservation is in force; rows of the other kinds only record an action."""


class Operation(msgspec.Struct, frozen=True):
    """One change by an operator. `body` is JSON text; None means that the subject was removed."""

    seq: int
    kind: str
    id: str
    body: str | None
    at: int
    actor: str


class Reservation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A window as stored. It takes effect once it is `approved`. No models: all of them; no user: the whole tenant."""

    id: str
    tenant: str
    user: str | None = None
    models: tuple[str, ...] = ()
    starts_at: int
    ends_at: int
    mode: Literal["exclusive", "preferred"] = "preferred"
    state: Literal["requested", "approved", "cancelled"] = "requested"
    note: str = ""


class SavedUsage(msgspec.Struct, frozen=True):
    """The fair-use accounts of one scheduler (`writer`): `scheduler.model.Saved` as JSON."""

    writer: str
    body: str
    at: int


_COLUMNS = "seq, kind, id, body, at, actor"
_CURRENT = (
    f"SELECT {_COLUMNS} FROM operations o WHERE kind = $1 AND body IS NOT NULL "  # noqa: S608 -- constants
    "AND seq = (SELECT max(seq) FROM operations WHERE kind = o.kind AND id = o.id) ORDER BY id"
)
_HISTORY = f"SELECT {_COLUMNS} FROM operations WHERE kind = $1 ORDER BY seq DESC LIMIT $2"  # noqa: S608 -- constants
_ACTIONS = f"SELECT {_COLUMNS} FROM operations ORDER BY seq DESC LIMIT $1"  # noqa: S608 -- constants
_ABOUT = f"SELECT {_COLUMNS} FROM operations WHERE kind = $1 AND id = $2 ORDER BY seq DESC LIMIT $3"  # noqa: S608 -- constants
OPERATE = "INSERT INTO operations (kind, id, body, at, actor) VALUES ($1, $2, $3, $4, $5)"
_SAVE = (
    "INSERT INTO saved_usage (writer, body, at) VALUES ($1, $2, $3) "
    "ON CONFLICT (writer) DO UPDATE SET body = excluded.body, at = excluded.at"
)

_SAVED = "SELECT writer, body, at FROM saved_usage ORDER BY CASE WHEN writer = $1 THEN 0 ELSE 1 END, at DESC LIMIT 1"


class OperationsSql:
    """The part of `SqlStore` that keeps operations and saved usage."""

    async def _fetch(self, sql: str, *values: Any) -> Sequence[Any]:
        raise NotImplementedError

    async def _execute(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        raise NotImplementedError

    async def operate(self, kind: Kind, subject: str, body: str | None, at: int, actor: str) -> None:
        """Append a change."""
        await self._execute(OPERATE, [(kind, subject, body, at, actor)])

    async def operations(self, kind: Kind) -> list[Operation]:
        """What is in force, by id."""
        return [_operation(row) for row in await self._fetch(_CURRENT, kind)]

    async def operations_history(self, kind: Kind | None, count: int) -> list[Operation]:
        """The latest `count` changes (None: of all kinds), oldest first."""
        rows = await (self._fetch(_ACTIONS, count) if kind is None else self._fetch(_HISTORY, kind, count))
        return [_operation(row) for row in reversed(rows)]

    async def operations_about(self, kind: Kind, subject: str, count: int) -> list[Operation]:
        """The latest `count` changes of one subject, oldest first."""
        return [_operation(row) for row in reversed(await self._fetch(_ABOUT, kind, subject, count))]

    async def operations_version(self) -> int:
        """Rises with every change."""
        rows = await self._fetch("SELECT coalesce(max(seq), 0) AS version FROM operations")
        return int(rows[0]["version"])

    async def save_usage(self, saved: SavedUsage, oldest: int) -> None:
        """See `Store`."""
        await self._execute(_SAVE, [(saved.writer, saved.body, saved.at)])
        await self._execute("DELETE FROM saved_usage WHERE at < $1", [(oldest,)])

    async def saved_usage(self, writer: str) -> SavedUsage | None:
        """See `Store`."""
        rows = await self._fetch(_SAVED, writer)
        return SavedUsage(rows[0]["writer"], rows[0]["body"], int(rows[0]["at"])) if rows else None


def _operation(row: Any) -> Operation:
    return Operation(int(row["seq"]), row["kind"], row["id"], row["body"], int(row["at"]), row["actor"])
