"""The state of one request, and the services it runs with.

`Exchange` is the only mutable object of a request. Its fields are listed in the order of the phases that fill them, and
are empty (`NO_...`, None or zero) until then; a phase may rely on the fields of earlier phases. The empty values have
the attributes of real ones, so that a record can be written at any time; only `settle` and `refuse` ask how far a
request got. `Runtime` is frozen: one generation of configuration and services.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from gateway.api.bridge import Bridge
from gateway.api.dialect import Ask, Endpoint
from gateway.api.routes import NO_ENDPOINT, Routes
from gateway.api.usage import Usage
from gateway.config import Config
from gateway.errors import GatewayError
from gateway.flow.cors import Cors
from gateway.flow.ledger import Ledger
from gateway.flow.ledger_facts import Waiting
from gateway.flow.names import Names
from gateway.http1.client import UpstreamConnection
from gateway.http1.connection import Connection
from gateway.http1.message import RequestHead, ResponseHead
from gateway.http1.pool import Pool
from gateway.services.acting import EndUsers
from gateway.services.audit import AuditService
from gateway.services.backends import Backends
from gateway.services.keys import KeyService
from gateway.services.limits import Quota, Reservation
from gateway.services.metrics import Metrics
from gateway.services.principal import Grant, Principal
from gateway.services.prompts import PromptService
from gateway.services.route import Backend, Route, Terms
from gateway.services.tracing import Trace, TracingService
from gateway.services.usage import UsageService
from gateway.services.zombies import Zombies
from scheduler.aio import Lease, Slots, Waiter
from scheduler.estimate import Estimator

if TYPE_CHECKING:
    from gateway.flow.relay import Relay


class Outcome(StrEnum):
    """How a request ended."""

    DONE = "done"
    REFUSED = "refused"
    UPSTREAM_FAILED = "upstream_failed"
    CLIENT_GONE = "client_gone"
    TIMED_OUT = "timed_out"
    BUG = "bug"
    INTERRUPTED = "interrupted"
    """The gateway shut down and cut the request. If the process was killed, its successor writes this row."""


GIVEN_UP: Final = frozenset({Outcome.CLIENT_GONE, Outcome.INTERRUPTED})
"""Outcomes at which an engine may have been at work. The client asked for that work, so it is charged although nobody
saw its result."""


@dataclass(frozen=True, eq=False)
class Runtime:
    """What the phases use. Long-lived services are shared by all generations; `config` belongs to this one."""

    config: Config
    routes: Routes
    keys: KeyService
    end_users: EndUsers
    limits: Quota
    backends: Backends
    scheduler: Slots
    estimator: Estimator
    zombies: Zombies
    pools: Mapping[str, Pool]
    failing: dict[str, int]
    """Backend -> consecutive error answers of its own; absent if its last answer was a success."""
    audit: AuditService
    prompts: PromptService
    usage: UsageService
    metrics: Metrics
    tracing: TracingService | None
    ledger: Ledger
    now: Callable[[], float]
    """Seconds, monotonic."""
    wall: Callable[[], float]
    """Seconds since the epoch."""
    ready: Callable[[], bool]
    current: Callable[[], "Runtime"]
    """The runtime in force now."""
    waiting: Callable[[str], Awaitable[Sequence[Waiting]]]
    """Key -> its requests that wait for a slot, in all processes."""
    cors: Cors
    names: Names
    client_ip: Callable[[str, RequestHead], str]
    """Peer address and head -> the client's address (H9)."""


NO_HEAD: Final = RequestHead("", b"", "", 11, {}, None, False, False, False)
NO_PRINCIPAL: Final = Principal("", "", "")
NO_ASK: Final = Ask("")
NO_ROUTE: Final = Route("", "", (), Terms(0.0, 0.0, 0.0, 0.0, 0, 0, 0.0))
NO_BACKEND: Final = Backend("", "", b"", b"", b"")
NO_USAGE: Final = Usage(prompt_tokens=0, completion_tokens=0, cached_tokens=0, reported=False)
NO_REPLY: Final = ResponseHead(0, [], None, False, False, True, False)


