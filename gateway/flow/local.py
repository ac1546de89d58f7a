"""Answers that need no engine: model lists, health, version, own queue, own usage, playground.

Each is a function (exchange, runtime) -> (status, media type, body); those that must wait are coroutines. Must not know
the scheduler's policy.
"""

from collections.abc import Awaitable, Callable

import msgspec

from gateway import __version__
from gateway.api.dialect import Kind
from gateway.api.model_info import ModelInfo
from gateway.api.ollama import running_list
from gateway.api.routes import tail
from gateway.errors import AuditUnavailable, ModelUnavailable, NotFound
from gateway.flow import fields
from gateway.flow.exchange import Exchange, Runtime
from gateway.flow.playground import page

Answer = tuple[int, bytes, bytes]
TEXT = b"text/plain; charset=utf-8"
HTML = b"text/html; charset=utf-8"


def respond(x: Exchange, rt: Runtime) -> None:
    """Answer a local endpoint. Raises ModelUnavailable, NotFound."""
    kind = x.endpoint.kind
    answer = LOCALS[x.endpoint.local] if kind is Kind.LOCAL else LISTS[kind]
    _send(x, rt, answer(x, rt))


async def respond_later(x: Exchange, rt: Runtime) -> None:
    """Answer an endpoint listed in WAITING. Raises AuditUnavailable."""
    _send(x, rt, await WAITING[x.endpoint.local](x, rt))


def _send(x: Exchange, rt: Runtime, answer: Answer) -> None:
    status, media_type, body = answer
    x.status = status
    extra = x.extra
    if x.endpoint.local == "playground":
        extra += b"Content-Security-Policy: %b\r\n" % page()[1]
    elif x.endpoint.local == "preflight":
        extra += rt.cors.preflight(x.head) or b""
    x.connection.respond(status, fields.answer_fields(media_type, x.id, extra), body)


def usable(x: Exchange, rt: Runtime) -> list[ModelInfo]:
    """The models that this key may use and discovery sees now, and the aliases and categories that lead to them (A8,
    A9, K8)."""
    models = [model for model in rt.backends.models() if x.principal.may_use(model.name)]
    if rt.names.some:
        known = {model.name for model in models} | {model.name.removesuffix(":latest") for model in models}
        models += rt.names.listed(known.__contains__)
    return models


def _models(x: Exchange, rt: Runtime) -> Answer:
    return 200, fields.JSON, rt.routes.listing(x.endpoint, x.head.headers).models(usable(x, rt))


def _model(x: Exchange, rt: Runtime) -> Answer:
    name = tail(x.endpoint, x.head.path)
    for model in usable(x, rt):
        if model.name == name or model.name == f"{name}:latest":
            return 200, fields.JSON, rt.routes.listing(x.endpoint, x.head.headers).model(model)
    raise ModelUnavailable()


def _running(x: Exchange, rt: Runtime) -> Answer:
    return 200, fields.JSON, running_list([model for model in usable(x, rt) if model.loaded])


def _root(x: Exchange, rt: Runtime) -> Answer:
    return 200, TEXT, b"Ollama is running"


def _version(x: Exchange, rt: Runtime) -> Answer:
    """The version of the first Ollama backend, since clients choose features by it; our own if there is none."""
    engines = (each.version for each in rt.backends.stats() if each.engine == "ollama" and each.version)
    return 200, fields.JSON, msgspec.json.encode({"version": next(engines, __version__)})


def _healthz(x: Exchange, rt: Runtime) -> Answer:
    return 200, TEXT, b"ok\n"


def _readyz(x: Exchange, rt: Runtime) -> Answer:
    return (200, TEXT, b"ready\n") if rt.ready() else (503, TEXT, b"not ready\n")


async def _queue(x: Exchange, rt: Runtime) -> Answer:
    """The caller's own waiting requests. Position and time are approximate and may rise (a priority queue)."""
    rows = [
        {
            "id": place.id,
            "model": place.model,
            "position": place.position,
            "estimate_s": round(place.estimate, 1),
            "since": round(place.since, 3),
        }
        for place in await rt.waiting(x.principal.key)
    ]
    return 200, fields.JSON, msgspec.json.encode({"waiting": rows})


async def _usage(x: Exchange, rt: Runtime) -> Answer:
    """The usage of the caller's own key in the last days. The query finishes in its own Task even if the client
    leaves."""
    key, now = x.principal.key, rt.wall()
    report = rt.usage.known(key, now) or await rt.usage.read(key, now, rt.config.prices)
    if report is None:
        raise AuditUnavailable("The usage cannot be read now.")
    return 200, fields.JSON, report


def _preflight(x: Exchange, rt: Runtime) -> Answer:
    return 200, TEXT, b""


def _playground(x: Exchange, rt: Runtime) -> Answer:
    if not rt.config.playground:
        raise NotFound("There is no such route.")
    return 200, HTML, page()[0]


LISTS: dict[Kind, Callable[[Exchange, Runtime], Answer]] = {
    Kind.MODELS: _models,
    Kind.MODEL: _model,
    Kind.RUNNING: _running,
}
LOCALS: dict[str, Callable[[Exchange, Runtime], Answer]] = {
    "root": _root,
    "version": _version,
    "healthz": _healthz,
    "readyz": _readyz,
    "playground": _playground,
    "preflight": _preflight,
}
WAITING: dict[str, Callable[[Exchange, Runtime], Awaitable[Answer]]] = {"queue": _queue, "usage": _usage}
