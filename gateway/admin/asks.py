"""What the admin API accepts: the members of each body and query, checked strictly. Types only.

Anything not named here is refused with its path. The services check what values mean.
"""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.services.accounts import DEFAULT_DAYS, DEFAULT_OVERLAP
from gateway.services.rights import SCOPES
from gateway.store.limits import NO_LIMITS, Limits, Positive
from gateway.store.operations import Kind
from gateway.store.usage import By

MOST = 200
"""Maximum rows per answer: a few milliseconds of the loop that also grants slots."""
FARTHEST = 10_000_000

Rows = Annotated[int, Meta(ge=1, le=MOST)]


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all requests; used directly for one without members."""


class Part(Ask, frozen=True, kw_only=True):
    """A part of a list: `limit` rows starting at `offset`."""

    limit: Rows = 50
    offset: Annotated[int, Meta(ge=0, le=FARTHEST)] = 0


class OfTenant(Part, frozen=True, kw_only=True):
    """Only of this tenant, by name or id."""

    tenant: str = ""


class OfUser(OfTenant, frozen=True, kw_only=True):
    """Only of this user of the tenant, by name or id."""

    user: str = ""


class NewTenant(Ask, frozen=True, kw_only=True):
    """As `fairgate tenants create`."""

    name: str
    models: tuple[str, ...] = ()
    all_models: bool = False
    share: float = 1.0
    cidrs: tuple[str, ...] = ()
    limits: Limits = NO_LIMITS


class NewShare(Ask, frozen=True, kw_only=True):
    """As `fairgate tenants share` and `fairgate users share`."""

    share: float


class NewUser(Ask, frozen=True, kw_only=True):
    """As `fairgate users create`."""

    name: str
    share: float = 1.0
    limits: Limits = NO_LIMITS


class NewKey(Ask, frozen=True, kw_only=True):
    """Like `fairgate keys create`; `expires_days` null: it never expires."""

    tenant: str
    user: str
    name: str = ""
    expires_days: int | None = DEFAULT_DAYS
    models: tuple[str, ...] = ()
    all_models: bool | None = None
    scopes: tuple[str, ...] = SCOPES
    cidrs: tuple[str, ...] = ()
    priority: str = "interactive"
    queue_timeout: float | None = None
    on_behalf: bool = False
    force_model: str = ""
    limits: Limits = NO_LIMITS


class Rotation(Ask, frozen=True, kw_only=True):
    """As `fairgate keys rotate`."""

    overlap_hours: float = DEFAULT_OVERLAP


class LimitChanges(Ask, frozen=True, kw_only=True):
    """Like `fairgate limits set`: given members change, null removes a limit. The members are those of `Limits`."""

    requests_per_minute: Positive | UnsetType | None = UNSET
    burst: Positive | UnsetType | None = UNSET
    tokens_per_minute: Positive | UnsetType | None = UNSET
    concurrent: Positive | UnsetType | None = UNSET
    tokens_per_day: Positive | UnsetType | None = UNSET
    tokens_per_month: Positive | UnsetType | None = UNSET
    tokens_total: Positive | UnsetType | None = UNSET
    gpu_seconds_per_day: Positive | UnsetType | None = UNSET
    gpu_seconds_per_month: Positive | UnsetType | None = UNSET
    gpu_seconds_total: Positive | UnsetType | None = UNSET


class NewValue(Ask, frozen=True, kw_only=True):
    """Of a setting: a number, or null."""

    value: Any


class NewReservation(Ask, frozen=True, kw_only=True):
    """As `fairgate reservations create`; `start`: ISO 8601 in UTC or with an offset, empty: now."""

    tenant: str
    user: str = ""
    models: tuple[str, ...] = ()
    start: str = ""
    minutes: float
    exclusive: bool = False
    note: Annotated[str, Meta(max_length=1000)] = ""
    approve: bool = False


class UsageAsk(Part, frozen=True, kw_only=True):
    """As `fairgate usage`; times are ISO 8601 in UTC, whole hours."""

    by: By = "tenant"
    since: str = ""
    until: str = ""
    tenant: str = ""


class AuditAsk(Ask, frozen=True, kw_only=True):
    """The latest rows that match; ids as in the rows, times of recording in ISO 8601, UTC."""

    limit: Rows = 50
    since: str = ""
    until: str = ""
    tenant: str = ""
    user: str = ""
    key: str = ""
    model: str = ""
    outcome: str = ""
    status: Annotated[int, Meta(ge=0, le=999)] = 0


class ActionsAsk(Ask, frozen=True, kw_only=True):
    """The latest actions; with `id`, which needs a `kind`, only those on that subject."""

    limit: Rows = 50
    kind: Kind | None = None
    id: str = ""
