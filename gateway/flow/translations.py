"""Mappings between the vocabularies of the packages, without state.

Refusals of the scheduler and errors of the wire become errors that a dialect can render; an error becomes the outcome
in a record, and what the breaker and the metrics are told.
"""

from collections.abc import Callable

from gateway.errors import (
    AuthUnavailable,
    BadRequest,
    Bug,
    Busy,
    ConnectFailed,
    ConnectTimeout,
    Draining,
    ExpectationFailed,
    Forbidden,
    GatewayError,
    HeadTooLarge,
    NoBackend,
    NotImplementedHere,
    Overloaded,
    QueueFull,
    QueueTimeout,
    RateLimited,
    RequestTimeout,
    Reserved,
    TooLarge,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UriTooLong,
    VersionUnsupported,
)
from gateway.flow.exchange import Outcome
from gateway.http1.wire import WireError
from gateway.services.backend_facts import Failure
from scheduler.model import Refusal, Refused

AUTH_FAILURES: dict[type[GatewayError], str] = {
    Forbidden: "forbidden",
    RateLimited: "throttled",
    AuthUnavailable: "unavailable",
    Overloaded: "unavailable",
}


def _busy(kind: type[Busy], message: str) -> Callable[[Refused], GatewayError]:
    return lambda r: kind(message, retry_after=r.retry_after, ahead=r.ahead, estimate=r.estimate)


REFUSALS: dict[Refusal, Callable[[Refused], GatewayError]] = {
    Refusal.QUEUE_FULL: _busy(QueueFull, "Too many requests of this user are already waiting."),
    Refusal.EVICTED: _busy(QueueFull, "The queue is full, and this user's is the longest part of it."),
    Refusal.QUEUE_TIMEOUT: _busy(QueueTimeout, "No slot became free in time."),
    Refusal.RESERVED: _busy(Reserved, "The model is reserved at the moment."),
    Refusal.DRAINING: _busy(Draining, "The gateway is shutting down."),
    Refusal.UNKNOWN_POOL: lambda _: NoBackend("No backend serves this model now."),
}


WIRE_ERRORS: dict[int, type[GatewayError]] = {
    400: BadRequest,
    408: RequestTimeout,
    413: TooLarge,
    414: UriTooLong,
    417: ExpectationFailed,
    431: HeadTooLarge,
    501: NotImplementedHere,
    505: VersionUnsupported,
}


def wire_error(error: WireError) -> GatewayError:
    """A wire error as an error that a dialect can render."""
    kind = WIRE_ERRORS.get(error.status, BadRequest)
    return kind(f"{error.reason[:1].upper()}{error.reason[1:]}.")


def outcome_of(error: GatewayError) -> Outcome:
    """The outcome of a request that was answered with `error`."""
    if isinstance(error, Bug):
        return Outcome.BUG
    if isinstance(error, (UpstreamTimeout, ConnectTimeout, QueueTimeout, RequestTimeout)):
        return Outcome.TIMED_OUT
    # The rejected request is the client's fault
    if isinstance(error, UpstreamError) and not isinstance(error, UpstreamRejected):
        return Outcome.UPSTREAM_FAILED
    return Outcome.REFUSED


def failure_of(error: UpstreamError) -> Failure:
    """What the breaker is told about a failed attempt."""
    if isinstance(error, ConnectFailed):
        return "connect"
    return "timeout" if isinstance(error, UpstreamTimeout) else "broken"
