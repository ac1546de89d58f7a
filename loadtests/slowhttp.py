"""Do other clients notice slow and hostile ones? slowhttptest (Debian) against a gateway, a light load beside it.

    python -m loadtests.slowhttp [--connections 2000] [--seconds 20] [--out loadtests/results]

Four modes: -H slow heads, -B slow bodies, -R range headers, -X slow reads. The measured load is paced, well below
capacity; its p99 in each mode is compared with that of a quiet window just before. Exits 1 when one more than doubles
or a request of the load fails.
"""

import argparse
import asyncio
import json
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
    "-H": ["-H", "-i", "1", "-t", "GET"],
    "-B": ["-B", "-i", "1", "-s", "8192", "-t", "POST"],
    "-R": ["-R", "-t", "GET", "-a", "10", "-b", "3000"],
    "-X": ["-X", "-w", "1", "-y", "8", "-n", "1", "-z", "32", "-k", "10", "-t", "GET"],
}
FACTOR = 2.0


def settings(port: int) -> dict[str, Any]:
    """Default timers and caps; only the cap on connections of one address is raised: all come from one."""
    url = f"http://127.0.0.1:{port}"
    backends = [{"name": kind, "url": url, "engine": kind, "slots": 100} for kind in ("openai", "ollama")]
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
            due += 8 / rate
        client.close()

    results = await asyncio.gather(*(one(n) for n in range(8)), return_exceptions=True)
    return times, troubles + [repr(result) for result in results if result is not None]


def percentile(times: list[float], share: float) -> float:
    return statistics.quantiles(times, n=1000)[round(share * 1000) - 1]


def attack(rig: Rig, mode: list[str], options: argparse.Namespace) -> "subprocess.Popen[bytes]":
    program = shutil.which("slowhttptest")
    assert program is not None
    count = ["-c", str(options.connections), "-r", "500", "-l", str(int(options.seconds) + 5), "-p", "3"]
    url = f"http://127.0.0.1:{rig.port}/v1/{'models' if 'GET' in mode else 'chat/completions'}"
    key = f"*/*\r\nAuthorization: Bearer {rig.keys[1]}"  # it has no option for fields; a stranger gets a 401 at once
    return subprocess.Popen(
        [program, *mode, *count, "-m", key, "-u", url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


async def measured(rig: Rig, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A quiet window, then the same load under attack."""
    await load(rig, 2, options.rate)
    quiet, troubles = await load(rig, options.seconds, options.rate)
    attacker = attack(rig, MODES[name], options)
    await asyncio.sleep(options.connections / 500 + 1)  # it opens 500 connections a second
    before, cpu, began = await rig.stats(), rig.cpu(), time.monotonic()
    busy, more = await load(rig, options.seconds - options.connections / 500 - 1, options.rate)
    after = await rig.stats()
    attacker.terminate()
    await asyncio.to_thread(attacker.wait)
    return {
        "mode": name,
        "open": before["server"]["open"],
        "timed_out": after["server"]["timed_out"],
        "quiet": [percentile(quiet, 0.5), percentile(quiet, 0.99)],
        "busy": [percentile(busy, 0.5), percentile(busy, 0.99)],
        "requests": len(busy),
        "cpu": (rig.cpu() - cpu) / (time.monotonic() - began),
        "troubles": troubles + more,
    }


async def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    async with Engine() as engine:
        for name in MODES:
            async with Rig(settings(engine.port)) as rig:
                rows.append(await measured(rig, name, options))
            print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    lines = [
        "# Slow and hostile clients\n",
        f"`python -m loadtests.slowhttp`: slowhttptest with {options.connections} connections in each mode, default",
        f"timers; beside it {options.rate:g} chats a second on 8 kept connections. Times in ms, on 2 cores shared with",
        "other work; the attacker runs at the lowest priority. `core` is the gateway's share of one under attack.\n",
        "| mode | hostile open | p50 quiet | p50 attacked | p99 quiet | p99 attacked | ratio | failed | core |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        (q50, q99), (b50, b99) = row["quiet"], row["busy"]
        cells = [row["mode"], row["open"], f"{q50:.2f}", f"{b50:.2f}", f"{q99:.2f}", f"{b99:.2f}", f"{b99 / q99:.2f}"]
        lines.append(
            "| " + " | ".join(str(cell) for cell in [*cells, len(row["troubles"]), f"{row['cpu']:.0%}"]) + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    known = argparse.ArgumentParser(prog="python -m loadtests.slowhttp", description=__doc__.split("\n")[0])
    known.add_argument("--connections", type=int, default=2000)
    known.add_argument("--seconds", type=float, default=20.0, help="of each window")
    known.add_argument("--rate", type=float, default=100.0, help="measured requests a second")
    known.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = known.parse_args()
    if shutil.which("slowhttptest") is None:
        print("slowhttptest is needed (Debian: apt-get install slowhttptest)", file=sys.stderr)
        return 2
    rows = uvloop.run(run(options))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "slowhttp.md").write_text(report(rows, options))
    print(report(rows, options))
    bad = [r["mode"] for r in rows if r["troubles"] or r["busy"][1] > FACTOR * r["quiet"][1]]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
