"""Phase x who fails x dialect x stream or not, over real sockets: what the client sees, what the engine sees, what the
row says, and that slot, ledger, budget hold, connections and pool return to zero.

A case is one line of `CASES`. Timers run on clocks that the test moves; nothing here sleeps.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import pytest
import uvloop

from gateway import config as cfg
from gateway.http1.client import State
from gateway.http1.connection import Phase
from gateway.store.limits import Limits
from tests.flow.engine import DONE, MESSAGE, PLAIN, SSE_HEAD, START, STOP, Engine, chunk, deaf_port, frame
from tests.gateway import Gateway, chat, gateway
from tests.wire import WAIT, Client

NDJSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
LAST = b"0\r\n\r\n"
LATER = 100_000.0  # seconds; past every timer

Ends = Literal["whole", "error", "cut", "nothing"]
Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


@dataclass(frozen=True)
class Shape:
    """One kind of request, and what an engine's answer to it looks like."""

    dialect: str
    stream: bool

    @property
    def path(self) -> str:
        return PATHS[self.dialect]

    @property
    def head(self) -> bytes:
        if not self.stream:
            return JSON_HEAD % len(self.whole)
        return NDJSON_HEAD if self.dialect == "ollama" else SSE_HEAD

    @property
    def whole(self) -> bytes:
        """The payload of a plain answer."""
        done = {"model": "m", "message": {"role": "assistant", "content": "x"}, "done": True, "eval_count": 3}
        return {"openai": PLAIN, "anthropic": MESSAGE, "ollama": json.dumps(done).encode()}[self.dialect]

    @property
    def part(self) -> bytes:
        """The beginning of a body, ending where a frame does, as on the wire."""
        if not self.stream:
            return self.whole[:20]
        line = b'{"model":"m","message":{},"done":false}\n'
        return chunk({"openai": frame("a"), "anthropic": START, "ollama": line}[self.dialect])

    @property
    def end(self) -> bytes:
        """What follows `part`."""
        if not self.stream:
            return self.whole[20:]
        return chunk({"openai": DONE, "anthropic": STOP, "ollama": self.whole + b"\n"}[self.dialect]) + LAST

    def __str__(self) -> str:
        return f"{self.dialect} {'stream' if self.stream else 'plain'}"


PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "ollama": "/api/chat"}
SHAPES = [Shape(dialect, stream) for dialect in PATHS for stream in (True, False)]

# ---- what an engine does. It ends with `gone`, which waits until the gateway leaves, or closes.

Go = asyncio.Event
"""Set when the client has read the head of the answer."""
Act = Callable[[Shape, Reader, Writer, Go], Awaitable[None]]


async def gone(shape: Shape, reader: Reader, writer: Writer, go: Go) -> None:
    assert not await reader.read(1)
    raise ConnectionError


async def answers(shape: Shape, reader: Reader, writer: Writer, go: Go) -> None:
    writer.write(shape.head + shape.part + shape.end)


def sends(*make: Callable[[Shape], bytes], then: Act | None = None) -> Act:
    """The first piece; the others when the client is at it, so that each is a read of its own; `then`, or a close."""

    async def act(shape: Shape, reader: Reader, writer: Writer, go: Go) -> None:
        for piece in make:
            if piece is not make[0]:
                await go.wait()
            writer.write(piece(shape))
            await writer.drain()
        if then is not None:
            await then(shape, reader, writer, go)
        raise ConnectionError

    return act


async def floods(shape: Shape, reader: Reader, writer: Writer, go: Go) -> None:
    writer.write(shape.head if shape.stream else JSON_HEAD % (1 << 40))
    block = shape.part * 200 if shape.stream else b"x" * 50_000
    while True:
        writer.write(block)
        await writer.drain()


def head(shape: Shape) -> bytes:
    return shape.head


def head_and_part(shape: Shape) -> bytes:
    return shape.head + shape.part


def half_a_frame(shape: Shape) -> bytes:
    return b"40\r\n" + b'data: {"a' if shape.stream else shape.whole[20:21]


def broken_chunk(shape: Shape) -> bytes:
    return b"zz\r\n" if shape.stream else b""


def whole_and_more(shape: Shape) -> bytes:
    return shape.head + shape.part + shape.end + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen"


def endless_head(shape: Shape) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + b"X-Filler: %b\r\n" % (b"x" * 1000) * 100


# ---- what happens at the phase


async def leave(g: Gateway, client: Client) -> None:
    client.close()


async def reset(g: Gateway, client: Client) -> None:
    client.reset()


async def nobody(g: Gateway, client: Client) -> None:
    """The engine or the gateway does it."""


