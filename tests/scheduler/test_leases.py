"""Leases on a real event loop (invariant 12): whatever ends a wait or a stream, no slot is lost and none stays idle."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
import uvloop

from scheduler.aio import Lease, Rejected, Scheduler, Waiter
from scheduler.model import Refusal, Ticket
from scheduler.settings import Settings


class Clock:
    """Time the test owns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ticket(user: str = "u", pool: str = "m", **values: float) -> Ticket:
    return Ticket(pool, "t", user, cost=values.pop("cost", 100.0), **values)


def scheduler(slots: int = 1, clock: Clock | None = None, **settings: float) -> Scheduler:
    made = Scheduler(Settings(**settings), clock)
    made.set_gate("g", slots)
    made.set_pool("m", [("g", 0)])
    return made


def lease(made: Scheduler, **values: object) -> Lease:
    answer = made.submit(ticket(**values))  # type: ignore[arg-type]
    assert isinstance(answer, Lease)
    return answer


def waiter(made: Scheduler, **values: object) -> Waiter:
    answer = made.submit(ticket(**values))  # type: ignore[arg-type]
    assert isinstance(answer, Waiter)
    return answer


def test_a_free_slot_is_leased_at_once_and_handed_over_on_release() -> None:
    async def main() -> None:
        made = scheduler()
        first = lease(made)
        second = waiter(made)
        assert (first.gate, first.waited, first.live) == ("g", 0.0, True)
        first.release(50.0)
        # Handed over inside the release: before any other callback could run.
        assert second.future.done()
        assert isinstance(made.submit(ticket()), Waiter)
        second.future.result().release(50.0)
        assert made.core.running == made.leases == 1

    asyncio.run(main())


def test_release_is_idempotent() -> None:
    async def main() -> None:
        made = scheduler(clock=Clock())
        first = lease(made)
        first.release(50.0)
        first.release(50.0)
        first.charge(50.0)
        assert made.leases == made.core.running == 0
        assert made.stats().stray_releases == 0
        assert made.stats().parties[0].usage == 50.0

    asyncio.run(main())


def test_a_bad_cost_still_frees_the_slot() -> None:
    async def main() -> None:
        made = scheduler()
        first = lease(made)
        with pytest.raises(ValueError, match="NaN"):
            first.release(float("nan"))
        assert made.leases == made.core.running == 0

    asyncio.run(main())


def test_a_waiter_can_be_cancelled_in_every_state() -> None:
    async def main() -> None:
        made = scheduler()
        first, queued, granted, refused = lease(made), waiter(made), waiter(made), waiter(made, timeout=0.001)
        await asyncio.sleep(0.01)
        assert isinstance(refused.future.exception(), Rejected)
        queued.cancel()
        queued.cancel()
        first.release(1.0)
        assert granted.future.done()
        granted.cancel()
        granted.cancel()
        refused.cancel()
        assert made.leases == made.core.running == made.core.queued == 0
        assert isinstance(made.submit(ticket()), Lease)

    asyncio.run(main())


def test_cancel_after_the_lease_was_released_changes_nothing() -> None:
    async def main() -> None:
        made = scheduler()
        first, second, third = lease(made), waiter(made), waiter(made)
        first.release(1.0)
        (await second.future).release(7.0)
        second.cancel()
        assert third.future.result().live
        assert made.leases == made.core.running == 1

    asyncio.run(main())


def test_a_waiter_whose_future_was_cancelled_passes_its_slot_on() -> None:
    """No wake-up is lost on a dead waiter: the next one in line gets the slot in the same call."""

    async def main() -> None:
        made = scheduler()
        first, dead, alive = lease(made), waiter(made, user="a"), waiter(made, user="b")
        dead.future.cancel()
        first.release(1.0)
        assert alive.future.result().live
        assert made.core.running == made.leases == 1

    asyncio.run(main())


