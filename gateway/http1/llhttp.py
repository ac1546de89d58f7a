"""llhttp as the second reader of requests: lent to one message at a time, and given back.

Owns the parser, the fields it saw and whether the message has ended. Must not know our own rules, except for which
requests it surely stays ready to read another.
"""

from types import SimpleNamespace

import httptools

from gateway.http1.head import WireError
from gateway.http1.message import RequestHead

_SPARE: list["Llhttp"] = []
"""Between two messages: 2 KB each that a connection needs only while a request of it is read."""
_MOST_SPARE = 64


class Llhttp:
    """Reads one message. `fields` has the first of each name; `unfinished` is empty once the message has ended.

    Its callbacks are built-in methods, so that it never runs our bytecode: every field goes to `fields.setdefault`, a
    new message empties `fields`, the end of one empties `unfinished`.
    """

    __slots__ = ("_parser", "fields", "unfinished")

    def __init__(self) -> None:
        self.fields: dict[bytes, bytes] = {}
        self.unfinished: set[bool] = set()
        self._parser = httptools.HttpRequestParser(
            SimpleNamespace(
                on_header=self.fields.setdefault,
                on_message_begin=self.fields.clear,
                on_message_complete=self.unfinished.clear,
            )
        )

    def agree(self, data: bytes) -> None:
        """Read `data` too. Raises WireError for what it refuses."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            raise WireError(501, "protocol upgrade refused") from error
        except httptools.HttpParserError as error:
            raise WireError(400, str(error).lower() or "malformed request") from error

    def __repr__(self) -> str:
        return f"<Llhttp unfinished={bool(self.unfinished)} fields={len(self.fields)}>"


def borrow() -> Llhttp:
    """One that stands before a message."""
    peer = _SPARE.pop() if _SPARE else Llhttp()
    peer.unfinished.add(True)
    return peer


def give_back(peer: Llhttp, head: RequestHead) -> None:
    """After the whole request of `head`, for the next one of any connection.

    Kept only if llhttp, which also obeys Proxy-Connection, must see that request's connection as kept: behind a last
    request it reads nothing more.
    """
    options = (head.headers.get(b"connection"), head.headers.get(b"proxy-connection"))
    if head.version == 11 and all(option is None or option.lower() == b"keep-alive" for option in options):
        peer.fields.clear()
        if len(_SPARE) < _MOST_SPARE:
            _SPARE.append(peer)
