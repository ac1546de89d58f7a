"""One end of the connection between a worker and its parent: typed messages over a socket pair, one write per turn of
the loop.

Owns framing, batching, questions with their answers, and the limit on unread bytes. Must not know what a message means.
A frame is its length in 4 bytes and a msgpack array of messages; they arrive in the order of `send`. Any error in
writing, reading or handling closes the channel: both ends then give up what they shared. Messages sent before the
connection is made are kept until then.
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
"""Bytes. A running request has about five messages of 100 bytes in transit: an end that lets this much pile up has
stopped reading."""
LONGEST_FRAME = 256 << 20
HEAD = 4

T = TypeVar("T")
_encode = msgspec.msgpack.Encoder().encode


class ChannelLost(Exception):
    """The other end is gone, did not answer in time, or could not answer."""


class Question(msgspec.Struct, frozen=True, array_like=True, tag="?"):
    """A question; its `body` is a message of its own."""

    number: int
    body: msgspec.Raw


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="!"):
    """`fault` is a sentence if the question could not be answered."""

    number: int
    body: msgspec.Raw
    fault: str = ""


class Channel(asyncio.Protocol):
    """One end of the channel. `messages` and `questions` are unions of the types that may arrive. Handlers must be set
    (`on`, `answers`) before the first message of their type can arrive."""

    def __init__(self, messages: Any, questions: Any, lost: Callable[[], None]) -> None:
        self._decode = msgspec.msgpack.Decoder(list[messages | Question | Answer]).decode
        self._question = msgspec.msgpack.Decoder(questions).decode
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[type, Callable[[Any], None]] = {Question: self._asked, Answer: self._answered}
        self._answers: dict[type, Callable[[Any], Awaitable[object]]] = {}
        self._open: dict[int, tuple[asyncio.Future[Any], Any]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._batch: list[object] = []
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self.closed = False

    async def connect(self, end: socket.socket) -> None:
        """Use this end of a socket pair."""
        end.setblocking(False)
        await self._loop.create_unix_connection(lambda: self, sock=end)

    def on(self, handlers: Mapping[type, Callable[[Any], None]]) -> None:
        """Set the handlers for messages of these types."""
        self._handlers.update(handlers)

    def answers(self, answers: Mapping[type, Callable[[Any], Awaitable[object]]]) -> None:
        """Set the functions that answer questions of these types."""
        self._answers.update(answers)

    # -- sending

    def send(self, message: object) -> None:
        """Send at the end of this turn of the loop, together with its other messages. Dropped if the channel is
        closed."""
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
        except Exception:  # the other end would wait for ever for a lost message
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
        self.send(Question(number, msgspec.Raw(_encode(question))))
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
        """Take the messages of the next frame out of the buffer; None if it is incomplete. Raises ValueError if it is
        too long."""
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

    def _asked(self, asked: Question) -> None:
        task = self._loop.create_task(self._reply(asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, asked: Question) -> None:
        try:
            question = self._question(asked.body)
            answer = _encode(await self._answers[type(question)](question))
        except Exception as err:
            _log.exception("a question on a channel could not be answered")
            self.send(Answer(asked.number, msgspec.Raw(_encode(None)), f"{type(err).__name__}: {err}"))
        else:
            self.send(Answer(asked.number, msgspec.Raw(answer)))

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
