"""Ten thousand streams at once through one process: are all complete and byte-exact, and what does one cost?

    python -m loadtests.streams [--streams 10000] [--frames 40] [--rate 1] [--out loadtests/results]

The C backend and load generator of `bench/` judge every frame and count every byte. Each stream needs two descriptors
in the gateway: the most that fits under the hard limit is run when that is less. Another gateway holds connections that
have been answered once and stay idle. Exits 1 when one answer is unsound.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.tools import Backend, run_load
from loadtests.rig import Rig
from loadtests.traffic import Client

SPARE = 500  # descriptors besides the streams'
IDLE = 5_000
MIB = 1 << 20


def fitting(asked: int) -> int:
    """How many streams the open-file limit allows, at most `asked`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return asked if hard == resource.RLIM_INFINITY else min(asked, (hard - SPARE) // 2)


def settings(port: int) -> dict[str, Any]:
    backend = {"name": "bench", "url": f"http://127.0.0.1:{port}", "engine": "openai", "slots": 100_000}
    caps = {"connections": 60_000, "connections_per_ip": 60_000, "connections_per_key": 60_000}
    return {"backends": [backend], "caps": caps}


class Watch:
    """The most of what was seen while the load ran; the load generator blocks, so this looks from a thread."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.running = 0
        self.rss = 0

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(2.0):
            stats = json.loads(self._rig.fetch("/stats")[1])
            running = stats["scheduler"]["running"]
            if running >= self.running:
                self.running, self.rss = running, max(self.rss, self._rig.rss())


def generate(rig: Rig, backend: Backend, count: int, ramp: float, options: argparse.Namespace) -> dict[str, Any]:
    """The load generator's judgement of `count` streams."""
    exact = backend.expected_bytes(api="openai", stream=True, frames=options.frames, usage=False)
    length = options.frames / options.rate
    words = ["--port", str(rig.port), "--mode", "closed", "--stream", "--conns", str(count), "--prompt-bytes", "256"]
    words += ["--frames", str(options.frames), "--expect-bytes", str(exact), "--keys", str(rig.folder / "keys")]
    words += ["--ramp", str(ramp), "--warmup", "1", "--duration", str(length + 5), "--timeout", "120"]
    return run_load(options.core, words, lambda pid: None, lambda pid: None)


async def quiet(rig: Rig) -> dict[str, Any]:
    """The state once the load generator's connections are closed."""
    deadline = time.monotonic() + 20
    stats = await rig.stats()
    while stats["server"]["open"] and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        stats = await rig.stats()
    return stats


async def idle_each(rig: Rig) -> float:
    """Resident bytes of the gateway for each kept connection that waits for its next request."""
    clients = [Client(rig.port, rig.keys[0], random.Random(n)) for n in range(IDLE)]
    before = rig.rss()
    for client in clients:
        await client.open()
        client.writer.write(client.request("/v1/models"))
        assert (await client.answer())[0] == 200
    each = (rig.rss() - before) / IDLE
    for client in clients:
        client.close()
    await quiet(rig)
    return each


async def run(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    count = fitting(options.streams)
    with Backend(options.core) as backend:
        backend.set(frames=options.frames, rate=options.rate)
        async with Rig(settings(backend.port)) as other:  # memory once used would hide what streams need
            kept = await idle_each(other)
        async with Rig(settings(backend.port)) as rig:
            await asyncio.to_thread(generate, rig, backend, 20, 1, options)  # keys verified, code and buffers there
            idle, began = rig.rss(), rig.cpu()
            with Watch(rig) as watch:
                result = await asyncio.to_thread(generate, rig, backend, count, options.ramp, options)
            after = await quiet(rig)
            row = {
                "streams": count,
                "asked": options.streams,
                "at once": watch.running,
                "rss kept": kept,
                "rss idle": idle,
                "rss full": watch.rss,
                "rss after": rig.rss(),
                "cpu": rig.cpu() - began,
                "log": rig.log()[-300:],
                "left": [after["scheduler"]["running"], after["ledger"]["open"], after["server"]["open"]],
                **{
                    name: result[name]
                    for name in ("all_requests", "all_sound", "errors", "troubles", "statuses", "connects")
                },
                "transit_us": result["transit_us"],
            }
    return row, judge(row)


def judge(row: dict[str, Any]) -> list[str]:
    troubles = []
    if row["all_sound"] != row["all_requests"] or row["errors"]:
        troubles.append(
            f"unsound answers: {row['all_requests'] - row['all_sound']}, {row['troubles']}, {row['statuses']}"
        )
    if row["at once"] < row["streams"]:
        troubles.append(f"only {row['at once']} of {row['streams']} ran at once")
    if any(row["left"]):
        troubles.append(f"slots, requests, connections left: {row['left']}")
    return troubles


def report(row: dict[str, Any], options: argparse.Namespace, troubles: list[str]) -> str:
    each = (row["rss full"] - row["rss idle"]) / row["streams"] * 1000 / MIB
    rows = {
        "streams at once": f"{row['at once']} (asked for {row['asked']}; the open-file limit allows {row['streams']})",
        "each stream": f"{options.frames} frames, {options.rate:g} a second, opened within {options.ramp:g} s",
        "answers judged": f"{row['all_requests']}, complete and byte-exact: {row['all_sound']}",
        "RSS idle, full, after": ", ".join(f"{row[n] / MIB:.1f} MiB" for n in ("rss idle", "rss full", "rss after")),
        "RSS per 1 000 streams": f"{each:.1f} MiB",
        "RSS per 1 000 idle connections": f"{row['rss kept'] * 1000 / MIB:.1f} MiB, of {IDLE} answered once",
        "CPU of the gateway": f"{row['cpu']:.1f} s",
        "transit of a frame": f"{json.dumps(row['transit_us'])} us, with backend and load generator on one core",
        "left afterwards": f"slots {row['left'][0]}, requests {row['left'][1]}, connections {row['left'][2]}",
        "verdict": "; ".join(troubles) or "all complete",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    cores = f"{os.cpu_count()} cores, shared with other work"
    head = f"# Ten thousand streams through one process\n\n`python -m loadtests.streams`, {cores}."
    return f"{head}\n\n| | |\n|---|---|\n{table}\n"


def main() -> int:
    known = argparse.ArgumentParser(prog="python -m loadtests.streams", description=__doc__.split("\n")[0])
    known.add_argument("--streams", type=int, default=10_000)
    known.add_argument("--frames", type=int, default=40)
    known.add_argument("--rate", type=float, default=1.0, help="frames a second of one stream")
    known.add_argument("--ramp", type=float, default=15.0, help="seconds in which all are opened")
    known.add_argument("--core", type=int, default=1, help="of backend and load generator")
    known.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = known.parse_args()
    row, troubles = uvloop.run(run(options))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "streams.md").write_text(report(row, options, troubles))
    print(report(row, options, troubles), row["log"])
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