def test_acquire_cancelled_after_the_grant_gives_the_slot_back() -> None:
    """The trap of asyncio: cancelled between the result being set and the task running."""

    async def main() -> None:
        made = scheduler()
        first = lease(made)
        task = asyncio.ensure_future(made.acquire(ticket()))
        await asyncio.sleep(0)
        first.release(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert made.leases == made.core.running == 0

    asyncio.run(main())


def test_acquire_survives_any_exception_thrown_in() -> None:
    """A driver without a task may throw anything into the coroutine."""

    async def main() -> None:
        for error in (KeyboardInterrupt, GeneratorExit, RuntimeError, ConnectionResetError):
            made = scheduler()
            first = lease(made)
            waiting = made.acquire(ticket())
            waiting.send(None)
            if error is RuntimeError:
                first.release(1.0)
            with pytest.raises(error):
                waiting.throw(error())
            first.release(1.0)
            assert made.leases == made.core.running == made.core.queued == 0

    asyncio.run(main())


def test_refusals_carry_their_reason() -> None:
    async def main() -> None:
        clock = Clock()
        made = scheduler(clock=clock, user_cap=1)
        first, late = lease(made), waiter(made, timeout=5.0)
        with pytest.raises(Rejected) as full:
            made.submit(ticket())
        with pytest.raises(Rejected) as unknown:
            made.submit(ticket(pool="nobody"))
        clock.now += 5.0
        made.tick()
        drained = waiter(made)
        made.close()
        with pytest.raises(Rejected) as draining:
            made.submit(ticket())
        reasons = [e.value.refused.reason for e in (full, unknown, draining)]
        assert reasons == [Refusal.QUEUE_FULL, Refusal.UNKNOWN_POOL, Refusal.DRAINING]
        for waiting, reason in ((late, Refusal.QUEUE_TIMEOUT), (drained, Refusal.DRAINING)):
            error = waiting.future.exception()
            assert isinstance(error, Rejected)
            assert error.refused.reason is reason
        assert first.live

    asyncio.run(main())


def test_one_timer_serves_all_deadlines_on_time() -> None:
    async def main() -> None:
        made = scheduler()
        first = lease(made)
        began = time.monotonic()
        waits = [waiter(made, user=f"u{n}", timeout=0.05 + 0.01 * (n % 3)) for n in range(30)]
        results = await asyncio.gather(*(w.future for w in waits), return_exceptions=True)
        assert all(isinstance(result, Rejected) for result in results)
        assert 0.06 < time.monotonic() - began < 1.0
        first.release(1.0)

    asyncio.run(main())


def test_the_gauge_of_live_leases_is_compared_at_landmarks() -> None:
    async def main() -> None:
        clock = Clock()
        made = scheduler(slots=2, clock=clock)
        held = lease(made)
        clock.now += 31.0
        made.tick()
        assert made.mismatches == 0
        made.core.running += 1
        clock.now += 31.0
        made.tick()
        assert made.mismatches == made.stats().mismatches == 1
        made.core.running -= 1
        held.release(1.0)

    asyncio.run(main())


class Storm:
    """Random requests, each ended in a random way at a random moment, on two models that share backends."""

    def __init__(self, seed: int, total: int) -> None:
        self.rng = random.Random(seed)
        self.left = total
        self.made = Scheduler(Settings(queue_timeout=5.0, user_cap=40, global_cap=150))
        self.made.set_gate("g", 3)
        self.made.set_gate("h", 2)
        self.made.set_pool("m", [("g", 0), ("h", 1)])
        self.made.set_pool("n", [("h", 0)])
        self.outcomes: dict[str, int] = {}

    def ticket(self) -> Ticket:
        rng = self.rng
        timeout = rng.choice([0.0, 0.0005, 0.002, 5.0, 5.0])
        return Ticket(
            rng.choice("mmn"), f"t{rng.randrange(3)}", f"u{rng.randrange(6)}", cost=rng.random() * 500, timeout=timeout,
            class_offset=rng.choice([0.0, 0.0, 0.0, -20.0]),
        )  # fmt: skip

    def check(self) -> None:
        """No slot idle with an eligible waiter, none taken that is not held."""
        core = self.made.core
        assert core.running == self.made.leases
        for pool in core.fleet.pools.values():
            if pool.queued:
                assert all(gate.running >= gate.slots for gate, _ in pool.places), (pool.name, pool.places)
        for gate in core.fleet.gates.values():
            assert gate.running <= gate.slots

    async def request(self) -> str:
        held = await self.made.acquire(self.ticket())
        try:
            for _ in range(self.rng.randrange(4)):
                await asyncio.sleep(0)
                held.charge(10.0)
            if self.rng.random() < 0.1:
                raise ConnectionResetError
        finally:
            held.release(self.rng.random() * 900)
            self.check()
        return "done"

    async def client(self) -> None:
        while self.left > 0:
            self.left -= 1
            task = asyncio.ensure_future(self.request())
            outcome = await self.end(task)
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    async def end(self, task: asyncio.Task[str]) -> str:
        if self.rng.random() < 0.4:
            for _ in range(self.rng.randrange(12)):
                await asyncio.sleep(0)
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            return "cancelled"
        except ConnectionResetError:
            return "reset"
        except Rejected as refused:
            return refused.refused.reason.value

    async def run(self) -> None:
        await asyncio.gather(*(self.client() for _ in range(60)))
        core = self.made.core
        assert core.running == self.made.leases == core.queued == 0
        assert self.made.mismatches == 0
        assert all(gate.running == 0 for gate in core.fleet.gates.values())
        # n cancels never shrink the capacity: all five slots can still be had at once.
        everything = [self.made.submit(Ticket("m", "t", "x")) for _ in range(5)]
        assert all(isinstance(held, Lease) for held in everything)


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_a_storm_of_cancels_timeouts_and_disconnects_loses_no_slot(runner: object) -> None:
    """Invariant 12: 50 000 requests on each loop."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")

    async def main() -> None:
        storm = Storm(seed, 50_000)
        await storm.run()
        assert storm.outcomes.keys() >= {"done", "cancelled", "reset", "queue_timeout"}, storm.outcomes

    runner(main())  # type: ignore[operator]
