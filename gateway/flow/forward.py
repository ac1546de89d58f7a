"""The queue, the attempts on backends, and what an engine's error means to the client.

Two phases of a request, both of which may wait. Must not know sockets, SQL or Redis; like all phases they run without a
Task (`http1.eager`).
"""

import logging

from gateway.api.bridges import bridge_to
from gateway.errors import ConnectFailed, EngineBusy, ModelLoading, NoBackend, UpstreamError
from gateway.flow import fields
from gateway.flow.engine_errors import Collector, engine_refused, room_left
from gateway.flow.exchange import NO_REPLY, Exchange, Runtime
from gateway.flow.ids import engine_id
from gateway.flow.quota import max_output
from gateway.flow.resting import rest
from gateway.flow.silence import comment_while_silent
from gateway.flow.ticket import ticket
from gateway.flow.translations import REFUSALS, failure_of
from gateway.http1.client import StaleConnection
from gateway.http1.message import ResponseHead
from gateway.services.route import Backend
from gateway.services.tracing import passed_on
from scheduler.aio import Lease, Rejected, Waiter

log = logging.getLogger("fairgate.flow")


async def queue(x: Exchange, rt: Runtime, avoid: tuple[str, ...] = ()) -> None:
    """Ticket -> lease. Raises the errors in REFUSALS, or ClientGone. An interruption gives the place or the slot
    back."""
    began = rt.now()
    x.queued_at = x.queued_at or began
    try:
        got = rt.scheduler.submit(ticket(x, rt, avoid))
        x.lease = got if isinstance(got, Lease) else await _wait(x, rt, got)
        x.granted_at = rt.now()
    except Rejected as rejected:
        raise REFUSALS[rejected.refused.reason](rejected.refused) from None
    finally:
        x.waited += (x.granted_at or rt.now()) - began


async def _wait(x: Exchange, rt: Runtime, waiter: Waiter) -> Lease:
    x.waiter = waiter
    rt.ledger.queued(x)
    comment_while_silent(x, rt)
    try:
        return await waiter.future
    except BaseException:
        waiter.cancel()
        raise
    finally:
        rt.ledger.dequeued(x)


async def forward(x: Exchange, rt: Runtime) -> None:
    """Body and lease -> response head of an engine. Only this phase retries, and only before the first byte of an
    answer (R5).

    - A kept connection had died: once more, on a new connection.
    - The output limit that the gateway added does not fit into the context: again, with a lower one.
    - No connection could be made, or the engine was too busy to begin: on a backend that has not failed yet.
    """
    retries, kept, cap = x.route.terms.retries, True, x.route.terms.max_output_tokens
    dead: tuple[str, ...] = ()
    while True:
        began = rt.now()
        try:
            x.reply = await _attempt(x, rt, cap, kept=kept)
            if 200 <= x.reply.status < 300:
                if rt.failing:
                    rt.failing.pop(x.backend.name, None)
                return
            cap, kept = await _refused_by_engine(x, cap), True
            x.lost += rt.now() - began
            _release_connection(x)
        except StaleConnection:
            x.lost += rt.now() - began
            _release_connection(x)
            kept = False
        except (ConnectFailed, EngineBusy, ModelLoading) as failure:
            full, again = not isinstance(failure, ConnectFailed), x.backend.name in dead
            dead = dead if again else (*dead, x.backend.name)
            if retries <= 0 or not set(x.route.candidates).difference(dead):
                raise
            if full:
                _log_busy(x, failure.cause)
            x.lost += rt.now() - began
            # The queue may grant a slot of a backend that was to be avoided. If that engine is busy, the attempt does
            # not count as a retry; its slot rests, so this ends with the queue timeout at the latest.
            retries, kept = retries if full and again else retries - 1, True
            _release_connection(x)
            _release_slot(x, full=full)
            await queue(x, rt, avoid=dead)
        rt.metrics.retried(x.backend.name)


