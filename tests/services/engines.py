"""Tiny real HTTP servers that answer as each engine does, for tests of discovery. Each owns one loopback port."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

HANG = b"\0"  # stands for an answer that never comes


class Engine:
    """`answers`: path -> raw bytes of a whole HTTP answer. Unlisted paths are 404. `asked` counts, `hosts` and
    `keys` keep what clients sent."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.hosts: list[str] = []
        self.keys: list[str] = []
        self.held: asyncio.Event | None = None  # answers wait for it, if there is one
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def says(self, path: str, body: Any, status: int = 200) -> None:
        """Answer `path` with JSON (or with bytes as they are)."""
        self.answers[path] = answer(body if isinstance(body, bytes) else json.dumps(body).encode(), status)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections from now on; the port stays ours to start again on."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            path = head[0].split(" ")[1]
            fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            self.asked[path] += 1
            self.hosts.append(fields["host"])
            self.keys.append(fields.get("authorization", ""))
            raw = self.answers.get(path, answer(b'{"error":"no"}', 404))
            if self.held is not None:
                await self.held.wait()
            if raw == HANG:
                await reader.read()
            writer.write(raw)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone; nothing to answer
        finally:
            self._open.discard(writer)
            writer.close()


def answer(body: bytes, status: int = 200, *fields: str) -> bytes:
    head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close", *fields]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def ollama(*models: str, loaded: tuple[str, ...] = ()) -> Engine:
    engine = Engine()
    engine.says("/api/tags", {"models": [tag(name) for name in models]})
    engine.says("/api/ps", {"models": [{**tag(name), "expires_at": "2026-01-01T00:00:00Z"} for name in loaded]})
    engine.says("/api/version", {"version": "0.32.0"})
    return engine


def tag(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "modified_at": "2025-03-01T10:00:00.123456789+01:00",
        "size": 4_000_000_000,
        "digest": "a" * 64,
        "details": {"parent_model": "", "format": "gguf", "family": "llama", "families": None},
    }


def listed(*models: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model", "created": 7} for name in models]}


def vllm(*models: str) -> Engine:
    engine = Engine()
    engine.says("/health", b"")
    engine.says("/v1/models", listed(*models))
    return engine


def llamacpp(model: str, slots: int) -> Engine:
    engine = Engine()
    engine.says("/health", {"status": "ok"})
    engine.says("/props", {"total_slots": slots, "build_info": "b1-abc", "chat_template": "x" * 5000})
    engine.says("/v1/models", listed(model))
    return engine


def openai(*models: str) -> Engine:
    engine = Engine()
    engine.says("/v1/models", listed(*models))
    return engine


@asynccontextmanager
async def running(*engines: Engine) -> AsyncIterator[None]:
    for engine in engines:
        await engine.start()
    try:
        yield
    finally:
        for engine in engines:
            await engine.stop()
