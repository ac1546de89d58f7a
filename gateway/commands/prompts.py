"""`fairgate prompts`: keep a key's prompts, show them, delete them (U5). Each of these actions is recorded (U7)."""

import argparse

import msgspec

from gateway.commands.common import (
    CommandError,
    Commands,
    harmless,
    rows_option,
    show_json,
    table,
    verb,
    when,
    whole,
    with_store,
)
from gateway.config import Config
from gateway.services.accounts import LONGEST_DAYS, no_key, now_us
from gateway.store.base import Store
from gateway.store.prompts import Prompt


def add(commands: Commands) -> None:
    """Declare the family."""
    family = commands.add_parser("prompts", help="keep the prompts of a key for some days; show and delete them")
    verbs = family.add_subparsers(required=True, metavar="VERB")
    on = verb(verbs, "on", keep, "keep the prompts of a key from now on, redacted as configured")
    on.add_argument("key", help="its public id")
    on.add_argument(
        "--days",
        type=whole(1, LONGEST_DAYS),
        required=True,
        metavar="N",
        help=f"1-{LONGEST_DAYS}; then each prompt is deleted",
    )
    off = verb(verbs, "off", stop, "stop keeping prompts of a key; kept ones stay until they expire or are purged")
    off.add_argument("key", help="its public id")
    listing = verb(verbs, "list", show_list, "list kept prompts, latest last, without their text")
    listing.add_argument("--key", default="", help="only prompts of this key, by its public id")
    rows_option(listing)
    verb(verbs, "show", show, "show the text of a request's prompt").add_argument("id", help="the request's id")
    purge = verb(verbs, "purge", delete, "delete kept prompts at once")
    which = purge.add_mutually_exclusive_group(required=True)
    which.add_argument("--request", default="", metavar="ID", help="the prompt of this request")
    which.add_argument("--key", default="", metavar="ID", help="all prompts of this key")
    which.add_argument("--all", action="store_true", help="the prompts of all keys")


async def _note(store: Store, subject: str, did: str, **more: int) -> None:
    body = msgspec.json.encode({"did": did, **more}).decode()
    await store.operate("prompts", subject, body, now_us(), store.actor)


def keep(args: argparse.Namespace) -> int:
    return _set_days(args, args.days)


def stop(args: argparse.Namespace) -> int:
    return _set_days(args, 0)


def _set_days(args: argparse.Namespace, days: int) -> int:
    if not with_store(args, lambda store, _: store.set_prompt_days(args.key, days)):
        raise no_key(args.key)
    if args.json:
        show_json({"id": args.key, "prompt_days": days})
    else:
        print(f"{args.key}: prompts are {f'kept for {days} days' if days else 'not kept'}")
    return 0


def show_list(args: argparse.Namespace) -> int:
    prompts = with_store(args, lambda store, _: store.prompts(args.key, args.rows, now_us()))
    if args.json:
        show_json([_described(prompt) for prompt in prompts])
    else:
        rows = [(when(p.at), p.id, p.key, p.route, p.model, p.size, when(p.expires_at)) for p in prompts]
        print(table(("TIME (UTC)", "REQUEST", "KEY", "ROUTE", "MODEL", "BYTES", "UNTIL"), rows))
    return 0


def _described(prompt: Prompt) -> dict[str, object]:
    described = msgspec.structs.asdict(prompt)
    del described["body"]
    return described


def show(args: argparse.Namespace) -> int:
    """There may be several: clients may choose request ids."""

    async def work(store: Store, _: Config) -> list[Prompt]:
        found = await store.prompt(args.id, now_us())
        await _note(store, args.id, "read", prompts=len(found))
        return found

    prompts = with_store(args, work)
    if not prompts:
        raise CommandError(f"no prompt of a request {args.id!r} is kept")
    if args.json:
        show_json([{**_described(prompt), "body": _text(prompt)} for prompt in prompts])
    else:
        print("\n".join(harmless(_text(prompt), keep="\n\t") for prompt in prompts))
    return 0


def _text(prompt: Prompt) -> str:
    return prompt.body.decode("utf-8", "replace")


def delete(args: argparse.Namespace) -> int:
    """Recorded first: deleting many prompts takes several steps, and the action must be on record even if they are
    interrupted."""

    async def work(store: Store, _: Config) -> int:
        await _note(store, args.request or args.key or "all", "purge")
        return await store.delete_prompts(request=args.request, key=args.key)

    count = with_store(args, work)
    if args.json:
        show_json({"deleted": count})
    else:
        print(f"{count} deleted")
    return 0
