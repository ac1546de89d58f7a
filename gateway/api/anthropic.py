"""The Anthropic dialect: the Messages API with its request bodies, error and list shapes.

Some engines speak it beside their own API. Must not know other dialects, services or transport.
"""

from collections.abc import Sequence
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
    require_messages,
)
from gateway.api.dialect import Access, Ask, Endpoint, Framing, Kind, public_message, rfc3339, standing
from gateway.api.model_info import ModelInfo
from gateway.api.prompt_size import prompt_bytes
from gateway.errors import BadRequest, GatewayError

VERSION_FIELD: Final = b"anthropic-version"
"""The request field that every client of this API sends, and no client of another API."""

_CAP: Final = "max_tokens"
_GUARDED: Final = frozenset({"model", "stream", "messages", "metadata", _CAP})
_GUARDED_METADATA: Final = frozenset({"user_id"})
_PROMPT: Final = ("system", "messages", "tools")

_ENGINES: Final = frozenset({"ollama", "vllm", "llamacpp"})

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Status -> error type (Anthropic's list of errors); other 4xx are `invalid_request_error`, 5xx `api_error`."""


class Anthropic:
    """Anthropic's Messages API, as the official clients speak it."""

    name = "anthropic"
    framing = Framing.SSE
    id_field = b"request-id"

    def routes(self) -> Sequence[Endpoint]:
        """This dialect's rows of the route table."""
        return [
            self._row("/v1/messages", Kind.CHAT),
            self._row("/v1/messages/count_tokens", Kind.COUNT),
        ]

    def _row(self, path: str, kind: Kind) -> Endpoint:
        return Endpoint(
            method="POST",
            path=path,
            kind=kind,
            access=Access.KEY,
            dialect=self,
            scope="messages",
            upstream=path.encode(),
            framing=self.framing,
            engines=_ENGINES,
            passed=(VERSION_FIELD, b"anthropic-beta"),
            opens_with_usage=kind is Kind.CHAT,
        )

    def read(self, endpoint: Endpoint, body: bytes) -> Ask:
        """The view of a body. Raises BadRequest with a sentence that names the field."""
        members = read_object(body, _GUARDED)
        keys = _GUARDED.intersection(members)
        require_messages(members)
        generates = endpoint.kind is Kind.CHAT
        return Ask(
            model=read_model(members),
            stream=generates and "stream" in keys and read_flag(members, "stream", absent=False),
            max_tokens=_limit(members) if generates and _CAP in keys else None,
            usage_asked=True,  # every stream of this API includes it
            input_bytes=prompt_bytes(body, members, _PROMPT) if generates else 0,  # counting tokens needs no prefill
            user=_user(members) if "metadata" in keys else "",
            keys=keys,
        )

    def edit(self, endpoint: Endpoint, body: bytes, ask: Ask, *, model: str, cap: int, engine: str) -> bytes:
        """The body for the engine: served model name and output cap (tokens). All other bytes stay unchanged.

        `engine` is not used: every engine reads only the API's own keys.
        """
        changes: dict[str, bytes] = {}
        if model != ask.model:
            changes["model"] = msgspec.json.encode(model)
        if endpoint.kind is Kind.CHAT and (ask.max_tokens is None or ask.max_tokens > cap):
            changes[_CAP] = b"%d" % cap
        return edited(body, ask.keys, changes)

    def error(self, err: GatewayError, request_id: str) -> bytes:
        """`{"type":"error","error":{...},"request_id":...}`, plus our own code, which clients ignore."""
        fallback = "invalid_request_error" if err.status < 500 else "api_error"
        detail: dict[str, object] = {
            "type": _TYPES.get(err.status, fallback),
            "message": public_message(err),
            "code": err.code,
            **standing(err),
        }
        return msgspec.json.encode({"type": "error", "error": detail, "request_id": request_id})

    def stream_error(self, err: GatewayError, request_id: str) -> bytes:
        """An `error` event: official clients raise it and stop reading."""
        return b"event: error\ndata: %b\n\n" % self.error(err, request_id)

    def models(self, models: Sequence[ModelInfo]) -> bytes:
        """The list of `GET /v1/models` in this API's shape, all on one page."""
        data = [_model(model) for model in models]
        first, last = (models[0].name, models[-1].name) if models else (None, None)
        return msgspec.json.encode({"data": data, "has_more": False, "first_id": first, "last_id": last})

    def model(self, model: ModelInfo) -> bytes:
        """One entry, as `GET /v1/models/{id}` gives it."""
        return msgspec.json.encode(_model(model))


def _limit(members: Members) -> int | None:
    """`max_tokens`. Zero and negative numbers are refused, as by the API itself: Ollama would take them as
    unlimited."""
    number = read_count(members, _CAP)
    if number is not None and number < 1:
        raise BadRequest(f"`{_CAP}` must be 1 or more", param=_CAP)
    return number


def _user(members: Members) -> str:
    return read_text(read_nested(members, "metadata", _GUARDED_METADATA), "user_id")


def _model(model: ModelInfo) -> dict[str, object]:
    return {"type": "model", "id": model.name, "display_name": model.name, "created_at": rfc3339(model.created)}
