"""The configuration: one typed tree, loaded from YAML, unknown keys refused, secrets read from references.

Every setting exists once, here, with its range, default and description; `docs/config.md`, the JSON Schema and
`fairgate check-config` derive from these structs. Durations are seconds, sizes are bytes. After `load` nothing reads
the environment.
"""

import ipaddress
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Meta

from gateway.issuer import Jwt, Oidc, jwt_fault, oidc_fault
from gateway.shape import fitting, refuse_unknown
from gateway.source import ConfigError as ConfigError
from gateway.source import follow, read
from gateway.urls import (
    beside,
    database_fault,
    field_fault,
    host_fault,
    http_fault,
    origin_fault,
    parse_listen,
    store_beside,
    store_fault,
)
from scheduler.settings import Settings

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Size = Annotated[int, Meta(ge=1024, le=1 << 40)]
EngineKind = Literal["ollama", "vllm", "llamacpp", "openai"]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    pass


class Tls(_Section, frozen=True):
    """TLS of a listener (H12)."""

    cert: Annotated[str, Meta(description="PEM file with the certificate chain")]
    key: Annotated[str, Meta(description="PEM file with the private key, without a passphrase")]
    client_ca: Annotated[str, Meta(description="PEM file; when set, clients must present a certificate of it")] = ""


class Caps(_Section, frozen=True):
    """What one client, and all of them together, may make one process of the gateway hold (H3, H5)."""

    head_bytes: Annotated[Size, Meta(description="request line and header fields")] = 32 * 1024
    headers: Annotated[Count, Meta(description="number of header fields")] = 100
    target_bytes: Annotated[int, Meta(ge=256, le=65_536, description="request target")] = 8 * 1024
    body_bytes: Annotated[Size, Meta(description="one request body")] = 10 * 1024 * 1024
    bodies_bytes: Annotated[Size, Meta(description="all buffered bodies together; body_bytes or more")] = (
        256 * 1024 * 1024
    )
    connections: Annotated[Count, Meta(description="client connections")] = 10_000
    connections_per_ip: Annotated[Count, Meta(description="client connections of one address")] = 1_000
    connections_per_key: Annotated[Count, Meta(description="requests of one key at once")] = 200
    buffer_bytes: Annotated[Size, Meta(description="bytes held for a client that does not read")] = 256 * 1024


class Timeouts(_Section, frozen=True):
    """Timers of the client side (H4)."""

    head: Annotated[Seconds, Meta(description="from the first byte of a request to the end of its head")] = 10.0
    body: Annotated[Seconds, Meta(description="from the head to the end of the body")] = 60.0
    body_idle: Annotated[Seconds, Meta(description="between two reads of a body")] = 15.0
    keep_alive: Annotated[Seconds, Meta(description="idle between two requests")] = 75.0
    slow_reader: Annotated[Seconds, Meta(description="a client that does not take its answer")] = 60.0
    tls_handshake: Annotated[Seconds, Meta(description="TLS handshake")] = 10.0
    drain: Annotated[Seconds, Meta(description="running requests at shutdown (H13)")] = 30.0
    comment: Annotated[Seconds, Meta(description="silence before an SSE keep-alive comment (A11)")] = 15.0


class Cors(_Section, frozen=True):
    """Cross-origin access (H11): off unless origins are named."""

    origins: Annotated[list[str], Meta(description="exact origins, such as https://chat.example.com")] = []
    credentials: Annotated[bool, Meta(description="allow credentials; refused together with `*`")] = False


class Upstream(_Section, frozen=True):
    """Timers of the backend side and what a model may produce (R4, A6)."""

    connect: Annotated[Seconds, Meta(description="TCP and TLS connect")] = 5.0
    first_byte: Annotated[Seconds, Meta(description="request sent to first byte of the answer")] = 300.0
    between: Annotated[Seconds, Meta(description="silence between two reads of a stream")] = 120.0
    total: Annotated[Seconds, Meta(description="the whole exchange with the backend")] = 1800.0
    retries: Annotated[int, Meta(ge=0, le=2, description="further attempts before any byte of an answer (R5)")] = 2
    max_output_tokens: Annotated[int, Meta(ge=1, le=10_000_000, description="output cap; larger asks are clamped")] = (
        4096
    )


class Model(_Section, frozen=True):
    """Overrides of `upstream` for one model; absent means inherited."""

    connect: Seconds | None = None
    first_byte: Seconds | None = None
    between: Seconds | None = None
    total: Seconds | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    cost_factor: Annotated[float, Meta(gt=0, le=1000, description="weight of this model's tokens in fair use")] = 1.0


