"""The backends: which are healthy, which models they have, and what the scheduler may grant.

Owns the breakers and the health checks ("looks") that keep them and the catalogue (model -> route) up to date. Requests
only do synchronous dictionary look-ups. The work happens when discovery or a breaker changes something; then
`on_change` gets the new `Topology`. Must not know principals, bodies, or how a request is scheduled.
"""

import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final, Protocol

import anyio
import httpx

from gateway import config
from gateway.api.model_info import ModelInfo
from gateway.services import catalogue, discovery
from gateway.services.backend_facts import FAILURES, BackendStats, Failure, Seen, Topology
from gateway.services.breaker import Breaker, State
from gateway.services.catalogue import Catalogue, base_url, snapshot
from gateway.services.discovery import LookFailed, Sighting
from gateway.services.route import Backend, Route
from scheduler.aimd import Aimd

log = logging.getLogger("fairgate.backends")

DEFAULT_SLOTS: Final = 4  # if neither the configuration nor the engine says; vLLM and Ollama do not report theirs
JITTER: Final = 0.1  # looks vary by this fraction, so that replicas do not look at the same time


class Backends(Protocol):
    """The part of `BackendService` that requests use."""

    def route(self, model: str, dialect: str, kind: str) -> Route | None: ...
    def backend(self, name: str) -> Backend: ...
    def models(self) -> Sequence[ModelInfo]: ...
    def loaded(self) -> frozenset[str]: ...
    def stats(self) -> "Sequence[BackendStats]": ...
    def succeeded(self, name: str, status: int = 200) -> None: ...
    def failed(self, name: str, kind: Failure) -> None: ...
    def measured(self, name: str, tpot: float, started: float, now: float) -> None: ...


class _Watched:
    """The mutable state of one backend. `wanted`: a look was requested ahead of schedule."""

    def __init__(self, section: config.Backend, breaker: Breaker) -> None:
        self.section = section
        self.breaker = breaker
        self.counts: dict[str, int] = dict.fromkeys(FAILURES, 0)
        self.sighting = Sighting()
        adaptive = section.adaptive
        self.aimd = Aimd(adaptive.tpot, adaptive.low, adaptive.high) if adaptive is not None else None
        self.snapshot = snapshot(section)
        self.seen_at: float | None = None
        self.known_at = 0.0  # when it was last seen, or served a request: then what was seen still holds
        self.failure = "not looked at yet"
        self.looked = False
        self.wanted = False
        self.wake = anyio.Event()

    @property
    def slots(self) -> int:
        if self.aimd is not None:
            return self.aimd.limit
        return self.section.slots or self.sighting.slots or DEFAULT_SLOTS

    @property
    def gate(self) -> int:
        state = self.breaker.state
        return 0 if state is State.OPEN else 1 if state is State.HALF_OPEN else self.slots

    def inherit(self, before: "_Watched") -> None:
        """Take over the state from the previous generation, whose running requests report to the same breaker."""
        self.breaker, self.counts = before.breaker, before.counts
        self.seen_at, self.failure, self.looked = before.seen_at, before.failure, before.looked
        self.known_at = before.known_at
        if self.section.adaptive == before.section.adaptive:
            self.aimd = before.aimd
        self.sighting = before.sighting

    def expect(self, before: "_Watched") -> None:
        """Its address, key, authority or model list has changed. Until it has been looked at there, the old sighting
        stands, so that requests waiting for its models keep waiting, and no client is told that they are unknown."""
        if self.section.engine == before.section.engine:
            self.seen_at, self.known_at = before.seen_at, before.known_at
            self.sighting = discovery.narrowed(before.sighting, frozenset(self.section.models))

    def same_engine(self, other: "_Watched") -> bool:
        """Whether both would see the same engine. Slots and weight may differ."""
        mine, its = self.section, other.section
        return (mine.url, mine.engine, mine.key, mine.ca, mine.models) == (
            its.url,
            its.engine,
            its.key,
            its.ca,
            its.models,
        )


