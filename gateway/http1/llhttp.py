"""llhttp as the second parser of requests: borrowed for one message at a time.

Owns the parser, the fields it saw and whether the message has ended. Must not know our own rules, except for which
requests leave the parser able to read another one.
"""

from types import SimpleNamespace

import httptools

from gateway.http1.head import WireError
from gateway.http1.message import RequestHead

_SPARE: list["Llhttp"] = []
"""Parsers not in use. Each takes 2 KB, which a connection needs only while it reads a request."""
_MOST_SPARE = 64


class Llhttp:
    """Parses one message. `fields` has the first field of each name; `unfinished` is empty once the message has ended.

    The callbacks are built-in methods, so that llhttp never runs our bytecode: each field calls `fields.setdefault`, a
    new message clears `fields`, and the end of a message clears `unfinished`.
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
        """Parse `data` too. Raises WireError if llhttp refuses it."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            raise WireError(501, "protocol upgrade refused") from error
        except httptools.HttpParserError as error:
            raise WireError(400, str(error).lower() or "malformed request") from error

    def __repr__(self) -> str:
        return f"<Llhttp unfinished={bool(self.unfinished)} fields={len(self.fields)}>"


def borrow() -> Llhttp:
    """A parser that is ready for a new message."""
    peer = _SPARE.pop() if _SPARE else Llhttp()
    peer.unfinished.add(True)
    return peer


def give_back(peer: Llhttp, head: RequestHead) -> None:
    """Return the parser after the whole request of `head`, for the next request of any connection.

    It is kept only if llhttp, which also obeys Proxy-Connection, considers that request's connection persistent: after
    the last request of a connection it parses nothing more.
    """
    options = (head.headers.get(b"connection"), head.headers.get(b"proxy-connection"))
    if head.version == 11 and all(option is None or option.lower() == b"keep-alive" for option in options):
        peer.fields.clear()
        if len(_SPARE) < _MOST_SPARE:
            _SPARE.append(peer)
