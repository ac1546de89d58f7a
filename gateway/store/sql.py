"""The store's statements, written once for both databases, on top of two primitives that each database supplies.

Statements use `$1`, `$2`, ... for values; identifiers and values never share a string. Tuples are stored as JSON. Must
not know a driver.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from gateway.store.base import (
    ALL,
    CHAINS_AT_ONCE,
    STORED_COLUMNS,
    AuditQuery,
    AuditRow,
    Chain,
    Change,
    Changes,
    Head,
    Key,
    Page,
    Tenant,
    User,
)
from gateway.store.ledger import BUDGETS, FORGET, FORGOTTEN_AT_ONCE, PAST, budget_of
from gateway.store.limits import LedgerRow, Limits, past
from gateway.store.operations import Kind, OperationsSql
from gateway.store.prompts import PromptsSql
from gateway.store.usage import UsageSql

Row = TypeVar("Row", bound=msgspec.Struct)
Form = TypeVar("Form", bound="SqlStore")
Value = str | int | float | bool | bytes | None

_COMPUTED = {"last_used_at"}
"""Fields that come from a join: they have a table of their own, so that using a key is not a change of the key."""


def _columns(kind: type[msgspec.Struct]) -> list[str]:
    return [name for name in kind.__struct_fields__ if name not in _COMPUTED]


def quoted(names: Sequence[str], table: str = "") -> str:
    """The column list with quotes: `user` and `key` are reserved words in SQL."""
    return ", ".join(f'{table}"{name}"' for name in names)


def insert(table: str, columns: Sequence[str]) -> str:
    """An INSERT of one row, with numbered values."""
    values = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    return f'INSERT INTO "{table}" ({quoted(columns)}) VALUES ({values})'  # noqa: S608 -- names are constants of ours


def encode(row: msgspec.Struct) -> list[Value]:
    """A row's values in the order of columns."""
    return [_flat(getattr(row, name)) for name in _columns(type(row))]


def _flat(value: Any) -> Value:
    return msgspec.json.encode(value).decode() if isinstance(value, (tuple, msgspec.Struct)) else value


def decode(kind: type[Row], values: Mapping[str, Any], prefix: str = "") -> Row:
    """The struct for a fetched row. JSON text becomes tuples; databases without booleans return 0 and 1."""
    fields = {f.name: f.type for f in msgspec.structs.fields(kind)}
    raw = {n: values[prefix + n] for n in fields if prefix + n in values.keys()}  # noqa: SIM118 -- not all rows iterate keys
    for name, of in fields.items():
        if of in (tuple[str, ...], Limits) and name in raw:
            raw[name] = msgspec.json.decode(raw[name])
    return msgspec.convert(raw, kind, strict=False)


_TENANTS = f"SELECT {quoted(_columns(Tenant))} FROM tenants"  # noqa: S608 -- constants
_USERS = f"SELECT {quoted(_columns(User))} FROM users"  # noqa: S608 -- constants
_KEYS = (
    f"SELECT {quoted(_columns(Key), 'k.')}, u.last_used_at FROM keys k "  # noqa: S608 -- constants
    'LEFT JOIN key_use u ON u."key" = k.id'
)


def _prefixed(kind: type[msgspec.Struct], table: str) -> str:
    return ", ".join(f'{table}."{name}" AS {table}_{name}' for name in _columns(kind))


