"""Translates an engine's chat completion, whole or streamed, to Anthropic's Messages API.

Pure. Owns the events of a message, its stop reason, and its usage. Must not know the request, sockets or who is asking.
"""

from typing import Any, Final

import msgspec

from gateway.api.completion import Call, CallNumbers, ChunkStream, Completion, Counts, Said, whole
from gateway.api.whole_body import Object

_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
"""`finish_reason` -> `stop_reason`."""


def answer(body: bytes) -> bytes:
    """A whole chat completion as a message. Raises ValueError for an invalid one."""
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
    end = _end(choice.finish_reason, choice.stopped_at, called=bool(said.tool_calls))
    return msgspec.json.encode(_message(made, content) | end | {"usage": _usage(made.usage)})


def _message(made: Completion, content: list[Object]) -> dict[str, Any]:
    return {"id": made.id or "", "type": "message", "role": "assistant", "model": made.model or "", "content": content}


def _tool_use(call: Call, otherwise: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id or f"toolu_{otherwise}", "name": call.name, "input": {}}


def _end(finish: str | None, stop: str | None, *, called: bool) -> dict[str, Any]:
    if stop is not None and finish == "stop":
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    reason = _REASONS.get(finish or "stop", "end_turn")
    return {"stop_reason": "tool_use" if called and reason == "end_turn" else reason, "stop_sequence": None}


def _usage(counts: Counts | None) -> dict[str, int]:
    """Anthropic's input tokens do not include those read from a cache."""
    counts = counts or Counts()
    return {
        "input_tokens": max(0, counts.prompt - counts.cached),
        "cache_read_input_tokens": counts.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": counts.completion,
    }


class _Block:
    """A content block. `parts`: the text held back; of a tool call, all of its arguments so far."""

    def __init__(self, kind: str, opening: Object) -> None:
        self.kind = kind
        self.opening = opening
        self.parts: list[str] = []
        self.over = False

    @property
    def whole(self) -> bool:
        """Whether the block is complete once another one has begun. A tool call is complete when its arguments are a
        JSON object, since no object is the beginning of a longer one."""
        if self.kind != "tool_use":
            return True
        try:
            _OBJECT.decode("".join(self.parts))
        except (msgspec.DecodeError, RecursionError):
            return False
        return True


_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_DELTAS: Final = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}
"""Block type -> the type of its deltas, and the member that holds the text."""


class MessageStream(ChunkStream):
    """Turns a stream of chunks into the events of a message.

    Only one block is open at a time, but engines may write several tool calls in parallel. Blocks after an incomplete
    tool call are held back until it is complete, or until the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._name = ""  # name of the model, once the message has begun
        self._index = -1  # of the newest block that was sent
        self._open: _Block | None = None
        self._waiting: list[_Block] = []  # blocks that wait for the open one
        self._calls: list[_Block] = []
        self._numbers = CallNumbers()
        self._counts: Counts | None = None
        self._finish: str | None = None
        self._stop: str | None = None

    def chunk(self, chunk: Completion) -> bytes:
        """The events for one chunk."""
        self._counts = chunk.usage or self._counts
        out = self._opened(chunk)
        choice = chunk.choice
        self._finish = choice.finish_reason or self._finish
        self._stop = choice.stopped_at or self._stop
        return out + self._add_delta(choice.delta or Said())

    def end(self) -> bytes:
        """The last events."""
        out = [self._opened(Completion())]
        out += [self._start_block(block) for block in self._waiting]
        return b"".join(out) + self._stop_block() + self._end_events()

    def _opened(self, chunk: Completion) -> bytes:
        if self._name:
            return b""
        self._name = chunk.id or "msg"
        end = {"stop_reason": None, "stop_sequence": None, "usage": _usage(None)}
        return _event("message_start", message=_message(chunk, []) | end)

    def _add_delta(self, delta: Said) -> bytes:
        out = b""
        if delta.thoughts:
            out += self._add_text("thinking", {"type": "thinking", "thinking": "", "signature": ""}, delta.thoughts)
        if delta.content:
            out += self._add_text("text", {"type": "text", "text": ""}, delta.content)
        for call in delta.tool_calls or []:
            out += self._add_call(call)
        return out

    def _add_text(self, kind: str, opening: Object, text: str) -> bytes:
        """Append to the newest block if it is of this kind, else begin a new one."""
        newest = self._waiting[-1] if self._waiting else self._open
        if newest is not None and newest.kind == kind:
            return self._add(newest, text)
        block = _Block(kind, opening)
        return self._put(block) + self._add(block, text)

    def _add_call(self, call: Call) -> bytes:
        """Add a fragment of a tool call; each call has its own block."""
        number = self._numbers.of(call)
        out = b""
        if number == len(self._calls):
            self._calls.append(_Block("tool_use", _tool_use(call, f"{self._name}_{number}")))
            out = self._put(self._calls[number])
        return out + self._add(self._calls[number], call.arguments) if call.arguments else out

    def _put(self, block: _Block) -> bytes:
        if self._waiting or (self._open is not None and not self._open.whole):
            self._waiting.append(block)
            return b""
        return self._start_block(block)

    def _add(self, block: _Block, text: str) -> bytes:
        """Append to a block. Anything after the end of a tool call's arguments is ignored."""
        if block.over:
            return b""
        if block is not self._open:
            block.parts.append(text)
            return b""
        if block.kind == "tool_use":
            block.parts.append(text)
        return self._delta(block, text) + (self._release() if self._waiting and text.rstrip().endswith("}") else b"")

    def _release(self) -> bytes:
        """Send the waiting blocks, up to the first incomplete one."""
        out = b""
        while self._waiting and self._open is not None and self._open.whole:
            out += self._start_block(self._waiting.pop(0))
        return out

    def _start_block(self, block: _Block) -> bytes:
        """Close the open block and open this one, with the text held back so far."""
        out = self._stop_block()
        self._index, self._open = self._index + 1, block
        out += _event("content_block_start", index=self._index, content_block=block.opening)
        return out + self._delta(block, "".join(block.parts)) if block.parts else out

    def _delta(self, block: _Block, text: str) -> bytes:
        kind, member = _DELTAS[block.kind]
        return _event("content_block_delta", index=self._index, delta={"type": kind, member: text})

    def _stop_block(self) -> bytes:
        was, self._open = self._open, None
        if was is None:
            return b""
        was.over = True
        return _event("content_block_stop", index=self._index)

    def _end_events(self) -> bytes:
        end = _end(self._finish, self._stop, called=bool(self._calls))
        return _event("message_delta", delta=end, usage=_usage(self._counts)) + _event("message_stop")


def _event(kind: str, **members: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **members}))
