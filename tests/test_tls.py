"""TLS of the listener and towards engines, with certificates made for each test (H12)."""

import asyncio
import os
import resource
import shutil
import socket
import ssl
import subprocess
import warnings
from pathlib import Path

import msgspec
import pytest
import uvloop

from gateway import config as cfg
from gateway.commands.doctor import examine
from gateway.errors import ConnectFailed
from gateway.http1 import listener
from gateway.http1.facts import Address
from gateway.http1.pool import Pool
from gateway.http1.server import CUT
from gateway.plane import tls_context
from gateway.services import discovery
from gateway.services.checkup import Finding
from gateway.store.base import STORED_COLUMNS
from tests.flow.engine import DONE, Engine, start_and_hang, stream
from tests.gateway import Gateway, chat, gateway
from tests.services.keyring import connection
from tests.source import NEEDS_SOURCE
from tests.wire import WAIT, Client

CHAT = "/v1/chat/completions"
REFUSED = (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)
"""What a client sees whose certificate is not wanted."""


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
        command += ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]  # Python 3.13 verifies by the letter
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


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_last_word_of_a_gateway_that_ends_comes_through_tls(authority: Authority, version: ssl.TLSVersion) -> None:
    """H13: in bounded time, though the client does not answer the end of TLS."""

    async def main() -> None:
        section = authority.section(authority.issue("server"))
        async with Engine(start_and_hang) as engine, gateway(engine.url, tls=section) as g:
            raw = socket.create_connection(("127.0.0.1", g.port))
            raw.settimeout(WAIT)
            context = ssl.create_default_context(cafile=authority.ca)
            context.maximum_version = version
            client = await asyncio.to_thread(context.wrap_socket, raw, server_hostname="localhost")
            with client:
                client.sendall(g.request(CHAT, chat(stream=True)))
                while not (got := await asyncio.to_thread(client.recv, 65536)).endswith(b"}\n\n\r\n"):
                    assert got
                g.app.server.close()
                async with asyncio.timeout(2 * CUT):
                    await g.app.server.ended()
                assert not g.app.server.connections
                rest = b""
                while not rest.endswith(b"\r\n0\r\n\r\n"):
                    got = client.recv(65536)
                    assert got
                    rest += got
                assert b"The gateway is shutting down." in rest

    uvloop.run(main())


async def ask_by_tls(g: Gateway, ca: str, cert: str) -> int:
    client = await tls_client(g.port, ca, cert)
    await client.send(g.request("/v1/models"))
    return (await client.answer())[0]


@NEEDS_SOURCE
def test_streams_that_are_cut_at_the_end_leave_their_rows(authority: Authority, tmp_path: Path) -> None:
    """H13, U1: a connection with TLS takes more than one turn of the loop to end; the trail waits for it."""
    store = str(tmp_path / "fairgate.db")

    async def main() -> None:
        section = authority.section(authority.issue("server"))
        async with Engine(start_and_hang) as engine:
            async with gateway(engine.url, tls=section, store=store) as g:
                for _ in range(4):
                    client = await tls_client(g.port, authority.ca)
                    await client.send(g.request(CHAT, chat(stream=True)))
                    assert (await client.head())[0] == 200
                held, close = [g.app.ledger.stats().open], g.app.audit.close

                async def closing() -> None:
                    held.append(g.app.ledger.stats().open)
                    await close()

                g.app.audit.close = closing  # type: ignore[method-assign]
                kept, Client.opened[:] = Client.opened[:], []  # they stay to the end
            Client.opened += kept
            await Client.close_all()
        assert held == [4, 0]
        async with connection(store) as opened:
            rows = [dict(zip(STORED_COLUMNS, row, strict=True)) for row in await opened.audit_tail(10)]
        assert [row["outcome"] for row in rows] == ["interrupted"] * 4

    uvloop.run(main())


def test_only_a_certificate_of_the_authority_is_let_in(authority: Authority) -> None:
    """H12: mTLS."""
    server, member = authority.issue("server"), authority.issue("member")
    stranger = authority.issue("stranger", issuer="")

    async def main() -> None:
        section = authority.section(server, client_ca=authority.ca)
        async with Engine(stream) as engine, gateway(engine.url, tls=section) as g:
            assert await ask_by_tls(g, authority.ca, member) == 200
            for cert in ("", stranger):
                with pytest.raises(REFUSED):
                    await ask_by_tls(g, authority.ca, cert)

    uvloop.run(main())


