"""`fairgate doctor` against real files, databases and engines (O5)."""

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.commands.doctor import Check, examine
from gateway.store import open_store
from gateway.store.postgresql import grants
from tests.admin.provider import Provider
from tests.databases import DATABASE, statement
from tests.servers import PostgreSQL, Redis, free_port
from tests.services.engines import Engine, ollama, running
from tests.services.issuer import PATH, RSA, WRITTEN, Issuer
from tests.services.test_checkup import make

ROOT = Path(__file__).parent.parent


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "fairgate.yaml"
    file.write_text(text)
    file.chmod(mode)
    return file


def look(file: Path | None, *engines: Engine) -> dict[str, Check]:
    async def body() -> list[Check]:
        async with running(*engines):
            return await examine(file)

    return {check.name: check for check in asyncio.run(body())}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "gateway", "doctor", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, cwd=ROOT)


def test_a_sound_configuration_has_no_findings(tmp_path: Path) -> None:
    """Nothing found, of a URL as SDKs want it neither."""
    engine = ollama("llama3:8b")
    asyncio.run(_made(tmp_path / "x.db"))

    async def body() -> list[Check]:
        async with running(engine):
            backend = f"{{name: b, url: '{engine.url}/v1/', engine: ollama}}"
            text = f"store: x.db\ncaps: {{connections: 10}}\nbackends: [{backend}]\n"
            return await examine(written(tmp_path, text))

    checks = asyncio.run(body())
    assert [(check.name, check.level) for check in checks if check.findings] == []
    assert [check.name for check in checks][-1] == "backend b"


def test_a_store_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    (found,) = look(written(tmp_path, "store: x.db\n"))["store"].findings
    assert (found.level, f"no store {tmp_path / 'x.db'}" in found.says) == ("warning", True)
    assert not (tmp_path / "x.db").exists()


def test_exit_codes_and_words(tmp_path: Path) -> None:
    """0 fine, 1 problems, 2 usage; each finding says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as refusing:
        port = refusing.getsockname()[1]
    backend = f"{{name: b, url: 'http://127.0.0.1:{port}', engine: ollama}}"
    file = written(tmp_path, f"store: {tmp_path / 'x.db'}\nbackends: [{backend}]\n")
    told = run("--config", str(file))
    assert told.returncode == 1
    assert "problem  backend b" in told.stdout
    assert "-> start it" in told.stdout
    found = {check["name"]: check for check in json.loads(run("--config", str(file), "--json").stdout)}
    assert found["backend b"]["findings"][0]["level"] == "problem"
    assert found["TLS"] == {"name": "TLS", "level": "ok", "findings": []}
    assert run("--nonsense").returncode == 2


def test_a_configuration_that_cannot_be_read_is_the_only_finding(tmp_path: Path) -> None:
    checks = look(written(tmp_path, "lisen: 127.0.0.1:1\n"))
    assert list(checks) == ["configuration"]
    assert "did you mean 'listen'" in checks["configuration"].findings[0].says


def test_sections_that_are_left_empty(tmp_path: Path) -> None:
    """As a name without anything behind it, which is what YAML calls null."""
    text = f"store: {tmp_path / 'x.db'}\njwt:\nadmin: {{oidc: }}\n"
    assert look(written(tmp_path, text, 0o644))["file modes"].findings == []


def test_the_extra_of_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O4: whether OpenTelemetry is there."""
    text = (
        f"store: {tmp_path / 'x.db'}\ntracing: {{endpoint: 'http://127.0.0.1:4318/v1/traces', headers: {{a: f7Zq2}}}}\n"
    )
    file = written(tmp_path, text, 0o644)
    checks = look(file)
    assert checks["tracing"].findings == []
    assert "tracing.headers.a" in checks["file modes"].findings[0].says
    monkeypatch.setitem(sys.modules, "gateway.services.spans", None)
    assert "fairgate[otel]" in look(file)["tracing"].findings[0].do
    assert "f7Zq2" not in repr(checks)


def test_an_issuer_whose_keys_cannot_be_fetched_or_are_writable_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K9: its keys are fetched as the gateway does; all may read a file of them, its owner change it."""
    issuer = Issuer(RSA)

    def found(jwks: str) -> dict[str, Check]:
        section = f"jwt: {{issuer: i, audience: a, tenant: t, jwks: '{jwks}'}}"
        return look(written(tmp_path, f"store: {tmp_path / 'x.db'}\n{section}\n"), issuer)

    async def address() -> str:
        async with running(issuer):
            return issuer.address

    there = asyncio.run(address())
    assert found(there)["tokens"].findings == []
    issuer.says(PATH, {"keys": []})
    assert "none of 0 keys" in found(there)["tokens"].findings[0].says
    file = tmp_path / "jwks.json"
    file.write_text(WRITTEN)
    file.chmod(0o644)
    checks = found("file:jwks.json")
    assert (checks["tokens"].findings, checks["file modes"].findings) == ([], [])
    file.chmod(0o666)
    assert "changed by others" in found("file:jwks.json")["file modes"].findings[0].says
    monkeypatch.setitem(sys.modules, "gateway.services.jwks", None)
    (missing,) = found(there)["tokens"].findings
    assert ("PyJWT is not installed" in missing.says, missing.do) == (True, "pip install 'fairgate[jwt]'")


def test_a_login_provider_that_cannot_work_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O8: it is asked as when somebody logs in."""
    file = tmp_path / "fairgate.yaml"
    provider = Provider()

    async def found() -> Check:
        async with provider.running():
            admin = {"api": True, "oidc": provider.section(url="https://console.example/admin/")}
            file.write_text(json.dumps({"store": str(tmp_path / "x.db"), "admin": admin}))
            checks = await asyncio.to_thread(look, file)
        return checks["console login"]

    assert asyncio.run(found()).findings == []
    provider.document = {"issuer": "https://else.example"}
    (fault,) = asyncio.run(found()).findings
    assert "another issuer" in fault.says
    monkeypatch.setitem(sys.modules, "gateway.admin.oidc", None)
    (missing,) = asyncio.run(found()).findings
    assert ("PyJWT is not installed" in missing.says, missing.do) == (True, "pip install 'fairgate[jwt]'")


