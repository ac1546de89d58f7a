"""`fairgate usage`: who used what and when, how fast it was, and what it cost (U6)."""

import argparse
import csv
import sys
from typing import Any

import msgspec

from gateway.commands.audit import inert
from gateway.commands.common import Commands, moment, show_json, store_options, table, with_store
from gateway.config import Config
from gateway.services import accounts
from gateway.services.usage import named, price_table
from gateway.store.base import Store
from gateway.store.usage import BY, HOUR_US, UsageQuery, UsageRow

_HEADER = (
    "REQUESTS", "ERRORS", "TOKENS IN", "TOKENS OUT", "SLOT S", "QUEUE P50/P95 MS", "FIRST BYTE P50/P95 MS",
    "TOTAL P50/P95 MS", "COST",
)  # fmt: skip


def add(commands: Commands) -> None:
    """Declare it."""
    summary = "report requests, tokens, slot seconds, waiting times and cost"
    parser = commands.add_parser(
        "usage", help=summary, description=f"{summary}. Requests count at the time they ended, in UTC."
    )
    parser.add_argument("by", nargs="?", choices=BY, default="tenant", help="what to group by (default: tenant)")
    store_options(parser)
    parser.add_argument(
        "--since", type=_hour, metavar="TIME", help="ended at or after this time, ISO 8601, UTC, a whole hour"
    )
    parser.add_argument("--until", type=_hour, metavar="TIME", help="ended before this time, a whole hour")
    parser.add_argument("--tenant", default="", help="only of this tenant, by name or id")
    parser.add_argument("--csv", action="store_true", help="print CSV with a header line instead of a table")
    parser.set_defaults(run=run)


def _hour(text: str) -> int:
    """An argparse type: like `moment`, but for whole hours only, by which usage is kept."""
    found = moment(text)
    if found % HOUR_US:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole hour; usage is kept by the hour")
    return found


def run(args: argparse.Namespace) -> int:
    """Print a row for each group; prices come from the configuration."""
    rows, names = with_store(args, lambda store, config: _read(args, store, config))
    shown = [{args.by: name, **msgspec.structs.asdict(row)} for name, row in zip(names, rows, strict=True)]
    if args.json:
        show_json(shown)
    elif args.csv:
        fields = [args.by, *UsageRow.__struct_fields__]
        writer: Any = csv.DictWriter(sys.stdout, fields)
        writer.writeheader()
        writer.writerows({name: inert(value) for name, value in row.items()} for row in shown)
    else:
        print(table((args.by.upper(), *_HEADER), [(name, *_cells(row)) for name, row in zip(names, rows, strict=True)]))
    return 0


async def _read(args: argparse.Namespace, store: Store, config: Config) -> tuple[list[UsageRow], list[str]]:
    tenant = (await accounts.find_tenant(store, args.tenant)).id if args.tenant else ""
    times = {name: at for name in ("since", "until") if (at := getattr(args, name)) is not None}
    rows = await store.usage(UsageQuery(by=args.by, tenant=tenant, prices=price_table(config.prices), **times))
    return rows, await named(store, args.by, rows)


def _cells(row: UsageRow) -> tuple[object, ...]:
    return (
        row.requests, row.errors, row.prompt_tokens, row.completion_tokens, round(row.slot_seconds, 1),
        _pair(row.queue_p50_ms, row.queue_p95_ms), _pair(row.first_byte_p50_ms, row.first_byte_p95_ms),
        _pair(row.total_p50_ms, row.total_p95_ms), row.cost,
    )  # fmt: skip


def _pair(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:.0f}/{high:.0f}"
