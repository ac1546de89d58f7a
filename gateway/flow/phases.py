"""The phases of a request, in their order, and the only `try/finally` that ends one.

Each phase fills its own fields of the exchange or raises; phases that cannot wait are not coroutines. Must not know
sockets, SQL or Redis. The coroutine runs without a Task (`http1.eager`), so nothing here may need a current Task.
"""

import itertools
import logging
import os
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

from gateway.api.bridge import Crossing
from gateway.api.bridges import bridge_to
from gateway.api.dialect import Access, Dialect, Framing, Kind
from gateway.api.routes import NO_ENDPOINT
from gateway.errors import (
    AuditUnavailable,
    BadRequest,
    Bug,
    ClientGone,
    ConnectFailed,
    Forbidden,
    GatewayError,
    ModelUnavailable,
    MutationBlocked,
    NoBackend,
    Overloaded,
    RateLimited,
    UpstreamBroke,
    UpstreamError,
    UpstreamRejected,
)
from gateway.flow import fields, local, quota
from gateway.flow.behalf import represent
from gateway.flow.exchange import Exchange, Known, Outcome, Runtime
from gateway.flow.quota import GENERATIONS, output_cap
from gateway.flow.refusals import NO_SUCH_ROUTE, Collector, engine_refused
from gateway.flow.relay import Relay
from gateway.flow.settle import opening, settle
from gateway.flow.silence import comment_while_silent
from gateway.flow.ticket import ticket
from gateway.flow.verdicts import AUTH_FAILURES, REFUSALS, failure_of, outcome_of, wire_error
from gateway.http1.chunks import LAST_CHUNK, encode_chunk
from gateway.http1.client import StaleConnection
from gateway.http1.connection import Connection
from gateway.http1.message import ResponseHead
from gateway.http1.wire import WireError
from gateway.services.keyfmt import PREFIX as KEY_PREFIX
from gateway.services.keyfmt import credential
from gateway.services.keys import SCOPES
from gateway.services.route import Backend, Route
from gateway.services.tracing import passed_on
from scheduler.aio import Lease, Rejected, Waiter

log = logging.getLogger("fairgate.flow")

STREAM_TYPES: Final = (b"text/event-stream", b"application/x-ndjson")
_REQUEST_ID: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_ID_PREFIX: Final = os.urandom(6).hex() + "-"
_ID_COUNT: Final = itertools.count(1)


async def handle(x: Exchange, rt: Runtime) -> None:
    """One request, from its head to its record."""
    try:
        if rt.tracing is not None:
            x.trace = rt.tracing.begin(x.head.headers)
        if not recall(x, rt):
            classify(x, rt)
            if x.endpoint.access is not Access.PUBLIC:
                await authenticate(x, rt)
        if x.endpoint.upstream:
            await read(x, rt)
            if x.principal.on_behalf:
                await represent(x, rt)
            route(x, rt)
            await admit(x, rt)
            await queue(x, rt)
            await forward(x, rt)
            answer = relay(x, rt)
            await answer.done
            if answer.error is not None:
                raise _broken(x, rt, answer.error, told=answer.told)
        elif x.endpoint.local in local.WAITING:
            await local.respond_later(x, rt)
        else:
            local.respond(x, rt)
    except ClientGone:
        x.outcome = Outcome.CLIENT_GONE
    except GatewayError as error:
        refuse(x, rt, error)
    except WireError as error:
        refuse(x, rt, wire_error(error))
    except Exception as error:
        refuse(x, rt, _unforeseen(x, error))
    finally:
        settle(x, rt)


def _unforeseen(x: Exchange, error: Exception) -> GatewayError:
    """What the client is told. A body that could just be read may be too deep where the stack is deeper."""
    if isinstance(error, RecursionError):
        return BadRequest("The body is nested too deeply.", cause=repr(error))
    log.exception("a request failed by a bug", extra={"request_id": x.id})
    return Bug("Something went wrong in the gateway.", cause=repr(error))


class Phases:
    """The server's handler: makes an exchange of each request and pins the current runtime to it."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def request(self, connection: Connection) -> Coroutine[Any, Any, None]:
        rt = self.runtime
        return handle(Exchange(request_id(connection), connection, rt), rt)

    def malformed(self, connection: Connection, error: WireError) -> None:
        """A request that could not be read still gets an answer in a dialect, and a record."""
        rt = self.runtime
        x = Exchange(request_id(connection), connection, rt)
        refuse(x, rt, wire_error(error))
        settle(x, rt)

    def crowded(self, connection: Connection) -> None:
        """No request, so no record; an answer like all others (H7, H11, A10)."""
        rt, error = self.runtime, Overloaded("Too many connections.")
        given = request_id(connection)
        rt.metrics.refused(error.code)
        head = fields.error_fields(error, given, rt.cors.fields(None))
        connection.respond(error.status, head, rt.routes.default.error(error, given))


def request_id(connection: Connection) -> str:
    """The client's own id if it is harmless (H7: no key, for one), else a new one."""
    head = connection.head
    given = head.headers.get(b"x-request-id") if head is not None else None
    if given and len(given) <= 64 and _REQUEST_ID.issuperset(given) and not given.startswith(KEY_PREFIX):
        return given.decode()
    return _ID_PREFIX + str(next(_ID_COUNT))