async def client_timers(g: Gateway, client: Client) -> None:
    loop = asyncio.get_running_loop()
    g.app.server.now = lambda: loop.time() + LATER
    g.app.server.sweep()
    g.app.server.now = loop.time


async def engine_timers(g: Gateway, client: Client) -> None:
    g.app.pools["engine"].sweep(asyncio.get_running_loop().time() + LATER)


# ---- when it happens


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():
            await asyncio.sleep(0)


async def in_phase(g: Gateway, engine: Engine, client: Client, phase: Phase) -> None:
    await until(lambda: any(c.phase is phase for c in g.app.server.connections))


async def in_head(g: Gateway, engine: Engine, client: Client) -> None:
    await in_phase(g, engine, client, Phase.HEAD)


async def in_body(g: Gateway, engine: Engine, client: Client) -> None:
    await in_phase(g, engine, client, Phase.BODY)


async def queued(g: Gateway, engine: Engine, client: Client) -> None:
    await until(lambda: g.app.scheduler.stats().queued == 1)


async def connecting(g: Gateway, engine: Engine, client: Client) -> None:
    await until(lambda: g.app.scheduler.stats().running == 1)


async def waiting(g: Gateway, engine: Engine, client: Client) -> None:
    await asyncio.wait_for(engine.chats.get(), WAIT)


async def engine_began(g: Gateway, engine: Engine, client: Client) -> None:
    """The engine's head is here, and no byte of a body."""
    await waiting(g, engine, client)
    await until(lambda: any(c.state is State.BODY for c in g.app.pools["engine"].connections))


async def in_answer(g: Gateway, engine: Engine, client: Client) -> None:
    await waiting(g, engine, client)
    async with asyncio.timeout(WAIT):
        client.seen = await client.reader.readuntil(b"\r\n\r\n")
    engine.go.set()


async def in_frame(g: Gateway, engine: Engine, client: Client) -> None:
    """What follows the first bytes is here too."""
    await until(lambda: any(c.bytes_in for c in g.app.pools["engine"].connections))
    (upstream,) = g.app.pools["engine"].connections
    before = upstream.bytes_in
    await in_answer(g, engine, client)
    await until(lambda: upstream.bytes_in > before)


async def client_full(g: Gateway, engine: Engine, client: Client) -> None:
    """The client does not read; its window is closed and what the gateway may hold for it is full."""
    await waiting(g, engine, client)
    await until(lambda: any(not c.writable for c in g.app.server.connections))


async def ended(g: Gateway, engine: Engine, client: Client) -> None:
    await waiting(g, engine, client)


Moment = Callable[[Gateway, Engine, Client], Awaitable[None]]


@dataclass(frozen=True)
class Case:
    """`stream` and `plain`: status and end that the client sees, 0 for no answer. `row`: status, outcome, code."""

    name: str
    engine: Act
    when: Moment
    what: Callable[[Gateway, Client], Awaitable[None]]
    stream: tuple[int, Ends]
    plain: tuple[int, Ends]
    row: tuple[int, str, str] | None
    sees: Literal["nothing", "an abort", "an exchange"]
    plain_row: tuple[int, str, str] | None = None  # where it differs


GONE = (499, "client_gone", "")
BROKE = (502, "upstream_failed", "upstream_broke")
LATE = (504, "timed_out", "upstream_timeout")
TOLD = (200, "upstream_failed", "upstream_broke")
TOLD_LATE = (200, "timed_out", "upstream_timeout")
NOTHING: tuple[int, Ends] = (0, "nothing")
BAD_GATEWAY: tuple[int, Ends] = (502, "error")
TOO_LATE: tuple[int, Ends] = (504, "error")
SLOW: tuple[int, Ends] = (408, "error")
MID: tuple[int, Ends] = (200, "error")
CUT: tuple[int, Ends] = (200, "cut")
OK: tuple[int, Ends] = (200, "whole")


def client_leaves(name: str, act: Act, when: Moment, sees: Literal["nothing", "an abort"]) -> list[Case]:
    """Orderly and by a reset."""
    return [
        Case(f"{name}, client {how.__name__}s", act, when, how, NOTHING, NOTHING, GONE, sees) for how in (leave, reset)
    ]


