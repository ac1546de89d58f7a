"""Changing settings and reservations while gateways run; shared by the command line and the admin API.

Owns which changes are refused. Every change is a new row with its author, never an overwrite (U7). Must not know how
changes come into force (`operations`). Functions raise `AccountError` with a sentence for a person, or StoreError.
"""

from typing import Any

import msgspec

from gateway.api.model_names import meant
from gateway.config import Config
from gateway.loading import expire_fault
from gateway.services.accounts import AccountError, NoSuch, Taken, check_models, find_tenant, find_user, now_us
from gateway.services.keyfmt import random_text
from gateway.services.operations import effective, reservations
from gateway.shape import nearest
from gateway.store.base import Store
from gateway.store.operations import Reservation
from scheduler.settings import Settings, describe

FARTHEST = 10 * 366 * 86_400_000_000
"""Maximum microseconds from now to the end of a reservation: anything later is a typing error."""


class SettingShown(msgspec.Struct, frozen=True):
    """One setting in force. `source` is `runtime` or `configuration`."""

    name: str
    value: Any
    source: str
    meaning: str


async def settings_shown(store: Store, base: Settings) -> list[SettingShown]:
    """All settings; `base` is the configuration's."""
    changed = await _changed(store)
    try:
        now = effective(base, changed)
    except ValueError as err:
        raise AccountError(f"the stored settings are unusable: {err}") from err
    sources = {True: "runtime", False: "configuration"}
    return [SettingShown(f.name, getattr(now, f.name), sources[f.name in changed], f.text) for f in describe()]


async def _changed(store: Store) -> dict[str, str]:
    return {row.id: row.body or "null" for row in await store.operations("setting")}


def check_setting(name: str) -> None:
    """Raises NoSuch if there is no such setting."""
    known = [field.name for field in describe()]
    if name not in known:
        raise NoSuch(f"there is no setting {name!r}{nearest(name, known)}")


async def set_setting(store: Store, config: Config, name: str, value: str) -> None:
    """Change a setting from now on; `value` is JSON text. A value that `config` would refuse in its file is refused
    here too."""
    check_setting(name)
    try:
        msgspec.json.decode(value)
    except msgspec.DecodeError as err:
        raise AccountError(f"{name}: {value!r} is neither a number nor null") from err
    try:
        now = effective(config.scheduling, await _changed(store) | {name: value})
    except ValueError as err:
        raise AccountError(str(err)) from err
    if name == "queue_timeout" and (fault := expire_fault(msgspec.structs.replace(config, scheduling=now))):
        raise AccountError(f"queue_timeout: limits.expire ({config.limits.expire:g} s) would be {fault}")
    await store.operate("setting", name, value, now_us(), store.actor)


async def clear_setting(store: Store, name: str) -> None:
    """Return to the configuration's value."""
    check_setting(name)
    await store.operate("setting", name, None, now_us(), store.actor)


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """The requested window. `tenant` and `user` by name or id; no models: all; `starts_at` is in Unix microseconds."""

    tenant: str
    user: str = ""
    models: tuple[str, ...] = ()
    starts_at: int
    minutes: float
    exclusive: bool = False
    note: str = ""
    approve: bool = False


async def reserve(store: Store, wish: Wish) -> Reservation:
    """A new reservation, which takes effect once it is approved."""
    check_models(wish.models)
    tenant = await find_tenant(store, wish.tenant)
    user = await find_user(store, tenant, wish.user) if wish.user else None
    ends = wish.starts_at + wish.minutes * 60e6
    if not max(wish.starts_at, now_us()) < ends < now_us() + FARTHEST:
        raise AccountError("the window must end after it starts, in the future, and within ten years")
    row = Reservation(
        id=random_text(8),
        tenant=tenant.id,
        user=user.id if user is not None else None,
        models=wish.models,
        starts_at=wish.starts_at,
        ends_at=int(ends),
        mode="exclusive" if wish.exclusive else "preferred",
        state="approved" if wish.approve else "requested",
        note=wish.note,
    )
    await _keep(store, row)
    return row


async def _keep(store: Store, row: Reservation) -> None:
    if row.state == "approved" and row.mode == "exclusive":
        for other in await reservations(store):
            if _shut_out(row, other):
                raise Taken(f"{other.id} is exclusive for somebody else at that time: nobody could run")
    await store.operate("reservation", row.id, msgspec.json.encode(row).decode(), now_us(), store.actor)


def _shut_out(row: Reservation, other: Reservation) -> bool:
    """Whether two exclusive windows have no common holder, so that nobody could run."""
    if other.state != "approved" or other.mode != "exclusive" or other.id == row.id:
        return False
    apart = row.ends_at <= other.starts_at or other.ends_at <= row.starts_at
    if apart or (row.models and other.models and not meant(row.models) & meant(other.models)):
        return False
    return row.tenant != other.tenant or bool(row.user and other.user and row.user != other.user)


async def not_over(store: Store) -> list[Reservation]:
    """Windows that have not ended."""
    return [row for row in await reservations(store) if row.ends_at > now_us()]


async def decide(store: Store, wanted: str, *, approve: bool) -> Reservation:
    """Approve a window, or end or withdraw it. One that this version cannot read can only be withdrawn."""
    found = [row for row in await reservations(store) if row.id == wanted]
    if not found:
        return await _withdraw_unread(store, wanted, approve=approve)
    if found[0].state == "cancelled":
        raise Taken("it is cancelled already")
    if approve and found[0].ends_at <= now_us():
        raise Taken("it is over already")
    row = msgspec.structs.replace(found[0], state="approved" if approve else "cancelled")
    await _keep(store, row)
    return row


async def _withdraw_unread(store: Store, wanted: str, *, approve: bool) -> Reservation:
    """Remove a row that cannot be read, and so cannot be written again: the returned reservation has only its id."""
    if all(row.id != wanted for row in await store.operations("reservation")):
        raise NoSuch(f"there is no reservation {wanted!r}")
    if approve:
        raise Taken("this version cannot read it; it can only be cancelled")
    await store.operate("reservation", wanted, None, now_us(), store.actor)
    return Reservation(id=wanted, tenant="", starts_at=0, ends_at=0, state="cancelled")
