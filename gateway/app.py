"""Composition: what is connected to what, and the order of start, reload, drain and stop. Knows no request.

`App` owns what outlives a configuration (sockets, scheduler, pools, store, metrics); a `Runtime` is one generation of
the rest. A reload builds a whole new generation first; whatever fails leaves the old one in force.
"""

import asyncio
import gc
import logging
import resource
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anyio
import msgspec
from anyio.abc import TaskGroup

from gateway import config as cfg
from gateway.admin.app import AdminServer, admin_app, serve_admin
from gateway.api.routes import Routes
from gateway.config import Config, parse_listen
from gateway.flow.cors import Cors
from gateway.flow.exchange import Runtime
from gateway.flow.fields import forget_request_heads
from gateway.flow.ledger import Ledger
from gateway.flow.names import Names
from gateway.flow.peer import client_ip_of
from gateway.flow.phases import Phases
from gateway.http1.client import Address, Pool
from gateway.http1.server import HttpServer
from gateway.services.acting import EndUsers
from gateway.services.audit import AuditService
from gateway.services.backends import BackendService, Topology
from gateway.services.keys import KeyService
from gateway.services.limits import LimitService
from gateway.services.metrics import Metrics
from gateway.services.operations import Operations
from gateway.services.shared import SharedCounts, shared_lender
from gateway.services.usage import UsageService
from gateway.store import Store, open_store
from scheduler.aio import Scheduler
from scheduler.estimate import Estimator

log = logging.getLogger("fairgate.app")

# Seconds an idle connection is kept: shorter than the engine keeps it (llama.cpp and uvicorn close after 5 s).
IDLE_EXPIRY = {"ollama": 60.0}
IDLE_EXPIRY_DEFAULT = 4.0
GC_THRESHOLDS = (50_000, 20, 50)  # requests make no cycles; a full collection stalls every stream (performance.md 6)
RESTART_ONLY = ("listen", "reuse_port", "store", "admin", "identity", "audit", "shared", "limits")
"""Read once; a reload says when one differs."""
FILES_PER_STREAM = 2
FILES_SPARE = 256


