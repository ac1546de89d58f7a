"""The configuration: one typed tree, which `loading` builds from a file.

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
    client_ca: Annotated[
        str, Meta(description="PEM file with a CA; if set, clients must present a certificate signed by it")
    ] = ""


class Caps(_Section, frozen=True):
    """Caps on what one client, and all clients together, can make one process of the gateway hold (H3, H5)."""

    head_bytes: Annotated[Size, Meta(description="size of request line and header fields together")] = 32 * 1024
    headers: Annotated[Count, Meta(description="number of header fields")] = 100
    target_bytes: Annotated[int, Meta(ge=256, le=65_536, description="size of the request target")] = 8 * 1024
    body_bytes: Annotated[Size, Meta(description="size of one request body")] = 10 * 1024 * 1024
    bodies_bytes: Annotated[Size, Meta(description="size of all buffered bodies together; at least body_bytes")] = (
        256 * 1024 * 1024
    )
    connections: Annotated[Count, Meta(description="open client connections")] = 10_000
    connections_per_ip: Annotated[Count, Meta(description="open client connections of one address")] = 1_000
    connections_per_key: Annotated[Count, Meta(description="concurrent requests of one key")] = 200
    buffer_bytes: Annotated[Size, Meta(description="answer bytes buffered for a client that does not read")] = (
        256 * 1024
    )


class Timeouts(_Section, frozen=True):
    """Timeouts on the client side (H4)."""

    head: Annotated[Seconds, Meta(description="from the first byte of a request to the end of its head")] = 10.0
    body: Annotated[Seconds, Meta(description="from the head to the end of the body")] = 60.0
    body_idle: Annotated[Seconds, Meta(description="between two reads of a body")] = 15.0
    keep_alive: Annotated[Seconds, Meta(description="idle time between two requests on a connection")] = 75.0
    slow_reader: Annotated[Seconds, Meta(description="how long a client may read nothing of its answer")] = 60.0
    tls_handshake: Annotated[Seconds, Meta(description="timeout for the TLS handshake")] = 10.0
    drain: Annotated[
        Seconds, Meta(description="how long running and waiting requests may continue at shutdown (H13)")
    ] = 30.0
    comment: Annotated[Seconds, Meta(description="silence before an SSE keep-alive comment (A11)")] = 15.0


class Cors(_Section, frozen=True):
    """Cross-origin access (H11); off unless origins are listed."""

    origins: Annotated[list[str], Meta(description="exact origins, such as https://chat.example.com")] = []
    credentials: Annotated[bool, Meta(description="allow credentials; refused together with `*`")] = False


class Upstream(_Section, frozen=True):
    """Timeouts on the backend side, and the cap on output tokens (R4, A6)."""

    connect: Annotated[Seconds, Meta(description="timeout for TCP and TLS connection setup")] = 5.0
    first_byte: Annotated[Seconds, Meta(description="from the sent request to the first byte of the answer")] = 300.0
    between: Annotated[Seconds, Meta(description="silence between two reads of a stream")] = 120.0
    total: Annotated[Seconds, Meta(description="timeout for the whole exchange with the backend")] = 1800.0
    retries: Annotated[int, Meta(ge=0, le=2, description="retries, only before any byte of an answer (R5)")] = 2
    max_output_tokens: Annotated[
        int, Meta(ge=1, le=10_000_000, description="cap on output tokens; larger requests are lowered to it")
    ] = 4096


class Model(_Section, frozen=True):
    """Overrides of `upstream` for one model; absent: inherited."""

    connect: Seconds | None = None
    first_byte: Seconds | None = None
    between: Seconds | None = None
    total: Seconds | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    cost_factor: Annotated[float, Meta(gt=0, le=1000, description="weight of this model's tokens in fair use")] = 1.0


class Adaptive(_Section, frozen=True):
    """The number of slots, found from the engine's speed instead of set (scheduler.md 5.6)."""

    tpot: Annotated[float, Meta(gt=0, le=60, description="target time per output token, in seconds")]
    low: Annotated[int, Meta(ge=1, le=1_000_000, description="minimum number of slots, also the initial one")] = 1
    high: Annotated[int, Meta(ge=1, le=1_000_000, description="maximum number of slots")] = 256