CASES = [
    Case("in the head, client leaves", answers, in_head, leave, NOTHING, NOTHING, None, "nothing"),
    Case(
        "in the head, client stalls", answers, in_head, client_timers, SLOW, SLOW,
        (408, "timed_out", "request_timeout"), "nothing",
    ),
    *client_leaves("in the body", answers, in_body, "nothing"),
    Case(
        "in the body, client stalls", answers, in_body, client_timers, SLOW, SLOW,
        (408, "timed_out", "request_timeout"), "nothing",
    ),
    *client_leaves("queued", gone, queued, "nothing"),
    *client_leaves("connecting", answers, connecting, "nothing"),
    Case(
        "connecting, engine refuses", answers, nobody, nobody, BAD_GATEWAY, BAD_GATEWAY,  # type: ignore[arg-type]
        (502, "upstream_failed", "upstream_unreachable"), "nothing",
    ),
    *client_leaves("waiting for the engine", gone, waiting, "an abort"),
    Case("waiting, engine stalls", gone, waiting, engine_timers, TOO_LATE, TOO_LATE, LATE, "an abort"),
    Case("waiting, engine closes", sends(), ended, nobody, BAD_GATEWAY, BAD_GATEWAY, BROKE, "an abort"),
    *[
        Case(f"waiting, {name}", sends(wire), ended, nobody, BAD_GATEWAY, BAD_GATEWAY, BROKE, "an abort")
        for name, wire in {
            "half a head and a close": lambda shape: b"HTTP/1.1 200 OK\r\nCont",
            "no HTTP": lambda shape: b"SSH-2.0\r\n\r\n",
            "an unasked switch": lambda shape: b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "two lengths": lambda shape: b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "chunks and a length": lambda s: s.head[:-2] + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            "interim heads without end": lambda shape: b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20,
            "an endless head": endless_head,
        }.items()
    ],
    *client_leaves("after the engine's head", sends(head, then=gone), engine_began, "an abort"),
    Case("head, then a close", sends(head), ended, nobody, BAD_GATEWAY, BAD_GATEWAY, BROKE, "an abort"),
    Case(
        "head, then a stall", sends(head, then=gone), engine_began, engine_timers, TOO_LATE, TOO_LATE, LATE, "an abort"
    ),
    *client_leaves("in the answer", sends(head_and_part, then=gone), in_answer, "an abort"),
    Case("in the answer, client stalls", floods, client_full, client_timers, CUT, CUT, GONE, "an abort"),
    Case("in the answer, engine closes", sends(head_and_part), in_answer, nobody, MID, CUT, TOLD, "an abort"),
    Case(
        "in the answer, engine stalls", sends(head_and_part, then=gone), in_answer, engine_timers, MID, CUT,
        TOLD_LATE, "an abort",
    ),
    Case(
        "in a frame, engine closes", sends(head_and_part, half_a_frame), in_answer, nobody, MID, CUT, TOLD, "an abort"
    ),
    Case(
        "in a frame, engine stalls", sends(head_and_part, half_a_frame, then=gone), in_frame, engine_timers, MID, CUT,
        TOLD_LATE, "an abort",
    ),
    Case("a broken chunk", sends(head_and_part, broken_chunk), in_answer, nobody, MID, CUT, TOLD, "an abort"),
    Case("more than was announced", sends(whole_and_more), in_answer, nobody, OK, OK, (200, "done", ""), "an abort"),
    Case("nobody fails", answers, in_answer, nobody, OK, OK, (200, "done", ""), "an exchange"),
]  # fmt: skip


async def blocker(g: Gateway, engine: Engine) -> Client:
    """Somebody else's request, which takes the only slot."""
    client = await g.connect()
    await client.send(g.request("/v1/chat/completions", chat()))
    await asyncio.wait_for(engine.chats.get(), WAIT)
    return client


async def prepared(g: Gateway, engine: Engine, case: Case) -> Client | None:
    """Bring about what the case needs besides its script; who else runs meanwhile."""
    pool = g.app.pools["engine"]
    if case.when is queued:
        return await blocker(g, engine)
    if case.when is connecting:
        pool.address = msgspec.structs.replace(pool.address, port=deaf_port())
    if case.when is nobody:
        pool.address = msgspec.structs.replace(pool.address, port=1)  # nobody listens there
    return None


def request(g: Gateway, key: str, shape: Shape, case: Case) -> bytes:
    options = {"stream_options": {"include_usage": True}} if shape.stream else {}  # so that bytes pass as they came
    wire = g.request(shape.path, chat(stream=shape.stream, **options), key=key, extra="Connection: close\r\n")
    if case.when is in_head:
        return wire[:30]
    return wire[:-1] if case.when is in_body else wire


def ends_as(raw: bytes, shape: Shape) -> tuple[int, Ends]:
    """What a client makes of the bytes of a connection that has ended."""
    if not raw:
        return 0, "nothing"
    text, _, body = raw.partition(b"\r\n\r\n")
    status = int(text.split(b" ")[1])
    fields = dict(line.lower().split(b": ", 1) for line in text.split(b"\r\n")[1:])
    if fields.get(b"transfer-encoding") == b"chunked":
        if not body.endswith(LAST):
            return status, "cut"
        body = unchunked(body)
    elif len(body) != int(fields[b"content-length"]):
        return status, "cut"
    return status, "error" if failed(body, shape, status) else "whole"


