"""Limits while a real Redis is killed, paused, slow or forgetful, and while gateways are killed (L2, L3)."""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config import Quotas
from gateway.errors import BudgetSpent, GatewayError, LimitsUnavailable, RateLimited
from gateway.services.limits import FORGET_SECONDS, LimitService, Reservation
from gateway.store import open_store
from gateway.store.limits import Limits
from tests.proxy import Slow
from tests.servers import Redis
from tests.services.limited import Asker, Form, asker, command, outcome, spent
from tests.services.worker import LIMITS

ROOT = Path(__file__).resolve().parents[2]
WAIT = 20.0


@pytest.fixture
def server(redis: Redis) -> Iterator[Redis]:
    """Empty; left running, whatever the test did to it."""
    command(redis.port, "FLUSHALL")
    yield redis
    redis.resume()
    if not redis.answers():
        redis.start()


@pytest.fixture
def form(server: Redis, tmp_path: Path) -> Form:
    """Patient with the machine: a test that is about the deadline says so."""
    return Form(str(tmp_path / "fairgate.db"), server.url(), config=Quotas(deadline=1.0, store_deadline=10.0))


async def until_allowed(form: Form, service: LimitService, who: Asker, tokens: int = 0) -> list[GatewayError]:
    """Ask until it is allowed, the clock going on -> what was said before."""
    said: list[GatewayError] = []
    async with asyncio.timeout(WAIT):
        while True:
            got = await outcome(service, who, tokens)
            if isinstance(got, Reservation):
                service.forget(got)
                return said
            said.append(got)
            form.clock.now += 0.2
            await asyncio.sleep(0.01)


# ---- Redis


def test_open_requests_that_were_forgotten_are_counted_again(server: Redis, tmp_path: Path) -> None:
    """L1: with the longest lease Redis remembers a gateway's last claim when the gateway has forgotten its first: no
    refusal that is false."""
    config = Quotas(lease=300.0, deadline=5.0, store_deadline=10.0)
    form, who = Form(str(tmp_path / "x.db"), server.url(), config=config), asker(Limits(concurrent=2))

    async def body() -> None:
        async with form.replica() as service:
            for _ in range(3):
                service.settle(await service.acquire(who, 0, 0.0), 0, 0.0)
                await rested(form, service)
            service.sweep(form.clock.now)
            assert service.stats().meters == 0
            assert isinstance(await outcome(service, who), Reservation)

    asyncio.run(body())


async def rested(form: Form, service: LimitService) -> None:
    """Time goes on, and nobody asks for anything, until Redis is told of nothing any more and all is old."""
    assert service._shared is not None
    async with asyncio.timeout(WAIT):
        while service._shared.stats().meters:
            form.clock.now += form.config.lease / 3
            service._shared._bell.set()
            await asyncio.sleep(0.005)
    form.clock.now += FORGET_SECONDS


def test_a_killed_redis_denies_and_comes_back_without_amnesty(form: Form, server: Redis) -> None:
    """L3: what is leased is spent, then 503; the empty Redis fills rates from nothing, and lets nobody open more until
    the leases of before are over."""
    rate = asker(Limits(requests_per_minute=60), key="r")
    few = asker(Limits(concurrent=4), key="c")

    async def body() -> None:
        async with form.replica() as one, form.replica() as two:
            assert [isinstance(await outcome(s, few), Reservation) for s in (one, one, two, two)] == [True] * 4
            for _ in range(40):
                assert isinstance(await outcome(one, rate), Reservation)
            server.kill()
            answers = [await outcome(one, rate) for _ in range(60)]
            assert isinstance(answers[-1], LimitsUnavailable)
            assert sum(isinstance(got, Reservation) for got in answers) <= 20
            assert not isinstance(await outcome(one, few), Reservation)
            server.start()
            refusals = await until_allowed(form, one, rate)
            assert any(isinstance(got, RateLimited) for got in refusals), "its bucket began empty"
            assert not isinstance(await outcome(two, few), Reservation)
            form.clock.now += form.config.lease
            for service in (one, two):
                assert service._shared is not None
                service._shared._bell.set()
            refused = await outcome(two, few)
            assert isinstance(refused, RateLimited | LimitsUnavailable)
            assert [r for s in (one, two) for r in s._open.values() if few.limits[0].scope == r.meters[0].scope]

    asyncio.run(body())


