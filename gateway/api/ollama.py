"""The Ollama dialect: its native routes, request bodies, error and list shapes.

Only Ollama speaks it. Routes that change an engine are rows too, refused for every key and method (A2). Must not know
other dialects, services or transport.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import msgspec

from gateway.api.body import (
    Members,
    edited,
    read_count,
    read_flag,
    read_model,
    read_nested,
    read_object,
    read_text,
    require,
    with_members,
)
from gateway.api.dialect import ANY_METHOD, Access, Ask, Endpoint, Framing, Kind, public_message, rfc3339, standing
from gateway.api.model_info import ModelInfo
from gateway.api.prompt_size import prompt_bytes
from gateway.errors import GatewayError

_SCOPE: Final = "ollama"
_ENGINES: Final = frozenset({"ollama"})

_METERED: Final = {
    "/api/chat": Kind.CHAT,
    "/api/generate": Kind.COMPLETION,
    "/api/embed": Kind.EMBEDDING,
    "/api/embeddings": Kind.EMBEDDING,
    "/api/show": Kind.SHOW,
}

_BLOCKED: Final = (
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/blobs/*",
    "/api/me",
    "/api/signout",
    "/api/user/*",
    "/api/experimental/*",
)

_KEEP_ALIVE: Final = "keep_alive"
_GUARDED: Final = frozenset({"model", "name", "stream", "options", "messages", "prompt", "input", _KEEP_ALIVE})
_GUARDED_OPTIONS: Final = frozenset({"num_predict"})
_GENERATES: Final = frozenset({b"/api/chat", b"/api/generate"})
"""Engine paths that generate text: they stream by default, and have an output limit."""

_PROMPTS: Final = {
    b"/api/chat": ("messages", "tools", "format"),
    b"/api/generate": ("prompt", "suffix", "system", "template", "context", "format", "images"),
    b"/api/embed": ("input",),
    b"/api/embeddings": ("prompt",),
}

_TAG_FIELDS: Final = ("modified_at", "size", "digest", "details", "capabilities")
_RUNNING_FIELDS: Final = ("size", "digest", "details", "expires_at", "size_vram", "context_length")
"""Members that list entries may have. Others of Ollama's (`remote_host`, ...) name addresses, which must not be shown
(A8)."""


class Ollama:
    """Ollama's own API, as its command line and official clients speak it."""

    name = "ollama"
    framing = Framing.NDJSON
    id_field = b""

    def routes(self) -> Sequence[Endpoint]:
        """This dialect's rows of the route table."""
        rows = [self._row("POST", path, kind, upstream=path.encode()) for path, kind in _METERED.items()]
        rows += [
            self._row("GET", "/api/tags", Kind.MODELS),
            self._row("GET", "/api/ps", Kind.RUNNING),
            self._row("GET", "/api/version", Kind.LOCAL, local="version"),
            # Clients ask for it without a key, to see whether the server is there; the answer reveals nothing else.
            self._row("GET", "/", Kind.LOCAL, local="root", access=Access.PUBLIC),
        ]
        rows += [self._row(ANY_METHOD, path, Kind.BLOCKED, access=Access.NEVER) for path in _BLOCKED]
        return rows

    def _row(
        self,
        method: str,
        path: str,
        kind: Kind,
        *,
        access: Access = Access.KEY,
        upstream: bytes = b"",
        local: str = "",
    ) -> Endpoint:
        return Endpoint(
            method=method,
            path=path,
            kind=kind,
            access=access,
            dialect=self,
            scope=_SCOPE if access is Access.KEY else "",
            upstream=upstream,
            framing=self.framing,
            local=local,
            engines=_ENGINES if upstream else frozenset(),
        )

    def read(self, endpoint: Endpoint, body: bytes) -> Ask:
        """The view of a body. Raises BadRequest with a sentence that names the field."""
        members = read_object(body, _GUARDED)
        keys = _GUARDED.intersection(members)
        path = endpoint.upstream
        generates = path in _GENERATES
        _check_prompt(members, keys)
        # `/api/show` reads the older `name` if `model` is absent or empty.
        old_name = "name" in keys and endpoint.kind is Kind.SHOW and not read_text(members, "model")
        return Ask(
            model=read_model(members, "name" if old_name else "model"),
            stream=generates and read_flag(members, "stream", absent=True),
            max_tokens=_limit(members) if generates and "options" in keys else None,
            input_bytes=0 if endpoint.kind is Kind.SHOW else prompt_bytes(body, members, _PROMPTS[path]),
            keys=keys,
        )

    def edit(self, endpoint: Endpoint, body: bytes, ask: Ask, *, model: str, cap: int, engine: str) -> bytes:
        """The body for the engine: served model name, output cap (tokens), and `keep_alive` unset, because one client
        could otherwise unload the model for everybody. All other bytes stay unchanged.

        `engine` is not used: only Ollama speaks this dialect.
        """
        changes: dict[str, bytes] = {}
        if model != ask.model:
            changes["model"] = msgspec.json.encode(model)
        fits = ask.max_tokens is not None and 0 < ask.max_tokens <= cap
        if not fits and endpoint.upstream in _GENERATES:
            changes["options"] = _capped_options(body, ask, cap)
        if _KEEP_ALIVE in ask.keys:
            changes[_KEEP_ALIVE] = b"null"  # as if absent: the engine's own setting applies
        return edited(body, ask.keys, changes)

    def error(self, err: GatewayError, request_id: str) -> bytes:
        """`{"error": "text"}` as in Ollama, plus code and request id, which its clients ignore."""
        detail: dict[str, object] = {"error": public_message(err), "code": err.code, "request_id": request_id}
        return msgspec.json.encode(detail | standing(err))

    def stream_error(self, err: GatewayError, request_id: str) -> bytes:
        """A last line with `error` and without `done`, as Ollama itself sends in the middle of a stream."""
        return self.error(err, request_id) + b"\n"

    def models(self, models: Sequence[ModelInfo]) -> bytes:
        """The list of `GET /api/tags`."""
        return msgspec.json.encode({"models": [_tag(model) for model in models]})

    def model(self, model: ModelInfo) -> bytes:
        """One entry of the list; the API itself has no route for it."""
        return msgspec.json.encode(_tag(model))


