"""`fairgate limits`: what tenants, users and keys may use, and what they have used. Must not know how it is counted."""

import argparse
import re
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.commands.common import CommandError, Commands, show_json, table, verb, with_store
from gateway.config import Config
from gateway.services import allowances
from gateway.services.allowances import Owner
from gateway.store.base import Store
from gateway.store.limits import Limits

FLAGS: dict[str, tuple[str, str]] = {
    "requests_per_minute": ("--rpm", "requests per minute"),
    "burst": ("--burst", "requests allowed at once after a pause (default: a minute's worth)"),
    "tokens_per_minute": ("--tpm", "tokens per minute, input and output"),
    "concurrent": ("--concurrency", "concurrent requests"),
    "tokens_per_day": ("--tokens-per-day", "tokens per day (UTC)"),
    "tokens_per_month": ("--tokens-per-month", "tokens per month (UTC)"),
    "tokens_total": ("--tokens-total", "tokens in total"),
    "gpu_seconds_per_day": ("--gpu-seconds-per-day", "seconds of a backend's slot per day (UTC)"),
    "gpu_seconds_per_month": ("--gpu-seconds-per-month", "seconds of a backend's slot per month (UTC)"),
    "gpu_seconds_total": ("--gpu-seconds-total", "seconds of a backend's slot in total"),
}
REMOVED = 0
"""The value for the word `none`; not a valid limit."""


def add(commands: Commands) -> None:
    """Declare the family."""
    parser = commands.add_parser("limits", help="show and change rates and budgets")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    shown = verb(verbs, "show", show, "Show limits, and how much of the budgets is spent and reserved.")
    changed = verb(verbs, "set", change, "Change the named limits; `none` removes one. Takes effect within a second.")
    cleared = verb(verbs, "clear", clear, "Remove all limits of a tenant, user or key.")
    for each in (shown, changed, cleared):
        each.add_argument("--tenant", help="name or id")
        each.add_argument("--user", help="name or id of a user of the tenant")
        each.add_argument("--key", help="public id of the key")
    limit_options(changed)


def limit_options(parser: argparse.ArgumentParser) -> None:
    """One flag for each limit."""
    group = parser.add_argument_group("limits", "whole numbers of at least 1, or `none`")
    for name, (flag, meaning) in FLAGS.items():
        group.add_argument(flag, dest=name, type=_number, metavar="N", help=meaning)


def _number(text: str) -> int:
    if text == "none":
        return REMOVED
    number = int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else 0
    if number < 1:
        raise argparse.ArgumentTypeError("a limit is a whole number of at least 1, or `none`")
    return number


def limits_of(args: argparse.Namespace, before: Limits = Limits()) -> Limits:  # noqa: B008  # frozen
    """`before` with the changes given as flags."""
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    changes = {name: None if number == REMOVED else number for name, number in given.items()}
    return allowances.changed(before, changes)


# -- verbs


def show(args: argparse.Namespace) -> int:
    async def work(store: Store, _: Config) -> tuple[Owner, dict[str, dict[str, Any]]]:
        owner = await _owner(store, args)
        return owner, await allowances.used(store, owner)

    owner, used = with_store(args, work)
    if args.json:
        show_json({"kind": owner.kind, "id": owner.id, "limits": owner.limits, "budgets": used})
        return 0
    rows = []
    for name, value in msgspec.structs.asdict(owner.limits).items():
        if value is not None:
            budget = used.get(name, {})
            rows.append((name, value, budget.get("spent"), budget.get("held")))
    print(f"{owner.kind} {owner.name} ({owner.id})")
    print(table(("LIMIT", "VALUE", "SPENT", "ON LEASE"), rows) if rows else "not limited here")
    return 0


def change(args: argparse.Namespace) -> int:
    if all(getattr(args, name) is None for name in FLAGS):
        raise CommandError("say which limits to change")
    return _write(args, lambda owner: limits_of(args, owner.limits))


def clear(args: argparse.Namespace) -> int:
    return _write(args, lambda owner: Limits())


def _write(args: argparse.Namespace, of: Callable[[Owner], Limits]) -> int:
    async def work(store: Store, _: Config) -> Owner:
        owner = await _owner(store, args)
        return await allowances.put(store, owner, of(owner))

    owner = with_store(args, work)
    if args.json:
        show_json({"kind": owner.kind, "id": owner.id, "limits": owner.limits})
    else:
        print(f"{owner.kind} {owner.name}: {shown_limits(owner.limits)}")
    return 0


def shown_limits(limits: Limits) -> str:
    """On one line, for tables."""
    given = msgspec.structs.asdict(limits).items()
    return ", ".join(f"{FLAGS[name][0][2:]} {value}" for name, value in given if value is not None) or "not limited"


async def _owner(store: Store, args: argparse.Namespace) -> Owner:
    """The tenant, user or key that the options name."""
    if not (args.key or args.tenant):
        raise CommandError("name a --tenant, a --user of a --tenant, or a --key")
    return await allowances.owner_of(store, tenant=args.tenant or "", user=args.user or "", key=args.key or "")
