"""The judgement of `fairgate doctor`: each check on facts that are fine and on facts that are not (O5)."""

import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.api.model_info import ModelInfo
from gateway.config import Admin, Audit, Backend, Config, Cors, Identity, Tls, Tracing
from gateway.issuer import Jwt
from gateway.services import checkup, x509
from gateway.services.checkup import DAY, Finding
from gateway.services.discovery import Sighting
from gateway.store.facts import PostgreSQLFacts, SqliteFacts

ENGINE = Backend(name="b", url="http://127.0.0.1:11434", engine="ollama")
FINE = Config(backends=[ENGINE])


def levels(findings: list[Finding]) -> list[str]:
    assert all(finding.says and finding.do for finding in findings)
    return [finding.level for finding in findings]


def far(**settings: str) -> Backend:
    return Backend(**{"name": "b", "url": "https://10.0.0.5", "engine": "vllm", **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("check", [checkup.settings, checkup.listeners, checkup.secrets])
def test_the_defaults_are_safe(check: Callable[[Config], list[Finding]]) -> None:
    assert check(FINE) == []


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Config(admin=Admin(listen="0.0.0.0:9090")), ["problem"]),
        (Config(admin=Admin(listen="[::]:9090")), ["problem"]),
        (Config(admin=Admin(listen="8.8.8.8:9090")), ["problem"]),
        (Config(admin=Admin(listen="10.0.0.1:9090")), ["warning"]),
        (Config(admin=Admin(listen="")), []),
        (Config(admin=Admin(api=True)), []),
        (Config(admin=Admin(listen="10.0.0.1:9090", api=True)), ["warning", "warning"]),
        (Config(admin=Admin(listen="0.0.0.0:9090", api=True)), ["problem", "warning"]),
        (Config(listen="0.0.0.0:8080"), ["warning"]),
        (Config(listen="0.0.0.0:8080", tls=Tls(cert="c", key="k")), []),
        (Config(listen="0.0.0.0:8080", trusted_proxies=["10.0.0.0/8"]), []),
        (Config(listen="0.0.0.0:8080", hsts=True), ["warning"]),
        (Config(listen="0.0.0.0:8080", hsts=True, trusted_proxies=["10.0.0.0/8"]), []),
    ],
)
def test_an_exposed_admin_listener_or_keys_in_clear_text_are_reported(config: Config, expected: list[str]) -> None:
    """O8: the admin listener is not on a public address."""
    assert levels(checkup.listeners(config)) == expected


@pytest.mark.parametrize(
    ("tracing", "installed", "expected"),
    [
        (Tracing(), False, []),
        (Tracing(endpoint="http://127.0.0.1:4318/v1/traces", headers={"a": "b"}), True, []),
        (Tracing(endpoint="http://127.0.0.1:4318/v1/traces"), False, ["problem"]),
        (Tracing(endpoint="http://otel.example:4318/v1/traces", headers={"a": "b"}), True, ["warning"]),
        (Tracing(endpoint="https://otel.example/v1/traces", headers={"a": "b"}), True, []),
    ],
)
def test_tracing_without_its_package_or_with_headers_in_clear_text_is_reported(
    tracing: Tracing, installed: bool, expected: list[str]
) -> None:
    """O4"""
    assert levels(checkup.tracing(tracing, installed)) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Config(), ["problem"]),
        (Config(backends=[ENGINE], trusted_proxies=["::/0"]), ["problem"]),
        (Config(backends=[ENGINE], identity=Identity(argon2_time_cost=1)), ["warning"]),
        (Config(backends=[ENGINE], audit=Audit(when_full="drop")), ["warning"]),
        (Config(backends=[ENGINE], cors=Cors(origins=["*"])), ["warning"]),
    ],
)
def test_unsafe_settings(config: Config, expected: list[str]) -> None:
    assert levels(checkup.settings(config)) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Config(store="postgresql://app:f7Zq2@db/x"), []),
        (Config(shared="redis://redis.internal"), ["warning"]),
        (Config(shared="redis://127.0.0.1"), []),
        (Config(shared="redis://:f7Zq2@redis.internal"), []),
    ],
)
def test_passwords_of_databases(config: Config, expected: list[str]) -> None:
    """K11"""
    assert levels(checkup.secrets(config)) == expected


RAW = {"backends": [{"key": "plain"}, {"key": "env:KEY"}, {"key": "file:/run/k"}], "store": "postgresql://a:b@h/x"}


def test_who_reads_and_writes_the_configuration() -> None:
    assert checkup.config_file("f", 0o640, {}) == checkup.config_file("f", 0o600, RAW) == []
    assert levels(checkup.config_file("f", 0o660, {})) == ["problem"]
    (found,) = checkup.config_file("f", 0o644, RAW)
    assert "backends[0].key, store in clear" in found.says
    (found,) = checkup.config_file("f", 0o644, {"admin": {"oidc": {"client_secret": "plain"}}, "tracing": None})
    assert "admin.oidc.client_secret in clear" in found.says
    assert checkup.config_file("f", 0o644, {"admin": {"oidc": {"client_secret": "file:/run/s"}}, "jwt": None}) == []


