"""The scheduler's interface records: a request for a slot and the possible answers.

Record types only. Must not know queues, ranks, clocks or asyncio. All records are frozen and contain only strings and
numbers, so they are created without garbage collection (gc=False).

Units: times are seconds of the caller's clock, costs are *cost units* (weighted tokens, see `estimate.cost`), shares
are relative weights (1.0 is an ordinary party), offsets are points of the priority formula.
"""

from __future__ import annotations

import enum

import msgspec


class Ticket(msgspec.Struct, frozen=True, gc=False):
    """One request for one slot of one model.

    `pool` is the model's queue, `tenant` and `user` name the party that pays (never a key: two keys of one user are
    the same party). Finite values out of range are clamped when the ticket is submitted (share to 1e-3..1e6, cost to
    0..1e12); NaN and infinities raise `ValueError`, except `timeout`, where infinity means "never expires".
    """

    pool: str
    tenant: str
    user: str
    share: float = 1.0
    tenant_share: float = 1.0
    cost: float = 0.0
    """Estimated cost units of the whole request, see `estimate.Estimator`."""
    class_offset: float = 0.0
    """Points added to the priority: the request's class (batch -20, interactive 0, system +20)."""
    timeout: float = 60.0
    """Seconds it may wait. Zero or less: only an immediate grant is acceptable."""
    tag: str = ""
    """Opaque to the scheduler; returned by `waiting`."""
    avoid: tuple[str, ...] = ()
    """Gates that failed this request. When it arrives they count as full for it, as long as another gate of its pool
    has slots. Once it waits, it takes the first free slot of any gate."""
    conversation: int = 0
    """0, or a number below 2**63: tickets with the same number prefer the same gate (setting `affinity`). 0: any
    gate."""


class Refusal(enum.Enum):
    """Why a ticket got no slot."""

    QUEUE_FULL = "queue_full"
    """The party already has as many waiting requests as one party may have."""
    QUEUE_TIMEOUT = "queue_timeout"
    """It has waited as long as it may, or its own backlog makes that certain."""
    EVICTED = "evicted"
    """All queues together were full, and this party's was the longest for its share."""
    RESERVED = "reserved"
    """An exclusive window of another party outlasts the queue timeout."""
    DRAINING = "draining"
    """The scheduler is closing."""
    UNKNOWN_POOL = "unknown_pool"
    """No such model queue is defined."""


class Granted(msgspec.Struct, frozen=True, gc=False):
    """The ticket has a slot of `gate` from now until its release."""

    id: int
    gate: str
    waited: float
    """Seconds from submit to grant."""
    rank: int = 0
    """Approximate number of requests ahead when it was submitted; 0 if it was granted at once."""
    queue_len: int = 0
    """Requests waiting for the model when it was submitted."""
    usage: float = 0.0
    """The party's decayed usage in cost units when it was submitted, this request not included."""


class Refused(msgspec.Struct, frozen=True, gc=False):
    """The ticket will not get a slot."""

    id: int
    reason: Refusal
    ahead: int = 0
    """Approximate number of requests ahead of it."""
    estimate: float = 0.0
    """Approximate seconds it would have waited; 0 if nothing is known."""
    retry_after: float = 1.0
    """Seconds after which a retry makes sense: 1 to 720, jittered per party by up to 20 %. Round it up for a
    `Retry-After`."""
    waited: float = 0.0


class Queued(msgspec.Struct, frozen=True, gc=False):
    """The ticket waits; a later decision has the same id."""

    id: int
    rank: int
    queue_len: int


Decision = Granted | Refused


class Place(msgspec.Struct, frozen=True, gc=False):
    """The place of a waiting request. Both figures are estimates and may rise, since this is a priority queue."""

    id: int
    pool: str
    tag: str
    ahead: int
    estimate: float
    """Approximate seconds still to wait; 0 if no request has ended on the model yet."""
    waited: float


class PoolStats(msgspec.Struct, frozen=True):
    """One model queue."""

    pool: str
    queued: int
    running: int
    slots: int
    oldest_wait: float
    service_time: float
    """S: mean seconds a request holds a slot; 0 until one has ended."""
    mean_cost: float
    """C: mean cost units of a request."""
    scale: float
    """Usage that counts as little: `rounds` x slots x C, or the fixed `usage_scale`."""


class PartyStats(msgspec.Struct, frozen=True):
    """One user, over all models."""

    tenant: str
    user: str
    usage: float
    """Decayed cost units, requests in flight included."""
    share: float
    queued: int
    running: int
    grants: int
    """Since the account was created; idle accounts are forgotten."""
    waited: float
    """Seconds, the sum over those grants."""


class Backlog(msgspec.Struct, frozen=True, gc=False):
    """A party with waiting requests in one pool."""

    group: tuple[str, ...]
    """The parties it is compared with: (pool,) for tenants, (pool, tenant) for the users of one tenant."""
    party: tuple[str, str]
    since: float
    """Since when it has always had a request waiting; a retry within seconds of a refusal does not interrupt this."""
    share: float
    served: float
    """Cost units ever charged to it here; requests in flight count with their estimates."""
    ended: int
    """How many of its requests have ended here with a cost, ever."""


class GateStats(msgspec.Struct, frozen=True):
    """One backend's slots."""

    gate: str
    slots: int
    running: int


class Stats(msgspec.Struct, frozen=True):
    """A consistent view of one moment."""

    now: float
    queued: int
    running: int
    pools: tuple[PoolStats, ...]
    gates: tuple[GateStats, ...]
    parties: tuple[PartyStats, ...]
    tenants: tuple[PartyStats, ...]
    granted: int
    refused: dict[str, int]
    """By `Refusal` value."""
    stray_releases: int
    """Releases of ids that hold no slot (a second release, an unknown id). They have no effect."""
    mismatches: int = 0
    """See `aio.Scheduler.mismatches`; always 0 for a core alone."""


class SavedPool(msgspec.Struct, frozen=True):
    """What a model queue learned."""

    pool: str
    service_time: float
    mean_cost: float


class SavedParty(msgspec.Struct, frozen=True):
    """A party's decayed usage; `user` is empty for a tenant's own account."""

    tenant: str
    user: str
    usage: float


class Saved(msgspec.Struct, frozen=True):
    """What survives a restart. Plain data: encode it with any msgspec format."""

    users: tuple[SavedParty, ...] = ()
    tenants: tuple[SavedParty, ...] = ()
    pools: tuple[SavedPool, ...] = ()