class Backend(_Section, frozen=True):
    """One engine (R1)."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="unique name, used in metrics and audit")]
    url: Annotated[str, Meta(description="base URL, such as http://10.0.0.5:11434; a trailing `/v1` is ignored")]
    engine: Annotated[EngineKind, Meta(description="kind of engine")]
    slots: (
        Annotated[int, Meta(ge=1, le=1_000_000, description="concurrent requests; absent: discovered, else 4")] | None
    ) = None
    adaptive: (
        Annotated[Adaptive, Meta(description="find the number of slots from the engine's speed; excludes `slots`")]
        | None
    ) = None
    key: Annotated[str, Meta(description="bearer key that the engine requires; use env: or file:")] = ""
    models: Annotated[list[str], Meta(description="serve only these models; empty: all that discovery finds")] = []
    weight: Annotated[float, Meta(gt=0, le=1000, description="preference among backends that are otherwise equal")] = (
        1.0
    )
    ca: Annotated[str, Meta(description="PEM file with the CA of an https backend; empty: the system's CAs")] = ""


class Price(_Section, frozen=True):
    """Price of a model's tokens in usage reports, in a currency of your choice (U6)."""

    input: Annotated[float, Meta(ge=0, le=1e9, description="price of a million prompt tokens")]
    output: Annotated[float, Meta(ge=0, le=1e9, description="price of a million completion tokens")]


class Category(_Section, frozen=True):
    """A name that stands for a group of models (A9)."""

    models: Annotated[list[str], Meta(min_length=1, description="the models of the group; no other is ever chosen")]
    preferred: Annotated[
        str, Meta(description="chosen whenever it is usable; otherwise a loaded model is preferred")
    ] = ""


class Discovery(_Section, frozen=True):
    """How backends are polled (R2)."""

    interval: Annotated[Seconds, Meta(description="time between two polls of a backend")] = 10.0
    timeout: Annotated[Seconds, Meta(description="timeout for one poll")] = 5.0
    forget: Annotated[
        Seconds,
        Meta(
            description="a backend neither polled successfully nor serving for this long has no models; at least "
            "interval + timeout"
        ),
    ] = 60.0
    eject_after: Annotated[Count, Meta(description="consecutive failures that open the breaker")] = 3
    eject_for: Annotated[
        Seconds, Meta(description="how long the breaker stays open before it lets one probe through")
    ] = 10.0


class Identity(_Section, frozen=True):
    """Verification of keys, and answers to failures (K)."""

    cache_seconds: Annotated[Seconds, Meta(description="how long a verified key stays in the cache")] = 60.0
    cache_size: Annotated[Count, Meta(description="entries of the verified-key cache")] = 100_000
    failures_per_minute: Annotated[Count, Meta(description="failed authentications per address before 429")] = 10
    argon2_time_cost: Annotated[int, Meta(ge=1, le=20, description="Argon2id passes")] = 2
    argon2_memory_kib: Annotated[int, Meta(ge=8, le=1 << 20, description="Argon2id memory")] = 19 * 1024
    argon2_threads: Annotated[int, Meta(ge=1, le=16, description="verification threads")] = 2
    argon2_queue: Annotated[Count, Meta(description="concurrent verifications of new keys before 503")] = 256
    store_timeout: Annotated[Seconds, Meta(description="timeout for one read of the store, then 503")] = 2.0
    unknown_model_status: Annotated[Literal[403, 404], Meta(description="status for models that a key may not use")] = (
        403
    )


class Audit(_Section, frozen=True):
    """The audit trail (U)."""

    batch_rows: Annotated[int, Meta(ge=1, le=500, description="rows written to the store in one batch")] = 500
    batch_seconds: Annotated[float, Meta(gt=0, le=60, description="maximum time a row waits for its batch to fill")] = (
        0.2
    )
    spool: Annotated[
        str,
        Meta(
            description="directory of the write-ahead spool; empty: beside the store, with PostgreSQL `fairgate.spool` "
            "in the folder where the gateway is started"
        ),
    ] = ""
    spool_bytes: Annotated[
        int, Meta(ge=1 << 20, le=1 << 40, description="size of the rows held on disk while the store is down")
    ] = 1 << 30
    when_full: Annotated[
        Literal["deny", "drop"], Meta(description="what a full spool does: deny requests, or drop rows and count them")
    ] = "deny"
    anchors: Annotated[str, Meta(description="file for the anchors of the hash chain; empty: in the spool")] = ""
    anchor_seconds: Annotated[Seconds, Meta(description="time between two anchors of the chain")] = 3600.0


class Prompts(_Section, frozen=True):
    """Storage of prompts for keys opted in with `fairgate prompts on` (U5). No other key's prompts are stored."""

    redact: Annotated[
        str,
        Meta(
            pattern=r"^$|^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
            description="MODULE:FUNCTION that takes a request's body as bytes and returns what of it may be stored, as "
            "bytes or str; if it raises, nothing is stored; empty: the whole body",
        ),
    ] = ""
    max_bytes: Annotated[Size, Meta(description="stored size of one prompt; the rest is cut off")] = 64 * 1024
    pending_bytes: Annotated[
        Size, Meta(description="size of prompts waiting to be written; more are dropped and counted")
    ] = 16 * 1024 * 1024


