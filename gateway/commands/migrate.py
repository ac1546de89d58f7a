"""`fairgate migrate`: migrates a PostgreSQL store and grants the gateways' role what it needs (O6, U4)."""

import argparse
import asyncio

from gateway.commands.common import Commands, shared_store, show_json, store_options


def add(commands: Commands) -> None:
    """Declare it."""
    summary = "create or update the schema of a PostgreSQL store; run it as the owner of the database"
    parser = commands.add_parser("migrate", help=summary, description=summary)
    store_options(parser)
    parser.add_argument(
        "--app-role",
        default="",
        metavar="ROLE",
        help="the role that gateways connect as; it is granted what they need, which for the audit trail is only "
        "reading and appending",
    )
    parser.set_defaults(run=migrate)


def migrate(args: argparse.Namespace) -> int:
    """Print each migration applied and each grant made. Repeating it changes nothing."""
    from gateway.store.postgresql import migrate as apply  # the embedded store must not need the driver

    done = asyncio.run(apply(shared_store(args), args.app_role))
    if args.json:
        show_json(done)
    else:
        print("\n".join(done) or "up to date")
    return 0
