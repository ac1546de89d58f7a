"""Do other clients notice slow and hostile ones? slowhttptest (Debian) against a gateway, a light load beside it.

    python -m loadtests.slowhttp [--modes HBRX] [--connections 2000] [--rounds 5] [--seconds 8]

Four modes: -H slow heads, -B slow bodies, -R heads of 23 KB full of ranges, -X slow reads of pipelined answers. Each
round has three windows of the same paced load: quiet; while the attack goes to another gateway on this machine, which
shows what the attacker itself takes; under attack. Medians over the rounds count. The load is measured while the
connections open (-R answers and closes each, so it opens them throughout) and held. Exits 1 when the p99 under attack
is more than twice the quiet one, or a request of the load fails.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from loadtests.engine import Engine
from loadtests.rig import Rig
from loadtests.traffic import Client, chat

MODES = {
    "H": ["-H", "-i", "1", "-t", "GET"],
    "B": ["-B", "-i", "1", "-s", "8192", "-t", "POST"],
    "R": ["-R", "-t", "GET", "-a", "10", "-b", "3000"],
    "X": ["-X", "-w", "1", "-y", "8", "-n", "1", "-z", "32", "-k", "10", "-t", "GET"],
}
FACTOR = 2.0
CLIENTS = 8
MODELS = 100  # listed: what -X reads is 9 KB an answer
MIB = 1 << 20


def settings(port: int) -> dict[str, Any]:
    """Default timers and caps; only the cap on connections of one address is raised: all come from one."""
    url = f"http://127.0.0.1:{port}"
    models = ["m", *(f"model-{number}" for number in range(MODELS))]
    backends = [
        {"name": "openai", "url": url, "engine": "openai", "slots": 100, "models": models},
        {"name": "ollama", "url": url, "engine": "ollama", "slots": 100},
    ]
    return {"backends": backends, "caps": {"connections_per_ip": 5_000}}


async def load(rig: Rig, seconds: float, rate: float) -> tuple[list[float], list[str]]:
    """Paced chats on a few kept connections: their times in ms, and what went wrong."""
    end = time.monotonic() + seconds
    times: list[float] = []
    troubles: list[str] = []

    async def one(seed: int) -> None:
        client = Client(rig.port, rig.keys[0], random.Random(seed))
        await client.open()
        due = time.monotonic() + seed / rate
        while due < end:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            began = time.perf_counter()
            client.writer.write(client.request(*chat(client.rng, stream=False)))
            status, _ = await asyncio.wait_for(client.answer(), 30)
            times.append((time.perf_counter() - began) * 1000)
            if status != 200:
                troubles.append(f"status {status}")
            due += CLIENTS / rate
        client.close()

    results = await asyncio.gather(*(one(n) for n in range(CLIENTS)), return_exceptions=True)
    return times, troubles + [repr(result) for result in results if result is not None]


def p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


def attacker(target: Rig, mode: str, options: argparse.Namespace) -> "subprocess.Popen[bytes]":
    program = shutil.which("slowhttptest")
    assert program is not None
    words = MODES[mode]
    rate = options.connections / options.seconds if mode == "R" else 500
    count = ["-c", str(options.connections), "-r", f"{rate:.0f}", "-l", str(int(options.seconds) + 15), "-p", "3"]
    url = f"http://127.0.0.1:{target.port}/v1/{'models' if 'GET' in words else 'chat/completions'}"
    key = f"*/*\r\nAuthorization: Bearer {target.keys[1]}"  # it has no option for fields; a stranger gets a 401 at once
    # With `chrt --rr 10` in front of the whole, other work of the machine stays out of the figures.
    first = ["chrt", "--rr", "1"] if os.sched_getscheduler(0) == os.SCHED_RR else []
    command = [*first, program, *words, *count, "-m", key, "-u", url]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def attacked(rig: Rig, target: Rig, mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """One window of the load on `rig` while `target` is attacked."""
    before, cpu, began = (await target.stats())["server"], rig.cpu(), time.monotonic()
    hostile = attacker(target, mode, options)
    times, troubles = await load(rig, options.seconds, options.rate)
    core = (rig.cpu() - cpu) / (time.monotonic() - began)
    after, rss = (await target.stats())["server"], target.rss()
    hostile.terminate()
    await asyncio.to_thread(hostile.wait)
    await quiet_again(target)
    return {
        "p99": p99(times),
        "troubles": troubles,
        "open": after["open"],
        "accepted": after["accepted"] - before["accepted"],
        "core": core,
        "rss": rss / MIB,
    }


async def quiet_again(target: Rig) -> None:
    """Until the hostile connections are gone."""
    async with asyncio.timeout(60):
        stats = await target.stats()
        while stats["server"]["open"] > 2 * CLIENTS:
            await asyncio.sleep(0.2)
            stats = await target.stats()


async def measured(rig: Rig, other: Rig, mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one mode."""
    rounds = []
    await load(rig, 2, options.rate)
    for _ in range(options.rounds):
        times, troubles = await load(rig, options.seconds, options.rate)
        elsewhere = await attacked(rig, other, mode, options)
        here = await attacked(rig, rig, mode, options)
        rounds.append({"quiet": p99(times), "troubles": troubles, "elsewhere": elsewhere, "here": here})
    return {"mode": mode, "rounds": rounds, **summary(rounds)}


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    middle = statistics.median
    quiet = middle(r["quiet"] for r in rounds)
    elsewhere, here = (middle(r[name]["p99"] for r in rounds) for name in ("elsewhere", "here"))
    return {
        "quiet": quiet,
        "elsewhere": elsewhere,
        "here": here,
        **{name: middle(r["here"][name] for r in rounds) for name in ("open", "accepted", "core", "rss")},
        "failed": sum(len(r["troubles"]) + len(r["here"]["troubles"]) for r in rounds),
    }


