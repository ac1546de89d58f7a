"""What a configuration may not say, and the words in which it is refused (O7)."""

from pathlib import Path

import pytest

from gateway.config import ConfigError
from gateway.loading import load, parse


def engine(**more: str) -> str:
    section = {"name": "a", "url": "http://h", "engine": "ollama", **more}
    return "backends: [{" + ", ".join(f'{name}: "{value}"' for name, value in section.items()) + "}]"


def jwt(more: str) -> str:
    return f"jwt: {{issuer: a, audience: b, jwks: 'https://h/k', tenant: t, {more}}}"


def oidc(*more: str) -> str:
    """`admin` with a provider; what is given stands in place of what is usual."""
    usual = {"issuer": "'https://h'", "client_id": "a", "url": "'https://h/admin/'", "role_claim": "[r]", "read": "[a]"}
    given = dict(each.split(": ", 1) for each in more)
    members = ", ".join(f"{name}: {value}" for name, value in (usual | given).items())
    return f"admin: {{api: true, oidc: {{{members}}}}}"


NO_HOSTS = ("", "a:80", "[::1]", "2001:DB8::7", "2001:db8:0::7", "A.lab", "a.", "a b", "http://a", "a/b", "10.0.0.300")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{engine()}\nhsts: true\nbackends: []", "a name appears twice, line 3, column 1"),
        ("audit: {when_full: drop, batch_rows: 5, when_full: deny}", "a name appears twice, line 1, column 41"),
        ("models: {1: {connect: 3}}", "models: 1 is not text; put it in quotes"),
        ("aliases: {on: small}", "aliases: True is not text; put it in quotes"),
        ('models: {a: {connect: 3}, "b:7": {connect: x}}', "models.b:7.connect: Expected `float | null`, got `str`"),
        ('models: {"b:7": }', "models.b:7: Expected `object`, got `null`"),
        ("prices: {a: {input: 1}}", "prices.a: Object missing required field `output`"),
        ("categories: {a: {models: [x]}, b: {models: [x, 1]}}", "categories.b.models[1]: Expected `str`, got `int`"),
        ("tracing: {headers: {authorization:sk-1}}", "tracing.headers[...]: Expected `str`, got `null`"),
        ("hsts: \x01", "not YAML: special characters are not allowed"),
        ("store: mysql://h/x", "store: neither a path nor sqlite:// nor postgresql://"),
        ("store: ''", "store: neither a path nor sqlite:// nor postgresql://"),
        ("store: 'sqlite:///'", "store: neither a path nor sqlite:// nor postgresql://"),
        ("listen: a..b:80", "listen: not HOST:PORT"),
        (engine(url="http://a..b"), "backends[0].url: not http(s)://HOST[:PORT][/PATH]"),
        (engine(key="sk-\u00e9"), "backends[0].key: only visible ASCII goes into a header field"),
        (engine(key="sk-1\\nsk-2"), "backends[0].key: only visible ASCII goes into a header field"),
        ('tracing: {headers: {a: "b\\r\\nc"}}', "tracing.headers.a: only visible ASCII goes into a header field"),
        ("tracing: {headers: {a b: c}}", "tracing.headers: not a valid header field name"),
        ("aliases: {small: x}\ncategories: {small: {models: [x]}}", "aliases.small: a category has that name"),
        ("cors: {origins: ['https://chat.example', 'https://chat.example/']}", "cors.origins[1]: not SCHEME://HOST"),
        ("cors: {origins: ['https://Chat.example']}", "cors.origins[0]: not SCHEME://HOST"),
        ("discovery: {interval: 60}", "discovery.forget: less than interval + timeout"),
        ("upstream: {total: 14400}", "limits.expire: less than the 14475 s that a request may wait and run"),
        ("models: {m: {total: 7126}}", "limits.expire: less than the 7201 s"),
        ("models: {m: {connect: 3600}}", "limits.expire: less than"),
        ("scheduling: {queue_timeout: 6000}", "limits.expire: less than the 7815 s"),
        ("limits: {expire: 1874}", "limits.expire: less than the 1875 s"),
        ("caps: {body_bytes: 4096, bodies_bytes: 2048}", "caps.bodies_bytes: less than body_bytes"),
        ("jwt: {issuer: a, audience: b, jwks: 'http://h/k', tenant: t}", "jwt.jwks: http only on loopback"),
        ("jwt: {issuer: a, audience: b, jwks: 'ftp://h/k', tenant: t}", "jwt.jwks: not https://"),
        ("jwt: {issuer: a, audience: b, jwks: 'https://u:p@h/k', tenant: t}", "jwt.jwks: not https://"),
        ("jwt: {issuer: a, audience: b, jwks: 'https://h/k#f', tenant: t}", "jwt.jwks: not https://"),
        ("jwt: {issuer: a, audience: b, jwks: '', tenant: t}", "jwt.jwks: not https://"),
        ("jwt: {issuer: a, audience: b, tenant: t}", "required field `jwks`"),
        ("jwt: {issuer: '', audience: b, jwks: 'https://h/k', tenant: t}", "jwt.issuer: "),
        (jwt("algorithms: [HS256]"), "jwt.algorithms[0]: none of"),
        (jwt("algorithms: [none]"), "jwt.algorithms[0]: none of"),
        (jwt("algorithms: []"), "jwt.algorithms: "),
        (jwt("scopes: [chats]"), "did you mean 'chat'"),
        (jwt("clock_skew: 61"), "jwt.clock_skew: "),
        (jwt("tenant_claim: [org]"), "jwt.tenant_claim: name either this or tenant"),
        ("jwt: {issuer: a, audience: b, jwks: 'https://h/k'}", "jwt.tenant_claim: name either this or tenant"),
        (jwt("tenants: [a]"), "jwt.tenants: only together with tenant_claim"),
        (jwt("user_claim: []"), "jwt.user_claim: "),
        (jwt("keep: 300"), "jwt.keep: less than refresh and timeout"),
        (jwt("retry: 301"), "jwt.retry: more than refresh"),
        ("reuse-port: true", "reuse-port: unknown setting; did you mean 'reuse_port'"),
        (jwt("audiance: b"), "jwt.audiance: unknown setting; did you mean 'audience'"),
        ("cors: {origins: ['null']}", "cors.origins[0]: not SCHEME://HOST"),
        (oidc("issuer: 'http://h'"), "admin.oidc.issuer: http only on loopback"),
        (oidc("url: 'http://h/admin/'"), "admin.oidc.url: http only on loopback"),
        (oidc("url: 'https://h/admin'"), "admin.oidc.url: it ends in /admin/"),
        (oidc("url: 'https://h/admin/?a=b'"), "admin.oidc.url: "),
        (oidc("read: []"), "admin.oidc.read: no role may do anything"),
        (oidc("scope: profile"), "admin.oidc.scope: "),
        (oidc("api: false").replace("api: true", "api: false"), "unknown setting"),
        ("admin: {oidc: {issuer: 'https://h', client_id: a}}", "required field"),
        (
            oidc().replace("api: true", "api: false"),
            "admin.oidc: it needs admin.api: without it there is nothing to log in to",
        ),
        ("listen: 127.0.0.1:80\nadmin: {listen: '127.0.0.1:80'}", "admin.listen: the same address as `listen`"),
        *((f"admin: {{hosts: [a, '{name}']}}", "admin.hosts[1]: not a name or an address") for name in NO_HOSTS),
    ],
)
def test_what_cannot_work_is_refused_with_its_path(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text)
    assert says in str(refused.value)
    assert "sk-" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "models: {a: &a {connect: 3}, b: {<<: *a, connect: 4}, c: {<<: *a, total: 5}}",
        "cors: {origins: ['*', 'http://localhost:3000', 'chrome-extension://abcdef', 'https://[::1]:8443']}",
        "listen: '[::1]:80'",
        "store: sqlite:///x.db",
        jwt("algorithms: [ES256]"),
        "jwt: {issuer: a, audience: b, jwks: 'https://h/k?appid=1', tenant_claim: [a, b], tenants: [x]}",
        "jwt: {issuer: a, audience: b, jwks: 'http://127.0.0.1:8/k', tenant: t}",
        "jwt: {issuer: a, audience: b, jwks: 'http://[::1]:8/k', tenant: t}",
        """jwt: {issuer: a, audience: b, jwks: '{"keys": []}', tenant: t}""",
        "aliases: {a: small}\ncategories: {small: {models: [x]}}",
        'tracing: {headers: {X-Key: "Basic dXNlcg==, two words"}}',
        oidc(),
        oidc(
            "url: 'http://localhost:9090/gateway/admin/'",
            "issuer: 'http://127.0.0.1:8/realms/a'",
            "scope: openid email",
        ),
        "admin: {hosts: [fairgate.lab, a, x_y.lab, 10.0.0.3, '2001:db8::7']}",
    ],
)
def test_what_looks_alike_and_works(text: str) -> None:
    assert parse(text)


