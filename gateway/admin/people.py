"""The admin API's answers about tenants, users, keys and their limits. The rules are those of `services.accounts`.

Admin keys can be created, rotated and enabled only on the host, so revoking a stolen one ends its power for good.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from gateway.admin.asks import Ask, LimitChanges, NewKey, NewShare, NewTenant, NewUser, OfTenant, OfUser, Part, Rotation
from gateway.admin.call import Call, listed, page
from gateway.errors import BadRequest, Forbidden
from gateway.services import accounts, allowances
from gateway.services.accounts import ADMIN_SCOPES, KeyTerms
from gateway.services.allowances import Owner
from gateway.services.rights import SCOPES
from gateway.store.base import Tenant, User
from gateway.store.limits import Limits

HOST_ONLY = "Keys with admin scopes are made, rotated and enabled by the command line on the host only."

# ---- tenants


async def tenants(call: Call) -> object:
    part = call.query(Part)
    return listed(await call.store.tenants(page(part.limit, part.offset)), part.limit, part.offset)


async def new_tenant(call: Call) -> object:
    asked = call.asked(NewTenant)
    return await accounts.create_tenant(
        call.store,
        asked.name,
        models=asked.models,
        allow_all_models=asked.all_models,
        share=asked.share,
        cidrs=asked.cidrs,
        limits=asked.limits,
    )


async def tenant(call: Call) -> Tenant:
    return await accounts.find_tenant(call.store, call.path["tenant"])


async def disable_tenant(call: Call) -> object:
    return await _able_tenant(call, disabled=True)


async def enable_tenant(call: Call) -> object:
    return await _able_tenant(call, disabled=False)


async def _able_tenant(call: Call, *, disabled: bool) -> object:
    call.asked(Ask)
    found = await accounts.able_tenant(call.store, call.path["tenant"], disabled=disabled)
    call.forget(found.id)
    return found


async def share_tenant(call: Call) -> object:
    return await accounts.share_tenant(call.store, call.path["tenant"], call.asked(NewShare).share)


# ---- users


async def users(call: Call) -> object:
    part = call.query(OfTenant)
    of = await accounts.find_tenant(call.store, part.tenant) if part.tenant else None
    rows = await call.store.users(of.id if of else None, page(part.limit, part.offset))
    return listed(rows, part.limit, part.offset)


async def users_of_tenant(call: Call) -> object:
    part = call.query(Part)
    rows = await call.store.users((await tenant(call)).id, page(part.limit, part.offset))
    return listed(rows, part.limit, part.offset)


async def new_user(call: Call) -> object:
    asked = call.asked(NewUser)
    of = await tenant(call)
    return await accounts.create_user(call.store, of, asked.name, share=asked.share, limits=asked.limits)


async def user(call: Call) -> object:
    return await accounts.find_user(call.store, await tenant(call), call.path["user"])


async def disable_user(call: Call) -> object:
    return await _able_user(call, disabled=True)


async def enable_user(call: Call) -> object:
    return await _able_user(call, disabled=False)


async def _able_user(call: Call, *, disabled: bool) -> User:
    call.asked(Ask)
    found = await accounts.able_user(call.store, await tenant(call), call.path["user"], disabled=disabled)
    call.forget(found.id)
    return found


async def share_user(call: Call) -> object:
    share = call.asked(NewShare).share
    return await accounts.share_user(call.store, await tenant(call), call.path["user"], share)


# ---- keys


async def keys(call: Call) -> object:
    part = call.query(OfUser)
    if part.user and not part.tenant:
        raise BadRequest("A user needs its tenant beside it.", param="tenant")
    of = await accounts.find_tenant(call.store, part.tenant) if part.tenant else None
    person = await accounts.find_user(call.store, of, part.user) if of and part.user else None
    rows = await call.store.keys(person.id if person else None, of.id if of else None, page(part.limit, part.offset))
    return listed([accounts.public(row) for row in rows], part.limit, part.offset)


async def new_key(call: Call) -> object:
    """`token` is the key itself, which is shown only here."""
    asked = call.asked(NewKey)
    if set(asked.scopes) & set(ADMIN_SCOPES):
        raise Forbidden(HOST_ONLY, param="scopes")
    if unknown := set(asked.scopes) - set(SCOPES):
        raise BadRequest(f"unknown scope {min(unknown)!r}; known: {', '.join(SCOPES)}", param="scopes")
    terms = KeyTerms(
        name=asked.name,
        days=asked.expires_days,
        models=asked.models,
        allow_all_models=asked.all_models,
        scopes=asked.scopes,
        cidrs=asked.cidrs,
        priority=asked.priority,
        queue_timeout=asked.queue_timeout,
        on_behalf=asked.on_behalf,
        force_model=asked.force_model,
        limits=asked.limits,
    )
    of = await accounts.find_tenant(call.store, asked.tenant)
    person = await accounts.find_user(call.store, of, asked.user)
    made, token = await accounts.create_key(call.store, person, terms, call.config.identity)
    return {"token": token, **accounts.public(made)}


async def key(call: Call) -> dict[str, Any]:
    return accounts.public(await accounts.find_key(call.store, call.path["key"]))


async def rotate_key(call: Call) -> object:
    asked = call.asked(Rotation)
    await _no_admins(call)
    old, made, token = await accounts.rotate_key(
        call.store, call.path["key"], asked.overlap_hours, call.config.identity
    )
    call.forget(old.id)
    replaces = {"id": old.id, "expires_at": old.expires_at}
    return {"token": token, **accounts.public(made), "replaces": replaces}


async def _no_admins(call: Call) -> None:
    if accounts.administers(await accounts.find_key(call.store, call.path["key"])):
        raise Forbidden(HOST_ONLY)


async def disable_key(call: Call) -> object:
    return await _able_key(call, disabled=True)


async def enable_key(call: Call) -> object:
    await _no_admins(call)
    return await _able_key(call, disabled=False)


async def _able_key(call: Call, *, disabled: bool) -> object:
    call.asked(Ask)
    await accounts.able_key(call.store, call.path["key"], disabled=disabled)
    call.forget(call.path["key"])
    return await key(call)


async def revoke_key(call: Call) -> object:
    call.asked(Ask)
    await accounts.revoke_key(call.store, call.path["key"])
    call.forget(call.path["key"])
    return await key(call)


# ---- limits


async def limits(call: Call) -> object:
    owner = await _owner(call)
    return {**_limits(owner), "budgets": await allowances.used(call.store, owner)}


async def _owner(call: Call) -> Owner:
    return await allowances.owner_of(call.store, **call.path)


def _limits(owner: Owner) -> dict[str, Any]:
    return {"kind": owner.kind, "id": owner.id, "limits": owner.limits}


async def change_limits(call: Call) -> object:
    asked = msgspec.structs.asdict(call.asked(LimitChanges))
    changes = {name: value for name, value in asked.items() if value is not msgspec.UNSET}
    if not changes:
        raise BadRequest("Say which limits to change.")
    return await _put(call, lambda before: allowances.changed(before, changes))


async def clear_limits(call: Call) -> object:
    call.asked(Ask)
    return await _put(call, lambda before: Limits())


async def _put(call: Call, of: Callable[[Limits], Limits]) -> object:
    async with call.office.turn():
        owner = await _owner(call)
        owner = await allowances.put(call.store, owner, of(owner.limits))
    call.forget(owner.id)
    return _limits(owner)
