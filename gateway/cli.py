"""The `fairgate` command: one tree of arguments, and one function for each command.

Exit codes: 0 success, 1 failure (one sentence on standard error), 2 wrong usage.
"""

import argparse
import errno
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from gateway import __version__
from gateway.commands import (
    accounts,
    audit,
    configuration,
    doctor,
    limits,
    migrate,
    models,
    prompts,
    serving,
    top,
    tuning,
    usage,
)
from gateway.commands.common import CommandError, say
from gateway.config import ConfigError
from gateway.logs import Scrubber
from gateway.process import hold_standard_files
from gateway.services.accounts import AccountError
from gateway.services.spool import SpoolError
from gateway.shape import nearest
from gateway.store import StoreError

FAMILIES = (serving, accounts, limits, tuning, configuration, doctor, models, migrate, audit, prompts, usage, top)

FIRST_STEPS = """\
first steps:
  fairgate demo                            try it, with a simulated engine if there is none
  fairgate check-config fairgate.yaml      is the file valid?
  fairgate tenants create lab --all-models --config fairgate.yaml
  fairgate users create lea --tenant lab --config fairgate.yaml
  fairgate keys create --tenant lab --user lea --config fairgate.yaml
  fairgate serve --config fairgate.yaml
  fairgate doctor --config fairgate.yaml   is the running gateway safe?

FAIRGATE_CONFIG in the environment is the default of --config. Exit codes: 0 done, 1 could not be done
(standard error says why), 2 wrong usage. Documentation: docs/index.md in the source tree.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that also suggests what was probably meant. Its subparsers are of this class too."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Unknown arguments are reported by the innermost command, with its own usage, and not passed up."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """Exit with 2. For misspelled choices and options, suggest the nearest ones."""
        wrong = re.search(r"invalid choice: '([^']*)'|unrecognized arguments: (--[\w-]+)", message)
        words = [*self._option_string_actions, *(str(word) for one in self._actions for word in one.choices or ())]
        super().error(message + (nearest(wrong[1] or wrong[2], words) if wrong else ""))


def parser() -> argparse.ArgumentParser:
    """The whole argument tree."""
    tree = Parser(
        prog="fairgate",
        description="A fair gateway in front of self-hosted language models.",
        epilog=FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tree.add_argument("--version", action="version", version=f"fairgate {__version__}")
    commands = tree.add_subparsers(required=True, metavar="COMMAND")
    for family in FAMILIES:
        family.add(commands)
    return tree


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command -> exit code. Without a command, list the commands."""
    hold_standard_files()
    tree = parser()
    if not (sys.argv[1:] if argv is None else argv):
        tree.print_help(sys.stderr)
        return 2
    args = tree.parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except ConfigError as err:
        say(f"fairgate: {Scrubber().complaint(str(err))}")
        return 1
    except (AccountError, CommandError, SpoolError, StoreError) as err:
        say(Scrubber().text(f"fairgate: {err}"))
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe closed it: no error, and nobody to tell
        return 1
    # A command was interrupted, or a gateway before it took over the signal: nothing to drain
    except KeyboardInterrupt:
        return 130
    except Exception as err:
        if isinstance(err, OSError) and err.errno == errno.ENOSPC:
            say(f"fairgate: {err}")
            # Output could not be written: keep the interpreter from trying again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        else:  # a bug: its traceback goes into reports, so it must be free of secrets like the log
            say(Scrubber().text(traceback.format_exc()))
        return 1
    return code
