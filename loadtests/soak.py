"""Is memory flat and nothing leaked after mixed traffic with failures?

    python -m loadtests.soak [--seconds 1860] [--warm-up 300] [--workers 40] [--seed 1] [--out loadtests/results]

One gateway process, a scripted engine and clients that err, stall and leave in every phase. Writes `soak.jsonl` (one
sample a line), `soak.svg` and `soak.md`; exits 1 when a limit is broken.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from loadtests.engine import Engine
from loadtests.plot import Panel, chart
from loadtests.rig import Rig
from loadtests.traffic import Tally, worker

GROWTH = 1.1  # of resident memory, after the warm-up
SETTLE_SECONDS = 20.0  # kept connections of both sides expire within this
MIB = 1 << 20
BUFFER = 64 * 1024


def settings(port: int) -> dict[str, Any]:
    """Short timers, so that each ends many requests; few slots, so that requests queue."""
    url = f"http://127.0.0.1:{port}"
    return {
        "backends": [
            {"name": "first", "url": url, "engine": "openai", "slots": 6},
            {"name": "second", "url": url, "engine": "openai", "slots": 6},
            {"name": "ollama", "url": url, "engine": "ollama", "slots": 8},
        ],
        "timeouts": {"head": 2, "body": 4, "body_idle": 2, "keep_alive": 5, "slow_reader": 2, "comment": 0.5},
        "upstream": {"connect": 1, "first_byte": 3, "between": 2, "total": 30},
        "discovery": {"interval": 5, "eject_after": 20, "eject_for": 1},
        "caps": {"buffer_bytes": BUFFER, "connections_per_ip": 500},
        "scheduling": {"queue_timeout": 5},
    }


def sample(rig: Rig, stats: dict[str, Any], started: float, tally: Tally) -> dict[str, float]:
    """One line of the record."""
    scheduler, server, ledger = stats["scheduler"], stats["server"], stats["ledger"]
    return {
        "seconds": round(time.monotonic() - started, 1),
        "rss": rig.rss(),
        "fds": rig.fds(),
        "clients": server["open"],
        "busy": server["busy"],
        "upstream": stats["upstream_connections"],
        "running": scheduler["running"],
        "queued": scheduler["queued"],
        "open": ledger["open"],
        "waiting": ledger["waiting"],
        "body_bytes": ledger["body_bytes"],
        "audit_pending": stats["audit"]["pending"],
        "requests": server["requests"],
        "timed_out": server["timed_out"],
        "moves": sum(tally.moves.values()),
        "cpu": rig.cpu(),
    }


HELD = ("clients", "running", "queued", "open", "waiting", "body_bytes", "audit_pending")
"""What must be 0 once nobody asks for anything."""


async def soak(options: argparse.Namespace) -> list[str]:
    """Run and write the results; what is wrong, in sentences."""
    tally, samples = Tally(), list[dict[str, float]]()
    async with Engine() as engine, Rig(settings(engine.port)) as rig:
        started = time.monotonic()
        before = sample(rig, await rig.stats(), started, tally)
        workers = [
            asyncio.create_task(worker(rig.port, rig.keys, options.seed * 1000 + n, options.pause, tally))
            for n in range(options.workers)
        ]
        while time.monotonic() - started < options.seconds:
            await asyncio.sleep(options.every)
            samples.append(sample(rig, await rig.stats(), started, tally))
            if failed := [w for w in workers if w.done()]:
                failed[0].result()
        for w in workers:
            w.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        after = await settled(rig, started, tally, before)
        troubles = judge(options, samples, before, after, tally) + _crashes(rig)
    write(options, samples, before, after, tally, troubles)
    return troubles


async def settled(rig: Rig, started: float, tally: Tally, before: dict[str, float]) -> dict[str, float]:
    """The state once all is given back, or when the time for that is over."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        now = sample(rig, await rig.stats(), started, tally)
        whole = not any(now[name] for name in HELD) and now["fds"] - now["upstream"] <= before["fds"]
        if whole or time.monotonic() > deadline:
            return now
        await asyncio.sleep(0.5)


def warm(options: argparse.Namespace, samples: list[dict[str, float]]) -> list[dict[str, float]]:
    return [s for s in samples if s["seconds"] >= options.warm_up]


