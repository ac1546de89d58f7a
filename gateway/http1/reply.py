"""Response heads of backends: bytes -> `ResponseHead` with its framing decided, or an error.

Parses a status line and its fields strictly (RFC 9112 sections 4 to 6). Must not know connections or clients. A head
with ambiguous framing is refused: the connection could otherwise carry one user's answer to another. A compressed body
is refused too: engines are asked for `identity`, and the gateway could not read it.
"""

import re
from typing import Final

from gateway.http1.message import ResponseHead, UpstreamWireError

HEAD_BYTES: Final = 64 * 1024
HEADER_COUNT: Final = 200

_LINE: Final = rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?\r\n"
_HEAD: Final = re.compile(_LINE + rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n")
_STATUS_LINE: Final = re.compile(_LINE)
# What is never allowed in a head: control bytes, LF without CR, CR without LF.
_BROKEN: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)")
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")
_LENGTH_FIELD: Final = re.compile(rb"\r\ncontent-length:[\t ]*([0-9]++)\r\n", re.IGNORECASE)
_REPEAT_BYTES: Final = 4 * 1024
_REPEAT_DIGITS: Final = 9
_SINGLE: Final = (b"content-length", b"transfer-encoding", b"content-type", b"content-encoding", b"location")


def parse_response_head(buffer: bytes, method: str, searched: int = 0) -> tuple[ResponseHead, int] | None:
    """The response head at the beginning of `buffer`, and the index of its body's first byte; None if it is incomplete.

    `method` is the request's: an answer to HEAD has no body. Interim heads (1xx) are returned like others. `searched`
    is the length of the buffer of an earlier call that returned None: those bytes are not searched again. Raises
    `UpstreamWireError` on anything malformed, ambiguous or longer than `HEAD_BYTES`.
    """
    end = buffer.find(b"\r\n\r\n", max(0, searched - 3), HEAD_BYTES)
    if end < 0:
        _check_incomplete(buffer, max(0, searched - 1))
        return None
    end += 4
    match = _HEAD.fullmatch(buffer, 0, end)
    if match is None:
        raise UpstreamWireError(_fault(buffer[:end]))
    minor, digits = match.groups()
    lines = buffer[: end - 4].split(b"\r\n")
    del lines[0]
    headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip()))
    return _framed(int(digits), minor == b"1", headers, method), end


class ResponseHeads:
    """Parses the response heads of one backend, which within one second differ only in their length.

    It keeps the last parsed head as the bytes before and after the digits of Content-Length (all of them are before if
    there is no such field). A head with the same bytes around other digits has the same meaning and is not parsed
    again.
    """

    __slots__ = ("_after", "_before", "_head", "_method")

    def __init__(self) -> None:
        self._before = self._after = b""
        self._method = ""
        self._head: ResponseHead | None = None

    def read(self, buffer: bytes, method: str, searched: int = 0) -> tuple[ResponseHead, int] | None:
        """As `parse_response_head`."""
        head, start = self._head, len(self._before)
        # Compares slices: in compiled code that costs half as much as `startswith`.
        if head is None or method != self._method or buffer[:start] != self._before:
            return self._parse(buffer, method, searched)
        after = self._after
        if not after:
            return head, start
        stop = buffer.find(b"\r", start, start + _REPEAT_DIGITS + 1)
        if stop < 0 or buffer[stop : stop + len(after)] != after:
            return self._parse(buffer, method, searched)
        digits = buffer[start:stop]
        if not digits.isdigit():
            return self._parse(buffer, method, searched)
        return _with_length(head, digits), stop + len(after)

    def _parse(self, buffer: bytes, method: str, searched: int) -> tuple[ResponseHead, int] | None:
        parsed = parse_response_head(buffer, method, searched)
        if parsed is None:
            return None
        head, end = parsed
        # For a response without a body the length decides whether the head is valid, so these heads are parsed each
        # time.
        if end <= _REPEAT_BYTES and not head.no_body:
            field = _LENGTH_FIELD.search(buffer, 0, end)
            cut, resume = field.span(1) if field else (end, end)
            self._before, self._after = buffer[:cut], buffer[resume:end]
            self._head, self._method = head, method
        return parsed

    def __repr__(self) -> str:
        return f"<ResponseHeads {self._before[:20]!r}>"


