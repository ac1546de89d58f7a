"""A discrete-event simulation of clients, queues and slots, to compare scheduling policies.

Owns time, slots and measurement. Must not know any policy: it drives all of them through the same five calls. Service
times are modelled (prefill + tokens / speed); figures compare policies, they promise nothing about a GPU.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Client = tuple[str, str, str]
"""(tenant, user, key)."""


class Policy(Protocol):
    """What a scheduler must offer; `scheduler.sync.SyncScheduler` does."""

    def set_slots(self, model: str, slots: int, now: float) -> None: ...
    def set_share(self, tenant: str, user: str, share: float) -> None: ...
    def enqueue(self, client: Client, model: str, est_tokens: float, now: float) -> Any: ...
    def next(self, model: str, now: float) -> Any: ...
    def finish(self, handle: Any, actual_tokens: float, now: float) -> None: ...


@dataclass(frozen=True)
class Model:
    """One model: slots, seconds before the first token, tokens per second."""

    name: str = "m"
    slots: int = 8
    prefill: float = 0.4
    speed: float = 40.0


@dataclass(frozen=True)
class Source:
    """A party and how it sends. `rate` requests/s (Poisson, while `on` says so) or `parallel` requests always open."""

    client: Client
    role: str = "light"
    model: str = "m"
    rate: float = 0.0
    parallel: int = 0
    start: float = 0.0
    stop: float = float("inf")
    on: float = 0.0
    off: float = 0.0
    """Seconds of a burst and of the pause after it; 0: always on."""
    size: float = 1.0
    """Its requests are so many times the usual ones."""
    tail: float = 0.7
    """Sigma of the lognormal lengths."""
    share: float = 1.0
    keys: int = 1


@dataclass
class Job:
    """One request as the simulation knows it."""

    source: Source
    client: Client
    cost: float
    seconds: float
    arrived: float
    started: float = -1.0
    expected: float = -1.0
    """The wait that was announced when it was sent; below 0: none."""


@dataclass
class Tally:
    """What one user saw."""

    share: float
    role: str
    service: float = 0.0
    waits: list[float] = field(default_factory=list)
    queued: int = 0
    last: float = 0.0
    drought: float = 0.0
    grants: int = 0


def lengths(rng: random.Random, source: Source, model: Model) -> tuple[float, float]:
    """(cost, seconds) of a request: lognormal input (mean 500 tokens) and output (mean 200), cut at 8 times that."""
    mu = -(source.tail**2) / 2
    tokens_in = 500 * source.size * min(rng.lognormvariate(mu, source.tail), 8.0)
    tokens_out = 200 * source.size * min(rng.lognormvariate(mu, source.tail), 8.0)
    return tokens_in + 2 * tokens_out, model.prefill + tokens_in / 5000 + tokens_out / model.speed


class Simulation:
    """One run of one policy on one scenario. `noise`: sigma of the log of the estimate's error."""

    def __init__(
        self, policy: Policy, models: Sequence[Model], sources: Sequence[Source], seed: int, until: float, *,
        noise: float = 0.3, measure_from: float = 0.0, announce: Callable[[Any, float], float] | None = None,
    ) -> None:  # fmt: skip
        self.policy = policy
        self.models = {model.name: model for model in models}
        self.until, self.measure_from, self.noise = until, measure_from, noise
        self.now = 0.0
        self.announce = announce
        self.free = {model.name: model.slots for model in models}
        self.waiting = dict.fromkeys(self.free, 0)
        self.handles: dict[int, tuple[Any, Job]] = {}
        self.users: dict[tuple[str, str], Tally] = {}
        self.busy = 0.0
        self.jobs: list[Job] = []
        self.max_cost = 0.0
        self._events: list[tuple[float, int, Callable[..., None], Any]] = []
        self._serial = 0
        self._closed: dict[Source, random.Random] = {}
        self._estimates = random.Random(seed + 1_000_003)
        for model in models:
            policy.set_slots(model.name, model.slots, 0.0)
        for index, source in enumerate(sources):
            # Every source draws from its own stream: all policies see the same requests.
            self._begin(source, random.Random(seed * 10_007 + index))

    def _at(self, when: float, call: Callable[..., None], argument: Any) -> None:
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, call, argument))

    def _begin(self, source: Source, rng: random.Random) -> None:
        user = source.client[:2]
        self.users.setdefault(user, Tally(source.share, source.role))
        if source.share != 1.0:
            self.policy.set_share(*user, source.share)
        if source.parallel:
            self._closed[source] = rng
            for _ in range(source.parallel):
                self._at(source.start, self._arrive, (source, rng))
        else:
            self._at(source.start + rng.expovariate(source.rate), self._poisson, (source, rng))

    def _poisson(self, argument: tuple[Source, random.Random]) -> None:
        source, rng = argument
        cycle = source.on + source.off
        if self.now >= source.stop:
            return
        if not cycle or (self.now - source.start) % cycle < source.on:
            self._arrive(argument)
        self._at(self.now + rng.expovariate(source.rate), self._poisson, argument)

    def _arrive(self, argument: tuple[Source, random.Random]) -> None:
        source, rng = argument
        if self.now >= source.stop:
            return
        model = self.models[source.model]
        cost, seconds = lengths(rng, source, model)
        client = source.client
        if source.keys > 1:
            client = (*client[:2], f"key{rng.randrange(source.keys)}")
        job = Job(source, client, cost, seconds, self.now)
        estimate = cost * self._estimates.lognormvariate(0.0, self.noise)
        handle = self.policy.enqueue(client, source.model, estimate, self.now)
        if handle is None:
            return
        self.handles[id(handle)] = (handle, job)
        self.waiting[source.model] += 1
        tally = self.users[client[:2]]
        if not tally.queued:
            tally.last = self.now
        tally.queued += 1
        if self.announce is not None and not self.free[source.model]:
            job.expected = self.announce(handle, self.now)
        self._fill(source.model)

    def _fill(self, model: str) -> None:
        while self.free[model] and self.waiting[model]:
            handle = self.policy.next(model, self.now)
            assert handle is not None, "a slot idles while somebody waits"
            self._start(*self.handles.pop(id(handle)))

    def _start(self, handle: Any, job: Job) -> None:
        assert job.started < 0, "dispatched twice"
        job.started = self.now
        name = job.source.model
        self.free[name] -= 1
        self.waiting[name] -= 1
        tally = self.users[job.client[:2]]
        tally.queued -= 1
        if self.now >= self.measure_from:
            tally.drought = max(tally.drought, self.now - max(tally.last, self.measure_from))
            tally.waits.append(self.now - job.arrived)
            tally.service += job.cost
            tally.grants += 1
            self.jobs.append(job)
            self.max_cost = max(self.max_cost, job.cost)
        tally.last = self.now
        self._at(self.now + job.seconds, self._end, (handle, job))

    def _end(self, argument: tuple[Any, Job]) -> None:
        handle, job = argument
        name = job.source.model
        self.free[name] += 1
        self.busy += job.seconds
        self.policy.finish(handle, job.cost, self.now)
        if job.source.parallel:
            # Closed loop: the next one is sent as soon as this one ended, before the slot is given away.
            self._arrive((job.source, self._closed[job.source]))
        self._fill(name)

    def run(self) -> Simulation:
        """Play all events up to the end."""
        while self._events and self._events[0][0] <= self.until:
            self.now, _, call, argument = heapq.heappop(self._events)
            call(argument)
        self.now = self.until
        for tally in self.users.values():
            if tally.queued:
                tally.drought = max(tally.drought, self.now - max(tally.last, self.measure_from))
        return self

    def abandoned(self) -> list[Job]:
        """Requests that still wait: their wait so far counts in no percentile but is no less real."""
        return [job for _, job in self.handles.values()]
