"""Several serving processes as one gateway: the parent, which owns everything that exists once, and its workers.

The parent owns queue, limits, backends, settings, the admin listener and the life of the workers; it serves no
requests. Each worker listens on the same address (SO_REUSEPORT: the kernel distributes connections) and asks the parent
for slots and reservations over its own channel. When a worker ends by itself, everything it held is given back at once,
and it is started again. When the parent ends, all workers end.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import msgspec
from anyio.abc import TaskGroup
from starlette.routing import Route

from gateway import logs
from gateway.admin.api import AdminApi
from gateway.admin.app import AdminServer, admin_app, serve_admin
from gateway.admin.state import AWAY, NO_STATS, PlaneStats, Stock, WorkerStats, added
from gateway.api.routes import Routes
from gateway.config import Config, ConfigError
from gateway.crew import WorkerProcess
from gateway.flow.ledger_facts import Waiting
from gateway.hub import HasHub, LocalHub
from gateway.plane import metrics_of, tls_context
from gateway.process import early_hangup, in_force, on_signals, reload_on_hangup, settle_garbage, unless_second_signal
from gateway.services.backend_facts import Topology
from gateway.services.channel import Channel
from gateway.services.keys import KeyService
from gateway.services.messages import (
    Asked,
    AuthFailed,
    BackendStates,
    Commit,
    Drain,
    Prepare,
    ReportSuccess,
    Retuned,
    Stop,
    TakeStock,
    Welcome,
    Who,
)
from gateway.services.worker_session import WorkerSession
from gateway.spools import deliver_left_over, spool_of
from gateway.store import Store, open_store
from gateway.urls import bracketed, parse_listen
from scheduler.settings import Settings

log = logging.getLogger("fairgate.workers")

ANSWER_SECONDS = 1.0
"""Seconds to wait for a worker. If its loop is blocked for longer, its last known state is shown."""
RELOAD_SECONDS = 10.0
TICK_SECONDS = 0.5


class Parent(HasHub):
    """The gateway as the admin listener sees it."""

    def __init__(self, config: Config, store: Store) -> None:
        self.config = config
        self.store = store
        self.hub = LocalHub(config, store, self._rewired, self._retuned, self._doubted)
        routes = Routes()
        self.metrics = metrics_of(routes)
        self.metrics.pids = lambda: [os.getpid(), *(worker.pid for worker in self.workers() if worker.pid)]
        self.draining = False
        self.port = 0
        self.admin: AdminServer | None = None
        self.keys: KeyService | None = None  # for the admin API, if it is on
        self._own = metrics_of(routes)  # counters of this process and of workers that have ended
        self._past = NO_STATS
        self._stock: dict[int, Stock] = {}  # worker -> its last known figures, while it runs
        self._configs: dict[int, Config] = {}  # worker -> the configuration it was given
        self._crew = [WorkerProcess(number, self) for number in range(config.workers)]
        self._reloading = asyncio.Lock()
        self._renewals: set[asyncio.Task[None]] = set()

    # -- what the control plane reads

    def ready(self) -> bool:
        return not self.draining and self.stats().ready and self.limits.silence < AWAY

    def stats(self) -> PlaneStats:
        """The sum over all workers, including what ended processes had counted."""
        total = added([self._past, *(stock.stats for stock in self._stock.values())])
        return msgspec.structs.replace(total, log_lines_dropped=total.log_lines_dropped + logs.dropped())

    def workers(self) -> list[WorkerStats]:
        return [worker.stats() for worker in self._crew]

    async def refresh(self) -> None:
        """Ask every worker for its figures; one that does not answer in time keeps its last known ones."""
        await asyncio.gather(*map(self._take_stock, self._crew))
        self.metrics.show([self._own.counts(), *(stock.counts for stock in self._stock.values())])

    async def _take_stock(self, worker: WorkerProcess) -> None:
        stock = await worker.ask(TakeStock(), Stock, ANSWER_SECONDS)
        if stock is not None and worker.listening:
            self._stock[worker.number] = stock

    async def _who(self, who: Who) -> list[Waiting]:
        """The waiting requests of a key in all workers, with their position in the queue."""
        answers = await asyncio.gather(*(worker.ask(who, list[Asked], ANSWER_SECONDS) for worker in self._crew))
        rows = []
        for worker, mine in zip(self._crew, answers, strict=True):
            for one in mine or ():
                place = worker.session.place(one.number) if worker.session is not None else None
                if place is not None:
                    rows.append(Waiting(one.id, one.model, place.ahead, place.estimate, one.since))
        return sorted(rows, key=lambda row: row.since)

    # -- what workers hear

    def _tell(self, message: object) -> None:
        for worker in self._crew:
            worker.tell(message)

    def _rewired(self, topology: Topology) -> None:
        self.metrics.know(models=topology.pools, backends=topology.gates)
        self._tell(BackendStates(self.backends.picture()))

    def _retuned(self, settings: Settings) -> None:
        self._tell(Retuned(settings))

    def _doubted(self, backend: str) -> None:
        self._tell(ReportSuccess(backend))

    # -- `crew.Owner`

    def session(self, worker: WorkerProcess, channel: Channel) -> WorkerSession:
        def tell_others(failed: AuthFailed) -> None:
            if self.keys is not None:
                self.keys.failed_at(failed.ip)
            for other in self._crew:
                if other is not worker:
                    other.tell(failed)

        channel.on({AuthFailed: tell_others})
        channel.answers({Who: self._who})
        return WorkerSession(channel, self.hub, self._doubted)

    def welcome(self, worker: WorkerProcess) -> Welcome:
        self._configs[worker.number] = self.config
        config = self._config_for(worker, self.config)
        return Welcome(worker.number, config, self.hub.estimator.settings, self.backends.picture())

    def listens(self, worker: WorkerProcess) -> None:
        """Send the worker what has changed since its welcome."""
        worker.tell(BackendStates(self.backends.picture()))
        worker.tell(Retuned(self.hub.estimator.settings))
        if self._configs[worker.number] is not self.config:
            self._renew_soon(worker)

    def lost(self, worker: WorkerProcess) -> None:
        stock = self._stock.pop(worker.number, None)
        if stock is not None:
            self._own.add(stock.counts)
            self._past = added([self._past, stock.stats], past=True)

    def _config_for(self, worker: WorkerProcess, config: Config) -> Config:
        """The configuration for a worker: with the shared address, and with its own spool."""
        host, _ = parse_listen(config.listen)
        audit = msgspec.structs.replace(config.audit, spool=spool_of(config, self.store, worker.number))
        return msgspec.structs.replace(config, listen=f"{bracketed(host)}:{self.port}", reuse_port=True, audit=audit)

    # -- reload

    async def reload(self, config: Config) -> list[str]:
        """Switch to a new configuration in all processes or in none; returns the names of changed settings that need a
        restart.

        Raises ConfigError, OSError. All processes build it first, then it is put in force everywhere. A worker that
        does not answer gets it once it does, or when it is restarted.
        """
        async with self._reloading:
            tls_context(config.tls)  # checked even if only a restart applies it
            config, differs = in_force(self.config, config)
            _, adopt = self.hub.prepare(config)
            lives = [worker.restarts for worker in self._crew]
            answers = await asyncio.gather(*(self._prepare(worker, config) for worker in self._crew))
            for worker, fault in zip(self._crew, answers, strict=True):
                if fault:
                    raise ConfigError(f"worker {worker.number}: {fault}")
            self.config = config
            for worker, fault, life in zip(self._crew, answers, lives, strict=True):
                if fault == "" and worker.restarts == life:  # otherwise a restarted process, which has prepared nothing
                    self._commit(worker)
                else:
                    self._renew_soon(worker)
            adopt()
            return differs

    async def _prepare(self, worker: WorkerProcess, config: Config) -> str | None:
        return await worker.ask(Prepare(self._config_for(worker, config)), str, RELOAD_SECONDS)

    def _commit(self, worker: WorkerProcess) -> None:
        worker.tell(Commit())
        self._configs[worker.number] = self.config

    def _renew_soon(self, worker: WorkerProcess) -> None:
        """Start `_renew` as a task. Also called from the channel, outside of any task, where a task group cannot be
        used."""
        task = asyncio.get_running_loop().create_task(self._renew(worker))
        self._renewals.add(task)
        task.add_done_callback(self._renewals.discard)

    async def _renew(self, worker: WorkerProcess) -> None:
        """Give the new configuration to a worker that was starting, or did not answer, during the reload."""
        while worker.listening:
            async with self._reloading:
                if self._configs[worker.number] is self.config:
                    return
                fault = await self._prepare(worker, self.config)
                if fault == "":
                    self._commit(worker)
                elif fault:
                    log.error("a worker cannot take the configuration: %s", fault, extra={"worker": worker.number})
                    return
            await asyncio.sleep(TICK_SECONDS)

    # -- the whole

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Parent"]:
        """All workers listen; on exit all have ended. Does not drain. Raises OSError if a worker cannot start."""
        with hold_address(self.config) as self.port:
            await self.hub.start()
            async with anyio.create_task_group() as group:
                self.hub.run(group)
                group.start_soon(self._tick)
                try:
                    await self._start(group)
                    yield self
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._stop()
                    group.cancel_scope.cancel()

    async def _start(self, group: TaskGroup) -> None:
        await self.backends.looked()  # otherwise clients would briefly see no models after a restart
        for worker in self._crew:
            group.start_soon(worker.keep)
        for worker in self._crew:
            await worker.settled.wait()
            if not worker.listening:
                raise OSError(f"worker {worker.number} could not start: {worker.fault or 'see its log'}")
        if self.config.admin.listen:
            self.admin = await serve_admin(self.config.admin.listen, admin_app(self, await self._admin_routes()))

    async def _admin_routes(self) -> list[Route]:
        """The routes of the admin API, if it is on. The parent verifies admin keys itself; it exchanges failed
        addresses with the workers, so that an address has one allowance for all of them."""
        if not self.config.admin.api:
            return []
        keys = self.keys = KeyService(self.store, self.config.identity)
        keys.on_failure = lambda ip: self._tell(AuthFailed(ip))
        await keys.start()
        return AdminApi(self, keys).routes()

    async def _stop(self) -> None:
        self.draining = True
        # Before workers cut requests: the freed slots must not be granted to requests that are cut next
        self.scheduler.close()
        await self._end(Stop())
        if self.admin is not None:
            await self.admin.close()
        if self.keys is not None:
            await self.keys.close()
        await self.hub.close()

    async def _end(self, message: Drain | Stop) -> None:
        """Wait until the last process of each worker has ended; each closes its channel when its requests have
        ended."""
        for worker in self._crew:
            worker.finish(message)
        await asyncio.gather(*(worker.over.wait() for worker in self._crew if worker.begun))

    async def drain(self) -> None:
        """Refuse new requests and let running ones finish, in every worker (H13). The queue closes shortly before the
        first worker cuts what still runs; `_stop` says why."""
        self.draining = True
        end = asyncio.get_running_loop().call_later(self.config.timeouts.drain, self.scheduler.close)
        try:
            await self._end(Drain())
        finally:
            end.cancel()
        log.info("all workers have ended")

    async def _tick(self) -> None:
        """Measure the lag of this loop: every grant of a slot waits for it."""
        while True:
            expected = time.monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self._own.observe_loop_lag(max(0.0, time.monotonic() - expected))


@contextlib.contextmanager
def hold_address(config: Config) -> Iterator[int]:
    """Keep the address bound even if workers end; yields the port. Raises OSError if another program uses it: with
    SO_REUSEPORT alone, a second gateway would share it unnoticed."""
    host, port = parse_listen(config.listen)
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    if not config.reuse_port:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    with socket.socket(family, kind, protocol) as hold:
        hold.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        hold.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        hold.bind(address)
        yield int(hold.getsockname()[1])


async def serve_workers(config: Config, load: Callable[[], Config] | None = None) -> None:
    """Like `app.serve`, with `config.workers` serving processes."""
    early = early_hangup() if load is not None else None
    store = await open_store(config.store)
    try:
        await deliver_left_over(config, store)
        parent = Parent(config, store)
        stop = on_signals()
        async with parent.running():
            settle_garbage()
            if load is not None and early is not None:
                reload_on_hangup(parent.reload, load, early)
            log.info("listening", extra={"port": parent.port, "workers": config.workers})
            await stop.wait()
            await unless_second_signal(parent.drain)
    finally:
        await store.close()
