"""Does a flood of invalid keys disturb other clients? 5000 of them a second beside a light load of a known key.

    python -m loadtests.flood [--flood 5000] [--rate 200] [--seconds 5] [--rounds 3] [--out loadtests/results]

Three floods: from one address (throttled after ten failures), from thousands of addresses behind a trusted proxy with
keys that do not exist, and with wrong secrets of keys that do (each would cost an Argon2id verification). Quiet and
flooded windows take turns. Both C tools and the engine run on one core, the gateway on the other. Writes `flood.md`;
exits 1 when the p99 of the others more than doubles or one of their requests fails.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.tools import Backend, compile_tool, pinned, run_load
from gateway.services.keyfmt import PREFIX, checksum, mint, random_text
from loadtests.report import RESULTS, machine, page, table
from loadtests.rig import Rig

FACTOR = 2.0
SOURCES = 20_000
USERS = 20
"""With a key each: theirs are the measured requests, and the ids that are guessed at."""
GATEWAY_CORE, LOAD_CORE = 0, 1


def from_one_address(_: list[str]) -> list[str]:
    return [mint().token for _ in range(SOURCES)]


def unknown_keys(_: list[str]) -> list[str]:
    return [f"{mint().token}\t{_source(number)}" for number in range(SOURCES)]


def wrong_secrets(known: list[str]) -> list[str]:
    """The public parts of keys that exist, other secrets, right checksums."""
    heads = [key.encode()[: len(PREFIX) + 13] for key in known]
    bodies = (heads[number % len(heads)] + random_text(28).encode() for number in range(SOURCES))
    return [f"{(body + checksum(body)).decode()}\t{_source(number)}" for number, body in enumerate(bodies)]


def _source(number: int) -> str:
    return f"X-Forwarded-For: 10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


FLOODS = {
    "one address": from_one_address,
    "many addresses, unknown keys": unknown_keys,
    "many addresses, wrong secrets": wrong_secrets,
}


def settings(port: int) -> dict[str, Any]:
    """Defaults, but for the proxy that tells the addresses and the connections that it may have."""
    return {
        "backends": [{"name": "bench", "url": f"http://127.0.0.1:{port}", "engine": "openai", "slots": 200}],
        "trusted_proxies": ["127.0.0.0/8"],
        "caps": {"connections_per_ip": 5_000},
    }


class Flood:
    """The attacker, a process; `report` is its last line."""

    def __init__(self, rig: Rig, keys: Path, options: argparse.Namespace) -> None:
        words = ["--port", rig.port, "--mode", "open", "--rate", options.flood, "--conns", 2000, "--rotate"]
        words += ["--keys", keys, "--warmup", 1, "--duration", options.seconds + 1, "--prompt-bytes", 64]
        words += ["--expect-status", 401]
        command = pinned(LOAD_CORE, [str(compile_tool("load")), *map(str, words)])
        self._process = subprocess.Popen(["nice", "-n", "5", *command], stdout=subprocess.PIPE, text=True)

    def report(self) -> dict[str, Any]:
        text, _ = self._process.communicate(timeout=60)
        return dict(json.loads(text.splitlines()[-1]))


def others(rig: Rig, options: argparse.Namespace) -> dict[str, Any]:
    """One window of the measured load."""
    words = ["--port", rig.port, "--mode", "open", "--rate", options.rate, "--conns", 16, "--prompt-bytes", 256]
    words += ["--keys", rig.folder / "keys", "--warmup", 1, "--duration", options.seconds]
    return run_load(LOAD_CORE, [str(word) for word in words], lambda _: None, lambda _: None)


async def measured(rig: Rig, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Quiet and flooded windows in turn."""
    keys = rig.folder / "invalid"
    windows: dict[str, list[dict[str, Any]]] = {"quiet": [], "flooded": []}
    statuses: dict[str, int] = {}
    cores = []
    for _ in range(options.rounds):
        windows["quiet"].append(await asyncio.to_thread(others, rig, options))
        await asyncio.to_thread(keys.write_text, "\n".join(FLOODS[name](rig.keys)) + "\n")
        flood, before = Flood(rig, keys, options), rig.cpu()
        windows["flooded"].append(await asyncio.to_thread(others, rig, options))
        cores.append((rig.cpu() - before) / (options.seconds + 1))
        told = await asyncio.to_thread(flood.report)
        for status, count in told["statuses"].items():
            statuses[status] = statuses.get(status, 0) + count
    return {"name": name, "statuses": statuses, "core": statistics.median(cores)} | {
        kind: {
            "p50": statistics.median(each["latency_us"]["p50"] for each in them) / 1000,
            "p99": statistics.median(each["latency_us"]["p99"] for each in them) / 1000,
            "failed": sum(_failed(each) for each in them),
            "requests": sum(each["requests"] for each in them),
        }
        for kind, them in windows.items()
    }


def _failed(window: dict[str, Any]) -> int:
    """What was due at the very end and not sent any more is no failure."""
    return int(window["errors"]) - int(window["troubles"].get("unsent", 0))


async def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with Backend(LOAD_CORE) as backend:
        for name in FLOODS:
            async with Rig(settings(backend.port), users=USERS) as rig:
                os.sched_setaffinity(rig.pid, {GATEWAY_CORE})
                rows.append(await measured(rig, name, options))
            print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    """Write the page -> the floods that broke the promise."""
    cells, bad = [], []
    for row in rows:
        quiet, flooded = row["quiet"], row["flooded"]
        ratio = flooded["p99"] / quiet["p99"]
        if ratio > FACTOR or flooded["failed"]:
            bad.append(row["name"])
        times = [f"{each[figure]:.2f}" for figure in ("p50", "p99") for each in (quiet, flooded)]
        answers = ", ".join(f"{count} x {status}" for status, count in sorted(row["statuses"].items()))
        cells.append([row["name"], *times, f"{ratio:.2f}", flooded["failed"], f"{row['core']:.0%}", answers])
    header = ["flood", "p50 quiet", "p50 flooded", "p99 quiet", "p99 flooded", "ratio", "failed", "core", "answers"]
    facts = {
        "machine": machine(),
        "flood": f"{options.flood:g} a second, {SOURCES} keys anew in each round",
        "others": f"{options.rate:g} chats a second of {USERS} known keys, not streamed",
        "windows": f"{options.rounds} quiet, {options.rounds} flooded, in turn, of {options.seconds:g} s; medians, ms",
        "verdict": f"p99 more than doubled: {', '.join(bad)}" if bad else "p99 of the others did not double",
    }
    page(options.out / "flood.md", "A flood of invalid keys", "python -m loadtests.flood", facts, table(header, cells))
    return bad


def main() -> int:
    known = argparse.ArgumentParser(prog="python -m loadtests.flood", description=__doc__.split("\n")[0])
    known.add_argument("--flood", type=float, default=5000.0, help="invalid keys a second")
    known.add_argument("--rate", type=float, default=200.0, help="measured requests a second")
    known.add_argument("--seconds", type=float, default=5.0, help="of each window")
    known.add_argument("--rounds", type=int, default=3)
    known.add_argument("--out", type=Path, default=RESULTS)
    options = known.parse_args()
    return 1 if report(asyncio.run(run(options)), options) else 0


if __name__ == "__main__":
    sys.exit(main())
