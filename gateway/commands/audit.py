"""`fairgate audit tail|verify|export|prune|actions`: the audit trail for people, scripts and auditors."""

import argparse
import asyncio
import csv
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import msgspec

from gateway.commands.common import (
    CommandError,
    Commands,
    actor,
    moment,
    rows_option,
    say,
    shared_store,
    show_json,
    store_options,
    table,
    when,
    with_store,
)
from gateway.config import Config
from gateway.services import trail
from gateway.services.record import AuditRecord
from gateway.spools import spools
from gateway.store.base import STORED_COLUMNS, Store


def add(commands: Commands) -> None:
    """Declare the family."""
    verbs = commands.add_parser("audit", help="read and check the audit trail").add_subparsers(
        required=True, metavar="VERB"
    )
    _add_tail(verbs)
    _add_verify(verbs)
    _add_export(verbs)
    _add_prune(verbs)
    _add_actions(verbs)


def _add_tail(verbs: Commands) -> None:
    tail = verbs.add_parser("tail", help="show the latest rows, oldest first")
    store_options(tail)
    rows_option(tail)
    tail.set_defaults(run=show_tail)


def _add_verify(verbs: Commands) -> None:
    verify = verbs.add_parser("verify", help="check the hash chains and name the first broken row (exit code 1)")
    store_options(verify)
    verify.add_argument(
        "--anchors", type=Path, metavar="FILE", help="anchors kept outside the database (default: as configured)"
    )
    verify.set_defaults(run=show_verified)


def _add_export(verbs: Commands) -> None:
    export = verbs.add_parser("export", help="export the rows of a period as JSON lines or CSV")
    store_options(export)
    export.add_argument(
        "--since", type=moment, default=0, metavar="TIME", help="recorded at or after this time, ISO 8601, UTC"
    )
    export.add_argument("--until", type=moment, default=(1 << 63) - 1, metavar="TIME", help="recorded before this time")
    export.add_argument("--csv", action="store_true", help="CSV with a header line instead of JSON lines")
    export.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: standard output)")
    export.set_defaults(run=write_export)


def _add_prune(verbs: Commands) -> None:
    prune = verbs.add_parser("prune", help="retention: drop whole months of a PostgreSQL store, as its owner")
    store_options(prune)
    prune.add_argument(
        "--before", type=moment, required=True, metavar="TIME", help="drop months that ended before this time"
    )
    prune.set_defaults(run=drop_months)


def _add_actions(verbs: Commands) -> None:
    actions = verbs.add_parser("actions", help="show what admins did, latest last")
    store_options(actions)
    rows_option(actions)
    actions.set_defaults(run=show_actions)


# -- tail


def show_tail(args: argparse.Namespace) -> int:
    rows = with_store(args, lambda store, _: store.audit_tail(args.rows))
    records = [AuditRecord.of(row) for row in rows]
    if args.json:
        show_json([msgspec.structs.asdict(record) for record in records])
        return 0
    header = (
        "TIME (UTC)", "REQUEST", "KEY", "ROUTE", "MODEL", "STATUS", "OUTCOME", "TOKENS", "QUEUE MS", "TOTAL MS", "ERROR"
    )  # fmt: skip
    print(table(header, [_shown(record) for record in records]))
    return 0


def _shown(r: AuditRecord) -> tuple[object, ...]:
    tokens = f"{r.prompt_tokens}+{r.completion_tokens}{'~' if r.usage_estimated else ''}"
    model = r.model_served or r.model_asked
    return (
        when(r.started_at), r.id, r.key, r.route, model, r.status, r.outcome, tokens, r.queue_us // 1000,
        r.total_us // 1000, r.error,
    )  # fmt: skip


def show_actions(args: argparse.Namespace) -> int:
    """Changes of tenants, users, keys, limits, settings and reservations, and who read or deleted prompts (U7)."""
    rows = with_store(args, lambda store, _: store.operations_history(None, args.rows))
    if args.json:
        show_json(rows)
    else:
        header = ("TIME (UTC)", "ACTOR", "KIND", "SUBJECT", "WHAT")
        print(table(header, [(when(row.at), row.actor, row.kind, row.id, _what(row.body)) for row in rows]))
    return 0