def memory(options: argparse.Namespace, samples: list[dict[str, float]]) -> tuple[float, float]:
    """Resident bytes after the warm-up and at the end: medians of a minute each, under load."""
    later = warm(options, samples)
    count = max(1, min(len(later) // 2, int(60 / options.every)))
    first = statistics.median(s["rss"] for s in later[:count])
    return first, statistics.median(s["rss"] for s in later[-count:])


def judge(
    options: argparse.Namespace,
    samples: list[dict[str, float]],
    before: dict[str, float],
    after: dict[str, float],
    tally: Tally,
) -> list[str]:
    troubles = [f"{name} is {after[name]:g} after the run" for name in HELD if after[name]]
    first, last = memory(options, samples)
    if last > GROWTH * first:
        troubles.append(f"memory grew from {first / MIB:.1f} to {last / MIB:.1f} MiB")
    if after["fds"] - after["upstream"] > before["fds"]:
        troubles.append(f"{after['fds']:g} descriptors after, {before['fds']:g} before")
    return troubles + [f"{count} times {what}" for what, count in tally.wrong.items()]


def _crashes(rig: Rig) -> list[str]:
    log = rig.log()
    return [f"the log speaks of bugs: {log[:500]}"] if "Traceback" in log or "by a bug" in log else []


def write(
    options: argparse.Namespace,
    samples: list[dict[str, float]],
    before: dict[str, float],
    after: dict[str, float],
    tally: Tally,
    troubles: list[str],
) -> None:
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    lines = [*({"at": "load", **s} for s in samples), {"at": "end", **after}]
    (out / "soak.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{"at": "start", **before}, *lines]))
    times = [s["seconds"] for s in samples]
    panels = [
        Panel("resident memory, MiB", {"RSS": [s["rss"] / MIB for s in samples]}),
        Panel("descriptors", {"fds": [s["fds"] for s in samples], "clients": [s["clients"] for s in samples]}),
        Panel("requests in the gateway", {n: [s[n] for s in samples] for n in ("running", "queued", "busy")}),
    ]
    (out / "soak.svg").write_text(chart("Soak: errors, stalls and disconnects", times, panels, options.warm_up))
    (out / "soak.md").write_text(report(options, samples, before, after, tally, troubles))


def report(
    options: argparse.Namespace,
    samples: list[dict[str, float]],
    before: dict[str, float],
    after: dict[str, float],
    tally: Tally,
    troubles: list[str],
) -> str:
    first, last = memory(options, samples)
    seconds = samples[-1]["seconds"]
    moves = sum(tally.moves.values())
    statuses = ", ".join(f"{status or 'none'}: {count}" for status, count in sorted(tally.statuses.items()))
    rows = [
        ("duration", f"{seconds / 60:.1f} minutes, {options.workers} clients at a time, seed {options.seed}"),
        ("machine", f"Python {platform.python_version()}, {os.cpu_count()} cores, shared with other work"),
        ("requests read by the gateway", f"{after['requests']:.0f} ({after['requests'] / seconds:.0f} a second)"),
        ("client moves", f"{moves}, {_failing(tally) / moves:.0%} of them errors, stalls or disconnects"),
        ("last status of each move", statuses),
        ("ended by a client-side timer", f"{after['timed_out']:.0f}"),
        ("RSS after warm-up, at the end", f"{first / MIB:.1f} MiB, {last / MIB:.1f} MiB (x {last / first:.3f})"),
        (
            "descriptors before, after",
            f"{before['fds']:.0f}, {after['fds']:.0f} ({after['upstream']:.0f} upstream kept)",
        ),
        ("held after the run", ", ".join(f"{name} {after[name]:.0f}" for name in HELD)),
        ("verdict", "; ".join(troubles) or "all limits kept"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    each = "\n".join(f"| {name} | {count} |" for name, count in tally.moves.most_common())
    return (
        "# Soak\n\n`python -m loadtests.soak`; what each move is: `loadtests/traffic.py`.\n\n"
        f"| | |\n|---|---|\n{table}\n\n![plot](soak.svg)\n\n| move | times |\n|---|---|\n{each}\n"
    )


FAIR = ("whole_chats", "whole_streams", "embeds", "lists", "pipelined")


def _failing(tally: Tally) -> int:
    return sum(count for move, count in tally.moves.items() if move not in FAIR)


def parser() -> argparse.ArgumentParser:
    known = argparse.ArgumentParser(prog="python -m loadtests.soak", description=__doc__.split("\n")[0])
    known.add_argument("--seconds", type=float, default=float(os.environ.get("SOAK_SECONDS", "1860")))
    known.add_argument("--warm-up", type=float, default=None, help="default: 300, or a quarter of a shorter run")
    known.add_argument("--workers", type=int, default=40)
    known.add_argument("--pause", type=float, default=0.4, help="longest pause of a client between two moves")
    known.add_argument("--every", type=float, default=5.0, help="seconds between two samples")
    known.add_argument("--seed", type=int, default=1)
    known.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return known


def main() -> int:
    options = parser().parse_args()
    if options.warm_up is None:
        options.warm_up = min(300.0, options.seconds / 4)
    troubles = uvloop.run(soak(options))
    for trouble in troubles:
        print(trouble, file=sys.stderr)
    print((options.out / "soak.md").read_text())
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
