"""The parent's side of one worker: carries out the worker's requests against the shared queue and limits.

Owns what the worker holds: its places in the queue, its slots, its reservations. When the worker is gone, all of it is
given back at once: places are given up, a slot is charged with the expected cost of its request, and a reservation
counts as used in full, because nobody knows how far the request got. Must not know processes.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from gateway.errors import BudgetSpent, GatewayError, LimitsUnavailable, RateLimited, limits_unchecked
from gateway.services.backends import BackendService
from gateway.services.channel import Channel
from gateway.services.limits import LimitService, Reservation, Shown
from gateway.services.messages import (
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
    Reserve,
    Settle,
    Submit,
    Succeeded,
    Told,
)
from gateway.services.meters import GPU, TOKENS
from gateway.services.zombies import Zombies
from scheduler.aio import Lease, Rejected, Scheduler, Waiter
from scheduler.model import Place, Refused

_log = logging.getLogger("fairgate.workers")


class Hub(Protocol):
    """What all workers share."""

    @property
    def scheduler(self) -> Scheduler: ...
    @property
    def limits(self) -> LimitService: ...
    @property
    def backends(self) -> BackendService: ...
    @property
    def zombies(self) -> Zombies: ...


class WorkerSession:
    """One worker as the parent serves it. `doubted` is called with a backend on which a request failed, so that all
    workers are told."""

    def __init__(
        self,
        channel: Channel,
        hub: Hub,
        doubted: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.channel = channel
        self._hub = hub
        self._doubted = doubted
        self._clock = clock
        self._waiters: dict[int, Waiter] = {}
        self._leases: dict[int, tuple[Lease, float]] = {}  # number -> the lease, and the request's cost as known so far
        self._reserved: dict[int, Reservation] = {}
        self._reserving: dict[int, asyncio.Task[None]] = {}
        channel.on(
            {
                Submit: self._submit,
                Cancel: self._cancel,
                Release: self._release,
                Linger: self._linger,
                Charge: self._charge,
                Reserve: self._reserve,
                Settle: self._settle,
                Failed: self._failed,
                Succeeded: self._succeeded,
                Measured: self._measured,
            }
        )

    def __repr__(self) -> str:
        return f"<WorkerSession waiting={len(self._waiters)} leases={len(self._leases)} reserved={len(self._reserved)}>"

    # -- slots

    def _submit(self, submit: Submit) -> None:
        try:
            got = self._hub.scheduler.submit(submit)
        except Rejected as rejected:
            self._refuse(submit.number, rejected.refused)
            return
        if isinstance(got, Lease):
            self._grant(submit.number, got, submit.cost)
        else:
            self._waiters[submit.number] = got
            got.future.add_done_callback(partial(self._decided, submit.number, submit.cost))

    def _decided(self, number: int, cost: float, future: "asyncio.Future[Lease]") -> None:
        if self._waiters.pop(number, None) is None:
            return  # cancelled meanwhile: the slot, if there was one, has been given back
        error = future.exception()
        if isinstance(error, Rejected):
            self._refuse(number, error.refused)
        else:
            self._grant(number, future.result(), cost)

    def _grant(self, number: int, lease: Lease, cost: float) -> None:
        self._leases[number] = (lease, cost)
        self.channel.send(Grant(number, lease.gate, lease.waited, lease.rank, lease.queue_len, lease.usage))

    def _refuse(self, number: int, r: Refused) -> None:
        self.channel.send(Refuse(number, r.reason, r.ahead, r.estimate, r.retry_after, r.waited))

    def _cancel(self, cancel: Cancel) -> None:
        waiter = self._waiters.pop(cancel.number, None)
        if waiter is not None:
            waiter.cancel()
        elif cancel.number in self._leases:  # the message with the grant is still on its way
            self._release(Release(cancel.number, 0.0))

    def _release(self, release: Release) -> None:
        lease, _ = self._leases.pop(release.number)
        lease.release(release.cost)

    def _linger(self, linger: Linger) -> None:
        """The engine still works on the request: from here on the slot belongs to the hub and outlives the worker."""
        lease, _ = self._leases.pop(linger.number)
        self._hub.zombies.keep(lease, linger.cost, linger.most)

    def _charge(self, charge: Charge) -> None:
        lease, cost = self._leases[charge.number]
        self._leases[charge.number] = (lease, cost + charge.extra)
        lease.charge(charge.extra)

    def place(self, number: int) -> Place | None:
        """The position of the worker's ticket with that number."""
        waiter = self._waiters.get(number)
        return waiter.position() if waiter is not None else None

    # -- limits

    def _reserve(self, asked: Reserve) -> None:
        try:
            got = self._hub.limits.reserve(asked, asked.tokens, asked.gpu_seconds, self._clock())
        except GatewayError as error:
            self._deny(asked, error)
            return
        if isinstance(got, Reservation):
            self._hold(asked, got)
        else:
            task = self._reserving[asked.number] = asyncio.get_running_loop().create_task(self._after(got, asked))
            task.add_done_callback(lambda _: self._reserving.pop(asked.number, None))

    async def _after(self, round_: Awaitable[None], asked: Reserve) -> None:
        """Quota has to be leased first: wait for that round, then try again. If it fails, the worker is told."""
        try:
            await round_
            got = await self._hub.limits.acquire(asked, asked.tokens, asked.gpu_seconds)
        except GatewayError as error:
            self._deny(asked, error)
        except Exception:
            _log.exception("a worker's reservation broke")
            self._deny(asked, limits_unchecked())
        else:
            self._hold(asked, got)

    def _hold(self, asked: Reserve, reservation: Reservation) -> None:
        self._reserved[asked.number] = reservation
        requests, tokens = self._hub.limits.shown(asked)
        self.channel.send(Held(asked.number, self._told(requests), self._told(tokens)))

    def _deny(self, asked: Reserve, error: GatewayError) -> None:
        assert isinstance(error, RateLimited | BudgetSpent | LimitsUnavailable)  # noqa: S101  # all that limits raise
        requests, tokens = self._hub.limits.shown(asked)
        denied = Denied(
            asked.number, error.code, error.message, error.retry_after, self._told(requests), self._told(tokens)
        )
        self.channel.send(denied)

    def _told(self, shown: Shown) -> tuple[Told, ...]:
        now = self._clock()
        return tuple(Told(meter.most, meter.remaining(now), meter.reset(now)) for meter in shown)

    def _settle(self, settle: Settle) -> None:
        task = self._reserving.pop(settle.number, None)
        if task is not None:
            task.cancel()
        reservation = self._reserved.pop(settle.number, None)
        if reservation is not None:
            self._hub.limits.settle(reservation, settle.tokens, settle.gpu_seconds)

    # -- backends. Requests from before a reload may still name one that was removed.

    def _failed(self, failed: Failed) -> None:
        if failed.backend in self._hub.backends:
            self._hub.backends.failed(failed.backend, failed.kind)
            self._doubted(failed.backend)

    def _succeeded(self, succeeded: Succeeded) -> None:
        if succeeded.backend in self._hub.backends:
            self._hub.backends.succeeded(succeeded.backend, succeeded.status)

    def _measured(self, measured: Measured) -> None:
        if measured.backend in self._hub.backends:
            self._hub.backends.measured(measured.backend, measured.tpot, measured.started, measured.now)

    # -- the end

    def close(self) -> None:
        """The worker is gone: take back what it held."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            waiter.cancel()
        leases, self._leases = self._leases, {}
        for lease, cost in leases.values():
            lease.release(cost)
        for task in list(self._reserving.values()):
            task.cancel()
        reserved, self._reserved = self._reserved, {}
        for reservation in reserved.values():
            self._hub.limits.settle(reservation, reservation.amounts[TOKENS], reservation.amounts[GPU] / 1000)
