"""A process that goes and one that takes over (H13), as real processes."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway.services.accounts import KeyTerms, create_key, create_tenant, create_user
from gateway.store import open_store
from tests.flow.engine import DONE, SSE_HEAD, USAGE_FRAME, Engine, chunk, frame, plain, stream
from tests.gateway import FAST_HASH, chat
from tests.servers import free_port
from tests.wire import Client

CHAT = "/v1/chat/completions"
START = 60.0  # seconds for a process of its own on a busy machine
STREAMS = 30


class Gate:
    """A gateway process. `folder` holds the store that all of a test share."""

    command = (sys.executable, "-m", "gateway")
    directory: Path | None = None

    def __init__(self, folder: Path, name: str, port: int, engine: str, **settings: Any) -> None:
        self.port = port
        self.admin = free_port()
        config = {
            "listen": f"127.0.0.1:{port}",
            "store": str(folder / "fairgate.db"),
            "admin": {"listen": f"127.0.0.1:{self.admin}"},
            "audit": {"spool": str(folder / f"spool-{name}")},
            "identity": {"argon2_time_cost": 1, "argon2_memory_kib": 8},
            "backends": [{"name": "engine", "url": engine, "engine": "openai", "slots": 100}],
            **settings,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(config))
        command = [*self.command, "serve", "--config", str(folder / f"{name}.yaml")]
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory)

    async def ready(self) -> None:
        async with asyncio.timeout(START):
            while await self._status() != 200:
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.02)

    async def _status(self) -> int:
        with contextlib.suppress(OSError):
            return (await self._asked("/readyz"))[0]
        return 0

    async def _asked(self, target: str) -> tuple[int, bytes]:
        """One GET of the admin listener."""
        client = await Client.connect(self.admin)
        await client.send(f"GET {target} HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n".encode())
        status, _, body = await client.answer()
        client.close()
        return status, body

    async def queued(self, count: int) -> None:
        """Until that many requests wait for a slot."""
        async with asyncio.timeout(START):
            while json.loads((await self._asked("/stats"))[1])["scheduler"]["queued"] < count:
                await asyncio.sleep(0.02)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def exit_code(self) -> int:
        return await asyncio.to_thread(self.process.wait, START)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


async def make_key(folder: Path) -> str:
    store = await open_store(str(folder / "fairgate.db"))
    try:
        tenant = await create_tenant(store, "t", allow_all_models=True)
        return (await create_key(store, await create_user(store, tenant, "u"), KeyTerms(), FAST_HASH))[1]
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def ended(*gates: Gate) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for gate in gates:
            gate.kill()
        await Client.close_all()


def asked(key: str, path: str = CHAT, extra: str = "", **more: Any) -> bytes:
    text = json.dumps(chat(**more)).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\n{extra}"
    return f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text


class Held:
    """An engine whose streams begin at once and end when `gate` is set."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def answer(
        self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(SSE_HEAD + chunk(frame("a")))
        await self.gate.wait()
        asked_usage = b"include_usage" in body
        writer.write(chunk(frame("b")) + (chunk(USAGE_FRAME) if asked_usage else b"") + chunk(DONE) + b"0\r\n\r\n")


async def streams(port: int, key: str) -> list[Client]:
    clients = [await Client.connect(port) for _ in range(STREAMS)]
    for client in clients:
        await client.send(asked(key, stream=True))
    for client in clients:
        assert (await client.head())[0] == 200
    return clients


def test_sigterm_ends_when_all_streams_have(tmp_path: Path) -> None:
    """H13: nobody is cut, nobody new is let in, and the process exits with 0."""
    held = Held()

    async def main() -> None:
        async with Engine(held.answer) as engine:
            key = await make_key(tmp_path)
            gate = Gate(tmp_path, "one", free_port(), engine.url)
            async with ended(gate):
                await gate.ready()
                clients = await streams(gate.port, key)
                gate.terminate()
                async with asyncio.timeout(START):
                    while await refused(gate.port) is False:
                        await asyncio.sleep(0.01)
                held.gate.set()
                for client in clients:
                    text = b"".join([part async for part in client.chunks()])
                    assert text == frame("a") + frame("b") + DONE
                assert await gate.exit_code() == 0

    uvloop.run(main())


async def refused(port: int) -> bool:
    try:
        client = await Client.connect(port)
    except OSError:
        return True
    client.close()
    return False


