"""Creating and finding tenants, users and keys; shared by the command line and the admin API.

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
from gateway.services.keyfmt import mint, parse, random_text
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
"""Maximum hours in which a rotated key and its successor both work."""
LONGEST_DAYS = 365
PRIORITIES = ("interactive", "batch", "system")
ADMIN_SCOPES = ("admin:read", "admin:write")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
_LONGEST_MODEL = 256
_SOME = Page(count=200)
"""Existing names that a wrong one is compared with for a suggestion: comparing ten thousand would block a gateway's
loop for half a second."""
_MOST_ACTIONS = 10_000
"""Actions of one key to search; older ones are ignored."""


class AccountError(Exception):
    """The request cannot be carried out; the message says why."""


class NoSuch(AccountError):
    """The request names something that does not exist."""


class Taken(AccountError):
    """The request conflicts with what exists."""


class KeyTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The rights of a new key. `days` None = it never expires (K6); `models`, `allow_all_models` as in `store.Key`."""

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
    """Create a key -> the key and its text, which is not stored."""
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


def no_key(key_id: str) -> NoSuch:
    """The error for an id that is not known. Operators paste whole keys too, when one has leaked."""
    whole = parse(key_id.encode())
    return NoSuch(f"that is a whole key; its id is {whole[0]}" if whole else f"there is no key {key_id!r}")


async def _hashed(secret: bytes, identity: Identity) -> str:
    """Hash a secret in a thread: Argon2id takes 20 ms, for which a gateway's loop would be blocked."""
    return await asyncio.to_thread(hasher(identity).hash, secret)


async def rotate_key(store: Store, key_id: str, overlap: float, identity: Identity) -> tuple[Key, Key, str]:
    """Create a key with the rights of an old one, which then expires after `overlap` hours (K6) -> (old, new, text of
    the new).

    The new key lives as long as the old one was created to live. The old key is changed last: a failure before that
    leaves it unchanged, and a new key whose text nobody has.
    """
    if not 0 <= overlap <= LONGEST_OVERLAP:
        raise AccountError(f"the overlap is 0 to {LONGEST_OVERLAP:.0f} hours")
    chain = await store.chain(key_id)
    if chain is None:
        raise no_key(key_id)
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
    """Revoke the successor if the old key was revoked or disabled during the rotation: whoever did that meant its
    holder."""
    chain = await store.chain(old.id)
    try:
        if chain is not None:
            _check_lives(chain.key)
    except AccountError:
        await store.revoke_key(successor.id, now_us())
        raise


async def _life(store: Store, key: Key) -> int | None:
    """The lifetime a key was created with. A rotation shortens `expires_at`, but the record of the creation (U7) still
    has it."""
    ends = key.expires_at
    for row in await store.operations_about("key", key.id, _MOST_ACTIONS) if ends is not None else ():
        told = msgspec.json.decode(row.body or "{}")
        if told.get("did") == "create":
            ends = told["expires_at"]
    return None if ends is None else ends - key.created_at


def check_terms(terms: KeyTerms) -> None:
    """Raises AccountError for invalid rights of a key."""
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
    """Raises AccountError for meaningless limits."""
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
    """Whether this is a valid name for a tenant, user or key."""
    return _NAME.fullmatch(text) is not None


async def find_key(store: Store, key_id: str) -> Key:
    """By its public id."""
    key = await store.key(key_id)
    if key is None:
        raise no_key(key_id)
    return key


async def able_tenant(store: Store, ref: str, *, disabled: bool) -> Tenant:
    """Disable or enable a tenant, and with it all its keys -> the tenant after the change."""
    tenant, at = await find_tenant(store, ref), now_us() if disabled else None
    await store.disable_tenant(tenant.id, at)
    return msgspec.structs.replace(tenant, disabled_at=at)


async def able_user(store: Store, tenant: Tenant, ref: str, *, disabled: bool) -> User:
    """Disable or enable a user, and with it all its keys -> the user after the change."""
    user, at = await find_user(store, tenant, ref), now_us() if disabled else None
    await store.disable_user(user.id, at)
    return msgspec.structs.replace(user, disabled_at=at)


async def share_tenant(store: Store, ref: str, share: float) -> Tenant:
    """Give a tenant another share -> the tenant as it is now."""
    _checked_share(share)
    tenant = await find_tenant(store, ref)
    await store.set_share("tenant", tenant.id, share)
    return msgspec.structs.replace(tenant, share=share)


async def share_user(store: Store, tenant: Tenant, ref: str, share: float) -> User:
    """Give a user another share -> the user as it is now."""
    _checked_share(share)
    user = await find_user(store, tenant, ref)
    await store.set_share("user", user.id, share)
    return msgspec.structs.replace(user, share=share)


async def able_key(store: Store, key_id: str, *, disabled: bool) -> None:
    """Disable or enable a key."""
    if not await store.disable_key(key_id, now_us() if disabled else None):
        raise no_key(key_id)


async def revoke_key(store: Store, key_id: str) -> None:
    """Revoke a key for good."""
    if not await store.revoke_key(key_id, now_us()):
        raise no_key(key_id)


def administers(key: Key) -> bool:
    """Whether this is an admin key, which works for the admin API only."""
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
    """Raises AccountError for names that no engine can give a model."""
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