async def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    async with Engine() as engine:
        for mode in options.modes:
            async with Rig(settings(engine.port)) as rig, Rig(settings(engine.port)) as other:
                rows.append(await measured(rig, other, mode, options))
            print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    heads = ["mode", "accepted", "open at the end", "quiet", "elsewhere", "attacked", "to quiet", "to elsewhere"]
    heads += ["failed", "core", "RSS"]
    lines = [
        "# Slow and hostile clients\n",
        f"`python -m loadtests.slowhttp --rounds {options.rounds}`: slowhttptest, {options.connections} connections",
        f"in each mode, default timers; beside it {options.rate:g} chats a second on {CLIENTS} kept connections, in",
        f"windows of {options.seconds:g} s. p99 in ms, medians of {options.rounds} interleaved rounds, 2 cores shared",
        "with other work. `elsewhere`: the same attack on another gateway of this",
        "machine, so that only the attacker's own work is felt. `core` is the gateway's share of one under attack,",
        "`RSS` what it holds.\n",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for row in rows:
        quiet, elsewhere, here = row["quiet"], row["elsewhere"], row["here"]
        cells = [f"-{row['mode']}", f"{row['accepted']:.0f}", f"{row['open']:.0f}", f"{quiet:.2f}", f"{elsewhere:.2f}"]
        cells += [f"{here:.2f}", f"{here / quiet:.2f}", f"{here / elsewhere:.2f}", str(row["failed"])]
        cells += [f"{row['core']:.0%}", f"{row['rss']:.0f} MiB"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    known = argparse.ArgumentParser(prog="python -m loadtests.slowhttp", description=__doc__.split("\n")[0])
    known.add_argument("--modes", default="HBRX", help="of H, B, R, X")
    known.add_argument("--connections", type=int, default=2000)
    known.add_argument("--rounds", type=int, default=5)
    known.add_argument("--seconds", type=float, default=8.0, help="of each window")
    known.add_argument("--rate", type=float, default=200.0, help="measured requests a second")
    known.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = known.parse_args()
    if shutil.which("slowhttptest") is None:
        print("slowhttptest is needed (Debian: apt-get install slowhttptest)", file=sys.stderr)
        return 2
    rows = uvloop.run(run(options))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "slowhttp.md").write_text(report(rows, options))
    (options.out / "slowhttp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(report(rows, options))
    return 1 if any(row["failed"] or row["here"] > FACTOR * row["quiet"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
