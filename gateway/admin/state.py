"""The running gateway as operators see it: its statistics, its readiness, and the sources of its metrics.

Reads frozen records only. Must not know HTTP, and must not change anything.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from gateway import __version__
from gateway.flow.ledger_facts import LedgerStats
from gateway.http1.facts import ServerStats
from gateway.services import samples
from gateway.services.backend_facts import BackendStats
from gateway.services.counts import Counts
from gateway.services.evenness import Evenness
from gateway.services.key_facts import KeyStats
from gateway.services.limit_facts import LimitStats
from gateway.services.metrics import Metrics, Sample
from gateway.services.prompts import PromptStats
from gateway.services.record import AuditStats
from gateway.services.token_facts import NO_TOKENS, TokenStats
from gateway.services.tracing import OFF, TracingStats
from gateway.services.zombies import ZombieStats
from scheduler.estimate import Estimator
from scheduler.model import Backlog, Stats

_Record = TypeVar("_Record", covariant=True)


AWAY = 3.0
"""Seconds without an answer of the store, or of Redis, after which the gateway is not ready (O1). Both are polled more
often, and a single late answer is no outage."""


class PlaneStats(msgspec.Struct, frozen=True):
    """Statistics of the serving process, or the sum of several. `upstream`: connections to engines."""

    server: ServerStats
    audit: AuditStats
    prompts: PromptStats
    keys: KeyStats
    ledger: LedgerStats
    tracing: TracingStats | None
    tokens: TokenStats | None
    upstream: int
    log_lines_dropped: int
    ready: bool


class Stock(msgspec.Struct, frozen=True):
    """Everything that one serving process reports about itself."""

    stats: PlaneStats
    counts: Counts


class WorkerStats(msgspec.Struct, frozen=True):
    """One serving process. `restarts` since the gateway's start."""

    worker: int
    pid: int
    up: bool
    restarts: int


NO_STATS = PlaneStats(
    server=ServerStats(open=0, busy=0, accepted=0, refused=0, requests=0, timed_out=0, buffered=0),
    audit=AuditStats(written=0, pending=0, failures=0, dropped=0, oldest_seconds=0.0),
    prompts=PromptStats(stored=0, dropped=0, redaction_failed=0, pending_bytes=0),
    keys=KeyStats(hashed=0, refused=0, unavailable=0, cached=0, negative=0, flights=0),
    ledger=LedgerStats(open=0, body_bytes=0, waiting=0),
    tracing=None,
    tokens=None,
    upstream=0,
    log_lines_dropped=0,
    ready=False,
)
LARGEST = frozenset({"oldest_seconds", "silence", "age", "signers"})
"""Figures of which the maximum is taken instead of the sum."""
PASSING = frozenset(
    {"open", "busy", "buffered", "pending", "oldest_seconds", "spool_bytes", "spool_limit", "cached", "negative"}
    | {"flights", "body_bytes", "waiting", "upstream", "pending_bytes", "silence"}
    | {"age", "signers"}
)
"""Figures that end with their process. All others only ever grow, and are kept when it is gone."""


def added(every: "Sequence[PlaneStats]", *, past: bool = False) -> PlaneStats:
    """The sum of several; `past`: of processes that have ended. At least one must be given."""
    rows = [msgspec.structs.asdict(each) for each in every]
    parts: dict[str, Any] = {}
    for name in ("server", "audit", "prompts", "keys", "ledger"):
        parts[name] = _added([row[name] for row in rows], past)
    for name in ("tracing", "tokens"):
        known = [row[name] for row in rows if row[name] is not None]
        parts[name] = _added(known, past) if known else None
    parts["upstream"] = 0 if past else sum(row["upstream"] for row in rows)
    parts["log_lines_dropped"] = sum(row["log_lines_dropped"] for row in rows)
    parts["ready"] = not past and any(row["ready"] for row in rows)
    return PlaneStats(**parts)


def _added(records: "Sequence[msgspec.Struct]", past: bool) -> msgspec.Struct:
    rows = [msgspec.structs.asdict(record) for record in records]
    sums = {
        name: 0 if past and name in PASSING else (max if name in LARGEST else sum)(row[name] for row in rows)
        for name in rows[0]
    }
    return type(records[0])(**sums)


class HasStats(Protocol[_Record]):
    """A service with a frozen record of its state."""

    def stats(self) -> _Record: ...


class Queues(HasStats[Stats], Protocol):
    """The scheduler."""

    def backlogs(self) -> tuple[float, list[Backlog]]: ...


