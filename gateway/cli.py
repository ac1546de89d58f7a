"""The `fairgate` command: one tree of arguments, one function for each command.

Exit codes: 0 done, 1 could not be done (one sentence on standard error), 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Sequence

from gateway import __version__
from gateway.commands import accounts, audit, configuration, doctor, limits, migrate, serving, top, tuning, usage
from gateway.commands.common import CommandError, say
from gateway.config import ConfigError
from gateway.services.accounts import AccountError
from gateway.services.spool import SpoolError
from gateway.store import StoreError

FAMILIES = (serving, accounts, limits, tuning, configuration, doctor, migrate, audit, usage, top)


def parser() -> argparse.ArgumentParser:
    """The whole tree."""
    tree = argparse.ArgumentParser(
        prog="fairgate", description="A fair gateway in front of self-hosted language models."
    )
    tree.add_argument("--version", action="version", version=f"fairgate {__version__}")
    commands = tree.add_subparsers(required=True, metavar="COMMAND")
    for family in FAMILIES:
        family.add(commands)
    return tree


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command -> exit code."""
    args = parser().parse_args(argv)
    try:
        code: int = args.run(args)
    except (AccountError, CommandError, ConfigError, SpoolError, StoreError) as err:
        say(f"fairgate: {err}")
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe left: nothing is wrong and nobody listens
        return 1
    return code
