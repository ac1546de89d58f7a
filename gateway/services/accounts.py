"""Making and finding tenants, users and keys: what the command line and the admin API share.

Owns the rules for names, models and lifetimes; must not know how they are asked for or shown. Functions take an open
store and raise `AccountError` with a sentence for a person, or StoreError.
"""

import asyncio
import ipaddress
import re
import time
from typing import Any

import msgspec

from gateway.config import Identity
from gateway.services.keyfmt import mint, random_text
from gateway.services.proofs import hasher
from gateway.services.rights import SCOPES
from gateway.shape import nearest
from gateway.store.base import Conflict, Key, Page, Store, Tenant, User
from gateway.store.limits import NO_LIMITS, Limits

DAY = 86_400_000_000
"""Microseconds."""
HOUR = 3_600_000_000
"""Microseconds."""
DEFAULT_DAYS = 90
DEFAULT_OVERLAP = 24.0
LONGEST_OVERLAP = 24.0 * 90
"""Hours in which a rotated key and its successor both work."""
LONGEST_DAYS = 365
PRIORITIES = ("interactive", "batch", "system")
ADMIN_SCOPES = ("admin:read", "admin:write")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
_LONGEST_MODEL = 256
_SOME = Page(count=200)
"""Names that a wrong one is compared with: of ten thousand it would hold a gateway's loop for half a second."""
_MOST_ACTIONS = 10_000
"""Of one key; older ones are not looked for."""


class AccountError(Exception):
    """What was asked for cannot be; the message says why."""


class NoSuch(AccountError):
    """It names something that does not exist."""


class Taken(AccountError):
    """What is there already stands against it."""


class KeyTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a new key may do. `days` None = it never expires (K6); `models`, `allow_all_models` as in `store.Key`."""

    name: str = ""
    days: int | None = DEFAULT_DAYS
    models: tuple[str, ...] = ()
    allow_all_models: bool | None = None
    scopes: tuple[str, ...] = SCOPES
    cidrs: tuple[str, ...] = ()
    priority: str = "interactive"
    queue_timeout: float | None = None
    on_behalf: bool = False
    force_model: str = ""
    limits: Limits = NO_LIMITS


def now_us() -> int:
    """Unix microseconds."""
    return time.time_ns() // 1000


async def create_tenant(
    store: Store,
    name: str,
    *,
    models: tuple[str, ...] = (),
    allow_all_models: bool = False,
    share: float = 1.0,
    cidrs: tuple[str, ...] = (),
    limits: Limits = NO_LIMITS,
) -> Tenant:
    """A new tenant; without models it may use none (K8)."""
    _check_name(name)
    check_models(models)
    if allow_all_models and models:
        raise AccountError("name models or allow all of them, not both")
    tenant = Tenant(
        id=random_text(12),
        name=name,
        created_at=now_us(),
        share=_checked_share(share),
        allow_all_models=allow_all_models,
        models=models,
        cidrs=_checked_cidrs(cidrs),
        limits=check_limits(limits),
    )
    try:
        await store.add_tenant(tenant)
    except Conflict as err:
        raise Taken(f"a tenant named {name!r} exists already") from err
    return tenant


async def create_user(
    store: Store, tenant: Tenant, name: str, *, share: float = 1.0, limits: Limits = NO_LIMITS
) -> User:
    """A new user of a tenant."""
    _check_name(name)
    user = User(
        id=random_text(12),
        tenant=tenant.id,
        name=name,
        created_at=now_us(),
        share=_checked_share(share),
        limits=check_limits(limits),
    )
    try:
        await store.add_user(user)
    except Conflict as err:
        raise Taken(f"tenant {tenant.name!r} has a user named {name!r} already") from err
    return user


async def create_key(store: Store, user: User, terms: KeyTerms, identity: Identity) -> tuple[Key, str]:
    """A new key and its text, which cannot be had again."""
    check_terms(terms)
    minted, now = mint(), now_us()
    key = Key(
        id=minted.id,
        user=user.id,
        name=terms.name,
        hash=await _hashed(minted.secret, identity),
        created_at=now,
        expires_at=None if terms.days is None else now + terms.days * DAY,
        allow_all_models=terms.allow_all_models,
        models=terms.models,
        scopes=terms.scopes,
        cidrs=_checked_cidrs(terms.cidrs),
        priority=terms.priority,
        queue_timeout=terms.queue_timeout,
        on_behalf=terms.on_behalf,
        force_model=terms.force_model,
        limits=check_limits(terms.limits),
    )
    await store.add_key(key)
    return key, minted.token


async def _hashed(secret: bytes, identity: Identity) -> str:
    """Argon2id takes 20 ms: in a thread, since a gateway's loop may wait for it."""
    return await asyncio.to_thread(hasher(identity).hash, secret)


