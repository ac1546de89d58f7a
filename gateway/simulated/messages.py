"""Ollama's Anthropic-compatible surface, simulated: `/v1/messages`, made from native frames.

Owns: Messages API bodies as Ollama reads them, events, usage and error bodies. `count_tokens` is as vLLM and llama.cpp
answer it: Ollama has none, and then its clients have nothing to try.
Must not know: slots and pace.
"""

import time
from typing import Any

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.simulated.engine import Engine
from gateway.simulated.native import chat_frames, completing, find, merge_chat, read, thinking
from gateway.simulated.plan import Ask, Message, plan, prompt_tokens
from gateway.simulated.text import seed_of
from gateway.simulated.wire import JSON, SSE, Answer, Frame, Refusal, encode, messages_error

_EMPTY: dict[str, Frame] = {"thinking": {"thinking": ""}, "text": {"text": ""}, "tool_use": {"input": {}}}
"""What a block has before its first delta."""

Blocks = str | list[dict[str, Any]] | None


class MessageBody(msgspec.Struct):
    """One message: text or content blocks."""

    role: str
    content: Blocks = None


class MessagesBody(msgspec.Struct, kw_only=True):
    """Body of both routes; unknown fields are skipped."""

    model: str | None = None
    max_tokens: int | None = None
    messages: list[MessageBody] | None = None
    system: Blocks = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    thinking: dict[str, Any] | None = None


class MessagesWriter:
    """Native chat frames as events of a message, or one message."""

    def __init__(self, name: str, message_id: str, estimate: int) -> None:
        self._name = name
        self._id = message_id
        self._estimate = estimate  # of the prompt's tokens, for the first event; the last has the truth
        self._index = -1
        self._open = ""  # type of the block that is being written

    def stream_type(self) -> str:
        """Server-sent events."""
        return SSE

    def error(self, refusal: Refusal) -> Response:
        """Error in the API's envelope."""
        return messages_error(refusal)

    def frame(self, frame: Frame) -> bytes:
        """The frame's events; before the first, those that open the message, after the final one those that end it."""
        out = b"" if self._index >= 0 or self._open else self._start()
        out += b"".join(self._said(block) for block in _blocks(frame["message"]))
        return out + self._end(frame) if frame["done"] else out

    def whole(self, frame: Frame) -> bytes:
        """The message, ended by a newline."""
        content = _blocks(frame["message"])
        reason = {"stop_reason": _reason(frame, called=any(each["type"] == "tool_use" for each in content))}
        return encode({**self._message(content), **reason, "usage": _usage(frame)}) + b"\n"

    def _message(self, content: list[Frame]) -> Frame:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._name, "content": content}

    def _start(self) -> bytes:
        usage = {"input_tokens": self._estimate, "output_tokens": 0}
        self._open = "none"
        return _event("message_start", message={**self._message([]), "usage": usage})

    def _said(self, block: Frame) -> bytes:
        """A block's events: text and thoughts go on in the open block, each call is a block of its own."""
        kind = block["type"]
        out = b""
        if kind != self._open or kind == "tool_use":
            out = self._stop()
            self._index, self._open = self._index + 1, kind
            out += _event("content_block_start", index=self._index, content_block=_empty(block))
        return out + _event("content_block_delta", index=self._index, delta=_delta(block))

    def _stop(self) -> bytes:
        return b"" if self._index < 0 else _event("content_block_stop", index=self._index)

    def _end(self, frame: Frame) -> bytes:
        reason = {"stop_reason": _reason(frame, called=self._open == "tool_use")}
        return self._stop() + _event("message_delta", delta=reason, usage=_usage(frame)) + _event("message_stop")


def _event(kind: str, **members: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode({"type": kind, **members}))


def _blocks(message: Frame) -> list[Frame]:
    blocks: list[Frame] = []
    if message.get("thinking"):
        blocks.append({"type": "thinking", "thinking": message["thinking"]})
    if message["content"]:
        blocks.append({"type": "text", "text": message["content"]})
    for call in message.get("tool_calls", []):
        function = call["function"]
        blocks.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": function["arguments"]})
    return blocks


def _empty(block: Frame) -> Frame:
    return {**block, **_EMPTY[block["type"]]}


def _delta(block: Frame) -> Frame:
    if block["type"] == "tool_use":
        return {"type": "input_json_delta", "partial_json": orjson.dumps(block["input"]).decode()}
    return {"type": f"{block['type']}_delta", block["type"]: block[block["type"]]}


def _reason(frame: Frame, *, called: bool) -> str:
    return "tool_use" if called else {"length": "max_tokens"}.get(frame["done_reason"], "end_turn")


def _usage(frame: Frame) -> dict[str, int]:
    return {"input_tokens": frame.get("prompt_eval_count", 0), "output_tokens": frame.get("eval_count", 0)}


def _flat(role: str, content: Blocks) -> list[Message]:
    """Native messages of one message: one per block, a tool's result as the tool's own; Refusal 400 for others."""
    if content is None or isinstance(content, str):
        return [Message(role, content or "")]
    messages = []
    for block in content:
        match block.get("type"):
            case "text":
                messages.append(Message(role, str(block.get("text", ""))))
            case "image" | "thinking" | "tool_use":
                messages.append(Message(role, ""))
            case "tool_result":
                messages += [Message("tool", each.content) for each in _flat("tool", block.get("content"))]
            case other:
                raise Refusal(400, f"invalid content block type: {other}")
    return messages


def _ask(body: MessagesBody, think: bool | None) -> Ask:
    if not body.messages:
        raise Refusal(400, "messages is required")
    system = _flat("system", body.system) if body.system else []
    tools = [
        {"function": {"name": tool.get("name", ""), "parameters": tool.get("input_schema", {})}}
        for tool in body.tools or []
    ]
    return Ask(
        messages=system + [each for message in body.messages for each in _flat(message.role, message.content)],
        options={"num_predict": body.max_tokens, "stop": body.stop_sequences or []},
        tools=tools,
        think=think,
    )


class MessagesRoutes:
    """The handlers of `/v1/messages` over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> list[Route]:
        """The route table."""
        return [
            Route("/v1/messages", self.messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", self.count, methods=["POST"]),
        ]

    async def messages(self, request: Request) -> Response:
        """One message; streams only when asked."""
        body = await read(request, MessagesBody)
        model, name = find(self._engine, body.model), body.model or ""
        if not body.max_tokens or body.max_tokens < 1:
            raise Refusal(400, "max_tokens is required and must be positive")
        completing(model, name, "chat")
        wanted = (body.thinking or {}).get("type") == "enabled"
        ask = _ask(body, thinking(model, name, wanted or None) if wanted else False)
        message_id = f"msg_{seed_of(time.time_ns(), name):016x}"
        writer = MessagesWriter(name, message_id, sum(len(each.content) for each in ask.messages) // 4 or 1)
        frames = chat_frames(self._engine, model, name, plan(model, ask), None)
        return Answer(frames, merge_chat, writer, bool(body.stream))

    async def count(self, request: Request) -> Response:
        """The tokens of the prompt; nothing is generated."""
        body = await read(request, MessagesBody)
        find(self._engine, body.model)
        return Response(encode({"input_tokens": prompt_tokens(_ask(body, None))}), media_type=JSON)