def unchunked(body: bytes) -> bytes:
    parts = []
    while not body.startswith(b"0\r\n"):
        line, _, body = body.partition(b"\r\n")
        size = int(line, 16)
        assert body[size : size + 2] == b"\r\n"
        parts.append(body[:size])
        body = body[size + 2 :]
    return b"".join(parts)


def failed(body: bytes, shape: Shape, status: int) -> bool:
    """Whether the last thing said is an error, in the shape of the dialect (A5)."""
    if shape.stream and status == 200:
        if body.endswith((DONE, STOP)):
            return False
        body = body.rstrip(b"\n").rpartition(b"\n")[2].removeprefix(b"data: ")
    error = json.loads(body).get("error")
    assert error is None or isinstance(error, dict) == (shape.dialect != "ollama")
    assert error is None or ("type" in json.loads(body)) == (shape.dialect == "anthropic")
    return error is not None


async def one(g: Gateway, engine: Engine, key: str, shape: Shape, case: Case) -> tuple[int, Ends]:
    """Run the case; what the client saw."""
    client = await g.connect()
    await client.send(request(g, key, shape, case))
    if case.when is not nobody:
        await case.when(g, engine, client)
    await case.what(g, client)
    if case.what in (leave, reset):
        return NOTHING
    try:
        rest = await client.rest()
    except ConnectionResetError:
        rest = b""
    client.close()
    return ends_as(client.seen + rest, shape)


async def nothing_held(g: Gateway) -> None:
    await g.idle()
    await until(lambda: not g.app.server.connections)
    await until(lambda: all(c.state is State.IDLE for c in g.app.pools["engine"].connections))
    ledger, scheduler = g.app.ledger.stats(), g.app.scheduler.stats()
    assert (ledger.open, ledger.body_bytes, ledger.waiting) == (0, 0, 0)
    assert (scheduler.running, scheduler.queued) == (0, 0)
    assert g.app.limits.stats().open == 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whoever_fails_is_told_recorded_and_given_back(case: Case) -> None:
    """H4, H5, H6, A5, U1, R5, L2: one row for each request that was one, a proper end, and nothing kept."""
    asking: list[tuple[Shape, Go]] = []

    async def answer(head: bytes, body: bytes, reader: Reader, writer: Writer) -> None:
        await case.engine(asking[-1][0], reader, writer, asking[-1][1])

    async def main() -> None:
        async with Engine(answer) as engine, gateway(engine.url, "ollama", slots=1, **SETTINGS) as g:
            key = await g.add_key(user="other", limits=Limits(tokens_per_day=1_000_000, concurrent=2))
            for shape in SHAPES if case.when is not in_head else SHAPES[:2]:  # no head, no dialect
                engine.go = Go()
                asking.append((shape, engine.go))
                other = await prepared(g, engine, case)
                saw = await one(g, engine, key, shape, case)
                assert saw == (case.stream if shape.stream else case.plain), shape
                if other is not None:
                    other.close()
                await nothing_held(g)
                await recorded(g, case, shape, len(asking) * (2 if other else 1))
                await seen_by_engine(g, engine, case)

    uvloop.run(main())


SETTINGS: dict[str, Any] = {
    "caps": cfg.Caps(buffer_bytes=64 * 1024),
    "discovery": cfg.Discovery(eject_after=1000),  # a breaker is not what is tested here
}


async def recorded(g: Gateway, case: Case, shape: Shape, count: int) -> None:
    """The newest row is this request's, unless somebody else had the slot: then theirs is."""
    if case.row is None:
        assert g.app.audit.stats().written == 0, shape
        return
    rows = await g.records(count)
    row = next(row for row in reversed(rows) if case.when is not queued or not row["slot_us"])
    begun = not shape.stream and case.plain == CUT and case.row != GONE
    expected = (200, *case.row[1:]) if begun else case.row
    assert (row["status"], row["outcome"], row["error"]) == expected, shape
    assert case.when is in_head or row["dialect"] == shape.dialect


async def seen_by_engine(g: Gateway, engine: Engine, case: Case) -> None:
    connections = g.app.pools["engine"].connections
    if case.sees == "an exchange":
        assert len(connections) == 1
        return
    assert not connections
    if case.sees == "an abort":
        await asyncio.wait_for(engine.aborted.get(), WAIT)
    else:
        assert engine.chats.empty()
