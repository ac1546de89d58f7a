"""The OpenAI dialect: its routes, request bodies, error and list shapes.

Every engine kind speaks it (Ollama too, under its own `/v1`). Must not know other dialects, services or transport.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from gateway.api.body import (
    Members,
    edited,
    prompts_in,
    read_count,
    read_flag,
    read_model,
    read_nested,
    read_object,
    read_text,
    require,
    require_messages,
    with_members,
)
from gateway.api.dialect import Access, Ask, Endpoint, Framing, Kind, public_message, standing
from gateway.api.model_info import ModelInfo
from gateway.api.prompt_size import prompt_bytes
from gateway.errors import BadRequest, BudgetSpent, GatewayError

CHOICES: Final = 128
"""Maximum answers per request (the API's own limit of `n`)."""

_CAPS: Final = frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"})
"""All keys that some engine reads as output limit; each is clamped. llama.cpp prefers its own `n_predict`."""

_MULTIPLIERS: Final = frozenset({"n", "best_of", "n_cmpl"})
"""Keys that make one request generate several answers; `n_cmpl` is llama.cpp's."""

_BATCHES: Final = frozenset({"prompt", "prompt_embeds"})
"""Keys that hold several prompts if they are arrays, each of which gets its own answer; vLLM reads both."""

_COUNTED: Final = _BATCHES | _MULTIPLIERS
"""A body without any of these keys gets one answer."""

_PRIORITY: Final = "priority"
"""vLLM's own priority of requests, if enabled: the smallest number goes first, and others are preempted for it."""

_GUARDED: Final = frozenset(
    {"model", "stream", "stream_options", "messages", "input", "user", "background", _PRIORITY}
    | _BATCHES
    | _CAPS
    | _MULTIPLIERS
)
_GUARDED_OPTIONS: Final = frozenset({"include_usage"})

_READS_MAX_TOKENS_ONLY: Final = frozenset({"ollama", "llamacpp"})
"""Engines whose older versions do not know `max_completion_tokens`: they get `max_tokens` too."""

_ZERO_IS_UNLIMITED: Final = frozenset({"ollama"})
"""Ollama applies the limit only if it is positive (its runners test `numPredict > 0`)."""

_INCLUDE: Final = b'{"include_usage":true}'

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_exceeded",
    501: "not_supported_error",
}
"""Status -> error type; other 4xx are `invalid_request_error`, 5xx `server_error`."""


class OpenAI:
    """OpenAI's API, as the official clients speak it."""

    name = "openai"
    framing = Framing.SSE
    id_field = b""

    def routes(self) -> Sequence[Endpoint]:
        """This dialect's rows of the route table."""
        rows = [
            self._row("chat/completions", Kind.CHAT, "chat"),
            self._row("completions", Kind.COMPLETION, "completions"),
            self._row("embeddings", Kind.EMBEDDING, "embeddings"),
            Responses()._row("responses", Kind.RESPONSES, "responses"),
            self._row("rerank", Kind.RERANK, "rerank", frozenset({"vllm", "llamacpp", "openai"})),
        ]
        for path, kind in (("/v1/models", Kind.MODELS), ("/v1/models/*", Kind.MODEL)):
            rows.append(Endpoint(method="GET", path=path, kind=kind, access=Access.KEY, dialect=self))
        return rows

    def _row(self, name: str, kind: Kind, scope: str, engines: frozenset[str] = frozenset()) -> Endpoint:
        path = f"/v1/{name}"
        return Endpoint(
            method="POST",
            path=path,
            kind=kind,
            access=Access.KEY,
            dialect=self,
            scope=scope,
            upstream=path.encode(),
            framing=self.framing,
            engines=engines,
        )

    def read(self, endpoint: Endpoint, body: bytes) -> Ask:
        """The view of a body. Raises BadRequest with a sentence that names the field."""
        members = read_object(body, _GUARDED)
        keys = _shared(_GUARDED.intersection(members))
        shape = _SHAPES[endpoint.upstream]
        shape.check(members)
        return Ask(
            model=read_model(members),
            stream="stream" in keys and bool(shape.limits) and read_flag(members, "stream", absent=False),
            max_tokens=None if keys.isdisjoint(_CAPS) else _limit(shape.limits, members, keys),
            usage_asked=not shape.asks_usage or ("stream_options" in keys and _usage_asked(members)),
            choices=_choices(shape, members, keys),
            input_bytes=prompt_bytes(body, members, shape.prompts),
            user=read_text(members, "user") if "user" in keys else "",
            keys=keys,
        )

    def edit(self, endpoint: Endpoint, body: bytes, ask: Ask, *, model: str, cap: int, engine: str) -> bytes:
        """The body for the engine: served model name, output cap (tokens), usage request, and no priority over others.
        All other bytes stay unchanged."""
        changes: dict[str, bytes] = {}
        if model != ask.model:
            changes["model"] = msgspec.json.encode(model)
        shape = _SHAPES[endpoint.upstream]
        if shape.limits:
            _cap(changes, shape.limits, body, ask, cap, engine)
        if ask.stream and not ask.usage_asked:
            changes["stream_options"] = _including_usage(body, ask)
        if _PRIORITY in ask.keys:
            changes[_PRIORITY] = b"0"  # the default of every request
        return edited(body, ask.keys, changes)

    def error(self, err: GatewayError, request_id: str) -> bytes:
        """`{"error": {...}}` with the members that official clients read, followed by ours."""
        return msgspec.json.encode({"error": _error_object(err, request_id)})

    def stream_error(self, err: GatewayError, request_id: str) -> bytes:
        """A `data:` frame: official clients raise its `error` and stop reading."""
        return b"data: %b\n\n" % msgspec.json.encode({"error": _late_error(err, request_id)})

    def models(self, models: Sequence[ModelInfo]) -> bytes:
        """The list of `GET /v1/models`."""
        return msgspec.json.encode({"object": "list", "data": [_model(model) for model in models]})

    def model(self, model: ModelInfo) -> bytes:
        """One entry, as `GET /v1/models/{id}` gives it."""
        return msgspec.json.encode(_model(model))


