"""How the simulated Ollama writes: Go's JSON, its error bodies, and responses that notice a leaving client at once.

Owns: bytes of bodies and frames, response heads, the disconnect watch.
Must not know: routes, models, what the frames say.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.simulated.engine import Busy

Frame = dict[str, Any]

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"


def encode(value: Any) -> bytes:
    """JSON as Go's encoding/json writes it: no blanks, and `<`, `>`, `&` escaped (they occur in strings only)."""
    raw = orjson.dumps(value)
    return raw.replace(b"<", b"\\u003c").replace(b">", b"\\u003e").replace(b"&", b"\\u0026")


class Refusal(Exception):
    """A request answered with an error before any work: the HTTP status and Ollama's sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def missing(model: str) -> Refusal:
    """The 404 for a model that is not installed."""
    return Refusal(404, f'model "{model}" not found, try pulling it first')


def native_error(refusal: Refusal) -> Response:
    """Ollama's own error body: the sentence as a plain string."""
    return Response(encode({"error": refusal.message}), refusal.status, media_type=JSON)


def openai_error(refusal: Refusal) -> Response:
    """The error object of Ollama's `/v1` routes."""
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(refusal.status, "api_error")
    body = {"error": {"message": refusal.message, "type": kind, "param": None, "code": None}}
    return Response(encode(body), refusal.status, media_type=JSON)


def messages_error(refusal: Refusal) -> Response:
    """The error envelope of Ollama's `/v1/messages`."""
    kind = {400: "invalid_request_error", 404: "not_found_error", 503: "overloaded_error"}.get(refusal.status)
    body = {"type": "error", "error": {"type": kind or "api_error", "message": refusal.message}}
    return Response(encode(body), refusal.status, media_type=JSON)


class Writer(Protocol):
    """Turns native frames into one dialect's bytes."""

    def stream_type(self) -> str:
        """Content type of the stream."""
        ...

    def frame(self, frame: Frame) -> bytes:
        """Bytes of one frame of a stream."""
        ...

    def whole(self, frame: Frame) -> bytes:
        """Body of a non-streaming answer, from all frames merged into one."""
        ...

    def error(self, refusal: Refusal) -> Response:
        """The dialect's error response."""
        ...


class Answer(Response):
    """Runs a generation and writes its frames, or their merge; a client that leaves cancels it at once."""

    def __init__(
        self, frames: AsyncIterator[Frame], merge: Callable[[list[Frame]], Frame], writer: Writer, stream: bool
    ) -> None:
        super().__init__()
        self._frames = frames
        self._merge = merge
        self._writer = writer
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve; see the class."""
        await until_gone(receive, self._serve(scope, receive, send))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._frames) as frames:  # type: ignore[type-var]
            try:
                first = await anext(frames)
            except Busy as busy:
                await self._writer.error(Refusal(503, str(busy)))(scope, receive, send)
                return
            if self._stream:
                await self._write(first, frames, send)
            else:
                body = self._writer.whole(self._merge([first] + [frame async for frame in frames]))
                await Response(body, media_type=JSON)(scope, receive, send)

    async def _write(self, first: Frame, frames: AsyncIterator[Frame], send: Send) -> None:
        head = [(b"content-type", self._writer.stream_type().encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send(_body(self._writer.frame(first)))
        async for frame in frames:
            await send(_body(self._writer.frame(frame)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def until_gone(receive: Receive, work: Awaitable[None]) -> None:
    """Run `work` unless the client disconnects first: then it is cancelled, and awaited, so that it cleans up."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left = not working.done()
        leaving.cancel()
        working.cancel()
        await asyncio.wait({working, leaving})
    if not left:
        working.result()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