class Adaptive(_Section, frozen=True):
    """Slots found from the engine's speed instead of a number (scheduler.md 5.6)."""

    tpot: Annotated[float, Meta(gt=0, le=60, description="time per output token to keep to, in seconds")]
    low: Annotated[int, Meta(ge=1, le=1_000_000, description="fewest slots; also where it starts")] = 1
    high: Annotated[int, Meta(ge=1, le=1_000_000, description="most slots")] = 256


class Backend(_Section, frozen=True):
    """One engine (R1)."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="unique name, used in metrics and audit")]
    url: Annotated[str, Meta(description="base URL, such as http://10.0.0.5:11434; `/v1` at its end is left out")]
    engine: Annotated[EngineKind, Meta(description="what speaks there")]
    slots: (
        Annotated[int, Meta(ge=1, le=1_000_000, description="requests at once; absent: discovered, else 4")] | None
    ) = None
    adaptive: (
        Annotated[Adaptive, Meta(description="find the slots from the engine's speed; not together with slots")] | None
    ) = None
    key: Annotated[str, Meta(description="bearer key the engine wants; use env: or file:")] = ""
    models: Annotated[list[str], Meta(description="serve only these; empty: all that discovery finds")] = []
    weight: Annotated[float, Meta(gt=0, le=1000, description="preference among equals")] = 1.0
    ca: Annotated[str, Meta(description="PEM file to verify an https backend; empty: the system's")] = ""


class Price(_Section, frozen=True):
    """What a model's tokens cost in usage reports, in any one currency (U6)."""

    input: Annotated[float, Meta(ge=0, le=1e9, description="a million prompt tokens")]
    output: Annotated[float, Meta(ge=0, le=1e9, description="a million completion tokens")]


class Category(_Section, frozen=True):
    """A name that stands for a group of models (A9)."""

    models: Annotated[list[str], Meta(min_length=1, description="the group; no model outside it is ever chosen")]
    preferred: Annotated[str, Meta(description="taken whenever it may be used; else one that is loaded")] = ""


class Discovery(_Section, frozen=True):
    """How backends are watched (R2)."""

    interval: Annotated[Seconds, Meta(description="between two looks at a backend")] = 10.0
    timeout: Annotated[Seconds, Meta(description="one look")] = 5.0
    forget: Annotated[Seconds, Meta(description="unseen so long: no models; interval + timeout or more")] = 60.0
    eject_after: Annotated[Count, Meta(description="failures in a row that open the breaker")] = 3
    eject_for: Annotated[Seconds, Meta(description="how long the breaker stays open before one probe")] = 10.0


class Identity(_Section, frozen=True):
    """Keys and how failures are answered (K)."""

    cache_seconds: Annotated[Seconds, Meta(description="life of a verified key in the cache")] = 60.0
    cache_size: Annotated[Count, Meta(description="entries of the verified-key cache")] = 100_000
    failures_per_minute: Annotated[Count, Meta(description="failed authentications of one address before 429")] = 10
    argon2_time_cost: Annotated[int, Meta(ge=1, le=20, description="Argon2id passes")] = 2
    argon2_memory_kib: Annotated[int, Meta(ge=8, le=1 << 20, description="Argon2id memory")] = 19 * 1024
    argon2_threads: Annotated[int, Meta(ge=1, le=16, description="verifying threads")] = 2
    argon2_queue: Annotated[Count, Meta(description="verifications of new keys under way before 503")] = 256
    store_timeout: Annotated[Seconds, Meta(description="one read of the store before 503")] = 2.0
    unknown_model_status: Annotated[Literal[403, 404], Meta(description="answer for models a key may not use")] = 403


class Audit(_Section, frozen=True):
    """The audit trail (U)."""

    batch_rows: Annotated[int, Meta(ge=1, le=500, description="rows written at once")] = 500
    batch_seconds: Annotated[float, Meta(gt=0, le=60, description="longest wait of a row")] = 0.2
    spool: Annotated[
        str,
        Meta(
            description="directory of the write-ahead spool; empty: beside the store, with PostgreSQL `fairgate.spool` "
            "in the folder in which the gateway is started"
        ),
    ] = ""
    spool_bytes: Annotated[
        int, Meta(ge=1 << 20, le=1 << 40, description="rows held on disk while the store is down")
    ] = 1 << 30
    when_full: Annotated[
        Literal["deny", "drop"], Meta(description="a full spool denies requests, or drops rows and counts them")
    ] = "deny"
    anchors: Annotated[str, Meta(description="file of the chain's anchors; empty: in the spool")] = ""
    anchor_seconds: Annotated[Seconds, Meta(description="between two anchors of the chain")] = 3600.0


