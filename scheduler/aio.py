"""The scheduler on an asyncio loop: futures for those that wait, one timer for deadlines, leases for those that run.

Turns the core's decisions into wake-ups. Must not know policy, HTTP or what a pool is. Not thread-safe: call it from
the loop's thread only.

A slot is handed over within one synchronous call (a lease ends -> a choice is made -> the next lease exists), so it is
never free in between: nobody can barge in, and no wake-up is lost. If the chosen waiter is already gone, the slot is
given back at once and the next one is chosen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Protocol

import msgspec

from scheduler.core import Core
from scheduler.model import Backlog, Decision, Granted, Place, Queued, Refused, Saved, Stats, Ticket
from scheduler.reservations import Window
from scheduler.settings import Settings


class Rejected(Exception):
    """The ticket was refused; `refused` says why and when to retry."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.reason.value)
        self.refused = refused


class Slots(Protocol):
    """Grants slots: a `Scheduler`, or its proxy in another process."""

    def submit(self, ticket: Ticket) -> Lease | Waiter:
        """See `Scheduler.submit`."""
        ...

    def close(self) -> None:
        """See `Scheduler.close`."""
        ...


class Granter(Slots, Protocol):
    """What leases and waiters report to: charges, releases and cancellations."""

    def end(self, number: int, cost: float) -> None: ...
    def charge(self, number: int, extra: float) -> None: ...
    def abandon(self, waiter: Waiter) -> None: ...
    def position(self, number: int) -> Place | None: ...


class Lease:
    """One slot, held from its grant until `release`; covers the whole answer, to the last byte of a stream."""

    __slots__ = ("_live", "_scheduler", "gate", "id", "queue_len", "rank", "usage", "waited")

    def __init__(self, scheduler: Granter, granted: Granted) -> None:
        self._scheduler = scheduler
        self._live = True
        self.id = granted.id
        self.gate = granted.gate
        self.waited = granted.waited
        self.rank = granted.rank
        self.queue_len = granted.queue_len
        self.usage = granted.usage

    def __repr__(self) -> str:
        return f"<Lease {self.id} on {self.gate} {'live' if self._live else 'released'}>"

    @property
    def live(self) -> bool:
        """Whether the slot is still held."""
        return self._live

    def release(self, cost: float) -> None:
        """Give the slot back. `cost` is the actual cost in units, 0 if the request failed before producing anything.
        Later calls have no effect. A cost that is not a number is a bug of the caller: the slot is given back with cost
        0, then `ValueError` is raised."""
        if not self._live:
            return
        self._live = False
        self._scheduler.end(self.id, cost)

    def charge(self, extra: float) -> None:
        """The stream has outgrown its estimate by `extra` cost units (call every 256 tokens). No effect after the
        release."""
        if self._live:
            self._scheduler.charge(self.id, extra)


class Waiter:
    """A ticket in the queue. `future` gets the `Lease`, or `Rejected`.

    Whoever stops waiting must call `cancel`, in every case: it also gives back a slot that was granted at the same
    moment.
    """

    __slots__ = ("_scheduler", "future", "id", "queue_len", "rank")

    def __init__(self, scheduler: Granter, queued: Queued, future: asyncio.Future[Lease]) -> None:
        self._scheduler = scheduler
        self.future = future
        self.id = queued.id
        self.rank = queued.rank
        self.queue_len = queued.queue_len

    def __repr__(self) -> str:
        return f"<Waiter {self.id} {'done' if self.future.done() else 'waiting'}>"

    def cancel(self) -> None:
        """Leave the queue; a slot that was granted and not released is given back with cost 0. No effect after the
        lease's own release, a refusal or an earlier cancel. Must not be called once the lease is in use."""
        self._scheduler.abandon(self)

    def position(self) -> Place | None:
        """Its place in the queue; None once it is decided. Recomputed at most once a second per model."""
        return self._scheduler.position(self.id)


