"""What clients do, well-behaved and not: each move is one coroutine on a connection of its own or on a kept one.

Moves never judge more than they can know: an answer's status class and, for whole answers, their end. Must not know
processes or figures; `Tally` counts what came back.
"""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, cast

from loadtests.engine import FAILURES

PATIENCE = 90.0  # seconds; a stalled client is cut before by the timers of the gateway, on a starved machine too
NOT_HTTP = 0  # the status of a connection that ended without an answer


class Tally:
    """Counts of one run."""

    def __init__(self) -> None:
        self.moves: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.wrong: Counter[str] = Counter()

    def note(self, move: str, status: int) -> None:
        self.moves[move] += 1
        self.statuses[status] += 1


class Client:
    """One connection to the gateway. `source` is the loopback address it comes from."""

    def __init__(self, port: int, key: str, rng: random.Random, source: str = "127.0.0.1") -> None:
        self.port, self.key, self.rng, self.source = port, key, rng, source
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self.port, local_addr=(self.source, 0), limit=1 << 16
        )

    def request(self, path: str, body: Any = None, method: str = "") -> bytes:
        text = b"" if body is None else json.dumps(body).encode()
        method = method or ("GET" if body is None else "POST")
        length = f"Content-Length: {len(text)}\r\n" if body is not None else ""
        auth = f"Authorization: Bearer {self.key}\r\n"
        return f"{method} {path} HTTP/1.1\r\nHost: gateway\r\n{auth}{length}\r\n".encode() + text

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        return int(lines[0].split(" ")[1]), dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)

    async def rest(self, fields: dict[str, str]) -> bytes:
        """The payload; IncompleteReadError where it was cut."""
        if fields.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                parts.append((await self.reader.readexactly(size + 2))[:-2])
            await self.reader.readexactly(2)
            return b"".join(parts)
        return await self.reader.readexactly(int(fields.get("content-length", 0)))

    async def answer(self) -> tuple[int, bytes]:
        status, fields = await self.head()
        return status, await self.rest(fields)

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


def chat(rng: random.Random, stream: bool, **wish: Any) -> tuple[str, dict[str, Any]]:
    """Path and body of a chat in either dialect."""
    ollama = rng.random() < 0.4
    text = "hello " * rng.choice((1, 20, 400))
    body: dict[str, Any] = {"model": "o" if ollama else "m", "messages": [{"role": "user", "content": text}]}
    body |= {"stream": stream, "soak": wish}
    if stream and not ollama and rng.random() < 0.5:
        body["stream_options"] = {"include_usage": True}
    return "/api/chat" if ollama else "/v1/chat/completions", body


async def whole_chats(c: Client) -> int:
    """A few requests on one kept connection."""
    status = NOT_HTTP
    for _ in range(c.rng.randint(1, 5)):
        c.writer.write(c.request(*chat(c.rng, stream=False, wait=c.rng.choice((0, 0.01, 0.05)))))
        status, _ = await c.answer()
    return status


async def whole_streams(c: Client) -> int:
    """Each ends with the dialect's own end, or with an error frame: a place in the queue that came too late."""
    status = NOT_HTTP
    for _ in range(c.rng.randint(1, 3)):
        wish = {"frames": c.rng.choice((1, 20, 200)), "pause": c.rng.choice((0, 0, 0.005))}
        path, body = chat(c.rng, stream=True, **wish)
        c.writer.write(c.request(path, body))
        status, payload = await c.answer()
        end = b'"done": true' if path.startswith("/api") else b"data: [DONE]\n\n"
        if status == 200 and end not in payload[-300:] and b'"error"' not in payload[-500:]:
            raise AssertionError(f"a stream without its end: {payload[-200:]!r}")
    return status


async def embeds(c: Client) -> int:
    path, model = c.rng.choice((("/v1/embeddings", "m"), ("/api/embed", "o")))
    c.writer.write(c.request(path, {"model": model, "input": ["text " * 50]}))
    return (await c.answer())[0]


async def lists(c: Client) -> int:
    status = NOT_HTTP
    for path in ("/v1/models", "/api/tags", "/api/ps", "/api/version", "/healthz", "/v1/models/m"):
        c.writer.write(c.request(path))
        status, _ = await c.answer()
    return status


async def pipelined(c: Client) -> int:
    c.writer.write(c.request("/v1/models") + c.request(*chat(c.rng, stream=False)) + c.request("/v1/models"))
    answers = [await c.answer() for _ in range(3)]
    return answers[-1][0]


async def bad_requests(c: Client) -> int:
    """Answers of 4xx on a kept connection, then one that ends it."""
    for path, body, method in (
        ("/v1/chat/completions", {"messages": []}, ""),
        ("/v1/chat/completions", {"model": "nobody's", "messages": [{"role": "user", "content": "x"}]}, ""),
        ("/nowhere", None, ""),
        ("/v1/chat/completions", None, "DELETE"),
        ("/api/pull", {"model": "o"}, ""),
    ):
        c.writer.write(c.request(path, body, method))
        await c.answer()
    c.writer.write(c.request("/v1/models").replace(b"Host:", b"Host :"))
    return (await c.answer())[0]


