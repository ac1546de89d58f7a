"""The answer on its way from backend to client: bytes pass unchanged, with flow control; the usage is read in passing.

Whole buffers are passed on as received, HTTP chunk framing included. The payload is decoded and framed again only where
bytes must be changed or inspected: a hidden usage frame, an error of the engine, a frame split by a read, an HTTP/1.0
client, a body that ends with its connection. Must not know authentication or queueing. A `Relay` is both the sink of
the upstream connection and the stream of the client connection.
"""

from collections.abc import Callable
from typing import Any, Final

from gateway.api.bridge import Crossing, Sieve
from gateway.api.dialect import Endpoint, Framing
from gateway.api.frames import PLAIN_START, FrameFilter, PlainFilter, may_be_error
from gateway.api.stream import LONGEST_USAGE, Opening, Tap, payload_end, usage_of_body, usage_within
from gateway.api.usage import Usage
from gateway.errors import GatewayError, UpstreamBroke, UpstreamError
from gateway.flow.engine_errors import too_long
from gateway.http1.chunks import LAST_CHUNK, ChunkDecoder, ChunkWalker, encode_chunk
from gateway.http1.client import UpstreamConnection
from gateway.http1.connection import Connection
from gateway.http1.eager import Signal
from gateway.http1.message import ResponseHead

CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
LONGEST_TRANSLATED: Final = 16 * 1024 * 1024
"""Maximum bytes of a plain answer that is translated; embeddings are the longest."""
KEEP_FOR_USAGE: Final = 256 * 1024  # bytes of a plain JSON answer; usage is looked for in whatever is dropped
NEVER: Final = 1 << 62  # frames
_NOTHING: Final[list[bytes]] = []  # shared by all streams, which keep nothing; never appended to


