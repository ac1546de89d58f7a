"""A worker's proxies for what its parent owns: slots, limits and the health of backends, over a channel.

Owns the numbers of this worker's tickets and reservations, and who waits for which answer. Must not know how anything
is decided. When the channel is lost everything is refused, because nobody would know what is granted here.

An answer and the end of a wait may cross on the wire. The rule for tickets and for reservations: whoever stops waiting
says so, and that message also gives back what was granted meanwhile.
"""

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence

import msgspec

from gateway.api.model_info import ModelInfo
from gateway.config import Config
from gateway.errors import BudgetSpent, GatewayError, LimitsUnavailable, RateLimited, limits_unchecked
from gateway.services import bounded, catalogue
from gateway.services.backend_facts import BackendStats, Failure, Seen
from gateway.services.catalogue import Catalogue, snapshot
from gateway.services.channel import Channel
from gateway.services.limits import Limited, Reservation, Shown
from gateway.services.messages import (
    BackendStates,
    Cancel,
    Charge,
    Denied,
    Failed,
    Grant,
    Held,
    Linger,
    Measured,
    Refuse,
    Release,
    ReportSuccess,
    Reserve,
    Retuned,
    Settle,
    Submit,
    Succeeded,
    Welcome,
)
from gateway.services.pace import Pace
from gateway.services.route import Backend, Route
from scheduler.aio import Lease, Rejected, Waiter
from scheduler.estimate import Estimator
from scheduler.model import Place, Queued, Refusal, Refused, Ticket

SHOWN_MOST = 10_000
"""Principals whose limits are remembered for the header fields; each is updated by its next request."""
DENIALS: Mapping[str, type[GatewayError]] = {kind.code: kind for kind in (RateLimited, BudgetSpent, LimitsUnavailable)}


