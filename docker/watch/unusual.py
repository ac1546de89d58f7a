"""The watch over keys: reads audit rows (JSON, an array or a row a line) and compares each key with its own past.

    fairgate audit tail --rows 100000 --json | python unusual.py --textfile FILE

If the newest rows do not reach back far enough for a baseline, one metric says so: nothing could be found.

A key is unusual when the last hour's tokens exceed FACTOR times the median of its earlier busy hours and a floor. A
network is new when the key was used before the last hour, but never from there. Prints the keys; writes only counts for
Prometheus, because a key must never become a label. Needs nothing but Python's standard library.
"""

import argparse
import ipaddress
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HOUR = 3600.0
FACTOR = 5.0
FLOOR = 50_000  # tokens an hour that are never worth a look
BASELINE_HOURS = 3  # busy hours a key needs before it has a baseline
MOST_ROWS = 100_000  # the most that `audit tail` returns: there may be many more
FOUND = 10  # exit code

Row = dict[str, Any]


def network(address: str) -> str:
    """The /24 or /48 of an address; the text itself if it is not an address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 24 if parsed.version == 4 else 48), strict=False))


def unusual(rows: Iterable[Row], now: float) -> list[tuple[str, int, float]]:
    """(key, tokens of the last hour, median of its earlier busy hours) for keys far above themselves."""
    hours: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        if row["key"]:
            ago = int((now - row["started_at"] / 1e6) // HOUR)
            hours[row["key"]][ago] += row["prompt_tokens"] + row["completion_tokens"]
    found = []
    for key, used in sorted(hours.items()):
        earlier = [tokens for ago, tokens in used.items() if ago > 0 and tokens > 0]
        if len(earlier) >= BASELINE_HOURS:
            usual = statistics.median(earlier)
            if used.get(0, 0) > max(FLOOR, FACTOR * usual):
                found.append((key, used[0], usual))
    return found


def new_networks(rows: Iterable[Row], now: float) -> list[tuple[str, str]]:
    """(key, network) first met in the last hour, of keys that had been used from elsewhere before."""
    first: dict[tuple[str, str], float] = {}
    oldest: dict[str, float] = {}
    for row in rows:
        if row["key"] and row["status"] < 400:
            at = row["started_at"] / 1e6
            place = (row["key"], network(row["ip"]))
            first[place] = min(at, first.get(place, at))
            oldest[row["key"]] = min(at, oldest.get(row["key"], at))
    return sorted(place for place, at in first.items() if now - at <= HOUR < now - oldest[place[0]])


def short(rows: Sequence[Row], now: float) -> bool:
    """Whether the rows do not reach back far enough for a baseline."""
    oldest = min((row["started_at"] / 1e6 for row in rows), default=now)
    return len(rows) == MOST_ROWS and now - oldest < (BASELINE_HOURS + 1) * HOUR


def read(text: str, *, may_be_empty: bool = False) -> list[Row]:
    """Raises ValueError if the command before it in the pipe wrote no rows. An export without rows is empty, and so is
    one that failed: set `may_be_empty` if it is known to have succeeded."""
    if text.startswith("["):
        found: list[Row] = json.loads(text)
        return found
    if not text and not may_be_empty:
        raise ValueError("nothing came in: did `fairgate audit` fail?")
    return [json.loads(line) for line in text.splitlines()]


def exposition(keys: int, networks: int, now: float, *, blind: bool = False) -> str:
    return (
        "# HELP fairgate_unusual_keys Keys whose last hour is far above their own baseline.\n"
        f"# TYPE fairgate_unusual_keys gauge\nfairgate_unusual_keys {keys}\n"
        "# HELP fairgate_new_networks Keys used from a network for the first time, in the last hour.\n"
        f"# TYPE fairgate_new_networks gauge\nfairgate_new_networks {networks}\n"
        "# HELP fairgate_watch_short 1 where the rows did not reach back far enough for a baseline.\n"
        f"# TYPE fairgate_watch_short gauge\nfairgate_watch_short {int(blind)}\n"
        "# HELP fairgate_watch_timestamp_seconds When the watch last ran.\n"
        f"# TYPE fairgate_watch_timestamp_seconds gauge\nfairgate_watch_timestamp_seconds {now:.0f}\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Exit code FOUND when something is worth a look, 1 when the rows cannot be read, else 0."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--textfile", type=Path, help="for Prometheus' textfile collector; replaced whole")
    arguments.add_argument("--may-be-empty", action="store_true", help="no rows at all are no failure")
    given = arguments.parse_args(argv)
    try:
        rows, now = read(sys.stdin.read(), may_be_empty=given.may_be_empty), time.time()
    except ValueError as err:
        print(f"unusual: {err}", file=sys.stderr)
        return 1
    keys, networks = unusual(rows, now), new_networks(rows, now)
    for key, tokens, usual in keys:
        print(f"key {key}: {tokens} tokens in the last hour, usually {usual:.0f}")
    for key, place in networks:
        print(f"key {key}: first seen from {place}")
    if given.textfile:
        beside = given.textfile.with_suffix(".new")
        beside.write_text(exposition(len(keys), len(networks), now, blind=short(rows, now)), encoding="utf-8")
        os.replace(beside, given.textfile)
    return FOUND if keys or networks else 0


if __name__ == "__main__":
    sys.exit(main())
