"""Shared by all commands: the options that name a store, the output of results, and the errors to explain to a person.

A command is a function of the parsed arguments that returns its exit code: 0 success, 1 failure. Results go to standard
output, as a table or (`--json`) as one JSON document; sentences for the person go to standard error.
"""

import argparse
import asyncio
import contextlib
import datetime
import getpass
import os
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gateway import config as cfg
from gateway import loading
from gateway.services import moments
from gateway.store import open_store
from gateway.store.base import Store
from gateway.store.facts import sqlite_path

T = TypeVar("T")
Commands = Any
"""argparse's own type for a group of commands is private."""
Run = Callable[[argparse.Namespace], int]
_MOST_ROWS = 100_000


class CommandError(Exception):
    """The command failed; the message is for the person."""


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def config_option(parser: argparse.ArgumentParser, summary: str) -> None:
    """`--config FILE`, else the file named by FAIRGATE_CONFIG, else None."""
    parser.add_argument("--config", type=Path, metavar="FILE", default=config_named(), help=summary)


def config_named() -> Path | None:
    """The file named by FAIRGATE_CONFIG."""
    named = os.environ.get("FAIRGATE_CONFIG")
    return Path(named) if named else None


def rows_option(parser: argparse.ArgumentParser) -> None:
    """`--rows`: the maximum rows of a table."""
    parser.add_argument("-n", "--rows", type=whole(1, _MOST_ROWS), default=20, help="number of rows (default: 20)")


def store_options(parser: argparse.ArgumentParser) -> None:
    """The store is named by `--store`, else by the configuration, else by the configuration's default."""
    parser.add_argument("--store", metavar="URL", help="SQLite file or URL (default: as configured, else fairgate.db)")
    config_option(parser, "configuration file that names the store")
    json_option(parser)


def verb(verbs: Commands, name: str, run: Run, summary: str) -> argparse.ArgumentParser:
    """Declare one of a family's commands that work on a store."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run)
    store_options(parser)
    return parser


def configuration(args: argparse.Namespace) -> cfg.Config:
    """The configuration the arguments name, or the defaults."""
    return loading.load(args.config) if args.config is not None else cfg.Config()


def with_store(
    args: argparse.Namespace, work: Callable[[Store, cfg.Config], Awaitable[T]], *, begins: bool = False
) -> T:
    """Run `work` with the store open. A missing store is created only by commands that can be the first to use one
    (`begins`): in the wrong folder, a command must not answer from an empty store."""

    async def run() -> T:
        config = configuration(args)
        url = args.store or config.store
        if (path := missing_store(url)) is not None:
            if not begins:
                raise CommandError(f"there is no store {path}: name yours with --config, FAIRGATE_CONFIG or --store")
            say(f"{path} is a new store; if yours is another, name it with --config or FAIRGATE_CONFIG")
        store = await open_store(url)
        store.actor = actor()
        try:
            return await work(store, config)
        finally:
            await store.close()

    return asyncio.run(run())


def missing_store(url: str) -> Path | None:
    """The full path of an embedded store that does not exist yet."""
    path = sqlite_path(url)
    return path.absolute() if path is not None and not path.exists() else None


async def holders(store: Store) -> dict[str, str]:
    """Id -> name of every tenant and user."""
    tenants, users = await store.tenants(), await store.users()
    return {each.id: each.name for each in tenants} | {each.id: each.name for each in users}


def actor() -> str:
    """The person who runs the command, for the record (U7). A container's user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def shared_store(args: argparse.Namespace) -> str:
    """The URL of a PostgreSQL store, for commands that need one."""
    url: str = args.store or configuration(args).store
    if not url.startswith(("postgresql://", "postgres://")):
        raise CommandError("this is for PostgreSQL stores; an embedded one does not need it")
    return url


def say(sentence: str) -> None:
    """Tell the person something that is not part of the result."""
    print(sentence, file=sys.stderr)


_CONTROLS = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
"""Control characters that JSON does not escape."""


def show_json(document: Any) -> None:
    """One JSON document, indented. Structs become objects."""
    print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode().translate(_CONTROLS))


_OBEYED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that terminals act on instead of showing them: controls, line ends, changes of writing direction."""


def harmless(text: str, keep: str = "") -> str:
    """`text` for a terminal, with such characters escaped, except those to `keep`. Clients choose model names, and the
    content of prompts."""
    return _OBEYED.sub(lambda c: c[0] if c[0] in keep else c[0].encode("unicode_escape").decode(), text)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Left-aligned columns, separated by two blanks."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(header))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None or value == "" or value == ():
        return "-"
    if isinstance(value, tuple):
        return harmless(",".join(str(item) for item in value))
    return harmless(str(value))


def when(micros: int | None) -> str:
    """A time of the store for a person, in UTC."""
    if micros is None:
        return "-"
    return datetime.datetime.fromtimestamp(micros / 1e6, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


# ---- argparse types: each says what it wants; argparse itself would say the function's name


def whole(low: int, high: int) -> Callable[[str], int]:
    """An argparse type for integers in a range."""

    def number(text: str) -> int:
        with contextlib.suppress(ValueError):
            if low <= (found := int(text)) <= high:
                return found
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")

    return number


def moment(text: str, zone: datetime.tzinfo | None = datetime.UTC) -> int:
    """ISO 8601 -> Unix microseconds. Without an offset it is a time of `zone`; None: of this machine's."""
    try:
        return moments.moment(text, zone)
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


def names(text: str) -> tuple[str, ...]:
    """`a,b` -> ("a", "b"). An empty list is refused: an unset variable in a script would restrict nothing."""
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise argparse.ArgumentTypeError("empty; leave it out instead")
    return found
