"""Which web pages may read answers (H11): none unless configured, and exact origins only. Pure.

Source: the Fetch standard, "CORS protocol". `fields` also adds HSTS, which depends on the deployment too.
"""

import re

from gateway import config
from gateway.http1.message import RequestHead

HSTS = b"Strict-Transport-Security: max-age=31536000\r\n"
_EXPOSED = (
    b"Access-Control-Expose-Headers: x-request-id, request-id, retry-after, retry-after-ms, x-should-retry,"
    b" x-fairgate-queue-ms, x-fairgate-overhead-ms, x-fairgate-error,"
    b" x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests,"
    b" x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens\r\n"
)
"""All fields of our answers that pages cannot read by default; official clients act on some of them."""
_PREFLIGHT = b"Access-Control-Allow-Methods: GET, POST\r\nAccess-Control-Max-Age: 600\r\n"
_NAMES = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z, \t]+")


class Cors:
    """The CORS policy of one generation of the configuration."""

    __slots__ = ("_always", "_credentials", "_origins")

    def __init__(self, settings: config.Cors, *, hsts: bool) -> None:
        self._origins = frozenset(origin.encode() for origin in settings.origins)
        self._credentials = b"Access-Control-Allow-Credentials: true\r\n" if settings.credentials else b""
        self._always = HSTS if hsts else b""

    def fields(self, head: RequestHead | None) -> bytes:
        """The field lines to add to every answer to this request."""
        if not self._origins:
            return self._always
        origin = head.headers.get(b"origin") if head is not None else None
        if origin is None or not self._allows(origin):
            return self._always + b"Vary: Origin\r\n"
        allowed = b"*" if b"*" in self._origins else origin
        shared = b"Access-Control-Allow-Origin: %b\r\nVary: Origin\r\n" % allowed
        return self._always + shared + self._credentials + _EXPOSED

    def preflight(self, head: RequestHead) -> bytes | None:
        """The field lines that answer a preflight; None if this is not a preflight of an allowed origin.

        Any request field is allowed: official clients send a dozen of their own, which change from version to version.
        """
        origin = head.headers.get(b"origin")
        asked = b"access-control-request-method" in head.headers
        if head.method != "OPTIONS" or origin is None or not asked or not self._allows(origin):
            return None
        names = head.headers.get(b"access-control-request-headers", b"")
        return _PREFLIGHT + (b"Access-Control-Allow-Headers: %b\r\n" % names if _NAMES.fullmatch(names) else b"")

    def _allows(self, origin: bytes) -> bool:
        return origin in self._origins or b"*" in self._origins
