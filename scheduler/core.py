"""Who runs next, over all models and backends: the pure scheduler.

Owns tickets from submit to release, the bounds of the queues, and the order of events in time. Must not know asyncio,
HTTP, what a pool or a gate stands for, or any clock: `now` is an argument, in seconds of a clock that should not go
back (an earlier `now` counts as the last one). Invalid arguments raise before anything happens, so no decision is lost.

A *pool* is a model's queue, a *gate* the slots of one backend. A pool names the gates that serve it; a gate may serve
many pools. A freed slot goes, within the same call, to the best head among the pools of its gate. Calls return what
they decided about tickets; nothing waits inside.

`ranking` defines who is first, `charging` what a request costs its party, `refusals` who may not wait, and `settings`
what the settings mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, isnan
from typing import Final

from scheduler import charging
from scheduler.commons import first
from scheduler.crowd import Crowd, load
from scheduler.deadlines import Deadlines
from scheduler.fleet import Fleet
from scheduler.gates import Gate, best_gate, home_gate
from scheduler.model import Backlog, Decision, Granted, Place, Queued, Refusal, Refused, Saved, Stats, Ticket
from scheduler.party import User
from scheduler.pool import Pool
from scheduler.position import place, stands
from scheduler.refusals import barred, refused
from scheduler.request import MAX_COST, MAX_OFFSET, MAX_SHARE, MIN_SHARE, QUEUED, RUNNING, Request, clamped
from scheduler.reservations import Calendar, Window, by_id
from scheduler.settings import Settings
from scheduler.statistics import backlogs, collect

NOTHING: Final[tuple[Decision, ...]] = ()


class Core:
    """The scheduler without a clock and without I/O. `now` is the time of its creation."""

    def __init__(self, settings: Settings | None = None, now: float = 0.0) -> None:
        settings = Settings() if settings is None else settings
        self.now = now
        self.fleet = Fleet(settings, now)
        self.calendar = Calendar()
        self.queued = 0
        self.running = 0
        self.draining = False
        self.granted = 0
        self.refused: dict[Refusal, int] = dict.fromkeys(Refusal, 0)
        self.stray_releases = 0
        self.landmarks = 0
        self._requests: dict[int, Request] = {}
        self._last_id = 0
        self._deadlines = Deadlines()
        self._crowd: Crowd | None = None
        self._landmark = now + settings.landmark_every
        self._boundary = inf
        self._due = self._landmark
        """No event is due before this time."""
        self._pools = self.fleet.pools

    def __repr__(self) -> str:
        return (
            f"<Core queued={self.queued} running={self.running} pools={len(self._pools)} gates={len(self.fleet.gates)}>"
        )

    # -- tickets -----------------------------------------------------------------------------------------------

    def submit(self, now: float, ticket: Ticket) -> tuple[Granted | Queued | Refused, Sequence[Decision]]:
        """Take a ticket. Returns its result, and other decisions that this caused (an eviction, timeouts that were due,
        its own grant after one that avoided a gate). `ValueError` for NaN, an infinite cost or share."""
        if not (
            0.0 <= ticket.cost <= MAX_COST
            and MIN_SHARE <= ticket.share <= MAX_SHARE
            and MIN_SHARE <= ticket.tenant_share <= MAX_SHARE
            and ticket.timeout == ticket.timeout
            and -MAX_OFFSET <= ticket.class_offset <= MAX_OFFSET
        ):
            ticket = clamped(ticket)
        others: Sequence[Decision] = NOTHING
        if self.now < now < self._due:
            self.now = now
        else:
            now, others = self._begin(now)
        self._last_id = number = self._last_id + 1
        pool = self._pools.get(ticket.pool)
        if pool is None or self.draining:
            return self._refuse(number, Refusal.UNKNOWN_POOL if pool is None else Refusal.DRAINING), others
        node = pool.node(ticket)
        request = Request(number, ticket, pool, node, now, ticket.cost)
        if (
            not node.n
            and (gate := self._gate_for(pool, ticket)) is not None
            and (not pool.windows or pool.eligible(now, request))
        ):
            request.usage = self.fleet.ledger.usage(node.account, now)
            request.queue_len = pool.queued
            pool.admit(now, request)
            self._requests[number] = request
            return self._start(gate, request, 0.0), others
        return self._wait(now, pool, request, others)

    def cancel(self, now: float, number: int) -> Sequence[Decision]:
        """Give up a ticket. If it waits, it leaves and usage does not change; if it was granted, its slot is given back
        with cost 0. No effect on an ended or unknown ticket."""
        now, others = self._begin(now)
        request = self._requests.get(number)
        if request is None:
            return others
        if request.state == RUNNING:
            return self._finish(now, request, 0.0, others)
        self._unqueue(now, request)
        if not request.pool.windows:
            return others
        decided = list(others)
        self._fill_pool(now, request.pool, decided)  # the next one in its queue may fit in before a window
        return decided

    def release(self, now: float, number: int, cost: float) -> Sequence[Decision]:
        """The request has ended with this cost (clamped to 0..1e12; `ValueError` for NaN). 0 refunds it: it failed
        before it produced anything. An id without a slot changes nothing and is counted in `stray_releases`."""
        if not 0.0 <= cost <= MAX_COST:
            if isnan(cost):
                raise ValueError("release: cost is NaN")
            cost = min(max(cost, 0.0), MAX_COST)
        others: Sequence[Decision] = NOTHING
        if self.now < now < self._due:
            self.now = now
        else:
            now, others = self._begin(now)
        request = self._requests.get(number)
        if request is None or request.state != RUNNING:
            self.stray_releases += 1
            return others
        return self._finish(now, request, cost, others)

    def charge(self, now: float, number: int, extra: float) -> Sequence[Decision]:
        """A running request has outgrown its estimate by `extra` cost units. Ignored for an id without a slot;
        `ValueError` unless finite and >= 0."""
        if not 0.0 <= extra < inf:
            raise ValueError(f"charge: {extra!r} is not a finite cost")
        now, others = self._begin(now)
        request = self._requests.get(number)
        if request is not None and request.state == RUNNING:
            charging.charge(now, request, min(extra, MAX_COST))
        return others

    def tick(self, now: float) -> Sequence[Decision]:
        """Process what is due: timeouts, boundaries of reservations, landmarks. Call it at `next_deadline`."""
        return self._begin(now)[1]

    def next_deadline(self) -> float:
        """The next time at which `tick` has something to do; infinity if nothing waits and nothing is reserved."""
        due = min(self._deadlines.next(), self._boundary)
        return min(due, self._landmark) if self.queued or self.running or self.fleet.sweeping else due

    def close(self, now: float) -> Sequence[Decision]:
        """Drain: all waiting and later tickets are refused; running requests go on."""
        now, others = self._begin(now)
        self.draining = True
        decided = list(others)
        for request in [r for r in self._requests.values() if r.state == QUEUED]:
            self._unqueue(now, request)
            decided.append(self._refuse(request.id, Refusal.DRAINING, waited=now - request.arrival))
        return decided

    # -- waiting -----------------------------------------------------------------------------------------------

    def _wait(
        self, now: float, pool: Pool, request: Request, others: Sequence[Decision]
    ) -> tuple[Queued | Refused, Sequence[Decision]]:
        node, ticket = request.node, request.ticket
        reason = barred(now, request, self.fleet.settings)
        if reason is None and self.queued >= self.fleet.settings.global_cap:
            victim = self._evict(now, node)
            if victim is None:
                reason = Refusal.QUEUE_FULL
            else:
                others = [*others, victim]
        if reason is not None:
            return self._refuse_at(now, request, reason), others
        request.usage = self.fleet.ledger.usage(node.account, now)
        request.queue_len = pool.queued
        pool.enqueue(now, request)
        self.queued += 1
        self._requests[request.id] = request
        if ticket.timeout < inf:
            request.deadline = now + ticket.timeout
            self._deadlines.push(request)
            self._due = min(self._due, request.deadline)
        if self._crowd is not None or self.queued * 2 >= self.fleet.settings.global_cap:
            self._watch(node)
        own = node.n - 1 if node.extra is None else node.order(pool.epoch.per_wait).index(request)
        request.rank = place(pool, now, node, own)[0]
        if node.n > 1 and not ticket.avoid and best_gate(pool.places) is not None:  # its party's head avoided that gate
            others = [*others]
            self._fill_pool(now, pool, others)
        return Queued(request.id, request.rank, request.queue_len), others

    def _watch(self, node: User) -> None:
        if self._crowd is None:
            self._crowd = self._gathered()
        else:
            self._crowd.grew(node)

    def _gathered(self) -> Crowd:
        waiting = [node for pool in self._pools.values() for node in pool.nodes.values() if node.n]
        return Crowd(waiting, self.fleet.ledger.falls)

    def _evict(self, now: float, newcomer: User) -> Refused | None:
        """Evict the newest request of the longest queue. None if no queue is longer than the newcomer's."""
        crowd = self._crowd
        if crowd is None or crowd.falls != self.fleet.ledger.falls:
            crowd = self._crowd = self._gathered()
        longest = crowd.longest()
        if longest is None or load(newcomer) >= load(longest):
            return None
        request = longest.newest()
        self._unqueue(now, request)
        return self._refuse_at(now, request, Refusal.EVICTED)

    def _unqueue(self, now: float, request: Request) -> None:
        """Remove a waiting request from all queues."""
        del self._requests[request.id]
        request.pool.remove(now, request)
        self.queued -= 1
        if request.deadline < inf:
            self._deadlines.live -= 1
        if self._crowd is not None and self.queued * 4 < self.fleet.settings.global_cap:
            self._crowd = None

    def _refuse(self, number: int, reason: Refusal, waited: float = 0.0) -> Refused:
        self.refused[reason] += 1
        return Refused(number, reason, waited=waited)

    def _refuse_at(self, now: float, request: Request, reason: Refusal) -> Refused:
        """A refusal that says when to retry."""
        self.refused[reason] += 1
        return refused(now, request, reason)

    # -- slots -------------------------------------------------------------------------------------------------

    def _gate_for(self, pool: Pool, ticket: Ticket) -> Gate | None:
        """The gate for a request that need not wait. Others take the first free slot: order counts more than caches."""
        load = self.fleet.settings.affinity if ticket.conversation else 0.0
        home = home_gate(pool.places, ticket.conversation, load, ticket.avoid) if load else None
        return home or best_gate(pool.places, ticket.avoid)

    def _start(self, gate: Gate, request: Request, waited: float) -> Granted:
        gate.running += 1
        gate.latest = request.pool
        self.running += 1
        self.granted += 1
        request.gate = gate
        return Granted(request.id, gate.name, waited, request.rank, request.queue_len, request.usage)

    def _finish(self, now: float, request: Request, cost: float, others: Sequence[Decision]) -> Sequence[Decision]:
        del self._requests[request.id]
        gate = request.gate
        if gate is None:
            raise RuntimeError(f"request {request.id} runs on no gate")
        gate.running -= 1
        if gate.past and request.id in gate.past:
            gate.past.remove(request.id)
            gate.slots -= 1
        self.running -= 1
        charging.finish(now, request, cost)
        if not self.queued or gate.running >= gate.slots:
            return others
        decided = list(others)
        self._fill(now, gate, decided)
        return decided

    def _fill(self, now: float, gate: Gate, decided: list[Decision]) -> None:
        """Give the gate's free slots to the best heads that it may serve."""
        while gate.running < gate.slots:
            best = first(now, gate)
            if best is None:
                return
            pool, node = best
            request = pool.take(now, node)
            self.queued -= 1
            if request.deadline < inf:
                self._deadlines.live -= 1
            decided.append(self._start(gate, request, now - request.arrival))

    # -- events ------------------------------------------------------------------------------------------------

    def _begin(self, now: float) -> tuple[float, Sequence[Decision]]:
        """Common start of all calls: time never goes back, and what is due happens first."""
        if now > self.now:
            self.now = now
        elif now != now:
            raise ValueError("now is NaN")
        else:
            now = self.now
        if now < self._due:
            return now, NOTHING
        decided: list[Decision] = []
        self._run_due(now, decided)
        return now, decided

    def _run_due(self, now: float, decided: list[Decision]) -> None:
        held: list[Pool] = []
        while (request := self._deadlines.pop_due(now)) is not None:
            self._expire(now, request, decided)
            if request.pool.windows:
                held.append(request.pool)
        if now >= self._landmark:
            self.landmarks += 1
            self._landmark = now + self.fleet.settings.landmark_every
            self.fleet.landmark(now)
            self._rebind(now, decided)
        elif now >= self._boundary:
            self._rebind(now, decided)
        self._fill_pools(now, held, decided)
        if self.fleet.sweeping:
            self.fleet.drop_idle(now)
        self._due = now if self.fleet.sweeping else min(self._deadlines.next(), self._boundary, self._landmark)

    def _expire(self, now: float, request: Request, decided: list[Decision]) -> None:
        blocked = bool(request.pool.windows) and not request.pool.eligible(now, request)
        self._unqueue(now, request)
        decided.append(self._refuse_at(now, request, Refusal.RESERVED if blocked else Refusal.QUEUE_TIMEOUT))

    def _rebind(self, now: float, decided: list[Decision]) -> None:
        """Apply the reservation windows that bind now, and find out when that changes."""
        self.calendar.prune(now)
        self._boundary = inf
        for pool in self._pools.values():
            self._bind(now, pool, decided)

    def _bind(self, now: float, pool: Pool, decided: list[Decision]) -> None:
        """The same for one model; windows of the others do not change."""
        lead = pool.averages.late
        windows = self.calendar.binding(now, pool.name, lead)
        if windows or pool.windows:
            pool.bind(now, windows)
            self._fill_pool(now, pool, decided)
        self._boundary = min(self._boundary, self.calendar.next_boundary(now, pool.name, lead))
        self._due = min(self._due, self._boundary)

    def _fill_pool(self, now: float, pool: Pool, decided: list[Decision]) -> None:
        while pool.queued and (gate := best_gate(pool.places)) is not None:
            before = len(decided)
            self._fill(now, gate, decided)
            if len(decided) == before:
                return

    def _fill_pools(self, now: float, pools: Iterable[Pool], decided: list[Decision]) -> None:
        """Fill slots that waiting requests may take now, because a gate was closed or the request before them left."""
        for pool in pools:
            self._fill_pool(now, pool, decided)

    # -- capacity, settings, reservations, memory ----------------------------------------------------------------

    def set_gate(self, now: float, name: str, slots: int, *, trial: bool = False) -> Sequence[Decision]:
        """Define a gate or change its slots. 0 closes it; below 0: `ValueError`. Lowering does not end running
        requests; a gate that was removed while requests ran comes back with their count. On `trial`, requests that ran
        before take none of its slots."""
        if slots < 0:
            raise ValueError(f"gate {name}: slots must not be negative")
        now, others = self._begin(now)
        decided = list(others)
        gate = self.fleet.set_gate(now, name, slots)
        gate.try_beside([each.id for each in self._requests.values() if each.gate is gate] if trial else None)
        self._fill(now, gate, decided)
        if not gate.slots:
            self._fill_pools(now, gate.pools, decided)
        return decided

    def remove_gate(self, now: float, name: str) -> Sequence[Decision]:
        """The gate takes no more requests and leaves all pools; running ones go on. No effect if unknown."""
        now, others = self._begin(now)
        decided = list(others)
        self.fleet.remove_gate(now, name)
        self._fill_pools(now, self._pools.values(), decided)
        return decided

    def set_pool(self, now: float, name: str, places: Sequence[tuple[str, int]]) -> Sequence[Decision]:
        """Define a model's queue, or change the gates that serve it: (gate, preference), lower preference first,
        above 0 where the model would have to be loaded. `KeyError` for an unknown gate, `ValueError` for one named
        twice. Without gates its tickets wait."""
        found = self.fleet.places(name, places)
        now, others = self._begin(now)
        decided = list(others)
        pool = self.fleet.set_pool(now, name, found)
        self._bind(now, pool, decided)
        self._fill_pool(now, pool, decided)
        return decided

    def remove_pool(self, now: float, name: str) -> Sequence[Decision]:
        """Remove a model's queue: waiting requests are refused, running ones go on. No effect on an unknown one."""
        now, others = self._begin(now)
        if (pool := self._pools.get(name)) is None:
            return others
        decided = list(others)
        for request in self._waiting_for(pool):
            self._unqueue(now, request)
            decided.append(self._refuse(request.id, Refusal.UNKNOWN_POOL, waited=now - request.arrival))
        self.fleet.remove_pool(now, pool)
        return decided

    def _waiting_for(self, pool: Pool) -> list[Request]:
        return [r for node in pool.nodes.values() if node.n for r in node.waiting()]

    def set_settings(self, now: float, settings: Settings) -> Sequence[Decision]:
        """Replace all settings at once. Waiting requests keep their deadlines."""
        now, others = self._begin(now)
        self.fleet.set_settings(now, settings)
        self._landmark = now + settings.landmark_every
        self._due = min(self._due, self._landmark)
        return others

    def set_reservations(self, now: float, windows: Iterable[Window]) -> Sequence[Decision]:
        """Replace all reservation windows (times in this core's clock); those that have ended are dropped. `ValueError`
        for a duplicate id."""
        named = by_id(windows)
        now, others = self._begin(now)
        decided = list(others)
        self.calendar.replace(now, named)
        self._rebind(now, decided)
        return decided

    def export_usage(self, now: float) -> Saved:
        """The state to keep across a restart: plain data, with an `age` of 0 now."""
        return self.fleet.save(self._begin_quietly(now))

    def import_usage(self, now: float, saved: Saved, age: float = 0.0) -> None:
        """Take over what an earlier run exported `age` seconds ago (wall-clock seconds, from the caller; below 0 counts
        as 0). S and C of undefined pools are taken over once these are defined. `ValueError` for negative or non-finite
        usage; then nothing was taken."""
        self.fleet.restore(self._begin_quietly(now), saved, age)

    def _begin_quietly(self, now: float) -> float:
        """The time for a call that decides nothing."""
        self.now = now = max(self.now, now)
        return now

    # -- views -------------------------------------------------------------------------------------------------

    def position(self, now: float, number: int) -> Place | None:
        """The place of a waiting ticket; None if it does not wait. Counts the queue of its party."""
        now = max(self.now, now)
        request = self._requests.get(number)
        if request is None or request.state != QUEUED:
            return None
        return stands(now, request, request.node.order(request.pool.epoch.per_wait).index(request))

    def waiting(self, now: float, tenant: str, user: str) -> list[Place]:
        """All waiting tickets of one user, oldest first per model."""
        now = max(self.now, now)
        found: list[Place] = []
        for pool in self._pools.values():
            node = pool.nodes.get((tenant, user))
            if node is not None:
                order = enumerate(node.order(pool.epoch.per_wait))
                found.extend(sorted((stands(now, each, k) for k, each in order), key=lambda at: at.id))
        return found

    def stats(self, now: float) -> Stats:
        """A frozen snapshot. Looks at every party, so it is meant for people and scrapes, not for decisions."""
        return collect(self, max(self.now, now))

    def backlogs(self) -> list[Backlog]:
        """Every party with waiting requests, and how much it has been served so far: for the fairness index."""
        return backlogs(self)