async def rotate_key(store: Store, key_id: str, overlap: float, identity: Identity) -> tuple[Key, Key, str]:
    """A new key with the terms of an old one, which expires after `overlap` hours (K6) -> (old, new, its text).

    The new one lives as long as the old one did when it was made. The old one is touched last: a failure before that
    leaves it as it was, and a new key whose text nobody has.
    """
    if not 0 <= overlap <= LONGEST_OVERLAP:
        raise AccountError(f"the overlap is 0 to {LONGEST_OVERLAP:.0f} hours")
    chain = await store.chain(key_id)
    if chain is None:
        raise NoSuch(f"there is no key {key_id!r}")
    old, minted, now = chain.key, mint(), now_us()
    _check_lives(old)
    life = await _life(store, old)
    key = msgspec.structs.replace(
        old,
        id=minted.id,
        hash=await _hashed(minted.secret, identity),
        created_at=now,
        expires_at=None if life is None else now + life,
        last_used_at=None,
    )
    await store.add_key(key)
    ends = now + int(overlap * HOUR)
    await store.expire_key(old.id, ends)
    await _end_with_old(store, old, key)
    ends = ends if old.expires_at is None else min(ends, old.expires_at)
    return msgspec.structs.replace(old, expires_at=ends), key, minted.token


def _check_lives(key: Key) -> None:
    if key.revoked_at is not None:
        raise AccountError(f"key {key.id} is revoked; create a new one")
    if key.disabled_at is not None:
        raise AccountError(f"key {key.id} is disabled; enable it first")


async def _end_with_old(store: Store, old: Key, successor: Key) -> None:
    """Who ended the old key while it was rotated meant its holder: then no successor may live."""
    chain = await store.chain(old.id)
    try:
        if chain is not None:
            _check_lives(chain.key)
    except AccountError:
        await store.revoke_key(successor.id, now_us())
        raise


async def _life(store: Store, key: Key) -> int | None:
    """How long a key was made to live. A rotation shortens that; the row of its making (U7) still tells."""
    ends = key.expires_at
    for row in await store.operations_about("key", key.id, _MOST_ACTIONS) if ends is not None else ():
        told = msgspec.json.decode(row.body or "{}")
        if told.get("did") == "create":
            ends = told["expires_at"]
    return None if ends is None else ends - key.created_at


def check_terms(terms: KeyTerms) -> None:
    """Raises AccountError for what no key may be."""
    if terms.name:
        _check_name(terms.name)
    check_models(terms.models)
    if terms.force_model:
        check_models((terms.force_model,))
    if terms.days is not None and not 1 <= terms.days <= LONGEST_DAYS:
        raise AccountError(f"a key lasts 1 to {LONGEST_DAYS} days, or never expires by choice")
    if unknown := set(terms.scopes) - set(SCOPES) - set(ADMIN_SCOPES):
        raise AccountError(f"unknown scope {min(unknown)!r}; known: {', '.join(SCOPES + ADMIN_SCOPES)}")
    if 0 < len(set(terms.scopes) & set(ADMIN_SCOPES)) < len(set(terms.scopes)):
        raise AccountError("a key has either admin scopes or model scopes; make one for each")
    if not terms.scopes:
        raise AccountError("a key needs at least one scope")
    if terms.priority not in PRIORITIES:
        raise AccountError(f"priority is one of {', '.join(PRIORITIES)}")
    if terms.queue_timeout is not None and not 0 < terms.queue_timeout <= 86_400:
        raise AccountError("the queue timeout is 0 to 86400 seconds")
    if terms.allow_all_models and terms.models:
        raise AccountError("name models or allow all of the tenant's, not both")


