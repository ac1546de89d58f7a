"""`fairgate settings` and `fairgate reservations`: what operators change while gateways run.

Every change is a row with its author, never an overwrite (U7); running gateways apply it within about a second.
"""

import argparse
import time
from collections.abc import Callable, Iterable

import msgspec

from gateway.api.model_names import meant
from gateway.commands.common import (
    CommandError,
    Commands,
    holders,
    moment,
    names,
    say,
    show_json,
    store_options,
    table,
    when,
    with_store,
)
from gateway.config import Config, nearest
from gateway.services.accounts import find_tenant, find_user
from gateway.services.keyfmt import random_text
from gateway.services.operations import effective
from gateway.store.base import Store
from gateway.store.operations import Kind, Reservation
from scheduler.settings import describe

HISTORY = 50
FARTHEST = 10 * 366 * 86_400_000_000
"""Microseconds from now to the end of a reservation: a typing error, not a plan, lies beyond."""


def add(commands: Commands) -> None:
    """Add both families to the tree."""
    settings = commands.add_parser("settings", help="the fair-use settings, at runtime")
    verbs = settings.add_subparsers(required=True, metavar="COMMAND")
    get = _verb(verbs, "get", "what is in force, and where it comes from", _get)
    get.add_argument("name", nargs="?")
    put = _verb(verbs, "set", "change one from now on", _set)
    put.add_argument("name")
    put.add_argument("value", help="a number, or null")
    _verb(verbs, "clear", "go back to the configuration's value", _clear).add_argument("name")
    _verb(verbs, "history", "who changed what", lambda args: _history(args, "setting"))
    _add_reservations(commands.add_parser("reservations", help="windows in which one party goes first or alone"))


def _add_reservations(family: argparse.ArgumentParser) -> None:
    verbs = family.add_subparsers(required=True, metavar="COMMAND")
    create = _verb(verbs, "create", "ask for a window; it acts once approved", _create)
    create.add_argument("--tenant", required=True, help="the holder: name or id")
    create.add_argument("--user", help="only this user of the tenant")
    create.add_argument("--models", type=names, default=(), metavar="A,B", help="default: all")
    create.add_argument("--start", required=True, type=_start, help="ISO 8601, local time without an offset, or 'now'")
    create.add_argument("--minutes", required=True, type=float, help="how long")
    create.add_argument("--exclusive", action="store_true", help="nobody else runs (default: the holder goes first)")
    create.add_argument("--note", default="")
    create.add_argument("--approve", action="store_true", help="approve at once")
    for verb, text in (("approve", "let it act"), ("cancel", "end or withdraw it")):
        _verb(verbs, verb, text, _decide).add_argument("id")
    _verb(verbs, "list", "windows that are not over", _list)
    _verb(verbs, "history", "who changed what", lambda args: _history(args, "reservation"))


def _verb(verbs: Commands, name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text)
    store_options(parser)
    parser.set_defaults(run=run, verb=name)
    return parser


def _now() -> int:
    return time.time_ns() // 1000


def _start(text: str) -> int:
    """An argparse type -> Unix microseconds."""
    return _now() if text == "now" else moment(text, None)


# ---- settings


def _get(args: argparse.Namespace) -> int:
    async def work(store: Store, config: Config) -> list[tuple[str, object, str, str]]:
        changed = {row.id: row.body or "null" for row in await store.operations("setting")}
        try:
            now = effective(config.scheduling, changed)
        except ValueError as err:
            raise CommandError(f"the stored settings are unusable: {err}") from err
        return [
            (f.name, getattr(now, f.name), "runtime" if f.name in changed else "configuration", f.text)
            for f in describe()
        ]

    rows = with_store(args, work)
    if args.name is not None:
        _check_setting(args.name)
        rows = [row for row in rows if row[0] == args.name]
    if args.json:
        _show_settings(row[:3] for row in rows)
    else:
        print(table(("SETTING", "VALUE", "FROM", "MEANING"), rows))
    return 0


def _check_setting(name: str) -> None:
    known = [field.name for field in describe()]
    if name not in known:
        raise CommandError(f"there is no setting {name!r}{nearest(name, known)}")


def _set(args: argparse.Namespace) -> int:
    async def work(store: Store, config: Config) -> None:
        _check_setting(args.name)
        try:
            msgspec.json.decode(args.value)
        except msgspec.DecodeError as err:
            raise CommandError(f"{args.name}: {args.value!r} is neither a number nor null") from err
        changed = {row.id: row.body or "null" for row in await store.operations("setting")}
        try:
            effective(config.scheduling, changed | {args.name: args.value})
        except ValueError as err:
            raise CommandError(str(err)) from err
        await store.operate("setting", args.name, args.value, _now(), store.actor)

    with_store(args, work, begins=True)
    if args.json:
        _show_settings([(args.name, msgspec.json.decode(args.value), "runtime")])
    else:
        say(f"{args.name} is {args.value} from now on")
    return 0