class Relay:
    """One answer. Await `done`; then `error` says whether it is complete. `start` makes the fields at the first byte.

    When `tokens_due` frames have passed, `on_tokens` is called and returns after how many more it wants to be called
    again. Both callbacks get `owner`, which the relay itself does not look at.
    """

    __slots__ = (
        "_chunked_out",
        "_decoder",
        "_dropped_usage",
        "_filter",
        "_kept",
        "_path",
        "_plain",
        "_start",
        "_tail_seen",
        "_translator",
        "_usual",
        "begun",
        "connection",
        "crossing",
        "done",
        "endpoint",
        "engine_said_so",
        "error",
        "kept_bytes",
        "on_tokens",
        "owner",
        "reply",
        "request_id",
        "tap",
        "tokens_due",
        "upstream",
    )

    def __init__(
        self,
        connection: Connection,
        upstream: UpstreamConnection,
        endpoint: Endpoint,
        request_id: str,
        start: Callable[[Any], bytes],
        owner: Any,
        *,
        streaming: bool,
        hide_usage: bool,
        crossing: Crossing | None = None,
    ) -> None:
        reply = upstream.head
        assert reply is not None  # noqa: S101  # a relay starts at a response head
        self.connection = connection
        self.upstream = upstream
        self.endpoint = endpoint
        self.reply: ResponseHead = reply
        self.request_id = request_id
        self.done: Signal[None] = Signal()
        self.error: UpstreamError | None = None
        # The engine itself reported the failure: it is alive, so the breaker is not told.
        self.engine_said_so = False
        self.begun = False  # a byte of the answer itself was sent; comments may have been sent before
        self.crossing = crossing
        self._translator = crossing.stream() if crossing is not None and streaming else None
        self.tap: Tap | None = Tap(self.framing) if streaming else None
        self.on_tokens: Callable[[Any], int] | None = None
        self.owner = owner
        self.tokens_due = NEVER
        self._start = start
        self._kept: list[bytes] = _NOTHING if streaming else []
        self.kept_bytes = 0  # of a plain answer
        self._dropped_usage: Usage | None = None  # usage found in bytes that are no longer kept
        self._tail_seen = False
        self._decoder: ChunkDecoder | None = None
        untranslated = streaming and crossing is None
        self._filter = FrameFilter(endpoint.framing, hide_usage=hide_usage) if untranslated else None
        self._plain: PlainFilter | None = None
        self._chunked_out = self._choose_framing()
        self._path = self._usual = self._choose_path()
        if self.tap is not None and endpoint.opens_with_usage and crossing is None:
            self.tap.opening, self._path = Opening(chunked=reply.chunked), Relay._see_opening
        elif self.tap is None and crossing is None:
            self._path = Relay._see_start
        connection.stream = self
        if not connection.writable:
            upstream.pause()

    def _choose_framing(self) -> bool:
        """Whether the client gets chunks: if the length is unknown or may change, and the client understands them."""
        head = self.connection.head
        new_enough = head is not None and head.version >= 11
        known = self.reply.content_length is not None or self.reply.no_body or self.crossing is not None
        fixed = known and self.tap is None
        return new_enough and not fixed

    def _choose_path(self) -> "Callable[[Relay, bytes], None]":
        """Returns a plain function: a bound method would be a reference cycle, kept until a garbage collection."""
        if self.crossing is not None:
            self._decoder = self._new_decoder()
            return Relay._reframe if self.tap is not None else Relay._gather
        if self.reply.chunked != self._chunked_out:
            self._decoder = self._new_decoder()
            return Relay._reframe
        if self._filter is not None:
            return Relay._pass_or_filter if self._chunked_out else Relay._reframe
        return Relay._pass

    def _new_decoder(self) -> ChunkDecoder | None:
        """Extracts the payload from the engine's framing, if there is any."""
        return ChunkDecoder() if self.reply.chunked else None

    # ---- Stream: the client's window

    def pause(self) -> None:
        self.upstream.pause()

    def resume(self) -> None:
        self.upstream.resume()

    # ---- Sink

    def data(self, data: bytes) -> None:
        """Handle a received buffer on the path chosen at the head."""
        self._path(self, data)

    def _see_opening(self, data: bytes) -> None:
        """Look for usage in the stream's first event, then take the usual path for the rest."""
        assert self.tap is not None and self.tap.opening is not None  # noqa: S101, PT018  # set if this path is chosen
        if self.tap.opening.feed(data):
            self._path = self._usual
        self._usual(self, data)

    def _see_start(self, data: bytes) -> None:
        """A plain answer whose first buffer shows that it is not an error takes the usual path; otherwise the payload
        is extracted and inspected."""
        self._path = self._usual
        payload = ChunkDecoder().decode(data[: 2 * PLAIN_START]) if self.reply.chunked else data
        if may_be_error(payload):
            self._plain, self._path = PlainFilter(), Relay._reframe
            self._decoder = self._new_decoder()
        self._path(self, data)

    def _pass(self, data: bytes) -> None:
        """The common path: one buffer in, the same buffer out."""
        tap = self.tap
        if tap is not None:
            tap.feed(data)
            if tap.frames >= self.tokens_due and self.on_tokens is not None:
                self.tokens_due += self.on_tokens(self.owner)
        else:
            self._keep(data)
        walker = self.upstream.walker
        if walker is not None and walker.last_chunk_at >= 0:
            self._tail_seen = True  # hold the last chunk back, so that an error or a clean end can take its place
            data = data[: walker.last_chunk_at]
        elif self._tail_seen:
            return
        if self.begun:
            self.connection.write(data)
        elif data:
            self._begin(data)

    def _pass_or_filter(self, data: bytes) -> None:
        """Like `_pass` as long as each read holds whole frames that need no change; otherwise through the filter."""
        walker, sieve = self.upstream.walker, self._filter
        assert walker is not None and sieve is not None  # noqa: S101, PT018  # the path of chunked streams
        if self._decoder is None:
            if self._tail_seen or self._may_pass(walker, sieve, data):
                self._pass(data)
                return
            self._decoder = ChunkDecoder()
        self._reframe(data)
        if walker.boundary and sieve.idle:
            self._decoder = None  # between two frames and two chunks, so the common path may take over again

    def _may_pass(self, walker: ChunkWalker, sieve: FrameFilter, data: bytes) -> bool:
        end = walker.last_chunk_at
        if end < 0:
            return walker.boundary and sieve.passes(data)
        return end == 0 or sieve.passes(data[:end])

    def _reframe(self, data: bytes) -> None:
        """Extract the payload, edit it, frame it again."""
        if self.tap is not None:
            self.tap.feed(data)
            if self.tap.frames >= self.tokens_due and self.on_tokens is not None:
                self.tokens_due += self.on_tokens(self.owner)
        else:
            self._keep(data)
        payload = data if self._decoder is None else self._decoder.decode(data)
        sieve = self._sieve()
        if sieve is None:
            self._send(payload)
        else:
            self._send(sieve.feed(payload))
            self._stop_if_failed(sieve)

    def _sieve(self) -> Sieve | None:
        """The filter for extracted payload, if any."""
        if self._translator is not None:
            return self._translator
        return self._plain if self._filter is None else self._filter

    def _gather(self, data: bytes) -> None:
        """Collect a plain answer that has to be translated as a whole."""
        self._kept.append(data if self._decoder is None else self._decoder.decode(data))
        self.kept_bytes += len(self._kept[-1])
        if self.kept_bytes > LONGEST_TRANSLATED and self.error is None:
            self._stop(UpstreamBroke("The engine's answer is too long to be translated."))

    def _send(self, payload: bytes) -> None:
        if not payload:
            return
        framed = encode_chunk(payload) if self._chunked_out else payload
        if self.begun:
            self.connection.write(framed)
        else:
            self._begin(framed)

    def last(self, data: bytes) -> None:
        """The body has ended: pass the end on, unless the dialect's own end marker is missing (A5)."""
        if data:
            self.data(data)
        if self.error is not None:
            return
        if (sieve := self._sieve()) is not None:
            self._send(sieve.flush())
            self._stop_if_failed(sieve)
        if self.tap is not None and self.error is None:
            self.tap.finish()
            if not self.tap.terminated:
                self._stop(UpstreamBroke("The engine's stream ended before it was complete."))
        if self.error is None:
            self._end()

    def _end(self) -> None:
        """Write the end of the body in the client's framing."""
        if self.crossing is not None and self.tap is None:
            self._translate(self.crossing)
            return
        passed_whole = self.reply.chunked and self._decoder is None and self._chunked_out and not self._tail_seen
        if not self.begun:
            self._begin(b"")
        if self._chunked_out and not passed_whole:
            self.connection.write(LAST_CHUNK)
        self.done.set(None)

    def _translate(self, crossing: Crossing) -> None:
        body = b"".join(self._kept)
        if may_be_error(body):
            self._plain = PlainFilter()
            body = self._plain.feed(body) + self._plain.flush()
            self._stop_if_failed(self._plain)
        if self.error is not None:
            return
        try:
            answer = crossing.answer(body)
            # After comments, the client has been promised chunks.
            self._begin(encode_chunk(answer) + LAST_CHUNK if self.connection.begun else answer)
        except ValueError as err:
            self.engine_said_so = crossing.as_stream
            said = "answered without a stream" if crossing.as_stream else "gave an answer that could not be read"
            self._stop(UpstreamBroke(f"The engine {said}.", cause=str(err)))
            return
        self.done.set(None)

    def broke(self, error: UpstreamError) -> None:
        """The engine's body was cut off, which does not matter if the stream had already sent its own end marker."""
        if self._whole():
            self.last(b"")
        else:
            self._stop(error)

    def _stop(self, error: UpstreamError) -> None:
        """Stop the answer: send an error frame if the framing allows one here, else cut the connection."""
        self.error = error
        if self.begun:
            self._tell(error)
        self.done.set(None)

    def interrupted(self, error: GatewayError) -> None:
        """The gateway shuts down during an answer. A stream that has sent its own end marker counts as complete."""
        if self._whole():
            self.last(b"")
        else:
            self._tell(error)

    def _tell(self, error: GatewayError) -> None:
        if not self._can_tell():
            self.connection.abort()
            return
        frame = self.endpoint.dialect.stream_error(error, self.request_id)
        self.connection.write(encode_chunk(frame) + LAST_CHUNK if self._chunked_out else frame)
        self.connection.keep = self.connection.keep and self._chunked_out

    def over(self) -> bool:
        """The stream has sent its own end marker, and no chunk that was passed on unchanged is incomplete."""
        if self.tap is None or self.error is not None or (self.framing is Framing.NDJSON and self._inside_frame()):
            return False  # an incomplete last line may already contain the counts
        self.tap.finish()
        walker = self.upstream.walker if self._decoder is None else None
        if not self.tap.terminated or not (walker is None or walker.boundary or self._tail_seen):
            return False
        self._tail_seen = True  # the end of the client's chunks is ours to write
        return True

    def _whole(self) -> bool:
        """Like `over`, and no incomplete frame is held."""
        return not self._inside_frame() and self.over()

    def _inside_frame(self) -> bool:
        return self._filter is not None and not self._filter.idle

    def _stop_if_failed(self, sieve: Sieve) -> None:
        """The engine reported an error under a success status, or sent something that its API does not have: the client
        gets our words instead of the engine's (H8)."""
        if sieve.failed and self.error is None:
            self.engine_said_so = True
            if self._translator is not None and self._translator.garbled:
                did = "sent a frame that cannot be read"
            else:
                did = "reported an error in its stream" if self.tap is not None else "reported an error as its answer"
            said = too_long(sieve.failed.lower().encode(), sieve.failed)
            self._stop(said or UpstreamBroke(f"The engine {did}.", cause=sieve.failed))

    def _can_tell(self) -> bool:
        """Whether an error frame would stand between two frames and between two chunks. Never in raw buffers."""
        sieve = self._sieve()
        return sieve is not None and sieve.at_boundary

    def _begin(self, first: bytes) -> None:
        """Send the head together with the first bytes, so that an earlier failure can still get a proper status. If a
        comment has sent the head already, only the bytes."""
        self.begun = True
        fields = self._start(self.owner)
        if not self.connection.begun:
            self._open(fields, first)
        elif first:
            self.connection.write(first)

    def _open(self, fields: bytes, first: bytes) -> None:
        if self._chunked_out:
            framing = CHUNKED
        elif self.crossing is not None:
            framing = b"Content-Length: %d\r\n" % len(first) if self.tap is None else b""
        elif self.reply.content_length is not None and not self.reply.no_body and self._filter is None:
            framing = b"Content-Length: %d\r\n" % self.reply.content_length
        else:
            framing = b""
        self.connection.begin(self.reply.status, fields, framing=framing, first=first)

    def comment(self, text: bytes) -> bool:
        """Send an SSE comment if the stream is between two frames (A11). False: not now."""
        if self.endpoint.framing is not Framing.SSE or not self._chunked_out or not self._can_tell():
            return False
        if self.connection.begun:
            self.connection.write(encode_chunk(text))
        else:
            self._open(self._start(self.owner), encode_chunk(text))
        return True

    # ---- what was used

    def _keep(self, data: bytes) -> None:
        """Keep the part of the answer from which the usage will be read; references, no copies."""
        self._kept.append(data)
        self.kept_bytes += len(data)
        while self.kept_bytes - len(self._kept[0]) > KEEP_FOR_USAGE:
            gone = self._kept.pop(0)
            self.kept_bytes -= len(gone)
            found = usage_within(self.framing, gone + self._kept[0][:LONGEST_USAGE])
            self._dropped_usage = found or self._dropped_usage

    def usage(self) -> Usage | None:
        """Tokens of this answer: as reported by the engine, or counted from what was relayed (A7)."""
        if self.tap is not None:
            # An error as the first frame is no token: count only if something was sent.
            return self.tap.finish() or (self.tap.estimate() if self.tap.frames and self.begun else None)
        body = b"".join(self._kept)
        if self.reply.chunked and self.crossing is None and self.error is None and self.done.is_set:
            body = ChunkDecoder().decode(body) if self.kept_bytes <= KEEP_FOR_USAGE else payload_end(body)
        return usage_of_body(self.framing, body) or usage_within(self.framing, body) or self._dropped_usage

    @property
    def framing(self) -> Framing:
        """The framing of the engine's streams."""
        return self.endpoint.framing if self.crossing is None else self.crossing.framing

    def __repr__(self) -> str:
        return f"<Relay begun={self.begun} done={self.done.is_set} error={self.error!r}>"
