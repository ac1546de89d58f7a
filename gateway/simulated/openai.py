"""Ollama's OpenAI-compatible surface, simulated: `/v1/*`, made from native frames as ollama's middleware makes it.

Owns: OpenAI request bodies as Ollama reads them (unknown fields, `max_completion_tokens` among them, are ignored),
chunks, usage, list and error bodies.
Must not know: slots and pace.
"""

import base64
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.simulated.embedding import Computed, Embedding
from gateway.simulated.engine import Engine
from gateway.simulated.native import (
    chat_frames,
    completing,
    find,
    generate_frames,
    merge_chat,
    merge_generate,
    read,
    thinking,
)
from gateway.simulated.plan import Ask, Message, plan
from gateway.simulated.text import seed_of
from gateway.simulated.wire import SSE, Answer, Frame, Refusal, encode, openai_error


class StreamOptions(msgspec.Struct):
    """`stream_options`."""

    include_usage: bool | None = None


class Common(msgspec.Struct, kw_only=True):
    """Fields of both completion routes; null means absent, unknown fields are skipped."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None


class ChatMessage(msgspec.Struct):
    """One message: text, a list of parts, or null beside tool calls."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatBody(Common):
    """Body of `/v1/chat/completions`."""

    messages: list[ChatMessage] | None = None
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None


class CompletionBody(Common):
    """Body of `/v1/completions`: Ollama takes one text, no lists."""

    prompt: str | None = None


class EmbeddingBody(msgspec.Struct):
    """Body of `/v1/embeddings`."""

    model: str | None = None
    input: str | list[str] | None = None
    dimensions: int | None = None
    encoding_format: str | None = None


class _SseWriter:
    """What both completion writers share; `head` is the object, id and creation time of all chunks."""

    def __init__(self, name: str, answer_id: str, include_usage: bool) -> None:
        self._name = name
        self._id = answer_id
        self._include_usage = include_usage
        self._created = int(time.time())

    def stream_type(self) -> str:
        """Server-sent events."""
        return SSE

    def error(self, refusal: Refusal) -> Response:
        """Error as an object."""
        return openai_error(refusal)

    def _head(self, kind: str) -> Frame:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._name,
            "system_fingerprint": "fp_ollama",
        }


class ChatWriter(_SseWriter):
    """Native chat frames as chat completion chunks, or one completion."""

    _first = True
    _called = False

    def frame(self, frame: Frame) -> bytes:
        """The frame's chunk; after the final one the usage chunk, if asked for, and `[DONE]`."""
        message = frame["message"]
        delta: Frame = {"role": "assistant"} if self._first else {}
        delta |= {"content": message["content"], **_reasoning(message)}
        if "tool_calls" in message:
            self._called = True
            delta["tool_calls"] = _calls(message["tool_calls"])
        self._first = False
        head = self._head("chat.completion.chunk")
        choice = {"index": 0, "delta": delta, "finish_reason": self._finish(frame)}
        out = _event({**head, "choices": [choice]})
        if frame["done"]:
            if self._include_usage:
                out += _event({**head, "choices": [], "usage": _usage(frame)})
            out += b"data: [DONE]\n\n"
        return out

    def whole(self, frame: Frame) -> bytes:
        """The chat completion, ended by a newline."""
        message = frame["message"]
        said = {"role": "assistant", "content": message["content"], **_reasoning(message)}
        if "tool_calls" in message:
            self._called = True
            said["tool_calls"] = _calls(message["tool_calls"])
        choice = {"index": 0, "message": said, "finish_reason": self._finish(frame)}
        return encode({**self._head("chat.completion"), "choices": [choice], "usage": _usage(frame)}) + b"\n"

    def _finish(self, frame: Frame) -> str | None:
        if not frame["done"]:
            return None
        return "tool_calls" if self._called else str(frame["done_reason"])


class CompletionWriter(_SseWriter):
    """Native generate frames as text completion chunks, or one completion."""

    def frame(self, frame: Frame) -> bytes:
        """As ChatWriter, but with include_usage each chunk carries a zero usage: that is what Ollama sends here."""
        head = self._head("text_completion")
        zero = {"usage": _usage({})} if self._include_usage else {}
        out = _event({**head, "choices": [_text_choice(frame)], **zero})
        if frame["done"]:
            if self._include_usage:
                out += _event({**head, "choices": [], "usage": _usage(frame)})
            out += b"data: [DONE]\n\n"
        return out

    def whole(self, frame: Frame) -> bytes:
        """The completion, ended by a newline."""
        head = self._head("text_completion")
        return encode({**head, "choices": [_text_choice(frame)], "usage": _usage(frame)}) + b"\n"


def _text_choice(frame: Frame) -> Frame:
    return {"text": frame["response"], "index": 0, "finish_reason": frame.get("done_reason")}


def _event(chunk: Frame) -> bytes:
    return b"data: " + encode(chunk) + b"\n\n"


