"""The phases of a request in their order, and the only `try/finally` that ends one.

Each phase fills its own fields of the exchange or raises; phases that cannot wait are not coroutines. Must not know
sockets, SQL or Redis. The coroutine runs without a Task (`http1.eager`), so nothing here may need a current Task.
"""

import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

from gateway.api.bridge import Crossing
from gateway.api.dialect import Access, Dialect, Framing, Kind
from gateway.api.routes import NO_ENDPOINT
from gateway.api.unstreamed import Unstreamed
from gateway.errors import (
    BODIES_FULL,
    AuditUnavailable,
    BadRequest,
    Bug,
    ClientGone,
    Draining,
    Forbidden,
    GatewayError,
    Interrupted,
    ModelUnavailable,
    MutationBlocked,
    NotFound,
    Overloaded,
    RateLimited,
    UpstreamBroke,
    UpstreamError,
)
from gateway.flow import fields, local, quota
from gateway.flow.behalf import represent
from gateway.flow.engine_errors import NO_SUCH_ROUTE
from gateway.flow.exchange import Exchange, Known, Outcome, Runtime
from gateway.flow.forward import forward, queue
from gateway.flow.ids import request_id
from gateway.flow.quota import GENERATIONS, output_cap
from gateway.flow.relay import Relay
from gateway.flow.settle import opening, settle
from gateway.flow.translations import AUTH_FAILURES, failure_of, outcome_of, wire_error
from gateway.http1.chunks import LAST_CHUNK, encode_chunk
from gateway.http1.connection import Connection
from gateway.http1.wire import WireError
from gateway.services.keyfmt import credential
from gateway.services.principal import Principal
from gateway.services.rights import SCOPES
from gateway.services.route import Route

log = logging.getLogger("fairgate.flow")

NO_RECORDS: Final = "The audit trail cannot take more records."
STREAM_TYPES: Final = (b"text/event-stream", b"application/x-ndjson")


async def handle(x: Exchange, rt: Runtime) -> None:
    """Serve one request, from its head to its record."""
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
                raise _broken(x, answer.error, said_so=answer.engine_said_so)
        elif x.endpoint.local in local.WAITING:
            await local.respond_later(x, rt)
        else:
            local.respond(x, rt)
    except (ClientGone, Interrupted) as left:
        _unfinished(x, rt, cut=isinstance(left, Interrupted))
    except GatewayError as error:
        refuse(x, rt, error)
    except WireError as unread:
        refuse(x, rt, wire_error(unread))
    except Exception as bug:
        refuse(x, rt, _unforeseen(x, bug))
    finally:
        settle(x, rt)


def _unfinished(x: Exchange, rt: Runtime, *, cut: bool) -> None:
    """The client left, or (`cut`) the gateway shuts down. In the second case the client gets an error if it is still
    reading."""
    if not cut:
        x.outcome = Outcome.CLIENT_GONE
        return
    error = Draining("The gateway is shutting down.")
    if x.connection.writable:
        refuse(x, rt, error)
        if x.relay is not None and x.relay.begun:
            x.relay.interrupted(error)
    x.outcome, x.error = Outcome.INTERRUPTED, error


def _unforeseen(x: Exchange, error: Exception) -> GatewayError:
    """The error to tell the client. A body just shallow enough to be parsed can still cause a RecursionError in a
    deeper call later."""
    if isinstance(error, RecursionError):
        return BadRequest("The body is nested too deeply.", cause=repr(error))
    log.exception("a request failed by a bug", extra={"request_id": x.id})
    return Bug("Something went wrong in the gateway.", cause=repr(error))