class Prompts(_Section, frozen=True):
    """Prompts of keys that opted in by `fairgate prompts on` (U5). Nothing is stored of any other key."""

    redact: Annotated[
        str,
        Meta(
            pattern=r"^$|^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
            description="MODULE:FUNCTION, given a request's body as bytes, returns what of it may be stored, as bytes "
            "or str; when it raises, nothing is stored; empty: the whole body",
        ),
    ] = ""
    max_bytes: Annotated[Size, Meta(description="stored of one prompt; the rest is cut off")] = 64 * 1024
    pending_bytes: Annotated[
        Size, Meta(description="held until written; what finds no room is dropped and counted")
    ] = 16 * 1024 * 1024


class Quotas(_Section, frozen=True):
    """How limits and budgets are counted (L)."""

    lease: Annotated[
        float, Meta(ge=1, le=300, description="life of what is leased from the store or Redis to be spent here")
    ] = 10.0
    deadline: Annotated[float, Meta(gt=0, le=10, description="one round with Redis before 503")] = 0.05
    store_deadline: Annotated[float, Meta(gt=0, le=30, description="one round with the store before 503")] = 2.0
    expire: Annotated[
        float, Meta(gt=0, le=604_800, description="unsettled, a reservation counts as used; longer than any request")
    ] = 7200.0


class Admin(_Section, frozen=True):
    """The control-plane listener: /metrics, /healthz, /readyz, and the admin API. Keep it off the open network."""

    listen: Annotated[str, Meta(description="HOST:PORT; empty: no listener")] = "127.0.0.1:9090"
    api: Annotated[
        bool, Meta(description="also serve /admin/v1 and the console at /admin/, to keys with admin scopes")
    ] = False
    hosts: Annotated[
        list[str],
        Meta(
            description="names, without port, by which the admin API may be called beside loopback's and the listener's"
        ),
    ] = []
    oidc: (
        Annotated[Oidc, Meta(description="sessions of the console by an OpenID provider; absent: only keys open it")]
        | None
    ) = None


class Log(_Section, frozen=True):
    """Logs on standard error, one JSON object a line (O3)."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="lowest level written")] = "info"
    requests: Annotated[bool, Meta(description="also one line per request; the audit row is the record")] = False


class Tracing(_Section, frozen=True):
    """OpenTelemetry traces (O4); off unless an endpoint is named. Needs `pip install 'fairgate[otel]'`."""

    endpoint: Annotated[
        str, Meta(description="OTLP/HTTP address of the collector, such as http://collector:4318/v1/traces; empty: off")
    ] = ""
    headers: Annotated[
        dict[str, str], Meta(description="header fields for the collector; secrets by env: or file:")
    ] = {}
    ca: Annotated[str, Meta(description="PEM file to verify an https collector; empty: the system's")] = ""
    ratio: Annotated[
        float, Meta(ge=0, le=1, description="share of new traces that is kept; a client's own flag goes before it")
    ] = 1.0
    identities: Annotated[bool, Meta(description="also name tenant and user, by id")] = False
    service: Annotated[str, Meta(min_length=1, description="name of this service in traces")] = "fairgate"
    queue: Annotated[Count, Meta(description="requests that may wait for export; more are dropped and counted")] = 4096
    timeout: Annotated[Seconds, Meta(description="one export, with its retries")] = 10.0


class Config(_Section, frozen=True):
    """The whole file."""

    listen: Annotated[str, Meta(description="HOST:PORT of the data plane")] = "127.0.0.1:8080"
    store: Annotated[str, Meta(description="path of the SQLite file, or postgresql://...")] = "fairgate.db"
    shared: Annotated[
        str, Meta(description="redis://... where gateways count rates and open requests together; empty: each its own")
    ] = ""
    workers: Annotated[
        int,
        Meta(
            ge=1,
            le=256,
            description="processes that serve, on one core each; above 1 a parent process shares out slots and limits",
        ),
    ] = 1
    reuse_port: Annotated[
        bool, Meta(description="let a new process listen beside the old one while that one drains (H13)")
    ] = False
    tls: Annotated[Tls, Meta(description="absent: plain HTTP")] | None = None
    hsts: Annotated[bool, Meta(description="send HSTS although TLS ends in front of us")] = False
    trusted_proxies: Annotated[list[str], Meta(description="CIDRs whose X-Forwarded-For is believed (H9)")] = []
    playground: Annotated[bool, Meta(description="serve /playground")] = False
    cors: Cors = Cors()
    caps: Caps = Caps()
    timeouts: Timeouts = Timeouts()
    upstream: Upstream = Upstream()
    discovery: Discovery = Discovery()
    scheduling: Annotated[
        Settings, Meta(description="the fair-use scheduler; docs/scheduler.md says what each does")
    ] = Settings()
    identity: Identity = Identity()
    jwt: Annotated[Jwt, Meta(description="tokens of an identity provider; absent: none are taken")] | None = None
    audit: Audit = Audit()
    prompts: Prompts = Prompts()
    limits: Quotas = Quotas()
    admin: Admin = Admin()
    log: Log = Log()
    tracing: Tracing = Tracing()
    backends: Annotated[list[Backend], Meta(description="the engines")] = []
    models: Annotated[dict[str, Model], Meta(description="per-model overrides, by name")] = {}
    prices: Annotated[
        dict[str, Price], Meta(description="price of each model, by name, for usage reports; others cost nothing")
    ] = {}
    aliases: Annotated[dict[str, str], Meta(description="other name -> model or category")] = {}
    categories: Annotated[
        dict[str, Category], Meta(description="name -> group of models, the best of which serves")
    ] = {}


def load(path: Path) -> Config:
    """Read, resolve and check a configuration file. Raises ConfigError with the path of the faulty setting.

    Relative paths in it start in its folder: what it names does not depend on where a command is called.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path}: {getattr(err, 'strerror', None) or err}") from err
    if path.stat().st_mode & stat.S_IWOTH:
        raise ConfigError(f"{path}: writable by everyone; refuse to trust it (chmod o-w)")
    return parse(text, path.parent)


