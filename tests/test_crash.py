"""kill -9 of a whole gateway under load, again and again: one audit row for each request (U3)."""

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gateway.services import accounts, trail
from gateway.services.accounts import KeyTerms
from gateway.services.record import AuditRecord
from tests.servers import free_port
from tests.services.keyring import CHEAP, connection

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("FAIRGATE_KILLS", "5"))
CLIENTS = 16
MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
ANSWER = (
    b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}'
)


async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An OpenAI-compatible engine that takes up to 20 ms."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            body = b"" if b"\r\nContent-Length:" not in head.title() else head
            length = next((int(f[15:]) for f in head.split(b"\r\n") if f.lower().startswith(b"content-length:")), 0)
            if body:
                await reader.readexactly(length)
            await asyncio.sleep(random.random() * 0.02)
            answer = MODELS if head.startswith(b"GET") else ANSWER
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ")
            writer.write(b"%d\r\n\r\n%s" % (len(answer), answer))
    writer.close()


class Load:
    """Clients that ask all the time; `finished` are the requests whose whole answer was seen."""

    def __init__(self, port: int, token: str) -> None:
        self.port = port
        self.token = token
        self.sent = 0
        self.finished: set[str] = set()
        self.answered = asyncio.Event()

    async def client(self) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    while True:
                        await self._ask(reader, writer)
                finally:
                    writer.close()
            await asyncio.sleep(0.02)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sent += 1
        name = f"req-{self.sent}"
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Request-ID: {name}\r\n"
        head += f"Authorization: Bearer {self.token}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = next(int(f[15:]) for f in answer.split(b"\r\n") if f.lower().startswith(b"content-length:"))
        await reader.readexactly(length)
        self.finished.add(name)
        if answer.startswith(b"HTTP/1.1 200"):
            self.answered.set()


def serve(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        line = [sys.executable, "-m", "gateway", "serve", "--config", str(folder / "fairgate.yaml")]
        return subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=log)


async def provision(store: str) -> str:
    async with connection(store) as opened:
        tenant = await accounts.create_tenant(opened, "acme", allow_all_models=True)
        user = await accounts.create_user(opened, tenant, "ann")
        _, token = await accounts.create_key(opened, user, KeyTerms(), CHEAP)
        return token


async def kill_again_and_again(folder: Path, port: int, token: str) -> Load:
    """The last gateway ends in an orderly way."""
    load = Load(port, token)
    clients = [asyncio.ensure_future(load.client()) for _ in range(CLIENTS)]
    for turn in range(KILLS + 1):
        load.answered.clear()
        process = serve(folder)
        try:
            async with asyncio.timeout(40):
                await load.answered.wait()
            await asyncio.sleep(random.random() * 0.5)
        finally:
            if turn < KILLS:
                process.kill()
            else:
                process.terminate()
            await asyncio.get_running_loop().run_in_executor(None, process.wait)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return load


@pytest.mark.timeout(300)
def test_every_request_that_a_client_saw_finished_has_one_row(tmp_path: Path) -> None:
    """U3: FAIRGATE_KILLS=20 for the long form."""
    store, port = str(tmp_path / "fairgate.db"), free_port()

    async def body() -> None:
        server = await asyncio.start_server(engine, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        (tmp_path / "fairgate.yaml").write_text(
            f"listen: 127.0.0.1:{port}\nstore: {store}\nadmin: {{listen: ''}}\n"
            f"identity: {{argon2_time_cost: 1, argon2_memory_kib: 8}}\n"
            f"backends:\n- {{name: e, url: '{url}', engine: openai, slots: 8}}\n"
        )
        load = await kill_again_and_again(tmp_path, port, await provision(store))
        server.close()
        async with connection(store) as opened:
            rows = [AuditRecord.of(row) for row in await opened.audit_tail(10_000_000)]
            chains = await trail.verify(opened, {})
        names = Counter(row.id for row in rows)
        assert not load.finished - names.keys()
        assert {name: count for name, count in names.items() if count > 1} == {}
        assert [chain.broken for chain in chains] == [None]
        assert any(row.outcome == "interrupted" for row in rows)
        assert len(load.finished) > KILLS

    asyncio.run(body())