PATHS = """
store: STORE
tls: {cert: c.pem, key: /k.pem, client_ca: ca.pem}
audit: {spool: s, anchors: a}
tracing: {ca: t.pem}
backends: [{name: b, url: "http://h", engine: vllm, ca: b.pem, key: "file:key"}]
"""


@pytest.mark.parametrize(
    ("store", "becomes"),
    [
        ("x.db", "DIR/x.db"),
        ("/y/x.db", "/y/x.db"),
        ("sqlite:///x.db", "sqlite:///DIR/x.db"),
        ("sqlite:////y/x.db", "sqlite:////y/x.db"),
        ("postgresql://u@h/x", "postgresql://u@h/x"),
    ],
)
def test_relative_paths_start_in_the_folder_of_the_file(store: str, becomes: str, tmp_path: Path) -> None:
    """Wherever the command is called that reads it."""
    file = tmp_path / "fairgate.yaml"
    file.write_text(PATHS.replace("STORE", store))
    (tmp_path / "key").write_text("f7Zq2\n")
    config = load(file)
    (backend,) = config.backends
    assert config.store == becomes.replace("DIR", str(tmp_path))
    assert config.tls is not None
    assert [config.tls.cert, config.tls.client_ca, config.audit.spool, config.audit.anchors, config.tracing.ca] == [
        str(tmp_path / name) for name in ("c.pem", "ca.pem", "s", "a", "t.pem")
    ]
    assert (config.tls.key, backend.ca, backend.key) == ("/k.pem", str(tmp_path / "b.pem"), "f7Zq2")


def test_without_paths_none_are_made_up(tmp_path: Path) -> None:
    """But for the store's, which has a default."""
    file = tmp_path / "fairgate.yaml"
    file.write_text("hsts: true\n")
    config = load(file)
    assert (config.store, config.audit.spool, config.audit.anchors) == (str(tmp_path / "fairgate.db"), "", "")
    assert parse("hsts: true").store == "fairgate.db"


@pytest.mark.parametrize(
    "setting",
    ["shared: env:FAIRGATE_EMPTY", "shared: ${FAIRGATE_EMPTY}", "tls: {cert: c, key: k, client_ca: file:empty}"],
)
def test_a_reference_to_nothing_is_refused(setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail closed: else a secret that was not provisioned counts limits by itself, or lets in every client."""
    monkeypatch.setenv("FAIRGATE_EMPTY", "")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "fairgate.yaml").write_text(setting)
    with pytest.raises(ConfigError, match="is empty"):
        load(tmp_path / "fairgate.yaml")
