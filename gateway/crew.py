"""One worker as its parent has it: process, channel, and what it holds. Owns its start, its end, and starting again."""

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
from gateway.services.desk import Desk
from gateway.services.messages import Alive, QuestionsToParent, Ready, ToParent, Unfit, Welcome

log = logging.getLogger("fairgate.workers")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds before a worker that ended is started again; doubled each time."""
STEADY_SECONDS = 30.0
"""A worker that ran this long starts again after FIRST_PAUSE."""
HUNG_SECONDS = 10.0
"""Between questions whether it is alive, and for an answer. Two in a row without one are needed to kill it: after a
pause of the whole machine the first is late for a worker that is well."""
END_SECONDS = 20.0
"""What a worker gets to write its last audit rows, once its channel is closed, before it is killed."""

T = TypeVar("T")


def interpreter() -> tuple[str, ...]:
    """A worker finds its modules where its parent found them: not in a working directory the parent did not look in."""
    return (sys.executable,) if {"", os.getcwd()} & set(sys.path) else (sys.executable, "-P")


class Owner(Protocol):
    """What a worker needs of its parent."""

    draining: bool

    def desk(self, worker: "Child", channel: Channel) -> Desk: ...
    def welcome(self, worker: "Child") -> Welcome: ...
    def listens(self, worker: "Child") -> None: ...
    def lost(self, worker: "Child") -> None: ...


class Child:
    """One worker through all its processes. `listening`: it serves now; `settled`: it did once, or could not start."""

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
        self.desk: Desk | None = None

    def stats(self) -> WorkerStats:
        pid = self._process.pid if self._process is not None else 0
        return WorkerStats(worker=self.number, pid=pid, up=self.listening, restarts=self.restarts)

    # -- talking

    def tell(self, message: object) -> None:
        """Nothing is told to one that does not listen yet: its welcome tells all."""
        if self.listening and self._channel is not None:
            self._channel.send(message)

    async def ask(self, question: object, kind: type[T], seconds: float) -> T | None:
        """The answer; None when there is nobody, or no answer in time."""
        if not self.listening or self._channel is None:
            return None
        try:
            return await self._channel.ask(question, kind, seconds)
        except ChannelLost as err:
            log.warning("a worker did not answer: %s", err, extra={"worker": self.number})
            return None

    # -- life

    async def keep(self) -> None:
        """Start it, and start it again whenever it ends by itself, until the parent drains."""
        pause = FIRST_PAUSE
        self.begun = True
        try:
            while not self._owner.draining:
                began = time.monotonic()
                try:
                    await self._live()
                except OSError as err:  # no memory, processes or files for it just now
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
        """One process, from its start to its end."""
        ours, theirs = socket.socketpair()
        self._gone = asyncio.Event()
        channel = self._channel = Channel(ToParent, QuestionsToParent, self._lost)
        channel.on({Ready: self._ready, Unfit: self._unfit})
        self.desk = self._owner.desk(self, channel)
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
        """Its process, which gets that end of the channel. Raises OSError."""
        self._process = None
        with end:
            self._process = await asyncio.create_subprocess_exec(
                *(*interpreter(), "-m", "gateway.worker", str(end.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(end.fileno(),),
            )
        return self._process

    async def _watch(self, channel: Channel, process: asyncio.subprocess.Process) -> None:
        """Kill one that lives but does not turn its loop: it would keep slots and connections, and the parent from
        ending. One that starts may take its time, until it is to end; one that closed its channel is about to."""
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
        """The process is gone or going: what it held goes back at once."""
        self.listening = False
        if self.desk is not None:
            self.desk.close()
        self._owner.lost(self)
        self._gone.set()

    def finish(self, message: object) -> None:
        """Drain or stop it, whether or not it listens yet."""
        self._finished.set()
        if self._channel is not None and not self._channel.closed:
            self._channel.send(message)