def test_a_reload_brings_another_authority_of_clients_into_force(authority: Authority) -> None:
    """H12, O7: for the next handshakes, with their timer; nobody is let in who only the one before knew."""
    server, member = authority.issue("server"), authority.issue("member")
    other = authority.issue("other", issuer="")

    async def main() -> None:
        async with Engine(stream) as engine, gateway(engine.url, tls=authority.section(server)) as g:

            def reload(**more: str) -> None:
                tls, timeouts = authority.section(server, **more), cfg.Timeouts(tls_handshake=0.2)
                assert g.app.reload(msgspec.structs.replace(g.app.config, tls=tls, timeouts=timeouts)) == []

            assert await ask_by_tls(g, authority.ca, "") == 200
            reload(client_ca=authority.ca)
            assert await ask_by_tls(g, authority.ca, member) == 200
            with pytest.raises(REFUSED):
                await ask_by_tls(g, authority.ca, "")
            reload(client_ca=other)
            assert await ask_by_tls(g, authority.ca, other) == 200
            with pytest.raises(REFUSED):
                await ask_by_tls(g, authority.ca, member)
            silent = await g.connect()
            assert await silent.at_end()

    uvloop.run(main())


def test_a_file_of_tls_that_cannot_be_used_is_named(authority: Authority, tmp_path: Path) -> None:
    """O7: OpenSSL says that a file is missing, or is none, not which."""
    one, other = authority.issue("one"), authority.issue("other").replace(".pem", ".key")
    with pytest.raises(cfg.ConfigError, match="the key does not belong to the certificate"):
        tls_context(cfg.Tls(cert=one, key=other))
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    for missing in ("cert", "key", "client_ca"):
        section = {"cert": str(text), "key": str(text)} | {missing: str(tmp_path / "none.pem")}
        with pytest.raises(cfg.ConfigError, match=r"tls: .*none\.pem: No such file"):
            tls_context(msgspec.convert(section, cfg.Tls))
    with pytest.raises(cfg.ConfigError, match=r"tls: .*text\.pem: one of them is not a complete PEM file"):
        tls_context(cfg.Tls(cert=str(text), key=str(text)))
    for file in ("none.pem", "text.pem"):
        with pytest.raises(OSError, match=file):
            discovery.client("https://localhost", key="", ca=str(tmp_path / file), timeout=1.0)
        with pytest.raises(OSError, match=file):
            Pool(Address("localhost", 1, tls=True, ca=str(tmp_path / file)), idle_expiry=1.0)


def test_nobody_is_asked_for_a_passphrase(authority: Authority) -> None:
    """O7: a reload would wait for it."""
    cert, locked = authority.issue("locked"), str(authority.folder / "passphrase.key")
    key = cert.replace(".pem", ".key")
    command = ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:any word", "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(cfg.ConfigError, match=r"tls\.key: the key has a passphrase"):
        tls_context(cfg.Tls(cert=cert, key=locked))


def test_tls_older_than_1_2_is_refused(authority: Authority) -> None:
    """S-N5, H12. An unusable certificate is a sentence at start, not a traceback."""
    section = authority.section(authority.issue("server"))
    assert tls_context(section).minimum_version == ssl.TLSVersion.TLSv1_2

    async def main() -> None:
        async with Engine(stream) as engine, gateway(engine.url, tls=section) as g:
            old = ssl.create_default_context(cafile=authority.ca)
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
            old.set_ciphers("ALL:@SECLEVEL=0")  # so that it is the gateway who says no
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", g.port, ssl=old, server_hostname="localhost")

    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        uvloop.run(main())
    with pytest.raises(cfg.ConfigError, match="tls"):
        tls_context(cfg.Tls(cert="/none.pem", key="/none.key"))


def test_an_engine_is_believed_only_with_a_certificate_of_its_authority(authority: Authority) -> None:
    """S-N3, P-S2: the engine is another gateway here, which speaks TLS and wants a key."""
    section = authority.section(authority.issue("server"))
    stranger = authority.issue("stranger", issuer="")

    async def main() -> None:
        async with Engine(stream) as engine, gateway(engine.url, tls=section) as inner:
            spec = cfg.Backend(name="e", url=f"https://localhost:{inner.port}", engine="openai", key=inner.key)
            for authority_file, served in ((authority.ca, True), (stranger, False), ("", False)):
                backend = msgspec.structs.replace(spec, ca=authority_file, models=["m"])
                async with gateway("", backends=[backend]) as outer:
                    status, _, body = await outer.ask(CHAT, chat(stream=True))
                    assert (status == 200 and body.endswith(DONE)) == served
                    assert served or status in (403, 502, 503)
            assert engine.chats.qsize() == 1
            # Discovery's client has refused the stranger; the data path's own must do so too.
            for authority_file in (stranger, ""):
                pool = Pool(Address("localhost", inner.port, tls=True, ca=authority_file), idle_expiry=1.0)
                with pytest.raises(ConnectFailed):
                    await pool.dial(5.0)

    uvloop.run(main())