def _backend(x: Exchange, rt: Runtime, name: str) -> Backend:
    """The backend of the lease. If a reload added or changed it while the request waited (O7), it comes from the
    configuration now in force, to which the rest of the request also reports its failures. The timeouts stay those of
    the request's own route."""
    x.runtime = newer = rt.current()
    if newer is not rt:
        route = newer.backends.route(x.route.model, x.endpoint.dialect.name, x.endpoint.kind)
        if route is not None and name in route.candidates:
            return newer.backends.backend(name)
        x.runtime = rt
    try:
        return rt.backends.backend(name)
    except KeyError:
        raise NoBackend("The backends changed while the request was waiting.", retry_after=1.0) from None


async def _attempt(x: Exchange, rt: Runtime, cap: int, *, kept: bool) -> ResponseHead:
    """One attempt on the backend of the lease, with at most `cap` output tokens. `kept`: prefer a kept-alive
    connection, which may be stale."""
    assert x.lease is not None  # noqa: S101  # queue ran
    terms = x.route.terms
    backend = x.backend = _backend(x, rt, x.lease.gate)
    backends, pool = x.runtime.backends, x.runtime.pools[backend.name]
    body, target = _request_for(x, backend.engine, cap)
    passed = x.trace.fields if x.trace is not None else passed_on(x.head.headers)
    if x.endpoint.passed:
        passed += fields.passed_fields(x.endpoint.passed, x.head.headers)
    head = fields.request_head(backend, target, engine_id(x), len(body), passed)
    try:
        x.upstream = (pool.take() if kept else None) or await pool.dial(terms.connect)
        x.sent_at = rt.now()
        answer = x.upstream.send(
            head, body, "POST", first_byte=terms.first_byte, between=terms.between, total=terms.total
        )
        comment_while_silent(x, rt)
        reply = await answer
    except UpstreamError as error:
        if not isinstance(error, StaleConnection):
            backends.failed(backend.name, failure_of(error))
        raise
    backends.succeeded(backend.name, reply.status)
    return reply


def _request_for(x: Exchange, engine: str, cap: int) -> tuple[bytes, bytes]:
    """The body and the path of the request in the API of this engine."""
    endpoint, model = x.endpoint, x.route.model
    x.bridge = bridge_to(engine, endpoint) if endpoint.engines else None
    if x.bridge is not None:
        return x.bridge.request(x.body, model, cap), x.bridge.upstream
    return endpoint.dialect.edit(endpoint, x.body, x.ask, model=model, cap=cap, engine=engine), endpoint.upstream


def _log_busy(x: Exchange, cause: str) -> None:
    """Log what a busy engine said even if another backend serves the request; otherwise the operator would never see
    it."""
    log.warning("engine would not begin", extra={"request_id": x.id, "backend": x.backend.name, "cause": cause})


def _release_connection(x: Exchange) -> None:
    """Undo an attempt that the engine has not begun to serve."""
    upstream, x.upstream = x.upstream, None
    x.sent_at = 0.0
    x.reply = NO_REPLY
    if upstream is not None:
        upstream.release()


def _release_slot(x: Exchange, *, full: bool) -> None:
    """Give the slot back without charge. The slot of a `full` engine rests before it is used again."""
    if x.lease is not None:
        if full:
            rest(x.lease)
        else:
            x.lease.release(0.0)
        x.lease = None
        x.granted_at = 0.0


async def _refused_by_engine(x: Exchange, cap: int) -> int:
    """The engine answered with an error: read its text for the log and raise our own error (H8). Or, if the output
    limit that the gateway added does not fit into the context, return a lower one to try."""
    assert x.upstream is not None  # noqa: S101  # the attempt succeeded
    x.upstream.sink = collector = Collector(x.upstream)
    await collector.done
    unlimited = x.ask.max_tokens is None or x.ask.max_tokens < 0
    added = cap if unlimited and max_output(x) else 0
    status, text = x.reply.status, collector.body()
    if added and (left := room_left(status, text, added)):
        return left
    # Not reported to the breaker: a caller who can make an engine answer 500 must not eject it for everybody.
    raise engine_refused(status, text, x.reply.get(b"retry-after"), added)
