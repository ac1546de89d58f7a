"""A worker: one process that serves requests, for a parent that owns queue, limits and backends (`workers.py`).

The parent starts it as `python -m gateway.worker FD`, where FD is its end of a channel; everything it needs to know
comes over that channel. It ends when the parent says so, on SIGTERM after a drain, and immediately when the channel is
lost: without the parent nothing may be granted (fail closed), and nobody would supervise it.
"""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Sequence

import anyio
import uvloop

from gateway import logs
from gateway.admin.state import Stock
from gateway.config import Config, ConfigError
from gateway.errors import Overloaded
from gateway.flow.ledger_facts import Waiting
from gateway.loading import secrets
from gateway.plane import Plane
from gateway.process import cause_of, raise_file_limit, settle_garbage
from gateway.services.channel import Channel, ChannelLost
from gateway.services.messages import (
    Alive,
    Asked,
    AuthFailed,
    Commit,
    Drain,
    Prepare,
    QuestionsToWorker,
    Ready,
    Stop,
    TakeStock,
    ToWorker,
    Unfit,
    Welcome,
    Who,
)
from gateway.services.remote import RemoteBackends, RemoteHub
from gateway.services.spool import SpoolError
from gateway.store import Store, open_store
from gateway.store.base import StoreError

ANSWER_SECONDS = 2.0
"""Seconds to wait for the parent, which asks all workers before it answers."""


class ParentLink:
    """The channel to the parent, and the messages that may arrive at any time."""

    def __init__(self) -> None:
        self.welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self.drain = asyncio.Event()
        self.stop = asyncio.Event()
        self.channel = Channel(ToWorker, QuestionsToWorker, self._lost)
        self.channel.on(
            {
                Welcome: self.welcome.set_result,
                Drain: lambda _: self.drain.set(),
                Stop: lambda _: self._stop(),
            }
        )
        self.channel.answers({Alive: self._alive})

    async def _alive(self, _: Alive) -> bool:
        return True

    def _stop(self) -> None:
        self.drain.set()
        self.stop.set()

    def _lost(self) -> None:
        if not self.welcome.done():
            self.welcome.set_exception(ChannelLost("the parent is gone"))
        self._stop()


class Worker(Plane):
    """The data plane of one worker."""

    def __init__(self, welcome: Welcome, store: Store, channel: Channel) -> None:
        self._channel = channel
        self._prepared: Callable[[], None] | None = None
        self.remote = RemoteHub(channel, welcome, self._know)
        super().__init__(welcome.config, store, self.remote)
        self._know(self.remote.backends)
        channel.answers({Who: self._who, TakeStock: self._stock, Prepare: self._prepare})
        channel.on({Commit: self._commit, AuthFailed: lambda failed: self.keys.failed_at(failed.ip)})
        self.keys.on_failure = lambda ip: channel.send(AuthFailed(ip))

    def _know(self, backends: RemoteBackends) -> None:
        self.metrics.know(models=backends.pools, backends=[stats.name for stats in backends.stats()])

    def ready(self) -> bool:
        return super().ready() and not self._channel.closed

    async def waiting(self, key: str) -> Sequence[Waiting]:
        """The waiting requests of `key` in all workers. Only the parent knows the queue. Raises Overloaded."""
        try:
            return await self._channel.ask(Who(key), list[Waiting], ANSWER_SECONDS)
        except ChannelLost as err:
            raise Overloaded("The queue cannot be read at the moment.") from err

    # -- what the parent asks

    async def _who(self, who: Who) -> list[Asked]:
        return [
            Asked(x.waiter.id, x.id, x.route.model, x.started_wall)
            for x in self.ledger.waiting(who.key)
            if x.waiter is not None
        ]

    async def _stock(self, _: TakeStock) -> Stock:
        return Stock(self.stats(), self.metrics.counts())

    async def _prepare(self, asked: Prepare) -> str:
        logs.know(secrets(asked.config))
        try:
            self._prepared = self.prepare(asked.config)
        except (ConfigError, OSError, ValueError) as err:
            return str(err)
        return ""

    def _commit(self, _: Commit) -> None:
        commit, self._prepared = self._prepared, None
        if commit is not None:
            commit()


async def work(end: socket.socket) -> None:
    """Serve until told to end. Raises ChannelLost if there is no parent."""
    link = ParentLink()
    _on_signals(link)
    await link.channel.connect(end)
    welcome = await link.welcome
    logging = logs.setup(welcome.config.log.level, secrets=secrets(welcome.config), fields={"worker": welcome.worker})
    try:
        await _serve(link, welcome)
    except Exception as err:
        cause = cause_of(err)
        if not isinstance(cause, ConfigError | StoreError | SpoolError | OSError):
            raise
        link.channel.send(Unfit(str(cause)))
        link.channel.close()
        await asyncio.sleep(0)
        raise SystemExit(1) from err
    finally:
        logging.stop()


async def _serve(link: ParentLink, welcome: Welcome) -> None:
    config: Config = welcome.config
    raise_file_limit(config.caps.connections)
    store = await open_store(config.store)
    try:
        worker = Worker(welcome, store, link.channel)
        async with worker.running():
            settle_garbage()
            link.channel.send(Ready())
            await link.drain.wait()
            await _drain_unless_stopped(link, worker)
    finally:
        await store.close()


async def _drain_unless_stopped(link: ParentLink, worker: Worker) -> None:
    async with anyio.create_task_group() as group:

        async def cut() -> None:
            await link.stop.wait()
            worker.draining = True
            group.cancel_scope.cancel()

        group.start_soon(cut)
        await worker.drain()
        group.cancel_scope.cancel()


def _on_signals(link: ParentLink) -> None:
    """SIGINT and SIGHUP are left to the parent: a terminal's Ctrl-C reaches the whole process group, and so may a
    service manager's signals."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, link.drain.set)
    for number in (signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: None)


def main() -> int:
    """The entry point."""
    end = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(ChannelLost), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work(end))
    return 0


if __name__ == "__main__":
    sys.exit(main())