def _clear(args: argparse.Namespace) -> int:
    async def work(store: Store, config: Config) -> object:
        _check_setting(args.name)
        await store.operate("setting", args.name, None, _now(), store.actor)
        return getattr(config.scheduling, args.name)

    value = with_store(args, work)
    if args.json:
        _show_settings([(args.name, value, "configuration")])
    else:
        say(f"{args.name} is as configured again")
    return 0


def _show_settings(rows: Iterable[tuple[str, object, str]]) -> None:
    show_json({name: {"value": value, "from": source} for name, value, source in rows})


def _history(args: argparse.Namespace, kind: Kind) -> int:
    rows = with_store(args, lambda store, _: store.operations_history(kind, HISTORY))
    if args.json:
        show_json(rows)
    else:
        print(table(("TIME", "BY", "WHAT", "TO"), [(when(r.at), r.actor, r.id, r.body or "-") for r in rows]))
    return 0


# ---- reservations


def _create(args: argparse.Namespace) -> int:
    async def work(store: Store, config: Config) -> Reservation:
        tenant = await find_tenant(store, args.tenant)
        user = await find_user(store, tenant, args.user) if args.user else None
        ends = args.start + args.minutes * 60e6
        if not max(args.start, _now()) < ends < _now() + FARTHEST:
            raise CommandError("the window must end after it starts, in the future, and within ten years")
        row = Reservation(
            id=random_text(8),
            tenant=tenant.id,
            user=user.id if user is not None else None,
            models=args.models,
            starts_at=args.start,
            ends_at=int(ends),
            mode="exclusive" if args.exclusive else "preferred",
            state="approved" if args.approve else "requested",
            note=args.note,
        )
        await _store_reservation(store, row)
        return row

    row = with_store(args, work)
    if args.json:
        show_json(row)
    else:
        print(row.id)
    return 0


async def _store_reservation(store: Store, row: Reservation) -> None:
    if row.state == "approved" and row.mode == "exclusive":
        for other in await _reservations(store):
            if _shut_out(row, other):
                raise CommandError(f"{other.id} is exclusive too, for another, at that time: nobody would run")
    await store.operate("reservation", row.id, msgspec.json.encode(row).decode(), _now(), store.actor)


def _shut_out(row: Reservation, other: Reservation) -> bool:
    """Whether no party is a holder of both where both are exclusive."""
    if other.state != "approved" or other.mode != "exclusive" or other.id == row.id:
        return False
    apart = row.ends_at <= other.starts_at or other.ends_at <= row.starts_at
    if apart or (row.models and other.models and not meant(row.models) & meant(other.models)):
        return False
    return row.tenant != other.tenant or bool(row.user and other.user and row.user != other.user)


async def _reservations(store: Store) -> list[Reservation]:
    rows = await store.operations("reservation")
    return [msgspec.json.decode(row.body or "", type=Reservation) for row in rows]


def _decide(args: argparse.Namespace) -> int:
    state = "approved" if args.verb == "approve" else "cancelled"

    async def work(store: Store, config: Config) -> Reservation:
        found = [row for row in await _reservations(store) if row.id == args.id]
        if not found:
            raise CommandError(f"there is no reservation {args.id!r}")
        if found[0].state == "cancelled":
            raise CommandError("it is cancelled already")
        if args.verb == "approve" and found[0].ends_at <= _now():
            raise CommandError("it is over already")
        row = msgspec.structs.replace(found[0], state=state)
        await _store_reservation(store, row)
        return row

    row = with_store(args, work)
    if args.json:
        show_json(row)
    else:
        say(f"{args.id} is {state}")
    return 0


def _list(args: argparse.Namespace) -> int:
    async def work(store: Store, config: Config) -> tuple[list[Reservation], dict[str, str]]:
        return [row for row in await _reservations(store) if row.ends_at > _now()], await holders(store)

    rows, held_by = with_store(args, work)
    if args.json:
        show_json(rows)
        return 0
    shown = [
        (
            row.id,
            row.state,
            row.mode,
            "/".join(held_by.get(part, part) for part in (row.tenant, row.user) if part),
            ",".join(row.models) or "all",
            when(row.starts_at),
            when(row.ends_at),
            row.note,
        )
        for row in rows
    ]
    print(table(("ID", "STATE", "MODE", "HOLDER", "MODELS", "FROM", "TO", "NOTE"), shown))
    return 0
