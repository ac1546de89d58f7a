"""Which web pages may read answers (H11): none unless configured, exact origins only. Pure.

Source: the Fetch standard, "CORS protocol". `extra` also carries HSTS, the other field that depends on where we stand.
"""

from gateway import config
from gateway.http1.message import RequestHead

HSTS = b"Strict-Transport-Security: max-age=31536000\r\n"
_EXPOSED = b"Access-Control-Expose-Headers: x-request-id, retry-after, x-fairgate-queue-ms\r\n"
_PREFLIGHT = (
    b"Access-Control-Allow-Methods: GET, POST\r\n"
    b"Access-Control-Allow-Headers: authorization, content-type, x-api-key, x-request-id, x-session-id,"
    b" anthropic-version, anthropic-beta\r\n"
    b"Access-Control-Max-Age: 600\r\n"
)


class Cors:
    """The policy of one generation of configuration."""

    __slots__ = ("_always", "_credentials", "_origins")

    def __init__(self, settings: config.Cors, *, hsts: bool) -> None:
        self._origins = frozenset(origin.encode() for origin in settings.origins)
        self._credentials = b"Access-Control-Allow-Credentials: true\r\n" if settings.credentials else b""
        self._always = HSTS if hsts else b""

    def fields(self, head: RequestHead | None) -> bytes:
        """The field lines that every answer to this request carries."""
        if not self._origins:
            return self._always
        origin = head.headers.get(b"origin") if head is not None else None
        if origin is None or not self._allows(origin):
            return self._always + b"Vary: Origin\r\n"
        allowed = b"*" if b"*" in self._origins else origin
        shared = b"Access-Control-Allow-Origin: %b\r\nVary: Origin\r\n" % allowed
        return self._always + shared + self._credentials + _EXPOSED

    def preflight(self, head: RequestHead) -> bytes | None:
        """The field lines that answer a preflight, or None when this is no preflight of an allowed origin."""
        origin = head.headers.get(b"origin")
        asked = b"access-control-request-method" in head.headers
        if head.method != "OPTIONS" or origin is None or not asked or not self._allows(origin):
            return None
        return _PREFLIGHT

    def _allows(self, origin: bytes) -> bool:
        return origin in self._origins or b"*" in self._origins
