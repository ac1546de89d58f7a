"""Leases quota in rounds from a lender: the store's ledger of budgets, or Redis.

Owns when a round takes place, its deadline, the pauses while the lender does not answer, and who waits for an answer;
must not know what is leased. One round carries all meters that have something to report or to ask for. When a round
fails, the requests that waited for it are refused (503); amounts already on lease can still be spent.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from gateway.errors import LimitsUnavailable, limits_unchecked
from gateway.services.limit_facts import LenderStats
from gateway.services.meters import Leased

_log = logging.getLogger("fairgate.limits")

ROUND_METERS = 200
"""Maximum meters in one round: a transaction or script of this size takes a few milliseconds at the lender."""
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
"""Maximum seconds between attempts while the lender fails, and so the longest that a recovery goes unnoticed."""
ROUNDS_PER_LEASE = 4
"""A lease is renewed this often, so that one failed round does not end it."""
GATHERED = 0.25
"""A round also renews what is due within this fraction of the renewal interval. With leases of 10 s this gives less
than two rounds a second, however the meters are spread, for a third more claims."""

M = TypeVar("M", bound=Leased)


class Lender(Generic[M]):
    """Runs the rounds. `ask` does one round: it applies the answers to the meters and returns for each whether it needs
    no further round. `failures` are the exceptions that `ask` may raise."""

    def __init__(
        self,
        name: str,
        ask: Callable[[Sequence[M]], Awaitable[list[bool]]],
        failures: tuple[type[Exception], ...],
        *,
        lease: float,
        deadline: float,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self._ask = ask
        self._failures: tuple[type[Exception], ...] = (TimeoutError, *failures)
        self._every = lease / ROUNDS_PER_LEASE
        self._deadline = deadline
        self._clock = clock
        self._due: dict[M, None] = {}  # in order of time, since the delay is the same for all
        self._waiters: dict[M, list[asyncio.Future[None]]] = {}
        self._bell = asyncio.Event()
        self._pause = 0.0
        self._closed_until = 0.0
        self._failed_at = 0.0  # the first of the consecutive failed rounds
        self._task: asyncio.Task[None] | None = None
        self._rounds = self._failed = 0

    # -- for requests

    def refill(self, meter: M, amount: int) -> "asyncio.Future[None]":
        """Ask for `amount` more. The future is done after the round. Raises LimitsUnavailable while the lender
        fails."""
        if self._task is None or self._clock() < self._closed_until:
            raise limits_unchecked()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        meter.waiting += amount
        self._waiters.setdefault(meter, []).append(waiter)
        self._bell.set()
        return waiter

    def tell(self, meter: M) -> None:
        """The meter has something to report, though nobody waits for it."""
        now = self._clock()
        if meter not in self._due or meter.due > now:
            meter.due = now
            self._due.pop(meter, None)
            self._due = {meter: None, **self._due}
            self._bell.set()

    # -- rounds

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            await self._bell_or_due()
            self._bell.clear()
            while batch := self._batch():
                await self._round(batch)

    async def _bell_or_due(self) -> None:
        """Wait until a request waits, the next renewal is due, or the pause after a failure ends."""
        first = next(iter(self._due), None)
        seconds = None if first is None else max(first.due, self._closed_until) - self._clock()
        try:
            async with asyncio.timeout(seconds):
                await self._bell.wait()
        except TimeoutError:
            return

    def _batch(self) -> list[M]:
        """The meters of the next round: those that requests wait for, then those whose renewal is due; if there are
        any, also those due soon."""
        now = self._clock()
        if now < self._closed_until:
            return []
        batch = list(self._waiters)[:ROUND_METERS]
        first = next(iter(self._due), None)
        if not batch and (first is None or first.due > now):
            return []
        soon = now + GATHERED * self._every
        for meter in self._due:
            if meter.due > soon or len(batch) >= ROUND_METERS:
                break
            if meter not in self._waiters:
                batch.append(meter)
        return batch

    async def _round(self, batch: list[M]) -> None:
        waiters = [waiter for meter in batch for waiter in self._waiters.pop(meter, ())]
        self._rounds += 1
        for meter in batch:
            self._due.pop(meter, None)  # one that is there again afterwards was told during the round
        try:
            async with asyncio.timeout(self._deadline):
                done = await self._ask(batch)
        except self._failures as err:
            self._fail(batch, waiters, err)
            return
        except BaseException as err:
            self._fail(batch, waiters, err)
            if not isinstance(err, Exception):
                raise
            _log.exception("a round with %s broke", self.name)
            return
        self._pause = 0.0
        for meter, ended in zip(batch, done, strict=True):
            if meter not in self._due:
                meter.due = math.inf if ended else self._clock() + self._every
                if not ended:
                    self._due[meter] = None
        _wake(waiters, None)

    def _fail(self, batch: list[M], waiters: "list[asyncio.Future[None]]", err: BaseException) -> None:
        """Fail all waiters of this round; those that come during the pause fail at once."""
        self._failed += 1
        if not self._pause:
            self._failed_at = self._clock()
            _log.warning("%s does not answer for limits: %s", self.name, str(err) or type(err).__name__)
        self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self._pause))
        self._closed_until = self._clock() + self._pause
        for meter in batch:
            meter.waiting = 0
            meter.due = self._closed_until
            self._due.pop(meter, None)
        self._due = dict.fromkeys(batch) | self._due
        _wake(waiters, limits_unchecked())
        late = [waiter for ones in self._waiters.values() for waiter in ones]
        for meter in self._waiters:
            meter.waiting = 0
        self._waiters.clear()
        _wake(late, limits_unchecked())

    # -- life

    async def close(self) -> None:
        """Stop the rounds, then return what is on lease if the lender answers."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        _wake([waiter for ones in self._waiters.values() for waiter in ones], limits_unchecked())
        left = list(self._due)
        for start in range(0, len(left), ROUND_METERS):
            batch = left[start : start + ROUND_METERS]
            for meter in batch:
                meter.taken = 0
            try:
                async with asyncio.timeout(self._deadline):
                    await self._ask(batch)
            except Exception as err:  # whatever it is: other services still have to be closed
                _log.warning("%s: leases were not given back: %s", self.name, str(err) or type(err).__name__)
                return

    @property
    def silence(self) -> float:
        """Seconds for which every round has failed."""
        return self._clock() - self._failed_at if self._pause else 0.0

    def stats(self) -> LenderStats:
        return LenderStats(self._rounds, self._failed, len(self._due), self._pause > 0, self.silence)


def _wake(waiters: "list[asyncio.Future[None]]", error: LimitsUnavailable | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
            waiter.exception()  # there may be nobody left to take it: avoid asyncio's warning