class Scheduler:
    """A `Core` with a clock. `clock` gives monotonic seconds; by default the running loop's time."""

    def __init__(self, settings: Settings | None = None, clock: Callable[[], float] | None = None) -> None:
        self._clock = asyncio.get_running_loop().time if clock is None else clock
        self.core = Core(settings, self._clock())
        self.mismatches = 0
        """How often the core's count of running requests differed from the live leases at a landmark. Above 0: a bug,
        which is not repaired."""
        self._waiters: dict[int, Waiter] = {}
        self._leases = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._landmarks = 0

    def __repr__(self) -> str:
        return f"<Scheduler waiting={len(self._waiters)} leases={self._leases}>"

    # -- tickets -----------------------------------------------------------------------------------------------

    def submit(self, ticket: Ticket) -> Lease | Waiter:
        """Returns a `Lease` if a slot is free, else a `Waiter`. Raises `Rejected` if the ticket is refused at once,
        `ValueError` for NaN in the ticket. Needs no task, and creates a future only if the ticket waits."""
        answer, others = self.core.submit(self._clock(), ticket)
        if isinstance(answer, Granted):
            self._leases += 1
            lease = Lease(self, answer)
            if others:
                self._apply(others)
            return lease
        if isinstance(answer, Refused):
            if others:
                self._apply(others)
            raise Rejected(answer)
        waiter = Waiter(self, answer, asyncio.get_running_loop().create_future())
        self._waiters[answer.id] = waiter
        self._apply(others)
        return waiter

    async def acquire(self, ticket: Ticket) -> Lease:
        """Wait for a `Lease`; raises `Rejected`. Any exception thrown in while it waits (cancellation, for one) removes
        the ticket from the queue or, if the grant came first, gives the slot back."""
        answer = self.submit(ticket)
        if isinstance(answer, Lease):
            return answer
        try:
            return await answer.future
        except BaseException:
            answer.cancel()
            raise

    def abandon(self, waiter: Waiter) -> None:
        """See `Waiter.cancel`."""
        if self._waiters.pop(waiter.id, None) is not None:
            waiter.future.cancel()
            self._apply(self.core.cancel(self._clock(), waiter.id))
            return
        future = waiter.future
        if future.done() and not future.cancelled() and future.exception() is None:
            future.result().release(0.0)

    def end(self, number: int, cost: float) -> None:
        """See `Lease.release`."""
        self._leases -= 1
        try:
            decided = self.core.release(self._clock(), number, cost)
        except ValueError:
            self._apply(self.core.release(self._clock(), number, 0.0))
            raise
        if decided:
            self._apply(decided)

    def charge(self, number: int, extra: float) -> None:
        """See `Lease.charge`."""
        decided = self.core.charge(self._clock(), number, extra)
        if decided:
            self._apply(decided)

    # -- decisions ---------------------------------------------------------------------------------------------

    def _apply(self, decided: Sequence[Decision]) -> None:
        """Wake the waiters that were decided. If one is already gone, its slot goes to the next."""
        pending = list(decided)
        for decision in pending:
            # The list grows during this loop: a slot given back may be granted again.
            waiter = self._waiters.pop(decision.id, None)
            if waiter is not None and not waiter.future.done():
                self._wake(waiter, decision)
            elif isinstance(decision, Granted):
                pending.extend(self.core.release(self._clock(), decision.id, 0.0))
        if self.core.landmarks != self._landmarks:
            self._landmarks = self.core.landmarks
            self.mismatches += self.core.running != self._leases
        self._arm()

    def _wake(self, waiter: Waiter, decision: Decision) -> None:
        if isinstance(decision, Granted):
            self._leases += 1
            waiter.future.set_result(Lease(self, decision))
        else:
            waiter.future.set_exception(Rejected(decision))

    def _arm(self) -> None:
        """Set one timer for the earliest due event. It is fine if an earlier timer finds nothing due."""
        due = self.core.next_deadline()
        if due >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, inf
        if due < inf:
            self._timer_at = due
            delay = max(0.0, due - self._clock())
            self._timer = asyncio.get_running_loop().call_later(min(delay, 3600.0), self.tick)

    def tick(self) -> None:
        """Process what is due. Called by the timer, and by tests that own the clock."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, inf
        self._apply(self.core.tick(self._clock()))

    # -- definition and views ----------------------------------------------------------------------------------

    def set_gate(self, gate: str, slots: int, *, trial: bool = False) -> None:
        """See `Core.set_gate`."""
        self._apply(self.core.set_gate(self._clock(), gate, slots, trial=trial))

    def remove_gate(self, gate: str) -> None:
        """See `Core.remove_gate`."""
        self._apply(self.core.remove_gate(self._clock(), gate))

    def set_pool(self, pool: str, gates: Sequence[tuple[str, int]]) -> None:
        """See `Core.set_pool`."""
        self._apply(self.core.set_pool(self._clock(), pool, gates))

    def remove_pool(self, pool: str) -> None:
        """See `Core.remove_pool`."""
        self._apply(self.core.remove_pool(self._clock(), pool))

    def set_settings(self, settings: Settings) -> None:
        """See `Core.set_settings`."""
        self._apply(self.core.set_settings(self._clock(), settings))

    def set_reservations(self, windows: Iterable[Window]) -> None:
        """See `Core.set_reservations`; times are of this scheduler's clock."""
        self._apply(self.core.set_reservations(self._clock(), windows))

    def export_usage(self) -> Saved:
        """See `Core.export_usage`."""
        return self.core.export_usage(self._clock())

    def import_usage(self, saved: Saved, age: float = 0.0) -> None:
        """See `Core.import_usage`."""
        self.core.import_usage(self._clock(), saved, age)

    def position(self, number: int) -> Place | None:
        """See `Core.position`."""
        return self.core.position(self._clock(), number)

    def waiting(self, tenant: str, user: str) -> list[Place]:
        """See `Core.waiting`."""
        return self.core.waiting(self._clock(), tenant, user)

    def stats(self) -> Stats:
        """See `Core.stats`."""
        return msgspec.structs.replace(self.core.stats(self._clock()), mismatches=self.mismatches)

    def backlogs(self) -> tuple[float, list[Backlog]]:
        """The present time, and `Core.backlogs`."""
        return self._clock(), self.core.backlogs()

    def running(self, gate: str) -> int:
        """Taken slots of the gate; 0 for an unknown gate."""
        found = self.core.fleet.gates.get(gate)
        return found.running if found is not None else 0

    @property
    def leases(self) -> int:
        """Live leases; equals `core.running` between calls."""
        return self._leases

    # -- the end -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Drain: all waiters, and later tickets, get `Rejected` (DRAINING); leases stay valid."""
        self._apply(self.core.close(self._clock()))