class Gateway(Protocol):
    """What the control plane reads of the running gateway. Attributes are read each time, since a reload replaces
    some."""

    @property
    def metrics(self) -> Metrics: ...
    @property
    def backends(self) -> HasStats[tuple[BackendStats, ...]]: ...
    @property
    def scheduler(self) -> Queues: ...
    @property
    def estimator(self) -> Estimator: ...
    @property
    def zombies(self) -> HasStats[tuple[ZombieStats, ...]]: ...
    @property
    def limits(self) -> HasStats[LimitStats]: ...
    @property
    def draining(self) -> bool: ...
    def ready(self) -> bool: ...
    def stats(self) -> PlaneStats:
        """The statistics as of the last `refresh`."""
        ...

    def workers(self) -> Sequence[WorkerStats]: ...
    async def refresh(self) -> None:
        """Fetch current figures from other processes."""
        ...


def stats(gateway: Gateway) -> dict[str, object]:
    """All statistics, by service. None of these records contains secrets, keys or prompts."""
    plane = gateway.stats()
    return {
        "version": __version__,
        "ready": gateway.ready(),
        "draining": gateway.draining,
        "workers": gateway.workers(),
        "backends": gateway.backends.stats(),
        "scheduler": gateway.scheduler.stats(),
        "zombies": gateway.zombies.stats(),
        "audit": plane.audit,
        "prompts": plane.prompts,
        "keys": plane.keys,
        "limits": gateway.limits.stats(),
        "tracing": plane.tracing,
        "tokens": plane.tokens,
        "server": plane.server,
        "ledger": plane.ledger,
        "upstream_connections": plane.upstream,
        "log_lines_dropped": plane.log_lines_dropped,
    }


def readiness(gateway: Gateway) -> dict[str, object]:
    """The result of `ready()` and its reasons (O1)."""
    backends = gateway.backends.stats()
    plane, shared = gateway.stats(), gateway.limits.stats().shared
    audit = plane.audit
    return {
        "ready": gateway.ready(),
        "draining": gateway.draining,
        "store": _answers(plane.keys.silence),
        "shared": "not used" if shared is None else _answers(shared.silence),
        "backends": {each.name: _verdict(each) for each in backends},
        "audit": {"pending": audit.pending, "oldest_seconds": audit.oldest_seconds, "failures": audit.failures},
    }


def _answers(silence: float) -> str:
    return "ok" if silence < AWAY else f"no answer for {silence:.0f} s"


def _verdict(backend: BackendStats) -> str:
    if backend.state == "open":
        return f"ejected: {backend.failure or 'requests failed'}"
    if backend.failure:
        return backend.failure
    return "ok" if backend.models else "no models"


def register_sources(gateway: Gateway) -> None:
    """Let the gateway's metrics read its services at each scrape."""
    metrics = gateway.metrics
    metrics.register("backends", lambda: samples.of_backends(gateway.backends.stats()))
    metrics.register("scheduler", lambda: samples.of_scheduler(gateway.scheduler.stats()))
    evenness = Evenness()
    metrics.register("fairness", lambda: samples.of_fairness(evenness.look(*gateway.scheduler.backlogs())))
    metrics.register("zombies", lambda: samples.of_zombies(gateway.zombies.stats()))
    metrics.register("limits", lambda: samples.of_limits(gateway.limits.stats()))
    metrics.register("process", _process(gateway))
    metrics.register("audit", lambda: samples.of_audit(gateway.stats().audit))
    metrics.register("prompts", lambda: samples.of_prompts(gateway.stats().prompts))
    metrics.register("tokens", lambda: samples.of_tokens(gateway.stats().tokens or NO_TOKENS))
    metrics.register("tracing", lambda: samples.of_tracing(gateway.stats().tracing or OFF))


def _process(gateway: Gateway) -> Callable[[], Iterator[Sample]]:
    def read() -> Iterator[Sample]:
        plane, workers = gateway.stats(), gateway.workers()
        yield "fairgate_queue_timeout_seconds", (), gateway.estimator.settings.queue_timeout
        yield "fairgate_key_hashes_total", (), plane.keys.hashed
        yield "fairgate_keys_cached", (), plane.keys.cached
        yield "fairgate_connections_accepted_total", (), plane.server.accepted
        yield "fairgate_connections_refused_total", (), plane.server.refused
        yield "fairgate_connections", ("client",), plane.server.open
        yield "fairgate_connections", ("upstream",), plane.upstream
        yield "fairgate_buffered_bytes", ("bodies",), plane.ledger.body_bytes
        yield "fairgate_buffered_bytes", ("answers",), plane.server.buffered
        yield "fairgate_log_lines_dropped_total", (), plane.log_lines_dropped
        yield "fairgate_workers", (), sum(worker.up for worker in workers)
        yield "fairgate_worker_restarts_total", (), sum(worker.restarts for worker in workers)

    return read
