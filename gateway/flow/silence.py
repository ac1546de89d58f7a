"""Comments for clients that wait at a silent stream, so that nothing between gives the connection up (A11).

Owns when one is due and how it is sent; must not know why the stream is silent.
"""

from typing import Final

from gateway.api.dialect import Framing
from gateway.flow import fields
from gateway.flow.exchange import Exchange, Runtime
from gateway.flow.relay import CHUNKED
from gateway.http1.chunks import encode_chunk

SSE_COMMENT: Final = b": keep-alive\n\n"
LOOKS: Final = 0.25
"""A stream is looked at this often, in times of `timeouts.comment`; a comment comes late by as much, at most."""


def comment_while_silent(x: Exchange, rt: Runtime) -> None:
    """From now on, an SSE client that hears nothing for a while gets a comment. Asked again, nothing begins anew."""
    connection = x.connection
    if connection.quiet_of is x or not x.ask.stream or x.endpoint.framing is not Framing.SSE or x.head.version < 11:
        return
    connection.quiet_call, connection.quiet_of = _comment, x
    _heard(x, rt)


def _heard(x: Exchange, rt: Runtime) -> None:
    """The client got something since the last look, or something now."""
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
        extra = x.times() + fields.id_field(x.endpoint.dialect, x.id) + x.extra
        head = fields.answer_fields(b"text/event-stream", x.id, extra)
        connection.begin(200, head, framing=CHUNKED, first=encode_chunk(SSE_COMMENT))