def parse(text: str, folder: Path = Path()) -> Config:
    """YAML text -> checked Config. Relative paths start in `folder`."""
    raw = follow(read(text), folder)
    refuse_unknown(raw, Config, "")
    config: Config = fitting(raw, Config)
    check(config)
    return _placed(config, folder)


def _placed(config: Config, folder: Path) -> Config:
    """Every path it holds as seen from the current folder."""
    change, tls, audit, tracing = msgspec.structs.replace, config.tls, config.audit, config.tracing
    jwt, oidc = config.jwt, config.admin.oidc
    if tls is not None:
        paths = {name: beside(folder, getattr(tls, name)) for name in ("cert", "key", "client_ca")}
        tls = change(tls, **paths)
    return change(
        config,
        store=store_beside(folder, config.store),
        tls=tls,
        audit=change(audit, spool=beside(folder, audit.spool), anchors=beside(folder, audit.anchors)),
        tracing=change(tracing, ca=beside(folder, tracing.ca)),
        jwt=None if jwt is None else change(jwt, ca=beside(folder, jwt.ca)),
        admin=change(config.admin, oidc=None if oidc is None else change(oidc, ca=beside(folder, oidc.ca))),
        backends=[change(backend, ca=beside(folder, backend.ca)) for backend in config.backends],
    )


PLACEHOLDERS = frozenset(
    {"changeme", "change-me", "secret", "password", "your-key", "your-api-key", "sk-xxx", "example"}
)


