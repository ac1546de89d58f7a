"""Proofs for rows of the threat model that no other test gives: docs/threats.yaml names each of these."""

import ast
import asyncio
import re
from pathlib import Path

import msgspec
import pytest

from gateway import config, loading
from gateway.errors import RateLimited
from gateway.flow import fields
from gateway.flow.peer import HOPS, client_ip_of
from gateway.http1.message import RequestHead
from gateway.http1.wire import RequestReader, WireLimits
from gateway.services.backends import BackendService
from gateway.services.catalogue import Backend
from gateway.services.record import AuditRecord
from gateway.services.tracing import passed_on
from gateway.store import open_store
from gateway.store.base import Head, Tenant

ROOT = Path(__file__).resolve().parent.parent

FORGED = {
    "X-Forwarded-User": "root", "X-Forwarded-For": "10.0.0.1", "X-Fairgate-Tenant": "other", "Cookie": "session=1",
    "Authorization": "Bearer fg_theirs", "X-Api-Key": "fg_theirs", "Connection": "x-secret", "X-Secret": "1",
}  # fmt: skip


def head_of(extra: dict[str, str], host: str = "gateway.example") -> RequestHead:
    """A head as the wire reads it."""
    lines = [f"Host: {host}", *(f"{name}: {value}" for name, value in extra.items())]
    raw = "POST /v1/chat/completions HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\nContent-Length: 0\r\n\r\n"
    reader = RequestReader(WireLimits())
    reader.feed(raw.encode())
    head = reader.head
    assert head is not None
    return head


def test_only_a_trusted_proxy_is_believed() -> None:
    """S-Z3, H9: X-Forwarded-For counts from the right, and only behind an address that is named."""
    believed = client_ip_of(["10.0.0.0/8"])
    forged = head_of({"X-Forwarded-For": "203.0.113.9, 198.51.100.2, 10.0.0.9"})
    assert believed("192.0.2.1", forged) == "192.0.2.1"
    assert believed("10.0.0.5", forged) == "198.51.100.2"
    assert client_ip_of([])("10.0.0.5", forged) == "10.0.0.5"


def test_a_row_of_proxies_has_an_end() -> None:
    """C-T5, H9: whoever writes thousands of addresses that look like proxies' has no more than a few looked at."""
    believed = client_ip_of(["10.0.0.0/8"])
    row = ["198.51.100.2"] + [f"10.0.1.{number}" for number in range(HOPS)]
    assert believed("10.0.0.5", head_of({"X-Forwarded-For": ", ".join(row[:HOPS])})) == "198.51.100.2"
    assert believed("10.0.0.5", head_of({"X-Forwarded-For": ", ".join(row)})) == "10.0.1.0"


def test_security_fields_stand_on_every_answer() -> None:
    """S-H1, S-H2, S-H5, S-H6, H11: on answers and on errors alike."""
    for made in (fields.answer_fields(b"application/json", "id"), fields.error_fields(RateLimited("Slow down."), "id")):
        for line in (b"X-Frame-Options: DENY", b"X-Content-Type-Options: nosniff", b"Referrer-Policy: no-referrer"):
            assert line + b"\r\n" in made
        assert b"\r\nPermissions-Policy: " in made
        assert b"\r\nCache-Control: no-store\r\n" in made


SECRETS = {
    "backends[0].key": "backends: [{name: a, url: 'http://127.0.0.1:1', engine: vllm, key: SECRET}]",
    "store: its password": "store: postgresql://app:SECRET@db/x",
    "shared: its password": "shared: redis://:SECRET@redis",
    "tracing.headers.x-key": "tracing: {headers: {x-key: SECRET}}",
    "admin.oidc.client_secret": (
        "admin: {api: true, listen: '127.0.0.1:9090', oidc: {issuer: 'https://i.example', client_id: c,"
        " client_secret: SECRET, url: 'https://a.example/admin/', role_claim: [roles], read: [x]}}"
    ),
}


def test_no_default_credentials_anywhere() -> None:
    """S-A4, S-D5, K11: the defaults hold no secret, and known placeholders are refused."""
    for section in (config.Config(), config.Identity(), config.Admin()):
        named = {name: value for name, value in msgspec.structs.asdict(section).items() if isinstance(value, str)}
        assert not [name for name, value in named.items() if re.search("key|secret|password|token", name) and value]
    for placeholder in sorted(loading.PLACEHOLDERS):
        for where, text in SECRETS.items():
            with pytest.raises(config.ConfigError, match=f"^{re.escape(where)}: this is a well-known placeholder"):
                loading.parse(text.replace("SECRET", placeholder.title()))