def engine_id(x: Exchange) -> str:
    """The request's id as its engine is told: nobody else's ever, while clients choose theirs and can guess others'.
    vLLM refuses a request whose id runs already, older ones mix the two up."""
    return f"{x.id}.{_ID_PREFIX}{next(_ID_COUNT)}" if b"x-request-id" in x.head.headers else x.id


# ---- classify


def recall(x: Exchange, rt: Runtime) -> bool:
    """Clients repeat their heads: where this one is its connection's last one again, and that was authenticated, the
    same follows. False: nothing is known, or the key must be looked up again."""
    known: Known | None = x.connection.known
    if known is None or known.fields is not x.head.headers or known.runtime is not rt:
        return False
    if not rt.keys.holds(known.grant, known.epoch):
        return False
    x.endpoint, x.ip, x.extra, x.principal = known.endpoint, known.ip, known.extra, known.grant.principal
    rt.metrics.auth("ok")
    return True


def classify(x: Exchange, rt: Runtime) -> None:
    """Head -> endpoint. Raises NotFound, MethodNotAllowed, MutationBlocked."""
    head = x.head
    x.ip = rt.client_ip(x.ip, head)
    x.extra = rt.cors.fields(head)
    if rt.cors.preflight(head) is not None:
        x.endpoint = rt.routes.preflight
        return
    x.endpoint = rt.routes.match(head.method, head.path)
    if x.endpoint.access is Access.NEVER:
        raise MutationBlocked("This operation changes the engine and is not available through the gateway.")


# ---- authenticate


async def authenticate(x: Exchange, rt: Runtime) -> None:
    """Head -> principal. Raises Unauthenticated, Forbidden, RateLimited, AuthUnavailable."""
    epoch, grant, failure = rt.keys.epoch, None, None
    try:
        token = credential(x.head.headers)
        grant = rt.keys.lookup(token, x.ip)
        x.principal = grant.principal if grant is not None else await rt.keys.verify(token, x.ip)
    except GatewayError as error:
        failure = error  # it may have to wait, and a compiled handler must not (tests/test_compiled.py)
    if failure is not None:
        await _tell_failure(x, rt, failure)
    rt.metrics.auth("ok")
    if x.endpoint.scope:
        if x.endpoint.scope not in x.principal.scopes:
            raise Forbidden(f"This key lacks the scope {x.endpoint.scope!r}.")
    elif x.principal.scopes.isdisjoint(SCOPES):
        raise Forbidden("This key administers; it opens nothing here.")
    if grant is not None:
        x.connection.known = Known(x, grant, epoch)


async def _tell_failure(x: Exchange, rt: Runtime, failure: GatewayError) -> None:
    """Raise `failure` in its turn (K4)."""
    anonymous = b"authorization" not in x.head.headers and b"x-api-key" not in x.head.headers
    rt.metrics.auth("missing" if anonymous else AUTH_FAILURES.get(type(failure), "invalid"))
    if (turn := rt.keys.turn_to_refuse()) is not None:
        await turn
    raise failure


# ---- read


async def read(x: Exchange, rt: Runtime) -> None:
    """Bytes -> ask. Raises TooLarge, Overloaded, BadRequest, RequestTimeout, ClientGone."""
    reader = x.connection.reader
    if not rt.ledger.hold_body(x, reader.body_received):
        raise Overloaded("The gateway holds too many request bodies.")
    x.body = await x.connection.body(None if reader.complete else partial(rt.ledger.hold_body, x))
    x.body_bytes = reader.body_received
    rt.ledger.shrink_body(x, len(x.body))
    x.ask = x.endpoint.dialect.read(x.endpoint, x.body)


# ---- route


def route(x: Exchange, rt: Runtime) -> None:
    """Model and principal -> route. One answer for forbidden and unknown (K8)."""
    found = _find(x, rt, x.endpoint.dialect.name, x.endpoint.kind)
    if found is None:
        if _find(x, rt, "openai", Kind.CHAT) is not None:  # which every engine has: the key may use it, but not so
            raise UpstreamRejected(NO_SUCH_ROUTE, 404)
        raise ModelUnavailable("The model does not exist or this key may not use it.", param="model")
    x.route = found