def test_files_of_secrets() -> None:
    assert checkup.secret_files(RAW) == ["/run/k"]
    assert checkup.secret_files({"tls": {"cert": "c", "key": "/k"}, "a": ["file:/x"]}) == ["/x"]
    assert [levels(checkup.secret_file("f", mode)) for mode in (0o600, 0o640, 0o644, 0o660)] == [
        [], [], ["problem"], ["problem"],
    ]  # fmt: skip


def test_tokens_of_an_issuer() -> None:
    """K9: its keys are public, but for whoever may change them; users in every tenant are to be meant."""
    assert checkup.secret_files({"jwt": {"jwks": "file:/run/jwks", "issuer": "file:/x"}}) == ["/x"]
    assert [levels(checkup.public_file("f", mode)) for mode in (0o644, 0o664, 0o646)] == [[], ["problem"], ["problem"]]
    some = {"issuer": "i", "audience": "a", "jwks": "https://h/k", "tenant_claim": ("t",)}
    assert levels(checkup.tokens(Jwt(**some), "")) == []
    assert levels(checkup.tokens(Jwt(**some), "no answer within 5 s")) == ["problem"]
    assert levels(checkup.tokens(Jwt(**some, create_users=True), "")) == ["warning"]
    assert levels(checkup.tokens(Jwt(**some, create_users=True, tenants=("x",)), "")) == []


def test_a_certificate_that_ends_soon_or_has_ended_is_reported() -> None:
    now = 1_800_000_000.0
    ends = [checkup.certificate("c", now + days * DAY, now) for days in (90, 13, -1)]
    assert [levels(found) for found in ends] == [[], ["warning"], ["problem"]]


def test_a_missing_too_new_or_readable_sqlite_file_is_reported() -> None:
    (missing,) = checkup.sqlite("/d/f", SqliteFacts(False, 0, 0, 4))
    assert (missing.level, "no store /d/f" in missing.says) == ("warning", True)
    assert checkup.sqlite("f", SqliteFacts(True, 0o600, 3, 4)) == []
    assert levels(checkup.sqlite("f", SqliteFacts(True, 0o640, 5, 4))) == ["problem", "problem"]


def test_postgresql_schema_and_role() -> None:
    """U4, O6"""
    assert checkup.postgresql(PostgreSQLFacts("app", 4, 4, ())) == []
    assert levels(checkup.postgresql(PostgreSQLFacts("app", 3, 4, ()))) == ["problem"]
    assert levels(checkup.postgresql(PostgreSQLFacts("app", 5, 4, ()))) == ["problem"]
    (found,) = checkup.postgresql(PostgreSQLFacts("app", 4, 4, (), tuple("abcdef")))
    assert found.says.endswith("a, b, c, d and 2 more")
    (found,) = checkup.postgresql(PostgreSQLFacts("owner", 4, 4, ("UPDATE", "DELETE")))
    assert "owner may UPDATE, DELETE" in found.says


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        (ENGINE, []),
        (far(), ["warning"]),
        (far(key="k"), []),
        (far(url="http://gpu.internal", key="k"), ["warning"]),
        (far(url="http://localhost:1"), []),
        (far(url="http://[::1]:1"), []),
    ],
)
def test_engines_that_others_reach(backend: Backend, expected: list[str]) -> None:
    assert levels(checkup.exposure(backend)) == expected


def test_models_of_an_engine() -> None:
    listed = Backend(name="b", url="http://x", engine="ollama", models=["a", "b"])
    seen = Sighting(models=(ModelInfo(name="a:latest"),))
    assert checkup.models(ENGINE, seen) == []
    assert "does not have b" in checkup.models(listed, seen)[0].says
    assert levels(checkup.models(ENGINE, Sighting())) == ["warning"]


def test_a_limit_of_open_files_that_is_too_low_is_reported() -> None:
    assert checkup.file_limit(100, -1) == checkup.file_limit(100, 100) == []
    assert levels(checkup.file_limit(100, 99)) == ["warning"]


def test_the_worst_names_the_check() -> None:
    warning, problem = Finding("warning", "a", "b"), Finding("problem", "a", "b")
    assert [checkup.worst(found) for found in ([], [warning], [warning, problem])] == ["ok", "warning", "problem"]


@pytest.mark.parametrize("days", [5, 10_000])  # the second one ends past 2049: another type of time
def test_the_end_of_a_real_certificate(tmp_path: Path, days: int) -> None:
    cert = tmp_path / "cert.pem"
    make(tmp_path, days)
    told = subprocess.run([openssl(), "x509", "-in", cert, "-noout", "-enddate"], capture_output=True, text=True)
    assert x509.not_after(cert.read_text()) == ssl.cert_time_to_seconds(told.stdout.strip().removeprefix("notAfter="))
    with pytest.raises(ValueError, match="PEM"):
        x509.not_after("nothing")
    with pytest.raises(ValueError, match="cut short"):
        x509.not_after(ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(cert.read_text())[:60]))


def openssl() -> str:
    found = shutil.which("openssl")
    if found is None:
        pytest.skip("no openssl here to make a certificate with")
    return found


def make(folder: Path, days: int) -> Tls:
    """A certificate of our own and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -days {days}".split()
    subprocess.run([openssl(), *words, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return Tls(cert=str(cert), key=str(key))
