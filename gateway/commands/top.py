"""`fairgate top`: shows in a terminal what the gateway does right now: backends, queues, and who uses how much.

Reads `/stats` of the admin listener and, to show names instead of ids, the store. `picture` is pure.
"""

import argparse
import asyncio
import contextlib
import shutil
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
import msgspec

from gateway.commands.common import (
    CommandError,
    Commands,
    configuration,
    holders,
    missing_store,
    say,
    store_options,
    with_store,
)
from gateway.config import Config
from gateway.store.base import StoreError

HOME, CLEAR_BELOW, CLEAR_LINE = "\x1b[H", "\x1b[J", "\x1b[K"
SHOW_ALTERNATE, SHOW_MAIN = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
"""Hides the cursor and stops wrapping long lines, which would move the lines below."""
BOLD, DIM, RED, GREEN, YELLOW, CYAN, PLAIN = (f"\x1b[{n}m" for n in (1, 2, 31, 32, 33, 36, 0))
EIGHTHS = " ▏▎▍▌▋▊▉█"
STATES = {"closed": ("up", GREEN), "half_open": ("trial", YELLOW), "open": ("down", RED)}
"""Breaker state -> how the engine is shown."""
UNSEEN = ("unseen", RED)


def add(commands: Commands) -> None:
    """Add the command to the tree."""
    view = commands.add_parser("top", help="watch backends, queues and shares live")
    store_options(view)
    view.add_argument("--admin", metavar="URL", help="the admin listener (default: as configured)")
    view.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="time between two refreshes (default: 1)"
    )
    view.add_argument("--once", action="store_true", help="print one snapshot and exit")
    view.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Watch until interrupted."""
    config = configuration(args)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_show(args, config, _names(args, config)))
    return 0


def _names(args: argparse.Namespace, config: Config) -> Mapping[str, str]:
    """Id -> name. Without the store (on another machine, or while it is down) ids are shown."""
    path = missing_store(args.store or config.store)
    lacks = f"there is no store {path}"
    if path is None:
        try:
            return with_store(args, lambda store, _: holders(store))
        except StoreError as err:
            lacks = str(err)
    say(f"{lacks}: ids are shown instead of names")
    return {}


async def _show(args: argparse.Namespace, config: Config, names: Mapping[str, str]) -> None:
    if not (args.admin or config.admin.listen):
        raise CommandError("admin.listen is empty: there is nothing to look at; name a listener with --admin")
    url = args.admin or f"http://{config.admin.listen}"
    try:
        client = httpx.AsyncClient(base_url=url, timeout=5.0, trust_env=False)
    except httpx.InvalidURL as err:
        raise CommandError(f"no statistics from {url!r}: {err}") from err
    async with client as http:
        if args.json:
            sys.stdout.write(msgspec.json.encode(await _look(http)).decode() + "\n")
        elif args.once or not sys.stdout.isatty():
            print("\n".join(picture(await _look(http), names, shutil.get_terminal_size().columns, colour=False)))
        else:
            await _watch(http, names, max(0.2, args.interval))


async def _look(http: httpx.AsyncClient) -> dict[str, Any]:
    try:
        answer = await http.get("/stats")
        found = f"status {answer.status_code}"
        if answer.status_code == httpx.codes.OK:
            stats = msgspec.json.decode(answer.content, type=dict[str, Any])
            if isinstance(stats.get("scheduler"), dict):
                return stats
            found = "the answer of another program"
    except (httpx.HTTPError, msgspec.DecodeError) as err:
        found = str(err)
    raise CommandError(f"no statistics from {http.base_url}: {found}; does the gateway run, with admin.listen there?")


async def _watch(http: httpx.AsyncClient, names: Mapping[str, str], interval: float) -> None:
    """Draw until interrupted. Raises CommandError if the first look fails; later failures are shown until they end."""
    stats, away = await _look(http), ""
    sys.stdout.write(SHOW_ALTERNATE)
    try:
        while True:
            size = shutil.get_terminal_size()
            lines = picture(stats, names, size.columns) if stats else [away]
            sys.stdout.write(HOME + "".join(f"{line}{CLEAR_LINE}\n" for line in lines[: size.lines - 1]) + CLEAR_BELOW)
            sys.stdout.flush()
            await asyncio.sleep(interval)
            try:
                stats = await _look(http)
            except CommandError as err:
                stats, away = {}, f"{RED}{err}{PLAIN}"
    finally:
        sys.stdout.write(SHOW_MAIN)
        sys.stdout.flush()


# ---- the picture


def picture(stats: Mapping[str, Any], names: Mapping[str, str], width: int, *, colour: bool = True) -> list[str]:
    """The screen as lines. `stats`: the object of `/stats`; `width` in columns."""
    scheduler = stats["scheduler"]
    lines = [
        *_headline(stats, scheduler),
        "",
        *_backends(stats, scheduler["gates"], width),
        "",
        *_queues(scheduler["pools"]),
        "",
        *_parties(scheduler["parties"], names, width),
    ]
    return lines if colour else [_uncoloured(line) for line in lines]


def _headline(stats: Mapping[str, Any], scheduler: Mapping[str, Any]) -> list[str]:
    server, audit = stats["server"], stats["audit"]
    ready = (
        f"{GREEN}ready{PLAIN}" if stats["ready"] else f"{RED}{'draining' if stats['draining'] else 'not ready'}{PLAIN}"
    )
    refused = sum(scheduler["refused"].values())
    return [
        f"{BOLD}fairgate {stats['version']}{PLAIN}  {ready}   {scheduler['running']} running   "
        f"{scheduler['queued']} queued   {server['open']} connections   {server['requests']} requests",
        f"{DIM}granted {scheduler['granted']}   refused {refused}   audit {audit['written']} written, "
        f"{audit['pending']} pending{PLAIN}",
    ]


def _backends(stats: Mapping[str, Any], gates: Iterable[Mapping[str, Any]], width: int) -> list[str]:
    slots = {gate["gate"]: gate for gate in gates}
    zombies = {one["backend"]: one["held"] for one in stats["zombies"]}
    lines = [f"{CYAN}{'BACKEND':<20} {'STATE':<10} {'SLOTS':>9} {'ZOMBIES':>8}{PLAIN}"]
    for each in stats["backends"]:
        gate = slots.get(each["name"], {"slots": 0, "running": 0})
        share = gate["running"] / gate["slots"] if gate["slots"] else 0.0
        state, tint = STATES.get(each["state"], UNSEEN) if each["up"] else UNSEEN
        used, held = f"{gate['running']}/{gate['slots']}", zombies.get(each["name"], 0)
        lines.append(
            f"{each['name'][:20]:<20} {tint}{state:<10}{PLAIN} {used:>9} {held:>8}  {bar(share, max(8, width - 55))}"
        )
    return lines


def _queues(pools: Iterable[Mapping[str, Any]]) -> list[str]:
    heads = f"{'MODEL':<32} {'QUEUED':>7} {'RUNNING':>8} {'SLOTS':>6} {'OLDEST':>8} {'SERVICE':>8}"
    busy = sorted(pools, key=lambda pool: (-pool["queued"], -pool["running"], pool["pool"]))
    lines = [f"{CYAN}{heads}{PLAIN}"]
    for pool in busy:
        tint = YELLOW if pool["queued"] else ""
        model = pool["pool"].partition("\t")[0]
        lines.append(
            f"{tint}{model[:32]:<32} {pool['queued']:>7} {pool['running']:>8} {pool['slots']:>6} "
            f"{seconds(pool['oldest_wait']):>8} {seconds(pool['service_time']):>8}{PLAIN if tint else ''}"
        )
    return lines


def _parties(parties: Iterable[Mapping[str, Any]], names: Mapping[str, str], width: int) -> list[str]:
    """Users by recent usage; the bar is each user's part of the total."""
    rows = sorted(parties, key=lambda party: (-party["usage"], party["user"]))
    total = sum(party["usage"] for party in rows) or 1.0
    heads = f"{'USER':<28} {'USAGE':>9} {'SHARE':>6} {'QUEUED':>7} {'RUNNING':>8} {'WAIT':>7}"
    lines = [f"{CYAN}{heads}{PLAIN}"]
    for party in rows:
        who = f"{names.get(party['tenant'], party['tenant'])}/{names.get(party['user'], party['user'])}"
        wait = party["waited"] / party["grants"] if party["grants"] else 0.0
        part = party["usage"] / total
        lines.append(
            f"{who[:28]:<28} {count(party['usage']):>9} {party['share']:>6g} {party['queued']:>7} "
            f"{party['running']:>8} {seconds(wait):>7}  {bar(part, max(8, width - 78))} {part:>4.0%}"
        )
    return lines if len(lines) > 1 else [*lines, f"{DIM}nobody lately{PLAIN}"]


def bar(share: float, width: int) -> str:
    """A horizontal bar of `share` (0..1) of `width` columns, in eighths of a column."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, part = divmod(eighths, 8)
    text = "█" * full + (EIGHTHS[part] if part else "")
    return f"{text:<{width}}"


def seconds(value: float) -> str:
    """A duration for people."""
    if value < 1.0:
        return f"{value * 1000:.0f}ms"
    return f"{value:.1f}s" if value < 100.0 else f"{value / 60:.0f}min"


def count(value: float) -> str:
    """A large number for people: 950, 12.3k, 4.5M."""
    for limit, unit in ((1e3, ""), (1e6, "k"), (1e9, "M")):
        if value < limit * 0.9995:
            return f"{value / (limit / 1e3):.{0 if not unit else 1}f}{unit}"
    return f"{value / 1e9:.1f}G"


def _uncoloured(line: str) -> str:
    for code in (BOLD, DIM, RED, GREEN, YELLOW, CYAN, PLAIN):
        line = line.replace(code, "")
    return line
