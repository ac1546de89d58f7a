"""What the gateway keeps, and the protocol that every database form implements.

Owns the row types and the store's errors; must not know HTTP, requests in flight or any one database.

Times are UTC, integer microseconds since the Unix epoch. Ids are opaque text and never reused, so rows of the audit
trail may name what was disabled long ago (K6). Every method may raise `StoreError`: the caller decides what that
denies.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from gateway.store.limits import NO_LIMITS, Claim, LedgerRow, Limits, Standing
from gateway.store.operations import Kind, Operation, SavedUsage
from gateway.store.prompts import Prompt
from gateway.store.usage import UsageQuery, UsageRow

AuditRow = tuple[str | int | float | bool | bytes | None, ...]

AUDIT_COLUMNS = (
    "id",
    "started_at",
    "tenant",
    "user",
    "key",
    "ip",
    "dialect",
    "route",
    "method",
    "model_asked",
    "model_served",
    "backend",
    "status",
    "outcome",
    "error",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "usage_estimated",
    "queue_us",
    "first_byte_us",
    "total_us",
    "bytes_in",
    "bytes_out",
    "rank",
    "queue_len",
    "usage_before",
    "slot_us",
)
"""What an audit row says of a request, in order (U1); `services.record.AuditRecord` has exactly these fields."""

CHAIN_COLUMNS = ("writer", "seq", "recorded_at", "hash")
"""What makes the rows of a writer a chain (U4): `seq` counts up from 1, `recorded_at` never decreases, `hash` covers
the row and the hash before it."""

STORED_COLUMNS = AUDIT_COLUMNS + CHAIN_COLUMNS
"""An audit row as it is stored and read."""


CHAINS_AT_ONCE = 32
"""Keys that one read brings at most."""


class Page(msgspec.Struct, frozen=True):
    """A part of a list: `count` rows after the first `skip`."""

    count: int = 1 << 62
    skip: int = 0


ALL = Page()


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows of the trail: the latest `count` that match. Times are those of recording, Unix microseconds, `until`
    is outside; empty texts and a status of 0 mean all. `model` is the one that served."""

    count: int
    since: int = 0
    until: int = (1 << 63) - 1
    tenant: str = ""
    user: str = ""
    key: str = ""
    model: str = ""
    outcome: str = ""
    status: int = 0


class StoreError(Exception):
    """The database could not do what was asked; the cause is chained, its text is for logs only."""


class Conflict(StoreError):
    """A row with that name exists already, or it names a row that does not exist."""


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """The outermost owner (K1). `models` and `allow_all_models` are a ceiling over all its keys (K8)."""

    id: str
    name: str
    created_at: int
    disabled_at: int | None = None
    share: float = 1.0
    allow_all_models: bool = False
    models: tuple[str, ...] = ()
    cidrs: tuple[str, ...] = ()
    limits: Limits = NO_LIMITS


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Who is scheduled and billed. `name` is unique within its tenant."""

    id: str
    tenant: str
    name: str
    created_at: int
    disabled_at: int | None = None
    share: float = 1.0
    limits: Limits = NO_LIMITS


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One credential. `hash` is the Argon2id PHC string of the secret; the secret itself is never stored (K2).

    `allow_all_models` is tri-state: True = all that the tenant may, False = `models` only, None = `models` when it
    names any, else what the tenant may (K8). `queue_timeout` is in seconds; None = the gateway's. What it asks is kept
    for `prompt_days`; 0 = it is not (U5).
    """

    id: str
    user: str
    name: str
    hash: str
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    last_used_at: int | None = None
    allow_all_models: bool | None = None
    models: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    cidrs: tuple[str, ...] = ()
    priority: str = "interactive"
    queue_timeout: float | None = None
    on_behalf: bool = False
    force_model: str = ""
    limits: Limits = NO_LIMITS
    prompt_days: int = 0
    disabled_at: int | None = None


