"""Bytes in = bytes out: random bodies, chunkings and read sizes through real sockets and the relay.

The backend sends what an example says, cut as it says; the client reads in random sizes through h11 and the official
client's own parser. What comes out equals what went in, less the usage frame a client did not ask for (A7). One
gateway serves all examples; a failed one prints how to run it again.
"""

import asyncio
import itertools
import json
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import h11
import pytest
import uvloop
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from tests.flow.engine import json_answer
from tests.gateway import Gateway, chat, gateway
from tests.wire import WAIT, Backend, read_request

MODEL = "m:1b"
LISTS = json.dumps(
    {
        "version": "1",
        "models": [{"name": MODEL, "model": MODEL}],
        "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "x"}],
    }
).encode()
MOST_PIECES = 300  # of one body; its middle goes in one if it is longer
COUNTS = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


# ---- what an engine may send


class Sent(bytes):
    """Bytes that a failing example shows only in part."""

    def __repr__(self) -> str:
        return repr(bytes(self)) if len(self) < 500 else f"{bytes(self[:200])!r}...{bytes(self[-200:])!r} {len(self)}"


class Wire(NamedTuple):
    """How a body travels: its framing, where it is cut, and how the client reads."""

    framing: str  # chunked, length, close
    chunk_sizes: list[int]
    size_line: str  # a format of the size: case, zeros, extensions
    trailer: bytes
    write_sizes: list[int]
    read_sizes: list[int]
    window: int  # the client's receive buffer in bytes; 0: the system's
    version: bytes  # of the client


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` cut into pieces of these sizes, over and over; of long data, its first and its last part."""
    ends = list(itertools.accumulate(itertools.islice(itertools.cycle(sizes), MOST_PIECES)))
    beyond = max(0, len(data) - ends[-1])
    half = MOST_PIECES // 2
    cuts = [end for end in (*ends[:half], *(end + beyond for end in ends[half:])) if end < len(data)]
    return [data[start:end] for start, end in itertools.pairwise([0, *cuts, len(data)])]


def encoded(payload: bytes, media_type: bytes, wire: Wire) -> list[bytes]:
    """The answer as writes of the backend."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n" % media_type
    if wire.framing == "chunked":
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        chunks = pieces(payload, wire.chunk_sizes)
        body = b"".join(wire.size_line.format(len(each)).encode() + b"\r\n" + each + b"\r\n" for each in chunks)
        return pieces(head + body + b"0\r\n" + wire.trailer + b"\r\n", wire.write_sizes)
    if wire.framing == "length":
        return pieces(head + b"Content-Length: %d\r\n\r\n" % len(payload) + payload, wire.write_sizes)
    return pieces(head + b"Connection: close\r\n\r\n" + payload, wire.write_sizes)


def sizes(most: int) -> st.SearchStrategy[list[int]]:
    some = [st.lists(st.integers(1, limit), min_size=1) for limit in (3, 40, most)]
    return st.one_of(st.just([most]), *some)


wires = st.builds(
    Wire,
    framing=st.sampled_from(["chunked", "chunked", "chunked", "length", "close"]),
    chunk_sizes=sizes(70_000),
    size_line=st.sampled_from(["{:x}", "{:X}", "{:06x}", "{:x};a", '{:x};a="b;c"']),
    trailer=st.sampled_from([b"", b"", b"X-Trailer: 0\r\n"]),
    write_sizes=sizes(100_000),
    read_sizes=sizes(65_536),
    window=st.sampled_from([0, 0, 32_768]),
    version=st.sampled_from([b"1.1", b"1.1", b"1.0"]),
)

LITERALS = [
    "data: [DONE]\n\n", "\r\n0\r\n\r\n", '"usage":{', '"choices":[]', '{"done":true}\n', "\n\n", "\r\r", "🦉", "\u2028",
    '"usage":{"prompt_tokens":1}', "data:", "\x00", "}\n", '\\"', "5\r\nhello\r\n",
]  # fmt: skip
texts = st.lists(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(LITERALS))).map("".join)
contents = st.one_of(texts, st.builds(lambda text, times: (text or "x") * times, texts, st.integers(1, 20_000)))
contents = contents.map(lambda text: text[:300_000])


class Style(NamedTuple):
    """How an engine writes JSON and lines."""

    ascii: bool
    spaced: bool
    end: str
    after_colon: str

    def json(self, value: Any, indent: int | None = None) -> str:
        separators = (", ", ": ") if self.spaced else (",", ":")
        return json.dumps(value, ensure_ascii=self.ascii, separators=separators, indent=indent)

    def event(self, *data: str, before: str = "") -> Sent:
        lines = [f"data:{self.after_colon}{line}" for line in data]
        return Sent((before + "".join(line + self.end for line in lines) + self.end).encode())


styles = st.builds(
    Style, st.booleans(), st.booleans(), st.sampled_from(["\n", "\n", "\r\n", "\r"]), st.sampled_from([" ", ""])
)


def chunk_of(content: str, usage: Any) -> dict[str, Any]:
    body = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": content}}]}
    return body if usage is ... else {**body, "usage": usage}


@st.composite
def events(draw: st.DrawFn, style: Style) -> Sent:
    """One frame, or a comment, of an SSE stream."""
    kind = draw(st.sampled_from(["chunk", "chunk", "chunk", "lines", "named", "comment", "short"]))
    if kind == "comment":
        return Sent(
            f": {draw(st.sampled_from(['keep-alive', 'data: [DONE]', '0', '']))}{style.end}{style.end}".encode()
        )
    if kind == "short":
        return style.event(draw(st.sampled_from(["0", "5", "{}", '{"choices":[]}'])))
    body = chunk_of(draw(contents), draw(st.sampled_from([..., ..., None, COUNTS])))
    if kind == "lines":
        return style.event(*style.json(body, indent=1).split("\n"))
    named = f"event: delta{style.end}id: 3{style.end}retry: 5{style.end}" if kind == "named" else ""
    return style.event(style.json(body), before=named)


class Stream(NamedTuple):
    """A stream's frames; `usage` is the extra one."""

    frames: list[Sent]
    usage: Sent
    done: Sent


@st.composite
def sse(draw: st.DrawFn) -> Stream:
    style = draw(styles)
    frames = draw(st.lists(events(style), max_size=8))
    extra: list[tuple[str, Any]] = [
        ("id", "c"),
        ("choices", []),
        ("usage", COUNTS),
        ("object", "chat.completion.chunk"),
    ]
    usage = style.event(style.json(dict(draw(st.permutations(extra)))))
    return Stream(frames, usage, style.event("[DONE]"))


@st.composite
def messages(draw: st.DrawFn) -> list[Sent]:
    """The events of one message; the prompt's tokens stand in the first alone, as llama.cpp has it."""
    style = draw(styles)
    told = {"input_tokens": 2, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 1, "output_tokens": 1}
    deltas = [{"type": "text_delta", "text": text} for text in draw(st.lists(contents, max_size=8))]
    values: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m", "content": [], "usage": told}},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    return [style.event(style.json(value), before=f"event: {value['type']}{style.end}") for value in values]


@st.composite
def ndjson(draw: st.DrawFn) -> list[Sent]:
    style = draw(styles)
    end = "\r\n" if style.end == "\r\n" else "\n"
    lines = [
        {"model": MODEL, "message": {"content": text}, "done": False} for text in draw(st.lists(contents, max_size=8))
    ]
    context = list(range(draw(st.sampled_from([0, 0, 20_000]))))
    last = {
        "model": MODEL,
        "done": True,
        "context": context,
        "total_duration": 9,
        "prompt_eval_count": 7,
        "eval_count": 5,
    }
    return [Sent((style.json(line) + end).encode()) for line in [*lines, last]]


@st.composite
def plain(draw: st.DrawFn) -> tuple[str, Sent]:
    """A path and the JSON answer there."""
    path = draw(st.sampled_from(["/v1/chat/completions", "/api/chat"]))
    counts = {"usage": COUNTS} if path.startswith("/v1") else {"done": True, "prompt_eval_count": 7, "eval_count": 5}
    body = {"model": MODEL, "message": {"content": draw(contents)}, **counts}
    return path, Sent(draw(styles).json(body).encode())


FIRST = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n'


# ---- one gateway for all examples


class Bench:
    """A backend that answers as the example says, the gateway in front of it, and a loop to run examples in."""

    gateway: Gateway

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.count = 0
        self.answers = 0
        self.metered: list[str] = []  # the request ids whose answers came whole
        self.writes: list[bytes] = []
        self.close = False

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """While open, examples can run."""
        async with (
            Backend(self.serve) as backend,
            gateway(f"http://127.0.0.1:{backend.port}", "ollama") as self.gateway,
        ):
            yield

    def run(self, body: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(body, 10 * WAIT))

    def exchange(
        self, path: str, ask: dict[str, Any], wire: Wire, writes: list[bytes], *, whole: bool = True
    ) -> list[bytes]:
        """The payload the client reads, as it came. `whole`: to its end, with the usage."""
        self.writes, self.close = writes, wire.framing == "close"
        self.count += 1
        extra = f"X-Request-ID: example{self.count}\r\n"
        request = self.gateway.request(path, ask, extra=extra).replace(b"HTTP/1.1", b"HTTP/" + wire.version, 1)
        payload: list[bytes] = self.run(self._read(request, wire))
        if whole:
            self.metered.append(f"example{self.count}")
        return payload

    async def _read(self, request: bytes, wire: Wire) -> list[bytes]:
        with socket.socket() as sock:
            sock.setblocking(False)
            if wire.window:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wire.window)
            await self.loop.sock_connect(sock, ("127.0.0.1", self.gateway.port))
            await self.loop.sock_sendall(sock, request)
            payload, keeps = await self._answer(sock, itertools.cycle(wire.read_sizes))
            assert keeps == (wire.version == b"1.1")
            if keeps:  # the end of the body is where the next answer begins
                await self.loop.sock_sendall(sock, b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n")
                root, _ = await self._answer(sock, itertools.repeat(4096))
                assert b"".join(root) == b"Ollama is running"
            return payload

    async def _answer(self, sock: socket.socket, reads: Iterator[int]) -> tuple[list[bytes], bool]:
        """One answer, as a strict client reads it."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        payload: list[bytes] = []
        for count in itertools.count():
            event = parser.next_event()
            if event is h11.NEED_DATA:
                data = await self.loop.sock_recv(sock, next(reads) if count < MOST_PIECES else 65_536)
                parser.receive_data(data)
            elif isinstance(event, h11.Response):
                assert event.status_code == 200, (event, parser.trailing_data)
            elif isinstance(event, h11.Data):
                payload.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self.answers += 1
                assert not event.headers, "trailers are dropped (H1)"
                break
        assert parser.trailing_data[0] == b""
        return payload, parser.our_state is h11.DONE and parser.their_state is h11.DONE

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The backend's side of one connection."""
        while True:
            head, _ = await read_request(reader)
            if head.startswith(b"GET"):
                writer.write(json_answer(LISTS))
                continue
            for data in self.writes:
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(0)  # a read of its own for each write, as far as the kernel goes along
            if self.close:
                return

    def check_metering(self) -> None:
        """Every whole answer's record has the counts that the engine reported, whatever the cuts (A7, U1)."""
        count = max(self.answers, self.gateway.app.audit.stats().written)
        rows = {row["id"]: row for row in self.run(self.gateway.records(count))}
        counts = {name: (rows[name]["prompt_tokens"], rows[name]["completion_tokens"]) for name in self.metered}
        assert {name: got for name, got in counts.items() if got != (7, 5)} == {}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """One for all tests here, which also judges their records. A task holds it open while the loop runs examples."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        bench, ready, over = Bench(loop), asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with bench.opened():
                ready.set()
                await over.wait()

        holder = loop.create_task(hold())
        bench.run(ready.wait())
        yield bench
        try:
            bench.check_metering()
        finally:
            over.set()
            loop.run_until_complete(holder)


# ---- the properties

# Without the phase that explains a failure: it takes minutes where an example is an exchange.
EXAMPLES = settings(max_examples=100, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink])


def parsed(payload: list[bytes]) -> list[tuple[Any, ...]]:
    """What the official client makes of it."""
    return [(sse.event, sse.data, sse.id, sse.retry) for sse in SSEDecoder().iter_bytes(iter(payload))]


@EXAMPLES
@given(stream=sse(), wire=wires, asked=st.booleans())
def test_an_event_stream_passes_byte_for_byte_but_for_a_usage_frame_nobody_asked_for(
    bench: Bench, stream: Stream, wire: Wire, asked: bool
) -> None:
    """A7, H1: byte for byte, whatever the cuts; only the usage frame is hidden from who did not ask."""
    before, after = b"".join(stream.frames), stream.done
    options = {"stream_options": {"include_usage": True}} if asked else {}
    writes = encoded(before + stream.usage + after, b"text/event-stream", wire)
    got = bench.exchange("/v1/chat/completions", chat(MODEL, stream=True, **options), wire, writes)
    expected = before + (stream.usage if asked else b"") + after
    assert b"".join(got) == expected
    assert parsed(got) == parsed([expected])


@EXAMPLES
@given(lines=ndjson(), wire=wires)
def test_a_stream_of_lines_passes_byte_for_byte(bench: Bench, lines: list[Sent], wire: Wire) -> None:
    """A2, H1: byte for byte, whatever the cuts."""
    writes = encoded(b"".join(lines), b"application/x-ndjson", wire)
    got = bench.exchange("/api/chat", chat(MODEL), wire, writes)
    assert b"".join(got) == b"".join(lines)


@EXAMPLES
@given(events=messages(), wire=wires)
def test_an_anthropic_stream_passes_byte_for_byte(bench: Bench, events: list[Sent], wire: Wire) -> None:
    """A3, H1: byte for byte, whatever the cuts, and metered by its first event and its last."""
    writes = encoded(b"".join(events), b"text/event-stream", wire)
    got = bench.exchange("/v1/messages", chat(MODEL, stream=True), wire, writes)
    assert b"".join(got) == b"".join(events)


@EXAMPLES
@given(stream=sse(), lines=ndjson(), wire=wires, asked=st.booleans(), ollama=st.booleans())
def test_an_engines_error_in_a_stream_is_replaced_by_our_own(
    bench: Bench, stream: Stream, lines: list[Sent], wire: Wire, asked: bool, ollama: bool
) -> None:
    """H8: what came before the error byte for byte, then our own words, whatever the cuts."""
    before, error = b"".join([FIRST, *stream.frames]), b'data: {"error":{"message":"at 10.0.0.5"}}\n\n'
    path, media_type = "/v1/chat/completions", b"text/event-stream"
    options = {"stream_options": {"include_usage": True}} if asked else {}
    if ollama:
        before, error = b"".join(lines[:1]), b'{"error":"at 10.0.0.5"}\n'
        path, media_type, options = "/api/chat", b"application/x-ndjson", {}
    writes = encoded(before + error + before, media_type, wire)
    payload = b"".join(bench.exchange(path, chat(MODEL, stream=True, **options), wire, writes, whole=False))
    assert payload.startswith(before)
    assert b"reported an error" in payload[len(before) :]
    assert b"10.0.0.5" not in payload


@EXAMPLES
@given(answer=plain(), wire=wires)
def test_a_plain_answer_passes_byte_for_byte(bench: Bench, answer: tuple[str, Sent], wire: Wire) -> None:
    """A1, A2, H1: byte for byte, whatever the framing."""
    path, payload = answer
    got = bench.exchange(path, chat(MODEL, stream=False), wire, encoded(payload, b"application/json", wire))
    assert b"".join(got) == payload


def test_a_large_plain_answer_is_metered_where_a_chunk_ends_within_its_counts(bench: Bench) -> None:
    """A7: more than is kept of an answer, so its counts are read from the raw end; judged with the other records."""
    body = Style(False, False, "\n", " ").json(
        {"content": "x" * 600_000, "done": True, "prompt_eval_count": 7, "eval_count": 5}
    )
    for size in (9, 13, 29):
        wire = Wire("chunked", [size], "{:x}", b"", [100_000], [65_536], 0, b"1.1")
        payload = bench.exchange("/api/chat", chat(MODEL), wire, encoded(body.encode(), b"application/json", wire))
        assert b"".join(payload) == body.encode()
