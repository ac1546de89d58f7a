"""One worker as its parent sees it: its process, its channel and what it holds. Starts it, ends it and restarts it."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from typing import Protocol, TypeVar

from gateway.admin.state import WorkerStats
from gateway.services.channel import Channel, ChannelLost
from gateway.services.messages import Alive, QuestionsToParent, Ready, ToParent, Unfit, Welcome
from gateway.services.worker_session import WorkerSession

log = logging.getLogger("fairgate.workers")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds before a worker that ended is restarted; doubled each time."""
STEADY_SECONDS = 30.0
"""After a worker has run this long, the pause before its restart is FIRST_PAUSE again."""
HUNG_SECONDS = 10.0
"""Seconds between checks whether a worker responds, and the timeout of a check. It is killed after two failed checks in
a row: after a pause of the whole machine, the first may fail for a healthy worker."""
END_SECONDS = 20.0
"""Seconds that a worker gets to write its last audit rows after its channel has closed; then it is killed."""

T = TypeVar("T")


def interpreter() -> tuple[str, ...]:
    """The command for a worker. `-P` unless the parent itself imports from the working directory: a worker must find
    the same modules as its parent."""
    return (sys.executable,) if {"", os.getcwd()} & set(sys.path) else (sys.executable, "-P")


class Owner(Protocol):
    """What a worker needs from its parent."""

    draining: bool

    def session(self, worker: "WorkerProcess", channel: Channel) -> WorkerSession: ...
    def welcome(self, worker: "WorkerProcess") -> Welcome: ...
    def listens(self, worker: "WorkerProcess") -> None: ...
    def lost(self, worker: "WorkerProcess") -> None: ...


class WorkerProcess:
    """One worker across restarts of its process. `listening`: it serves now; `settled`: it has served once, or could
    not start."""

    def __init__(self, number: int, owner: Owner) -> None:
        self.number = number
        self.listening = False
        self.settled = asyncio.Event()
        self.over = asyncio.Event()
        self.begun = False
        self.restarts = 0
        self.fault = ""
        self._owner = owner
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._gone = asyncio.Event()
        self._finished = asyncio.Event()
        self.session: WorkerSession | None = None

    def stats(self) -> WorkerStats:
        pid = self._process.pid if self._process is not None else 0
        return WorkerStats(worker=self.number, pid=pid, up=self.listening, restarts=self.restarts)

    # -- talking

    def tell(self, message: object) -> None:
        """Send a message, unless the worker does not listen yet: its welcome will contain everything."""
        if self.listening and self._channel is not None:
            self._channel.send(message)

    async def ask(self, question: object, kind: type[T], seconds: float) -> T | None:
        """The answer to a question; None if the worker is down or does not answer in time."""
        if not self.listening or self._channel is None:
            return None
        try:
            return await self._channel.ask(question, kind, seconds)
        except ChannelLost as err:
            log.warning("a worker did not answer: %s", err, extra={"worker": self.number})
            return None

    # -- life

    async def keep(self) -> None:
        """Start the worker, and restart it whenever it ends by itself, until the parent drains."""
        pause = FIRST_PAUSE
        self.begun = True
        try:
            while not self._owner.draining:
                began = time.monotonic()
                try:
                    await self._live()
                except OSError as err:  # no memory, processes or file descriptors at the moment
                    self.fault = str(err)
                if self._owner.draining or not self.settled.is_set():
                    return
                if time.monotonic() - began > STEADY_SECONDS:
                    pause = FIRST_PAUSE
                await self._again(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            self.settled.set()
            self.over.set()

    async def _again(self, pause: float) -> None:
        self.restarts += 1
        status = self._process.returncode if self._process is not None else None
        fields = {"worker": self.number, "status": status, "pause": pause, "fault": self.fault}
        log.error("a worker ended; it is started again", extra=fields)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._finished.wait()

    async def _live(self) -> None:
        """One process of the worker, from start to end."""
        ours, theirs = socket.socketpair()
        self._gone = asyncio.Event()
        channel = self._channel = Channel(ToParent, QuestionsToParent, self._lost)
        channel.on({Ready: self._ready, Unfit: self._unfit})
        self.session = self._owner.session(self, channel)
        try:
            process = await self._spawn(theirs)
        except BaseException:
            ours.close()
            raise
        watch = asyncio.create_task(self._watch(channel, process))
        try:
            await channel.connect(ours)
            channel.send(self._owner.welcome(self))
            await self._gone.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await process.wait()
        finally:
            watch.cancel()
            if process.returncode is None:
                process.kill()

    async def _spawn(self, end: socket.socket) -> asyncio.subprocess.Process:
        """Start the process, and pass it its end of the channel. Raises OSError."""
        self._process = None
        with end:
            self._process = await asyncio.create_subprocess_exec(
                *(*interpreter(), "-m", "gateway.worker", str(end.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(end.fileno(),),
            )
        return self._process

    async def _watch(self, channel: Channel, process: asyncio.subprocess.Process) -> None:
        """Kill a process that is alive but whose event loop hangs: it would keep slots and connections, and the parent
        could not end. It may take its time to start, and to end after it has closed its channel."""
        silent = 0
        while silent < 2:
            if silent == 0:
                await asyncio.sleep(HUNG_SECONDS)
                if not (self.listening or self._finished.is_set()):
                    continue
            try:
                await channel.ask(Alive(), bool, HUNG_SECONDS)
                silent = 0
            except ChannelLost:
                if channel.closed:
                    return
                silent += 1
        log.error("a worker does not answer; it is killed", extra={"worker": self.number, "pid": process.pid})
        process.kill()

    def _ready(self, _: Ready) -> None:
        self.listening, self.fault = True, ""
        self._owner.listens(self)
        self.settled.set()

    def _unfit(self, unfit: Unfit) -> None:
        self.fault = unfit.reason

    def _lost(self) -> None:
        """The process has ended or is ending: give back what it held at once."""
        self.listening = False
        if self.session is not None:
            self.session.close()
        self._owner.lost(self)
        self._gone.set()

    def finish(self, message: object) -> None:
        """Tell the worker to drain or stop, whether or not it listens yet."""
        self._finished.set()
        if self._channel is not None and not self._channel.closed:
            self._channel.send(message)
