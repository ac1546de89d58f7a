"""The running gateway as operators see it: its statistics, its readiness, and the sources of its metrics.

Reads frozen `stats()` records only. Must not know HTTP, and must not change anything.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from gateway import __version__, logs
from gateway.flow.ledger import LedgerStats
from gateway.http1.server import ServerStats
from gateway.services import samples
from gateway.services.audit import AuditStats
from gateway.services.backends import BackendStats
from gateway.services.keys import KeyStats
from gateway.services.limits import LimitStats
from gateway.services.metrics import Metrics, Sample
from gateway.services.tracing import OFF, TracingStats
from scheduler.estimate import Estimator
from scheduler.model import Stats

_Record = TypeVar("_Record", covariant=True)


class HasStats(Protocol[_Record]):
    """A service with a frozen record of its state."""

    def stats(self) -> _Record: ...


class Gateway(Protocol):
    """What the control plane reads of the composition. Attributes are read anew each time: a reload swaps some."""

    @property
    def metrics(self) -> Metrics: ...
    @property
    def backends(self) -> HasStats[tuple[BackendStats, ...]]: ...
    @property
    def scheduler(self) -> HasStats[Stats]: ...
    @property
    def estimator(self) -> Estimator: ...
    @property
    def audit(self) -> HasStats[AuditStats]: ...
    @property
    def keys(self) -> HasStats[KeyStats]: ...
    @property
    def limits(self) -> HasStats[LimitStats]: ...
    @property
    def tracing(self) -> HasStats[TracingStats] | None: ...
    @property
    def server(self) -> HasStats[ServerStats]: ...
    @property
    def ledger(self) -> HasStats[LedgerStats]: ...
    @property
    def pools(self) -> Mapping[str, Any]: ...
    @property
    def draining(self) -> bool: ...
    def ready(self) -> bool: ...


def stats(gateway: Gateway) -> dict[str, object]:
    """Everything, by service. No secrets, keys or prompts are in any of these records."""
    return {
        "version": __version__,
        "ready": gateway.ready(),
        "draining": gateway.draining,
        "backends": gateway.backends.stats(),
        "scheduler": gateway.scheduler.stats(),
        "audit": gateway.audit.stats(),
        "keys": gateway.keys.stats(),
        "limits": gateway.limits.stats(),
        "tracing": gateway.tracing.stats() if gateway.tracing is not None else None,
        "server": gateway.server.stats(),
        "ledger": gateway.ledger.stats(),
        "upstream_connections": _upstream(gateway),
        "log_lines_dropped": logs.dropped(),
    }


def readiness(gateway: Gateway) -> dict[str, object]:
    """The verdict of `ready()` and what it rests on (O1)."""
    backends = gateway.backends.stats()
    audit = gateway.audit.stats()
    return {
        "ready": gateway.ready(),
        "draining": gateway.draining,
        "backends": {each.name: _verdict(each) for each in backends},
        "audit": {"pending": audit.pending, "oldest_seconds": audit.oldest_seconds, "failures": audit.failures},
    }


def _verdict(backend: BackendStats) -> str:
    if backend.state == "open":
        return f"ejected: {backend.failure or 'requests failed'}"
    if backend.failure:
        return backend.failure
    return "ok" if backend.models else "no models"


def _upstream(gateway: Gateway) -> int:
    return sum(len(pool.connections) for pool in gateway.pools.values())


def register_sources(gateway: Gateway) -> None:
    """Let the gateway's metrics read its services at scrape."""
    metrics = gateway.metrics
    metrics.register("backends", lambda: samples.of_backends(gateway.backends.stats()))
    metrics.register("scheduler", lambda: samples.of_scheduler(gateway.scheduler.stats()))
    metrics.register("limits", lambda: samples.of_limits(gateway.limits.stats()))
    metrics.register("process", _process(gateway))
    metrics.register("audit", lambda: samples.of_audit(gateway.audit.stats()))
    metrics.register("tracing", lambda: samples.of_tracing(gateway.tracing.stats() if gateway.tracing else OFF))


def _process(gateway: Gateway) -> Callable[[], Iterator[Sample]]:
    def read() -> Iterator[Sample]:
        yield "fairgate_queue_timeout_seconds", (), gateway.estimator.settings.queue_timeout
        keys = gateway.keys.stats()
        yield "fairgate_key_hashes_total", (), keys.hashed
        yield "fairgate_keys_cached", (), keys.cached
        server = gateway.server.stats()
        yield "fairgate_connections_accepted_total", (), server.accepted
        yield "fairgate_connections_refused_total", (), server.refused
        yield "fairgate_connections", ("client",), server.open
        yield "fairgate_connections", ("upstream",), _upstream(gateway)
        yield "fairgate_buffered_bytes", ("bodies",), gateway.ledger.stats().body_bytes
        yield "fairgate_buffered_bytes", ("answers",), server.buffered
        yield "fairgate_log_lines_dropped_total", (), logs.dropped()

    return read