class Phases:
    """The server's handler: makes an exchange for each request and pins the current runtime to it."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def request(self, connection: Connection) -> Coroutine[Any, Any, None]:
        rt = self.runtime
        return handle(Exchange(request_id(connection), connection, rt), rt)

    def malformed(self, connection: Connection, error: WireError) -> None:
        """A request that could not be parsed still gets an answer in a dialect, and a record."""
        rt = self.runtime
        x = Exchange(request_id(connection), connection, rt)
        x.extra = rt.cors.fields(None)
        refuse(x, rt, wire_error(error))
        settle(x, rt)

    def crowded(self, connection: Connection) -> None:
        """A refused connection made no request, so there is no record; the answer looks like all others (H7, H11,
        A10)."""
        rt, error = self.runtime, Overloaded("Too many connections.")
        given = request_id(connection)
        rt.metrics.refused(error.code)
        head = fields.error_fields(error, given, rt.cors.fields(None))
        connection.respond(error.status, head, rt.routes.default.error(error, given))


# ---- classify


def recall(x: Exchange, rt: Runtime) -> bool:
    """Reuse what the connection's previous request established if it had the same head. False: there is nothing to
    reuse, or the key must be looked up again."""
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
        x.principal = grant.principal if grant is not None else await _verified(x, rt, token)
    except GatewayError as error:
        # Raised outside `except`: it may have to wait, and a compiled handler must not (tests/test_compiled.py)
        failure = error
    if failure is not None:
        await _refuse_in_turn(x, rt, failure)
    rt.metrics.auth("ok")
    if x.endpoint.scope:
        if x.endpoint.scope not in x.principal.scopes:
            raise Forbidden(f"This key lacks the scope {x.endpoint.scope!r}.")
    elif x.principal.scopes.isdisjoint(SCOPES):
        raise Forbidden("This is an admin key; it cannot be used for the model APIs.")
    if grant is not None:
        x.connection.known = Known(x, grant, epoch)


async def _verified(x: Exchange, rt: Runtime, token: bytes) -> Principal:
    """Look the key up. Meanwhile reading pauses, and the bytes received so far are counted (H3)."""
    connection = x.connection
    connection.read_no_more()
    size = connection.reader.buffered
    if not rt.ledger.hold_unproven(size):
        raise Overloaded(BODIES_FULL)
    try:
        principal = await rt.keys.verify(token, x.ip)
    finally:
        rt.ledger.drop_unproven(size)
    connection.read_on()
    return principal


async def _refuse_in_turn(x: Exchange, rt: Runtime, failure: GatewayError) -> None:
    """Raise `failure` when its turn comes: refusals of credentials are paced (K4)."""
    anonymous = b"authorization" not in x.head.headers and b"x-api-key" not in x.head.headers
    rt.metrics.auth("missing" if anonymous else AUTH_FAILURES.get(type(failure), "invalid"))
    if (turn := rt.keys.turn_to_refuse()) is not None:
        x.connection.hold_nothing()
        await turn
    raise failure


# ---- read


async def read(x: Exchange, rt: Runtime) -> None:
    """Bytes -> ask. Raises TooLarge, Overloaded, BadRequest, RequestTimeout, ClientGone."""
    reader = x.connection.reader
    if not rt.ledger.hold_body(x, reader.body_received):
        raise Overloaded(BODIES_FULL)
    x.body = await x.connection.body(None if reader.complete else partial(rt.ledger.hold_body, x))
    x.body_bytes = reader.body_received
    rt.ledger.shrink_body(x, len(x.body))
    x.ask = x.endpoint.dialect.read(x.endpoint, x.body)


# ---- route


def route(x: Exchange, rt: Runtime) -> None:
    """Model and principal -> route. A forbidden and an unknown model get the same answer (K8)."""
    found = _find(x, rt, x.endpoint.dialect.name, x.endpoint.kind)
    if found is None:
        # Every engine serves chat, so this finds a model that the key may use, but not on this route
        if _find(x, rt, "openai", Kind.CHAT) is not None:
            raise NotFound(NO_SUCH_ROUTE)
        raise ModelUnavailable()
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
    """Principal and estimate -> reservation. From here on a request leaves an audit row even if the process is killed
    (U3). Raises RateLimited, BudgetSpent, LimitsUnavailable, AuditUnavailable."""
    if rt.audit.full:
        raise AuditUnavailable(NO_RECORDS)
    if not rt.ledger.enter(x, rt.config.caps.connections_per_key):
        raise RateLimited("Too many requests of this key are open at once.")
    if x.principal.limits:
        await quota.reserve(x, rt)
    x.audit_number = rt.audit.begin(opening(x))
    if rt.audit.full:  # the spool is full now, or it did not take this start record: a kill would leave no trace (U3)
        raise AuditUnavailable(NO_RECORDS)
    if x.principal.prompt_days:
        rt.prompts.keep(x.id, x.principal, x.endpoint.path, x.route.model, x.body)


# ---- relay


def relay(x: Exchange, rt: Runtime) -> Relay:
    """Engine's bytes -> client, until `done`. Never retries; an error in a stream is reported within the stream."""
    streaming = _engine_media_type(x).lower().startswith(STREAM_TYPES) and not x.reply.no_body
    endpoint = x.endpoint
    crossing = _crossing(x, rt, streaming=streaming)
    if x.connection.begun and not streaming and crossing is None:  # the client has already got the head of a stream
        raise UpstreamBroke("The engine answered without a stream.")
    assert x.upstream is not None  # noqa: S101  # forward ran
    # Here and below, plain functions that take `x`: a closure or a partial would be as large as the exchange.
    answer = x.relay = Relay(
        x.connection,
        x.upstream,
        endpoint,
        x.id,
        _first_byte,
        x,
        streaming=streaming,
        hide_usage=streaming and endpoint.framing is Framing.SSE and not x.ask.usage_asked,
        crossing=crossing,
    )
    if streaming:
        _charge_growth(x, rt, answer)
        x.upstream.gaps = rt.metrics.gaps(x.route.model)
    x.upstream.sink = answer
    x.body = b""  # the engine has begun to answer, so no retry needs it any more
    rt.ledger.shrink_body(x, 0)
    return answer


