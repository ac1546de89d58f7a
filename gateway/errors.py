"""Every error a request can end with: status, code, source and whether a retry helps.

A raise site names a class and a sentence; it never names a status or writes JSON. Dialects render these; this file
knows neither JSON nor HTTP framing. `ClientGone` is an outcome, not an error: nobody is left to read a rendering.
"""

from typing import ClassVar, Final, Literal

Source = Literal["client", "gateway", "upstream"]

BODIES_FULL: Final = "The gateway holds too many request bodies."


class GatewayError(Exception):
    """An ending the client is told about. `retry_after` is in seconds; `cause` goes to the log, never to the client."""

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
    """The request itself is wrong: sending it again unchanged cannot help (429 excepted)."""

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
    """One answer for a forbidden, an unknown and a no longer discovered model (K8)."""

    code = "model_not_available"

    def __init__(self, *, cause: str = "") -> None:
        super().__init__("The model is not available to this key.", cause=cause, param="model")


class MutationBlocked(Forbidden):
    """Routes that change an engine's models; no setting enables them (A2)."""

    code = "operation_blocked"


class NotFound(ClientError):
    status = 404
    code = "not_found"


class MethodNotAllowed(ClientError):
    """`allow` lists the methods of the path, for the Allow field (RFC 9110 section 15.5.6)."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(ClientError):
    status = 408
    code = "request_timeout"


class Conflict(ClientError):
    """The name is taken, or what is there already stands against it."""

    status = 409
    code = "conflict"


class NotJson(ClientError):
    """A change that does not say it is JSON: a web page could send it without the browser asking first."""

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
    """The gateway is healthy but full; `ahead` counts the requests before this one."""

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
    """A bound of the process itself: connections, or all buffered bodies together (H3)."""

    status = 503
    code = "overloaded"


class Unavailable(GatewayError):
    """A check that could not be made denies (fail closed)."""

    status = 503
    code = "unavailable"
    retry = True


class AuthUnavailable(Unavailable):
    code = "auth_unavailable"


class LimitsUnavailable(Unavailable):
    code = "limits_unavailable"


def limits_unchecked() -> LimitsUnavailable:
    """For who waited for an answer of those who keep the limits, and gets none."""
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
    """No connection in time (R4). As for every failed one, nothing was sent: another backend may be asked."""

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
    """The engine's own queue is full although it had a slot for us: its slots are set too high, or others use it."""

    status = 503
    code = "engine_busy"


class UpstreamRejected(UpstreamError):
    """The engine refused this request (R7): its status class, our sentence."""

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
    """The gateway ended and cut the connection of a request that ran: an outcome, never rendered."""