def test_a_redaction_that_cannot_be_imported(tmp_path: Path) -> None:
    """U5: before the gateway refuses to start."""
    assert look(written(tmp_path, "prompts: {redact: 'no_such_module:f'}"))["redaction"].level == "problem"
    assert look(written(tmp_path, "prompts: {redact: 'json:dumps'}"))["redaction"].level == "ok"


def test_files_that_others_read(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("f7Zq2")
    secret.chmod(0o604)
    store = tmp_path / "x.db"
    asyncio.run(_made(store))
    store.chmod(0o644)
    backend = f"{{name: b, url: 'http://127.0.0.1:{free_port()}', engine: vllm, key: 'file:key'}}"
    checks = look(written(tmp_path, f"store: {store}\nbackends: [{backend}]\n"))
    assert str(secret) in checks["file modes"].findings[0].says
    assert checks["store"].level == "problem"
    assert "f7Zq2" not in repr(checks)


async def _made(path: Path) -> None:
    await (await open_store(str(path))).close()


def test_a_store_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("not a database, just some text that is long enough to be read as a header of one")
    (found,) = look(written(tmp_path, f"store: {tmp_path / 'x.db'}\n"))["store"].findings
    assert found.level == "problem"
    assert found.says == f"{tmp_path / 'x.db'}: file is not a database"
    assert "firewall" not in found.do


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H12"""
    tls = make(tmp_path, 5)
    text = f"store: {tmp_path / 'x.db'}\ntls: {{cert: '{tls.cert}', key: '{tls.key}'}}\n"
    assert "ends in" in look(written(tmp_path, text))["TLS"].findings[0].says
    monkeypatch.setenv("KEYS", str(tmp_path))
    Path(tls.cert).write_bytes("# by Zoë\n".encode() + Path(tls.cert).read_bytes())
    text = text.replace(str(tmp_path / "key.pem"), "${KEYS}/key.pem")
    checks = look(written(tmp_path, text))
    assert (checks["TLS"].level, checks["file modes"].level) == ("warning", "ok"), "as the gateway reads them"
    Path(tls.key).unlink()
    checks = look(written(tmp_path, text))
    assert (checks["TLS"].level, checks["file modes"].level) == ("problem", "problem")


def test_the_role_of_a_gateway(postgresql: PostgreSQL, tmp_path: Path) -> None:
    """U4, O6: the owner can rewrite history, the application's role cannot."""
    url = postgresql.url(DATABASE)
    asyncio.run(statement(url, "DROP ROLE IF EXISTS looked_at; CREATE ROLE looked_at LOGIN"))
    try:
        for grant in grants("looked_at"):
            asyncio.run(statement(url, grant))
        owner = look(written(tmp_path, f"store: {url}\n"))["store"]
        assert "may UPDATE, DELETE, TRUNCATE" in owner.findings[0].says
        role = postgresql.url(DATABASE, "looked_at")
        assert look(written(tmp_path, f"store: {role}\n"))["store"].findings == []
        for owned in ("audit_rest", "operations"):
            asyncio.run(statement(url, f"GRANT DELETE ON {owned} TO looked_at"))
            (found,) = look(written(tmp_path, f"store: {role}\n"))["store"].findings
            assert "may DELETE on" in found.says
            asyncio.run(statement(url, f"REVOKE DELETE ON {owned} FROM looked_at"))
        for lost in ("prompts", "schema_migrations"):
            asyncio.run(statement(url, f"REVOKE ALL ON {lost} FROM looked_at"))
            (found,) = look(written(tmp_path, f"store: {role}\n"))["store"].findings
            assert (f"SELECT on {lost}" in found.says, "migrate --app-role looked_at" in found.do) == (True, True)
        empty = postgresql.url("postgres")
        assert "fairgate migrate" in look(written(tmp_path, f"store: {empty}\n"))["store"].findings[0].do
    finally:
        asyncio.run(statement(url, "DROP OWNED BY looked_at; DROP ROLE looked_at"))
    gone = f"postgresql://owner:hunter2@127.0.0.1:{free_port()}/x"
    findings = look(written(tmp_path, f"store: {gone}\n"))["store"].findings
    assert findings[0].level == "problem"
    assert "hunter2" not in repr(findings)


def test_redis_answers(redis: Redis, tmp_path: Path) -> None:
    def level(url: str) -> str:
        return look(written(tmp_path, f"store: {tmp_path / 'x.db'}\nshared: {url}\n"))["Redis"].level

    assert level(redis.url()) == "ok"
    assert level(f"redis://127.0.0.1:{free_port()}") == "problem"


def test_a_store_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The gateway makes the file, not its folder."""
    (found,) = look(written(tmp_path, f"store: {tmp_path / 'none' / 'x.db'}\n"))["store"].findings
    assert (found.level, "no folder" in found.says) == ("problem", True)
