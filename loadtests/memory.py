"""Where does the memory of an open stream go? By the line of code that allocated it, and by type.

    python -m loadtests.memory [--streams 1500] [--rows 30]

The gateway runs in this process under tracemalloc, the C backend and load generator of `bench/` outside. What uvloop
allocates (its transports, the buffers it reads into) appears under the loop's own run. Resident memory is what
`loadtests.streams` measures: tracing doubles it.
"""

import argparse
import asyncio
import gc
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from bench.tools import Backend, run_load
from gateway import config as cfg
from gateway.app import App
from gateway.services.accounts import KeyTerms, create_key, create_tenant, create_user
from gateway.store import open_store

FRAMES = 30  # a second apart
RAMP = 3.0  # seconds in which the streams are opened
ROOT = Path(__file__).parents[1]


@asynccontextmanager
async def gateway(backend: Backend, folder: Path) -> AsyncIterator[App]:
    """A gateway in this loop, and a key for it in `folder/keys`."""
    engine = cfg.Backend(name="bench", url=f"http://127.0.0.1:{backend.port}", engine="openai", slots=100_000)
    config = cfg.Config(
        listen="127.0.0.1:0",
        store=str(folder / "fairgate.db"),
        admin=cfg.Admin(listen=""),
        identity=cfg.Identity(argon2_time_cost=1, argon2_memory_kib=8),
        caps=cfg.Caps(connections=60_000, connections_per_ip=60_000, connections_per_key=60_000),
        backends=[engine],
    )
    store = await open_store(config.store)
    user = await create_user(store, await create_tenant(store, "t", allow_all_models=True), "u")
    (folder / "keys").write_text((await create_key(store, user, KeyTerms(), config.identity))[1] + "\n")
    app = App(config, store)
    async with app.running():
        await app.backends.looked()
        yield app
    await store.close()


async def streams(app: App, folder: Path, count: int, core: int) -> None:
    """Open `count` streams and keep that many open for a while; blocks a thread, not the loop."""
    words = ["--port", str(app.port), "--mode", "closed", "--stream", "--conns", str(count), "--prompt-bytes", "256"]
    words += ["--frames", str(FRAMES), "--keys", str(folder / "keys"), "--ramp", str(RAMP), "--warmup", "1"]
    words += ["--duration", str(FRAMES + 5), "--timeout", "60"]
    await asyncio.to_thread(lambda: run_load(core, words, lambda pid: None, lambda pid: None))


async def all_open(app: App, count: int) -> None:
    """Until so many streams run, and each has had some frames."""
    running = 0
    while running < count:
        await asyncio.sleep(0.2)
        running = app.scheduler.stats().running
    await asyncio.sleep(5)


def types() -> Counter[str]:
    return Counter(type(each).__name__ for each in gc.get_objects())


async def measure(options: argparse.Namespace) -> str:
    """The table, in Markdown."""
    with Backend(options.core) as backend, tempfile.TemporaryDirectory() as name:
        backend.set(frames=FRAMES, rate=1)
        folder = Path(name)
        async with gateway(backend, folder) as app:
            await streams(app, folder, 20, options.core)  # code, caches and buffers are there
            gc.collect()
            tracemalloc.start()
            before, kinds = tracemalloc.take_snapshot(), types()
            load = asyncio.create_task(streams(app, folder, options.streams, options.core))
            await all_open(app, options.streams)
            after, open_kinds = tracemalloc.take_snapshot(), types()
            tracemalloc.stop()
            await load
    return table(before, after, open_kinds - kinds, options)


def table(
    before: tracemalloc.Snapshot, after: tracemalloc.Snapshot, kinds: Counter[str], options: argparse.Namespace
) -> str:
    grown = after.compare_to(before, "lineno")
    count = options.streams
    lines = [
        "# What a stream holds\n",
        f"`python -m loadtests.memory --streams {count}`: {sum(row.size_diff for row in grown) / count:.0f} bytes of",
        "Python's and uvloop's own allocations for each open stream, by the line that made them.\n",
        "| bytes | objects | where |",
        "|---|---|---|",
    ]
    for row in grown[: options.rows]:
        frame = row.traceback[0]
        path = frame.filename.replace(f"{ROOT}/", "").rpartition("site-packages/")[2]
        path = path if not path.startswith("/") else "/".join(path.split("/")[-2:])
        lines.append(f"| {row.size_diff / count:.0f} | {row.count_diff / count:.2f} | `{path}:{frame.lineno}` |")
    often = ", ".join(f"{n / count:.1f} {kind}" for kind, n in kinds.most_common(24) if n > count / 2)
    return "\n".join([*lines, f"\nTracked objects for each stream: {often}."]) + "\n"


def main() -> int:
    known = argparse.ArgumentParser(prog="python -m loadtests.memory", description=__doc__.split("\n")[0])
    known.add_argument("--streams", type=int, default=1500)
    known.add_argument("--rows", type=int, default=30)
    known.add_argument("--core", type=int, default=1, help="of backend and load generator")
    known.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = known.parse_args()
    text = uvloop.run(measure(options))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "memory.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
