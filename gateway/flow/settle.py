"""The end of every request: gives back its slot and reservations, counts it, and writes its audit record. Never waits,
never raises.

`settle` runs in the `finally` of `phases.handle`, so it must cope with an exchange that stopped after any phase.
"""

import logging
import math
from typing import Final

from gateway.api.dialect import Access, Kind
from gateway.api.routes import NO_ENDPOINT
from gateway.api.usage import Usage
from gateway.errors import UpstreamRejected
from gateway.flow import quota
from gateway.flow.exchange import GIVEN_UP, NO_REPLY, NO_ROUTE, NO_USAGE, Exchange, Outcome, Runtime
from gateway.flow.resting import NOT_BEGUN, rest
from gateway.flow.ticket import expected_cost
from gateway.services.record import AuditRecord, Opening
from gateway.services.tracing import Ended, TracingService
from gateway.services.zombies import WORKS_ON
from scheduler.estimate import cost

log = logging.getLogger("fairgate.flow")

MODEL_CHARS: Final = 256  # of an unknown model name; longer ones are cut
GONE_STATUS: Final = 499  # the usual status in logs for a client that left (nginx, Ollama)
CUT_STATUS: Final = 503  # for a request cut by the end of the gateway, whatever had been sent


def settle(x: Exchange, rt: Runtime) -> None:
    """Give everything back and record what happened."""
    ended = rt.now()
    if x.outcome is Outcome.CLIENT_GONE:
        x.status = GONE_STATUS
    elif x.outcome is Outcome.INTERRUPTED:
        x.status = CUT_STATUS
    x.usage = _usage(x, rt)
    works_on = x.outcome is not Outcome.DONE and _works_on(x)
    upstream, x.upstream = x.upstream, None
    if upstream is not None:
        upstream.release()
    cost_units = _cost(x, rt, works_on, ended)
    if works_on and x.lease is not None:
        rt.zombies.keep(x.lease, cost_units, x.route.terms.total)
    elif x.lease is not None:
        if x.error is not None and _slot_must_rest(x, rt):
            rest(x.lease)
        else:
            x.lease.release(cost_units)
    rt.ledger.leave(x)
    quota.settle(x, rt, ended)
    _learn(x, rt, ended)
    row = record(x, ended)
    rt.audit.put(row, x.audit_number)
    if rt.tracing is not None:
        _trace(x, rt.tracing, row, ended)
    _count(x, rt, row, ended)
    if x.error is not None and x.error.cause:
        log.warning("request failed", extra={"request_id": x.id, "code": x.error.code, "cause": x.error.cause})
    if rt.config.log.requests:
        log.info("request", extra={"request_id": x.id, "status": x.status, "outcome": str(x.outcome)})
    _break_cycles(x)


def _slot_must_rest(x: Exchange, rt: Runtime) -> bool:
    """Whether the next request would meet the same problem on this backend. Either the engine refused to begin, or (if
    another backend serves the model) it has answered only errors of its own, `discovery.eject_after` times in a row,
    counting this one."""
    if isinstance(x.error, NOT_BEGUN):
        return True
    status = x.reply.status
    if status != 404 and (status < 500 or isinstance(x.error, UpstreamRejected)):
        return False
    rt.failing[x.backend.name] = errors = rt.failing.get(x.backend.name, 0) + 1
    return errors >= rt.config.discovery.eject_after and len(x.route.candidates) > 1


def _trace(x: Exchange, tracing: TracingService, row: AuditRecord, ended: float) -> None:
    """Export the trace if it is sampled. Public routes (health, playground) have none: probes would drown the rest."""
    endpoint = x.endpoint
    if x.trace is None or not x.trace.sampled or endpoint.access is Access.PUBLIC:
        return
    tracing.ended(
        Ended(
            trace=x.trace,
            row=row,
            operation=str(endpoint.kind) if endpoint is not NO_ENDPOINT else "",
            engine=x.backend.engine if row.backend else "",
            model=x.principal.force_model or row.model_asked if row.model_served else "",
            started=x.started,
            queued=x.queued_at,
            granted=x.granted_at,
            sent=x.sent_at,
            first_byte=x.first_byte_at,
            ended=ended,
        )
    )