def _what(body: str | None) -> str:
    """The action and its arguments, without empty or unset ones."""
    if body is None:
        return "cleared"
    told = json.loads(body)
    if not isinstance(told, dict):
        return body
    given = ", ".join(f"{name} {json.dumps(value)}" for name, value in told.items() if name != "did" and value)
    return " ".join(part for part in (told.get("did", "set"), given) if part)


# -- verify


def show_verified(args: argparse.Namespace) -> int:
    """0: every chain is intact. 1: names the first broken row of each broken chain."""

    async def work(store: Store, config: Config) -> list[trail.Verified]:
        return await trail.verify(store, _anchors(args.anchors, store, config))

    try:
        chains = with_store(args, work)
    except trail.AnchorError as err:
        raise CommandError(str(err)) from err
    if args.json:
        show_json(chains)
    else:
        print(table(("WRITER", "ROWS", "LAST", "VERDICT"), [(c.writer, c.rows, c.last, _verdict(c)) for c in chains]))
    return 1 if any(chain.broken for chain in chains) else 0


def _anchors(named: Path | None, store: Store, config: Config) -> trail.Anchors:
    """The anchors of all writers. A file named on the command line must exist; configured ones may not have been
    written yet. Without a configured file each worker has its own, in its spool."""
    if named is not None:
        return trail.read_anchors(named)
    one = [Path(config.audit.anchors)] if config.audit.anchors else []
    files = one or [spool / "anchors.jsonl" for spool in spools(config, store)]
    found: dict[str, Mapping[int, bytes]] = {}
    for path in files:
        try:
            found.update(trail.read_anchors(path))
        except trail.AnchorError as err:
            if not isinstance(err.__cause__, FileNotFoundError):
                raise
    if not found:
        say(f"no anchors in {files[0].absolute()}: a chain that was computed anew would not be noticed")
    return found


def _verdict(chain: trail.Verified) -> str:
    if chain.broken is not None:
        row = f" (request {chain.broken.row})" if chain.broken.row else ""
        return f"BROKEN at {chain.broken.seq}{row}: {chain.broken.reason}"
    if not chain.rows:
        return "retention dropped all its rows"
    return "whole, but nothing vouches for the oldest row left" if chain.unproven else "whole"


# -- export


def write_export(args: argparse.Namespace) -> int:
    """An earlier export is overwritten only once the store is open. Like the store, a new export is readable by its
    owner only."""

    async def work(store: Store, _: Config) -> int:
        rows = trail.export(store, args.since, args.until)
        if args.output is None:
            return await _write(sys.stdout, rows, as_csv=args.csv)
        try:
            target = os.open(args.output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
            with os.fdopen(target, "w", encoding="utf-8", newline="") as file:
                return await _write(file, rows, as_csv=args.csv)
        except OSError as err:
            raise CommandError(f"{args.output}: {err.strerror or err}") from err

    say(f"{with_store(args, work)} rows")
    return 0


async def _write(file: TextIO, rows: AsyncIterator[dict[str, object]], *, as_csv: bool) -> int:
    count = 0
    writer: Any = csv.DictWriter(file, STORED_COLUMNS)
    if as_csv:
        writer.writeheader()
    async for row in rows:
        if as_csv:
            writer.writerow({name: inert(value) for name, value in row.items()})
        else:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        count += 1
    return count


def inert(value: object) -> object:
    """A value that a spreadsheet does not run as a formula: clients choose model names (OWASP: CSV injection)."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


# -- prune


def drop_months(args: argparse.Namespace) -> int:
    """Print what was dropped. The remaining rows can still be verified, from the oldest one on."""
    from gateway.store.postgresql import drop_partitions  # the embedded store must not need the driver

    if args.before > time.time_ns() // 1000:
        raise CommandError("--before is in the future: a month that is not over is never dropped")
    dropped = asyncio.run(drop_partitions(shared_store(args), args.before, actor()))
    if args.json:
        show_json(dropped)
    else:
        print("\n".join(dropped) or "nothing is that old")
    return 0