def _find(x: Exchange, rt: Runtime, dialect: str, kind: str) -> Route | None:
    asked = x.principal.force_model or x.ask.model
    if rt.names.some:
        return rt.names.find(asked, partial(_usable, x, rt, dialect, kind), rt.backends.loaded)
    return _usable(x, rt, dialect, kind, asked)


def _usable(x: Exchange, rt: Runtime, dialect: str, kind: str, model: str) -> Route | None:
    found = rt.backends.route(model, dialect, kind)
    return found if found is not None and x.principal.may_use(found.model) else None


# ---- admit


async def admit(x: Exchange, rt: Runtime) -> None:
    """Principal and estimate -> reservation. From here on a killed process leaves a row of the request (U3). Raises
    RateLimited, BudgetSpent, LimitsUnavailable, AuditUnavailable."""
    if rt.audit.full:
        raise AuditUnavailable("The audit trail cannot take more records.")
    if not rt.ledger.enter(x, rt.config.caps.connections_per_key):
        raise RateLimited("Too many requests of this key are open at once.")
    if x.principal.limits:
        await quota.reserve(x, rt)
    x.audit_number = rt.audit.begin(opening(x))
    if x.principal.prompt_days:
        rt.prompts.keep(x.id, x.principal, x.endpoint.path, x.route.model, x.body)


# ---- queue


async def queue(x: Exchange, rt: Runtime, avoid: tuple[str, ...] = ()) -> None:
    """Ticket -> lease. Raises what REFUSALS says, or ClientGone. An interruption gives the place or the slot back."""
    x.queued_at = rt.now()
    try:
        got = rt.scheduler.submit(ticket(x, rt, avoid))
        x.lease = got if isinstance(got, Lease) else await _wait(x, rt, got)
    except Rejected as rejected:
        raise REFUSALS[rejected.refused.reason](rejected.refused) from None
    x.granted_at = rt.now()


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


# ---- forward


async def forward(x: Exchange, rt: Runtime) -> None:
    """Body and lease -> response head of an engine. Only this phase retries, and only before any byte of an answer:
    once more on a new connection where a kept one had died, else on another backend (R5)."""
    retries, kept = x.route.terms.retries, True
    dead: tuple[str, ...] = ()
    while True:
        try:
            x.reply = await _attempt(x, rt, kept=kept)
            break
        except StaleConnection:
            _let_go(x)
            kept = False
        except ConnectFailed:
            if retries <= 0 or len(x.route.candidates) < 2:
                raise
            retries, kept, dead = retries - 1, True, (*dead, x.backend.name)
            _release_slot(x)
            await queue(x, rt, avoid=dead)
        rt.metrics.retried(x.backend.name)
    if not 200 <= x.reply.status < 300:
        await _refused_by_engine(x, rt)


def _backend(name: str, rt: Runtime) -> Backend:
    """The backend of a slot. One that a reload added while the request waited is none of its own, older, runtime."""
    try:
        return rt.backends.backend(name)
    except KeyError:
        raise NoBackend("The backends were changed while the request waited.", retry_after=1.0) from None


async def _attempt(x: Exchange, rt: Runtime, *, kept: bool) -> ResponseHead:
    """One try on the backend of the lease; on a connection `kept` from before if there is one, which may be stale."""
    assert x.lease is not None  # noqa: S101  # queue ran
    terms = x.route.terms
    backend = x.backend = _backend(x.lease.gate, rt)
    pool = rt.pools[backend.name]
    body, target = _words_for(x, backend.engine)
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
            rt.backends.failed(backend.name, failure_of(error))
        raise
    rt.backends.succeeded(backend.name)
    return reply


def _words_for(x: Exchange, engine: str) -> tuple[bytes, bytes]:
    """The body for an engine of that kind, and the engine's path for it."""
    endpoint, model, cap = x.endpoint, x.route.model, x.route.terms.max_output_tokens
    x.bridge = bridge_to(engine, endpoint) if endpoint.engines else None
    if x.bridge is not None:
        return x.bridge.request(x.body, model, cap), x.bridge.upstream
    return endpoint.dialect.edit(endpoint, x.body, x.ask, model=model, cap=cap, engine=engine), endpoint.upstream


def _let_go(x: Exchange) -> None:
    upstream, x.upstream = x.upstream, None
    if upstream is not None:
        upstream.release()


# ---- relay


def _release_slot(x: Exchange) -> None:
    """Give the slot back unused: the request has cost the engine nothing."""
    if x.lease is not None:
        x.lease.release(0.0)
        x.lease = None
        x.granted_at = 0.0


async def _refused_by_engine(x: Exchange, rt: Runtime) -> None:
    """The engine answered with an error: read its text for the log, tell the client our own sentence (H8)."""
    assert x.upstream is not None  # noqa: S101  # the attempt succeeded
    x.upstream.sink = collector = Collector(x.upstream)
    await collector.done
    # Not a failure for the breaker: a caller who can make an engine answer 500 must not eject it for all.
    raise engine_refused(x.reply.status, collector.body())


