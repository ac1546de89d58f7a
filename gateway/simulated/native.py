"""Ollama's own API, simulated: `/`, `/api/*`. Frames, fields and errors as ollama's server/routes.go gives them.

Owns: native request bodies, frames of chat and generate, model management routes (which refuse and are counted).
Must not know: the OpenAI surface, which translates the frames made here.
"""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gateway.simulated import text
from gateway.simulated.catalog import Model
from gateway.simulated.embedding import Computed, Embedding
from gateway.simulated.engine import End, Engine
from gateway.simulated.plan import Ask, Message, Piece, Plan, plan
from gateway.simulated.wire import JSON, NDJSON, Answer, Frame, Refusal, encode, missing, native_error

VERSION = "0.0.0-simulated"
_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Common(msgspec.Struct, kw_only=True):
    """Fields that every native generation shares; null means absent, unknown fields are skipped."""

    model: str | None = None
    stream: bool | None = None
    keep_alive: str | float | None = None
    options: dict[str, Any] | None = None
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None


class ChatMessage(msgspec.Struct):
    """One message of `/api/chat`."""

    role: str
    content: str | None = None


class ChatBody(Common):
    """Body of `/api/chat`."""

    messages: list[ChatMessage] | None = None
    tools: list[dict[str, Any]] | None = None


class GenerateBody(Common):
    """Body of `/api/generate`."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None


class EmbedBody(msgspec.Struct):
    """Body of `/api/embed` and, with `prompt`, of the older `/api/embeddings`."""

    model: str | None = None
    input: str | list[str] | None = None
    prompt: str | None = None
    dimensions: int | None = None
    keep_alive: str | float | None = None


class ShowBody(msgspec.Struct):
    """Body of `/api/show`; `name` is the older spelling of `model`."""

    model: str | None = None
    name: str | None = None


Body = TypeVar("Body")


async def read(request: Request, kind: type[Body]) -> Body:
    """Decode the body as `kind`; Refusal 400 where it is missing, no JSON, or of a wrong type."""
    raw = await request.body()
    if not raw.strip():
        raise Refusal(400, "missing request body")
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise Refusal(400, str(error)) from error


def seconds(keep_alive: str | float | None) -> float | None:
    """A keep_alive in seconds: a number, or Go's duration text ("5m", "1h30m"); Refusal 400 for other text."""
    if not isinstance(keep_alive, str):
        return keep_alive
    parts = _DURATION.findall(keep_alive)
    if not parts or _DURATION.sub("", keep_alive).strip("-"):
        raise Refusal(400, f'time: invalid duration "{keep_alive}"')
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return -abs(total) if keep_alive.startswith("-") else total


def find(engine: Engine, name: str | None) -> Model:
    """The installed model called `name`; Refusal 400 without a name, 404 for an unknown one."""
    if not name:
        raise Refusal(400, "model is required")
    model = engine.catalog.find(name)
    if model is None:
        raise missing(name)
    return model