def test_nobody_opens_more_until_it_is_known_who_holds_what(form: Form, server: Redis) -> None:
    """L3: Redis lost its data; the other gateway's open requests are not there any more, but they run."""
    who = asker(Limits(concurrent=4))

    async def body() -> None:
        async with form.replica() as one, form.replica() as two:
            service = await two.acquire(asker(Limits(concurrent=1), key="other"), 0, 0.0)
            two.forget(service)
            assert [isinstance(await outcome(one, who), Reservation) for _ in range(4)] == [True] * 4
            command(server.port, "FLUSHALL")
            assert isinstance(await outcome(two, who), LimitsUnavailable)
            assert one._shared is not None
            form.clock.now += form.config.lease / 2
            one._shared._bell.set()
            async with asyncio.timeout(WAIT):
                while one._shared.stats().rounds < 3:
                    await asyncio.sleep(0.01)
            form.clock.now += form.config.lease / 2
            assert isinstance(await outcome(two, who), RateLimited)

    asyncio.run(body())


def test_a_fresh_redis_is_not_a_lost_one(form: Form) -> None:
    """A first start has full rates."""

    async def body() -> None:
        async with form.replica() as one:
            who = asker(Limits(requests_per_minute=10, concurrent=10))
            assert sum([isinstance(await outcome(one, who), Reservation) for _ in range(12)]) == 10

    asyncio.run(body())


def test_a_redis_that_became_a_replica_is_left_for_its_successor(server: Redis, tmp_path: Path) -> None:
    """L3: a failover behind one address. The old one keeps its connections and takes no more writes; new connections
    lead to the new one."""
    successor, address, who = Redis(), Slow(server.port), asker(Limits(requests_per_minute=60))

    async def body() -> None:
        async with address.listening() as port:
            form = Form(str(tmp_path / "x.db"), f"redis://127.0.0.1:{port}/0", config=Quotas(deadline=1.0))
            async with form.replica() as service:
                await until_allowed(form, service, who)
                command(server.port, "REPLICAOF", "127.0.0.1", str(successor.port))
                address.to = successor.port
                form.clock.now += form.config.lease
                assert isinstance(await outcome(service, who), LimitsUnavailable)
                await until_allowed(form, service, who)

    successor.start()
    try:
        asyncio.run(body())
    finally:
        command(server.port, "REPLICAOF", "NO", "ONE")
        successor.close()


def test_a_silent_redis_denies_in_time_and_recovers(form: Form, server: Redis) -> None:
    """L3: SIGSTOP leaves the connection open; the deadline is 50 ms, and those who come next do not wait at all."""
    who = asker(Limits(tokens_per_minute=1000))
    free = asker(Limits(tokens_total=100), key="f")

    async def body() -> None:
        async with form.replica() as service:
            assert service._shared is not None
            service.forget(await service.acquire(who, 500, 0.0))
            service._shared._deadline = 0.05
            server.pause()
            assert isinstance(await outcome(service, who, 100), Reservation), "what is leased is spent"
            form.clock.now += form.config.lease + 1
            began = time.monotonic()
            assert isinstance(await outcome(service, who, 100), LimitsUnavailable)
            assert time.monotonic() - began < 1.0
            began = time.monotonic()
            for _ in range(100):
                assert isinstance(await outcome(service, who), LimitsUnavailable)
            assert time.monotonic() - began < 0.5
            assert isinstance(await outcome(service, free, 1), Reservation), "budgets do not need Redis"
            assert service.stats().shared is not None
            assert service.stats().shared.failing
            server.resume()
            service._shared._deadline = 5.0
            await until_allowed(form, service, who)
            assert not service.stats().shared.failing

    asyncio.run(body())


def test_a_slow_redis_is_a_redis_that_is_down(server: Redis, tmp_path: Path) -> None:
    """L3: slower than the deadline: what is leased is spent, then 503; with the speed the service comes back."""
    form = Form(str(tmp_path / "fairgate.db"), config=Quotas(deadline=0.3, store_deadline=10.0))
    who = asker(Limits(requests_per_minute=600))

    async def body() -> None:
        slow = Slow(server.port)
        async with slow.listening() as port:
            form.redis = f"redis://127.0.0.1:{port}/0"
            async with form.replica() as service:
                await until_allowed(form, service, who)
                slow.latency = 1.0
                async with asyncio.timeout(WAIT):
                    while not isinstance(got := await outcome(service, who), LimitsUnavailable):
                        assert isinstance(got, Reservation)
                slow.latency = 0.0
                await until_allowed(form, service, who)
                slow.latency = 0.0

    asyncio.run(body())


