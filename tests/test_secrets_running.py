"""No sink of a running gateway holds a secret, while everything that it needs fails in turn (O3, K2)."""

import asyncio
import json
import os
import signal
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.services.accounts import KeyTerms, create_key
from gateway.services.keyfmt import mint
from gateway.store.limits import Limits
from tests.databases import DATABASE, statement
from tests.gateway import chat
from tests.process import CHEAP_IDENTITY, GatewayProcess, provision
from tests.secret_engine import Echo, leaked
from tests.servers import PostgreSQL, Redis, until
from tests.services.keyring import CHEAP, connection
from tests.services.limited import command
from tests.services.test_checkup import make

WORD = "h7nter2Kestrel"


async def _exchange(port: int, wire: bytes) -> str:
    """Send bytes and read whatever comes until nothing does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        writer.write(wire)
        async with asyncio.timeout(15):
            while piece := await reader.read(65536):
                got += piece
    except ConnectionError:
        pass
    finally:
        writer.close()
    return got.decode("latin-1")


def _post(auth: str, body: str, extra: str = "", path: str = "/v1/chat/completions") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{auth}{extra}Content-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def misuses(key: str, valid: str) -> list[bytes]:
    """Requests that carry `key` wherever something can be carried; `valid` opens the way to later phases."""
    auth, good = f"Authorization: Bearer {key}\r\n", f"Authorization: Bearer {valid}\r\n"
    body = json.dumps(chat())
    close = "Host: x\r\nConnection: close\r\n"
    places = [f"/v1/models?api_key={key}", f"/v1/models/{key}", f"/{key}", f"/api/tags?token={key}", "/v1/models"]
    found = [f"GET {place} HTTP/1.1\r\n{close}{given}\r\n" for place in places for given in ("", auth, good)]
    found += [
        f"{key} / HTTP/1.1\r\n{close}\r\n",
        f"GET / {key}\r\n{close}\r\n",
        f"GET / HTTP/1.1\r\nHost: {key}\r\nConnection: close\r\n\r\n",
        f"GET /v1/models HTTP/1.1\r\n{close}Authorization : Bearer {key}\r\n\r\n",
        f"GET /v1/models HTTP/1.1\r\n{close}{key}: {key}\r\nCookie: {key}\r\n\r\n",
        f"GET /v1/models HTTP/1.1\r\n{close}{auth}{auth}\r\n",
        f"GET /v1/models HTTP/1.1\r\n{close}{auth}x-api-key: {valid}\r\n\r\n",
        f"GET /v1/models HTTP/1.1\r\n{close}Authorization: Basic {key}\r\n\r\n",
        f"GET /v1/models HTTP/1.1\r\n{close}Authorization: {key}\r\n\r\n",
        f"GET /v1/models HTTP/1.1\r\n{close}{auth}Transfer-Encoding: {key}\r\n\r\n",
        f"GET /{'x' * 9000}{key} HTTP/1.1\r\n{close}\r\n",
        f"OPTIONS /v1/models HTTP/1.1\r\n{close}Origin: https://{key}\r\n\r\n",
    ]
    bodies = [
        body,
        key,
        f'{{"{key}": 1, "{key}": 2}}',
        json.dumps(chat(model=key)),
        json.dumps(chat(user=key)),
        json.dumps(chat(stream=key)),
        json.dumps(chat(max_tokens=key)),
        json.dumps(chat(tools=key, metadata={key: key})),
        json.dumps({"model": "m", "messages": key}),
    ]
    wires = [text.encode() for text in found]
    wires += [_post(given, text, extra) for text in bodies for given in (auth, good) for extra in ("", _named(key))]
    wires += [_post(good, json.dumps({"model": key, "name": key}), path="/api/" + verb) for verb in ("pull", "show")]
    return wires


def _named(key: str) -> str:
    return f"X-Request-ID: {key}\r\nX-OpenWebUI-User-Email: {key}\r\nX-Forwarded-For: {key}\r\nTraceparent: {key}\r\n"


class Stage:
    """The gateway, its databases with passwords, and all that was seen of it."""

    def __init__(self, process: GatewayProcess, owner: str) -> None:
        self.process = process
        self.owner = owner
        self.seen: list[str] = []

    async def ask(self, wires: list[bytes]) -> None:
        gate = asyncio.Semaphore(20)

        async def one(wire: bytes) -> None:
            async with gate:
                self.seen.append(await _exchange(self.process.port, wire))

        await asyncio.gather(*(one(wire) for wire in wires))

    def look(self) -> None:
        """Everything that can be asked of it, and what the system tells of its process."""
        for target in ("/metrics", "/stats", "/readyz", "/healthz"):
            self.seen.append(self.process.fetch(target)[1].decode())
        for pid in (self.process.pid, *_children(self.process.pid)):
            self.seen.append(Path(f"/proc/{pid}/cmdline").read_text())
        for pid in _children(self.process.pid):
            self.seen.append(Path(f"/proc/{pid}/environ").read_text())

    async def tables(self) -> None:
        """Every row of every table."""
        link = await asyncpg.connect(self.owner)
        try:
            for row in await link.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
                for found in await link.fetch(f'SELECT t::text FROM "{row["tablename"]}" t'):  # noqa: S608
                    self.seen.append(found[0])
        finally:
            await link.close()

    def files(self) -> None:
        """Log, spool, anchors: all but the configuration itself."""
        for path in self.process.folder.rglob("*"):
            if path.is_file() and path != self.process.file:
                self.seen.append(path.read_bytes().decode("latin-1"))


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def locked_role(server: PostgreSQL, password: str) -> Iterator[str]:
    """A role of the database that must give a password -> the SQL that changes it, with {} for the new one."""
    url, rules = server.url(DATABASE), server.directory / "data" / "pg_hba.conf"
    before = rules.read_text()
    asyncio.run(statement(url, f"DROP ROLE IF EXISTS locked; CREATE ROLE locked LOGIN SUPERUSER PASSWORD '{password}'"))
    rules.write_text("host all locked 127.0.0.1/32 scram-sha-256\n" + before)
    asyncio.run(statement(url, "SELECT pg_reload_conf()"))
    try:
        yield "ALTER ROLE locked PASSWORD '{}'"
    finally:
        if not server.answers():
            server.start()
        rules.write_text(before)
        asyncio.run(statement(url, "SELECT pg_reload_conf(); DROP ROLE locked"))


PASSWORD, REDIS_PASSWORD = "S7ore.Kolibri.pw", "R3dis.Albatros.pw"
ENGINE_KEY, LATER_KEY = "plain-Grebe-engine-key", "plain-Dunlin-later-key"
DISCONNECT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'locked'"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("workers", [1, 2])
def test_no_sink_of_a_running_gateway_holds_a_secret(
    postgresql: PostgreSQL, postgresql_url: str, redis: Redis, tmp_path: Path, workers: int
) -> None:
    """O3, K2: log, metrics, admin pages, every table, spool, answers, arguments; while all it needs fails in turn."""
    command(redis.port, "ACL", "SETUSER", "locked", "on", f">{REDIS_PASSWORD}", "~*", "+@all")
    try:
        with locked_role(postgresql, PASSWORD) as change:
            asyncio.run(_through_everything(postgresql, redis, tmp_path, change, workers))
    finally:
        command(redis.port, "ACL", "DELUSER", "locked")


async def _through_everything(postgresql: PostgreSQL, redis: Redis, folder: Path, change: str, workers: int) -> None:
    owner = postgresql.url(DATABASE)
    valid, behalf, keys = await _keys(owner)
    engine = Echo()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made = await asyncio.to_thread(_certificate, folder)
    tls.load_cert_chain(made.cert, made.key)
    async with engine.listening() as port, engine.listening(tls) as secure:
        stage = Stage(_process(folder, postgresql, redis, port, secure), owner)
        stage.process.settings["workers"] = workers
        process = await asyncio.to_thread(stage.process.started)
        try:
            await _all_in_turn(stage, postgresql, redis, change, (valid, behalf), keys)
        finally:
            code = await asyncio.to_thread(process.stop)
        assert code == 0
    await stage.tables()
    stage.files()
    everything = "\n".join(stage.seen)
    assert {ENGINE_KEY, LATER_KEY} <= engine.seen, "both keys went where they belong"
    for sign in ("auth_unavailable", "limits_unavailable", "configuration not reloaded", "certificate", "[redacted]"):
        assert sign in everything, f"no sign of {sign}: that failure did not happen"
    assert leaked(everything, PASSWORD, REDIS_PASSWORD, ENGINE_KEY, LATER_KEY, *keys) == []


def _certificate(folder: Path) -> Any:
    elsewhere = folder / "engine"
    elsewhere.mkdir()
    return make(elsewhere, 90)


async def _keys(url: str) -> tuple[str, str, list[str]]:
    """Keys that work, one that acts for others, one revoked; and all texts of keys, with some that never worked."""
    (valid, revoked) = await provision(url, Limits(requests_per_minute=100_000), keys=2)
    async with connection(url) as store:
        tenant = await store.tenant("acme")
        assert tenant is not None
        user = await store.user(tenant.id, "ann")
        assert user is not None
        _, behalf = await create_key(store, user, KeyTerms(on_behalf=True), CHEAP)
        await store.revoke_key(revoked[3:15], int(time.time() * 1e6))
    return valid, behalf, [valid, revoked, behalf, mint().token, valid[:-3], valid[:-1] + "!"]


def _process(folder: Path, postgresql: PostgreSQL, redis: Redis, port: int, secure: int) -> GatewayProcess:
    shared = f"redis://locked:{REDIS_PASSWORD}@127.0.0.1:{redis.port}/5"
    store = f"postgresql://locked:{PASSWORD}@127.0.0.1:{postgresql.port}/{DATABASE}"
    engines = [
        {"name": "echo", "url": f"http://127.0.0.1:{port}", "engine": "openai", "key": ENGINE_KEY, "slots": 20},
        {"name": "tls", "url": f"https://127.0.0.1:{secure}", "engine": "openai", "key": ENGINE_KEY, "slots": 2},
    ]
    settings: dict[str, Any] = {
        "store": store,
        "shared": shared,
        "identity": {**CHEAP_IDENTITY, "cache_seconds": 0.2, "failures_per_minute": 100_000, "store_timeout": 1.0},
        "limits": {"lease": 1.0, "deadline": 0.5, "store_deadline": 1.0},
        "discovery": {"interval": 0.5, "eject_after": 1000},
        "trusted_proxies": ["127.0.0.0/8"],
        "log": {"level": "debug", "requests": True},
        "backends": engines,
    }
    return GatewayProcess(folder, settings)


async def _all_in_turn(
    stage: Stage, postgresql: PostgreSQL, redis: Redis, change: str, opening: tuple[str, str], keys: list[str]
) -> None:
    wires = [wire for key in keys for wire in misuses(key, opening[0])]
    wires += [_post(f"Authorization: Bearer {opening[1]}\r\n", json.dumps(chat(user=key)), _named(key)) for key in keys]
    wires += [_post(f"Authorization: Bearer {opening[1]}\r\n", json.dumps(chat(user=key))) for key in keys]
    await stage.ask(wires)
    # Not 8: a whole answer with status 200 is the engine's own word, and passes byte for byte.
    broken = [_post(f"Authorization: Bearer {opening[0]}\r\n", json.dumps(chat(seed=n))) for n in (*range(8), 9)]
    await stage.ask(broken)
    await asyncio.to_thread(stage.look)
    few = [*wires[::7], *broken]

    process = stage.process  # it is told about another key, and then about faults
    process.settings["backends"][0]["key"] = LATER_KEY
    process.write()
    await _reloaded(process, "configuration reloaded")
    await stage.ask(broken)
    for text in (f'key: "{WORD}', f"shared: redis://x:{WORD}/y@h", f"sk-{WORD}:1"):
        process.file.write_text(text)
        await _reloaded(process, "configuration not reloaded")
    assert leaked(process.log(), WORD) == []

    command(redis.port, "ACL", "SETUSER", "locked", "resetpass", ">another")
    command(redis.port, "CLIENT", "KILL", "USER", "locked")
    await _until_said(stage, few, "limits_unavailable")
    command(redis.port, "ACL", "SETUSER", "locked", f">{REDIS_PASSWORD}")
    await statement(stage.owner, change.format("another") + "; " + DISCONNECT)
    await _until_said(stage, few, "auth_unavailable")
    await asyncio.to_thread(postgresql.kill)
    stage.seen.clear()
    await _until_said(stage, few, "auth_unavailable")
    await asyncio.to_thread(stage.look)
    await asyncio.to_thread(postgresql.start)
    await statement(stage.owner, change.format(PASSWORD))
    async with asyncio.timeout(30):
        while process.figures()["audit"]["pending"]:
            await asyncio.sleep(0.1)


async def _reloaded(process: GatewayProcess, sign: str) -> None:
    count = process.log().count(sign)
    os.kill(process.pid, signal.SIGHUP)
    await asyncio.to_thread(until, lambda: process.log().count(sign) > count, 15.0, process.log)


async def _until_said(stage: Stage, wires: list[bytes], sign: str) -> None:
    async with asyncio.timeout(30):
        while not any(sign in answer for answer in stage.seen):
            await stage.ask(wires)