def test_the_doctor_names_the_remedy_for_an_engines_certificate(authority: Authority) -> None:
    """O5: the engine runs, and there is no firewall."""
    section = authority.section(authority.issue("server"))

    async def main() -> list[Finding]:
        async with Engine(stream) as engine, gateway(engine.url, tls=section) as inner:
            file = authority.folder / "fairgate.yaml"
            file.write_text(f"backends: [{{name: e, url: 'https://localhost:{inner.port}', engine: openai}}]\n")
            return (await examine(file))[-1].findings

    (found,) = uvloop.run(main())
    assert found.do == "renew its certificate, or name in `ca` the authority that signed it"


def test_a_reload_reads_the_authority_of_an_engine_anew(authority: Authority) -> None:
    """O7, R1: the engine has a certificate of another authority now, and so has the file that names it."""
    other = authority.issue("other", issuer="")
    first, second = authority.issue("first"), authority.issue("second", issuer="other")
    trusted = shutil.copy(authority.ca, authority.folder / "engine-ca.pem")

    async def main() -> None:
        async with Engine(stream) as engine, gateway(engine.url, tls=authority.section(first)) as inner:
            url = f"https://localhost:{inner.port}"
            backend = cfg.Backend(name="e", url=url, engine="openai", key=inner.key, ca=str(trusted), models=["m"])
            async with gateway("", backends=[backend]) as outer:
                inner.app.reload(msgspec.structs.replace(inner.app.config, tls=authority.section(second)))
                shutil.copy(other, trusted)
                outer.app.reload(outer.app.config)
                assert (await outer.ask(CHAT, chat(stream=True)))[0] == 200

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


def test_connections_that_never_shake_hands_are_in_the_caps(authority: Authority) -> None:
    """H3: from their accept on; those over the cap are closed at once, and the room of all comes back."""
    cert = authority.issue("gateway")

    async def silent(port: int) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        kept.append(writer)
        return reader

    async def main() -> None:
        caps = cfg.Caps(connections_per_ip=3)
        async with Engine(stream) as engine, gateway(engine.url, tls=authority.section(cert), caps=caps) as g:
            counter = g.app.server.counter
            for count in (1, 2, 3):
                await silent(g.port)
                async with asyncio.timeout(WAIT):
                    while len(counter._greeting) < count:
                        await asyncio.sleep(0)
            for _ in range(5):
                async with asyncio.timeout(WAIT):
                    assert await (await silent(g.port)).read() == b""
            assert (counter.refused, len(counter._greeting)) == (5, 3)
            for writer in kept:
                writer.close()
            async with asyncio.timeout(WAIT):
                while counter._of_address:
                    await asyncio.sleep(0)
            client = await tls_client(g.port, authority.ca)
            await client.send(g.request(CHAT, chat(stream=True)))
            assert (await client.answer())[0] == 200
            assert repr(counter) == "<ConnectionCounter open=1 greeting=0 addresses=1>"
            client.close()

    kept: list[asyncio.StreamWriter] = []
    uvloop.run(main())


def test_connections_wait_where_no_file_is_left_and_are_let_in_later(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """H3: accepting pauses instead of spinning, it is said, and nobody is lost."""
    cert = authority.issue("gateway")
    monkeypatch.setattr(listener, "FULL_PAUSE", 0.01)

    async def main() -> None:
        async with Engine(stream) as engine, gateway(engine.url, tls=authority.section(cert)) as g:
            waiting = socket.create_connection(("127.0.0.1", g.port))
            free = os.dup(0)
            os.close(free)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            try:
                async with asyncio.timeout(WAIT):
                    while "connections wait" not in caplog.text:
                        await asyncio.sleep(0.01)
                assert repr(g.app.server.counter) == "<ConnectionCounter open=0 greeting=0 addresses=0>"
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            async with asyncio.timeout(WAIT):
                while "greeting=1" not in repr(g.app.server.counter):
                    await asyncio.sleep(0.01)
            waiting.close()

    uvloop.run(main())