def now() -> str:
    """The time as `created_at` has it (RFC 3339, UTC)."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def thinking(model: Model, name: str, think: bool | str | None) -> bool | None:
    """The `think` setting as a flag; Refusal 400 if it is wanted from a model that cannot."""
    wanted = think if isinstance(think, bool) or think is None else think not in ("", "none", "false")
    if wanted and not model.thinks:
        raise Refusal(400, f'"{name}" does not support thinking')
    return wanted


def completing(model: Model, name: str, what: str) -> None:
    """Refusal 400 if `model` only embeds; `what` is chat or generate."""
    if model.embeds_only:
        raise Refusal(400, f'"{name}" does not support {what}')


async def chat_frames(
    engine: Engine, model: Model, name: str, said: Plan, keep_alive: float | None
) -> AsyncIterator[Frame]:
    """The frames of one `/api/chat` stream, the final one last; `name` is echoed as the client wrote it."""
    async for event in engine.generate(model, said, keep_alive):
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        if isinstance(event, End):
            yield {"model": name, "created_at": now(), "message": message, **_final(event)}
        else:
            yield {"model": name, "created_at": now(), "message": message | _said(event), "done": False}


def _said(piece: Piece) -> dict[str, Any]:
    if piece.kind == "tool":
        return {"tool_calls": [piece.tool]}
    return {piece.kind: piece.text}


async def generate_frames(
    engine: Engine, model: Model, name: str, said: Plan, keep_alive: float | None
) -> AsyncIterator[Frame]:
    """The frames of one `/api/generate` stream, the final one last, with `context`."""
    spoken: list[str] = []
    async for event in engine.generate(model, said, keep_alive):
        frame: Frame = {"model": name, "created_at": now(), "response": ""}
        if isinstance(event, End):
            context = [text.seed_of(each) % 128_000 for each in spoken]
            yield {**frame, **_final(event, context=context)}
        else:
            spoken.append(event.text)
            extra = {"thinking": event.text} if event.kind == "thinking" else {"response": event.text}
            yield {**frame, **extra, "done": False}


def _final(end: End, **between: Any) -> Frame:
    timing = end.timing
    counts = {
        "total_duration": timing.total,
        "load_duration": timing.load,
        "prompt_eval_count": timing.prompt_tokens,
        "prompt_eval_duration": timing.prompt_eval,
        "eval_count": timing.tokens,
        "eval_duration": timing.eval,
    }
    # Go's omitempty: what is zero or empty is not written.
    return {"done": True, "done_reason": end.done_reason} | {k: v for k, v in (between | counts).items() if v}


def merge_chat(frames: list[Frame]) -> Frame:
    """One non-streaming chat answer from all frames of the stream."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for part in (frame["message"] for frame in frames):
        message["content"] += part["content"]
        if "thinking" in part:
            message["thinking"] = message.get("thinking", "") + part["thinking"]
        if "tool_calls" in part:
            message.setdefault("tool_calls", []).extend(part["tool_calls"])
    return {**frames[-1], "message": message}


def merge_generate(frames: list[Frame]) -> Frame:
    """One non-streaming generate answer from all frames of the stream."""
    merged = {**frames[-1], "response": "".join(frame["response"] for frame in frames)}
    thought = "".join(frame.get("thinking", "") for frame in frames)
    return {**merged, "thinking": thought} if thought else merged


class NativeWriter:
    """Frames as they are: NDJSON lines, or one JSON object."""

    def stream_type(self) -> str:
        """NDJSON."""
        return NDJSON

    def frame(self, frame: Frame) -> bytes:
        """One line."""
        return encode(frame) + b"\n"

    def whole(self, frame: Frame) -> bytes:
        """The merged object."""
        return encode(frame)

    def error(self, refusal: Refusal) -> Response:
        """Error as a string."""
        return native_error(refusal)


