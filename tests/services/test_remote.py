"""Workers against the one queue and the one set of limits, over real channels: what is held and what goes back."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from gateway import config
from gateway.errors import BudgetSpent, LimitsUnavailable, RateLimited
from gateway.services.backends import BackendService
from gateway.services.channel import Channel
from gateway.services.limits import LimitService
from gateway.services.messages import QuestionsToParent, QuestionsToWorker, Succeeded, ToParent, ToWorker
from gateway.services.remote import RemoteBackends, RemoteLimits, RemoteScheduler, RemoteZombies
from gateway.services.worker_session import WorkerSession
from gateway.store.limits import Limits
from scheduler.aio import Lease, Rejected, Scheduler, Waiter
from scheduler.model import Refusal, Ticket
from tests.services.limited import REFUSED, Asker, Form, asker, spent

SLOTS = 3


class Shared:
    """A hub as desks need one."""

    def __init__(self, limits: LimitService) -> None:
        self.limits = limits
        self.looked: list[str] = []
        self.scheduler = Scheduler()
        self.scheduler.set_gate("g", SLOTS)
        self.scheduler.set_pool("m", (("g", 0),))
        self.backends = BackendService(
            [config.Backend(name="g", url="http://127.0.0.1:1", engine="openai", models=["m"])],
            config.Discovery(eject_after=3),
            config.Upstream(),
            {},
            clock=asyncio.get_running_loop().time,
            on_change=lambda topology: None,
            on_look=self.looked.append,
        )
        self.zombies = Kept()


class Kept:
    """Holds zombies until the test lets them go."""

    def __init__(self) -> None:
        self.all: list[tuple[Lease, float, float]] = []

    def keep(self, lease: Lease, cost: float, most: float) -> None:
        self.all.append((lease, cost, most))


class Side:
    """One worker's ends of a channel, and the parent's desk for it."""

    def __init__(self, shared: Shared, sides: list["Side"]) -> None:
        self.shared = shared
        self.gone = asyncio.Event()
        self.channel = Channel(ToWorker, QuestionsToWorker, self.gone.set)
        self.scheduler = RemoteScheduler(self.channel)
        self.limits = RemoteLimits(self.channel)
        self.zombies = RemoteZombies(self.channel)
        settings = config.Config(backends=[config.Backend(name="g", url="http://127.0.0.1:1", engine="openai")])
        self.backends = RemoteBackends(self.channel, settings, shared.backends.picture())
        theirs = Channel(ToParent, QuestionsToParent, lambda: self.desk.close())
        self.desk = WorkerSession(theirs, shared, lambda name: [side.backends.doubt(name) for side in sides])

    async def connect(self) -> "Side":
        ours, theirs = socket.socketpair()
        await self.channel.connect(ours)
        await self.desk.channel.connect(theirs)
        return self

    async def idle(self) -> None:
        """Until what was sent has been served."""
        async with asyncio.timeout(5):
            while self.desk._waiters or self.desk._leases or self.desk._reserved or self.desk._reserving:
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def sides(tmp_path: Path, count: int = 2) -> AsyncIterator[tuple[Shared, list[Side]]]:
    async with Form(str(tmp_path / "fairgate.db")).replica() as limits:
        shared = Shared(limits)
        crew: list[Side] = []
        crew += [await Side(shared, crew).connect() for _ in range(count)]
        try:
            yield shared, crew
        finally:
            for side in crew:
                side.channel.close()
                await side.gone.wait()


def ticket(user: str = "u", timeout: float = 60.0) -> Ticket:
    return Ticket("m", "t", user, cost=100.0, timeout=timeout)


async def soon(holds: object) -> None:
    async with asyncio.timeout(5):
        while not holds():  # type: ignore[operator]
            await asyncio.sleep(0)


def test_slots_are_shared_and_handed_over_between_workers(tmp_path: Path) -> None:
    async def main() -> None:
        async with sides(tmp_path) as (shared, (one, two)):
            leases = [await one.scheduler.submit(ticket()).future for _ in range(SLOTS)]
            assert [lease.gate for lease in leases] == ["g"] * SLOTS
            waiter = two.scheduler.submit(ticket("v"))
            await soon(lambda: shared.scheduler.stats().queued == 1)
            assert not waiter.future.done()
            leases[0].release(50.0)
            lease = await waiter.future
            assert (lease.gate, lease.usage) == ("g", 0.0)
            assert shared.scheduler.leases == SLOTS
            for each in (*leases, lease):
                each.release(1.0)
                each.release(1.0)
            await one.idle()
            await two.idle()
            stats = shared.scheduler.stats()
            assert (stats.running, stats.queued, stats.stray_releases) == (0, 0, 0)

    uvloop.run(main())


def test_a_zombie_is_the_parents_and_outlives_its_worker(tmp_path: Path) -> None:
    """R8: all else of a lost worker goes back at once."""

    async def main() -> None:
        async with sides(tmp_path) as (shared, (one, _)):
            gone, kept = [await one.scheduler.submit(ticket()).future for _ in range(2)]
            assert gone.live
            one.zombies.keep(kept, 5.0, 60.0)
            await soon(lambda: shared.zombies.all)
            one.channel.close()
            await one.gone.wait()
            await soon(lambda: shared.scheduler.leases == 1)
            ((lease, cost, most),) = shared.zombies.all
            assert (lease.live, cost, most) == (True, 5.0, 60.0)
            lease.release(cost)
            stats = shared.scheduler.stats()
            assert (stats.running, stats.stray_releases) == (0, 0)

    uvloop.run(main())


def test_refusals_cross_with_their_reason(tmp_path: Path) -> None:
    async def main() -> None:
        async with sides(tmp_path) as (_, (one, two)):
            for _ in range(SLOTS):
                await one.scheduler.submit(ticket()).future
            with pytest.raises(Rejected) as refused:
                await two.scheduler.submit(ticket(timeout=0.0)).future
            assert refused.value.refused.reason is Refusal.QUEUE_TIMEOUT
            with pytest.raises(Rejected) as unknown:
                await two.scheduler.submit(Ticket("nothing", "t", "u")).future
            assert unknown.value.refused.reason is Refusal.UNKNOWN_POOL

    uvloop.run(main())


def test_a_lost_worker_gives_back_slots_and_places_at_once(tmp_path: Path) -> None:
    """Its slots are charged with what was expected of them; its waiters are not granted any more."""

    async def main() -> None:
        async with sides(tmp_path) as (shared, (one, two)):
            for _ in range(SLOTS):
                lease = await one.scheduler.submit(ticket("gone")).future
                lease.charge(11.0)
            behind = [one.scheduler.submit(ticket("gone")) for _ in range(4)]
            mine = two.scheduler.submit(ticket("left"))
            await soon(lambda: shared.scheduler.stats().queued == 5)
            one.channel._transport.abort()
            await mine.future
            assert shared.scheduler.stats().running == 1
            assert shared.scheduler.stats().queued == 0
            usage = {party.user: party.usage for party in shared.scheduler.stats().parties}
            assert usage["gone"] == pytest.approx(SLOTS * 111.0, rel=0.01)
            with pytest.raises(Rejected) as refused:
                one.scheduler.submit(ticket())
            assert refused.value.refused.reason is Refusal.DRAINING
            one.scheduler.close()
            for waiter in behind:
                with pytest.raises(Rejected):
                    await waiter.future

    uvloop.run(main())


class Storm:
    """Random submits, cancels, charges and releases of several workers."""

    def __init__(self, crew: list[Side], rng: random.Random) -> None:
        self.crew = crew
        self.rng = rng
        self.waiters: list[Waiter] = []
        self.leases: list[Lease] = []

    def step(self) -> None:
        rng, roll = self.rng, self.rng.random()
        if roll < 0.45:
            side = rng.choice([each for each in self.crew if not each.channel.closed])
            self.waiters.append(side.scheduler.submit(ticket(rng.choice("abc"))))
        elif roll < 0.65 and self.waiters:
            self.waiters.pop(rng.randrange(len(self.waiters))).cancel()
        elif roll < 0.9 and self.leases:
            self.leases.pop(rng.randrange(len(self.leases))).release(rng.random() * 100)
        elif self.leases:
            rng.choice(self.leases).charge(5.0)
        self.collect()

    def collect(self) -> None:
        """Waiters whose answer came."""
        done = [waiter for waiter in self.waiters if waiter.future.done()]
        self.waiters = [waiter for waiter in self.waiters if waiter not in done]
        self.leases += [each.future.result() for each in done if each.future.exception() is None]

    def end(self) -> None:
        for waiter in self.waiters:
            waiter.cancel()
        for lease in self.leases:
            lease.release(0.0)


@pytest.mark.parametrize("seed", range(12))
def test_no_slot_is_lost_whatever_crosses_on_the_wire(tmp_path: Path, seed: int) -> None:
    """One of three workers is cut off in the middle."""

    async def main() -> None:
        rng = random.Random(seed)
        async with sides(tmp_path, 3) as (shared, crew):
            storm = Storm(crew, rng)
            for step in range(400):
                storm.step()
                if rng.random() < 0.3:
                    await asyncio.sleep(0)
                assert shared.scheduler.leases == shared.scheduler.core.running <= SLOTS
                if step == 200:
                    crew[0].channel._transport.abort()
                    await asyncio.sleep(0)
            storm.end()
            for side in crew:
                await side.idle()
            stats = shared.scheduler.stats()
            assert (stats.running, stats.queued, stats.stray_releases, shared.scheduler.mismatches) == (0, 0, 0, 0)

    uvloop.run(main())


# ---- limits


def test_open_requests_and_rates_are_counted_over_workers(tmp_path: Path) -> None:
    """L1: exactly as in one process, with its sentences and its fields."""
    who = asker(Limits(concurrent=2, requests_per_minute=6))  # one comes back in ten seconds

    async def main() -> None:
        async with sides(tmp_path) as (shared, (one, two)):
            first = await one.limits.acquire(who, 10, 0.0)
            await two.limits.acquire(who, 10, 0.0)
            for side in (one, two):
                with pytest.raises(RateLimited, match="No more than 2 requests of this key") as refused:
                    await side.limits.acquire(who, 10, 0.0)
                assert refused.value.retry_after == 1.0
            one.limits.settle(first, 10, 0.0)
            one.limits.settle(first, 10, 0.0)
            await two.limits.acquire(who, 10, 0.0)
            requests, _ = two.limits.shown(who)
            assert (requests[0].most, requests[0].remaining(0.0)) == (6, 3)
            assert shared.limits.stats().open == 2

    uvloop.run(main())


def test_an_interrupted_reservation_leaves_nothing_held(tmp_path: Path) -> None:
    """Before its answer, and after it but before anybody looked."""
    who = asker(Limits(concurrent=1))

    async def main() -> None:
        async with sides(tmp_path) as (shared, (one, _)):
            for turns in range(12):
                task = asyncio.ensure_future(one.limits.acquire(who, 10, 0.0))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                if not task.cancelled():
                    one.limits.forget(task.result())
                await asyncio.sleep(0.01)
                await one.idle()
                assert shared.limits.stats().open == 0

    uvloop.run(main())


class Broken:
    """Limits with a fault in what a lender has to be asked for."""

    def __init__(self, limits: LimitService) -> None:
        self.reserve, self.shown = limits.reserve, limits.shown

    async def acquire(self, *asked: object) -> None:
        raise RuntimeError("a fault")


def test_a_reservation_that_breaks_is_denied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As one of the same process, whoever asked is told; nobody waits for ever."""

    async def main() -> None:
        async with sides(tmp_path) as (shared, (one, _)):
            whole, shared.limits = shared.limits, Broken(shared.limits)  # type: ignore[assignment]
            with pytest.raises(LimitsUnavailable):
                async with asyncio.timeout(5):
                    await one.limits.acquire(asker(Limits(tokens_total=1000)), 100, 0.0)
            await one.idle()
            shared.limits = whole

    uvloop.run(main())
    assert "a worker's reservation broke" in caplog.text


