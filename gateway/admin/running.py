"""The admin API's answers about the running gateway: its state, settings, reservations, usage and records."""

from typing import Any

import msgspec

from gateway.admin.asks import ActionsAsk, Ask, AuditAsk, NewReservation, NewValue, Part, UsageAsk
from gateway.admin.call import Call, instant, listed
from gateway.admin.state import stats as everything
from gateway.errors import BadRequest
from gateway.services import accounts, tuning
from gateway.services.metrics_table import OUTCOMES
from gateway.services.model_list import gathered
from gateway.services.record import AuditRecord
from gateway.services.usage import named, price_table
from gateway.store.base import AuditQuery
from gateway.store.usage import HOUR_US, UsageQuery

EVER = (1 << 63) // HOUR_US * HOUR_US
"""In microseconds; the last whole hour that can be represented."""

# ---- state


async def myself(call: Call) -> object:
    """The owner of the key or session, and its scopes."""
    who = call.who
    return {"key": who.key, "user": who.user, "tenant": who.tenant, "scopes": sorted(who.scopes)}


async def stats(call: Call) -> object:
    await call.office.gateway.refresh()
    return everything(call.office.gateway)


async def backends(call: Call) -> object:
    return {"data": [seen.stats for seen in call.office.gateway.backends.picture()]}


async def models(call: Call) -> object:
    part = call.query(Part)
    seen = {seen.stats.name: seen.models for seen in call.office.gateway.backends.picture()}
    rows = gathered(call.config, seen)[part.offset : part.offset + part.limit + 1]
    return listed(rows, part.limit, part.offset)


# ---- settings


async def settings(call: Call) -> object:
    return {"data": await tuning.settings_shown(call.store, call.config.scheduling)}


async def setting(call: Call) -> object:
    tuning.check_setting(call.path["setting"])
    rows = await tuning.settings_shown(call.store, call.config.scheduling)
    return next(row for row in rows if row.name == call.path["setting"])


async def set_setting(call: Call) -> object:
    value = msgspec.json.encode(call.asked(NewValue).value).decode()
    async with call.office.turn():
        await tuning.set_setting(call.store, call.config, call.path["setting"], value)
    return await setting(call)


async def clear_setting(call: Call) -> object:
    call.asked(Ask)
    async with call.office.turn():
        await tuning.clear_setting(call.store, call.path["setting"])
    return await setting(call)


# ---- reservations


async def reservations(call: Call) -> object:
    part = call.query(Part)
    rows = await tuning.not_over(call.store)
    return listed(rows[part.offset : part.offset + part.limit + 1], part.limit, part.offset)


async def new_reservation(call: Call) -> object:
    asked = call.asked(NewReservation)
    wish = tuning.Wish(
        tenant=asked.tenant,
        user=asked.user,
        models=asked.models,
        starts_at=instant(asked.start, "start", accounts.now_us()),
        minutes=asked.minutes,
        exclusive=asked.exclusive,
        note=asked.note,
        approve=asked.approve,
    )
    async with call.office.turn():
        return await tuning.reserve(call.store, wish)


async def approve(call: Call) -> object:
    return await _decide(call, approve=True)


async def cancel(call: Call) -> object:
    return await _decide(call, approve=False)


async def _decide(call: Call, *, approve: bool) -> object:
    call.asked(Ask)
    async with call.office.turn():
        return await tuning.decide(call.store, call.path["reservation"], approve=approve)


# ---- usage and records


async def usage(call: Call) -> object:
    asked = call.query(UsageAsk)
    query = UsageQuery(
        by=asked.by,
        since=_hour(asked.since, "since", 0),
        until=_hour(asked.until, "until", EVER),
        tenant=(await accounts.find_tenant(call.store, asked.tenant)).id if asked.tenant else "",
        prices=price_table(call.config.prices),
        count=asked.limit + 1,
        skip=asked.offset,
    )
    async with call.office.reports:
        rows = await call.store.usage(query)
    names = await named(call.store, asked.by, rows)
    shown: list[Any] = [{"name": name, **msgspec.structs.asdict(row)} for name, row in zip(names, rows, strict=True)]
    return {"by": asked.by, **listed(shown, asked.limit, asked.offset)}


def _hour(text: str, name: str, absent: int) -> int:
    found = instant(text, name, absent)
    if found % HOUR_US:
        raise BadRequest("Usage is kept by the hour: give a whole hour.", param=name)
    return found


async def audit(call: Call) -> object:
    asked = call.query(AuditAsk)
    if asked.outcome not in ("", *OUTCOMES):
        raise BadRequest(f"none of {', '.join(OUTCOMES)}", param="outcome")
    query = AuditQuery(
        count=asked.limit,
        since=instant(asked.since, "since", 0),
        until=instant(asked.until, "until", EVER),
        tenant=asked.tenant,
        user=asked.user,
        key=asked.key,
        model=asked.model,
        outcome=asked.outcome,
        status=asked.status,
    )
    async with call.office.reports:
        rows = await call.store.audit_find(query)
    return {"data": [msgspec.structs.asdict(AuditRecord.of(row)) for row in rows]}


async def actions(call: Call) -> object:
    asked = call.query(ActionsAsk)
    if asked.id and asked.kind:
        rows = await call.store.operations_about(asked.kind, asked.id, asked.limit)
    elif asked.id:
        raise BadRequest("An id needs its kind beside it.", param="kind")
    else:
        rows = await call.store.operations_history(asked.kind, asked.limit)
    return {"data": rows}