def test_sighup_reloads_the_file_or_keeps_the_old_one(tmp_path: Path) -> None:
    """O7: as a service manager does it; the watch over backends goes on, and a faulty file changes nothing."""

    async def main() -> None:
        key = await make_key(tmp_path)
        async with Engine(plain) as engine:
            gate = Gate(tmp_path, "a", free_port(), engine.url)
            file = tmp_path / "a.yaml"
            config = json.loads(file.read_text())
            async with ended(gate):
                await gate.ready()
                for text, said in (
                    (json.dumps(config | {"aliases": {"other": "m"}}), "configuration reloaded"),
                    ("listen: nowhere", "configuration not reloaded"),
                    ("tracing: {headers: {authorization: env:NOT_SET}}", "environment variable NOT_SET is not set"),
                ):
                    file.write_text(text)
                    gate.process.send_signal(signal.SIGHUP)
                    async with asyncio.timeout(START):
                        while said not in gate.log.read_text():
                            await asyncio.sleep(0.02)
                    client = await Client.connect(gate.port)
                    await client.send(asked(key, model="other"))
                    assert (await client.answer())[0] == 200
                    client.close()
                assert "Traceback" not in gate.log.read_text()

    uvloop.run(main())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sighup_during_the_start_reloads_after_it(workers: int, tmp_path: Path) -> None:
    """O7: a service manager that is told to restart and to reload sends it while engines are looked at."""
    looked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        looked.set()
        await reader.read()
        writer.close()

    async def main() -> None:
        await make_key(tmp_path)
        engine = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{engine.sockets[0].getsockname()[1]}"
        gate = Gate(tmp_path, "a", free_port(), url, workers=workers, discovery={"timeout": 1.0})
        async with engine, ended(gate), asyncio.timeout(START):
            await looked.wait()
            gate.process.send_signal(signal.SIGHUP)
            while "configuration reloaded" not in gate.log.read_text():
                assert gate.process.poll() is None
                await asyncio.sleep(0.02)

    uvloop.run(main())


@pytest.mark.parametrize("workers", [1, 2])
def test_who_waits_at_the_end_of_a_drain_is_answered(workers: int, tmp_path: Path) -> None:
    """H13: a place in the queue that came to nothing is `503 draining`, which says to try again; what runs is told."""
    held = Held()

    async def main() -> None:
        async with Engine(held.answer) as engine:
            key = await make_key(tmp_path)
            backends = [{"name": "engine", "url": engine.url, "engine": "openai", "slots": STREAMS}]
            more: dict[str, Any] = {"workers": workers, "backends": backends, "timeouts": {"drain": 0.5}}
            gate = Gate(tmp_path, "one", free_port(), engine.url, **more)
            async with ended(gate):
                await gate.ready()
                running = await streams(gate.port, key)
                waiting = [await Client.connect(gate.port) for _ in range(STREAMS)]
                for client in waiting:
                    await client.send(asked(key, stream=True))
                await gate.queued(STREAMS)
                gate.terminate()
                for client in waiting:
                    status, _, body = await client.answer()
                    assert (status, json.loads(body)["error"]["code"]) == (503, "draining")
                for client in running:
                    rest = await client.rest()
                    assert b"The gateway is shutting down." in rest
                    assert rest.endswith(b"0\r\n\r\n")
                assert await gate.exit_code() == 0

    uvloop.run(main())


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """H13: streams end, the exit is orderly."""
    held = Held()

    async def main() -> None:
        async with Engine(held.answer) as engine:
            key = await make_key(tmp_path)
            gate = Gate(tmp_path, "one", free_port(), engine.url)
            async with ended(gate):
                await gate.ready()
                clients = await streams(gate.port, key)
                gate.terminate()
                async with asyncio.timeout(START):
                    while await refused(gate.port) is False:
                        await asyncio.sleep(0.01)
                gate.terminate()
                assert await gate.exit_code() == 0
                for client in clients:
                    with contextlib.suppress(ConnectionError):
                        assert b"[DONE]" not in await client.rest()

    uvloop.run(main())


class Unheard(Gate):
    """Started with standard input, output and error closed."""

    command = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *Gate.command)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_gateway_with_closed_standard_streams_serves_and_exits(workers: int, tmp_path: Path) -> None:
    """H13, O3: no socket gets the descriptor of standard error."""

    async def main() -> None:
        async with Engine(plain) as engine:
            key = await make_key(tmp_path)
            gate = Unheard(tmp_path, "one", free_port(), engine.url, workers=workers)
            async with ended(gate):
                await gate.ready()
                client = await Client.connect(gate.port)
                await client.send(asked(key))
                assert (await client.answer())[0] == 200
                gate.terminate()
                assert await gate.exit_code() == 0

    uvloop.run(main())


def test_a_new_process_takes_over_without_a_refused_connection(tmp_path: Path) -> None:
    """H13: with `reuse_port`, under load of new connections and streams, through the end of the old one."""

    async def main() -> None:
        async with Engine(stream) as engine:
            key = await make_key(tmp_path)
            port = free_port()
            old = Gate(tmp_path, "old", port, engine.url, reuse_port=True)
            async with ended(old):
                await old.ready()
                load = Load(port, key)
                workers = [asyncio.create_task(load.run()) for _ in range(8)]
                new = Gate(tmp_path, "new", port, engine.url, reuse_port=True)
                async with ended(new):
                    await new.ready()
                    await load.more(200)
                    old.terminate()
                    assert await old.exit_code() == 0
                    await load.more(200)
                    load.stop = True
                    await asyncio.gather(*workers)
                    assert load.whole >= 400

    uvloop.run(main())


class Load:
    """Clients that open a connection for each request."""

    def __init__(self, port: int, key: str) -> None:
        self.port, self.key = port, key
        self.whole = 0
        self.stop = False

    async def run(self) -> None:
        while not self.stop:
            client = await Client.connect(self.port)
            await client.send(asked(self.key, extra="Connection: close\r\n", stream=True))
            status, _, body = await client.answer()
            assert (status, body.endswith(DONE)) == (200, True)
            client.close()
            Client.opened.remove(client)
            self.whole += 1

    async def more(self, count: int) -> None:
        goal = self.whole + count
        async with asyncio.timeout(START):
            while self.whole < goal:
                await asyncio.sleep(0.01)