class NativeRoutes:
    """The handlers of `/` and `/api/*` over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> list[Route]:
        """The route table."""
        return [
            Route("/", self.root, methods=["GET"]),
            Route("/api/version", self.version, methods=["GET"]),
            Route("/api/tags", self.tags, methods=["GET"]),
            Route("/api/ps", self.ps, methods=["GET"]),
            Route("/api/show", self.show, methods=["POST"]),
            Route("/api/chat", self.chat, methods=["POST"]),
            Route("/api/generate", self.generate, methods=["POST"]),
            Route("/api/embed", self.embed, methods=["POST"]),
            Route("/api/embeddings", self.embeddings, methods=["POST"]),
            *(Route(f"/api/{verb}", self.mutate, methods=["POST"]) for verb in ("pull", "push", "create", "copy")),
            Route("/api/delete", self.mutate, methods=["DELETE"]),
            Route("/api/blobs/{digest}", self.mutate, methods=["HEAD", "POST"]),
        ]

    async def root(self, request: Request) -> Response:
        """The liveness text."""
        return PlainTextResponse("Ollama is running")

    async def version(self, request: Request) -> Response:
        """A version no real Ollama has."""
        return _json({"version": VERSION})

    async def tags(self, request: Request) -> Response:
        """Installed models."""
        return _json({"models": [model.listed() for model in self._engine.catalog.all()]})

    async def ps(self, request: Request) -> Response:
        """Loaded models."""
        return _json({"models": [model.running(_expiry(ends)) for model, ends in self._engine.loaded()]})

    async def show(self, request: Request) -> Response:
        """Facts of one model."""
        body = await read(request, ShowBody)
        name = body.model or body.name
        if not name:
            raise Refusal(400, "model is required")
        model = self._engine.catalog.find(name)
        if model is None:
            raise Refusal(404, f"model '{name}' not found")
        return _json(model.shown())

    async def chat(self, request: Request) -> Response:
        """Chat, streaming unless `stream` is false; no messages means load, or unload with keep_alive 0."""
        body = await read(request, ChatBody)
        model, name = find(self._engine, body.model), body.model or ""
        keep_alive = seconds(body.keep_alive)
        completing(model, name, "chat")
        if not body.messages:
            reason = await self._load_only(model, keep_alive)
            empty = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": reason}
            return _json({"model": name, "created_at": now(), **empty})
        ask = Ask(
            messages=[Message(each.role, each.content or "") for each in body.messages],
            options=body.options or {},
            tools=body.tools or [],
            format=body.format,
            think=thinking(model, name, body.think),
        )
        frames = chat_frames(self._engine, model, name, plan(model, ask), keep_alive)
        return Answer(frames, merge_chat, NativeWriter(), body.stream is not False)

    async def generate(self, request: Request) -> Response:
        """Completion, streaming unless `stream` is false; no prompt means load, or unload with keep_alive 0."""
        body = await read(request, GenerateBody)
        model, name = find(self._engine, body.model), body.model or ""
        keep_alive = seconds(body.keep_alive)
        completing(model, name, "generate")
        if not body.prompt:
            reason = await self._load_only(model, keep_alive)
            return _json({"model": name, "created_at": now(), "response": "", "done": True, "done_reason": reason})
        system = [Message("system", body.system)] if body.system else []
        ask = Ask(
            messages=[*system, Message("user", body.prompt)],
            options=body.options or {},
            format=body.format,
            think=thinking(model, name, body.think),
            raw=bool(body.raw),
        )
        frames = generate_frames(self._engine, model, name, plan(model, ask), keep_alive)
        return Answer(frames, merge_generate, NativeWriter(), body.stream is not False)

    async def embed(self, request: Request) -> Response:
        """Vectors of one text or a list of texts."""
        body = await read(request, EmbedBody)
        model = find(self._engine, body.model)
        if body.input is None:
            raise Refusal(400, "invalid input type")
        inputs = [body.input] if isinstance(body.input, str) else body.input
        made = Embedding(self._engine, model, inputs, body.dimensions, seconds(body.keep_alive))
        return Computed(made, lambda: _embed_body(made, body.model or ""), native_error)

    async def embeddings(self, request: Request) -> Response:
        """The older route: one `prompt`, one vector, no counts."""
        body = await read(request, EmbedBody)
        model = find(self._engine, body.model)
        inputs = [body.prompt] if body.prompt else []
        made = Embedding(self._engine, model, inputs, None, seconds(body.keep_alive))
        return Computed(made, lambda: encode({"embedding": made.vectors[0] if made.vectors else []}), native_error)

    async def mutate(self, request: Request) -> Response:
        """Model management: refused, and counted so that a test can prove that nobody came this far."""
        self._engine.tally.note("mutation")
        raise Refusal(501, "the simulated Ollama cannot change its models")

    async def _load_only(self, model: Model, keep_alive: float | None) -> str:
        if keep_alive == 0:
            self._engine.unload(model)
            return "unload"
        await self._engine.load(model, keep_alive)
        return "load"


def _embed_body(made: Embedding, name: str) -> bytes:
    counts = {
        "total_duration": made.total,
        "load_duration": made.load,
        "prompt_eval_count": made.prompt_tokens,
    }
    return encode({"model": name, "embeddings": made.vectors} | {k: v for k, v in counts.items() if v})


def _json(value: Any) -> Response:
    return Response(encode(value), media_type=JSON)


def _expiry(ends: float) -> str:
    # Go writes a never-ending keep_alive as a time some 292 years ahead; the year is all that clients look at.
    when = datetime(2318, 1, 1, tzinfo=UTC) if ends == float("inf") else datetime.fromtimestamp(ends, UTC)
    return when.isoformat()