def _crossing(x: Exchange, rt: Runtime, *, streaming: bool) -> Crossing | None:
    """The translation between the client's API and the engine's, if any is needed. A client that asked for a stream can
    read only a stream: it gets one made of the plain answer, or an error if the answer is not a chat or a
    completion."""
    plain = not streaming and (x.reply.get(b"content-type") or b"").lower().startswith(fields.JSON)
    # A single JSON object is a valid stream of Ollama's API
    other = x.bridge is not None or x.endpoint.framing is Framing.SSE
    if plain and other and x.ask.stream and x.endpoint.kind in GENERATIONS:
        return Unstreamed(x.bridge, rt.now, x.sent_at, usage=x.ask.usage_asked)
    return Crossing(x.bridge, rt.now, x.sent_at) if x.bridge is not None else None


def _broken(x: Exchange, error: UpstreamError, *, said_so: bool) -> UpstreamError:
    """The error of an answer that stopped half-way. An error that the engine itself reported is not counted by the
    breaker, as in `_refused_by_engine`."""
    if not said_so:
        x.runtime.backends.failed(x.backend.name, failure_of(error))
    return error


def _engine_media_type(x: Exchange) -> bytes:
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
    """The answer's header fields; called when its first byte is about to be sent."""
    x.first_byte_at = x.runtime.now()
    x.status = x.reply.status
    own = x.time_fields() + fields.id_field(x.endpoint.dialect, x.id) + x.extra
    return fields.answer_fields(_client_media_type(x), x.id, own)


def _client_media_type(x: Exchange) -> bytes:
    """The media type of the answer to the client."""
    assert x.relay is not None  # noqa: S101  # relay ran
    crossing = x.relay.crossing
    if crossing is None:
        return _engine_media_type(x)
    return crossing.media if x.relay.tap is not None or crossing.as_stream else fields.JSON


# ---- the end


def refuse(x: Exchange, rt: Runtime, error: GatewayError) -> None:
    """Answer the client with `error` in its dialect, or with an error frame if the answer has begun."""
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
    extra = x.time_fields() + fields.id_field(dialect, x.id) + x.extra
    connection.respond(error.status, fields.error_fields(error, x.id, extra), dialect.error(error, x.id))


def _dialect(x: Exchange, rt: Runtime) -> Dialect:
    """The dialect of an error: the route's, else the one of the path (a refused head may still have one), else the
    default."""
    if x.endpoint is NO_ENDPOINT:
        return rt.routes.dialect_for(x.head.path or x.connection.reader.path_hint)
    return rt.routes.listing(x.endpoint, x.head.headers) if x.endpoint.kind in local.LISTS else x.endpoint.dialect