def test_what_a_worker_refuses_at_its_end_was_not_used(tmp_path: Path) -> None:
    """As `RemoteHub.close` ends it: limits, then the channel."""
    who = asker(Limits(tokens_total=1000))

    async def main() -> None:
        async with sides(tmp_path) as (shared, (one, two)):
            one.limits.forget(await one.limits.acquire(who, 100, 0.0))
            await one.idle()
            asked = asyncio.ensure_future(one.limits.acquire(who, 100, 0.0))
            await asyncio.sleep(0)
            one.limits.close()
            one.channel.close()
            with pytest.raises(LimitsUnavailable):
                await asked
            await one.gone.wait()
            await one.idle()
            assert shared.limits.stats().open == 0
            await two.limits.acquire(who, 1000, 0.0)

    uvloop.run(main())


def test_a_lost_worker_has_used_what_it_held(tmp_path: Path) -> None:
    """L2: nobody knows how far its requests came."""
    who = asker(Limits(concurrent=3, tokens_total=1000))

    async def main() -> None:
        async with sides(tmp_path) as (shared, (one, two)):
            await one.limits.acquire(who, 600, 0.0)
            one.channel._transport.abort()
            await soon(lambda: shared.limits.stats().open == 0)
            with pytest.raises(BudgetSpent):
                await two.limits.acquire(who, 600, 0.0)
            await two.limits.acquire(who, 400, 0.0)
            with pytest.raises(LimitsUnavailable):
                await one.limits.acquire(who, 1, 0.0)

    uvloop.run(main())


