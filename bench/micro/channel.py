"""What the parent of several workers pays for a request: its decision, and the messages to and from the worker.

`python -m bench.micro.channel` runs the parent's own end (scheduler, desk, channel) in this process and a worker of
pre-encoded frames in another, for batches of different size: so many tickets and releases arrive in one frame. Printed
are microseconds of the parent's CPU per request, all of it: reading, deciding, writing. A request here is one ticket,
granted at once, and one release.
"""

import asyncio
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import msgspec
import uvloop

from gateway.config import Quotas
from gateway.services.channel import HEAD, Channel
from gateway.services.limits import LimitService
from gateway.services.messages import QuestionsToParent, Release, Reserve, Settle, Submit, ToParent
from gateway.services.worker_session import WorkerSession
from gateway.store import open_store
from gateway.store.limits import Limits, Scoped
from scheduler.aio import Scheduler

BATCHES = (1, 2, 4, 8, 16, 64)
SECONDS = 1.0
ROUNDS = 3
WARM_UP = 2000  # requests
USERS = 100
LIMITED = (Scoped("key:k", Limits(requests_per_minute=10**12, concurrent=10**6)),)


class Hub:
    """What a desk needs: one model with slots for all."""

    def __init__(self, limits: LimitService) -> None:
        self.limits = limits
        self.scheduler = Scheduler()
        self.scheduler.set_gate("g", 100_000)
        self.scheduler.set_pool("m", (("g", 0),))
        self.backends: Any = None


def frame(messages: list[object]) -> bytes:
    payload = msgspec.msgpack.encode(messages)
    return len(payload).to_bytes(HEAD, "little") + payload


def worker(end: socket.socket, batch: int, limited: bool) -> None:
    """Ask for `batch` slots and give back those of before, as fast as the answers come. Numbers are used again."""
    ask: list[object] = []
    back: list[object] = []
    for number in range(batch):
        ticket = Submit("m", "t", f"u{number % USERS}", 1.0, 1.0, 500.0, 0.0, 60.0, "0123456789ab00000000", number)
        ask += [Reserve(number, "k", "u", LIMITED, 900, 1.0)] if limited else []
        ask.append(ticket)
        back += [Settle(number, 800, 1.0)] if limited else []
        back.append(Release(number, 480.0))
    first, next_ = frame(ask), frame(back + ask)
    end.sendall(first)
    while True:
        got = 0
        while got < batch * (1 + limited):
            head = end.recv(HEAD, socket.MSG_WAITALL)
            if len(head) < HEAD:
                return
            body = end.recv(int.from_bytes(head, "little"), socket.MSG_WAITALL)
            got += len(msgspec.msgpack.decode(body))
        end.sendall(next_)


async def measure(batch: int, limited: bool) -> tuple[float, float]:
    """(microseconds of CPU per request, requests a second)."""
    with tempfile.TemporaryDirectory() as folder:
        store = await open_store(str(Path(folder) / "fairgate.db"))
        hub = Hub(LimitService(store, Quotas()))
        ours, theirs = socket.socketpair()
        gone = asyncio.Event()
        channel = Channel(ToParent, QuestionsToParent, gone.set)
        desk = WorkerSession(channel, cast(Any, hub), lambda name: None)
        words = ("worker", str(theirs.fileno()), str(batch), str(int(limited)))
        process = subprocess.Popen([sys.executable, "-m", __spec__.name, *words], pass_fds=(theirs.fileno(),))  # noqa: ASYNC220
        theirs.close()
        await channel.connect(ours)
        while hub.scheduler.core.granted < WARM_UP:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        granted, cpu, began = hub.scheduler.core.granted, time.process_time(), time.monotonic()
        await asyncio.sleep(SECONDS)
        count = hub.scheduler.core.granted - granted
        spent, seconds = time.process_time() - cpu, time.monotonic() - began
        channel.close()
        await gone.wait()
        desk.close()
        process.wait()
        await store.close()
    return spent / count * 1e6, count / seconds


def main() -> None:
    """The table."""
    print("| requests in a frame | us of the parent | with limits, us |")
    print("|---|---|---|")
    for batch in BATCHES:
        plain, limited = (min(uvloop.run(measure(batch, each))[0] for _ in range(ROUNDS)) for each in (False, True))
        print(f"| {batch} | {plain:.1f} | {limited:.1f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        with contextlib.suppress(ConnectionError):  # the parent has measured enough
            worker(socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3]), sys.argv[4] == "1")
    else:
        main()
