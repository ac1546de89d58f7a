"""Turns the services' frozen statistics into samples of the metrics table, at a scrape.

Must not know how anything is counted or shown.
"""

from collections.abc import Iterable, Iterator, Mapping

from gateway.services.backend_facts import BackendStats
from gateway.services.limit_facts import LimitStats
from gateway.services.metrics import Sample
from gateway.services.prompts import PromptStats
from gateway.services.record import AuditStats
from gateway.services.token_facts import TokenStats
from gateway.services.tracing import TracingStats
from gateway.services.zombies import ZombieStats
from scheduler.model import Stats


def of_backends(backends: Iterable[BackendStats]) -> Iterator[Sample]:
    """Health, models, breaker state and failures."""
    for one in backends:
        name = (one.name,)
        yield "fairgate_backend_up", name, float(one.up)
        yield "fairgate_backend_models", name, one.models
        yield "fairgate_backend_models_loaded", name, len(one.loaded)
        yield "fairgate_backend_ejections_total", name, one.ejections
        if one.last_seen is not None:
            yield "fairgate_backend_last_seen_seconds", name, one.last_seen
        for kind, count in one.failures.items():
            yield "fairgate_backend_failures_total", (one.name, kind), count
        for state in ("closed", "open", "half_open"):
            yield "fairgate_breaker_state", (one.name, state), float(state == one.state)


def of_zombies(zombies: Iterable[ZombieStats]) -> Iterator[Sample]:
    """Slots that are taken after their request has ended."""
    for one in zombies:
        yield "fairgate_slots_zombie", (one.backend,), one.held
        yield "fairgate_zombies_total", (one.backend,), one.seen


def of_limits(stats: LimitStats) -> Iterator[Sample]:
    """Reservations, and the rounds with the store and Redis."""
    yield "fairgate_limit_reservations", (), stats.open
    yield "fairgate_limit_expired_total", (), stats.expired
    for lender, one in (("store", stats.store), ("redis", stats.shared)):
        if one is not None:
            yield "fairgate_limit_rounds_total", (lender,), one.rounds
            yield "fairgate_limit_failures_total", (lender,), one.failures
            yield "fairgate_limit_failing", (lender,), float(one.failing)


def of_audit(stats: AuditStats) -> Iterator[Sample]:
    """The rows on their way to the store, and the room left in the spool."""
    yield "fairgate_audit_pending", (), stats.pending
    yield "fairgate_audit_oldest_seconds", (), stats.oldest_seconds
    yield "fairgate_audit_spool_bytes", (), stats.spool_bytes
    yield "fairgate_audit_spool_limit_bytes", (), stats.spool_limit
    yield "fairgate_audit_written_total", (), stats.written
    yield "fairgate_audit_failures_total", (), stats.failures
    yield "fairgate_audit_dropped_total", (), stats.dropped
    yield "fairgate_audit_interrupted_total", (), stats.interrupted


def of_prompts(stats: PromptStats) -> Iterator[Sample]:
    """What happened to prompts of keys that opted in."""
    yield "fairgate_prompts_total", ("stored",), stats.stored
    yield "fairgate_prompts_total", ("dropped",), stats.dropped
    yield "fairgate_prompts_total", ("redaction_failed",), stats.redaction_failed


def of_tokens(stats: TokenStats) -> Iterator[Sample]:
    """Tokens of an issuer, and the fetches of its keys."""
    yield "fairgate_token_checks_total", (), stats.checked
    yield "fairgate_jwks_fetches_total", (), stats.fetched
    yield "fairgate_jwks_failures_total", (), stats.failed
    yield "fairgate_jwks_age_seconds", (), stats.age


def of_scheduler(stats: Stats) -> Iterator[Sample]:
    """Queues by model, slots by backend. The reader adds up the queues of one model (`Route.pool`); the longest of
    their oldest waits is the model's."""
    oldest: dict[str, float] = {}
    for pool in stats.pools:
        model = pool.pool.partition("\t")[0]
        yield "fairgate_queue_depth", (model,), pool.queued
        yield "fairgate_running", (model,), pool.running
        oldest[model] = max(oldest.get(model, 0.0), pool.oldest_wait)
    for model, wait in oldest.items():
        yield "fairgate_queue_oldest_seconds", (model,), wait
    for gate in stats.gates:
        yield "fairgate_slots", (gate.gate,), gate.slots
        yield "fairgate_slots_running", (gate.gate,), gate.running
    yield "fairgate_slot_mismatches_total", (), stats.mismatches


def of_fairness(indices: Mapping[str, float]) -> Iterator[Sample]:
    """The fairness index by model; see `Evenness.look`."""
    for model, index in indices.items():
        yield "fairgate_jain_index", (model,), index


def of_tracing(stats: TracingStats) -> Iterator[Sample]:
    """Traces being exported, and traces lost."""
    yield "fairgate_traces_waiting", (), stats.waiting
    yield "fairgate_traces_exported_total", (), stats.exported
    yield "fairgate_traces_lost_total", ("queue_full",), stats.dropped
    yield "fairgate_traces_lost_total", ("export_failed",), stats.failed