class RemoteScheduler:
    """The parent's scheduler, with the interface that `flow` uses: `submit`, and leases and waiters."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._waiters: dict[int, Waiter] = {}
        self._closed = False
        channel.on({Grant: self._granted, Refuse: self._refused})

    def submit(self, ticket: Ticket) -> Waiter:
        """Always returns a `Waiter`, since the answer takes a turn of two loops. Raises `Rejected` if nobody could
        answer."""
        if self._closed or self._channel.closed:
            raise Rejected(Refused(0, Refusal.DRAINING))
        number = next(self._numbers)
        waiter = self._waiters[number] = Waiter(self, Queued(number, 0, 0), self._loop.create_future())
        fields = msgspec.structs.astuple(ticket)
        self._channel.send(Submit(*fields, number))  # type: ignore[call-arg]  # they are not counted by types
        return waiter

    def _granted(self, grant: Grant) -> None:
        waiter = self._waiters.pop(grant.id, None)
        if waiter is None:
            return  # it was cancelled, and the parent is being told
        if waiter.future.done():
            self._channel.send(Release(grant.id, 0.0))  # the waiting request is gone, but has not cancelled yet
        else:
            waiter.future.set_result(Lease(self, grant))

    def _refused(self, refuse: Refuse) -> None:
        waiter = self._waiters.pop(refuse.id, None)
        if waiter is not None and not waiter.future.done():
            waiter.future.set_exception(Rejected(refuse))

    def abandon(self, waiter: Waiter) -> None:
        """See `Waiter.cancel`."""
        future = waiter.future
        if self._waiters.pop(waiter.id, None) is not None:
            future.cancel()
            self._channel.send(Cancel(waiter.id))
        elif future.done() and not future.cancelled() and future.exception() is None:
            future.result().release(0.0)

    def end(self, number: int, cost: float) -> None:
        """See `Lease.release`."""
        self._channel.send(Release(number, cost))

    def charge(self, number: int, extra: float) -> None:
        """See `Lease.charge`."""
        self._channel.send(Charge(number, extra))

    def position(self, number: int) -> Place | None:
        """Only the parent knows: see `messages.Who`."""
        return None

    def close(self) -> None:
        """Refuse all waiting and later tickets (DRAINING); leases stay valid."""
        self._closed = True
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            self._channel.send(Cancel(waiter.id))
            if not waiter.future.done():
                waiter.future.set_exception(Rejected(Refused(waiter.id, Refusal.DRAINING)))


class RemoteLimits:
    """The parent's limits, with the interface that `flow` uses. A reservation here has a number of the parent's."""

    def __init__(self, channel: Channel) -> None:
        self.pace = Pace()
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[asyncio.Future[Reservation], Limited]] = {}
        self._shown: dict[tuple[str, str], tuple[Shown, Shown]] = {}
        self._closed = False
        channel.on({Held: self._held, Denied: self._denied})

    async def acquire(self, principal: Limited, tokens: int, gpu_seconds: float) -> Reservation:
        """See `LimitService.acquire`. An interruption leaves nothing reserved."""
        if self._closed or self._channel.closed:
            raise limits_unchecked()
        number = next(self._numbers)
        future: asyncio.Future[Reservation] = self._loop.create_future()
        self._asked[number] = (future, principal)
        self._channel.send(Reserve(number, principal.key, principal.user, principal.limits, tokens, gpu_seconds))
        try:
            return await future
        except BaseException:
            if self._asked.pop(number, None) is not None:
                self._channel.send(Settle(number, 0, 0.0))
            elif not future.cancelled() and future.exception() is None:
                self.forget(future.result())
            raise

    def _held(self, held: Held) -> None:
        future = self._answered(held)
        if future is None:
            return  # nobody waits any more, and the parent is being told
        if future.done():
            self._channel.send(Settle(held.number, 0, 0.0))  # the waiting request is gone, but has not cancelled yet
        else:
            future.set_result(Reservation(held.number, (), (0, 0, 0, 0), 0.0))

    def _denied(self, denied: Denied) -> None:
        future = self._answered(denied)
        if future is not None and not future.done():
            future.set_exception(DENIALS[denied.code](denied.message, retry_after=denied.retry_after))

    def _answered(self, answer: Held | Denied) -> "asyncio.Future[Reservation] | None":
        future, principal = self._asked.pop(answer.number, (None, None))
        if principal is not None:
            name = (principal.key, principal.user)
            bounded.put(self._shown, name, (answer.requests, answer.tokens), SHOWN_MOST)
        return future

    def settle(self, reservation: Reservation, tokens: int, gpu_seconds: float) -> None:
        """See `LimitService.settle`."""
        if reservation.open:
            reservation.open = False
            self._channel.send(Settle(reservation.number, tokens, gpu_seconds))

    def forget(self, reservation: Reservation) -> None:
        """See `LimitService.forget`."""
        self.settle(reservation, 0, 0.0)

    def shown(self, principal: Limited) -> "tuple[Shown, Shown]":
        """As the parent reported them with the principal's last reservation."""
        return self._shown.get((principal.key, principal.user), ((), ()))

    def close(self) -> None:
        """Refuse all waiting and later requests."""
        self._closed = True
        asked, self._asked = self._asked, {}
        for number, (future, _) in asked.items():
            self._channel.send(Settle(number, 0, 0.0))
            if not future.done():
                future.set_exception(limits_unchecked())


