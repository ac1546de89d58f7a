"""Limits: rates, open requests and budgets of keys, users and tenants (L).

Owns the meters of every scope in use and the single step that checks them all; must not know who waits in the queue, or
how anything is rendered. Rules:

- A reservation takes from every meter of its principal or from none; nothing else runs between check and take.
- What is settled and reserved together never exceeds a budget, except by estimation errors of running requests. Budgets
  are kept in the store's ledger and spent here from leases (`store/limits.py`), so neither a restart nor data loss in
  Redis gives back what was spent. After kill -9, whatever was on lease counts as spent: safe, and never free.
- Rates and open requests are counted here, or in Redis if several gateways share them (`shared`).
- What cannot be checked is refused with LimitsUnavailable. A request waits only for a round with a lender, which has a
  deadline.
- A reservation that is not settled within `expire` seconds is settled as fully used.
"""

import asyncio
import itertools
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from gateway.config import Quotas
from gateway.errors import BudgetSpent, GatewayError, LimitsUnavailable
from gateway.services.budget import Budget
from gateway.services.lender import Lender
from gateway.services.limit_facts import LimitStats
from gateway.services.meters import GPU, REQUESTS, TOKENS, Bucket, Gauge, Leased, SharedBucket, SharedGauge
from gateway.services.pace import Pace
from gateway.store.base import Store, StoreError
from gateway.store.limits import BUDGETS, Limits, Scoped, window

_log: Final = logging.getLogger("fairgate.limits")

PLAN_SECONDS: Final = 60.0
"""Seconds after which a plan is rebuilt: budgets change at midnight, and the wall clock may be set."""
FORGET_SECONDS: Final = 300.0
"""Seconds without a request after which a principal is forgotten, together with meters that hold no information."""
SWEEP_SECONDS: Final = 10.0
FORGET_WINDOWS_SECONDS: Final = 3600.0
ATTEMPTS: Final = 8
"""Maximum rounds with a lender for one request, since others may take what a round brought; two or three are usually
enough."""

Meter = Bucket | Gauge | Budget | SharedBucket | SharedGauge


class Reading(Protocol):
    """One limit as its header fields show it (A10): maximum, what is left, seconds until it is full again."""

    @property
    def most(self) -> int: ...
    def remaining(self, now: float) -> int: ...
    def reset(self, now: float) -> float: ...


Amounts = tuple[int, ...]
"""Indexed by `meters.REQUESTS` and so on."""
Shown = tuple[Reading, ...]


