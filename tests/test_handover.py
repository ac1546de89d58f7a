"""A process that goes and one that takes over (H13), as real processes; TLS and its certificates (H12)."""

import asyncio
import contextlib
import json
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from gateway import config as cfg
from gateway.services.accounts import KeyTerms, create_key, create_tenant, create_user
from gateway.store import open_store
from tests.flow.engine import DONE, SSE_HEAD, USAGE_FRAME, Engine, chunk, frame, stream
from tests.gateway import FAST_HASH, Gateway, chat, gateway
from tests.servers import free_port
from tests.wire import Client

CHAT = "/v1/chat/completions"
START = 60.0  # seconds for a process of its own on a busy machine
STREAMS = 30


class Gate:
    """A gateway process. `folder` holds the store that all of a test share."""

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
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(folder / f"{name}.yaml")]
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    async def ready(self) -> None:
        async with asyncio.timeout(START):
            while await self._status() != 200:
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.02)

    async def _status(self) -> int:
        with contextlib.suppress(OSError):
            client = await Client.connect(self.admin)
            await client.send(b"GET /readyz HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
            status = (await client.answer())[0]
            client.close()
            return status
        return 0

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


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """H13: streams are cut, the exit is orderly."""
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


# ---- TLS


@pytest.fixture
def authority(tmp_path: Path) -> "Authority":
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not on this machine")
    return Authority(tmp_path)


class Authority:
    """Certificates made for one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = self.issue("ca", "")

    def issue(self, name: str, issuer: str = "ca") -> str:
        """A certificate of that common name beside NAME.key; its path."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(cert)]
        command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        if issuer:
            command += ["-CA", str(self.folder / f"{issuer}.pem"), "-CAkey", str(self.folder / f"{issuer}.key")]
        subprocess.run(command, check=True, capture_output=True)
        return str(cert)

    def section(self, cert: str, **more: str) -> cfg.Tls:
        return cfg.Tls(cert=cert, key=cert.replace(".pem", ".key"), **more)


async def tls_client(port: int, ca: str, cert: str = "", highest: ssl.TLSVersion | None = None) -> Client:
    context = ssl.create_default_context(cafile=ca)
    if highest is not None:
        context.maximum_version = highest
    if cert:
        context.load_cert_chain(cert, cert.replace(".pem", ".key"))
    return Client(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost"))


def subject(client: Client) -> str:
    peer = client.writer.get_extra_info("peercert")
    return str(dict(pair[0] for pair in peer["subject"])["commonName"])


def test_tls_serves_streams_and_reloads_its_certificate(authority: Authority) -> None:
    """H12: TLS 1.2 and newer; a reload is seen by the next handshake, connections that are open go on."""
    first, second = authority.issue("first"), authority.issue("second")

    async def main() -> None:
        async with Engine(stream) as engine, gateway(engine.url, tls=authority.section(first)) as g:
            client = await tls_client(g.port, authority.ca)
            assert subject(client) == "first"
            await client.send(g.request(CHAT, chat(stream=True)))
            status, fields, body = await client.answer()
            assert (status, body.endswith(DONE)) == (200, True)
            assert "strict-transport-security" in fields
            old = await tls_client(g.port, authority.ca, highest=ssl.TLSVersion.TLSv1_2)
            assert old.writer.get_extra_info("ssl_object").version() == "TLSv1.2"
            g.app.reload(msgspec.structs.replace(g.app.config, tls=authority.section(second)))
            assert subject(await tls_client(g.port, authority.ca)) == "second"
            await client.send(g.request("/v1/models"))
            assert (await client.answer())[0] == 200

    uvloop.run(main())


async def ask_by_tls(g: Gateway, ca: str, cert: str) -> int:
    client = await tls_client(g.port, ca, cert)
    await client.send(g.request("/v1/models"))
    return (await client.answer())[0]


def test_only_a_certificate_of_the_authority_is_let_in(authority: Authority) -> None:
    """H12: mTLS."""
    server, member = authority.issue("server"), authority.issue("member")
    stranger = authority.issue("stranger", issuer="")

    async def main() -> None:
        section = authority.section(server, client_ca=authority.ca)
        async with Engine(stream) as engine, gateway(engine.url, tls=section) as g:
            assert await ask_by_tls(g, authority.ca, member) == 200
            for cert in ("", stranger):
                with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                    await ask_by_tls(g, authority.ca, cert)

    uvloop.run(main())


def test_a_client_that_does_not_shake_hands_is_cut(authority: Authority) -> None:
    """H4: the handshake has its own timer."""
    server = authority.issue("server")

    async def main() -> None:
        settings = {"tls": authority.section(server), "timeouts": cfg.Timeouts(tls_handshake=0.2)}
        async with Engine(stream) as engine, gateway(engine.url, **settings) as g:
            client = await g.connect()
            assert await client.at_end()
            assert not g.app.server.connections

    uvloop.run(main())