class Quotas(_Section, frozen=True):
    """How limits and budgets are counted (L)."""

    lease: Annotated[
        float, Meta(ge=1, le=300, description="how long quota leased from the store or Redis may be spent locally")
    ] = 10.0
    deadline: Annotated[float, Meta(gt=0, le=10, description="timeout for one exchange with Redis, then 503")] = 0.05
    store_deadline: Annotated[
        float, Meta(gt=0, le=30, description="timeout for one exchange with the store, then 503")
    ] = 2.0
    expire: Annotated[
        float,
        Meta(
            gt=0,
            le=604_800,
            description="after this time an unsettled reservation counts as used; longer than any request",
        ),
    ] = 7200.0


class Admin(_Section, frozen=True):
    """The control-plane listener: /metrics, /healthz, /readyz, and the admin API. Keep it off the open network."""

    listen: Annotated[str, Meta(description="HOST:PORT; empty: no listener")] = "127.0.0.1:9090"
    api: Annotated[
        bool, Meta(description="also serve /admin/v1 and the console at /admin/; they require keys with admin scopes")
    ] = False
    hosts: Annotated[
        list[str],
        Meta(
            description="further host names, without port, under which the admin API may be called, besides loopback's "
            "and the listener's own"
        ),
    ] = []
    oidc: (
        Annotated[Oidc, Meta(description="login to the console with an OpenID provider; absent: only keys open it")]
        | None
    ) = None


class Log(_Section, frozen=True):
    """Logs on standard error, one JSON object per line (O3)."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="lowest level written")] = "info"
    requests: Annotated[bool, Meta(description="also log one line per request; the audit row is the record")] = False


class Tracing(_Section, frozen=True):
    """OpenTelemetry traces (O4); off unless an endpoint is set. Requires `pip install 'fairgate[otel]'`."""

    endpoint: Annotated[
        str, Meta(description="OTLP/HTTP address of the collector, such as http://collector:4318/v1/traces; empty: off")
    ] = ""
    headers: Annotated[
        dict[str, str], Meta(description="header fields sent to the collector; use env: or file: for secrets")
    ] = {}
    ca: Annotated[str, Meta(description="PEM file with the CA of an https collector; empty: the system's CAs")] = ""
    ratio: Annotated[
        float,
        Meta(ge=0, le=1, description="share of new traces that is kept; a client's own sampling flag takes precedence"),
    ] = 1.0
    identities: Annotated[bool, Meta(description="also record tenant and user, by id")] = False
    service: Annotated[str, Meta(min_length=1, description="name of this service in traces")] = "fairgate"
    queue: Annotated[Count, Meta(description="requests that may wait for export; more are dropped and counted")] = 4096
    timeout: Annotated[Seconds, Meta(description="timeout for one export, including retries")] = 10.0


class Config(_Section, frozen=True):
    """The whole file."""

    listen: Annotated[str, Meta(description="HOST:PORT of the data plane")] = "127.0.0.1:8080"
    store: Annotated[str, Meta(description="path of the SQLite file, or postgresql://...")] = "fairgate.db"
    shared: Annotated[
        str,
        Meta(
            description="redis://... where gateways count rates and open requests together; empty: each counts its own"
        ),
    ] = ""
    workers: Annotated[
        int,
        Meta(
            ge=1,
            le=256,
            description="serving processes, one core each; above 1, a parent process hands out slots and limits",
        ),
    ] = 1
    reuse_port: Annotated[
        bool, Meta(description="let a new process listen on the same port while the old one drains (H13)")
    ] = False
    tls: Annotated[Tls, Meta(description="absent: plain HTTP")] | None = None
    hsts: Annotated[bool, Meta(description="send HSTS although a proxy in front terminates TLS")] = False
    trusted_proxies: Annotated[
        list[str], Meta(description="CIDRs of proxies whose X-Forwarded-For is trusted (H9)")
    ] = []
    playground: Annotated[bool, Meta(description="serve /playground")] = False
    cors: Cors = Cors()
    caps: Caps = Caps()
    timeouts: Timeouts = Timeouts()
    upstream: Upstream = Upstream()
    discovery: Discovery = Discovery()
    scheduling: Annotated[
        Settings, Meta(description="the fair-use scheduler; docs/scheduler.md describes each setting")
    ] = Settings()
    identity: Identity = Identity()
    jwt: Annotated[Jwt, Meta(description="tokens of an identity provider; absent: none are accepted")] | None = None
    audit: Audit = Audit()
    prompts: Prompts = Prompts()
    limits: Quotas = Quotas()
    admin: Admin = Admin()
    log: Log = Log()
    tracing: Tracing = Tracing()
    backends: Annotated[list[Backend], Meta(description="the engines")] = []
    models: Annotated[dict[str, Model], Meta(description="per-model overrides, by name")] = {}
    prices: Annotated[
        dict[str, Price], Meta(description="price of each model in usage reports, by name; other models cost nothing")
    ] = {}
    aliases: Annotated[dict[str, str], Meta(description="other name -> model or category")] = {}
    categories: Annotated[
        dict[str, Category], Meta(description="name -> group of models, the best of which serves the request")
    ] = {}


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    return msgspec.json.schema(Config)