def test_cors_star_with_credentials_is_refused() -> None:
    """S-H3, H11."""
    assert config.Config().cors.origins == []
    with pytest.raises(config.ConfigError, match="credentials"):
        loading.parse("cors: {origins: ['*'], credentials: true}")


def test_a_configuration_anyone_may_write_is_refused(tmp_path: Path) -> None:
    """P-T3."""
    file = tmp_path / "fairgate.yaml"
    file.write_text("listen: 127.0.0.1:8080\n", encoding="utf-8")
    file.chmod(0o640)
    assert loading.load(file).listen == "127.0.0.1:8080"
    file.chmod(0o642)
    with pytest.raises(config.ConfigError, match="writable by everyone"):
        loading.load(file)


def test_audit_rows_have_no_room_for_prompts() -> None:
    """N-11, U1: every field is an id, a name from our own tables, an address, a number or a flag."""
    texts = {field.name for field in msgspec.structs.fields(AuditRecord) if field.type is str}
    ids = {"id", "tenant", "user", "key"}
    names = {"ip", "dialect", "route", "method", "model_asked", "model_served", "backend", "outcome", "error"}
    assert texts <= ids | names, f"is it safe to keep {texts - ids - names} for ever?"


def statements() -> list[str]:
    """Every SQL text of the store: string constants of its modules, and its migrations."""
    found = [path.read_text(encoding="utf-8") for path in (ROOT / "gateway/store").rglob("*.sql")]
    for path in (ROOT / "gateway/store").glob("*.py"):
        constants = (
            node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Constant)
        )
        found += [node.value for node in constants if isinstance(node.value, str)]
    return found


def test_the_application_never_changes_an_audit_row() -> None:
    """N-10, P-T4, U4."""
    texts = statements()
    assert any(re.search(r"(?i)insert into\s+\"?audit\b", text) or "audit" in text for text in texts)
    assert not [text for text in texts if re.search(r"(?i)(update|delete from|replace into)\s+\"?audit\b", text)]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    """S-I1: what would end a statement is stored and found like any other name."""
    hostile = """x'); DROP TABLE tenants; -- " $1 %s {0} \\"""

    async def run() -> None:
        store = await open_store(str(tmp_path / "fairgate.db"))
        try:
            await store.add_tenant(Tenant(id="t", name=hostile, created_at=1, models=(hostile,)))
            row = msgspec.structs.astuple(AuditRecord(id="r", started_at=1, model_asked=hostile, ip=hostile))
            assert await store.add_audit(Head(hostile), Head(hostile, 1, 1, b"h"), [(*row, hostile, 1, 1, b"h")])
            assert [(tenant.name, tenant.models) for tenant in await store.tenants()] == [(hostile, (hostile,))]
            assert AuditRecord.of((await store.audit_tail(1))[0]).model_asked == hostile
            assert not await store.revoke_key(hostile, 1)
        finally:
            await store.close()

    asyncio.run(run())


def test_only_allowlisted_fields_reach_the_engine() -> None:
    """S-Z3, P-5.2, H8, R9: the engine's head is built anew; nothing a client sends is passed on by default."""
    backend = engine()
    head = head_of(FORGED | {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
    made = fields.request_head(backend, b"/v1/chat/completions", "req-1", 0, passed_on(head.headers)).decode()
    names = {line.partition(":")[0].lower() for line in made.split("\r\n")[1:] if line}
    allowed = {"host", "content-type", "accept", "accept-encoding", "authorization", "x-request-id", "content-length"}
    assert names <= allowed | {"traceparent"}
    assert "fg_theirs" not in made
    assert "gateway.example" not in made
    assert "Host: 127.0.0.1:11434\r\n" in made


def engine() -> Backend:
    """A backend as the gateway itself makes one of its configuration."""
    section = config.Backend(name="e", url="http://127.0.0.1:11434", engine="ollama")
    service = BackendService(
        [section], config.Discovery(), config.Upstream(), {}, clock=lambda: 0.0, on_change=lambda _: None
    )
    return service.backend("e")
