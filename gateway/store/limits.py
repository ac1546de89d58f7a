"""Limits as they are stored, and the ledger of budgets: how much of each was spent, and how much gateways hold on
lease.

Owns the row types and `decide`, the only rule for leasing a budget; pure, so that it is the same for every database.
Must not know a driver, requests or the hot path.

A gateway never asks the ledger for a single request. It leases an amount, spends it on its own and reports what it
spent; `decide` runs under the row's lock. The amount stays debited while the lease runs. A lease that is not renewed in
time is *burned*: nobody knows how much of it was spent, so all of it counts as spent (fail closed). If its holder was
only slow and comes back, the burned amount is replaced by the actual one. After `KEEP_BURNED` the amount stays burned,
and only what the holder has not reported yet is added.
"""

import datetime
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[int, Meta(ge=1, le=10**15)]

KEEP_BURNED = 3_600_000_000
"""Microseconds after its end for which a lease is remembered, so that its holder can come back and correct it."""
KEEP_WINDOW = 31 * 86_400.0
"""Seconds after its end for which the ledger keeps a window: longer than a reservation (`limits.expire`) or a burned
lease can last, plus the error of clocks."""
SHARE = 4
"""Beyond what requests wait for, a holder gets at most this fraction (1/4) of what is left, so that others get
something too."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a tenant, user or key may use; None = not limited at this level. Days and months are in UTC.

    Rates refill evenly over the minute and hold at most `burst` requests (default: one minute's worth).
    """

    requests_per_minute: Positive | None = None
    burst: Positive | None = None
    tokens_per_minute: Positive | None = None
    concurrent: Positive | None = None
    tokens_per_day: Positive | None = None
    tokens_per_month: Positive | None = None
    tokens_total: Positive | None = None
    gpu_seconds_per_day: Positive | None = None
    gpu_seconds_per_month: Positive | None = None
    gpu_seconds_total: Positive | None = None


NO_LIMITS = Limits()


class Scoped(msgspec.Struct, frozen=True, gc=False):
    """Limits and the scope they apply to: `tenant:ID`, `user:ID` or `key:ID`."""

    scope: str
    limits: Limits


Unit = Literal["tokens", "gpu"]
Period = Literal["day", "month", "total"]
BUDGETS: Mapping[str, tuple[Unit, Period]] = {
    "tokens_per_day": ("tokens", "day"),
    "tokens_per_month": ("tokens", "month"),
    "tokens_total": ("tokens", "total"),
    "gpu_seconds_per_day": ("gpu", "day"),
    "gpu_seconds_per_month": ("gpu", "month"),
    "gpu_seconds_total": ("gpu", "total"),
}
"""Field of `Limits` -> its unit and its window. In the ledger GPU time is in whole milliseconds."""


def window(period: Period, wall: float) -> tuple[str, float]:
    """The window that contains `wall` (Unix seconds) -> its name in the ledger and its end (infinite for `total`)."""
    if period == "total":
        return "total", float("inf")
    at = datetime.datetime.fromtimestamp(wall, datetime.UTC)
    start = at.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return start.strftime("day/%Y-%m-%d"), (start + datetime.timedelta(days=1)).timestamp()
    start = start.replace(day=1)
    following = (start + datetime.timedelta(days=32)).replace(day=1)
    return start.strftime("month/%Y-%m"), following.timestamp()


def past(wall: float) -> list[tuple[str, str]]:
    """Ranges, exclusive at both ends, of the ledger's names for windows that ended more than `KEEP_WINDOW` before
    `wall`. Names in a range differ in digits only, so every collation orders them by time."""
    recent = {period: window(period, wall - KEEP_WINDOW)[0] for _, period in BUDGETS.values() if period != "total"}
    return [(f"{u}/{p}/", f"{u}/{recent[p]}") for u, p in BUDGETS.values() if p in recent]


class Lease(msgspec.Struct, omit_defaults=True):
    """One holder's part of a budget. `reported` is the total it has ever reported as spent, `number` that of its latest
    claim."""

    amount: int
    until: int
    reported: int = 0
    burned: bool = False
    number: int = 0


class LedgerRow(msgspec.Struct):
    """One row of the ledger: the use of one budget in one window by a scope. Mutable: `decide` changes it under a
    lock."""

    scope: str
    budget: str
    spent: int = 0
    leases: dict[str, Lease] = {}

    @property
    def held(self) -> int:
        return sum(lease.amount for lease in self.leases.values() if not lease.burned)


class Claim(msgspec.Struct, frozen=True):
    """What a holder reports and requests for one budget. All figures are absolute, so a claim that is repeated after
    its answer was lost counts once; `number` counts up, so a claim that arrives after a later one is ignored.

    `spent`: all it has spent since `holder` began. `kept`: what it keeps, reserved or free. `need`: what requests wait
    for in addition. `want`: what it would like to have in addition, including `need`. `told`: how much of `spent` the
    ledger has acknowledged; used if the ledger no longer knows the holder.
    """

    scope: str
    budget: str
    holder: str
    number: int
    limit: int
    spent: int
    kept: int
    need: int = 0
    want: int = 0
    told: int = 0


class Standing(msgspec.Struct, frozen=True):
    """The answer: `granted` in addition to `kept`; `spent` by all holders, `others` on lease to other holders."""

    granted: int
    spent: int
    others: int


def decide(row: LedgerRow, claim: Claim, now: int, lease: int) -> Standing:
    """Apply a claim to its row. Times are in Unix microseconds, `lease` is a duration."""
    for holder, theirs in list(row.leases.items()):
        if holder != claim.holder and theirs.until <= now:
            _end(row, holder, theirs, now)
    mine = row.leases.get(claim.holder)
    if mine is None:
        mine = row.leases[claim.holder] = Lease(0, 0, claim.told)
    if claim.number <= mine.number:
        return Standing(0, row.spent, row.held - mine.amount)
    if mine.burned:
        row.spent -= mine.amount
    row.spent += claim.spent - mine.reported
    mine.amount, mine.reported, mine.burned, mine.number = 0, claim.spent, False, claim.number
    others = row.held
    room = claim.limit - row.spent - others - claim.kept
    granted = max(0, min(room, max(claim.need, min(claim.want, room // SHARE))))
    mine.amount, mine.until = claim.kept + granted, now + lease
    return Standing(granted, row.spent, others)


def _end(row: LedgerRow, holder: str, lease: Lease, now: int) -> None:
    if not lease.burned:
        row.spent += lease.amount
        lease.burned = True
    if lease.until + KEEP_BURNED <= now:
        del row.leases[holder]
