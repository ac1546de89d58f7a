"""What a worker and its parent say to each other. Types only; who sends what stands in the two unions at the end.

Numbers name a worker's own tickets and reservations, and mean nothing to others. All are arrays on the wire: a short
tag, then the fields in order; both ends are of one version, since the parent starts the workers.
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
    """The worker cannot start, and why."""

    reason: str


class Submit(Ticket, frozen=True, gc=False, array_like=True, tag="s"):
    """A ticket of that number. Answered by one Grant or Refuse."""

    number: int = 0


class Cancel(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="c"):
    """Nobody waits for that ticket any more; its slot goes back if it was granted meanwhile."""

    number: int


class Release(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="r"):
    """See `Lease.release`."""

    number: int
    cost: float


class Linger(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="z"):
    """See `ZombieService.keep`. The worker is done with that slot."""

    number: int
    cost: float
    most: float


class Charge(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="x"):
    """See `Lease.charge`."""

    number: int
    extra: float


class Reserve(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="l"):
    """See `LimitService.acquire`; what it needs of a principal. Answered by one Held or Denied."""

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
    """See `BackendService.succeeded`; only told of backends that are in doubt."""

    backend: str
    status: int


class Measured(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="m"):
    """See `BackendService.measured`; times are CLOCK_MONOTONIC's, which all processes share."""

    backend: str
    tpot: float
    started: float
    now: float


class Stranger(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="n"):
    """An authentication failed from this address. The parent tells the other workers (K4)."""

    ip: str


# ---- parent -> worker


class Grant(Granted, frozen=True, gc=False, array_like=True, tag="g"):
    """The ticket of the worker's number `id` has its slot."""


class Refuse(Refused, frozen=True, gc=False, array_like=True, tag="d"):
    """The ticket of the worker's number `id` gets none."""


class Told(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What the limit fields tell of one limit: a `limits.Reading` of the moment of the reservation."""

    most: int
    left: int
    again: float

    def remaining(self, now: float) -> int:
        return self.left

    def reset(self, now: float) -> float:
        return self.again


class Held(msgspec.Struct, frozen=True, array_like=True, tag="h"):
    """The reservation is made. `requests` and `tokens`: see `LimitService.shown`."""

    number: int
    requests: tuple[Told, ...]
    tokens: tuple[Told, ...]


class Denied(msgspec.Struct, frozen=True, array_like=True, tag="no"):
    """It is not, by an error of this code."""

    number: int
    code: str
    message: str
    retry_after: float | None
    requests: tuple[Told, ...]
    tokens: tuple[Told, ...]


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    """The first message: which worker this is, and what holds."""

    worker: int
    config: Config
    settings: Settings
    seen: tuple[Seen, ...]


class Picture(msgspec.Struct, frozen=True, array_like=True, tag="seen"):
    """What is known of the backends."""

    seen: tuple[Seen, ...]


class Doubt(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="doubt"):
    """A request failed on this backend, or it was looked at: the next success on it must be told."""

    backend: str


class Retuned(msgspec.Struct, frozen=True, array_like=True, tag="tuned"):
    """The scheduler's settings in force."""

    settings: Settings


class Commit(msgspec.Struct, frozen=True, array_like=True, tag="commit"):
    """Put what was prepared in force. A message, so that what follows it is understood with the new one."""


class Drain(msgspec.Struct, frozen=True, array_like=True, tag="drain"):
    """Let what runs finish, then exit."""


class Stop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """Exit now."""


# ---- questions


class Who(msgspec.Struct, frozen=True, tag="who"):
    """Which requests of this key wait? A worker asks for `list[held.Waiting]`, its parent for `list[Asked]`."""

    key: str


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """A waiting request, as the worker that has it knows it; `since` in Unix seconds."""

    number: int
    id: str
    model: str
    since: float


class TakeStock(msgspec.Struct, frozen=True, tag="stock"):
    """Statistics and counters, as `admin.state.Stock`."""


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """Does the loop turn? The answer is true."""


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Build the generation of this configuration. The answer is empty, or says why it cannot be."""

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
    | Stranger
)
ToWorker = Welcome | Grant | Refuse | Held | Denied | Picture | Doubt | Retuned | Stranger | Commit | Drain | Stop
QuestionsToParent = Who
QuestionsToWorker = Who | TakeStock | Alive | Prepare
