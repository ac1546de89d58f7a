"""The control plane: an ASGI application on its own listener, in the same event loop as the data plane.

/metrics, /healthz, /readyz with its reasons, and /stats only read. The admin API (`api`) is added if it is on. It never
waits for the data plane and blocks the loop only for short times. Must not know the data plane's sockets.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.admin.protocol import CONNECTIONS, AdminProtocol
from gateway.admin.state import Gateway, readiness, register_sources, stats
from gateway.urls import parse_listen

BACKLOG: Final = 128
GRACE: Final = 1  # seconds for running answers when the listener closes
_SECURITY: Final = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


def admin_app(gateway: Gateway, more: Sequence[Route] = ()) -> Starlette:
    """The application for a running gateway; registers the gateway's services as sources of its metrics. `more`: the
    routes of the admin API, if it is on."""
    register_sources(gateway)

    async def metrics(request: Request) -> Response:
        await gateway.refresh()
        content_type, parts = gateway.metrics.exposition(request.headers.get("accept", ""))
        return StreamingResponse(in_turns(parts), headers={"content-type": content_type})

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        await gateway.refresh()
        state = readiness(gateway)
        return _json(state, 200 if state["ready"] else 503)

    async def everything(request: Request) -> Response:
        await gateway.refresh()
        return _json(stats(gateway))

    app = Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/stats", everything),
            *more,
        ]
    )
    app.router.redirect_slashes = False  # such a redirect would name whatever host the request named
    app.add_middleware(_SecurityHeaders)
    return app


async def in_turns(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Let the loop turn between two metrics: a scrape with many models must not stall streams."""
    for part in parts:
        yield part
        await asyncio.sleep(0)


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


class _SecurityHeaders:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                own = headers.get("content-security-policy")  # set by a page with its own policy
                headers.update(_SECURITY if own is None else _SECURITY | {"content-security-policy": own})
            await send(message)

        await self._app(scope, receive, sending)


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to `gateway.app` and calls `ready` when it answers requests."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Run until `should_exit`. If cancelled, the listener closes at once: uvloop cannot close a loop that has an
        open listener."""
        try:
            await super().serve(sockets=sockets)
        finally:
            for listener in getattr(self, "servers", ()):  # set by startup
                listener.close()
            for bound in sockets or ():
                bound.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.ready.set()


class AdminServer:
    """The running listener."""

    def __init__(self, server: _Server, task: "asyncio.Task[None]", port: int) -> None:
        self._server = server
        self._task = task
        self.port = port

    def __repr__(self) -> str:
        return f"<AdminServer port={self.port} {'closed' if self._task.done() else 'open'}>"

    async def close(self) -> None:
        """Stop listening; running answers get GRACE seconds. Idempotent."""
        self._server.should_exit = True
        await asyncio.wait({self._task})
        await self._task


def _bound(listen: str) -> socket.socket:
    host, port = parse_listen(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as err:
        why = os.strerror(err.errno) if isinstance(err.errno, int) and err.errno > 0 else err.strerror
        raise OSError(err.errno, f"admin.listen {listen}: {why}") from err
    bound.setblocking(False)
    return bound


async def serve_admin(listen: str, app: Any) -> AdminServer:
    """Serve the ASGI application `app` on `HOST:PORT` in this loop until closed.

    Raises OSError, naming the setting, if the address cannot be bound, and ValueError if it is invalid.
    """
    bound = _bound(listen)
    config = uvicorn.Config(
        app,
        http=AdminProtocol,  # based on h11, which limits what it buffers of a head
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[bound]), name="admin")
    ready = asyncio.create_task(server.ready.wait())
    try:
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ready.cancel()
    if task.done():
        bound.close()
        await task
        raise OSError(f"the admin listener on {listen} ended at its start")
    return AdminServer(server, task, bound.getsockname()[1])