def _break_cycles(x: Exchange) -> None:
    """Break reference cycles. A garbage collection takes tens of milliseconds, which every stream would feel."""
    x.connection.stream = None
    x.connection.quiet_call = None
    x.relay = None
    x.waiter = None
    if x.error is not None:
        x.error.__traceback__ = x.error.__context__ = x.error.__cause__ = None


def _usage(x: Exchange, rt: Runtime) -> Usage:
    """The tokens for the record, the limits and the metrics: as reported, else as counted, else estimated for work that
    an engine did without counting it."""
    usage = _counted(x)
    if usage.reported or usage.prompt_tokens or not quota.worked(x, usage):
        return usage
    prompt = math.ceil(rt.estimator.input_tokens(x.route.model, x.ask.input_bytes))  # every prompt has tokens
    return Usage(prompt, usage.completion_tokens or _tokens_by_size(x, rt), usage.cached_tokens, reported=False)


def _tokens_by_size(x: Exchange, rt: Runtime) -> int:
    """Output tokens estimated from the size of a plain answer: an answer that the engine does not count must not be
    free."""
    size = x.relay.kept_bytes if x.relay is not None else 0
    return min(math.ceil(rt.estimator.input_tokens(x.route.model, size)), quota.max_output(x))


def _counted(x: Exchange) -> Usage:
    if x.relay is None:
        return NO_USAGE
    usage, tap = x.relay.usage() or NO_USAGE, x.relay.tap
    # In vLLM the running usage in a frame covers only that frame's answer. With several answers the number of frames is
    # closer to the truth. It also covers only one prompt, while a completion may have several.
    if x.ask.choices > 1 and tap is not None and not tap.terminated and usage.completion_tokens < tap.frames:
        if x.endpoint.kind is Kind.COMPLETION:
            return Usage(0, tap.frames, reported=False)
        return Usage(usage.prompt_tokens, tap.frames, usage.cached_tokens, reported=False)
    return usage


def _cost(x: Exchange, rt: Runtime, works_on: bool, ended: float) -> float:
    """Cost units to charge (scheduler.md 5.3): the actual cost if reported, nothing if no engine worked.

    Leaving early is not free. If the engine `works_on` after the client has left, the whole answer is produced and the
    expected cost is charged. A plain answer shows nothing before its end: the tokens that the engine may have produced
    by then are estimated from the model's pace and charged.
    """
    if works_on and x.outcome in GIVEN_UP:
        return expected_cost(x, rt)
    usage = x.usage
    if not quota.worked(x, usage):
        return 0.0
    prompt = float(usage.prompt_tokens)
    if not usage.reported and not prompt:
        prompt = rt.estimator.input_tokens(x.route.model, x.ask.input_bytes)
    output = float(usage.completion_tokens)
    if not output and x.outcome in GIVEN_UP and not x.ask.stream:
        unseen = rt.limits.pace.tokens(x.route.model, prompt, ended - x.sent_at)
        output = min(unseen, float(quota.max_output(x)))
    uncached = max(0.0, prompt - usage.cached_tokens)
    return cost(rt.estimator.settings, uncached, usage.cached_tokens, output, x.route.terms.cost_factor)


def _works_on(x: Exchange) -> bool:
    """Whether the engine finishes a request although it was given up. llama.cpp does so for a plain answer before it
    sends the head, which comes last. A stream ends when its connection closes."""
    if x.backend.engine not in WORKS_ON or x.ask.stream or x.upstream is None or x.reply is not NO_REPLY:
        return False
    return x.sent_at > 0.0 and (x.outcome in GIVEN_UP or x.outcome is Outcome.TIMED_OUT)