def _usage(frame: Frame) -> dict[str, int]:
    prompt, completion = frame.get("prompt_eval_count", 0), frame.get("eval_count", 0)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _reasoning(message: Frame) -> Frame:
    return {"reasoning": message["thinking"]} if message.get("thinking") else {}


def _calls(native: list[Frame]) -> list[Frame]:
    return [
        {
            "id": call["id"],
            "index": call["function"]["index"],
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": orjson.dumps(call["function"]["arguments"]).decode(),
            },
        }
        for call in native
    ]


def _flat(message: ChatMessage) -> list[Message]:
    """Native messages of one OpenAI message: one per text part; Refusal 400 as Ollama words it."""
    if isinstance(message.content, str):
        return [Message(message.role, message.content)]
    if message.content is None:
        if message.tool_calls is None:
            raise Refusal(400, "invalid message content type: <nil>")
        return [Message(message.role, "")]
    parts = []
    for part in message.content:
        if part.get("type") not in ("text", "image_url") or not isinstance(part.get("text", ""), str):
            raise Refusal(400, "invalid message format")
        parts.append(Message(message.role, part.get("text", "")))
    return parts


def _options(body: Common) -> dict[str, Any]:
    options = {"num_predict": body.max_tokens, "seed": body.seed, "stop": body.stop}
    return {name: value for name, value in options.items() if value is not None}


def _format(response_format: dict[str, Any] | None) -> str | dict[str, Any] | None:
    asked = response_format or {}
    if asked.get("type") == "json_object":
        return "json"
    if asked.get("type") == "json_schema":
        schema = (asked.get("json_schema") or {}).get("schema")
        return schema if isinstance(schema, dict) else "json"
    return None


class OpenAIRoutes:
    """The handlers of `/v1/*` over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> list[Route]:
        """The route table."""
        return [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model:path}", self.model, methods=["GET"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
        ]

    async def models(self, request: Request) -> Response:
        """Installed models."""
        data = [model.openai(model.name) for model in self._engine.catalog.all()]
        return _json({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """One model, under the id the client used."""
        name = request.path_params["model"]
        model = self._engine.catalog.find(name)
        if model is None:
            raise Refusal(404, f"model '{name}' not found")
        return _json(model.openai(name))

    async def chat(self, request: Request) -> Response:
        """Chat completion; streams only when asked."""
        body = await read(request, ChatBody)
        if not body.messages:
            raise Refusal(400, "[] is too short - 'messages'")
        messages = [part for message in body.messages for part in _flat(message)]
        model, name = find(self._engine, body.model), body.model or ""
        completing(model, name, "chat")
        ask = Ask(
            messages=messages,
            options=_options(body),
            tools=body.tools or [],
            format=_format(body.response_format),
            think=thinking(model, name, body.reasoning_effort),
        )
        frames = chat_frames(self._engine, model, name, plan(model, ask), None)
        writer = ChatWriter(name, _id("chatcmpl", ask), _wants_usage(body))
        return Answer(frames, merge_chat, writer, bool(body.stream))

    async def completions(self, request: Request) -> Response:
        """Text completion; streams only when asked."""
        body = await read(request, CompletionBody)
        model, name = find(self._engine, body.model), body.model or ""
        completing(model, name, "generate")
        ask = Ask(messages=[Message("user", body.prompt or "")], options=_options(body), think=False)
        frames: AsyncIterator[Frame] = generate_frames(self._engine, model, name, plan(model, ask), None)
        writer = CompletionWriter(name, _id("cmpl", ask), _wants_usage(body))
        return Answer(frames, merge_generate, writer, bool(body.stream))

    async def embeddings(self, request: Request) -> Response:
        """Vectors as numbers, or base64 of little-endian 32-bit floats."""
        body = await read(request, EmbeddingBody)
        wanted = (body.encoding_format or "float").lower()
        if wanted not in ("float", "base64"):
            message = f"Invalid value for 'encoding_format' = {body.encoding_format}."
            raise Refusal(400, f"{message} Supported values: ['float', 'base64'].")
        if body.input is None or body.input == []:
            raise Refusal(400, "invalid input")
        model, name = find(self._engine, body.model), body.model or ""
        inputs = [body.input] if isinstance(body.input, str) else body.input
        made = Embedding(self._engine, model, inputs, body.dimensions, None)
        return Computed(made, lambda: _embedding_list(made, name, wanted), openai_error)


def _wants_usage(body: Common) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


def _id(prefix: str, ask: Ask) -> str:
    return f"{prefix}-{seed_of(time.time_ns(), ask.messages[-1].content) % 1000}"


def _embedding_list(made: Embedding, name: str, encoding: str) -> bytes:
    data = [
        {"object": "embedding", "embedding": _packed(vector) if encoding == "base64" else vector, "index": index}
        for index, vector in enumerate(made.vectors)
    ]
    usage = {"prompt_tokens": made.prompt_tokens, "total_tokens": made.prompt_tokens}
    return encode({"object": "list", "data": data, "model": name, "usage": usage}) + b"\n"


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _json(value: Any) -> Response:
    return Response(encode(value) + b"\n", media_type="application/json")
