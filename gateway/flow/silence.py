"""SSE comments for clients of silent streams, so that proxies in between keep the connection (A11).

Owns when a comment is due and how it is sent; must not know why the stream is silent.
"""

from typing import Final

from gateway.api.dialect import Framing
from gateway.flow import fields
from gateway.flow.exchange import Exchange, Runtime
from gateway.flow.relay import CHUNKED
from gateway.http1.chunks import encode_chunk

SSE_COMMENT: Final = b": keep-alive\n\n"
LOOKS: Final = 0.25
"""How often a stream is checked, as a fraction of `timeouts.comment`; a comment is late by at most this much."""


def comment_while_silent(x: Exchange, rt: Runtime) -> None:
    """From now on, send comments to an SSE client that hears nothing for a while. Further calls have no effect."""
    connection = x.connection
    if connection.quiet_arg is x or not x.ask.stream or x.endpoint.framing is not Framing.SSE or x.head.version < 11:
        return
    connection.quiet_call, connection.quiet_arg = _comment, x
    _heard(x, rt)


def _heard(x: Exchange, rt: Runtime) -> None:
    """The client has received something since the last check, or receives something now."""
    connection, every = x.connection, rt.config.timeouts.comment
    x.bytes_seen = connection.bytes_out
    x.silent_since = connection.clock()
    connection.quiet_at = x.silent_since + every * LOOKS


def _comment(x: Exchange) -> None:
    connection, rt = x.connection, x.runtime
    due = x.silent_since + rt.config.timeouts.comment
    if connection.bytes_out != x.bytes_seen:
        _heard(x, rt)
    elif connection.clock() < due:
        connection.quiet_at = min(due, connection.clock() + rt.config.timeouts.comment * LOOKS)
    else:
        if connection.writable:
            _send_comment(x)
        _heard(x, rt)


def _send_comment(x: Exchange) -> None:
    connection = x.connection
    if x.relay is not None:
        x.relay.comment(SSE_COMMENT)
    elif connection.begun:
        connection.write(encode_chunk(SSE_COMMENT))
    else:
        x.status = 200
        extra = x.time_fields() + fields.id_field(x.endpoint.dialect, x.id) + x.extra
        head = fields.answer_fields(b"text/event-stream", x.id, extra)
        connection.begin(200, head, framing=CHUNKED, first=encode_chunk(SSE_COMMENT))