def _learn(x: Exchange, rt: Runtime, ended: float) -> None:
    """Learn from a finished request: its tokens, and the speed of its engine."""
    usage = x.usage
    if usage.reported and x.outcome is Outcome.DONE:
        who = x.principal
        rt.estimator.observe(
            x.route.model, who.tenant, who.user, x.ask.input_bytes, usage.prompt_tokens, usage.completion_tokens
        )
        rt.limits.pace.observe(x.route.model, usage.prompt_tokens, usage.completion_tokens, ended - x.granted_at)
        if x.relay is not None and x.relay.tap is not None and usage.completion_tokens > 1:
            per_token = (ended - x.first_byte_at) / (usage.completion_tokens - 1)
            x.runtime.backends.measured(x.backend.name, per_token, x.granted_at, ended)


def opening(x: Exchange) -> Opening:
    """The start record of a request that goes to an engine (U3)."""
    endpoint, who = x.endpoint, x.principal
    return (
        x.id,
        int(x.started_wall * 1e6),
        who.tenant,
        who.user,
        who.key,
        x.ip,
        endpoint.dialect.name,
        endpoint.path,
        x.head.method,
        x.ask.model[:MODEL_CHARS],
        x.route.model,
    )


def record(x: Exchange, ended: float) -> AuditRecord:
    """The request as one flat row (U1). Durations are whole microseconds."""
    endpoint, who, usage, lease = x.endpoint, x.principal, x.usage, x.lease
    waiter = x.waiter if lease is None else None  # a request that got no slot still had a place in the queue
    return AuditRecord(
        id=x.id,
        started_at=int(x.started_wall * 1e6),
        tenant=who.tenant,
        user=who.user,
        key=who.key,
        ip=x.ip,
        dialect=endpoint.dialect.name if endpoint is not NO_ENDPOINT else "",
        route=endpoint.path,
        method=x.head.method,
        model_asked=x.ask.model[:MODEL_CHARS],
        model_served=x.route.model,
        backend=x.backend.name,
        status=x.status,
        outcome=_outcome_text(x.outcome),
        error=x.error.code if x.error is not None else "",
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        usage_estimated=_estimated(x, usage),
        queue_us=int(x.waited * 1e6),
        first_byte_us=_us(x.first_byte_at, x.started) if x.first_byte_at else 0,
        total_us=_us(ended, x.started),
        bytes_in=x.body_bytes,
        bytes_out=x.connection.bytes_out,
        rank=lease.rank if lease is not None else waiter.rank if waiter is not None else 0,
        queue_len=lease.queue_len if lease is not None else waiter.queue_len if waiter is not None else 0,
        usage_before=float(lease.usage) if lease is not None else 0.0,  # the hash of the chain distinguishes 0 from 0.0
        slot_us=_us(ended, x.granted_at) if lease is not None else 0,
    )


def _estimated(x: Exchange, usage: Usage) -> bool:
    """Whether the engine worked without reporting how much, for example because the client left before the first
    byte."""
    return not usage.reported and (x.relay is not None or (x.outcome in GIVEN_UP and x.sent_at > 0.0))


def _outcome_text(outcome: Outcome) -> str:
    """`outcome.value`, which is much slower than this for the common case."""
    return "done" if outcome is Outcome.DONE else outcome.value


def _us(end: float, start: float) -> int:
    return int((end - start) * 1e6) if start else 0


def _count(x: Exchange, rt: Runtime, row: AuditRecord, ended: float) -> None:
    metrics = rt.metrics
    metrics.count_request(row.dialect, row.route, row.status, row.outcome)
    if x.error is not None:
        metrics.refused(x.error.code)
    if x.route is NO_ROUTE:
        return
    metrics.settle(
        x.route.model,
        duration=ended - x.started,
        queue=x.waited if x.granted_at else None,
        first_byte=x.first_byte_at - x.started if x.first_byte_at else None,
        prompt=row.prompt_tokens,
        completion=row.completion_tokens,
        cached=row.cached_tokens,
        estimated=row.usage_estimated,
        bytes_in=row.bytes_in,
        bytes_out=row.bytes_out,
        overhead=x.overhead if x.sent_at else None,
    )
