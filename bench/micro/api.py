"""Pieces of `gateway.api`: body read and edit, stream tap and filter, error rendering.

Names and calls only; `bench/micro/__main__.py` times them.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial

from gateway.api.dialect import Endpoint, Framing
from gateway.api.frames import FrameFilter
from gateway.api.routes import Routes
from gateway.api.stream import Tap, usage_of_body
from gateway.errors import QueueFull

Named = tuple[str, Callable[[], object]]

ROUTES = Routes()
OPENAI = ROUTES.match("POST", "/v1/chat/completions")
OLLAMA = ROUTES.match("POST", "/api/chat")

FRAME = (
    b'data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1760000000,"model":"llama3.1:8b",'
    b'"system_fingerprint":"fp","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,'
    b'"finish_reason":null}],"usage":null}\n\n'
)
EXTRA = (
    b'data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1760000000,"model":"llama3.1:8b",'
    b'"choices":[],"usage":{"prompt_tokens":31,"completion_tokens":200,"total_tokens":231}}\n\n'
)
LINE = (
    b'{"model":"llama3.1:8b","created_at":"2026-01-02T03:04:05.123456Z",'
    b'"message":{"role":"assistant","content":" word"},"done":false}\n'
)
LAST_LINE = (
    b'{"model":"llama3.1:8b","created_at":"2026-01-02T03:04:05.123456Z","message":{"role":"assistant","content":""},'
    b'"done":true,"done_reason":"stop","total_duration":5,"prompt_eval_count":31,"eval_count":200}\n'
)


def chunk(payload: bytes) -> bytes:
    """`payload` as one HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def chat(size: int, turns: int = 1, *, compact: bool = True, **more: object) -> bytes:
    """A chat body of about `size` bytes in `turns` messages."""
    text = ("The quick brown fox jumps over the lazy dog. " * (size // 40 + 1))[: max(1, (size - 120) // turns - 30)]
    messages = [{"role": "user", "content": text} for _ in range(turns)]
    value = {"messages": messages, "model": "llama3.1:8b", "temperature": 0.7} | more
    return json.dumps(value, separators=(",", ":") if compact else None).encode()


def bodies() -> Iterator[Named]:
    """Reading and editing."""
    shapes: list[tuple[str, Endpoint, bytes]] = [
        ("openai 1 KB, stream", OPENAI, chat(1024, stream=True, max_tokens=256)),
        ("openai 1 KB, stream, spaced", OPENAI, chat(1024, compact=False, stream=True, max_tokens=256)),
        ("openai 4 KB, 20 turns", OPENAI, chat(4096, 20, stream=True)),
        ("openai 32 KB", OPENAI, chat(32768, stream=True)),
        ("openai 32 KB, 40 turns, spaced", OPENAI, chat(32768, 40, compact=False, stream=True)),
        ("ollama 1 KB", OLLAMA, chat(1024, options={"num_ctx": 8192, "num_predict": 256})),
    ]
    for name, endpoint, body in shapes:
        dialect = endpoint.dialect
        ask = dialect.read(endpoint, body)
        yield f"read {name}", partial(dialect.read, endpoint, body)
        for what, model, cap in (("insert", ask.model, 4096), ("replace", "served", 128)):
            call = partial(dialect.edit, endpoint, body, ask, model=model, cap=cap, engine="ollama")
            yield f"edit {name}: {what}", call
    body = chat(1024, max_tokens=256)
    ask = OPENAI.dialect.read(OPENAI, body)
    call = partial(OPENAI.dialect.edit, OPENAI, body, ask, model=ask.model, cap=4096, engine="vllm")
    yield "edit openai 1 KB: nothing to do", call


def streams() -> Iterator[Named]:
    """What a frame costs, and the end of a stream."""
    for name, framing, frame, tail in (
        ("SSE", Framing.SSE, chunk(FRAME), [chunk(EXTRA), chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n"]),
        ("NDJSON", Framing.NDJSON, chunk(LINE), [chunk(LAST_LINE), b"0\r\n\r\n"]),
    ):
        yield f"tap.feed {name}", partial(Tap(framing).feed, frame)
        ended = Tap(framing)
        for part in tail:
            ended.feed(part)
        yield f"tap.finish {name}", ended.finish
        yield f"tap built {name}", partial(Tap, framing)
    frame = chunk(FRAME)
    frames = FrameFilter(hide_usage=True)
    yield "filter.passes, one frame", partial(frames.passes, frame)
    yield "filter.feed, one frame", partial(frames.feed, FRAME)
    yield "filter.feed, the extra frame", partial(frames.feed, EXTRA)
    answer = b'{"id":"x","choices":[{"message":{"content":"%b"}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    yield "usage_of_body 1 KB", partial(usage_of_body, OPENAI.framing, answer % (b"x" * 1000))
    yield "usage_of_body 100 KB", partial(usage_of_body, OPENAI.framing, answer % (b"x" * 100_000))


def rest() -> Iterator[Named]:
    """Routes and errors."""
    err = QueueFull("The queue of this model is full.", retry_after=2.0, ahead=30, estimate=12.0)
    for endpoint in (OPENAI, OLLAMA):
        dialect = endpoint.dialect
        yield f"error {dialect.name}", partial(dialect.error, err, "0f-1")
        yield f"stream_error {dialect.name}", partial(dialect.stream_error, err, "0f-1")
    yield "match exact", lambda: ROUTES.match("POST", "/v1/chat/completions")
    yield "match prefix", lambda: ROUTES.match("GET", "/v1/models/org/name:8b")


def parts() -> Iterator[Named]:
    """All of them."""
    yield from bodies()
    yield from streams()
    yield from rest()
