"""Header fields that cross the gateway in either direction, as ready bytes.

The engine gets only the fields listed here (R9). The client gets only the gateway's own fields and the media type of
the answer (H8). No field is passed from one side to the other by default.
"""

import math
import random
from collections.abc import Mapping
from typing import Final

from gateway.api.dialect import Dialect
from gateway.errors import BudgetSpent, Busy, GatewayError, MethodNotAllowed
from gateway.services.route import Backend

JSON: Final = b"application/json"
SECURITY: Final = (
    b"X-Content-Type-Options: nosniff\r\n"
    b"X-Frame-Options: DENY\r\n"
    b"Referrer-Policy: no-referrer\r\n"
    b"Permissions-Policy: camera=(), geolocation=(), microphone=()\r\n"
    b"Cross-Origin-Opener-Policy: same-origin\r\n"
    b"Cross-Origin-Resource-Policy: same-origin\r\n"
)
NO_STORE: Final = b"Cache-Control: no-store\r\n"
RETRY_AFTER_MAX: Final = 60.0  # seconds; SDKs ignore longer ones (protocols.md section 3)

_request_heads: Final[dict[tuple[bytes, bytes, bytes, bytes], bytes]] = {}


def request_head(backend: Backend, target: bytes, request_id: str, length: int, passed: bytes) -> bytes:
    """The head of a request to an engine: the engine's Host, our length, and `passed`, the ready lines of those client
    fields that belong to its trace or its API."""
    made_of = (target, backend.base_path, backend.host_header, backend.auth)
    fixed = _request_heads.get(made_of)
    if fixed is None:
        fixed = _request_heads[made_of] = _fixed_request_head(backend, target)
    return b"%bX-Request-ID: %b\r\n%bContent-Length: %d\r\n\r\n" % (fixed, request_id.encode(), passed, length)


def passed_fields(names: tuple[bytes, ...], headers: Mapping[bytes, bytes]) -> bytes:
    """The client's fields that its API addresses to the engine, as ready lines."""
    return b"".join([b"%b: %b\r\n" % (name, headers[name]) for name in names if name in headers])


def _fixed_request_head(backend: Backend, target: bytes) -> bytes:
    lines = [
        b"POST %b%b HTTP/1.1" % (backend.base_path, target),
        b"Host: " + backend.host_header,
        b"Content-Type: application/json",
        b"Accept: */*",
        b"Accept-Encoding: identity",
    ]
    if backend.auth:
        lines.append(b"Authorization: " + backend.auth)
    return b"\r\n".join(lines) + b"\r\n"


def forget_request_heads() -> None:
    """Drop the heads cached for backends of an earlier configuration."""
    _request_heads.clear()


def id_field(dialect: Dialect, request_id: str) -> bytes:
    """The line with the request id in the API's own field; empty if the API has none."""
    return b"%b: %b\r\n" % (dialect.id_field, request_id.encode()) if dialect.id_field else b""


_answers: Final[dict[bytes, bytes]] = {}


def answer_fields(media_type: bytes, request_id: str, extra: bytes = b"") -> bytes:
    """The fields of an API answer, without framing."""
    fixed = _answers.get(media_type)
    if fixed is None:
        fixed = b"Content-Type: %b\r\n%b%b" % (media_type, SECURITY, NO_STORE)
        if len(_answers) < 64:  # engines use a handful of media types; a hostile one must not fill memory
            _answers[media_type] = fixed
    return b"%bX-Request-ID: %b\r\n%b" % (fixed, request_id.encode(), extra)


def error_fields(error: GatewayError, request_id: str, extra: bytes = b"") -> bytes:
    """The fields of an error answer: who failed, and whether and when to retry (A10, A11)."""
    if error.source != "upstream":
        extra += b"x-fairgate-error: gateway\r\n"
    if isinstance(error, BudgetSpent):
        extra += b"x-should-retry: false\r\n"
    if error.status in (429, 503):
        extra += retry_fields(error)
    if isinstance(error, MethodNotAllowed):
        extra += b"Allow: %b\r\n" % error.allow.encode()
    if error.status == 401:
        extra += b'WWW-Authenticate: Bearer realm="fairgate"\r\n'
    return answer_fields(JSON, request_id, extra)


def retry_fields(error: GatewayError) -> bytes:
    """`Retry-After` in whole seconds and `retry-after-ms`, jittered so that clients do not all return at once. The
    jitter also applies to waits that are cut to the maximum."""
    never = error.retry_after is None and isinstance(error, BudgetSpent)
    seconds = math.inf if never else max(error.retry_after or 0.0, 1.0)
    spread = random.uniform(1.0, 1.2)  # noqa: S311  # no secrecy
    if seconds > RETRY_AFTER_MAX:
        seconds = RETRY_AFTER_MAX / spread
    elif error.retry_after is None or not isinstance(error, Busy):  # the scheduler adds its own jitter to `Busy`
        seconds = min(seconds * spread, RETRY_AFTER_MAX)
    return b"Retry-After: %d\r\nretry-after-ms: %d\r\n" % (-int(-seconds // 1), int(seconds * 1000))
