"""Where fuzzing starts: the corpus, and small streams and configurations."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.targets import NEXT
from tests.http1 import corpus

CRASHES = Path(__file__).parent / "crashes"
"""Inputs that once broke a target, by target; they stay."""
LONGEST = 320

_REPEATED = [
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx" * 3,
    b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n" * 5,
    b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 3,
]
_STREAMS = [
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a"}}],"usage":null}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n',
    b'data: {"choices": [], "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}}\r\n\r\n',
    b': keep-alive\n\nevent: error\ndata: {"error":{"message":"x"}}\n\n',
    b'data: {"type":"response.completed","response":{"usage":{"input_tokens":1,"output_tokens":2}}}\n\n',
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":9}}}\n\n',
    b'event: message_delta\r\ndata: {"type":"message_delta","usage":{"output_tokens":2}}\r\n\r\n',
    b'{"model":"m","message":{"role":"assistant","content":"a"},"done":false}\n',
    b'{"done":true,"done_reason":"stop","prompt_eval_count":3,"eval_count":2,"total_duration":5}\n',
    b'{"error":"boom"}\n',
    b'26\r\ndata: {"choices":[],"usage":{"a":1}}\r\n\r\n0\r\n\r\n',
    b'data: {"choices":[],"timings":{"prompt_n":1,"cache_n":2,"predicted_n":3}}\r\rdata: [DONE]\r\r',
]
_CONFIGS = [
    b"listen: 127.0.0.1:8080\nbackends:\n  - name: a\n    kind: vllm\n    url: http://127.0.0.1:8000\n    slots: 4\n",
    b"caps: {head_bytes: 32768, headers: 100}\ntimeouts: {head: 10, body: 60}\n",
    b"trusted_proxies: [10.0.0.0/8, '::1/128']\nmodels:\n  m: {token_cap: 100}\n",
    b"admin: {listen: '127.0.0.1:9090'}\nlog: {level: ${LEVEL}}\n",
    b"a: &a [x, x]\nb: [*a, *a]\n? [q]\n: !!binary aGk=\n",
    b"listen: 1\nwhen: 2001-01-01\nn: .inf\no: 0o7\np: 1_0\n",
]


def seeds(target: str) -> Iterator[bytes]:
    """Inputs of `target` as its function takes them."""
    if target == "request":
        yield from (b"\xff" + bytes((index,)) + text for index, text in enumerate(_REPEATED))
    if target in ("request", "response"):
        for case in corpus.cases(f"{target}s"):
            if len(case.send) <= LONGEST:
                yield _cut_by(case.id) + case.send
    elif target == "together":
        sent = [case.send for case in corpus.cases("requests") if len(case.send) <= LONGEST // 2]
        yield from (bytes((index % 256,)) + a + NEXT + b for index, (a, b) in enumerate(itertools.pairwise(sent)))
        yield from (bytes((index,)) + text + NEXT + text for index, text in enumerate(_REPEATED))
    elif target == "chunks":
        for case in corpus.cases("responses") + corpus.cases("requests"):
            if case.id.startswith("chunks/") and len(case.send) <= LONGEST:
                yield _cut_by(case.id) + case.send.partition(b"\r\n\r\n")[2]
    elif target == "stream":
        for index, text in enumerate(_STREAMS):
            yield bytes((index, 0)) + text
        yield b"\0\0" + b"".join(_STREAMS)
    else:
        yield from _CONFIGS


def _cut_by(name: str) -> bytes:
    """Two bytes that cut each seed in its own way."""
    return bytes((len(name) * 7 % 256, sum(name.encode()) % 256))


def crashes(target: str) -> list[Path]:
    """The inputs that once broke `target`."""
    return sorted(path for path in (CRASHES / target).glob("*") if path.is_file())