async def spend(side: Side, who: Asker, rng: random.Random, most: int) -> int:
    """Requests one after the other until refused; what they were settled with."""
    total = 0
    while True:
        estimate = rng.randrange(1, 40)
        try:
            held = await side.limits.acquire(who, estimate, 0.0)
        except REFUSED:
            return total
        await asyncio.sleep(0)
        used = rng.randrange(0, estimate + 1)
        side.limits.settle(held, used, 0.0)
        total += used
        assert total <= most


@pytest.mark.parametrize("seed", range(6))
def test_budgets_are_never_overspent_over_workers(tmp_path: Path, seed: int) -> None:
    """L2: races of two workers, one of which is cut off."""
    rng = random.Random(seed)
    most = rng.randrange(300, 900)
    who = asker(Limits(tokens_total=most))

    async def main() -> None:
        async with sides(tmp_path) as (shared, (one, two)):
            tasks = [asyncio.ensure_future(spend(side, who, rng, most)) for side in (one, two) for _ in range(8)]
            if seed % 2:
                for _ in range(seed * 3):
                    await asyncio.sleep(0)
                one.channel._transport.abort()
            used = await asyncio.wait_for(asyncio.gather(*tasks[8:]), 20)
            if not seed % 2:
                used += await asyncio.gather(*tasks[:8])
            for task in tasks[:8]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert sum(used) <= most
            await shared.limits.close()
            assert sum(await spent(shared.limits._store, "key:k", "tokens")) <= most

    uvloop.run(main())