async def bad_key(c: Client) -> int:
    c.key = "fg_" + "".join(c.rng.choices("abcdefghijklmnop", k=40))
    c.writer.write(c.request(*chat(c.rng, stream=True)))
    return (await c.answer())[0]


async def too_large(c: Client) -> int:
    c.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: 999999999\r\n")
    c.writer.write(f"Authorization: Bearer {c.key}\r\n\r\n".encode() + b"x" * 60_000)
    return (await c.answer())[0]


async def engine_fails(c: Client) -> int:
    """Every way an engine can break, streaming and not; the answer may be cut."""
    path, body = chat(c.rng, stream=c.rng.random() < 0.6, do=c.rng.choice(FAILURES))
    c.writer.write(c.request(path, body))
    status, fields = await c.head()
    with contextlib.suppress(asyncio.IncompleteReadError):
        await c.rest(fields)
    return status


async def leave_in_head(c: Client) -> int:
    c.writer.write(c.request("/v1/models")[: c.rng.randint(1, 40)])
    return await _leave(c)


async def leave_in_body(c: Client) -> int:
    wire = c.request(*chat(c.rng, stream=True))
    c.writer.write(wire[: -c.rng.randint(1, 30)])
    return await _leave(c)


async def leave_while_waiting(c: Client) -> int:
    """Queued or before the first byte."""
    c.writer.write(c.request(*chat(c.rng, stream=c.rng.random() < 0.5, wait=5)))
    return await _leave(c)


async def leave_in_stream(c: Client) -> int:
    c.writer.write(c.request(*chat(c.rng, stream=True, frames=400, pause=0.005)))
    await c.head()
    return await _leave(c)


async def _leave(c: Client) -> int:
    await asyncio.sleep(c.rng.random() * 0.3)
    if c.rng.random() < 0.5:
        c.reset()
    return NOT_HTTP


async def slow_reader(c: Client) -> int:
    """Takes the head, then nothing: the gateway's timer ends it, or the reader goes on after a while."""
    transport = cast(asyncio.Transport, c.writer.transport)
    transport.pause_reading()
    c.writer.write(c.request(*chat(c.rng, stream=True, frames=20_000)))
    await asyncio.sleep(c.rng.choice((0.5, 4.0)))
    transport.resume_reading()
    while await c.reader.read(1 << 16):
        if c.rng.random() < 0.02:
            break
    return NOT_HTTP


async def slow_head(c: Client) -> int:
    c.writer.write(b"GET /v1/models HTTP/1.1\r\nHost: g\r\n")
    return (await c.answer())[0]


async def slow_body(c: Client) -> int:
    c.writer.write(c.request(*chat(c.rng, stream=True))[:-1])
    return (await c.answer())[0]


async def idle(c: Client) -> int:
    """Keeps a connection until the gateway closes it."""
    c.writer.write(c.request("/v1/models"))
    status, _ = await c.answer()
    await c.reader.read()
    return status


Move = Callable[[Client], Awaitable[int]]
MOVES: dict[Move, int] = {
    whole_chats: 20,
    whole_streams: 16,
    embeds: 6,
    lists: 6,
    pipelined: 4,
    bad_requests: 5,
    bad_key: 4,
    too_large: 2,
    engine_fails: 14,
    leave_in_head: 3,
    leave_in_body: 3,
    leave_while_waiting: 6,
    leave_in_stream: 8,
    slow_reader: 2,
    slow_head: 1,
    slow_body: 1,
    idle: 1,
}
"""Weights: about half of all moves are errors or disconnects."""


async def one(move: Move, client: Client, tally: Tally) -> None:
    """Run one move; a connection the gateway cut counts as status 0."""
    status = NOT_HTTP
    try:
        async with asyncio.timeout(PATIENCE):
            await client.open()
            status = await move(client)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # cut: the move or a failing engine asked for it
    except (TimeoutError, AssertionError, ValueError) as error:
        tally.wrong[f"{move.__name__}: {type(error).__name__} {error}"] += 1
    finally:
        if hasattr(client, "writer"):
            client.close()
    tally.note(move.__name__, status)


async def worker(port: int, keys: list[str], seed: int, pause: float, tally: Tally) -> None:
    """Random moves until cancelled. Bad keys come from addresses of their own: failures are throttled by address."""
    rng = random.Random(seed)
    moves, weights = list(MOVES), list(MOVES.values())
    while True:
        move = rng.choices(moves, weights)[0]
        source = f"127.0.1.{rng.randint(1, 200)}" if move is bad_key else "127.0.0.1"
        await one(move, Client(port, rng.choice(keys), rng, source), tally)
        await asyncio.sleep(rng.random() * pause)