class Responses(OpenAI):
    """The same for the Responses API, whose streams are made of typed events."""

    def stream_error(self, err: GatewayError, request_id: str) -> bytes:
        """The event `response.failed`, which Codex reads; the SDKs raise on its `error`."""
        error = _late_error(err, request_id)
        response = {
            "id": f"resp_{request_id}",
            "object": "response",
            "status": "failed",
            "output": [],
            "error": {"code": error["code"], "message": error["message"]},
        }
        event = {"type": "response.failed", "sequence_number": 0, "response": response, "error": error}
        return b"event: response.failed\ndata: %b\n\n" % msgspec.json.encode(event)


_KEY_SETS: Final[dict[frozenset[str], frozenset[str]]] = {}
_MOST_KEY_SETS: Final = 1000


def _shared(keys: frozenset[str]) -> frozenset[str]:
    """One shared set for equal keys: bodies use few different combinations, and each set is large."""
    known = _KEY_SETS.get(keys)
    if known is None:
        known = keys
        if len(_KEY_SETS) < _MOST_KEY_SETS:
            _KEY_SETS[keys] = keys
    return known


def _check_completion(members: Members) -> None:
    require(members, "prompt", b'"[{', "a string or an array", needed="prompt_embeds" not in members)


def _check_embedding(members: Members) -> None:
    require(members, "input", b'"[', "a string or an array", needed="messages" not in members)


def _check_response(members: Members) -> None:
    require(members, "input", b'"[', "a string or an array", needed="prompt" not in members)
    # The engine would answer at once and generate in the background: without a slot, and with its tokens uncounted.
    if "background" in members and read_flag(members, "background", absent=False):
        raise BadRequest(
            "`background` is not supported: the answer must be read on the request's own connection", param="background"
        )


def _check_rerank(members: Members) -> None:
    require(members, "query", b'"[{', "a string")
    require(members, "documents", b"[{", "an array of documents", needed="texts" not in members)


class _Shape(NamedTuple):
    """The bodies of one route. `check` refuses a body without a prompt, `prompts` are the keys of its input.

    `limits` are the keys by which the API limits the output; the first one is added if all are absent. They are empty
    for routes that generate nothing. `asks_usage`: streams report usage only on request.
    """

    check: Callable[[Members], None]
    prompts: tuple[str, ...]
    limits: tuple[str, ...] = ()
    asks_usage: bool = False


_SHAPES: Final = {
    b"/v1/chat/completions": _Shape(
        require_messages,
        ("messages", "tools", "functions", "response_format"),
        ("max_tokens", "max_completion_tokens"),
        asks_usage=True,
    ),
    b"/v1/completions": _Shape(_check_completion, ("prompt", "suffix"), ("max_tokens",), asks_usage=True),
    b"/v1/embeddings": _Shape(_check_embedding, ("input", "messages")),
    b"/v1/responses": _Shape(_check_response, ("input", "instructions", "tools"), ("max_output_tokens",)),
    b"/v1/rerank": _Shape(_check_rerank, ("query", "documents", "texts")),
}
"""Shapes by the engine's path."""