class RemoteBackends:
    """One generation of the configuration with the parent's view of its backends. Never contacts a backend itself."""

    def __init__(self, channel: Channel, config: Config, seen: Sequence[Seen]) -> None:
        self._channel = channel
        self._sections = config.backends
        self._backends = {section.name: snapshot(section) for section in config.backends}
        self._upstream = config.upstream
        self._overrides = config.models
        # At first all are in doubt: a new worker or generation does not know which failures the parent has counted.
        self._doubted = {section.name for section in config.backends}
        self.show(seen)

    def show(self, seen: Sequence[Seen]) -> None:
        """Take over a view; backends of other generations are ignored."""
        known = {one.stats.name: one for one in seen}
        self._stats = tuple(known[section.name].stats for section in self._sections if section.name in known)
        self._adaptive = {section.name for section in self._sections if section.adaptive is not None}
        self._doubted |= {stats.name for stats in self._stats if stats.state != "closed"}
        sightings = [(section, known[section.name].models) for section in self._sections if section.name in known]
        self._catalogue: Catalogue = catalogue.build(sightings, self._upstream, self._overrides)

    def route(self, model: str, dialect: str, kind: str) -> Route | None:
        index = self._catalogue.routes.get((dialect, kind))
        return index.get(model) if index is not None else None

    def backend(self, name: str) -> Backend:
        return self._backends[name]

    def models(self) -> Sequence[ModelInfo]:
        return self._catalogue.models

    def loaded(self) -> frozenset[str]:
        return frozenset(model.name for model in self._catalogue.models if model.loaded)

    def stats(self) -> Sequence[BackendStats]:
        return self._stats

    @property
    def pools(self) -> Mapping[str, object]:
        """The names of the scheduler's queues."""
        return self._catalogue.pools

    def doubt(self, name: str) -> None:
        """A request of some worker failed there, or the parent looked at it."""
        self._doubted.add(name)

    def succeeded(self, name: str, status: int = 200) -> None:
        """Reported only while in doubt: a success that changes nothing is not worth a message. An error answer does not
        end the doubt, because it does not make up for a failed look."""
        if name in self._doubted:
            if 200 <= status < 300 and all(stats.state == "closed" for stats in self._stats if stats.name == name):
                self._doubted.discard(name)
            self._channel.send(Succeeded(name, status))

    def failed(self, name: str, kind: Failure) -> None:
        self._doubted.add(name)
        self._channel.send(Failed(name, kind))

    def measured(self, name: str, tpot: float, started: float, now: float) -> None:
        if name in self._adaptive:
            self._channel.send(Measured(name, tpot, started, now))


class RemoteZombies:
    """The parent's zombies, with the interface that `flow` uses: only the parent knows all requests at an engine."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def keep(self, lease: Lease, cost: float, most: float) -> None:
        """See `ZombieService.keep`."""
        self._channel.send(Linger(lease.id, cost, most))


class RemoteHub:
    """The parent's hub. `changed` is called when the backends' models may have changed."""

    def __init__(self, channel: Channel, welcome: Welcome, changed: Callable[[RemoteBackends], None]) -> None:
        self.channel = channel
        self.scheduler = RemoteScheduler(channel)
        self.limits = RemoteLimits(channel)
        self.zombies = RemoteZombies(channel)
        self.estimator = Estimator(welcome.settings)
        self._seen = welcome.seen
        self._changed = changed
        self.backends = RemoteBackends(channel, welcome.config, welcome.seen)
        channel.on({BackendStates: self._pictured, ReportSuccess: self._doubted, Retuned: self._retuned})

    def _pictured(self, picture: BackendStates) -> None:
        self._seen = picture.seen
        self.backends.show(picture.seen)
        self._changed(self.backends)

    def _doubted(self, doubt: ReportSuccess) -> None:
        self.backends.doubt(doubt.backend)

    def _retuned(self, retuned: Retuned) -> None:
        self.estimator.settings = retuned.settings

    def prepare(self, config: Config) -> tuple[RemoteBackends, Callable[[], None]]:
        """Build the backends of a new configuration; returns them and a function that puts them in force."""
        backends = RemoteBackends(self.channel, config, self._seen)

        def adopt() -> None:
            backends.show(self._seen)
            self.backends = backends
            self._changed(backends)

        return backends, adopt

    async def start(self) -> None:
        """Nothing to do: the parent has started everything."""

    def run(self, group: object) -> None:
        """Nothing to do: the parent watches."""

    async def close(self) -> None:
        """Report what requests have used, then close the channel. All requests have ended."""
        self.limits.close()
        self.channel.close()
