"""Every error a request can end with: status, code, source and whether a retry helps.

A raise site names a class and a sentence; it never names a status or writes JSON. Dialects render errors; this module
knows neither JSON nor HTTP framing. `ClientGone` and `Interrupted` are outcomes: nobody is left to read a rendering.
"""

from typing import ClassVar, Final, Literal

Source = Literal["client", "gateway", "upstream"]

BODIES_FULL: Final = "The gateway holds too many request bodies."


class GatewayError(Exception):
    """An error that is reported to the client. `retry_after` is in seconds; `cause` goes to the log, never to the
    client."""

    status: int = 500
    code: ClassVar[str] = "internal_error"
    source: ClassVar[Source] = "gateway"
    retry: ClassVar[bool] = False

    def __init__(
        self, message: str, *, retry_after: float | None = None, cause: str = "", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.cause = cause
        self.param = param


class ClientError(GatewayError):
    """The request itself is wrong: sending it again unchanged cannot help (except for 429)."""

    source = "client"


class BadRequest(ClientError):
    status = 400
    code = "invalid_request"


class Unauthenticated(ClientError):
    status = 401
    code = "invalid_api_key"


class Forbidden(ClientError):
    status = 403
    code = "permission_denied"


class ModelUnavailable(Forbidden):
    """A forbidden, an unknown and a no longer discovered model all get this answer (K8)."""

    code = "model_not_available"

    def __init__(self, *, cause: str = "") -> None:
        super().__init__("The model is not available to this key.", cause=cause, param="model")


class MutationBlocked(Forbidden):
    """A route that changes the models of an engine; no setting enables it (A2)."""

    code = "operation_blocked"


class NotFound(ClientError):
    status = 404
    code = "not_found"


class MethodNotAllowed(ClientError):
    """`allow` lists the methods of the path for the Allow field (RFC 9110 section 15.5.6)."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(ClientError):
    status = 408
    code = "request_timeout"


class Conflict(ClientError):
    """The name is taken, or the request conflicts with what exists."""

    status = 409
    code = "conflict"


class NotJson(ClientError):
    """A change whose body is not declared as JSON. A foreign web page could send such a request without a CORS
    preflight."""

    status = 415
    code = "unsupported_media_type"


class TooLarge(ClientError):
    status = 413
    code = "request_too_large"


class HeadTooLarge(ClientError):
    status = 431
    code = "request_head_too_large"


class UriTooLong(ClientError):
    status = 414
    code = "uri_too_long"


class ExpectationFailed(ClientError):
    status = 417
    code = "expectation_failed"


class NotImplementedHere(ClientError):
    status = 501
    code = "not_implemented"


class VersionUnsupported(ClientError):
    status = 505
    code = "http_version_not_supported"


class RateLimited(ClientError):
    status = 429
    code = "rate_limit_exceeded"
    retry = True


class BudgetSpent(ClientError):
    status = 429
    code = "budget_exceeded"


class Busy(GatewayError):
    """The gateway is healthy but full; `ahead` is the number of requests before this one."""

    status = 429
    code = "busy"
    retry = True

    def __init__(
        self, message: str, *, retry_after: float | None = None, ahead: int = 0, estimate: float = 0.0
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.ahead = ahead
        self.estimate = estimate


class QueueFull(Busy):
    code = "queue_full"


class QueueTimeout(Busy):
    code = "queue_timeout"


class Reserved(Busy):
    status = 503
    code = "reserved"


class Draining(Busy):
    status = 503
    code = "draining"


class Overloaded(Busy):
    """A limit of the process itself: connections, or the total of buffered bodies (H3)."""

    status = 503
    code = "overloaded"


class Unavailable(GatewayError):
    """A check could not be made, so the request is denied (fail closed)."""

    status = 503
    code = "unavailable"
    retry = True


class AuthUnavailable(Unavailable):
    code = "auth_unavailable"


class LimitsUnavailable(Unavailable):
    code = "limits_unavailable"


def limits_unchecked() -> LimitsUnavailable:
    """The error if limits could not be checked in time."""
    return LimitsUnavailable("Limits cannot be checked at the moment.", retry_after=1.0)


class AuditUnavailable(Unavailable):
    code = "audit_unavailable"


class UpstreamError(GatewayError):
    """The engine failed; what it said about itself stays in the log."""

    status = 502
    code = "upstream_error"
    source = "upstream"
    retry = True


class ConnectFailed(UpstreamError):
    code = "upstream_unreachable"


class ConnectTimeout(ConnectFailed):
    """The connection was not established in time (R4). As with any failed connection nothing was sent, so another
    backend may be tried."""

    status = 504
    code = "upstream_timeout"


class UpstreamBroke(UpstreamError):
    code = "upstream_broke"


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"


class NoBackend(UpstreamError):
    """Every backend of the model is ejected or gone."""

    status = 503
    code = "no_backend"


class ModelLoading(UpstreamError):
    """The engine is still loading the model (R7)."""

    status = 503
    code = "model_loading"


class EngineBusy(UpstreamError):
    """The engine's own queue is full although it should have had a free slot: `slots` is set too high, or others use
    the engine."""

    status = 503
    code = "engine_busy"


class UpstreamRejected(UpstreamError):
    """The engine refused this request (R7): its class of status, our sentence."""

    code = "upstream_rejected"
    retry = False

    def __init__(self, message: str, status: int, *, cause: str = "") -> None:
        super().__init__(message, cause=cause)
        self.status = status


class ContextTooLong(UpstreamRejected):
    """Prompt and requested output exceed the model's context (R7). The code is OpenAI's: agents that know it shorten
    their conversation and go on."""

    status = 400
    code = "context_length_exceeded"

    def __init__(self, message: str, *, cause: str = "") -> None:
        super().__init__(message, self.status, cause=cause)


class Bug(GatewayError):
    """An unexpected exception: the client gets a generic sentence, the log gets the cause."""


class ClientGone(Exception):
    """The client closed its connection before the answer was complete: an outcome (499 in records), never rendered."""


class Interrupted(Exception):
    """The gateway shut down and cut a running request: an outcome, never rendered."""