# ---- backends


def test_failures_in_a_row_are_counted_over_workers(tmp_path: Path) -> None:
    """R2: a success in any worker ends the row; without one it ejects."""

    async def main() -> None:
        async with sides(tmp_path) as (shared, (one, two)):
            breaker = shared.backends._watched["g"].breaker
            one.backends.succeeded("g")
            two.backends.succeeded("g")
            (await two.scheduler.submit(ticket()).future).release(1.0)  # by now the parent was told
            one.backends.failed("g", "connect")
            one.backends.failed("g", "timeout")
            await soon(lambda: breaker.failures == 2)
            await soon(lambda: "g" in two.backends._doubted)
            two.backends.succeeded("g")
            await soon(lambda: breaker.failures == 0)
            for side in (one, two, one):
                side.backends.failed("g", "broken")
            await soon(lambda: shared.backends.stats()[0].state == "open")
            one.backends.failed("away", "broken")
            one.backends.succeeded("away")
            await asyncio.sleep(0.01)
            assert not one.channel.closed

    uvloop.run(main())


def test_after_each_look_a_worker_tells_once_that_an_engine_serves(tmp_path: Path) -> None:
    """R2: so one whose looks fail is not ejected; an error does not count, nor does it end the doubt."""

    async def main() -> None:
        async with sides(tmp_path, count=1) as (shared, (one,)):
            breaker, told = shared.backends._watched["g"].breaker, []
            one.desk.channel.on({Succeeded: lambda said: (told.append(said.status), one.desk._succeeded(said))})
            for _ in range(5):
                one.backends.succeeded("g", 502)
                for _ in range(3):
                    one.backends.succeeded("g")
                (await one.scheduler.submit(ticket()).future).release(1.0)  # by now the parent was told
                assert breaker.served
                await shared.backends.refresh()
                one.backends.doubt(shared.looked.pop())  # as the parent tells it
                assert (breaker.state, breaker.misses, breaker.served) == ("closed", 0, False)
            assert told == [502, 200] * 5
            for _ in range(3):
                await shared.backends.refresh()
            assert breaker.state == "open"

    uvloop.run(main())


def test_a_generation_that_is_new_ends_the_row_of_the_one_before(tmp_path: Path) -> None:
    """R2: after a reload, or in a worker that was started again, the first success is told whatever failed before."""

    async def main() -> None:
        async with sides(tmp_path, count=1) as (shared, (one,)):
            breaker = shared.backends._watched["g"].breaker
            one.backends.failed("g", "connect")
            one.backends.failed("g", "timeout")
            await soon(lambda: breaker.failures == 2)
            settings = config.Config(backends=[config.Backend(name="g", url="http://127.0.0.1:1", engine="openai")])
            new = RemoteBackends(one.channel, settings, shared.backends.picture())
            new.succeeded("g")
            await soon(lambda: breaker.failures == 0)

    uvloop.run(main())