class App:
    """The running gateway. `runtime` is the current generation."""

    def __init__(self, config: Config, store: Store) -> None:
        self.config = config
        self.store = store
        self.keys = KeyService(store, config.identity)
        self.end_users = EndUsers(store, self.keys, config.identity)
        self.shared = SharedCounts(config.shared, config.limits, clock=time.monotonic) if config.shared else None
        lender = shared_lender(self.shared, config.limits, time.monotonic) if self.shared is not None else None
        self.limits = LimitService(store, config.limits, shared=lender)
        self.audit = AuditService(store, config.audit)
        self.usage = UsageService(store)
        routes = Routes()
        self.routes = routes
        dialects = {row.dialect.name for row in routes.rows}
        self.metrics = Metrics(dialects=dialects, routes={row.path for row in routes.rows}, clock=time.monotonic)
        self.scheduler = Scheduler(config.scheduling)
        self.estimator = Estimator(config.scheduling)
        self.operations = Operations(
            store, self.scheduler, self.estimator, config.scheduling, clock=asyncio.get_running_loop().time
        )
        self.ledger = Ledger(config.caps.bodies_bytes)
        self.pools: dict[str, Pool] = {}
        self.draining = False
        self.tls: ssl.SSLContext | None = None
        self._watching = anyio.CancelScope()
        self._services: TaskGroup
        self._queues: set[str] = set()
        self._gates: set[str] = set()
        self.backends = self._make_backends(config, None)
        self.runtime = self._generation(config, self.backends)
        self.phases = Phases(self.runtime)
        self.server = HttpServer(self.phases, config.caps, config.timeouts)
        self.port = 0
        self.admin: AdminServer | None = None
        self.loop_lag = 0.0

    # ---- building a generation

    def _make_backends(self, config: Config, previous: BackendService | None) -> BackendService:
        return BackendService(
            config.backends,
            config.discovery,
            config.upstream,
            config.models,
            clock=time.monotonic,
            on_change=self._rewire,
            previous=previous,
        )

    def _generation(self, config: Config, backends: BackendService) -> Runtime:
        """A runtime; connections to an address that did not change are kept, the others end with their exchange."""
        fresh: dict[str, Pool] = {}
        for section in config.backends:
            known = self.pools.get(section.name)
            if known is None or known.address != address_of(section):
                fresh[section.name] = Pool(address_of(section), IDLE_EXPIRY.get(section.engine, IDLE_EXPIRY_DEFAULT))
        for name in fresh.keys() & self.pools.keys():
            self.pools[name].retire()
        self.pools |= fresh
        return Runtime(
            config=config,
            routes=self.routes,
            keys=self.keys,
            end_users=self.end_users,
            limits=self.limits,
            backends=backends,
            scheduler=self.scheduler,
            estimator=self.estimator,
            pools=dict(self.pools),
            audit=self.audit,
            usage=self.usage,
            metrics=self.metrics,
            ledger=self.ledger,
            now=time.monotonic,
            wall=time.time,
            ready=self.ready,
            cors=Cors(config.cors, hsts=config.hsts or config.tls is not None),
            names=Names(config.aliases, config.categories),
            client_ip=client_ip_of(config.trusted_proxies),
        )

    def _rewire(self, topology: Topology) -> None:
        """Discovery or a breaker changed something: tell the scheduler, in one turn of the loop."""
        scheduler = self.scheduler
        for gate, slots in topology.gates.items():
            scheduler.set_gate(gate, slots)
        for pool, gates in topology.pools.items():
            scheduler.set_pool(pool, gates)
        for pool in self._queues - topology.pools.keys():
            scheduler.remove_pool(pool)
        for gate in self._gates - topology.gates.keys():
            scheduler.remove_gate(gate)
        self._queues, self._gates = set(topology.pools), set(topology.gates)
        self.metrics.know(models=topology.pools, backends=topology.gates)

    def ready(self) -> bool:
        """Whether a request sent now has a chance (O1)."""
        return not self.draining and not self.audit.full and bool(self.backends.models())

    def reload(self, config: Config) -> list[str]:
        """Swap to a new configuration; the names of changed settings that need a restart. Raises, and changes nothing.

        All that can fail is built first. Then, without an await: swap the runtime, retune the scheduler and the server.
        """
        certificate = tls_context(config.tls)  # a certificate that does not load must not take the old one's place
        backends = self._make_backends(config, self.backends)
        runtime = self._generation(config, backends)

        changed = [name for name in RESTART_ONLY if getattr(config, name) != getattr(self.config, name)]
        if self.tls is not None and certificate is not None and config.tls is not None:
            self.tls.load_cert_chain(config.tls.cert, config.tls.key)
        self.config, self.backends = config, backends
        self.runtime = self.phases.runtime = runtime
        self.operations.rebase(config.scheduling)
        self.ledger.body_limit = config.caps.bodies_bytes
        self.server.retune(config.caps, config.timeouts)
        forget_request_heads()
        self._watch()
        self._rewire(backends.topology)
        return changed

    def _watch(self) -> None:
        """Watch the backends of this generation, and no longer those of the one before."""
        self._watching.cancel()
        self._watching = scope = anyio.CancelScope()
        backends = self.backends

        async def watch() -> None:
            with scope:
                await backends.run()

        self._services.start_soon(watch)

    # ---- running

    @asynccontextmanager
    async def running(self) -> AsyncIterator["App"]:
        """Everything started; on exit everything stopped, audit flushed. Does not drain."""
        await self.keys.start()
        self.limits.start()
        await self.operations.start()
        async with anyio.create_task_group() as group:
            group.start_soon(self.audit.run)
            group.start_soon(self.operations.run)
            self._services = group
            self._watch()
            group.start_soon(self._tick)
            host, port = parse_listen(self.config.listen)
            self.tls = tls_context(self.config.tls)
            if self.config.reuse_port:
                await self.backends.looked()  # who takes over must have models before it is given requests
            self.port = await self.server.listen(host, port, self.tls, reuse_port=self.config.reuse_port)
            if self.config.admin.listen:
                self.admin = await serve_admin(self.config.admin.listen, admin_app(self))
            try:
                yield self
            finally:
                with anyio.CancelScope(shield=True):
                    await self._stop()
                group.cancel_scope.cancel()

    async def _stop(self) -> None:
        self.server.close()
        if self.admin is not None:
            await self.admin.close()
        self.scheduler.close()
        for pool in self.pools.values():
            pool.close()
        await asyncio.sleep(0)  # connections closed above settle their requests in this turn
        await self.operations.close()
        await self.audit.close()
        await self.usage.close()
        await self.limits.close()
        if self.shared is not None:
            await self.shared.close()
        await self.keys.close()

    async def _tick(self) -> None:
        """The slow clock: timers of upstream connections, and how late the loop runs."""
        shortest = min(v for v in msgspec.structs.astuple(self.config.upstream) if isinstance(v, float))
        interval = max(0.01, min(1.0, shortest / 4))
        while True:
            expected = time.monotonic() + interval
            await asyncio.sleep(interval)
            self.loop_lag = max(0.0, time.monotonic() - expected)
            self.metrics.observe_loop_lag(self.loop_lag)
            now = asyncio.get_running_loop().time()
            for pool in self.pools.values():
                pool.sweep(now)

    async def drain(self) -> None:
        """Refuse new requests, let what runs finish (H13)."""
        self.draining = True
        whole = await self.server.drain(self.config.timeouts.drain)
        log.info("drained" if whole else "drain deadline passed: cutting what still runs")