class BackendService:
    """The backends of one generation of the configuration. `run()` checks them; what requests call is synchronous."""

    def __init__(
        self,
        backends: Sequence[config.Backend],
        settings: config.Discovery,
        upstream: config.Upstream,
        models: Mapping[str, config.Model],
        *,
        clock: Callable[[], float],
        on_change: Callable[[Topology], None],
        on_look: Callable[[str], None] = lambda name: None,
        previous: "BackendService | None" = None,
    ) -> None:
        """`clock` is in monotonic seconds. `on_change` is called when topology or catalogue have changed. It must not
        raise, is not called by the constructor (read `topology` instead), and is also called by a generation that is no
        longer in force. `on_look` is called after each look at a backend; workers then report their next success there,
        even if they had reported one before.

        `previous` is the previous generation: its knowledge of unchanged backends is taken over.
        """
        self._settings = settings
        self._upstream = upstream
        self._overrides = models
        self._clock = clock
        self._on_change = on_change
        self._on_look = on_look
        self._random = random.Random()  # noqa: S311 - spreads looks, protects nothing
        self._watched = {
            section.name: _Watched(section, Breaker(settings.eject_after, settings.eject_for)) for section in backends
        }
        self._moved = anyio.Event()
        self._first_round = anyio.Event()
        self._catalogue = Catalogue()
        self.version = 0  # incremented with every new catalogue
        self.follow(previous)
        self._topology, self._published = self._compose(), self.version

    def __repr__(self) -> str:
        states = ", ".join(f"{name}={watched.breaker.state}" for name, watched in self._watched.items())
        return f"<BackendService version={self.version} models={len(self._catalogue.models)} {states}>"

    # -- read on a request's path ---------------------------------------------------------------------------------

    def route(self, model: str, dialect: str, kind: str) -> Route | None:
        """The route for `model` and this kind of request, or None. Ollama's `name` finds `name:latest`."""
        index = self._catalogue.routes.get((dialect, kind))
        return index.get(model) if index is not None else None

    def backend(self, name: str) -> Backend:
        """A configured backend. Raises KeyError."""
        return self._watched[name].snapshot

    def models(self) -> Sequence[ModelInfo]:
        """The models that discovery sees now, by name."""
        return self._catalogue.models

    def loaded(self) -> frozenset[str]:
        """The models that at least one engine holds in memory now."""
        return frozenset(model.name for model in self._catalogue.models if model.loaded)

    @property
    def topology(self) -> Topology:
        """The topology last passed to `on_change`."""
        return self._topology

    def current(self) -> Topology:
        """The topology now, including what requests of a previous generation have reported to shared breakers. It
        counts as passed to `on_change`."""
        self._moved.set()  # `run` must wake up in time for a breaker that was opened there
        self._topology, self._published = self._compose(), self.version
        return self._topology

    def follow(self, previous: "BackendService | None") -> None:
        """Take over what the previous generation knows. Called again when this generation is put in force, because the
        previous one went on looking while the workers prepared."""
        for name, before in previous._watched.items() if previous is not None else ():
            watched = self._watched.get(name)
            if watched is not None:
                watched.inherit(before) if watched.same_engine(before) else watched.expect(before)
        self._rebuild()

    def enforce(self) -> None:
        """This generation is in force now: inherited breakers get its settings."""
        for watched in self._watched.values():
            watched.breaker.eject_after = self._settings.eject_after
            watched.breaker.eject_for = self._settings.eject_for

    # -- told by the request's path -------------------------------------------------------------------------------

    def succeeded(self, name: str, status: int = 200) -> None:
        """An answer has begun. Called at the response head, so that a probe is decided before its stream ends."""
        if self._watched[name].breaker.succeeded(served=200 <= status < 300):
            log.info("backend recovered", extra={"backend": name})
            self._publish(moved=True)

    def failed(self, name: str, kind: Failure) -> None:
        """A request failed, and the backend is to blame."""
        watched = self._watched[name]
        watched.counts[kind] += 1
        if watched.breaker.failed(self._clock()):
            log.warning("backend ejected", extra={"backend": name, "failure": kind})
            self._moved.set()
            self._publish(moved=True)

    def measured(self, name: str, tpot: float, started: float, now: float) -> None:
        """A stream that got its slot at `started` ended at `now`, with `tpot` seconds per output token. Only used for
        adaptive slots."""
        watched = self._watched[name]
        if watched.aimd is None:
            return
        before = watched.aimd.limit
        if watched.aimd.observe(tpot, started, now) != before:
            self._publish(moved=True)

    # -- the watch ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Check all backends until cancelled."""
        async with anyio.create_task_group() as group:
            for watched in self._watched.values():
                group.start_soon(self._watch, watched)
            group.start_soon(self._keep_time)

    async def looked(self) -> None:
        """Wait until every backend has been checked once, successfully or not: at most `discovery.timeout` after the
        start."""
        if not all(watched.looked for watched in self._watched.values()):
            await self._first_round.wait()

    async def refresh(self) -> None:
        """Check every backend once, in parallel."""
        async with AsyncExitStack() as stack, anyio.create_task_group() as group:
            for watched in self._watched.values():
                group.start_soon(self._look, watched, await stack.enter_async_context(self._client(watched)))

    def client(self, name: str) -> httpx.AsyncClient:
        """A new HTTP client for discovery at a configured backend. Raises KeyError, and OSError for its authority."""
        return self._client(self._watched[name])

    def _client(self, watched: _Watched) -> httpx.AsyncClient:
        section = watched.section
        return discovery.client(base_url(section.url), key=section.key, ca=section.ca, timeout=self._settings.timeout)

    async def _watch(self, watched: _Watched) -> None:
        async with self._client(watched) as http:
            while True:
                await self._look(watched, http)
                with anyio.move_on_after(self._settings.interval * self._random.uniform(1 - JITTER, 1 + JITTER)):
                    await watched.wake.wait()
                watched.wake = anyio.Event()

    async def _look(self, watched: _Watched, http: httpx.AsyncClient) -> None:
        section = watched.section
        try:
            sighting = await discovery.look(http, section.engine, frozenset(section.models), self._settings.timeout)
        except LookFailed as err:
            self._missed(watched, str(err))
        else:
            self._saw(watched, sighting)
        self._on_look(section.name)
        watched.wanted = False
        watched.looked = True
        if all(each.looked for each in self._watched.values()):
            self._first_round.set()
        self._moved.set()

    def _saw(self, watched: _Watched, sighting: Sighting) -> None:
        name = watched.section.name
        if watched.failure:
            log.info("backend seen", extra={"backend": name, "models": len(sighting.models)})
        watched.failure = ""
        watched.seen_at = watched.known_at = self._clock()
        if watched.breaker.seen(watched.seen_at):
            log.info("backend admitted again", extra={"backend": name, "state": watched.breaker.state.value})
        if sighting != watched.sighting:
            watched.sighting = sighting
            self._rebuild()
        self._publish()

    def _missed(self, watched: _Watched, reason: str) -> None:
        name = watched.section.name
        if reason != watched.failure:
            log.warning("backend not seen", extra={"backend": name, "reason": reason})
        watched.failure = reason
        now = self._clock()
        self._trust(watched, now)
        if watched.breaker.missed(now):
            log.warning("backend ejected", extra={"backend": name, "failure": "not seen"})
        self.tick()
        self._publish()

    async def _keep_time(self) -> None:
        """Wake up whenever the passing of time alone changes something."""
        while True:
            self._moved = anyio.Event()
            pause = self.tick() - self._clock()
            with anyio.move_on_after(max(0.0, pause)):
                await self._moved.wait()

    def tick(self) -> float:
        """Apply what is due: forget backends not seen for too long, and check those whose breaker may become half-open.
        Returns the time of the next such event, or inf."""
        now = self._clock()
        watched = self._watched.values()
        for each in watched:
            self._trust(each, now)
        forgotten = [each for each in watched if now >= self._forget_at(each)]
        for each in forgotten:
            log.warning("backend forgotten", extra={"backend": each.section.name})
            each.sighting = Sighting(slots=each.sighting.slots)
        if forgotten:
            self._rebuild()
            self._publish()
        ejected = [each for each in watched if each.breaker.state is State.OPEN and not each.wanted]
        for each in ejected:
            if now >= each.breaker.until:
                each.wanted = True
                each.wake.set()
        probes = (each.breaker.until for each in ejected if not each.wanted)
        return min(*probes, *(self._forget_at(each) for each in watched), math.inf, math.inf)

    def _trust(self, watched: _Watched, now: float) -> None:
        """A backend that serves requests exists: its models stay as last seen, however long its checks take."""
        if watched.breaker.served:
            watched.known_at = now

    def _forget_at(self, watched: _Watched) -> float:
        return watched.known_at + self._settings.forget if watched.sighting.models else math.inf

    # -- what follows from it -------------------------------------------------------------------------------------

    def _rebuild(self) -> None:
        seen = [(watched.section, watched.sighting.models) for watched in self._watched.values()]
        self._catalogue = catalogue.build(seen, self._upstream, self._overrides)
        self.version += 1

    def _compose(self) -> Topology:
        gates = {name: watched.gate for name, watched in self._watched.items()}
        trials = frozenset(name for name, each in self._watched.items() if each.breaker.state is State.HALF_OPEN)
        return Topology(gates=gates, pools=self._catalogue.pools, trials=trials)

    def _publish(self, *, moved: bool = False) -> None:
        """Tell about changes. `moved`: something shared between generations changed (a breaker or a limit), so
        `on_change` may last have been called by another generation."""
        topology = self._compose()
        if moved or topology != self._topology or self.version != self._published:
            self._topology, self._published = topology, self.version
            self._on_change(topology)

    def picture(self) -> tuple[Seen, ...]:
        """Everything that routes are built from, for another process to build the same ones."""
        return tuple(
            Seen(stats, watched.sighting.models)
            for stats, watched in zip(self.stats(), self._watched.values(), strict=True)
        )

    def __contains__(self, name: str) -> bool:
        return name in self._watched

    def stats(self) -> tuple[BackendStats, ...]:
        """The statistics of every backend, in the order of the configuration."""
        now = self._clock()
        return tuple(_stats(watched, now) for watched in self._watched.values())


def _stats(watched: _Watched, now: float) -> BackendStats:
    return BackendStats(
        name=watched.section.name,
        engine=watched.section.engine,
        state=watched.breaker.state.value,
        up=not watched.failure,
        slots=watched.slots,
        models=len(watched.sighting.models),
        loaded=tuple(info.name for info in watched.sighting.models if info.loaded),
        failures=dict(watched.counts),
        misses=watched.breaker.misses,
        ejections=watched.breaker.ejections,
        last_seen=None if watched.seen_at is None else now - watched.seen_at,
        version=watched.sighting.version,
        failure=watched.failure,
    )