_ANY_CHAIN = (
    f"SELECT {_prefixed(Tenant, 't')}, {_prefixed(User, 'u')}, {_prefixed(Key, 'k')} "  # noqa: S608 -- constants
    'FROM keys k JOIN users u ON u.id = k."user" JOIN tenants t ON t.id = u.tenant WHERE k.id '
)
_CHAIN = _ANY_CHAIN + "= $1"
_SOME = f"IN ({', '.join(f'${number + 1}' for number in range(CHAINS_AT_ONCE))})"
_CHAINS = f"{_ANY_CHAIN} {_SOME}"
_LABELS: dict[str, str] = {
    "tenant": f"SELECT id, name AS label FROM tenants WHERE id {_SOME}",  # noqa: S608 -- constants
    "user": "SELECT u.id, t.name || '/' || u.name AS label FROM users u "  # noqa: S608 -- constants
    f"JOIN tenants t ON t.id = u.tenant WHERE u.id {_SOME}",
    "key": "SELECT k.id, t.name || '/' || u.name || '/' || CASE k.name WHEN '' THEN k.id ELSE k.name END AS label "  # noqa: S608 -- constants
    f'FROM keys k JOIN users u ON u.id = k."user" JOIN tenants t ON t.id = u.tenant WHERE k.id {_SOME}',
}
_EXPIRE = (
    # A comparison with null is false
    "UPDATE keys SET expires_at = CASE WHEN expires_at < $2 THEN expires_at ELSE $2 END WHERE id = $1"
)
_TOUCH = (
    'INSERT INTO key_use ("key", last_used_at) SELECT id, CAST($2 AS BIGINT) FROM keys WHERE id = $1 '
    'ON CONFLICT ("key") DO UPDATE '
    "SET last_used_at = excluded.last_used_at WHERE excluded.last_used_at > key_use.last_used_at"
)
_AUDIT = f"SELECT {quoted(STORED_COLUMNS)} FROM audit"  # noqa: S608 -- constants
_TAIL = f"{_AUDIT} ORDER BY recorded_at DESC, writer DESC, seq DESC LIMIT $1"
_PAGE = (
    f"{_AUDIT} WHERE (recorded_at, writer, seq) > ($1, $2, $3) AND recorded_at < $4 "
    "ORDER BY recorded_at, writer, seq LIMIT $5"
)
_WRITERS = """
    WITH RECURSIVE named (writer) AS (
        SELECT min(writer) FROM audit
        UNION ALL
        SELECT (SELECT min(writer) FROM audit WHERE audit.writer > named.writer) FROM named
        WHERE named.writer IS NOT NULL
    )
    SELECT writer FROM named WHERE writer IS NOT NULL UNION SELECT writer FROM audit_heads ORDER BY writer
"""
"""Jumps from one writer to the next in the index: one look-up per writer instead of a scan of the trail."""
_HEAD = "SELECT writer, seq, recorded_at, hash FROM audit_heads WHERE writer = $1"
ADD_AUDIT = insert("audit", STORED_COLUMNS)
NEW_HEAD = "INSERT INTO audit_heads (writer, seq, recorded_at, hash) VALUES ($1, 0, 0, $2) ON CONFLICT DO NOTHING"
MOVE_HEAD = "UPDATE audit_heads SET seq = $3, recorded_at = $4, hash = $5 WHERE writer = $1 AND seq = $2"


_SET_LIMITS: dict[str, str] = {
    kind: f"UPDATE {kind}s SET limits = $2 WHERE id = $1"  # noqa: S608 -- constants
    for kind in ("tenant", "user", "key")
}


