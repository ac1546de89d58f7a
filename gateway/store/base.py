"""What the gateway stores, and the protocol that every database implements.

Owns the row types and the store's errors; must not know HTTP, requests in flight or any particular database.

Times are UTC, integer microseconds since the Unix epoch. Ids are opaque text and never reused, so audit rows may name
what was disabled long ago (K6). Every method may raise `StoreError`; the caller decides what that denies.
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
"""The columns of an audit row that describe a request, in order (U1); `services.record.AuditRecord` has exactly these
fields."""

CHAIN_COLUMNS = ("writer", "seq", "recorded_at", "hash")
"""The columns that link a writer's rows into a chain (U4): `seq` counts up from 1, `recorded_at` never decreases,
`hash` covers the row and the previous hash."""

STORED_COLUMNS = AUDIT_COLUMNS + CHAIN_COLUMNS
"""The columns of an audit row as stored and read."""


CHAINS_AT_ONCE = 32
"""Maximum keys per read."""


class Page(msgspec.Struct, frozen=True):
    """A part of a list: `count` rows after skipping `skip`."""

    count: int = 1 << 62
    skip: int = 0


ALL = Page()


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Selects audit rows: the latest `count` that match. Times are those of recording in Unix microseconds, `until` is
    exclusive; empty strings and a status of 0 match everything. `model` is the one that served the request."""

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
    """The database could not do what was asked. The cause is chained; its text is for logs only."""


class Conflict(StoreError):
    """A row with that name exists already, or the row refers to one that does not exist."""


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """The outermost owner (K1). `models` and `allow_all_models` limit all its keys (K8)."""

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
    """The party that is scheduled and billed. `name` is unique within its tenant."""

    id: str
    tenant: str
    name: str
    created_at: int
    disabled_at: int | None = None
    share: float = 1.0
    limits: Limits = NO_LIMITS


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One credential. `hash` is the Argon2id PHC string of the secret; the secret itself is never stored (K2).

    `allow_all_models` has three values: True = all that the tenant may use, False = `models` only, None = `models` if
    it is not empty, else what the tenant may use (K8). `queue_timeout` is in seconds; None = the gateway's. The key's
    prompts are kept for `prompt_days`; 0 = not kept (U5).
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
    """A key with everything it inherits from, read in one snapshot."""

    tenant: Tenant
    user: User
    key: Key


class Change(msgspec.Struct, frozen=True):
    """A row that was updated or deleted: anything derived from it is stale. Insertions are not changes."""

    kind: Literal["tenant", "user", "key"]
    id: str


class Changes(msgspec.Struct, frozen=True):
    """What changed up to `version`. `complete` is False if older entries were dropped: assume that everything
    changed."""

    version: int
    items: tuple[Change, ...] = ()
    complete: bool = True


class Head(msgspec.Struct, frozen=True):
    """The last row of a writer's chain; `seq` 0 and an empty hash before the first row."""

    writer: str
    seq: int = 0
    recorded_at: int = 0
    hash: bytes = b""


