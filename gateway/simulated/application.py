"""The simulated Ollama as one ASGI application: routes, Host check, error shapes, and test aids under `/simulated/`.

Owns: composition, and what real Ollama does not have: `/simulated/stats`, `/simulated/wait`, `/simulated/requests`.
Must not know: the process it runs in.
"""

from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.simulated.engine import EVENTS, Engine, Settings
from gateway.simulated.messages import MessagesRoutes
from gateway.simulated.native import NativeRoutes
from gateway.simulated.openai import OpenAIRoutes
from gateway.simulated.responses import ResponsesRoutes
from gateway.simulated.wire import JSON, Refusal, messages_error, native_error, openai_error

_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_KEPT_BODY = 64 * 1024  # bytes of a request body that /simulated/requests shows
_LONGEST_WAIT = 60.0  # seconds


def app(settings: Settings | None = None, engine: Engine | None = None) -> ASGIApp:
    """The application; give an `engine` to share its tally in-process, else one is made from `settings`."""
    engine = engine or Engine(settings or Settings())
    aids = _Aids(engine)
    starlette = Starlette(
        routes=[
            *NativeRoutes(engine).routes(),
            *OpenAIRoutes(engine).routes(),
            *ResponsesRoutes(engine).routes(),
            *MessagesRoutes(engine).routes(),
            *aids.routes(),
        ],
        exception_handlers={Refusal: _refused, HTTPException: _http_error},
    )
    return _Front(starlette, engine)


class _Front:
    """Checks Host as real Ollama does on loopback, then records the request for `/simulated/requests`."""

    def __init__(self, inner: ASGIApp, engine: Engine) -> None:
        self._inner = inner
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/simulated/"):
            await self._inner(scope, receive, send)
        elif self._engine.settings.check_host and _host(scope) not in _LOCAL_HOSTS:
            await Response(status_code=403)(scope, receive, send)
        else:
            await self._recorded(scope, receive, send)

    async def _recorded(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen: dict[str, Any] = {
            "method": scope["method"],
            "target": scope["raw_path"].decode("latin-1"),
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
            "body": "",
        }
        self._engine.seen.append(seen)
        self._engine.tally.note("request")

        async def receive_seen() -> Any:
            message = await receive()
            if message["type"] == "http.request":
                seen["body"] = (seen["body"] + message.get("body", b"").decode("utf-8", "replace"))[:_KEPT_BODY]
            return message

        await self._inner(scope, receive_seen, send)


def _host(scope: Scope) -> str:
    value = next((value for name, value in scope["headers"] if name == b"host"), b"localhost")
    host = str(value.decode("latin-1")).lower()
    end = host.find("]") + 1 if host.startswith("[") else (host + ":").find(":")
    return host[:end]


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, Refusal):
        raise error
    if request.url.path.startswith("/v1/messages"):
        return messages_error(error)
    return openai_error(error) if request.url.path.startswith("/v1/") else native_error(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown route and wrong method in the words of Ollama's router."""
    if not isinstance(error, HTTPException):
        raise error
    texts = {404: "404 page not found", 405: "405 method not allowed"}
    return PlainTextResponse(texts.get(error.status_code, error.detail), error.status_code, error.headers)


class _Aids:
    """The `/simulated/` routes: what this backend saw, and waiting for it without sleeping."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> list[Route]:
        return [
            Route("/simulated/stats", self.stats, methods=["GET"]),
            Route("/simulated/wait", self.wait, methods=["GET"]),
            Route("/simulated/requests", self.requests, methods=["GET"]),
        ]

    async def stats(self, request: Request) -> Response:
        return _json(self._engine.stats())

    async def requests(self, request: Request) -> Response:
        return _json({"requests": list(self._engine.seen)})

    async def wait(self, request: Request) -> Response:
        """`?event=E&count=N&timeout=S`: 200 once E happened N times in all (`idle`: nothing runs), 408 if too late."""
        query = request.query_params
        event = query.get("event", "")
        if event not in (*EVENTS, "idle"):
            raise Refusal(400, f"event is one of {', '.join(EVENTS)}, idle")
        try:
            count, timeout = int(query.get("count", "1")), min(float(query.get("timeout", "5")), _LONGEST_WAIT)
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        reached = await self._engine.tally.wait(event, count, timeout)
        return _json({"reached": reached, **self._engine.stats()}, 200 if reached else 408)


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type=JSON)
