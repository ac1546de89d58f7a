"""The configuration: one typed tree, which `loading` makes of a file.

Every setting exists once, here, with its range, default and description; `docs/config.md`, the JSON Schema and
`fairgate check-config` derive from these structs. Durations are seconds, sizes are bytes.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.issuer import Jwt, Oidc
from gateway.source import ConfigError as ConfigError
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
    forget: Annotated[
        Seconds, Meta(description="neither seen nor serving so long: no models; interval + timeout or more")
    ] = 60.0
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


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    return msgspec.json.schema(Config)