def _with_length(head: ResponseHead, digits: bytes) -> ResponseHead:
    """`head`, whose body has a length, with another length."""
    headers = [field if field[0] != b"content-length" else (field[0], digits) for field in head.headers]
    return ResponseHead(head.status, headers, int(digits), False, False, False, head.keep_alive)


def _check_incomplete(buffer: bytes, unseen: int) -> None:
    """Refuse an incomplete head that no further byte can make valid."""
    if len(buffer) >= HEAD_BYTES:
        raise UpstreamWireError("response head too long")
    if not b"HTTP/1.".startswith(buffer[:7]):
        raise UpstreamWireError("not an HTTP/1 response")
    if _BROKEN.search(buffer, unseen):
        raise UpstreamWireError("control byte, bare CR or bare LF in response head")


def _fault(head: bytes) -> str:
    """Why `head` is not a valid response head; for the log."""
    if _STATUS_LINE.match(head) is None:
        return "malformed status line or unknown version"
    if _BROKEN.search(head):
        return "control byte, bare CR or bare LF in response head"
    if b"\r\n " in head or b"\r\n\t" in head:
        return "folded header line in response"
    return "malformed header line in response"


def _framed(status: int, http11: bool, headers: list[tuple[bytes, bytes]], method: str) -> ResponseHead:
    """Decide how the body ends (RFC 9112 section 6.3); anything ambiguous is refused."""
    fields = dict(headers)
    if len(fields) != len(headers):
        _check_repeats(headers)
        fields[b"connection"] = b",".join(value for name, value in headers if name == b"connection")
    if len(headers) > HEADER_COUNT:
        raise UpstreamWireError("too many header lines in response")
    if status == 101:
        raise UpstreamWireError("unasked protocol switch")
    length = _length(fields)
    chunked = _chunked(fields, http11)
    if chunked and length is not None:
        raise UpstreamWireError("both Content-Length and Transfer-Encoding in response")
    bare = status < 200 or status == 204
    if bare and (chunked or length):
        raise UpstreamWireError("body announced where none is allowed")
    no_body = bare or status == 304 or method == "HEAD"
    if not no_body and fields.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
        raise UpstreamWireError("content coding that was not asked for")
    until_close = not no_body and not chunked and length is None
    keep_alive = not until_close and _persistent(fields.get(b"connection"), http11)
    return ResponseHead(status, headers, length, chunked and not no_body, until_close, no_body, keep_alive)


def _check_repeats(headers: list[tuple[bytes, bytes]]) -> None:
    names = [name for name, _ in headers]
    for single in _SINGLE:
        if names.count(single) > 1:
            raise UpstreamWireError(f"repeated {single.decode()} in response")


def _length(fields: dict[bytes, bytes]) -> int | None:
    value = fields.get(b"content-length")
    if value is None:
        return None
    if _DIGITS.fullmatch(value) is None:
        raise UpstreamWireError("malformed Content-Length in response")
    return int(value)


def _chunked(fields: dict[bytes, bytes], http11: bool) -> bool:
    value = fields.get(b"transfer-encoding")
    if value is None:
        return False
    if not http11 or value.lower() != b"chunked":
        raise UpstreamWireError("unsupported Transfer-Encoding in response")
    return True


def _persistent(connection: bytes | None, http11: bool) -> bool:
    """Whether the connection may carry another response (RFC 9112 section 9.3)."""
    if connection is None:
        return http11
    if connection == b"keep-alive":
        return True
    options = {option.strip() for option in connection.lower().split(b",")}
    return b"close" not in options and (http11 or b"keep-alive" in options)
