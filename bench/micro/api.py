"""Micro timings of `gateway.api`: body read and edit, stream tap and filter, error rendering.

`python bench/micro/api.py` prints microseconds per call, the best of several rounds: what the code costs, not what the
machine's neighbours cost.
"""

import json
import timeit
from collections.abc import Callable, Iterator

from gateway.api.dialect import Endpoint, Framing
from gateway.api.routes import Routes
from gateway.api.stream import FrameFilter, Tap, needs_edit, usage_of_body
from gateway.errors import QueueFull

ROUNDS = 200
ROUND_SECONDS = 0.0005
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


def best(call: Callable[[], object]) -> float:
    """Microseconds per call, the best of many short rounds: most of them fall between two disturbances."""
    timer = timeit.Timer(call)
    loops = 1
    while timer.timeit(loops) < ROUND_SECONDS:
        loops *= 2
    return min(timer.repeat(ROUNDS, loops)) / loops * 1e6


def bodies() -> Iterator[tuple[str, float]]:
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
        yield f"read {name}", best(lambda e=endpoint, b=body, d=dialect: d.read(e, b))
        for what, model, cap in (("insert", ask.model, 4096), ("replace", "served", 128)):
            call = lambda e=endpoint, b=body, d=dialect, a=ask, m=model, c=cap: d.edit(  # noqa: E731
                e, b, a, model=m, cap=c, engine="ollama"
            )
            yield f"edit {name}: {what}", best(call)
    body = chat(1024, max_tokens=256)
    ask = OPENAI.dialect.read(OPENAI, body)
    edit = OPENAI.dialect.edit
    yield (
        "edit openai 1 KB: nothing to do",
        best(lambda: edit(OPENAI, body, ask, model=ask.model, cap=4096, engine="vllm")),
    )


def streams() -> Iterator[tuple[str, float]]:
    """What a frame costs, and the end of a stream."""
    for name, framing, frame, tail in (
        ("SSE", Framing.SSE, chunk(FRAME), [chunk(EXTRA), chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n"]),
        ("NDJSON", Framing.NDJSON, chunk(LINE), [chunk(LAST_LINE), b"0\r\n\r\n"]),
    ):
        tap = Tap(framing)
        yield f"tap.feed {name}, {len(frame)} B", best(lambda t=tap, f=frame: t.feed(f))
        for part in tail:
            tap.feed(part)
        yield f"tap.finish {name}", best(tap.finish)
        yield f"tap built {name}", best(lambda f=framing: Tap(f))
    frame = chunk(FRAME)
    frames = FrameFilter()
    yield "needs_edit, one frame", best(lambda: needs_edit(frame))
    yield "filter.feed, one frame", best(lambda: frames.feed(FRAME))
    yield "filter.feed, the extra frame", best(lambda: frames.feed(EXTRA))
    answer = b'{"id":"x","choices":[{"message":{"content":"%b"}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    yield "usage_of_body 1 KB", best(lambda: usage_of_body(OPENAI, answer % (b"x" * 1000)))
    yield "usage_of_body 100 KB", best(lambda: usage_of_body(OPENAI, answer % (b"x" * 100_000)))


def rest() -> Iterator[tuple[str, float]]:
    """Routes and errors."""
    err = QueueFull("The queue of this model is full.", retry_after=2.0, ahead=30, estimate=12.0)
    for endpoint in (OPENAI, OLLAMA):
        dialect = endpoint.dialect
        yield f"error {dialect.name}", best(lambda d=dialect: d.error(err, "0f-1"))
        yield f"stream_error {dialect.name}", best(lambda d=dialect: d.stream_error(err, "0f-1"))
    yield "match exact", best(lambda: ROUTES.match("POST", "/v1/chat/completions"))
    yield "match prefix", best(lambda: ROUTES.match("GET", "/v1/models/org/name:8b"))


if __name__ == "__main__":
    for part in (bodies, streams, rest):
        for label, micros in part():
            print(f"{micros:9.2f} us  {label}")