def address_of(section: cfg.Backend) -> Address:
    """Where a backend's connections go."""
    split = urlsplit(section.url)
    host = split.hostname or ""
    tls = split.scheme == "https"
    return Address(host, split.port or (443 if tls else 80), tls, section.ca)


def tls_context(tls: cfg.Tls | None) -> ssl.SSLContext | None:
    """TLS 1.2+ for a listener (H12). Raises ConfigError."""
    if tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(tls.cert, tls.key)
        if tls.client_ca:
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as err:
        raise cfg.ConfigError(f"tls: {err}") from err
    return context


def raise_file_limit(connections: int) -> None:
    """Allow two descriptors a stream; say so clearly when the system does not."""
    wanted = connections * FILES_PER_STREAM + FILES_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        log.warning("open-file limit too low for caps.connections", extra={"limit": most, "wanted": wanted})


async def serve(
    config: Config,
    ready: Callable[[App], None] | None = None,
    load: Callable[[], Config] | None = None,
) -> None:
    """Run until SIGTERM or SIGINT; the first one drains, the second one stops at once (H13). SIGHUP reloads by `load`.

    `ready` is called once every backend was looked at. Raises ConfigError, StoreError, OSError.
    """
    raise_file_limit(config.caps.connections)
    store = await open_store(config.store)
    try:
        app = App(config, store)
        async with app.running():
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            stop = _on_signals()
            if load is not None:
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, app, load)
            log.info("listening", extra={"port": app.port})
            if ready is not None:
                await app.backends.looked()
                ready(app)
            await stop.wait()
            await _drain_or_second_signal(app)
    finally:
        await store.close()


def _reload(app: App, load: Callable[[], Config]) -> None:
    """Take a new configuration, or keep the old one and say why (O7)."""
    try:
        ignored = app.reload(load())
    except (cfg.ConfigError, OSError, ValueError) as err:
        log.error("configuration not reloaded: %s", err)
    else:
        log.info("configuration reloaded", extra={"needs_restart": ignored})


def _on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _drain_or_second_signal(app: App) -> None:
    again = _on_signals()
    async with anyio.create_task_group() as group:

        async def cut() -> None:
            await again.wait()
            group.cancel_scope.cancel()

        group.start_soon(cut)
        await app.drain()
        group.cancel_scope.cancel()
