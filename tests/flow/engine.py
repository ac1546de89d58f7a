"""A scripted engine: lists one model, and lets a test decide how it answers a chat."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from tests.wire import WAIT, Backend, read_request

Answer = Callable[[bytes, bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def frame(content: str) -> bytes:
    body = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": content}}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
USAGE_FRAME = b"data: " + json.dumps({"id": "c", "choices": [], "usage": USAGE}).encode() + b"\n\n"
DONE = b"data: [DONE]\n\n"
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PLAIN = json.dumps({"object": "chat.completion", "choices": [], "usage": USAGE}).encode()


def event(kind: str, **members: Any) -> bytes:
    """One event of Anthropic's API."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


TOLD = {"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 0}
START = event("message_start", message={"id": "msg", "type": "message", "content": [], "usage": TOLD})
WORD = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"})
END = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3})
STOP = event("message_stop")
MESSAGE = json.dumps({"type": "message", "content": [], "usage": TOLD | {"output_tokens": 3}}).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def json_answer(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Engine(Backend):
    """`answer` is called for each chat with head, body, reader and writer. `chats` counts them."""

    def __init__(self, answer: Answer, models: tuple[str, ...] = ("m",)) -> None:
        super().__init__(self._serve)
        self.answer = answer
        self.models = models
        self.list_after = 0.0  # seconds that its list of models takes
        self.chats: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
        self.aborted: asyncio.Queue[None] = asyncio.Queue()
        self.go = asyncio.Event()  # a test tells a script to go on

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await read_request(reader)
            if head.startswith(b"GET"):
                await asyncio.sleep(self.list_after)
                writer.write(json_answer(json.dumps(self._list(head.split(b" ")[1])).encode()))
                continue
            self.chats.put_nowait((head, body))
            try:
                await self.answer(head, body, reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                self.aborted.put_nowait(None)
                raise

    def _list(self, path: bytes) -> dict[str, Any]:
        """What discovery asks, in OpenAI's and in Ollama's shape."""
        if path == b"/api/version":
            return {"version": "0.0.0"}
        if path.startswith(b"/api/"):
            return {"models": [{"name": name, "model": name, "size": 1, "digest": "d"} for name in self.models]}
        data = [{"id": name, "object": "model", "created": 1, "owned_by": "x"} for name in self.models]
        return {"object": "list", "data": data}


async def plain(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(json_answer(PLAIN))


async def stream(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Three frames, usage if asked, the end; each frame a chunk and a write of its own."""
    writer.write(SSE_HEAD)
    frames = [frame("a"), frame("b"), frame("c")]
    if json.loads(body).get("stream_options", {}).get("include_usage"):
        frames.append(USAGE_FRAME)
    for data in [*frames, DONE]:
        writer.write(chunk(data))
        await writer.drain()
        await asyncio.sleep(0)
    writer.write(b"0\r\n\r\n")


async def hang(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Never answer; raise when the peer leaves."""
    if not await reader.read(1):
        raise ConnectionError


async def start_and_hang(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Two frames, then silence until the peer leaves."""
    writer.write(SSE_HEAD + chunk(frame("a")))
    await writer.drain()
    writer.write(chunk(frame("b")))
    await hang(head, body, reader, writer)


class LlamaCpp(Engine):
    """Works on a plain answer until the test lets it `go`, whether or not anybody waits for it, and tells so at
    `/slots`. A stream ends with its connection. `most` worked at once."""

    def __init__(self) -> None:
        super().__init__(self._work)
        self.busy = self.most = self.looks = 0

    async def _work(self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if json.loads(body).get("stream"):
            await hang(head, body, reader, writer)
        self.busy += 1
        self.most = max(self.most, self.busy)
        await self.go.wait()
        self.busy -= 1
        writer.write(json_answer(PLAIN))

    def _list(self, path: bytes) -> Any:
        if path != b"/slots":
            return {"total_slots": 1} if path == b"/props" else super()._list(path)
        self.looks += 1
        return [{"id": 0, "id_task": 7, "is_processing": self.busy > 0}]

    async def looked(self, times: int) -> None:
        """Until it was asked so many times more."""
        enough = self.looks + times
        async with asyncio.timeout(WAIT):
            while self.looks < enough:
                await asyncio.sleep(0)


def answering(*wires: bytes) -> Answer:
    """An engine that sends these, each a read of its own as far as the kernel goes along."""

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for wire in wires:
            writer.write(wire)
            await writer.drain()
            await asyncio.sleep(0)

    return answer


def streamed(*frames: bytes) -> Answer:
    """An engine that streams these, each a chunk of its own."""
    return answering(SSE_HEAD, *(chunk(each) for each in frames), b"0\r\n\r\n")


def cut(*wires: bytes) -> Answer:
    """An engine that sends these and closes."""

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for wire in wires:
            writer.write(wire)
            await writer.drain()
            await asyncio.sleep(0.01)  # so that each is a read of its own
        raise ConnectionError

    return answer


_deaf: list[socket.socket] = []


def deaf_port() -> int:
    """A port whose queue is full and never served: connecting to it neither succeeds nor fails. The same for all."""
    if not _deaf:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        _deaf.append(listener)
        for _ in range(4):  # the queue holds one or two
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
            _deaf.append(waiting)
    return int(_deaf[0].getsockname()[1])
