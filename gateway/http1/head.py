"""The rules for one request head: which bytes are allowed, what its fields and target mean, how its body is framed.

Pure functions for `wire`, each of which raises `WireError`. Section numbers are RFC 9112's unless named otherwise. Must
not know the state of a connection.
"""

import re
from ipaddress import AddressValueError, IPv6Address
from typing import Final
from urllib.parse import unquote_to_bytes


class WireError(Exception):
    """The client's bytes are not a request that we accept: answer with `status`, then close the connection."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"


METHODS: Final = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
"""Methods that can have a meaning here. All others, CONNECT and TRACE among them, are answered 501."""

SINGLE: Final = frozenset(
    {
        b"authorization",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"origin",
        b"proxy-authorization",
        b"transfer-encoding",
        b"x-api-key",
    }
)
"""Fields that decide on identity, routing or framing. A repeated one is refused, since two readers could pick different
ones."""

METHOD_BYTES: Final = 32
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_LINE: Final = rb"(" + _TOKEN + rb"{1,32}) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])\r\n"
_REQUEST_LINE: Final = re.compile(_LINE)
_FIELD_LINE: Final = re.compile(rb"(" + _TOKEN + rb"++):([\t\x20-\x7e\x80-\xff]*+)\r\n")
_HEAD: Final = re.compile(_LINE + rb"(?:" + _TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n")
# What is never allowed in a head: control bytes, LF without CR, CR without LF.
_BROKEN: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)")
_VERSIONS: Final = {b"1.1": 11, b"1.0": 10}

_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*+(?=\r\n)", re.IGNORECASE)
_PATH_HINT: Final = re.compile(rb"(?:\r\n)?" + _TOKEN + rb"{1,32} (?:https?://[^/?\s]*)?(/[!-~]{0,64})", re.IGNORECASE)
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")
_HOST: Final = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|[0-9A-Za-z._~-]{1,255})(?::([0-9]{0,5}))?")
_ABSOLUTE: Final = re.compile(rb"(https?)://([^/?]*)(.*)", re.IGNORECASE)
# RFC 3986 sections 3.3 and 3.4, without anything that some parsers repair and others accept as it is.
_PATH_AND_QUERY: Final = re.compile(
    rb"((?:[0-9A-Za-z\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*)(?:\?(?:[0-9A-Za-z\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*)?"
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_DEFAULT_PORTS: Final = {b"http": b"80", b"https": b"443"}

_COMMON: Final = (
    b"Host Connection Accept Accept-Encoding Accept-Language User-Agent Content-Type Content-Length Authorization"
    b" Transfer-Encoding Expect Cookie Origin Referer Cache-Control Pragma X-Request-ID X-Request-Id X-Forwarded-For"
    b" X-Forwarded-Proto X-Forwarded-Host X-Real-IP X-Api-Key Traceparent Tracestate X-Stainless-Lang"
    b" X-Stainless-Package-Version X-Stainless-OS X-Stainless-Arch X-Stainless-Runtime X-Stainless-Runtime-Version"
    b" X-Stainless-Async X-Stainless-Helper-Method Sec-Fetch-Site Sec-Fetch-Mode Sec-Fetch-Dest Idempotency-Key"
    b" x-stainless-retry-count x-stainless-read-timeout x-stainless-raw-response OpenAI-Organization Keep-Alive"
    b" anthropic-version anthropic-beta sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform Te TE Date Via"
).split()


class _Lower(dict[bytes, bytes]):
    """Field name -> the same in lower case. Names that clients commonly use are stored, others are computed and not
    stored."""

    def __missing__(self, name: bytes) -> bytes:
        return name.lower()


_lower: Final = _Lower(
    {name: name.lower() for name in _COMMON} | {name.lower(): name.lower() for name in _COMMON}
).__getitem__


def check_partial(buffer: bytes, target_bytes: int, start: int) -> None:
    """Refuse an incomplete head that no further byte can make valid. Bytes before `start` have been checked already."""
    if _BROKEN.search(buffer, start):
        raise WireError(400, "control byte, bare CR or bare LF in request head")
    if buffer.startswith(b"\r\n"):
        raise WireError(400, "empty lines before the request line")
    if b"\r\n" not in buffer and len(buffer) > target_bytes + METHOD_BYTES + len(b"  HTTP/1.1\r"):
        raise WireError(414, "request target too long")


def check_line(head: bytes, target_bytes: int) -> None:
    """Check the request line that `head` begins with (section 3)."""
    match = _REQUEST_LINE.match(head)
    if match is None:
        raise WireError(400, "malformed request line")
    _check_line(match, target_bytes)


def _check_line(match: re.Match[bytes], target_bytes: int) -> tuple[str, bytes, int]:
    name, target, digits = match.groups()
    version = _VERSIONS.get(digits)
    if version is None:
        raise WireError(505, "HTTP version not supported")
    method = METHODS.get(name)
    if method is None:
        raise WireError(501, "method not implemented")
    if len(target) > target_bytes:
        raise WireError(414, "request target too long")
    return method, target, version


def match(head: bytes, target_bytes: int) -> tuple[str, bytes, int]:
    """Method, target and version (10 or 11) of `head`; checks every byte of it."""
    found = _HEAD.fullmatch(head)
    if found is None:
        raise _fault(head, target_bytes)
    return _check_line(found, target_bytes)


def _fault(head: bytes, target_bytes: int) -> WireError:
    """Why `head` is not a valid request head."""
    if _BROKEN.search(head):
        return WireError(400, "control byte, bare CR or bare LF in request head")
    line_end = head.find(b"\r\n")
    if line_end > target_bytes + METHOD_BYTES + len(b"  HTTP/1.1"):
        return WireError(414, "request target too long")
    check_line(head, target_bytes)
    if b"\r\n " in head or b"\r\n\t" in head:
        return WireError(400, "folded header line")
    return WireError(400, "malformed header line")


def fields(head: bytes, raw: dict[bytes, bytes], count: int) -> dict[bytes, bytes]:
    """The `count` fields of `head` by lower-case name. `raw` holds the fields as llhttp saw them, the first of each
    name.

    Repeated fields are joined in order (RFC 9110 section 5.3); repeated fields in `SINGLE` are refused.
    """
    # Built-ins only: half the time of a loop. llhttp does not strip the white space after a value.
    found = dict(zip(map(_lower, raw), map(bytes.strip, raw.values())))  # noqa: B905  # strict= costs 0.25 microseconds
    return found if len(found) == count else _joined(head)


def _joined(head: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for name, value in _FIELD_LINE.findall(head, head.index(b"\n") + 1):
        name, value = name.lower(), value.strip()
        if name not in found:
            found[name] = value
        elif name in SINGLE:
            raise WireError(400, f"repeated {name.decode()} field")
        else:
            found[name] += (b"; " if name == b"cookie" else b", ") + value
    return found


def path_hint(buffer: bytes) -> str:
    """The beginning of the path in a request line, however broken the rest is. It selects the API whose error format a
    refusal takes; never route by it. Empty if there is none."""
    found = _PATH_HINT.match(buffer)
    return found[1].decode() if found is not None else ""


def without_upgrade(head: bytes) -> bytes:
    """`head`, which `match` has checked, without its offer to upgrade: a server may ignore one (RFC 9110 section 7.8),
    and some clients offer HTTP/2 with every first request."""
    return _UPGRADE.sub(b"", head)


def host(headers: dict[bytes, bytes], version: int) -> bytes | None:
    """The Host field; required on HTTP/1.1 (section 3.2). Its syntax is checked with the target."""
    value = headers.get(b"host")
    if value is None and version == 11:
        raise WireError(400, "missing host field")
    return value


def framing(headers: dict[bytes, bytes], version: int) -> tuple[int | None, bool]:
    """Content-Length, and whether the body is chunked (section 6). Anything ambiguous is refused."""
    length = headers.get(b"content-length")
    coding = headers.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise WireError(400, "both content-length and transfer-encoding")
        if version != 11 or coding.lower() != b"chunked":
            raise WireError(400, "unsupported transfer-encoding")
        return None, True
    if length is None:
        return None, False
    if _DIGITS.fullmatch(length) is None:
        raise WireError(400, "malformed content-length")
    return int(length), False


def keep_alive(headers: dict[bytes, bytes], version: int) -> bool:
    """Whether the connection may carry another request (section 9.3); `close` wins over `keep-alive`."""
    value = headers.get(b"connection")
    if value is None:
        return version == 11
    if value == b"keep-alive":
        return True
    options = {option.strip() for option in value.lower().split(b",")}
    return b"close" not in options and (version == 11 or b"keep-alive" in options)


def expects(headers: dict[bytes, bytes], version: int) -> bool:
    """Whether the client expects 100-continue (RFC 9110 section 10.1.1: HTTP/1.0 cannot); other expectations get a
    417."""
    value = headers.get(b"expect")
    if value is None:
        return False
    if value.lower() != b"100-continue":
        raise WireError(417, "unknown expectation")
    return version == 11


def target(method: str, value: bytes, host_field: bytes | None) -> str:
    """The decoded path of a request target (section 3.2), which must agree with the Host field. The query is only
    checked.

    Origin-form and absolute-form are accepted. An absolute-form with another authority than the Host field is refused:
    section 3.2.2 lets a server ignore Host in this case, and a server behind this one might not.
    """
    host_authority = None if host_field is None else _authority(host_field)
    if not value.startswith(b"/"):
        value = _origin_form(method, value, host_authority)
    parts = _PATH_AND_QUERY.fullmatch(value)
    if parts is None:
        raise WireError(400, "malformed request target")
    return _decoded(parts[1])


def _origin_form(method: str, value: bytes, host_authority: tuple[bytes, bytes] | None) -> bytes:
    if value == b"*" and method == "OPTIONS":
        raise WireError(501, "OPTIONS * not implemented")
    absolute = _ABSOLUTE.fullmatch(value)
    if absolute is None:
        raise WireError(400, "malformed request target")
    scheme, authority, rest = absolute.groups()
    default = _DEFAULT_PORTS[scheme.lower()]
    name, port = _authority(authority)
    if host_authority is not None and (name, port or default) != (host_authority[0], host_authority[1] or default):
        raise WireError(400, "request target and host field disagree")
    return rest if rest.startswith(b"/") else b"/" + rest


def _authority(value: bytes) -> tuple[bytes, bytes]:
    """Host in lower case, and the port's digits without leading zeros. Only the port may be empty.

    Userinfo, percent-encoding and sub-delimiters are refused: RFC 3986 allows them in names, but nobody uses them.
    """
    match = _HOST.fullmatch(value)
    if match is None:
        raise WireError(400, "malformed host")
    literal, port = match.groups()
    if port and int(port) > 65535:
        raise WireError(400, "malformed host")
    if literal is not None:
        try:
            IPv6Address(literal.decode())
        except AddressValueError as error:
            raise WireError(400, "malformed host") from error
    name = value[: len(value) - len(port) - 1] if port is not None else value
    return name.lower(), b"%d" % int(port) if port else b""


def _decoded(path: bytes) -> str:
    """`path`, percent-decoded once. Refuses a path whose meaning a second decoding or a normaliser would change."""
    try:
        text = (unquote_to_bytes(path) if b"%" in path else path).decode()
    except UnicodeDecodeError as error:
        raise WireError(400, "request target is not UTF-8") from error
    if _CONTROL.search(text):
        raise WireError(400, "control character or backslash in request target")
    if "/." in text and not {".", ".."}.isdisjoint(text.split("/")):
        raise WireError(400, "dot segment in request target")
    return text