def check_limits(limits: Limits) -> Limits:
    """Raises AccountError for limits that mean nothing."""
    if limits.burst is not None and limits.requests_per_minute is None:
        raise AccountError("a burst needs a rate of requests per minute")
    try:
        return msgspec.convert(msgspec.structs.asdict(limits), Limits)
    except msgspec.ValidationError as err:
        raise AccountError(f"a limit is a whole number of at least 1: {err}") from err


async def find_tenant(store: Store, ref: str) -> Tenant:
    """By name or id."""
    tenant = await store.tenant(ref)
    if tenant is None:
        known = nearest(ref, [each.name for each in await store.tenants(_SOME)])
        raise NoSuch(f"there is no tenant {ref!r}{known}")
    return tenant


async def find_user(store: Store, tenant: Tenant, ref: str) -> User:
    """By name or id within a tenant."""
    user = await store.user(tenant.id, ref)
    if user is None:
        known = nearest(ref, [each.name for each in await store.users(tenant.id, _SOME)])
        raise NoSuch(f"tenant {tenant.name!r} has no user {ref!r}{known}")
    return user


def is_name(text: str) -> bool:
    """Whether a tenant, user or key can be called that."""
    return _NAME.fullmatch(text) is not None


async def find_key(store: Store, key_id: str) -> Key:
    """By its public id."""
    key = await store.key(key_id)
    if key is None:
        raise NoSuch(f"there is no key {key_id!r}")
    return key


async def able_tenant(store: Store, ref: str, *, disabled: bool) -> Tenant:
    """Refuse all keys of a tenant, or no longer -> the tenant as it is now."""
    tenant, at = await find_tenant(store, ref), now_us() if disabled else None
    await store.disable_tenant(tenant.id, at)
    return msgspec.structs.replace(tenant, disabled_at=at)


async def able_user(store: Store, tenant: Tenant, ref: str, *, disabled: bool) -> User:
    """Refuse all keys of a user, or no longer -> the user as it is now."""
    user, at = await find_user(store, tenant, ref), now_us() if disabled else None
    await store.disable_user(user.id, at)
    return msgspec.structs.replace(user, disabled_at=at)


async def able_key(store: Store, key_id: str, *, disabled: bool) -> None:
    """Refuse a key until it is enabled, or no longer."""
    if not await store.disable_key(key_id, now_us() if disabled else None):
        raise NoSuch(f"there is no key {key_id!r}")


async def revoke_key(store: Store, key_id: str) -> None:
    """Refuse a key for good."""
    if not await store.revoke_key(key_id, now_us()):
        raise NoSuch(f"there is no key {key_id!r}")


def administers(key: Key) -> bool:
    """Whether it opens the admin API, and so nothing else."""
    return bool(set(key.scopes) & set(ADMIN_SCOPES))


def public(key: Key) -> dict[str, Any]:
    """A key without its hash."""
    shown = msgspec.structs.asdict(key)
    del shown["hash"]
    return shown


def _check_name(name: str) -> None:
    if not is_name(name):
        raise AccountError(f"{name!r}: a name is 1 to 128 of A-Z a-z 0-9 . _ @ + -, beginning with a letter or digit")


def check_models(models: tuple[str, ...]) -> None:
    """Raises AccountError for what no engine can call a model."""
    for model in models:
        if not 0 < len(model) <= _LONGEST_MODEL or not model.isprintable() or " " in model:
            raise AccountError(f"{model!r} is not a model name")


def _checked_share(share: float) -> float:
    if not 0.001 <= share <= 1000:
        raise AccountError("a share is 0.001 to 1000")
    return share


def _checked_cidrs(cidrs: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_network(cidr)) for cidr in cidrs)
    except ValueError as err:
        raise AccountError(f"{err}") from err
