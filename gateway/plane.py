"""The data plane of one process: what serves requests, and the order of its start, reload, drain and stop.

`Plane` owns what outlives a configuration (sockets, pools, keys, audit, metrics); a `Runtime` is one generation of the
rest. A reload builds a whole new generation first; if anything fails, the old one stays in force. Queue, limits and
backends come from the `Hub`, which may be in another process. Must not know requests.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import anyio
import msgspec
from anyio.abc import TaskGroup

from gateway import config as cfg
from gateway import logs
from gateway.admin.state import AWAY, PlaneStats
from gateway.api.routes import Routes
from gateway.config import Config
from gateway.flow.cors import Cors
from gateway.flow.exchange import Runtime
from gateway.flow.fields import forget_request_heads
from gateway.flow.ledger import Ledger
from gateway.flow.ledger_facts import Waiting
from gateway.flow.names import Names
from gateway.flow.peer import client_ip_of, vouched_by
from gateway.flow.phases import Phases
from gateway.http1.facts import Address
from gateway.http1.pool import Pool
from gateway.http1.server import HttpServer
from gateway.issuer import Jwt
from gateway.process import close_all, raise_file_limit
from gateway.services.acting import EndUsers
from gateway.services.audit import AuditService
from gateway.services.backends import Backends
from gateway.services.keys import KeyService
from gateway.services.limits import Quota
from gateway.services.metrics import Metrics
from gateway.services.prompts import PromptService
from gateway.services.tokens import TokenService, open_tokens
from gateway.services.tracing import open_tracing
from gateway.services.usage import UsageService
from gateway.services.zombies import Zombies
from gateway.store import Store
from gateway.urls import parse_listen
from scheduler.aio import Slots
from scheduler.estimate import Estimator

log = logging.getLogger("fairgate.app")

# Seconds to keep an idle connection: less than the engine keeps it (llama.cpp and uvicorn close after 5 s).
IDLE_EXPIRY = {"ollama": 60.0}
IDLE_EXPIRY_DEFAULT = 4.0

ANSWER_TURNS = 3
"""Turns of the loop from a refusal in the queue until its answer is written: the request resumes, TLS, the write."""

P = TypeVar("P", bound="Plane")


class Hub(Protocol):
    """The parts that exist once, however many processes serve: local objects, or proxies for those in the parent."""

    @property
    def scheduler(self) -> Slots: ...
    @property
    def estimator(self) -> Estimator: ...
    @property
    def limits(self) -> Quota: ...
    @property
    def backends(self) -> Backends: ...
    @property
    def zombies(self) -> Zombies: ...

    def prepare(self, config: Config) -> tuple[Any, Callable[[], None]]:
        """The `Backends` of a new configuration, and a function that puts them in force."""
        ...

    async def start(self) -> None: ...
    def run(self, group: TaskGroup) -> None: ...
    async def close(self) -> None: ...


class Plane:
    """The running data plane. `runtime` is the current generation."""

    def __init__(self, config: Config, store: Store, hub: Hub) -> None:
        self.config = config
        self.store = store
        self.hub = hub
        self.keys = KeyService(store, config.identity)
        self.tokens = self.keys.tokens = open_tokens(config.jwt, store, config.identity)
        self.end_users = EndUsers(store, self.keys, config.identity)
        self.audit = AuditService(store, config.audit)
        self.prompts = PromptService(store, config.prompts)
        self.usage = UsageService(store)
        self.routes = Routes()
        self.metrics = metrics_of(self.routes)
        self.tracing = open_tracing(config.tracing)
        self.ledger = Ledger(config.caps.bodies_bytes)
        self.pools: dict[str, Pool] = {}
        self._used_pools: set[Pool] = set()  # includes pools of older generations whose requests still run
        self.draining = False
        self.pools = self._pools_for(config)
        self.runtime = self._generation(config, hub.backends, self.pools)
        self.phases = Phases(self.runtime)
        self.server = HttpServer(self.phases, config.caps, config.timeouts, vouched_by(config.trusted_proxies))
        self.port = 0
        self.loop_lag = 0.0

    # ---- building a generation

    def _pools_for(self, config: Config) -> dict[str, Pool]:
        """Keep the pools whose address did not change; connections of the others end with their exchange. A backend
        with a `ca` gets a new pool, since the content of that file may have changed."""
        pools = dict(self.pools)
        for section in config.backends:
            known = self.pools.get(section.name)
            if known is None or known.address != address_of(section) or section.ca:
                expiry = IDLE_EXPIRY.get(section.engine, IDLE_EXPIRY_DEFAULT)
                pools[section.name] = Pool(address_of(section), expiry, used=self._used_pools)
        return pools

    def _generation(self, config: Config, backends: Backends, pools: dict[str, Pool]) -> Runtime:
        return Runtime(
            config=config,
            routes=self.routes,
            keys=self.keys,
            end_users=self.end_users,
            limits=self.hub.limits,
            backends=backends,
            scheduler=self.hub.scheduler,
            estimator=self.hub.estimator,
            zombies=self.hub.zombies,
            pools=pools,
            failing={},
            audit=self.audit,
            prompts=self.prompts,
            usage=self.usage,
            metrics=self.metrics,
            tracing=self.tracing,
            ledger=self.ledger,
            now=time.monotonic,
            wall=time.time,
            ready=self.ready,
            current=lambda: self.runtime,
            waiting=self.waiting,
            cors=Cors(config.cors, hsts=config.hsts or config.tls is not None),
            names=Names(config.aliases, config.categories),
            client_ip=client_ip_of(config.trusted_proxies),
        )

    def _tokens_for(self, section: Jwt | None) -> TokenService | None:
        """Keep the token service if its section is unchanged. A `ca` is read again."""
        if section == self.config.jwt and not (section is not None and section.ca):
            return self.tokens
        tokens = open_tokens(section, self.store, self.config.identity)
        if tokens is not None and self.tokens is not None:
            tokens.signers.inherit(self.tokens.signers)
        return tokens

    def _take(self, tokens: TokenService | None) -> None:
        """Use this token service; grants made under the old one end."""
        if tokens is self.tokens:
            return
        if self.tokens is not None:
            self.tokens.signers.retire()
        self.tokens = self.keys.tokens = tokens
        if tokens is not None:
            tokens.signers.start()
        self.keys.invalidate()

    def ready(self) -> bool:
        """Whether a request sent now could be served (O1)."""
        heard = self.keys.silence < AWAY
        return heard and not self.draining and not self.audit.full and bool(self.hub.backends.models())

    async def waiting(self, key: str) -> Sequence[Waiting]:
        """The requests of `key` that wait for a slot, oldest first."""
        return self.ledger.places(key)

    def prepare(self, config: Config) -> Callable[[], None]:
        """A function that puts a new configuration in force, in one turn of the loop. Everything that can fail is built
        here: if this raises, nothing has changed."""
        tls = tls_context(config.tls)  # a certificate that cannot be loaded must not replace the old one
        backends, adopt = self.hub.prepare(config)
        pools, tokens = self._pools_for(config), self._tokens_for(config.jwt)
        runtime = self._generation(config, backends, pools)

        def commit() -> None:
            for name, old in self.pools.items():
                if pools[name] is not old:
                    old.retire()
            raise_file_limit(config.caps.connections)
            self._take(tokens)
            self.config, self.pools = config, pools
            self.runtime = self.phases.runtime = runtime
            self.ledger.body_limit = config.caps.bodies_bytes
            self.server.retune(config.caps, config.timeouts, vouched_by(config.trusted_proxies))
            self.server.secure(tls)
            forget_request_heads()
            adopt()

        return commit

    # ---- running

    @asynccontextmanager
    async def running(self: P) -> AsyncIterator[P]:
        """Start everything; on exit stop everything and flush the audit spool. Does not drain."""
        await self.keys.start()
        if self.tokens is not None:
            self.tokens.signers.start()
        await self.hub.start()
        if self.tracing is not None:
            self.tracing.start()
        async with anyio.create_task_group() as group:
            group.start_soon(self.audit.run)
            group.start_soon(self.prompts.run)
            self.hub.run(group)
            group.start_soon(self._tick)
            await self._listen()
            try:
                yield self
            finally:
                with anyio.CancelScope(shield=True):
                    await self._dismiss()
                    await self._stop()
                group.cancel_scope.cancel()

    async def _listen(self) -> None:
        host, port = parse_listen(self.config.listen)
        tls = tls_context(self.config.tls)
        shared, alone = self.config.reuse_port, self.config.workers == 1
        self.port = await self.server.listen(host, port, tls, reuse_port=shared, alone=alone)

    async def _dismiss(self) -> None:
        """Answer the requests that still wait for a slot (`draining`) before running requests are cut."""
        self.hub.scheduler.close()
        for _ in range(ANSWER_TURNS):
            await asyncio.sleep(0)

    async def _stop(self) -> None:
        self.server.close()
        for pool in list(self._used_pools):
            pool.close()
        await self.server.ended()  # requests settle when their connections end, and the steps below take their records
        closing = [each.close() for each in (self.audit, self.prompts, self.usage, self.hub, self.keys)]
        if self.tokens is not None:
            closing.append(self.tokens.signers.close())
        if self.tracing is not None:
            closing.append(self.tracing.close())
        await close_all(*closing)

    async def _tick(self) -> None:
        """The slow clock: timers of upstream connections, and the lag of the loop."""
        while True:
            shortest = min(v for v in msgspec.structs.astuple(self.config.upstream) if isinstance(v, float))
            interval = max(0.01, min(1.0, shortest / 4))
            expected = time.monotonic() + interval
            await asyncio.sleep(interval)
            self.loop_lag = max(0.0, time.monotonic() - expected)
            self.metrics.observe_loop_lag(self.loop_lag)
            now = asyncio.get_running_loop().time()
            for pool in list(self._used_pools):
                pool.sweep(now)

    def stats(self) -> PlaneStats:
        """The statistics of this process."""
        return PlaneStats(
            server=self.server.stats(),
            audit=self.audit.stats(),
            prompts=self.prompts.stats(),
            keys=self.keys.stats(),
            ledger=self.ledger.stats(),
            tracing=self.tracing.stats() if self.tracing is not None else None,
            tokens=self.tokens.stats() if self.tokens is not None else None,
            upstream=sum(len(pool.connections) for pool in self._used_pools),
            log_lines_dropped=logs.dropped(),
            ready=self.ready(),
        )

    async def drain(self) -> None:
        """Refuse new requests and let running ones finish (H13)."""
        self.draining = True
        whole = await self.server.drain(self.config.timeouts.drain)
        log.info("drained" if whole else "drain deadline passed: cutting what still runs")


def metrics_of(routes: Routes) -> Metrics:
    """Metrics whose labels are these routes and their dialects."""
    dialects = {row.dialect.name for row in routes.rows}
    return Metrics(dialects=dialects, routes={row.path for row in routes.rows})


def address_of(section: cfg.Backend) -> Address:
    """The address of a backend's connections."""
    split = urlsplit(section.url)
    host = split.hostname or ""
    tls = split.scheme == "https"
    return Address(host, split.port or (443 if tls else 80), tls, section.ca)


def _no_passphrase() -> str:
    """Refuse an encrypted key. OpenSSL would prompt on the terminal, and a reload would hang until somebody answers."""
    raise cfg.ConfigError("tls.key: the key has a passphrase, and nobody can be asked for it; store it without one")


def _tls_fault(err: OSError) -> str:
    """What is wrong, since OpenSSL's messages (`[SSL] PEM lib`) do not tell."""
    if not isinstance(err, ssl.SSLError):
        return err.strerror or str(err)
    if err.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    return f"one of them is not a complete PEM file ({err.reason or err})"


def tls_context(tls: cfg.Tls | None) -> ssl.SSLContext | None:
    """TLS 1.2+ for a listener (H12). Raises ConfigError."""
    if tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    files = [name for name in (tls.cert, tls.key, tls.client_ca) if name]
    try:
        for name in files:
            open(name, "rb").close()  # OpenSSL would not say which file is missing
        context.load_cert_chain(tls.cert, tls.key, _no_passphrase)
        if tls.client_ca:
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as err:  # ssl.SSLError is a subclass, without a file name
        raise cfg.ConfigError(f"tls: {err.filename or ', '.join(files)}: {_tls_fault(err)}") from err
    return context