def test_a_server_that_lost_its_scripts_gets_them_again(form: Form, server: Redis) -> None:
    """L3: EVALSHA, and EVAL where the script is not cached."""
    who = asker(Limits(requests_per_minute=1000, burst=4))

    async def body() -> None:
        async with form.replica() as service:
            await service.acquire(who, 0, 0.0)
            assert command(server.port, "SCRIPT", "FLUSH") == b"+OK"
            form.clock.now += form.config.lease + 1
            assert isinstance(await outcome(service, who), Reservation)
            assert service.stats().shared is not None
            assert service.stats().shared.failures == 0

    asyncio.run(body())


def test_redis_killed_again_and_again_in_a_race(form: Form, server: Redis) -> None:
    """L2: 200 requests on two replicas while Redis loses its data twice: neither the budget nor the number of open
    requests is passed, and nothing stays held."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    who = asker(Limits(tokens_total=2_000, concurrent=10))
    running: set[Reservation] = set()
    settled = 0

    async def request(service: LimitService) -> None:
        nonlocal settled
        got = await service.acquire(who, 20, 0.0)
        running.add(got)
        try:
            assert len(running) <= 10
            await asyncio.sleep(draw.random() * 0.01)
            if draw.random() < 0.3:
                raise ConnectionError
            settled += 15
        except BaseException:
            running.discard(got)
            service.forget(got)
            raise
        running.discard(got)
        service.settle(got, 15, 0.0)

    async def body() -> None:
        async with form.replica() as one, form.replica() as two:
            tasks = []
            for number in range(200):
                tasks.append(asyncio.create_task(request(draw.choice([one, two]))))
                form.clock.now += 0.1
                await asyncio.sleep(0.002)
                if number in (60, 120):
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.start)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert not [r for r in results if isinstance(r, AssertionError)]
            assert settled > 0
            form.clock.now += 2 * form.config.lease
            # More room than before: near its end a budget is rightly spent while an overdue lease counts as used.
            said = await until_allowed(form, one, asker(Limits(tokens_total=4_000, concurrent=10)), 1)
            assert not any(isinstance(error, BudgetSpent) for error in said)
        store = await open_store(form.store)
        assert await spent(store, "key:k", "tokens/total") == (settled, 0)
        await store.close()

    asyncio.run(body())


# ---- gateways killed


class Worker:
    """A gateway's limits in a process of its own (`worker.py`), killed by its process id."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.settled = 0
        self.refused: set[str] = set()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, form: Form, tokens: int) -> "Worker":
        line = [sys.executable, "-m", "tests.services.worker", form.store, form.redis, str(tokens)]
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(*line, stdout=pipe, cwd=ROOT))

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            word, what, *_ = line.decode().split()
            if word == "settled":
                self.settled += int(what)
            elif word == "refused":
                self.refused.add(what)

    async def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()
        await self._reading


def test_gateways_killed_at_random_never_overspend(server: Redis, tmp_path: Path) -> None:
    """L2: two gateways on one budget, one of them killed again and again: what was answered never passes the budget,
    all of the budget that was not burned is used, and open requests of the dead are free again."""
    form = Form(str(tmp_path / "fairgate.db"), server.url())

    async def body() -> None:
        store = await open_store(form.store)
        workers = [await Worker.start(form, 10), await Worker.start(form, 10)]
        try:
            for _ in range(3):
                before = workers[-1].settled
                async with asyncio.timeout(WAIT):
                    while workers[-1].settled < before + 300 and "budget_exceeded" not in workers[-1].refused:
                        await asyncio.sleep(0.01)
                await workers[-1].kill()
                workers.append(await Worker.start(form, 10))
            async with asyncio.timeout(60):
                while not ("budget_exceeded" in workers[0].refused and "budget_exceeded" in workers[-1].refused):
                    await asyncio.sleep(0.05)
        finally:
            for worker in (workers[0], workers[-1]):
                await worker.kill()
        answered = sum(worker.settled for worker in workers)
        used, held = await spent(store, "key:k", "tokens/total")
        await store.close()
        assert LIMITS.tokens_total is not None
        assert answered <= LIMITS.tokens_total
        assert used + held <= LIMITS.tokens_total
        assert answered > LIMITS.tokens_total // 4
        assert workers[-1].settled > 0 or workers[0].settled > 0

    asyncio.run(body())
