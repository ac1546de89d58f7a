"""One whole exchange through the gateway without a socket: what its own code costs the loop, from bytes to bytes.

`python -m bench.micro.exchange` runs the real application with everything on, against transports that only collect,
and prints two figures in microseconds, each a low percentile of many single exchanges: from the request's bytes to the
engine's request, and from the engine's answer to the record. The kernel's part and the audit's threads are not in it.
"""

import asyncio
import os
import sys
import time
from typing import Any

import uvloop

from gateway.http1.client import UpstreamConnection
from gateway.http1.server import Connection
from tests.flow.engine import Engine, plain
from tests.gateway import chat, gateway

EXCHANGES = 10_000
WARM_UP = 500
TURN = 50  # exchanges between two turns of the loop
PERCENTILE = 5  # low: the machine's neighbours only ever add
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
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: x\r\nDate: Sat, 21 Nov 2026 08:40:05 GMT\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


class Collecting(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Any] = []

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is buffered."""

    def write(self, data: Any) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return True


async def measure() -> tuple[float, float]:
    """(request, answer) in microseconds."""
    engine = Engine(plain)
    async with engine, gateway(engine.url, slots=1000) as g:
        warm, _, _ = await g.ask("/v1/chat/completions", chat())
        if warm != 200:
            raise RuntimeError(f"the first exchange was answered {warm}")
        client, backend = Collecting(), Collecting()
        connection = Connection(g.app.server)
        connection.connection_made(client)
        pool = g.app.pools["engine"]
        pool.retire()
        pool.retired = False
        upstream = UpstreamConnection(pool)
        upstream.connection_made(backend)
        pool.put(upstream)
        body = chat(messages=[{"role": "user", "content": "y" * 900}])
        request = g.request("/v1/chat/completions", body, extra=FIELDS)
        asked, answered = await _run(connection, upstream, request, client.written, backend.written)
        connection.connection_lost(None)
        upstream.connection_lost(None)
    at = len(asked) * PERCENTILE // 100
    return sorted(asked)[at] / 1000, sorted(answered)[at] / 1000


async def _run(
    connection: Connection, upstream: UpstreamConnection, request: bytes, out: list[Any], sent: list[Any]
) -> tuple[list[int], list[int]]:
    """Nanoseconds of each exchange's two halves. Raises RuntimeError if one was not answered."""
    asked, answered = [], []
    for number in range(WARM_UP + EXCHANGES):
        began = time.perf_counter_ns()
        connection.data_received(request)
        between = time.perf_counter_ns()
        upstream.data_received(ANSWER)
        ended = time.perf_counter_ns()
        if not (sent and out and out[0].startswith(b"HTTP/1.1 200")):
            raise RuntimeError(f"exchange {number} went wrong: {out!r}")
        out.clear()
        sent.clear()
        if number >= WARM_UP:
            asked.append(between - began)
            answered.append(ended - between)
        if number % TURN == 0:
            await asyncio.sleep(0.001)
    return asked, answered


def main() -> None:
    """Print the two figures and their sum."""
    asked, answered = uvloop.run(measure())
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"request {asked:.1f}, answer {answered:.1f}, exchange {asked + answered:.1f} us")
    print(f"CPython {version}, load {os.getloadavg()[0]:.1f}, percentile {PERCENTILE} of {EXCHANGES}")


if __name__ == "__main__":
    main()
