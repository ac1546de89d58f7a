"""One end of the line between a worker and its parent: typed messages over a socket pair, one write a loop turn.

Owns framing, batching, questions with their answers, and the bound on what the other end does not take. Must not know
what a message means. A frame is its length in 4 bytes and a msgpack array of messages; they arrive in the order of
`send`. What cannot be written, read or served ends the channel: both ends then give up what they shared. What is sent
before there is a connection goes with it.
"""

import asyncio
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar, cast

import msgspec

_log = logging.getLogger("fairgate.workers")

MOST_UNSENT = 64 << 20
"""Bytes. A request in flight has about five messages of 100 bytes under way: an end that lets this much pile up does
not read any more."""
LONGEST_FRAME = 256 << 20
HEAD = 4

T = TypeVar("T")
_encode = msgspec.msgpack.Encoder().encode


class ChannelLost(Exception):
    """The other end is gone, did not answer in time, or could not answer."""


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="?"):
    """A question; its `body` is a message of its own."""

    number: int
    body: msgspec.Raw


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="!"):
    """`fault` is a sentence where there is no answer."""

    number: int
    body: msgspec.Raw
    fault: str = ""


class Channel(asyncio.Protocol):
    """`messages` and `questions` are unions of what may come; `answer` gives the answer to a question. Handlers are
    set with `on`, before the first message of their kind can arrive."""

    def __init__(self, messages: Any, questions: Any, lost: Callable[[], None]) -> None:
        self._decode = msgspec.msgpack.Decoder(list[messages | Ask | Answer]).decode
        self._question = msgspec.msgpack.Decoder(questions).decode
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[type, Callable[[Any], None]] = {Ask: self._asked, Answer: self._answered}
        self._answers: dict[type, Callable[[Any], Awaitable[object]]] = {}
        self._open: dict[int, tuple[asyncio.Future[Any], Any]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._batch: list[object] = []
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self.closed = False

    async def connect(self, end: socket.socket) -> None:
        """Take over this end of a socket pair."""
        end.setblocking(False)
        await self._loop.create_unix_connection(lambda: self, sock=end)

    def on(self, handlers: Mapping[type, Callable[[Any], None]]) -> None:
        """What to do with messages of these types."""
        self._handlers.update(handlers)

    def answers(self, answers: Mapping[type, Callable[[Any], Awaitable[object]]]) -> None:
        """Who answers questions of these types."""
        self._answers.update(answers)

    # -- sending

    def send(self, message: object) -> None:
        """At the end of this loop turn, with all others of it. Dropped once the channel is closed."""
        if not self._batch:
            self._loop.call_soon(self._flush)
        self._batch.append(message)

    def _flush(self) -> None:
        if self._transport is None:
            return  # `connection_made` flushes
        batch, self._batch = self._batch, []
        if self.closed or not batch:
            return
        try:
            payload = _encode(batch)
        except Exception:  # the other end would wait for ever for what is lost here
            _log.exception("a channel ends: a message could not be written")
            self._transport.abort()
            return
        self._transport.write(len(payload).to_bytes(HEAD, "little") + payload)
        if self._transport.get_write_buffer_size() > MOST_UNSENT:
            _log.error("a channel's other end does not read: closing it")
            self._transport.abort()

    def ask(self, question: object, kind: type[T], seconds: float) -> "asyncio.Future[T]":
        """A future of the answer, decoded as `kind`; it fails with ChannelLost. Needs no Task."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self.closed:
            future.set_exception(ChannelLost("the channel is closed"))
            return future
        number = next(self._numbers)
        timer = self._loop.call_later(seconds, self._fail, number, f"no answer within {seconds:g} s")

        def ended(_: object) -> None:
            timer.cancel()
            self._open.pop(number, None)

        future.add_done_callback(ended)
        self._open[number] = (future, kind)
        self.send(Ask(number, msgspec.Raw(_encode(question))))
        return future

    def close(self) -> None:
        """Send what is pending, then end."""
        self._flush()
        if self._transport is not None and not self.closed:
            self._transport.close()

    # -- receiving

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while (frame := self._whole_frame()) is not None:
                for message in self._decode(frame):
                    self._handlers[type(message)](message)
        except Exception:
            _log.exception("a channel ends: a message could not be served")
            if self._transport is not None:
                self._transport.abort()

    def _whole_frame(self) -> bytes | None:
        """The next frame's messages, taken out of the buffer; None until all of it is here. Raises ValueError for one
        that is too long."""
        buffer = self._buffer
        length = int.from_bytes(buffer[:HEAD], "little")
        if length > LONGEST_FRAME:
            raise ValueError(f"a frame of {length} bytes")
        end = HEAD + length
        if len(buffer) < end:
            return None
        frame = memoryview(buffer)[HEAD:end].tobytes()
        del buffer[:end]
        return frame

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        for number in list(self._open):
            self._fail(number, "the channel was closed")
        for task in self._tasks:
            task.cancel()
        self._lost()

    # -- questions

    def _asked(self, ask: Ask) -> None:
        task = self._loop.create_task(self._reply(ask))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, ask: Ask) -> None:
        try:
            question = self._question(ask.body)
            answer = _encode(await self._answers[type(question)](question))
        except Exception as err:
            _log.exception("a question on a channel could not be answered")
            self.send(Answer(ask.number, msgspec.Raw(_encode(None)), f"{type(err).__name__}: {err}"))
        else:
            self.send(Answer(ask.number, msgspec.Raw(answer)))

    def _answered(self, answer: Answer) -> None:
        if answer.fault:
            self._fail(answer.number, answer.fault)
            return
        future, kind = self._open.get(answer.number, (None, None))
        if future is not None and not future.done():
            future.set_result(msgspec.msgpack.decode(answer.body, type=kind))

    def _fail(self, number: int, why: str) -> None:
        future, _ = self._open.get(number, (None, None))
        if future is not None and not future.done():
            future.set_exception(ChannelLost(why))

    def __repr__(self) -> str:
        return f"<Channel {'closed' if self.closed else 'open'} asked={len(self._open)} batch={len(self._batch)}>"