class Store(Protocol):
    """Identity and audit rows. Methods run in another thread, or do not block the event loop.

    Methods that change rights append an operation by `actor` in the same transaction (U7).
    """

    actor: str
    """The name under which changes are recorded."""

    def acting(self, actor: str) -> "Store":
        """The same open store, recording changes under another name; it is closed with this one and must not be closed
        itself."""
        ...

    async def close(self) -> None:
        """Finish running work and release the database. Later calls raise StoreError."""
        ...

    async def ping(self) -> None:
        """Raise StoreError unless the database answers."""
        ...

    async def add_tenant(self, tenant: Tenant) -> None:
        """Raises Conflict if the name is taken."""
        ...

    async def tenants(self, page: Page = ALL) -> list[Tenant]:
        """All tenants, ordered by name."""
        ...

    async def tenant(self, ref: str) -> Tenant | None:
        """A tenant by id or name."""
        ...

    async def disable_tenant(self, tenant_id: str, at: int | None) -> bool:
        """Disable the tenant, or (None) enable it; False if there is no such tenant."""
        ...

    async def add_user(self, user: User) -> None:
        """Raises Conflict if the name is taken within the tenant, or if there is no such tenant."""
        ...

    async def users(self, tenant: str | None = None, page: Page = ALL) -> list[User]:
        """Users, ordered by tenant and name."""
        ...

    async def user(self, tenant: str, ref: str) -> User | None:
        """A user by id or name, within a tenant (its id)."""
        ...

    async def disable_user(self, user_id: str, at: int | None) -> bool: ...

    async def add_key(self, key: Key) -> None: ...

    async def keys(self, user: str | None = None, tenant: str | None = None, page: Page = ALL) -> list[Key]:
        """Keys in order of creation."""
        ...

    async def key(self, key_id: str) -> Key | None: ...

    async def labels(self, kind: Literal["tenant", "user", "key"], ids: Sequence[str]) -> dict[str, str]:
        """Id -> its name, preceded by the names of its owners; unknown ids are left out."""
        ...

    async def chain(self, key_id: str) -> Chain | None:
        """The key and its owners, including disabled and revoked ones; None if the key is unknown."""
        ...

    async def chains(self, key_ids: Sequence[str]) -> dict[str, Chain]:
        """The same for up to CHAINS_AT_ONCE keys, by id; unknown ones are left out."""
        ...

    async def revoke_key(self, key_id: str, at: int) -> bool:
        """Revoke a key for good; an earlier revocation keeps its time. False if there is no such key."""
        ...

    async def disable_key(self, key_id: str, at: int | None) -> bool: ...

    async def expire_key(self, key_id: str, at: int) -> bool:
        """Make a key expire at `at`, unless it expires earlier. False if there is no such key."""
        ...

    async def set_limits(self, kind: Literal["tenant", "user", "key"], row_id: str, limits: Limits) -> bool:
        """Replace the limits of a row; False if there is none with that id."""
        ...

    async def set_share(self, kind: Literal["tenant", "user"], row_id: str, share: float) -> bool:
        """Change the weight of a row in fair use; False when there is none with that id."""
        ...

    async def set_prompt_days(self, key_id: str, days: int) -> bool:
        """Keep the key's prompts for so many days, or (0) not; False if there is no such key."""
        ...

    async def add_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Add all of them or none."""
        ...

    async def prompt(self, request: str, now: int) -> list[Prompt]:
        """Prompts of requests with that id, oldest first."""
        ...

    async def prompts(self, key: str, count: int, now: int) -> list[Prompt]:
        """The latest prompts of a key, or ("") of all keys, oldest first."""
        ...

    async def delete_prompts(self, *, request: str = "", key: str = "") -> int:
        """Delete the prompts of a request or of a key, or all prompts -> how many."""
        ...

    async def expire_prompts(self, now: int) -> int:
        """Delete expired prompts -> how many."""
        ...

    async def claim(self, claims: list[Claim], now: int, lease: int) -> list[Standing]:
        """Lease parts of budgets: apply `limits.decide` to each claim, all in one transaction. `now` is in Unix
        microseconds, `lease` is a duration in microseconds."""
        ...

    async def budgets(self, scope: str) -> list[LedgerRow]:
        """The budget rows of one scope, ordered by name."""
        ...

    async def forget_budgets(self, wall: float) -> int:
        """Delete the rows of windows that ended more than `limits.KEEP_WINDOW` before `wall` (Unix seconds) -> how
        many."""
        ...

    async def operate(self, kind: Kind, subject: str, body: str | None, at: int, actor: str) -> None:
        """Append an operator's change; `body` is JSON text, None removes the subject."""
        ...

    async def operations(self, kind: Kind) -> list[Operation]:
        """The changes in force, ordered by id."""
        ...

    async def operations_history(self, kind: Kind | None, count: int) -> list[Operation]:
        """The latest `count` changes (None: of all kinds), oldest first."""
        ...

    async def operations_about(self, kind: Kind, subject: str, count: int) -> list[Operation]:
        """The latest `count` changes of one subject, oldest first."""
        ...

    async def operations_version(self) -> int:
        """Increases with every operation."""
        ...

    async def save_usage(self, saved: SavedUsage, oldest: int) -> None:
        """Save a scheduler's fair-use accounts, replacing the earlier ones of that writer and all from before
        `oldest`."""
        ...

    async def saved_usage(self, writer: str) -> SavedUsage | None:
        """What this writer saved; otherwise the latest accounts of any writer, so that a new gateway knows who used
        much on others."""
        ...

    async def touch_keys(self, used: Mapping[str, int]) -> None:
        """Record key id -> time of last use; never moves a time backwards. Not a change."""
        ...

    async def version(self) -> int:
        """The number of the latest change."""
        ...

    async def changes(self, since: int) -> Changes:
        """The changes after version `since`, in order."""
        ...

    async def wait_change(self, seconds: float) -> None:
        """Return when something may have changed, after `seconds` at the latest."""
        ...

    @property
    def home(self) -> str:
        """A path from which those of local files (the audit spool) are derived."""
        ...

    async def add_audit(self, before: Head, after: Head, rows: Sequence[AuditRow]) -> bool:
        """Append rows (in the order of STORED_COLUMNS) to a writer's chain: all or none, and exactly once. The chain
        moves from `before` to `after`. False means that its head is not `before`, and that nothing was done."""
        ...

    async def audit_head(self, writer: str) -> Head: ...

    async def audit_writers(self) -> list[str]:
        """All writers that have rows or a head."""
        ...

    async def audit_chain(self, writer: str, after: int, count: int) -> list[AuditRow]:
        """Up to `count` rows of a writer with a `seq` above `after`, in order."""
        ...

    async def audit_page(self, after: tuple[int, str, int], until: int, count: int) -> list[AuditRow]:
        """Up to `count` rows recorded before `until`, in the order of (recorded_at, writer, seq), starting after
        `after`."""
        ...

    async def roll_up(self) -> int:
        """Add the audit rows that are due to the usage roll-up -> how many."""
        ...

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """A report over all audit rows ever stored; groups are ordered by time, or else by tokens, most first. May take
        seconds."""
        ...

    async def audit_tail(self, count: int) -> list[AuditRow]:
        """The `count` latest rows, oldest first."""
        ...

    async def audit_find(self, query: AuditQuery) -> list[AuditRow]:
        """The matching rows, oldest first. May take seconds, in parallel with other work."""
        ...
