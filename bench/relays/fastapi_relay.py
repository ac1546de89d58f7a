"""A relay as a FastAPI user writes it: httpx in front of the model server. Arguments: port, backend port."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-length"}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{sys.argv[2]}", timeout=None, limits=limits) as client:  # noqa: S113 - streams may last
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.api_route("/{path:path}", methods=["GET", "POST", "DELETE", "HEAD"])
async def relay(path: str, request: Request) -> Response:
    client: httpx.AsyncClient = request.app.state.client
    headers = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
    sent = client.build_request(request.method, "/" + path, headers=headers, content=await request.body())
    upstream = await client.send(sent, stream=True)
    kept = {name: value for name, value in upstream.headers.items() if name not in HOP_BY_HOP}
    if "content-length" in upstream.headers:
        return Response(await upstream.aread(), upstream.status_code, kept)
    return StreamingResponse(
        upstream.aiter_raw(), upstream.status_code, kept, background=BackgroundTask(upstream.aclose)
    )


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning", backlog=4096)
