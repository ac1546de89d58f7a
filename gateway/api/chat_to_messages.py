"""An engine's chat completion, whole or streamed, in the words of Anthropic's Messages API.

Pure. Owns the events of a message, why it ended, and its usage. Must not know the request, sockets or who is asking.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.api.completion import Call, CallNumbers, ChunkStream, Completion, Counts, Said, whole

Object = Mapping[str, Any]

_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
"""`finish_reason` -> `stop_reason`."""


def answer(body: bytes) -> bytes:
    """A whole chat completion as a message. Raises ValueError for what is none."""
    made = whole(body)
    choice = made.choice
    said = choice.message or Said()
    content: list[Object] = []
    if said.thoughts:
        content.append({"type": "thinking", "thinking": said.thoughts, "signature": ""})
    if said.content:
        content.append({"type": "text", "text": said.content})
    for number, call in enumerate(said.tool_calls or []):
        content.append(_tool_use(call, f"{made.id or 'msg'}_{number}") | {"input": call.input})
    end = _end(choice.finish_reason, choice.stop_reason, called=bool(said.tool_calls))
    return msgspec.json.encode(_message(made, content) | end | {"usage": _usage(made.usage)})


def _message(made: Completion, content: list[Object]) -> dict[str, Any]:
    return {"id": made.id or "", "type": "message", "role": "assistant", "model": made.model or "", "content": content}


def _tool_use(call: Call, otherwise: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id or f"toolu_{otherwise}", "name": call.name, "input": {}}


def _end(finish: str | None, stop: int | str | None, *, called: bool) -> dict[str, Any]:
    if isinstance(stop, str) and finish == "stop":
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    reason = _REASONS.get(finish or "stop", "end_turn")
    return {"stop_reason": "tool_use" if called and reason == "end_turn" else reason, "stop_sequence": None}


def _usage(counts: Counts | None) -> dict[str, int]:
    """Anthropic's input leaves out what was read from a cache."""
    counts = counts or Counts()
    return {
        "input_tokens": max(0, counts.prompt - counts.cached),
        "cache_read_input_tokens": counts.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": counts.completion,
    }


class MessageStream(ChunkStream):
    """A stream of chunks as the events of a message."""

    def __init__(self) -> None:
        super().__init__()
        self._name = ""  # of the message, once it has begun
        self._index = -1  # of the newest block
        self._block = ""  # its type while it is open
        self._calls: list[int] = []  # the index of each call's block
        self._numbers = CallNumbers()
        self._counts: Counts | None = None
        self._finish: str | None = None
        self._stop: int | str | None = None

    def chunk(self, chunk: Completion) -> bytes:
        """Its events."""
        self._counts = chunk.usage or self._counts
        out = self._opened(chunk)
        choice = chunk.choice
        self._finish = choice.finish_reason or self._finish
        self._stop = choice.stop_reason if choice.stop_reason is not None else self._stop
        return out + self._said(choice.delta or Said())

    def end(self) -> bytes:
        """The last events."""
        return self._opened(Completion()) + self._closed() + self._ended()

    def _opened(self, chunk: Completion) -> bytes:
        if self._name:
            return b""
        self._name = chunk.id or "msg"
        end = {"stop_reason": None, "stop_sequence": None, "usage": _usage(None)}
        return _event("message_start", message=_message(chunk, []) | end)

    def _said(self, delta: Said) -> bytes:
        out = b""
        if thoughts := delta.thoughts:
            out += self._in("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            out += self._delta(self._index, "thinking_delta", thinking=thoughts)
        if delta.content:
            out += self._in("text", {"type": "text", "text": ""})
            out += self._delta(self._index, "text_delta", text=delta.content)
        for call in delta.tool_calls or []:
            out += self._called(call)
        return out

    def _called(self, call: Call) -> bytes:
        number = self._numbers.of(call)
        out = b""
        if number == len(self._calls):
            out = self._in("tool_use", _tool_use(call, f"{self._name}_{number}"))
            self._calls.append(self._index)
        if call.arguments:
            out += self._delta(self._calls[number], "input_json_delta", partial_json=call.arguments)
        return out

    def _in(self, kind: str, block: Object) -> bytes:
        """Go on in the open block of this kind, or end it and begin one; each call has a block of its own."""
        if kind == self._block != "tool_use":
            return b""
        out = self._closed()
        self._index, self._block = self._index + 1, kind
        return out + _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, index: int, kind: str, **members: str) -> bytes:
        return _event("content_block_delta", index=index, delta={"type": kind, **members})

    def _closed(self) -> bytes:
        was, self._block = self._block, ""
        return _event("content_block_stop", index=self._index) if was else b""

    def _ended(self) -> bytes:
        end = _end(self._finish, self._stop, called=bool(self._calls))
        return _event("message_delta", delta=end, usage=_usage(self._counts)) + _event("message_stop")


def _event(kind: str, **members: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **members}))