def _limit(standard: tuple[str, ...], members: Members, keys: frozenset[str]) -> int | None:
    """The output limit that the body asks for: the highest value among all keys that some engine reads.

    None if none of the API's own keys is set (the cap is added then); negative if one of them means unlimited.
    """
    limit: int | None = None
    asked = False
    for key in keys & _CAPS:
        number = read_count(members, key)
        if number is None:
            continue
        if key in standard:
            asked = True
            if number < 0:
                raise BadRequest(f"`{key}` must not be negative", param=key)
        if number <= 0 or limit == -1:
            limit = -1
        elif limit is None or number > limit:
            limit = number
    return limit if asked else None


def _choices(shape: _Shape, members: Members, keys: frozenset[str]) -> int:
    """The number of answers the engine may generate: a completion may have several prompts, and several answers for
    each."""
    if keys.isdisjoint(_COUNTED):
        return 1
    prompts = 1
    if shape.limits and not keys.isdisjoint(_BATCHES):
        prompts = sum(prompts_in(members, key) for key in keys & _BATCHES)
    if keys.isdisjoint(_MULTIPLIERS):
        return prompts
    most = 1
    for key in keys & _MULTIPLIERS:
        number = read_count(members, key)
        if number is None:
            continue
        if not 1 <= number <= CHOICES:
            raise BadRequest(f"`{key}` must be between 1 and {CHOICES}", param=key)
        most = max(most, number)
    return most * prompts


def _usage_asked(members: Members) -> bool:
    options = read_nested(members, "stream_options", _GUARDED_OPTIONS)
    return read_flag(options, "include_usage", absent=False, parent="stream_options")


def _including_usage(body: bytes, ask: Ask) -> bytes:
    """The text of `stream_options` that asks for usage and keeps the client's other options."""
    if "stream_options" not in ask.keys:
        return _INCLUDE
    given = bytes(read_object(body, _GUARDED)["stream_options"])
    return _INCLUDE if given == b"null" else with_members(given, {"include_usage": b"true"})


def _cap(changes: dict[str, bytes], standard: tuple[str, ...], body: bytes, ask: Ask, cap: int, engine: str) -> None:
    """Clamp limits above the cap, and add the cap if there is no limit (A6)."""
    primary = standard[0]
    limit = ask.max_tokens
    fits = limit is not None and 0 < limit <= cap
    if fits and (engine not in _READS_MAX_TOKENS_ONLY or ask.keys.isdisjoint(standard[1:])):
        return
    if ask.keys.isdisjoint(_CAPS):
        changes[primary] = b"%d" % cap
        return
    members = read_object(body, _GUARDED)
    given = {key: number for key in _CAPS if (number := read_count(members, key)) is not None}
    least = 1 if engine in _ZERO_IS_UNLIMITED else 0
    for key, number in given.items():
        if not least <= number <= cap:
            changes[key] = b"%d" % cap
    said = [min(given[key], cap) if given[key] >= least else cap for key in standard if key in given]
    if not said:
        changes[primary] = b"%d" % cap
    elif primary not in given and engine in _READS_MAX_TOKENS_ONLY:
        changes[primary] = b"%d" % said[0]


def _error_object(err: GatewayError, request_id: str) -> dict[str, object]:
    fallback = "invalid_request_error" if err.status < 500 else "server_error"
    return {
        "message": public_message(err),
        "type": "insufficient_quota" if isinstance(err, BudgetSpent) else _TYPES.get(err.status, fallback),
        "param": err.param,
        "code": err.code,
        "request_id": request_id,
        **standing(err),
    }


def _late_error(err: GatewayError, request_id: str) -> dict[str, object]:
    """The error object for a stream, whose own status was sent before. The message begins with the status, as the SDKs
    format early errors: agents look there to decide whether to retry."""
    error = _error_object(err, request_id)
    return error | {"message": f"{err.status} {error['message']}"}


def _model(model: ModelInfo) -> dict[str, object]:
    """`max_model_len` is vLLM's and SGLang's member, from which agents take how long a conversation may get."""
    made = {"id": model.name, "object": "model", "created": model.created, "owned_by": model.owned_by}
    return made | {"max_model_len": model.context} if model.context else made
