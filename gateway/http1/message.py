"""The heads of HTTP/1.1 messages, after parsing.

Owns `RequestHead`, `ResponseHead`, the reason phrases and the error of a broken response. `wire` and `reply` decide the
framing before they create one. Must not know sockets, models, keys.
"""

from dataclasses import dataclass
from typing import Final

REASONS: Final[dict[int, bytes]] = {
    100: b"Continue",
    101: b"Switching Protocols",
    102: b"Processing",
    103: b"Early Hints",
    200: b"OK",
    201: b"Created",
    202: b"Accepted",
    203: b"Non-Authoritative Information",
    204: b"No Content",
    205: b"Reset Content",
    206: b"Partial Content",
    300: b"Multiple Choices",
    301: b"Moved Permanently",
    302: b"Found",
    303: b"See Other",
    304: b"Not Modified",
    307: b"Temporary Redirect",
    308: b"Permanent Redirect",
    400: b"Bad Request",
    401: b"Unauthorized",
    402: b"Payment Required",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    406: b"Not Acceptable",
    407: b"Proxy Authentication Required",
    408: b"Request Timeout",
    409: b"Conflict",
    410: b"Gone",
    411: b"Length Required",
    412: b"Precondition Failed",
    413: b"Content Too Large",
    414: b"URI Too Long",
    415: b"Unsupported Media Type",
    416: b"Range Not Satisfiable",
    417: b"Expectation Failed",
    421: b"Misdirected Request",
    422: b"Unprocessable Content",
    425: b"Too Early",
    426: b"Upgrade Required",
    428: b"Precondition Required",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    451: b"Unavailable For Legal Reasons",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
    507: b"Insufficient Storage",
    511: b"Network Authentication Required",
}
"""Status code -> reason phrase (RFC 9110 section 15, and the registered extensions in use)."""

STATUS_LINES: Final = {status: b"HTTP/1.1 %d %b\r\n" % (status, reason) for status, reason in REASONS.items()}


class UpstreamWireError(Exception):
    """The backend's bytes are not a response that we trust: never reuse its connection."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(init=False)
class RequestHead:
    """A validated request head, with the framing of its body.

    `target` is as received. `path` is percent-decoded once, without the query, and only for matching. `version` is 10
    or 11. `headers` has lower-case names in order of first appearance; repeated list fields are joined with `, `.
    Content-Length is not among them but in `content_length` (None if absent). `expect_continue`: the client waits for
    an interim 100 before it sends the body.
    """

    method: Final[str]
    target: Final[bytes]
    path: Final[str]
    version: Final[int]
    headers: Final[dict[bytes, bytes]]
    content_length: Final[int | None]
    chunked: Final[bool]
    keep_alive: Final[bool]
    expect_continue: Final[bool]

    def __init__(
        self,
        method: str,
        target: bytes,
        path: str,
        version: int,
        headers: dict[bytes, bytes],
        content_length: int | None,
        chunked: bool,
        keep_alive: bool,
        expect_continue: bool,
    ) -> None:
        self.method = method
        self.target = target
        self.path = path
        self.version = version
        self.headers = headers
        self.content_length = content_length
        self.chunked = chunked
        self.keep_alive = keep_alive
        self.expect_continue = expect_continue


@dataclass(frozen=True)
class WireLimits:
    """Limits of one request: bytes of head and target, number of fields, bytes of body payload."""

    head_bytes: int = 32 * 1024
    header_count: int = 100
    target_bytes: int = 8 * 1024
    body_bytes: int = 10 * 2**20


@dataclass(init=False)
class ResponseHead:
    """A validated response head, with the framing of its body.

    Exactly one of these describes the body: `no_body`, `chunked`, `until_close`, or `content_length` in bytes.
    `content_length` may also be set together with `no_body` (HEAD, 304); then it is only informative.
    """

    status: Final[int]
    headers: Final[list[tuple[bytes, bytes]]]
    content_length: Final[int | None]
    chunked: Final[bool]
    until_close: Final[bool]
    no_body: Final[bool]
    keep_alive: Final[bool]

    def __init__(
        self,
        status: int,
        headers: list[tuple[bytes, bytes]],
        content_length: int | None,
        chunked: bool,
        until_close: bool,
        no_body: bool,
        keep_alive: bool,
    ) -> None:
        self.status = status
        self.headers = headers
        self.content_length = content_length
        self.chunked = chunked
        self.until_close = until_close
        self.no_body = no_body
        self.keep_alive = keep_alive

    def get(self, name: bytes) -> bytes | None:
        """The first value of the field `name` (lower case), or None."""
        for field, value in self.headers:
            if field == name:
                return value
        return None