class Chain(msgspec.Struct, frozen=True):
    """A key with all it inherits from, read in one snapshot."""

    tenant: Tenant
    user: User
    key: Key


class Change(msgspec.Struct, frozen=True):
    """A row that was updated or deleted: whatever was derived from it is stale. Insertions are not changes."""

    kind: Literal["tenant", "user", "key"]
    id: str


class Changes(msgspec.Struct, frozen=True):
    """What changed up to `version`. `complete` is False when older entries were dropped: assume that all changed."""

    version: int
    items: tuple[Change, ...] = ()
    complete: bool = True


class Head(msgspec.Struct, frozen=True):
    """The last row of a writer's chain; `seq` 0 and no hash before the first."""

    writer: str
    seq: int = 0
    recorded_at: int = 0
    hash: bytes = b""


class Store(Protocol):
    """Identity and audit rows. Methods run off the event loop's thread or do not block it.

    Methods that change who may do what append an operation by `actor` in the same transaction (U7)."""

    actor: str
    """In whose name the store was opened."""

    def acting(self, actor: str) -> "Store":
        """The same open store for changes in another name; it ends with this one and is not closed."""
        ...

    async def close(self) -> None:
        """Finish what was begun and release the database. Later calls raise StoreError."""
        ...

    async def ping(self) -> None:
        """Raise StoreError unless the database answers."""
        ...

    async def add_tenant(self, tenant: Tenant) -> None:
        """Raises Conflict when the name is taken."""
        ...

    async def tenants(self, page: Page = ALL) -> list[Tenant]:
        """By name."""
        ...

    async def tenant(self, ref: str) -> Tenant | None:
        """By id or name."""
        ...

    async def disable_tenant(self, tenant_id: str, at: int | None) -> bool:
        """Set or (None) clear the disabling; False when there is no such tenant."""
        ...

    async def add_user(self, user: User) -> None:
        """Raises Conflict when the name is taken within the tenant, or there is no such tenant."""
        ...

    async def users(self, tenant: str | None = None, page: Page = ALL) -> list[User]:
        """By tenant and name."""
        ...

    async def user(self, tenant: str, ref: str) -> User | None:
        """By id or name within a tenant (its id)."""
        ...

    async def disable_user(self, user_id: str, at: int | None) -> bool: ...

    async def add_key(self, key: Key) -> None: ...

    async def keys(self, user: str | None = None, tenant: str | None = None, page: Page = ALL) -> list[Key]:
        """In the order in which they were made."""
        ...

    async def key(self, key_id: str) -> Key | None: ...

    async def labels(self, kind: Literal["tenant", "user", "key"], ids: Sequence[str]) -> dict[str, str]:
        """Id -> what a person calls it, with the names of its owners; unknown ids are left out."""
        ...

    async def chain(self, key_id: str) -> Chain | None:
        """The key and its owners, disabled and revoked ones included; None when the key is unknown."""
        ...

    async def chains(self, key_ids: Sequence[str]) -> dict[str, Chain]:
        """The same of up to CHAINS_AT_ONCE keys, by id; unknown ones are left out."""
        ...

    async def revoke_key(self, key_id: str, at: int) -> bool:
        """Revoke for good; an earlier revocation keeps its time. False when there is no such key."""
        ...

    async def disable_key(self, key_id: str, at: int | None) -> bool: ...

    async def expire_key(self, key_id: str, at: int) -> bool:
        """Have a key expire at `at`, never later than it would have. False when there is no such key."""
        ...

    async def set_limits(self, kind: Literal["tenant", "user", "key"], row_id: str, limits: Limits) -> bool:
        """Replace the limits of a row; False when there is none with that id."""
        ...

    async def set_prompt_days(self, key_id: str, days: int) -> bool:
        """Keep what a key asks for so many days, or (0) not; False when there is no such key."""
        ...

    async def add_prompts(self, prompts: Sequence[Prompt]) -> None:
        """All or none."""
        ...

    async def prompt(self, request: str, now: int) -> list[Prompt]:
        """Of requests with that id, oldest first."""
        ...

    async def prompts(self, key: str, count: int, now: int) -> list[Prompt]:
        """The latest of a key, or ("") of all, oldest first."""
        ...

    async def delete_prompts(self, *, request: str = "", key: str = "") -> int:
        """Those of a request, of a key, or of neither: all -> how many."""
        ...

    async def expire_prompts(self, now: int) -> int:
        """Delete what has expired -> how many."""
        ...

    async def claim(self, claims: list[Claim], now: int, lease: int) -> list[Standing]:
        """Lease parts of budgets: `limits.decide` for each claim, all in one transaction. `now` is Unix microseconds,
        `lease` a duration in microseconds."""
        ...

    async def budgets(self, scope: str) -> list[LedgerRow]:
        """The rows of one scope, by name."""
        ...

    async def forget_budgets(self, wall: float) -> int:
        """Delete the rows of windows that were over `limits.KEEP_WINDOW` before `wall` (Unix seconds) -> how many."""
        ...

    async def operate(self, kind: Kind, subject: str, body: str | None, at: int, actor: str) -> None:
        """Append an operator's change; `body` is JSON text, None removes what `subject` names."""
        ...

    async def operations(self, kind: Kind) -> list[Operation]:
        """The changes in force, by id."""
        ...

    async def operations_history(self, kind: Kind | None, count: int) -> list[Operation]:
        """The latest `count` changes (None: of all kinds), oldest first."""
        ...

    async def operations_about(self, kind: Kind, subject: str, count: int) -> list[Operation]:
        """The latest `count` changes of one subject, oldest first."""
        ...

    async def operations_version(self) -> int:
        """Rises with every operation."""
        ...

    async def save_usage(self, saved: SavedUsage, oldest: int) -> None:
        """Keep a scheduler's fair-use accounts; the earlier ones of that writer go, and all from before `oldest`."""
        ...

    async def saved_usage(self, writer: str) -> SavedUsage | None:
        """What this writer saved; if nothing, the latest of any: a new gateway knows who was heavy on another."""
        ...

    async def touch_keys(self, used: Mapping[str, int]) -> None:
        """Record key id -> time of last use; never moves one backwards. Not a change."""
        ...

    async def version(self) -> int:
        """The number of the latest change."""
        ...

    async def changes(self, since: int) -> Changes:
        """The changes after version `since`, in order."""
        ...

    async def wait_change(self, seconds: float) -> None:
        """Return when a change may have happened, after `seconds` at the latest."""
        ...

    @property
    def home(self) -> str:
        """What the names of local companions (the audit spool) are derived from."""
        ...

    async def add_audit(self, before: Head, after: Head, rows: Sequence[AuditRow]) -> bool:
        """Append rows (STORED_COLUMNS order) to a writer's chain, all or none, exactly once: the chain moves from
        `before` to `after`, and False means that it does not stand at `before` and nothing was done."""
        ...

    async def audit_head(self, writer: str) -> Head: ...

    async def audit_writers(self) -> list[str]:
        """Everyone who has rows or a head."""
        ...

    async def audit_chain(self, writer: str, after: int, count: int) -> list[AuditRow]:
        """Up to `count` rows of a writer with a `seq` above `after`, in order."""
        ...

    async def audit_page(self, after: tuple[int, str, int], until: int, count: int) -> list[AuditRow]:
        """Up to `count` rows recorded before `until`, in the order of (recorded_at, writer, seq), which is above
        `after`."""
        ...

    async def roll_up(self) -> int:
        """Add the audit rows that are due to the usage roll-up -> how many."""
        ...

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """A report over all audit rows ever stored, its groups in order of time, else the most tokens first. May take
        seconds."""
        ...

    async def audit_tail(self, count: int) -> list[AuditRow]:
        """The `count` latest rows, oldest first."""
        ...

    async def audit_find(self, query: AuditQuery) -> list[AuditRow]:
        """Those that match, oldest first. May take seconds, beside other work."""
        ...
