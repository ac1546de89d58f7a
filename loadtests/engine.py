"""A scripted engine for load tests: OpenAI and Ollama shapes, and failures on demand.

A request says what it wants in an extra body field: `{"soak": {"do": "...", "frames": 20, "pause": 0.01}}`. Speaks just
enough HTTP/1.1 for a gateway that re-frames every request with a Content-Length. Must not know any gateway.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
NDJSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG_STALL = 30.0  # seconds; longer than the gateway's timers in these runs
HIGH_WATER = 64 * 1024
PAD = "x" * 160


class Lost(Exception):
    """End this connection now, as a crashed engine would."""


class Request:
    """One request and the way to answer it."""

    def __init__(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.path = path
        self.body = body
        self.writer = writer
        self.wish: dict[str, Any] = body.get("soak") or {}
        self.ollama = path.startswith("/api/")
        self.streams = bool(body.get("stream", self.ollama and path in ("/api/chat", "/api/generate")))

    def frame(self, number: int) -> bytes:
        if self.ollama:
            message = {"role": "assistant", "content": f"{number} {PAD}"}
            data = json.dumps({"model": "o", "created_at": "2026-01-01T00:00:00Z", "message": message, "done": False})
            return data.encode() + b"\n"
        choice = {"index": 0, "delta": {"content": f"{number} {PAD}"}}
        data = json.dumps({"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})
        return b"data: " + data.encode() + b"\n\n"

    def ends(self, frames: int) -> list[bytes]:
        """The frames after the last token."""
        if self.ollama:
            done = {"model": "o", "done": True, "done_reason": "stop", "prompt_eval_count": 5, "eval_count": frames}
            return [json.dumps(done).encode() + b"\n"]
        usage = {"prompt_tokens": 5, "completion_tokens": frames, "total_tokens": frames + 5}
        extra = b"data: " + json.dumps({"id": "c", "choices": [], "usage": usage}).encode() + b"\n\n"
        asked = (self.body.get("stream_options") or {}).get("include_usage")
        return [extra, b"data: [DONE]\n\n"] if asked else [b"data: [DONE]\n\n"]

    def whole(self) -> bytes:
        """The answer to a request without a stream."""
        if "embed" in self.path:
            vector = [0.25] * 256
            data: dict[str, Any] = {"object": "list", "data": [{"index": 0, "embedding": vector}], "model": "m"}
            return json.dumps({"embeddings": [vector], "prompt_eval_count": 5} if self.ollama else data).encode()
        if self.ollama:
            return json.dumps(
                {"model": "o", "message": {"role": "assistant", "content": PAD}, "done": True, "eval_count": 9}
            ).encode()
        usage = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
        message = {"index": 0, "message": {"role": "assistant", "content": PAD}, "finish_reason": "stop"}
        return json.dumps({"object": "chat.completion", "choices": [message], "usage": usage}).encode()

    def plain(self, body: bytes, status: str = "200 OK") -> None:
        if self.writer.is_closing():
            raise Lost
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)

    def chunk(self, data: bytes) -> None:
        if self.writer.is_closing():
            raise Lost
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def answer(r: Request) -> None:
    """As asked, no failure."""
    pause = float(r.wish.get("pause", 0))
    if r.wish.get("wait"):
        await asyncio.sleep(float(r.wish["wait"]))
    if not r.streams:
        r.plain(r.whole())
        return
    r.writer.write(NDJSON if r.ollama else SSE)
    frames = int(r.wish.get("frames", 20))
    for number in range(frames):
        r.chunk(r.frame(number))
        await r.writer.drain()
        if pause:
            await asyncio.sleep(pause)
    for data in r.ends(frames):
        r.chunk(data)
    r.writer.write(b"0\r\n\r\n")


async def no_answer(r: Request) -> None:
    await asyncio.sleep(LONG_STALL)
    raise Lost


async def lost_at_once(r: Request) -> None:
    raise Lost


async def half_a_head(r: Request) -> None:
    r.writer.write(b"HTTP/1.1 200 OK\r\nContent-Ty")
    await r.writer.drain()
    raise Lost


async def not_http(r: Request) -> None:
    r.writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
    await r.writer.drain()
    raise Lost


async def cut_in_stream(r: Request) -> None:
    r.writer.write(NDJSON if r.ollama else SSE)
    for number in range(3):
        r.chunk(r.frame(number))
    await r.writer.drain()
    raise Lost


async def cut_in_frame(r: Request) -> None:
    r.writer.write((NDJSON if r.ollama else SSE) + b"40\r\n" + r.frame(0)[:30])
    await r.writer.drain()
    raise Lost


async def stall_in_stream(r: Request) -> None:
    r.writer.write(NDJSON if r.ollama else SSE)
    r.chunk(r.frame(0))
    await r.writer.drain()
    await no_answer(r)


async def broken_chunk(r: Request) -> None:
    r.writer.write((NDJSON if r.ollama else SSE) + b"zz\r\n" + r.frame(0))
    await r.writer.drain()
    raise Lost


async def too_short(r: Request) -> None:
    r.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n{")
    await r.writer.drain()
    raise Lost


async def extra_bytes(r: Request) -> None:
    r.plain(r.whole())
    r.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen")


async def error_500(r: Request) -> None:
    r.plain(b'{"error":{"message":"CUDA error at 10.0.0.5"}}', "500 Internal Server Error")


async def error_503(r: Request) -> None:
    r.plain(b'{"error":{"message":"Loading model"}}', "503 Service Unavailable")


DEEDS: dict[str, Callable[[Request], Awaitable[None]]] = {
    deed.__name__: deed
    for deed in (
        answer,
        no_answer,
        lost_at_once,
        half_a_head,
        not_http,
        cut_in_stream,
        cut_in_frame,
        stall_in_stream,
        broken_chunk,
        too_short,
        extra_bytes,
        error_500,
        error_503,
    )
}
FAILURES = tuple(name for name in DEEDS if name != "answer")

_LISTS: dict[str, Any] = {
    "/v1/models": {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "x"}]},
    "/api/tags": {"models": [{"name": "o", "model": "o", "size": 1, "digest": "d"}]},
    "/api/ps": {"models": [{"name": "o", "model": "o", "size": 1, "size_vram": 1}]},
    "/api/version": {"version": "0.0.0"},
}


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection: requests until the peer leaves or a script ends it."""
    writer.transport.set_write_buffer_limits(high=HIGH_WATER)
    try:
        while not writer.is_closing():
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            text = await reader.readexactly(int(fields.get("content-length", 0)))
            path = head.split(" ", 2)[1]
            request = Request(path, json.loads(text) if text else {}, writer)
            if path in _LISTS and not text:
                request.plain(json.dumps(_LISTS[path]).encode())
            else:
                await DEEDS[request.wish.get("do", "answer")](request)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, Lost):
        pass  # the peer left, the script says so, or the run is over
    finally:
        writer.transport.abort()


class Engine:
    """The listening engine; `async with` starts and ends it."""

    def __init__(self) -> None:
        self.port = 0
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Engine":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=4096)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