def running_list(models: Sequence[ModelInfo]) -> bytes:
    """The list of `GET /api/ps`; no other API has one."""
    return msgspec.json.encode({"models": [_running(model) for model in models]})


def _check_prompt(members: Members, keys: frozenset[str]) -> None:
    """Checks types only: in Ollama a request without a prompt just loads the model."""
    if "messages" in keys:
        require(members, "messages", b"[", "an array of messages", needed=False)
    if "prompt" in keys:
        require(members, "prompt", b'"', "a string", needed=False)
    if "input" in keys:
        require(members, "input", b'"[', "a string or an array", needed=False)


def _limit(members: Members) -> int | None:
    """`options.num_predict`; -1 for every value that Ollama treats as unlimited (its runners test `numPredict > 0`)."""
    number = read_count(read_nested(members, "options", _GUARDED_OPTIONS), "num_predict", "options")
    return -1 if number is not None and number <= 0 else number


def _capped_options(body: bytes, ask: Ask, cap: int) -> bytes:
    text = b"%d" % cap
    given = bytes(read_object(body, _GUARDED)["options"]) if "options" in ask.keys else b"null"
    return b'{"num_predict":%b}' % text if given == b"null" else with_members(given, {"num_predict": text})


def _named(model: ModelInfo) -> dict[str, object]:
    return {"name": model.name, "model": model.name}


def _digest(model: ModelInfo) -> str:
    """The engine's digest. If it has none, a hash of the name: Ollama's command line takes the first twelve characters
    of it."""
    return model.digest or sha256(model.name.encode()).hexdigest()


def _tag(model: ModelInfo) -> dict[str, object]:
    own = {
        "modified_at": rfc3339(model.created),
        "size": model.size,
        "digest": _digest(model),
        "details": {},
    }
    return _named(model) | own | _pass(model.detail, _TAG_FIELDS)


def _running(model: ModelInfo) -> dict[str, object]:
    own = {"size": model.size, "digest": _digest(model), "details": {}}
    return _named(model) | own | _pass(model.detail, ("digest", "details")) | _pass(model.running, _RUNNING_FIELDS)


def _pass(record: dict[str, object], fields: tuple[str, ...]) -> dict[str, object]:
    return {field: record[field] for field in fields if field in record}
