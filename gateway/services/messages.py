"""The messages between a worker and its parent. Types only; the unions at the end say who sends what.

Numbers identify a worker's own tickets and reservations, and mean nothing to other workers. On the wire each message is
an array: a short tag, then the fields in order. Both ends have the same version, since the parent starts the workers.
"""

import msgspec

from gateway.config import Config
from gateway.services.backend_facts import Failure, Seen
from gateway.store.limits import Scoped
from scheduler.model import Granted, Refused, Ticket
from scheduler.settings import Settings

# ---- worker -> parent


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """The worker listens."""


class Unfit(msgspec.Struct, frozen=True, array_like=True, tag="unfit"):
    """The worker cannot start; the reason."""

    reason: str


class Submit(Ticket, frozen=True, gc=False, array_like=True, tag="s"):
    """A ticket with this number. Answered by one Grant or Refuse."""

    number: int = 0


class Cancel(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="c"):
    """Nobody waits for this ticket any more; if its slot was granted meanwhile, it is given back."""

    number: int


class Release(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="r"):
    """See `Lease.release`."""

    number: int
    cost: float


class Linger(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="z"):
    """See `ZombieService.keep`. The worker itself no longer uses the slot."""

    number: int
    cost: float
    most: float


class Charge(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="x"):
    """See `Lease.charge`."""

    number: int
    extra: float


class Reserve(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="l"):
    """See `LimitService.acquire`, with what it needs of a principal. Answered by one Held or Denied."""

    number: int
    key: str
    user: str
    limits: tuple[Scoped, ...]
    tokens: int
    gpu_seconds: float


class Settle(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="e"):
    """See `LimitService.settle`."""

    number: int
    tokens: int
    gpu_seconds: float


class Failed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="bad"):
    """See `BackendService.failed`."""

    backend: str
    kind: Failure


class Succeeded(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="good"):
    """See `BackendService.succeeded`; sent only for backends in doubt."""

    backend: str
    status: int


class Measured(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="m"):
    """See `BackendService.measured`; times are of CLOCK_MONOTONIC, which all processes share."""

    backend: str
    tpot: float
    started: float
    now: float


class AuthFailed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="n"):
    """An authentication from this address failed. The parent tells the other workers (K4)."""

    ip: str


# ---- parent -> worker


class Grant(Granted, frozen=True, gc=False, array_like=True, tag="g"):
    """The worker's ticket with the number `id` got its slot."""


class Refuse(Refused, frozen=True, gc=False, array_like=True, tag="d"):
    """The worker's ticket with the number `id` is refused."""


class Told(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One limit for the header fields: a `limits.Reading` at the moment of the reservation."""

    most: int
    left: int
    again: float

    def remaining(self, now: float) -> int:
        return self.left

    def reset(self, now: float) -> float:
        return self.again


class Held(msgspec.Struct, frozen=True, array_like=True, tag="h"):
    """The reservation was made. `requests` and `tokens`: see `LimitService.shown`."""

    number: int
    requests: tuple[Told, ...]
    tokens: tuple[Told, ...]


class Denied(msgspec.Struct, frozen=True, array_like=True, tag="no"):
    """The reservation was refused, with the error of this code."""

    number: int
    code: str
    message: str
    retry_after: float | None
    requests: tuple[Told, ...]
    tokens: tuple[Told, ...]


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    """The first message: the worker's number, and everything it needs to start."""

    worker: int
    config: Config
    settings: Settings
    seen: tuple[Seen, ...]


class BackendStates(msgspec.Struct, frozen=True, array_like=True, tag="seen"):
    """The state of the backends."""

    seen: tuple[Seen, ...]


class ReportSuccess(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="doubt"):
    """A request failed on this backend, or it was looked at: the next success there must be reported."""

    backend: str


class Retuned(msgspec.Struct, frozen=True, array_like=True, tag="tuned"):
    """The scheduler's settings in force."""

    settings: Settings


class Commit(msgspec.Struct, frozen=True, array_like=True, tag="commit"):
    """Put the prepared configuration in force. A message and not a question, so that later messages are handled under
    the new one."""


class Drain(msgspec.Struct, frozen=True, array_like=True, tag="drain"):
    """Let running requests finish, then exit."""


class Stop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """Exit now."""


# ---- questions


class Who(msgspec.Struct, frozen=True, tag="who"):
    """Which requests of this key wait? A worker asks for `list[ledger_facts.Waiting]`, its parent for `list[Asked]`."""

    key: str


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """A waiting request as its worker knows it; `since` is in Unix seconds."""

    number: int
    id: str
    model: str
    since: float


class TakeStock(msgspec.Struct, frozen=True, tag="stock"):
    """Statistics and counters, as `admin.state.Stock`."""


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """Does the event loop run? The answer is true."""


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Build the generation of this configuration. The answer is empty, or says why it failed."""

    config: Config


ToParent = (
    Ready
    | Unfit
    | Submit
    | Cancel
    | Release
    | Linger
    | Charge
    | Reserve
    | Settle
    | Failed
    | Succeeded
    | Measured
    | AuthFailed
)
ToWorker = (
    Welcome
    | Grant
    | Refuse
    | Held
    | Denied
    | BackendStates
    | ReportSuccess
    | Retuned
    | AuthFailed
    | Commit
    | Drain
    | Stop
)
QuestionsToParent = Who
QuestionsToWorker = Who | TakeStock | Alive | Prepare