class SqlStore(OperationsSql, PromptsSql, UsageSql):
    """The methods of `Store` that are plain SQL. A database adds the primitives, `wait_change` and `add_audit`."""

    actor = "gateway"

    def acting(self: Form, actor: str) -> Form:
        """See `Store`. A separate view, so that concurrent changes under several names are never mixed up."""
        view = copy.copy(self)
        view.actor = actor
        return view

    async def _fetch(self, sql: str, *values: Value) -> Sequence[Any]:
        """Rows that support `row["column"]` and `row.keys()`."""
        raise NotImplementedError

    async def _execute(self, sql: str, rows: Sequence[Sequence[Value]], note: Sequence[Value] = ()) -> int:
        """Run one statement for each row of values in one transaction -> number of rows changed. `note` are the values
        of OPERATE, which runs in the same transaction if any row was changed."""
        raise NotImplementedError

    async def _act(self, sql: str, values: Sequence[Value], kind: Kind, did: str, **more: Any) -> bool:
        """Change one row, whose id is the first of `values`, and record who did it (U7)."""
        body = msgspec.json.encode({"did": did, **more}).decode()
        return bool(await self._execute(sql, [values], (kind, values[0], body, time.time_ns() // 1000, self.actor)))

    async def ping(self) -> None:
        await self._fetch("SELECT 1 AS one")

    async def _add(self, kind: Literal["tenant", "user", "key"], row: msgspec.Struct) -> None:
        what = {name: getattr(row, name) for name in _columns(type(row)) if name not in ("id", "hash")}
        await self._act(insert(f"{kind}s", _columns(type(row))), encode(row), kind, "create", **what)

    async def add_tenant(self, tenant: Tenant) -> None:
        await self._add("tenant", tenant)

    async def tenants(self, page: Page = ALL) -> list[Tenant]:
        return [decode(Tenant, row) for row in await self._page(f"{_TENANTS} ORDER BY name", [], page)]

    async def _page(self, sql: str, values: Sequence[Value], page: Page) -> Sequence[Any]:
        """The LIMIT and OFFSET after the ORDER BY of `sql`."""
        n = len(values)
        return await self._fetch(f"{sql} LIMIT ${n + 1} OFFSET ${n + 2}", *values, page.count, page.skip)

    async def tenant(self, ref: str) -> Tenant | None:
        rows = await self._fetch(f"{_TENANTS} WHERE id = $1 OR name = $1 ORDER BY id <> $1", ref)
        return decode(Tenant, rows[0]) if rows else None

    async def disable_tenant(self, tenant_id: str, at: int | None) -> bool:
        return await self._able("tenant", tenant_id, at)

    async def _able(self, kind: Literal["tenant", "user", "key"], row_id: str, at: int | None) -> bool:
        sql = f"UPDATE {kind}s SET disabled_at = $2 WHERE id = $1"  # noqa: S608 -- constants
        return await self._act(sql, (row_id, at), kind, "enable" if at is None else "disable")

    async def add_user(self, user: User) -> None:
        await self._add("user", user)

    async def users(self, tenant: str | None = None, page: Page = ALL) -> list[User]:
        if tenant is None:
            rows = await self._page(f"{_USERS} ORDER BY tenant, name", [], page)
        else:
            rows = await self._page(f"{_USERS} WHERE tenant = $1 ORDER BY name", [tenant], page)
        return [decode(User, row) for row in rows]

    async def user(self, tenant: str, ref: str) -> User | None:
        rows = await self._fetch(
            f"{_USERS} WHERE tenant = $1 AND (id = $2 OR name = $2) ORDER BY id <> $2", tenant, ref
        )
        return decode(User, rows[0]) if rows else None

    async def disable_user(self, user_id: str, at: int | None) -> bool:
        return await self._able("user", user_id, at)

    async def add_key(self, key: Key) -> None:
        await self._add("key", key)

    async def keys(self, user: str | None = None, tenant: str | None = None, page: Page = ALL) -> list[Key]:
        where, values = "", []
        if user is not None:
            where, values = 'WHERE k."user" = $1', [user]
        elif tenant is not None:
            where, values = 'WHERE k."user" IN (SELECT id FROM users WHERE tenant = $1)', [tenant]
        rows = await self._page(f"{_KEYS} {where} ORDER BY k.created_at, k.id", values, page)
        return [decode(Key, row) for row in rows]

    async def key(self, key_id: str) -> Key | None:
        rows = await self._fetch(f"{_KEYS} WHERE k.id = $1", key_id)
        return decode(Key, rows[0]) if rows else None

    async def labels(self, kind: Literal["tenant", "user", "key"], ids: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for start in range(0, len(ids), CHAINS_AT_ONCE):
            some = _padded(ids[start : start + CHAINS_AT_ONCE])
            found.update((row["id"], row["label"]) for row in await self._fetch(_LABELS[kind], *some))
        return found

    async def chain(self, key_id: str) -> Chain | None:
        return (await self.chains([key_id])).get(key_id)

    async def chains(self, key_ids: Sequence[str]) -> dict[str, Chain]:
        if len(key_ids) == 1:
            rows = await self._fetch(_CHAIN, key_ids[0])
        else:
            rows = await self._fetch(_CHAINS, *_padded(key_ids))
        chains = (Chain(decode(Tenant, row, "t_"), decode(User, row, "u_"), decode(Key, row, "k_")) for row in rows)
        return {chain.key.id: chain for chain in chains}

    async def revoke_key(self, key_id: str, at: int) -> bool:
        sql = "UPDATE keys SET revoked_at = coalesce(revoked_at, $2) WHERE id = $1"
        return await self._act(sql, (key_id, at), "key", "revoke")

    async def disable_key(self, key_id: str, at: int | None) -> bool:
        return await self._able("key", key_id, at)

    async def expire_key(self, key_id: str, at: int) -> bool:
        return await self._act(_EXPIRE, (key_id, at), "key", "expire", at=at)

    async def set_limits(self, kind: Literal["tenant", "user", "key"], row_id: str, limits: Limits) -> bool:
        return await self._act(_SET_LIMITS[kind], (row_id, _flat(limits)), kind, "limit", limits=limits)

    async def set_share(self, kind: Literal["tenant", "user"], row_id: str, share: float) -> bool:
        sql = f"UPDATE {kind}s SET share = $2 WHERE id = $1"  # noqa: S608 -- constants
        return await self._act(sql, (row_id, share), kind, "share", share=share)

    async def set_prompt_days(self, key_id: str, days: int) -> bool:
        sql = "UPDATE keys SET prompt_days = $2 WHERE id = $1"
        did = "keep prompts" if days else "keep no prompts"
        return await self._act(sql, (key_id, days), "key", did, days=days)

    async def budgets(self, scope: str) -> list[LedgerRow]:
        return [budget_of(row) for row in await self._fetch(f"{BUDGETS} WHERE scope = $1 ORDER BY budget", scope)]

    async def forget_budgets(self, wall: float) -> int:
        """Delete in steps until none is left; a step that deletes nothing may have collided with another gateway's."""
        gone = 0
        for ends in past(wall):
            while await self._fetch(PAST, *ends, 1):
                gone += await self._execute(FORGET, [(*ends, FORGOTTEN_AT_ONCE)])
        return gone

    async def touch_keys(self, used: Mapping[str, int]) -> None:
        """In a fixed order, so that two gateways never deadlock. Missing keys are skipped."""
        await self._execute(_TOUCH, sorted(used.items()))

    async def version(self) -> int:
        rows = await self._fetch("SELECT coalesce(max(version), 0) AS version FROM changes")
        return int(rows[0]["version"])

    async def changes(self, since: int) -> Changes:
        sql = "SELECT version, kind, id FROM changes WHERE version > $1 ORDER BY version"
        rows = await self._fetch(sql, since)
        if not rows:
            version = await self.version()
            if version < since:  # the database was restored to an earlier state
                return Changes(version, complete=False)
            return Changes(since)  # not `version`: more may have changed between the two reads
        items = tuple(Change(row["kind"], row["id"]) for row in rows)
        return Changes(int(rows[-1]["version"]), items, complete=int(rows[0]["version"]) == since + 1)

    async def audit_head(self, writer: str) -> Head:
        rows = await self._fetch(_HEAD, writer)
        return _head(rows[0]) if rows else Head(writer)

    async def audit_writers(self) -> list[str]:
        return [row["writer"] for row in await self._fetch(_WRITERS)]

    async def audit_chain(self, writer: str, after: int, count: int) -> list[AuditRow]:
        sql = f"{_AUDIT} WHERE writer = $1 AND seq > $2 ORDER BY seq, recorded_at LIMIT $3"
        return [tuple(row) for row in await self._fetch(sql, writer, after, count)]

    async def audit_page(self, after: tuple[int, str, int], until: int, count: int) -> list[AuditRow]:
        return [tuple(row) for row in await self._fetch(_PAGE, *after, until, count)]

    async def audit_tail(self, count: int) -> list[AuditRow]:
        return [tuple(row) for row in reversed(await self._fetch(_TAIL, count))]

    async def audit_find(self, query: AuditQuery) -> list[AuditRow]:
        sql, values = _matching(query)
        return [tuple(row) for row in reversed(await self._report(sql, values))]


def _padded(ids: Sequence[str]) -> list[str]:
    """Pad to the maximum of one read, so that the same prepared statement serves any number of ids."""
    return [*ids, *[ids[0]] * (CHAINS_AT_ONCE - len(ids))]


_MATCHED = {
    "tenant": "tenant",
    "user": "user",
    "key": "key",
    "model": "model_served",
    "outcome": "outcome",
    "status": "status",
}
"""Field of a query -> column of the trail."""


def _matching(query: AuditQuery) -> tuple[str, list[Value]]:
    """SQL and its values; everything that a query asks for is passed as a value."""
    values: list[Value] = [query.since, query.until]
    where = "recorded_at >= $1 AND recorded_at < $2"
    for name, column in _MATCHED.items():
        if wanted := getattr(query, name):
            values.append(wanted)
            where += f' AND "{column}" = ${len(values)}'
    values.append(query.count)
    order = "ORDER BY recorded_at DESC, writer DESC, seq DESC"
    return f"{_AUDIT} WHERE {where} {order} LIMIT ${len(values)}", values


def _head(row: Mapping[str, Any]) -> Head:
    return Head(row["writer"], row["seq"], row["recorded_at"], row["hash"])