class Limited(Protocol):
    """What the service needs to know of a principal. `limits` are outermost first; empty = nothing is limited."""

    @property
    def key(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def limits(self) -> tuple[Scoped, ...]: ...


class Quota(Protocol):
    """The part of `LimitService` that requests use; implemented by a proxy in workers."""

    pace: Pace

    async def acquire(self, principal: Limited, tokens: int, gpu_seconds: float) -> "Reservation": ...
    def settle(self, reservation: "Reservation", tokens: int, gpu_seconds: float) -> None: ...
    def forget(self, reservation: "Reservation") -> None: ...
    def shown(self, principal: Limited) -> "tuple[Shown, Shown]": ...


class Reservation:
    """What a request has taken: `settle` or `forget` it once. Amounts are indexed by `meters.REQUESTS` and so on."""

    __slots__ = ("amounts", "expires", "meters", "number", "open")

    def __init__(self, number: int, meters: tuple[Meter, ...], amounts: Amounts, expires: float) -> None:
        self.number = number
        self.meters = meters
        self.amounts = amounts
        self.expires = expires
        self.open = True

    def __repr__(self) -> str:
        return f"<Reservation {self.number} {'open' if self.open else 'ended'} {self.amounts}>"


class _Plan:
    """The meters of one principal; must be rebuilt after `until`. `shown`: see `LimitService.shown`."""

    __slots__ = ("limits", "meters", "shown", "until", "used")

    def __init__(self, limits: tuple[Scoped, ...], meters: tuple[Meter, ...], until: float, used: float) -> None:
        self.limits = limits
        self.meters = meters
        self.shown = _shown(meters)
        self.until = until
        self.used = used


class LimitService:
    """Belongs to one event loop. `clock` is in monotonic seconds, `wall` in Unix seconds. With `shared`, rates and open
    requests are leased from there instead of being counted here."""

    def __init__(
        self,
        store: Store,
        config: Quotas,
        *,
        shared: "Lender[SharedBucket | SharedGauge] | None" = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._wall = wall
        self._holder = secrets.token_urlsafe(9)
        self._shared = shared
        self._ledger: Lender[Budget] = Lender(
            "the store", self._ask_store, (StoreError,), lease=config.lease, deadline=config.store_deadline, clock=clock
        )
        self.pace = Pace()
        self._plans: dict[tuple[str, str], _Plan] = {}
        self._meters: dict[tuple[str, str], Meter] = {}
        self._open: dict[int, Reservation] = {}
        self._numbers = itertools.count()
        self._sweeper: asyncio.Task[None] | None = None
        self._refused = self._expired = 0

    # -- hot path

    def reserve(
        self, principal: Limited, tokens: int, gpu_seconds: float, now: float
    ) -> "Reservation | asyncio.Future[None]":
        """Take one request, `tokens` and GPU time from every meter of the principal, or nothing.

        Returns a future if something must be leased first: await it and call again. Raises RateLimited, BudgetSpent,
        LimitsUnavailable; so may the future.
        """
        plan = self._plans.get((principal.key, principal.user))
        if (
            plan is None
            or now >= plan.until
            or (plan.limits is not principal.limits and plan.limits != principal.limits)
        ):
            plan = self._plan(principal, now)
        amounts: Amounts = (1, tokens, math.ceil(gpu_seconds * 1000), 1)
        short = [meter for meter in plan.meters if meter.room(now) < amounts[meter.unit]]
        if short and (waiter := self._lend(short, amounts, now)) is not None:
            return waiter
        for meter in plan.meters:
            meter.take(amounts[meter.unit])
        plan.used = now
        number = next(self._numbers)
        reservation = self._open[number] = Reservation(number, plan.meters, amounts, now + self._config.expire)
        return reservation

    async def acquire(self, principal: Limited, tokens: int, gpu_seconds: float) -> Reservation:
        """`reserve`, including the rounds it needs. An interruption leaves nothing reserved."""
        for _ in range(ATTEMPTS):
            got = self.reserve(principal, tokens, gpu_seconds, self._clock())
            if isinstance(got, Reservation):
                return got
            await got
        raise LimitsUnavailable("Too many requests ask for the same limits at the moment.", retry_after=1.0)

    def _lend(self, short: list[Meter], amounts: Amounts, now: float) -> "asyncio.Future[None] | None":
        """Ask for all amounts that are short, in one round; None if nothing is short after all. Raises if they are not
        available."""
        lacking = [(meter, amounts[meter.unit]) for meter in short if not _overflows(meter, amounts, now)]
        for meter, _ in lacking:
            if not isinstance(meter, Leased) or meter.refused(now):
                self._refused += 1
                raise _deciding(lacking, now)
        waiter = None
        for meter, amount in lacking:
            if isinstance(meter, Budget):
                waiter = self._ledger.refill(meter, amount)
            elif isinstance(meter, SharedBucket | SharedGauge) and self._shared is not None:
                waiter = self._shared.refill(meter, min(amount, meter.most))
        return waiter

    def settle(self, reservation: Reservation, tokens: int, gpu_seconds: float) -> None:
        """Replace the estimate by the actual use. Idempotent; never waits, never raises."""
        if reservation.open:
            reservation.open = False
            self._open.pop(reservation.number, None)
            used: Amounts = (1, tokens, math.ceil(gpu_seconds * 1000), 0)
            for meter in reservation.meters:
                meter.settle(reservation.amounts[meter.unit], used[meter.unit])
                if isinstance(meter, SharedGauge) and meter.hand_over(self._clock()) and self._shared is not None:
                    self._shared.tell(meter)

    def forget(self, reservation: Reservation) -> None:
        """The request failed before any token: only the request itself counts. Idempotent."""
        self.settle(reservation, 0, 0.0)

    def shown(self, principal: Limited) -> "tuple[Shown, Shown]":
        """The limits that header fields report (A10): of requests, and of tokens."""
        plan = self._plans.get((principal.key, principal.user))
        return plan.shown if plan is not None else ((), ())

    # -- plans

    def _plan(self, principal: Limited, now: float) -> _Plan:
        meters: list[Meter] = []
        until = now + PLAN_SECONDS
        wall = self._wall()
        for scoped in principal.limits:
            meters += self._rates(scoped.scope, scoped.limits, now)
            for name, (unit, period) in BUDGETS.items():
                most = getattr(scoped.limits, name)
                if most is not None:
                    part, end = window(period, wall)
                    until = min(until, now + end - wall)
                    meters.append(self._budget(scoped.scope, f"{unit}/{part}", unit == "gpu", most, now + end - wall))
        plan = _Plan(principal.limits, tuple(meters), until, now)
        self._plans[principal.key, principal.user] = plan
        return plan

    def _rates(self, scope: str, limits: Limits, now: float) -> Iterator[Meter]:
        if limits.requests_per_minute is not None:
            burst = limits.burst or limits.requests_per_minute
            yield self._rate(scope, REQUESTS, limits.requests_per_minute, burst, now)
        if limits.tokens_per_minute is not None:
            yield self._rate(scope, TOKENS, limits.tokens_per_minute, limits.tokens_per_minute, now)
        if limits.concurrent is not None:
            yield self._gauge(scope, limits.concurrent)

    def _rate(self, scope: str, unit: int, per_minute: int, most: int, now: float) -> Meter:
        name = "rpm" if unit == REQUESTS else "tpm"
        known = self._meters.get((scope, name))
        if isinstance(known, Bucket | SharedBucket):
            known.retune(per_minute, most, now)
            return known
        made: Meter
        if self._shared is None:
            made = Bucket(scope, unit, per_minute, most, now)
        else:
            made = SharedBucket(scope, name, unit, per_minute, most)
        self._meters[scope, name] = made
        return made

    def _gauge(self, scope: str, most: int) -> Meter:
        known = self._meters.get((scope, "open"))
        if isinstance(known, Gauge | SharedGauge):
            known.retune(most)
            return known
        made: Meter = Gauge(scope, most) if self._shared is None else SharedGauge(scope, "open", most)
        self._meters[scope, "open"] = made
        return made

    def _budget(self, scope: str, name: str, gpu: bool, most: int, ends: float) -> Meter:
        most = most * 1000 if gpu else most
        meter = self._meters.get((scope, name))
        if not isinstance(meter, Budget):
            meter = self._meters[scope, name] = Budget(scope, name, GPU if gpu else TOKENS, most, ends, self._holder)
        else:
            meter.retune(most, ends)
        return meter

    # -- lenders

    async def _ask_store(self, budgets: Sequence[Budget]) -> list[bool]:
        sent, lease = self._clock(), self._config.lease
        claims = [budget.claim(sent) for budget in budgets]
        standings = await self._store.claim(claims, int(self._wall() * 1e6), int(lease * 1e6))
        until, now = sent + lease, self._clock()
        return [budget.apply(standing, until, now) for budget, standing in zip(budgets, standings, strict=True)]

    # -- life

    def start(self) -> None:
        """Start the rounds and the sweep."""
        self._ledger.start()
        if self._shared is not None:
            self._shared.start()
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep_often())

    async def _sweep_often(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep(self._clock())

    def sweep(self, now: float) -> None:
        """Settle expired reservations; forget principals that no longer come."""
        while self._open:
            oldest = next(iter(self._open.values()))
            if oldest.expires > now:
                break
            self._expired += 1
            self.settle(oldest, oldest.amounts[TOKENS], oldest.amounts[GPU] / 1000)
        for who, plan in list(self._plans.items()):
            if plan.used < now - FORGET_SECONDS:
                del self._plans[who]
        used = {id(meter) for plan in self._plans.values() for meter in plan.meters}
        for name, meter in list(self._meters.items()):
            if id(meter) in used or not meter.idle(now):
                continue
            if isinstance(meter, Budget) and meter.untold:
                self._ledger.tell(meter)  # and forgotten after that round
            else:
                del self._meters[name]

    async def forget_windows(self) -> None:
        """Delete old windows from the ledger, now and every hour, until cancelled: each scope has a row for each day
        and month."""
        while True:
            try:
                await self._store.forget_budgets(self._wall())
            except StoreError as err:
                _log.warning("budgets of past windows were not deleted: %s", err)
            await asyncio.sleep(FORGET_WINDOWS_SECONDS)

    async def close(self) -> None:
        """Return what is on lease."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        for meter in self._meters.values():
            if isinstance(meter, Budget) and meter.untold:
                self._ledger.tell(meter)
        await self._ledger.close()
        if self._shared is not None:
            await self._shared.close()

    @property
    def silence(self) -> float:
        """Seconds for which Redis has not answered; 0 without Redis."""
        return self._shared.silence if self._shared is not None else 0.0

    def stats(self) -> LimitStats:
        """A snapshot for metrics."""
        return LimitStats(
            open=len(self._open),
            refused=self._refused,
            expired=self._expired,
            principals=len(self._plans),
            meters=len(self._meters),
            store=self._ledger.stats(),
            shared=self._shared.stats() if self._shared is not None else None,
        )


def _shown(meters: tuple[Meter, ...]) -> tuple[Shown, Shown]:
    """Rates of requests; and rates of tokens, or else budgets of tokens."""
    rates = [meter for meter in meters if isinstance(meter, Bucket | SharedBucket)]
    budgets = [meter for meter in meters if isinstance(meter, Budget) and meter.unit == TOKENS]
    tokens = [meter for meter in rates if meter.unit == TOKENS]
    return tuple(meter for meter in rates if meter.unit == REQUESTS), tuple(tokens or budgets)


def _deciding(lacking: list[tuple[Meter, int]], now: float) -> GatewayError:
    """Of the limits that refuse, the one that decides when to retry: an exhausted budget, else the longest wait. If one
    refuses, the last known state of the others is recent enough."""
    refusals = [
        meter.refusal(amount, now)
        for meter, amount in lacking
        if not isinstance(meter, Leased) or meter.exhausted or meter.refused(now)
    ]
    return max(refusals, key=_weight)


def _weight(refusal: GatewayError) -> tuple[bool, float]:
    wait = refusal.retry_after
    return isinstance(refusal, BudgetSpent), math.inf if wait is None else wait


def _overflows(meter: Meter, amounts: Amounts, now: float) -> bool:
    """A full rate admits a request larger than itself; later requests pay for it."""
    rate = isinstance(meter, Bucket | SharedBucket)
    return rate and amounts[meter.unit] > meter.most and meter.room(now) >= meter.most
