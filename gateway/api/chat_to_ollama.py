"""Translates an engine's chat completion or embeddings, whole or streamed, to Ollama's API.

Pure: the clock is passed in. Owns Ollama's lines, the done reason, counts and durations (whole nanoseconds). Must not
know the request, sockets or who is asking. Not compiled (`hatch_build.py`): it has records that need msgspec's options.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from gateway.api.completion import (
    Call,
    CallNumbers,
    ChunkStream,
    Completion,
    Counts,
    Function,
    Said,
    read,
    whole,
)
from gateway.api.dialect import rfc3339

_NANO: Final = 1_000_000_000


class _Vector(msgspec.Struct, gc=False):
    embedding: msgspec.Raw
    index: int = 0


class _Vectors(msgspec.Struct, gc=False):
    data: list[_Vector]
    model: str = ""
    usage: Counts | None = None


_VECTORS: Final = msgspec.json.Decoder(_Vectors)


def chat(body: bytes, seconds: float) -> bytes:
    """A whole chat completion as an answer of `/api/chat`. Raises ValueError for an invalid one."""
    return _whole(body, seconds, _message)


def generate(body: bytes, seconds: float) -> bytes:
    """The same as an answer of `/api/generate`."""
    return _whole(body, seconds, _response)


def embed(body: bytes, seconds: float) -> bytes:
    """A list of embeddings as an answer of `/api/embed`. The numbers keep the engine's own text."""
    made = read(_VECTORS, body)
    counts = made.usage or Counts()
    vectors = [each.embedding for each in sorted(made.data, key=lambda each: each.index)]
    answer: dict[str, Any] = {"model": made.model, "embeddings": vectors, "total_duration": int(seconds * _NANO)}
    return msgspec.json.encode(answer | {"prompt_eval_count": counts.prompt})


def embedding(body: bytes, seconds: float) -> bytes:
    """The same for the older `/api/embeddings`, which has only one."""
    made = read(_VECTORS, body)
    if not made.data:
        raise ValueError("no embedding")
    return msgspec.json.encode({"embedding": made.data[0].embedding})


Part = Callable[[str, str, list[Call]], dict[str, Any]]
"""Text, thinking and tool calls -> the members of a line that carry them."""


def _message(text: str, thoughts: str, calls: list[Call]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thoughts:
        message["thinking"] = thoughts
    if calls:
        message["tool_calls"] = [_called(call, number) for number, call in enumerate(calls)]
    return {"message": message}


def _response(text: str, thoughts: str, calls: list[Call]) -> dict[str, Any]:
    return {"response": text} | ({"thinking": thoughts} if thoughts else {})


def _called(call: Call, number: int) -> dict[str, Any]:
    return {"id": call.id, "function": {"index": number, "name": call.name, "arguments": call.input}}


def _whole(body: bytes, seconds: float, part: Part) -> bytes:
    made = whole(body)
    said = made.choice.message or Said()
    line = _line(made) | part(said.content or "", said.thoughts, said.tool_calls or []) | _logged(made)
    return msgspec.json.encode(line | _end(made.choice.finish_reason, made.usage, seconds, seconds))


def _line(made: Completion) -> dict[str, Any]:
    return {"model": made.model or "", "created_at": rfc3339(made.created or 0)}


def _logged(made: Completion) -> dict[str, Any]:
    """The log probabilities; both APIs have the same format for them."""
    return {"logprobs": tokens} if (tokens := made.choice.tokens) is not None else {}


def _end(finish: str | None, counts: Counts | None, seconds: float, first: float) -> dict[str, Any]:
    """The members of the last line. `first`: seconds until the first token, taken as the time for the prompt."""
    counts = counts or Counts()
    return {
        "done": True,
        "done_reason": "length" if finish == "length" else "stop",
        "total_duration": int(seconds * _NANO),
        "prompt_eval_count": counts.prompt,
        "prompt_eval_duration": int(first * _NANO),
        "eval_count": counts.completion,
        "eval_duration": int((seconds - first) * _NANO),
    }


class LineStream(ChunkStream):
    """Turns a stream of chunks into lines of `/api/chat` or `/api/generate`. A tool call is sent in one piece, as by
    Ollama."""

    def __init__(self, clock: Callable[[], float], sent: float, part: Part) -> None:
        super().__init__()
        self._clock = clock
        self._sent = sent
        self._first = 0.0  # when the first token came
        self._part = part
        self._made = Completion()
        self._calls: list[Call] = []
        self._numbers = CallNumbers()
        self._counts: Counts | None = None
        self._finish: str | None = None

    def chunk(self, chunk: Completion) -> bytes:
        """The line for one chunk; empty if the chunk has no content."""
        self._made = chunk
        self._counts = chunk.usage or self._counts
        self._first = self._first or self._clock()
        self._finish = chunk.choice.finish_reason or self._finish
        said = chunk.choice.delta or Said()
        for call in said.tool_calls or []:
            self._gather(call)
        logged = _logged(chunk)
        if not (said.content or said.thoughts or logged):
            return b""
        return self._say(said.content or "", said.thoughts, [], logged)

    def _gather(self, call: Call) -> None:
        number = self._numbers.of(call)
        if number == len(self._calls):
            self._calls.append(Call())
        known = self._calls[number]
        known.given = known.id or call.id
        known.function = Function(known.name or call.name, known.arguments + call.arguments)

    def end(self) -> bytes:
        """The line with the tool calls, and the last line."""
        calls = self._say("", "", self._calls, {}) if self._calls else b""
        now = self._clock()
        end = _end(self._finish, self._counts, now - self._sent, (self._first or now) - self._sent)
        return calls + _text(_line(self._made) | self._part("", "", []) | end)

    def _say(self, text: str, thoughts: str, calls: list[Call], logged: dict[str, Any]) -> bytes:
        return _text(_line(self._made) | self._part(text, thoughts, calls) | logged | {"done": False})


def _text(line: dict[str, Any]) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def chat_stream(clock: Callable[[], float], sent: float) -> LineStream:
    """The translation of a stream for `/api/chat`."""
    return LineStream(clock, sent, _message)


def generate_stream(clock: Callable[[], float], sent: float) -> LineStream:
    """The translation of a stream for `/api/generate`."""
    return LineStream(clock, sent, _response)