class Known:
    """What `classify` and `authenticate` found for a head. It holds for the next request with the same `fields` object
    on the same connection, under the same runtime, as long as the grant is valid (`KeyService.holds`)."""

    __slots__ = ("endpoint", "epoch", "extra", "fields", "grant", "ip", "runtime")

    def __init__(self, x: "Exchange", grant: Grant, epoch: int) -> None:
        self.runtime: Final = x.runtime
        self.fields: Final = x.head.headers
        self.endpoint: Final = x.endpoint
        self.ip: Final = x.ip
        self.extra: Final = x.extra
        self.grant: Final = grant
        self.epoch: Final = epoch


class Exchange:
    """One request. Times are seconds of `Runtime.now`; 0.0 means "has not happened"."""

    __slots__ = (
        "ask",
        "audit_number",
        "backend",
        "body",
        "body_bytes",
        "body_held",
        "bridge",
        "bytes_seen",
        "connection",
        "counted",
        "endpoint",
        "error",
        "extra",
        "first_byte_at",
        "granted_at",
        "head",
        "id",
        "ip",
        "lease",
        "lost",
        "outcome",
        "principal",
        "queued_at",
        "relay",
        "reply",
        "reservation",
        "route",
        "runtime",
        "sent_at",
        "silent_since",
        "started",
        "started_wall",
        "status",
        "trace",
        "upstream",
        "usage",
        "waited",
        "waiter",
    )

    def __init__(self, request_id: str, connection: Connection, runtime: Runtime) -> None:
        # arrival
        self.runtime = runtime
        self.id = request_id
        self.connection = connection
        self.head: RequestHead = connection.head or NO_HEAD
        self.started = runtime.now()
        self.started_wall = runtime.wall()
        self.ip = connection.peer_ip
        # classify, authenticate
        self.trace: Trace | None = None  # only while tracing is on
        self.extra = b""  # field lines of every answer to this request: CORS, HSTS
        self.endpoint: Endpoint = NO_ENDPOINT
        self.principal: Principal = NO_PRINCIPAL
        # read
        self.body_held = 0  # bytes counted in the ledger for this body
        self.body = b""
        self.body_bytes = 0
        self.ask: Ask = NO_ASK
        # route, admit
        self.route: Route = NO_ROUTE
        self.counted = False  # in the ledger, as an open request of its key
        self.reservation: Reservation | None = None
        self.audit_number = 0  # of the start record in the audit spool
        # queue
        self.queued_at = 0.0  # when it was queued first; a retry on another backend queues again
        self.waited = 0.0  # seconds in the queue, in total
        self.waiter: Waiter | None = None
        self.lease: Lease | None = None
        self.granted_at = 0.0
        # forward, relay
        self.backend: Backend = NO_BACKEND
        self.bridge: Bridge | None = None  # set if the backend does not speak the client's API
        self.upstream: UpstreamConnection | None = None
        self.sent_at = 0.0
        self.lost = 0.0  # seconds of failed attempts
        self.reply: ResponseHead = NO_REPLY
        self.relay: Relay | None = None
        self.first_byte_at = 0.0
        self.bytes_seen = 0  # `bytes_out` when the client's silence was last measured
        self.silent_since = 0.0  # when that was, on the connection's clock
        # settle
        self.usage: Usage = NO_USAGE
        self.status = 0
        self.outcome = Outcome.DONE
        self.error: GatewayError | None = None

    @property
    def overhead(self) -> float:
        """Seconds between arrival and sending to the engine that the gateway itself took; valid once `sent_at` is
        set."""
        return self.sent_at - self.started - self.waited - self.lost

    def time_fields(self) -> bytes:
        """Field lines for the times known so far (A11)."""
        if not self.granted_at and not self.waited:
            return b""
        waited = int(self.waited * 1000)
        if not self.sent_at:
            return b"x-fairgate-queue-ms: %d\r\n" % waited
        own = int(self.overhead * 1e6) // 10  # hundredths of a millisecond
        return b"x-fairgate-queue-ms: %d\r\nx-fairgate-overhead-ms: %d.%d%d\r\n" % (
            waited,
            own // 100,
            own // 10 % 10,
            own % 10,
        )

    def __repr__(self) -> str:
        return f"<Exchange {self.id} {self.endpoint.path or '?'} {self.outcome} status={self.status}>"
