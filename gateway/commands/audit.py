"""`fairgate audit tail`: the latest rows of the audit trail."""

import argparse

import msgspec

from gateway.commands.common import Commands, show_json, store_options, table, when, with_store
from gateway.services.audit import AuditRecord

_LONGEST_TAIL = 100_000


def add(commands: Commands) -> None:
    """Declare the family."""
    verbs = commands.add_parser("audit", help="read the audit trail").add_subparsers(required=True, metavar="VERB")
    tail = verbs.add_parser("tail", help="the latest rows, oldest first")
    store_options(tail)
    tail.add_argument("-n", "--rows", type=_count, default=20, help="how many (default: 20)")
    tail.set_defaults(run=show_tail)


def _count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= _LONGEST_TAIL:
        raise argparse.ArgumentTypeError(f"1 to {_LONGEST_TAIL}")
    return count


def show_tail(args: argparse.Namespace) -> int:
    rows = with_store(args, lambda store, _: store.audit_tail(args.rows))
    records = [AuditRecord.of(row) for row in rows]
    if args.json:
        show_json([msgspec.structs.asdict(record) for record in records])
        return 0
    header = ("TIME (UTC)", "REQUEST", "KEY", "ROUTE", "MODEL", "STATUS", "OUTCOME", "TOKENS", "QUEUE MS", "TOTAL MS")
    print(table(header, [_shown(record) for record in records]))
    return 0


def _shown(r: AuditRecord) -> tuple[object, ...]:
    tokens = f"{r.prompt_tokens}+{r.completion_tokens}{'~' if r.usage_estimated else ''}"
    model = r.model_served or r.model_asked
    return (
        when(r.started_at), r.id, r.key, r.route, model, r.status, r.outcome, tokens, r.queue_us // 1000,
        r.total_us // 1000,
    )  # fmt: skip
