"""A relay as an aiohttp user writes it: one session, stream the answer through. Arguments: port, backend port."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-length"}
SESSION: web.AppKey[ClientSession] = web.AppKey("session", ClientSession)
BACKEND: web.AppKey[str] = web.AppKey("backend", str)


async def relay(request: web.Request) -> web.StreamResponse:
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
    url = request.app[BACKEND] + request.path_qs
    async with request.app[SESSION].request(
        request.method, url, headers=headers, data=await request.read()
    ) as upstream:
        kept = {name: value for name, value in upstream.headers.items() if name.lower() not in HOP_BY_HOP}
        if upstream.content_length is not None:
            return web.Response(status=upstream.status, headers=kept, body=await upstream.read())
        answer = web.StreamResponse(status=upstream.status, headers=kept)
        await answer.prepare(request)
        async for chunk in upstream.content.iter_any():
            await answer.write(chunk)
        await answer.write_eof()
        return answer


async def session(app: web.Application) -> AsyncIterator[None]:
    connector = TCPConnector(limit=0, keepalive_timeout=60)
    async with ClientSession(connector=connector, timeout=ClientTimeout(total=None), auto_decompress=False) as client:
        app[SESSION] = client
        yield


def main() -> None:
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    app = web.Application(client_max_size=20 << 20)
    app[BACKEND] = f"http://127.0.0.1:{sys.argv[2]}"
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", relay)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, backlog=4096, print=None)


if __name__ == "__main__":
    main()