_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110, 5.1: a token."""


def check(config: Config) -> None:
    """Rules that span fields. Raises ConfigError."""
    _check_addresses(config)
    _check_backends(config.backends)
    if config.tracing.endpoint:
        _refuse("tracing.endpoint", http_fault(config.tracing.endpoint))
    for name, value in config.tracing.headers.items():
        if not _FIELD_NAME.fullmatch(name):
            raise ConfigError("tracing.headers: a name that no header field can have")
        _refuse(f"tracing.headers.{name}", field_fault(value))
    _refuse("store", store_fault(config.store))
    _refuse("shared", database_fault(config.shared))
    if config.shared and urlsplit(config.shared).scheme not in ("redis", "rediss"):
        raise ConfigError("shared: only redis:// and rediss:// are known")
    _check_names(config)
    if config.jwt is not None and (at := jwt_fault(config.jwt)):
        raise ConfigError(f"jwt.{at}")
    if config.admin.oidc is not None and (at := oidc_fault(config.admin.oidc)):
        raise ConfigError(f"admin.oidc.{at}")
    _check_secrets(config)
    if config.discovery.forget < config.discovery.interval + config.discovery.timeout:
        raise ConfigError("discovery.forget: less than interval and timeout: models would vanish between two looks")
    if config.limits.expire < (longest := _longest_request(config)):
        raise ConfigError(f"limits.expire: less than the {longest:g} s that a request may wait and run")
    if config.caps.bodies_bytes < config.caps.body_bytes:
        raise ConfigError("caps.bodies_bytes: less than body_bytes: the largest body would find no room")
    for index, origin in enumerate(config.cors.origins):
        _refuse(f"cors.origins[{index}]", origin_fault(origin))
    if "*" in config.cors.origins and config.cors.credentials:
        raise ConfigError("cors.credentials: refused together with the origin '*'")


def _longest_request(config: Config) -> float:
    """Seconds: all its waits for slots, a connection for each attempt, and the exchange of the last one."""
    terms: list[Upstream | Model] = [config.upstream, *config.models.values()]
    connects = (1 + config.upstream.retries) * max(one.connect or 0.0 for one in terms)
    return config.scheduling.queue_timeout + connects + max(one.total or 0.0 for one in terms)


def secrets(config: Config) -> set[str]:
    """Every secret that stands in the configuration or that its references led to, as it may appear in a text."""
    found = {secret for _, secret in _named_secrets(config) if secret}
    return found | {unquote(secret) for secret in found}


def _named_secrets(config: Config) -> Iterator[tuple[str, str]]:
    """Where each stands, and what it is; empty where none is set."""
    for name, url in (("store", config.store), ("shared", config.shared)):
        if "://" in url:
            yield f"{name}: its password", urlsplit(url).password or ""
    for index, backend in enumerate(config.backends):
        yield f"backends[{index}].key", backend.key
    if config.admin.oidc is not None:
        yield "admin.oidc.client_secret", config.admin.oidc.client_secret
    for name, value in config.tracing.headers.items():
        yield f"tracing.headers.{name}", value


def _check_secrets(config: Config) -> None:
    """K11."""
    for where, secret in _named_secrets(config):
        if unquote(secret).lower() in PLACEHOLDERS:
            raise ConfigError(f"{where}: a known placeholder is no secret")


def _refuse(path: str, fault: str) -> None:
    if fault:
        raise ConfigError(f"{path}: {fault}")


def _check_names(config: Config) -> None:
    for name, group in config.categories.items():
        if group.preferred and group.preferred not in group.models:
            raise ConfigError(f"categories.{name}.preferred: {group.preferred!r} is not in the group")
        if nested := set(group.models) & (config.categories.keys() | config.aliases.keys()):
            raise ConfigError(f"categories.{name}.models: {min(nested)!r} is a category or alias itself")
    for alias, target in config.aliases.items():
        if alias in config.categories:
            raise ConfigError(f"aliases.{alias}: a category has that name")
        if target in config.aliases:
            raise ConfigError(f"aliases.{alias}: {target!r} is an alias itself")


def _check_addresses(config: Config) -> None:
    for path, text in (("listen", config.listen), ("admin.listen", config.admin.listen)):
        if text or path == "listen":
            try:
                parse_listen(text)
            except ValueError as err:
                raise ConfigError(f"{path}: {err}") from err
    if config.admin.listen == config.listen and parse_listen(config.listen)[1]:
        raise ConfigError("admin.listen: it is the address of `listen`")
    if config.admin.api and not config.admin.listen:
        raise ConfigError("admin.api: there is no admin.listen to serve it on")
    if config.admin.oidc is not None and not config.admin.api:
        raise ConfigError("admin.oidc: nobody can log in where admin.api is off")
    for index, name in enumerate(config.admin.hosts):
        if fault := host_fault(name):
            raise ConfigError(f"admin.hosts[{index}]: {fault}")
    for index, cidr in enumerate(config.trusted_proxies):
        try:
            ipaddress.ip_network(cidr)
        except ValueError as err:
            raise ConfigError(f"trusted_proxies[{index}]: {err}") from err


def _check_backends(backends: list[Backend]) -> None:
    names = set()
    for index, backend in enumerate(backends):
        at = f"backends[{index}]"
        if backend.name in names:
            raise ConfigError(f"{at}.name: {backend.name!r} is used twice")
        names.add(backend.name)
        _refuse(f"{at}.url", http_fault(backend.url))
        if backend.adaptive is not None and backend.slots is not None:
            raise ConfigError(f"{at}.adaptive: not together with slots")
        if backend.adaptive is not None and backend.adaptive.low > backend.adaptive.high:
            raise ConfigError(f"{at}.adaptive.low: above high")
        _refuse(f"{at}.key", field_fault(backend.key))


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    return msgspec.json.schema(Config)
