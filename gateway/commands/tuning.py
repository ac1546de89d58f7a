"""`fairgate settings` and `fairgate reservations`: what operators change while gateways run.

Every change is a row with its author, never an overwrite (U7); running gateways apply it within about a second.
"""

import argparse
from collections.abc import Iterable

import msgspec

from gateway.commands.common import (
    Commands,
    holders,
    moment,
    names,
    say,
    show_json,
    table,
    verb,
    when,
    with_store,
)
from gateway.config import Config
from gateway.services import tuning
from gateway.services.accounts import now_us
from gateway.store.base import Store
from gateway.store.operations import Kind, Reservation

HISTORY = 50


def add(commands: Commands) -> None:
    """Add both families to the tree."""
    settings = commands.add_parser("settings", help="show and change the fair-use settings at runtime")
    verbs = settings.add_subparsers(required=True, metavar="COMMAND")
    get = verb(verbs, "get", _get, "show the values in force and where they come from")
    get.add_argument("name", nargs="?")
    put = verb(verbs, "set", _set, "change one setting")
    put.add_argument("name")
    put.add_argument("value", help="a number, or null")
    verb(verbs, "clear", _clear, "return to the configuration's value").add_argument("name")
    verb(verbs, "history", lambda args: _history(args, "setting"), "show who changed what")
    _add_reservations(
        commands.add_parser("reservations", help="manage windows in which one tenant or user goes first or alone")
    )


def _add_reservations(family: argparse.ArgumentParser) -> None:
    verbs = family.add_subparsers(required=True, metavar="COMMAND")
    create = verb(verbs, "create", _create, "request a window; it takes effect once approved")
    create.add_argument("--tenant", required=True, help="the holder: name or id")
    create.add_argument("--user", help="only this user of the tenant")
    create.add_argument("--models", type=names, default=(), metavar="A,B", help="models of the window (default: all)")
    create.add_argument(
        "--start", required=True, type=_start, help="ISO 8601 (local time if without an offset), or 'now'"
    )
    create.add_argument("--minutes", required=True, type=float, help="length of the window")
    create.add_argument("--exclusive", action="store_true", help="nobody else runs (default: the holder goes first)")
    create.add_argument("--note", default="")
    create.add_argument("--approve", action="store_true", help="approve at once")
    verb(verbs, "approve", lambda args: _decide(args, approve=True), "approve a requested window").add_argument("id")
    verb(verbs, "cancel", lambda args: _decide(args, approve=False), "end a window or withdraw a request").add_argument(
        "id"
    )
    verb(verbs, "list", _list, "list windows that have not ended")
    verb(verbs, "history", lambda args: _history(args, "reservation"), "show who changed what")


def _start(text: str) -> int:
    """An argparse type -> Unix microseconds."""
    return now_us() if text == "now" else moment(text, None)


# ---- settings


def _get(args: argparse.Namespace) -> int:
    rows = with_store(args, lambda store, config: tuning.settings_shown(store, config.scheduling))
    if args.name is not None:
        tuning.check_setting(args.name)
        rows = [row for row in rows if row.name == args.name]
    if args.json:
        _show_settings((row.name, row.value, row.source) for row in rows)
    else:
        print(table(("SETTING", "VALUE", "FROM", "MEANING"), [msgspec.structs.astuple(row) for row in rows]))
    return 0


def _set(args: argparse.Namespace) -> int:
    with_store(args, lambda store, config: tuning.set_setting(store, config, args.name, args.value), begins=True)
    if args.json:
        _show_settings([(args.name, msgspec.json.decode(args.value), "runtime")])
    else:
        say(f"{args.name} is {args.value} from now on")
    return 0


def _clear(args: argparse.Namespace) -> int:
    async def work(store: Store, config: Config) -> object:
        await tuning.clear_setting(store, args.name)
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
    wish = tuning.Wish(
        tenant=args.tenant,
        user=args.user or "",
        models=args.models,
        starts_at=args.start,
        minutes=args.minutes,
        exclusive=args.exclusive,
        note=args.note,
        approve=args.approve,
    )
    row = with_store(args, lambda store, _: tuning.reserve(store, wish))
    if args.json:
        show_json(row)
    else:
        print(row.id)
    return 0


def _decide(args: argparse.Namespace, *, approve: bool) -> int:
    row = with_store(args, lambda store, _: tuning.decide(store, args.id, approve=approve))
    if args.json:
        show_json(row)
    else:
        say(f"{args.id} is {row.state}")
    return 0


def _list(args: argparse.Namespace) -> int:
    async def work(store: Store, config: Config) -> tuple[list[Reservation], dict[str, str]]:
        return await tuning.not_over(store), await holders(store)

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
