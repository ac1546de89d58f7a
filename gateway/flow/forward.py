"""A turn and an engine: the queue, the attempts on backends, and what an engine's refusal means to the client.

Two phases of a request, each of which may wait. Must not know sockets, SQL or Redis; like all phases it runs without a
Task (`http1.eager`).
"""

import logging

from gateway.api.bridges import bridge_to
from gateway.errors import ConnectFailed, EngineBusy, ModelLoading, NoBackend, UpstreamError
from gateway.flow import fields
from gateway.flow.engine_errors import Collector, engine_refused, room_left
from gateway.flow.exchange import NO_REPLY, Exchange, Runtime
from gateway.flow.ids import engine_id
from gateway.flow.quota import produces
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
    """Ticket -> lease. Raises what REFUSALS says, or ClientGone. An interruption gives the place or the slot back."""
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
    """Body and lease -> response head of an engine. Only this phase retries, and only before any byte of an answer:
    once more on a new connection where a kept one had died; with less output asked for where the cap does not fit into
    the context; else on a backend that was not tried, where no connection was had or the engine would not begin (R5).
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
                _tell_full(x, failure.cause)
            x.lost += rt.now() - began
            # A slot may be of one that was to be avoided. Of a full one it rests, so that this ends with the wait.
            retries, kept = retries if full and again else retries - 1, True
            _release_connection(x)
            _release_slot(x, full=full)
            await queue(x, rt, avoid=dead)
        rt.metrics.retried(x.backend.name)


def _backend(x: Exchange, rt: Runtime, name: str) -> Backend:
    """The lease's backend. One that a reload brought or moved while the request waited (O7) is of the generation in
    force, which the rest of the request tells how it fares; the terms stay those of its own."""
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
    """One try on the backend of the lease, for `cap` output tokens at most; on a connection `kept` from before if there
    is one, which may be stale."""
    assert x.lease is not None  # noqa: S101  # queue ran
    terms = x.route.terms
    backend = x.backend = _backend(x, rt, x.lease.gate)
    backends, pool = x.runtime.backends, x.runtime.pools[backend.name]
    body, target = _words_for(x, backend.engine, cap)
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


def _words_for(x: Exchange, engine: str, cap: int) -> tuple[bytes, bytes]:
    """The body for an engine of that kind, and the engine's path for it."""
    endpoint, model = x.endpoint, x.route.model
    x.bridge = bridge_to(engine, endpoint) if endpoint.engines else None
    if x.bridge is not None:
        return x.bridge.request(x.body, model, cap), x.bridge.upstream
    return endpoint.dialect.edit(endpoint, x.body, x.ask, model=model, cap=cap, engine=engine), endpoint.upstream


def _tell_full(x: Exchange, cause: str) -> None:
    """What an engine said of itself is in the log also where another serves: nothing else tells the operator."""
    log.warning("engine would not begin", extra={"request_id": x.id, "backend": x.backend.name, "cause": cause})


def _release_connection(x: Exchange) -> None:
    """The engine has done nothing for what was sent."""
    upstream, x.upstream = x.upstream, None
    x.sent_at = 0.0
    x.reply = NO_REPLY
    if upstream is not None:
        upstream.release()


def _release_slot(x: Exchange, *, full: bool) -> None:
    """Give the slot back unused: the request has cost the engine nothing. One of an engine that is `full` rests."""
    if x.lease is not None:
        if full:
            rest(x.lease)
        else:
            x.lease.release(0.0)
        x.lease = None
        x.granted_at = 0.0


async def _refused_by_engine(x: Exchange, cap: int) -> int:
    """The engine answered with an error: read its text for the log, tell the client our own sentence (H8). Or -> how
    many output tokens to ask it for instead of the cap that does not fit, of a request that named no limit itself."""
    assert x.upstream is not None  # noqa: S101  # the attempt succeeded
    x.upstream.sink = collector = Collector(x.upstream)
    await collector.done
    unlimited = x.ask.max_tokens is None or x.ask.max_tokens < 0
    added = cap if unlimited and produces(x) else 0
    status, text = x.reply.status, collector.body()
    if added and (left := room_left(status, text, added)):
        return left
    # Not a failure for the breaker: a caller who can make an engine answer 500 must not eject it for all.
    raise engine_refused(status, text, x.reply.get(b"retry-after"), added)
