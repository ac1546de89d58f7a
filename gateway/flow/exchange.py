"""One request's state, and the world it runs in.

`Exchange` is the only mutable object of a request: its fields stand in the order of the phases that fill them and are
empty (`NO_...`, None or zero) until then; a phase may rely on those before it. The empty values have the fields of real
ones, so that a record can be written at any time; only `settle` and `refuse` ask how far a request came.
`Runtime` is frozen: one generation of configuration and service handles.
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
from gateway.flow.held import Waiting
from gateway.flow.ledger import Ledger
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
    """The gateway ended and cut it; of a killed one, the next process writes that row."""


GIVEN_UP: Final = frozenset({Outcome.CLIENT_GONE, Outcome.INTERRUPTED})
"""Endings at which an engine may still have been at work: that work was asked for and counts, though nobody saw the
rest."""


@dataclass(frozen=True, eq=False)
class Runtime:
    """What the phases use. Long-lived services are shared by all generations; `config` is this generation's own."""

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
    """Backend -> how many errors of its own it has answered since it last served; none: it serves."""
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
    """The generation in force."""
    waiting: Callable[[str], Awaitable[Sequence[Waiting]]]
    """Key -> its requests that wait for a slot, in every process."""
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
    """What `classify` and `authenticate` found for a head: true for the next one of the same `fields` object on the
    same connection, under the same runtime, while the grant holds (`KeyService.holds`)."""

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
        self.trace: Trace | None = None  # only while traces are on
        self.extra = b""  # field lines of every answer to this request: CORS, HSTS
        self.endpoint: Endpoint = NO_ENDPOINT
        self.principal: Principal = NO_PRINCIPAL
        # read
        self.body_held = 0  # bytes counted in the ledger
        self.body = b""
        self.body_bytes = 0
        self.ask: Ask = NO_ASK
        # route, admit
        self.route: Route = NO_ROUTE
        self.counted = False  # among its key's open requests
        self.reservation: Reservation | None = None
        self.audit_number = 0  # of its start in the audit spool
        # queue
        self.queued_at = 0.0  # the first time; a request may come back for another backend
        self.waited = 0.0  # seconds in the queue, each time
        self.waiter: Waiter | None = None
        self.lease: Lease | None = None
        self.granted_at = 0.0
        # forward, relay
        self.backend: Backend = NO_BACKEND
        self.bridge: Bridge | None = None  # to a backend that does not speak the client's API
        self.upstream: UpstreamConnection | None = None
        self.sent_at = 0.0
        self.lost = 0.0  # seconds of attempts that failed
        self.reply: ResponseHead = NO_REPLY
        self.relay: Relay | None = None
        self.first_byte_at = 0.0
        self.bytes_seen = 0  # of the answer, when the client's silence began to count
        self.silent_since = 0.0  # on the connection's clock
        # settle
        self.usage: Usage = NO_USAGE
        self.status = 0
        self.outcome = Outcome.DONE
        self.error: GatewayError | None = None

    @property
    def overhead(self) -> float:
        """Seconds from arrival to the engine that were the gateway's own, where `sent_at` is known."""
        return self.sent_at - self.started - self.waited - self.lost

    def times(self) -> bytes:
        """Field lines of the times that are known by now (A11)."""
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
