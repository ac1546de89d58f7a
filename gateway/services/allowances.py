"""Setting the limits of tenants, users and keys; shared by the command line and the admin API.

Must not know how limits are counted. Functions raise `AccountError` with a sentence for a person, or StoreError.
"""

import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from gateway.services import accounts
from gateway.store.base import Store
from gateway.store.limits import BUDGETS, LedgerRow, Limits, window


class Owner(NamedTuple):
    """The tenant, user or key that limits belong to."""

    kind: Literal["tenant", "user", "key"]
    id: str
    name: str
    limits: Limits


async def owner_of(store: Store, *, tenant: str = "", user: str = "", key: str = "") -> Owner:
    """The innermost of the given tenant, user and key; the first two by name or id."""
    if key:
        found = await accounts.find_key(store, key)
        return Owner("key", found.id, found.name or found.id, found.limits)
    above = await accounts.find_tenant(store, tenant)
    if not user:
        return Owner("tenant", above.id, above.name, above.limits)
    person = await accounts.find_user(store, above, user)
    return Owner("user", person.id, person.name, person.limits)


def changed(before: Limits, changes: Mapping[str, int | None]) -> Limits:
    """`before` with these changes; None removes a limit."""
    return accounts.check_limits(msgspec.structs.replace(before, **changes))


async def put(store: Store, owner: Owner, limits: Limits) -> Owner:
    """Replace an owner's limits."""
    await store.set_limits(owner.kind, owner.id, limits)
    return owner._replace(limits=limits)


async def used(store: Store, owner: Owner) -> dict[str, dict[str, Any]]:
    """The state of each budget that is set: how much its current window has spent, how much gateways hold on lease, and
    the window's end in Unix seconds."""
    known = {budget.budget: budget for budget in await store.budgets(f"{owner.kind}:{owner.id}")}
    rows = {}
    for name, (unit, period) in BUDGETS.items():
        if getattr(owner.limits, name) is not None:
            part, end = window(period, time.time())
            row = known.get(f"{unit}/{part}", LedgerRow("", ""))
            scale = 1000 if unit == "gpu" else 1
            spent, held = row.spent / scale, row.held / scale
            rows[name] = {
                "spent": spent if unit == "gpu" else int(spent),
                "held": held if unit == "gpu" else int(held),
                "resets_at": None if end == float("inf") else int(end),
            }
    return rows
