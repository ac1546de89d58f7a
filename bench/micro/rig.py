"""The real application, everything on, without sockets: bytes are put in, transports collect what comes out.

Owns the pairs of connections (a client's, an engine's) and the bytes both sides send; knows nothing of time or of
counters. One `step` asks on every pair and then answers on every pair, as a loop turn of a busy gateway does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from gateway import config as cfg
from gateway.http1.client import UpstreamConnection
from gateway.http1.connection import Connection
from gateway.store.limits import Limits
from tests.flow.engine import Engine, chunk, plain
from tests.gateway import FAST_HASH, Gateway, chat, gateway

FIELDS = (
    "User-Agent: OpenAI/Python 1.2\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
    "X-Stainless-Lang: python\r\nX-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\n"
    "Accept-Encoding: gzip, deflate\r\n"
)
BODY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"%b"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}' % (b"x" * 400)
)
_HEAD = b"HTTP/1.1 200 OK\r\nServer: x\r\nDate: Sat, 21 Nov 2026 08:40:05 GMT\r\n"
ANSWER = _HEAD + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
STREAM_HEAD = _HEAD + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FRAME = chunk(
    b'data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1760000000,"model":"m",'
    b'"system_fingerprint":"fp","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,'
    b'"finish_reason":null}],"usage":null}\n\n'
)
STREAM_END = (
    chunk(
        b'data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1760000000,"model":"m",'
        b'"choices":[],"usage":{"prompt_tokens":31,"completion_tokens":200,"total_tokens":231}}\n\n'
    )
    + chunk(b"data: [DONE]\n\n")
    + b"0\r\n\r\n"
)
LIMITS = Limits(requests_per_minute=1 << 40, tokens_per_minute=1 << 40, concurrent=1 << 20)
"""Of the key that asks: counted for every request, never met."""
QUIET = cfg.Audit(batch_seconds=60.0)  # rows are spooled, and shipped after the measurement
PROVEN = msgspec.structs.replace(FAST_HASH, cache_seconds=3600.0)  # below valgrind a minute is soon over

_PIPE = os.pipe()


class Collecting(asyncio.Transport):
    """A transport that keeps what is written, on something real where nothing is ever left to read."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Any] = []

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "socket": self}.get(name, default)

    def fileno(self) -> int:
        return _PIPE[0]

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is buffered."""

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        """Nothing to close."""

    def write(self, data: Any) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return True

    def taken(self) -> bytes:
        """What was written since the last call."""
        data = b"".join(self.written)
        self.written.clear()
        return data


class Rig:
    """Some pairs of connections of one running gateway."""

    def __init__(self, g: Gateway, pairs: int, unlimited: str = "") -> None:
        self.gateway = g
        self.unlimited = unlimited
        self._beside: list[Rig] = []
        self.clients: list[tuple[Connection, Collecting]] = []
        self.engines: list[tuple[UpstreamConnection, Collecting]] = []
        pool = g.app.pools["engine"]
        for _ in range(pairs):
            client, backend = Collecting(), Collecting()
            connection = Connection(g.app.server)
            connection.connection_made(client)
            upstream = UpstreamConnection(pool)
            upstream.connection_made(backend)
            pool.put(upstream)
            self.clients.append((connection, client))
            self.engines.append((upstream, backend))

    def request(self, prompt: int, *, key: str | None = None, **more: Any) -> bytes:
        """The bytes of a chat whose prompt has so many characters; by default of the key with limits."""
        body = chat(messages=[{"role": "user", "content": "y" * prompt}], **more)
        return self.gateway.request("/v1/chat/completions", body, key=key, extra=FIELDS)

    def ask(self, request: bytes) -> None:
        """The request arrives on every client's connection."""
        for connection, _ in self.clients:
            connection.data_received(request)

    def answer(self, data: bytes) -> None:
        """These bytes arrive on every engine's connection."""
        for upstream, _ in self.engines:
            upstream.data_received(data)

    def check(self, end: bytes) -> None:
        """Every engine was asked once, every client got one good answer that ends so. Raises RuntimeError."""
        for _, transport in self.engines:
            if transport.taken().count(b"POST /v1/chat") != 1:
                raise RuntimeError("an engine was not asked exactly once")
        for _, transport in self.clients:
            got = transport.taken()
            if not (got.startswith(b"HTTP/1.1 200") and got.endswith(end) and got.count(b"HTTP/1.1 ") == 1):
                raise RuntimeError(f"a client got {got[:200]!r} ... {got[-100:]!r}")

    def beside(self, pairs: int) -> Rig:
        """Further pairs of the same gateway, closed with these."""
        self._beside.append(Rig(self.gateway, pairs))
        return self._beside[-1]

    def close(self) -> None:
        """Both sides leave, everywhere."""
        for rig in self._beside:
            rig.close()
        for connection, _ in self.clients:
            connection.connection_lost(None)
        for upstream, _ in self.engines:
            upstream.connection_lost(None)


@contextlib.asynccontextmanager
async def rig(pairs: int, **settings: Any) -> AsyncIterator[Rig]:
    """A running gateway, warmed by one real exchange, and its pairs."""
    engine = Engine(plain)
    async with engine, gateway(engine.url, slots=1000, identity=PROVEN, **settings) as g:
        unlimited = g.key
        g.key = await g.add_key(user="limited", limits=LIMITS)
        for key in (unlimited, g.key):  # verified once, then known
            status, _, _ = await g.ask("/v1/chat/completions", chat(), key=key)
            if status != 200:
                raise RuntimeError(f"the first exchange was answered {status}")
        pool = g.app.pools["engine"]
        pool.retire()  # the connection that this dialled must not serve
        pool.retired = False
        pool.idle_expiry = float("inf")
        pool.rest = 0.0  # the next exchange follows at once, on the same connection
        made = Rig(g, pairs, unlimited)
        try:
            yield made
        finally:
            made.close()
