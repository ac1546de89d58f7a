"""`fairgate limits`: what tenants, users and keys may use, and what they used. Must not know how it is counted."""

import argparse
import re
import time
from typing import Any, Literal, NamedTuple

import msgspec

from gateway.commands.common import CommandError, Commands, show_json, store_options, table, with_store
from gateway.config import Config
from gateway.services import accounts
from gateway.store.base import Store
from gateway.store.limits import BUDGETS, Budget, Limits, window

FLAGS: dict[str, tuple[str, str]] = {
    "requests_per_minute": ("--rpm", "requests per minute"),
    "burst": ("--burst", "requests at once after a pause (default: a minute's worth)"),
    "tokens_per_minute": ("--tpm", "tokens per minute, input and output"),
    "concurrent": ("--concurrency", "requests open at once"),
    "tokens_per_day": ("--tokens-per-day", "tokens per day (UTC)"),
    "tokens_per_month": ("--tokens-per-month", "tokens per month (UTC)"),
    "tokens_total": ("--tokens-total", "tokens, ever"),
    "gpu_seconds_per_day": ("--gpu-seconds-per-day", "seconds of a backend's slot per day (UTC)"),
    "gpu_seconds_per_month": ("--gpu-seconds-per-month", "seconds of a backend's slot per month (UTC)"),
    "gpu_seconds_total": ("--gpu-seconds-total", "seconds of a backend's slot, ever"),
}
REMOVED = 0
"""What the word `none` becomes: no number a limit may have."""


class _Owner(NamedTuple):
    kind: Literal["tenant", "user", "key"]
    id: str
    name: str
    limits: Limits


def add(commands: Commands) -> None:
    """Declare the family."""
    parser = commands.add_parser("limits", help="show and change rates and budgets")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    shown = _verb(verbs, "show", show, "Show limits, and what is spent and reserved of budgets.")
    changed = _verb(verbs, "set", change, "Change the limits that are named; `none` removes one. Acts within a second.")
    cleared = _verb(verbs, "clear", clear, "Remove all limits of a tenant, user or key.")
    for verb in (shown, changed, cleared):
        verb.add_argument("--tenant", help="name or id")
        verb.add_argument("--user", help="name or id, of the tenant")
        verb.add_argument("--key", help="public id")
    limit_options(changed)


def _verb(verbs: Commands, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run)
    store_options(parser)
    return parser


def limit_options(parser: argparse.ArgumentParser) -> None:
    """One flag for each limit."""
    group = parser.add_argument_group("limits", "whole numbers from 1 on, or none")
    for name, (flag, meaning) in FLAGS.items():
        group.add_argument(flag, dest=name, type=_number, metavar="N", help=meaning)


def _number(text: str) -> int:
    if text == "none":
        return REMOVED
    number = int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else 0
    if number < 1:
        raise argparse.ArgumentTypeError("a limit is a whole number from 1 on, or none")
    return number


def limits_of(args: argparse.Namespace, before: Limits = Limits()) -> Limits:  # noqa: B008  # frozen
    """`before` with what the flags change."""
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    changes = {name: None if number == REMOVED else number for name, number in given.items()}
    return accounts.check_limits(msgspec.structs.replace(before, **changes))


# -- verbs


def show(args: argparse.Namespace) -> int:
    async def work(store: Store, _: Config) -> tuple[_Owner, list[Budget]]:
        owner = await _owner(store, args)
        return owner, await store.budgets(f"{owner.kind}:{owner.id}")

    owner, budgets = with_store(args, work)
    used = _used(owner.limits, budgets)
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


def _used(limits: Limits, budgets: list[Budget]) -> dict[str, dict[str, Any]]:
    """Of each budget that is set: what its current window spent, and what gateways hold of it."""
    known = {budget.budget: budget for budget in budgets}
    used = {}
    for name, (unit, period) in BUDGETS.items():
        if getattr(limits, name) is not None:
            part, end = window(period, time.time())
            row = known.get(f"{unit}/{part}", Budget("", ""))
            scale = 1000 if unit == "gpu" else 1
            spent, held = row.spent / scale, row.held / scale
            used[name] = {
                "spent": spent if unit == "gpu" else int(spent),
                "held": held if unit == "gpu" else int(held),
                "resets_at": None if end == float("inf") else int(end),
            }
    return used


def change(args: argparse.Namespace) -> int:
    if all(getattr(args, name) is None for name in FLAGS):
        raise CommandError("say which limits to change")
    return _write(args, lambda owner: limits_of(args, owner.limits))


def clear(args: argparse.Namespace) -> int:
    return _write(args, lambda owner: Limits())


def _write(args: argparse.Namespace, of: Any) -> int:
    async def work(store: Store, _: Config) -> tuple[_Owner, Limits]:
        owner = await _owner(store, args)
        limits = of(owner)
        await store.set_limits(owner.kind, owner.id, limits)
        return owner, limits

    owner, limits = with_store(args, work)
    if args.json:
        show_json({"kind": owner.kind, "id": owner.id, "limits": limits})
    else:
        print(f"{owner.kind} {owner.name}: {shown_limits(limits)}")
    return 0


def shown_limits(limits: Limits) -> str:
    """In one line, for tables."""
    given = msgspec.structs.asdict(limits).items()
    return ", ".join(f"{FLAGS[name][0][2:]} {value}" for name, value in given if value is not None) or "not limited"


async def _owner(store: Store, args: argparse.Namespace) -> _Owner:
    """Whom the options name: the innermost of tenant, user and key."""
    if args.key:
        chain = await store.chain(args.key)
        if chain is None:
            raise CommandError(f"there is no key {args.key!r}")
        return _Owner("key", chain.key.id, chain.key.name or chain.key.id, chain.key.limits)
    if not args.tenant:
        raise CommandError("name a --tenant, a --user of a --tenant, or a --key")
    tenant = await accounts.find_tenant(store, args.tenant)
    if not args.user:
        return _Owner("tenant", tenant.id, tenant.name, tenant.limits)
    user = await accounts.find_user(store, tenant, args.user)
    return _Owner("user", user.id, user.name, user.limits)