def relay(x: Exchange, rt: Runtime) -> Relay:
    """Engine's bytes -> client, until `done`. Never retries; a broken stream is told in the stream."""
    streaming = _media_type(x).lower().startswith(STREAM_TYPES) and not x.reply.no_body
    endpoint = x.endpoint
    if x.connection.begun and not streaming:  # the client was told to expect a stream
        raise UpstreamBroke("The engine answered without a stream.")
    assert x.upstream is not None  # noqa: S101  # forward ran
    # Here and below a plain function and `x`: a closure or a partial would be as large as the exchange.
    answer = x.relay = Relay(
        x.connection,
        x.upstream,
        endpoint,
        x.id,
        _first_byte,
        x,
        streaming=streaming,
        hide_usage=streaming and endpoint.framing is Framing.SSE and not x.ask.usage_asked,
        crossing=Crossing(x.bridge, rt.now, x.sent_at) if x.bridge is not None else None,
    )
    if streaming:
        _charge_growth(x, rt, answer)
        x.upstream.gaps = rt.metrics.gaps(x.route.model)
    x.upstream.sink = answer
    x.body = b""  # the engine has begun to answer: no retry can need it any more
    rt.ledger.shrink_body(x, 0)
    return answer


def _broken(x: Exchange, rt: Runtime, error: UpstreamError, *, told: bool) -> UpstreamError:
    """The error of an answer that stopped. What the engine `told` ejects it no more than in `_refused_by_engine`."""
    if not told:
        rt.backends.failed(x.backend.name, failure_of(error))
    return error


def _media_type(x: Exchange) -> bytes:
    return x.reply.get(b"content-type") or fields.JSON


def _charge_growth(x: Exchange, rt: Runtime, answer: Relay) -> None:
    """A stream that outgrows its estimate is charged as it grows, a step at a time (scheduler.md 5.3)."""
    if x.lease is None or x.endpoint.kind not in GENERATIONS:
        return
    cap = output_cap(x.ask.max_tokens, x.route.terms.max_output_tokens)
    known = rt.estimator.output_tokens(x.route.model, x.principal.tenant, x.principal.user, cap * x.ask.choices)
    answer.on_tokens = _grown
    answer.tokens_due = int(known) + rt.estimator.settings.charge_every


def _grown(x: Exchange) -> int:
    settings = x.runtime.estimator.settings
    if x.lease is not None:
        x.lease.charge(settings.charge_every * settings.output_weight * x.route.terms.cost_factor)
    return settings.charge_every


def _first_byte(x: Exchange) -> bytes:
    """The answer's fields, asked for when its first byte is about to go out."""
    x.first_byte_at = x.runtime.now()
    x.status = x.reply.status
    waited = x.granted_at - x.queued_at
    overhead = (x.sent_at - x.started) - waited
    own = b"x-fairgate-queue-ms: %d\r\nx-fairgate-overhead-ms: %.2f\r\n" % (waited * 1000, overhead * 1000)
    if x.endpoint.dialect.id_field:
        own += fields.id_field(x.endpoint.dialect, x.id)
    return fields.answer_fields(_told_type(x), x.id, own + x.extra)


def _told_type(x: Exchange) -> bytes:
    """The media type for the client."""
    if x.bridge is None:
        return _media_type(x)
    return x.bridge.media if x.relay is not None and x.relay.tap is not None else fields.JSON


# ---- the end


def refuse(x: Exchange, rt: Runtime, error: GatewayError) -> None:
    """Tell the client, in its dialect: as an answer, or as a frame where the answer has begun."""
    if isinstance(error, ModelUnavailable):
        error.status = rt.config.identity.unknown_model_status
    x.error = error
    x.outcome = outcome_of(error)
    connection = x.connection
    dialect = _dialect(x, rt)
    if connection.begun:
        if x.relay is None or not x.relay.begun:
            connection.write(encode_chunk(dialect.stream_error(error, x.id)) + LAST_CHUNK)
        return
    x.status = error.status
    extra = x.extra + fields.id_field(dialect, x.id)
    connection.respond(error.status, fields.error_fields(error, x.id, extra), dialect.error(error, x.id))


def _dialect(x: Exchange, rt: Runtime) -> Dialect:
    """Whose shape an error takes: the route's, the path's, or the default where not even a head was read."""
    if x.endpoint is NO_ENDPOINT:
        return rt.routes.dialect_for(x.head.path)
    return rt.routes.listing(x.endpoint, x.head.headers) if x.endpoint.kind in local.LISTS else x.endpoint.dialect
