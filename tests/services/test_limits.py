"""Rates, open requests and budgets (L1-L3, K1): the same bodies on SQLite + in-process and on PostgreSQL + Redis."""

import asyncio
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BudgetSpent, LimitsUnavailable, RateLimited
from gateway.services.budget import REUSED, Budget
from gateway.services.limits import FORGET_SECONDS, LimitService, Reservation
from gateway.services.meters import FRESH, TOKENS, duration
from gateway.store import open_store
from gateway.store.limits import Claim, LedgerRow, Limits, decide, window
from tests.databases import statement
from tests.services.limited import Asker, Form, asker, outcome, run, spent

DAY = 86_400.0


# ---- rates and open requests


def test_requests_a_minute_with_burst(form: Form) -> None:
    """L1: `burst` at once, then evenly; refusals say when."""
    who = asker(Limits(requests_per_minute=60, burst=5))

    async def body(service: LimitService) -> None:
        for _ in range(5):
            service.settle(await service.acquire(who, 10, 0.0), 10, 0.0)
        refused = await outcome(service, who)
        assert isinstance(refused, RateLimited)
        assert refused.retry_after == pytest.approx(1.0, abs=0.01)
        form.clock.now += 1.01
        assert isinstance(await outcome(service, who), Reservation)
        assert isinstance(await outcome(service, who), RateLimited)
        form.clock.now += 3600
        assert sum([isinstance(await outcome(service, who), Reservation) for _ in range(9)]) == 5

    run(form, body)


def test_tokens_a_minute_are_charged_as_used(form: Form) -> None:
    """L1, L2: the estimate is held, the truth is paid; one that is larger than the rate passes when it is full."""
    who = asker(Limits(tokens_per_minute=600, gpu_seconds_total=1))

    async def body(service: LimitService) -> None:
        large = await service.acquire(who, 5000, 0.0)
        assert isinstance(await outcome(service, who, 1), RateLimited)
        service.settle(large, 100, 0.0)
        form.clock.now += 0.5
        service.forget(await service.acquire(who, 500, 0.0))
        service.settle(await service.acquire(who, 500, 0.0), 800, 0.0)
        refused = await outcome(service, who, 1)
        assert isinstance(refused, RateLimited)
        form.clock.now += 60
        assert isinstance(await outcome(service, who, 100, 1.0), Reservation), "no time of a GPU was used"

    run(form, body)


def test_who_used_more_than_was_held_stops_nobody_while_others_run(form: Form) -> None:
    """L1, L2: what was used beyond an estimate is paid at once; what is left of the rate is for who comes next."""
    who = asker(Limits(tokens_per_minute=1000))

    async def body(service: LimitService) -> None:
        used_more, running = await service.acquire(who, 20, 0.0), await service.acquire(who, 20, 0.0)
        service.settle(used_more, 900, 0.0)
        assert isinstance(await outcome(service, who, 100), RateLimited), "80 are left"
        form.clock.now += FRESH
        assert isinstance(await outcome(service, who, 80), Reservation)
        assert isinstance(await outcome(service, who, 10), RateLimited)
        service.settle(running, 20, 0.0)

    run(form, body)


def test_long_requests_that_hold_several_minutes_of_a_rate_stop_nobody(form: Form) -> None:
    """L1, L2: what they hold was paid in earlier minutes; what another used beyond its estimate is paid at once."""
    who = asker(Limits(tokens_per_minute=1000))

    async def body(service: LimitService) -> None:
        running = []
        for _ in range(3):
            running.append(await service.acquire(who, 900, 0.0))
            form.clock.now += 60
        used_more = await service.acquire(who, 20, 0.0)
        service.settle(used_more, 520, 0.0)
        form.clock.now += FRESH
        assert isinstance(await outcome(service, who, 100), Reservation)
        for each in running:
            service.settle(each, 900, 0.0)

    run(form, body)


def test_open_requests_count_until_they_are_settled_once(form: Form) -> None:
    """L1: held to the end, whatever it was; settling twice gives back once."""
    who = asker(Limits(concurrent=2))

    async def body(service: LimitService) -> None:
        one, two = await service.acquire(who, 1, 0.0), await service.acquire(who, 1, 0.0)
        assert isinstance(await outcome(service, who), RateLimited)
        service.settle(one, 1, 0.0)
        service.settle(one, 1, 0.0)
        service.forget(one)
        three = await service.acquire(who, 1, 0.0)
        assert isinstance(await outcome(service, who), RateLimited)
        service.forget(two)
        service.forget(three)
        assert service.stats().open == 0

    run(form, body)


def test_all_limits_or_none(form: Form) -> None:
    """L1, K1: what the key has no room for takes nothing from user and tenant."""
    tight = asker(Limits(tokens_per_day=100), tenant=Limits(requests_per_minute=3), user=Limits(tokens_total=1000))
    loose = asker(Limits(), key="l", tenant=tight.limits[0].limits, user=tight.limits[1].limits)

    async def body(service: LimitService) -> None:
        for _ in range(5):
            assert isinstance(await outcome(service, tight, 101), BudgetSpent)
        for _ in range(3):
            service.settle(await service.acquire(loose, 300, 0.0), 300, 0.0)
        assert isinstance(await outcome(service, loose, 1), RateLimited)
        form.clock.now += 60
        assert isinstance(await outcome(service, loose, 101), BudgetSpent)

    run(form, body)


def test_a_ceiling_holds_over_all_keys(form: Form) -> None:
    """K1"""
    keys = [asker(Limits(concurrent=9), key=f"k{n}", tenant=Limits(concurrent=4)) for n in range(3)]

    async def body(service: LimitService) -> None:
        got = [await outcome(service, who) for who in keys * 3]
        assert sum(isinstance(one, Reservation) for one in got) == 4

    run(form, body)


def test_changed_limits_keep_what_was_used(form: Form) -> None:
    async def body(service: LimitService) -> None:
        service.settle(await service.acquire(asker(Limits(tokens_per_day=100)), 60, 0.0), 60, 0.0)
        assert isinstance(await outcome(service, asker(Limits(tokens_per_day=150)), 91), BudgetSpent)
        assert isinstance(await outcome(service, asker(Limits(tokens_per_day=150)), 90), Reservation)
        assert isinstance(await outcome(service, asker(Limits(tokens_per_day=50)), 1), BudgetSpent)

    run(form, body)


# ---- budgets

WINDOWS = [
    (Limits(tokens_per_day=100), "day", DAY),
    (Limits(tokens_per_month=100), "month", 31 * DAY),
    (Limits(tokens_total=100), "", 400 * DAY),
    (Limits(gpu_seconds_per_day=100), "day", DAY),
]


@pytest.mark.parametrize(("limits", "span", "length"), WINDOWS)
def test_budgets_are_spent_and_come_back_with_their_window(
    form: Form, limits: Limits, span: str, length: float
) -> None:
    """L1: never more than the limit; the refusal names the end of the window, and only that."""
    gpu = limits.gpu_seconds_per_day is not None
    amount = (lambda n: (0, float(n))) if gpu else (lambda n: (n, 0.0))

    async def body(service: LimitService) -> None:
        who = asker(limits)
        service.settle(await service.acquire(who, *amount(60)), *amount(50))
        running = await service.acquire(who, *amount(50))
        held = await outcome(service, who, *amount(10))
        assert isinstance(held, RateLimited), "running requests hold it: it may come back"
        service.settle(running, *amount(49))
        refused = await outcome(service, who, *amount(2))
        assert isinstance(refused, BudgetSpent)
        assert isinstance(await outcome(service, who, *amount(1)), Reservation)
        if not span:
            assert refused.retry_after is None
            form.clock.now += length
            assert isinstance(await outcome(service, who, *amount(2)), BudgetSpent)
            return
        assert refused.retry_after is not None
        assert refused.retry_after <= length
        assert f"this {span}" in refused.message
        form.clock.now += refused.retry_after + 1
        assert isinstance(await outcome(service, who, *amount(100)), Reservation)

    run(form, body)


def test_what_exceeded_its_estimate_is_paid_once(form: Form) -> None:
    """L2: only the error of a request's own estimate can show, and it is corrected at once."""
    who = asker(Limits(tokens_per_day=100))

    async def body(service: LimitService) -> None:
        service.settle(await service.acquire(who, 50, 0.0), 60, 0.0)
        assert isinstance(await outcome(service, who, 41), BudgetSpent)
        service.settle(await service.acquire(who, 30, 0.0), 30, 0.0)
        last = await service.acquire(who, 10, 0.0)
        service.settle(last, 15, 0.0)
        assert isinstance(await outcome(service, who, 1), BudgetSpent)

    run(form, body)


def test_a_reservation_is_charged_to_the_window_it_began_in(form: Form) -> None:
    who = asker(Limits(tokens_per_day=100))

    async def body(service: LimitService) -> None:
        late = await service.acquire(who, 90, 0.0)
        form.clock.now += DAY
        assert isinstance(await outcome(service, who, 100), Reservation)
        service.settle(late, 80, 0.0)
        assert isinstance(await outcome(service, who, 1), RateLimited | BudgetSpent)

    run(form, body)


def test_a_restart_gives_nothing_back(form: Form) -> None:
    """L2: an orderly end gives back the lease and keeps what was spent, to the token."""
    who = asker(Limits(tokens_per_day=1000))

    async def body() -> None:
        for n in range(1, 4):
            async with form.replica() as service:
                service.settle(await service.acquire(who, 300, 0.0), 200, 0.0)
            store = await open_store(form.store)
            assert await spent(store, "key:k", "tokens/day") == (200 * n, 0)
            await store.close()

    asyncio.run(body())


def test_kill_9_burns_what_was_on_lease_and_no_more(form: Form) -> None:
    """L2: nobody knows what a killed gateway spent of its lease, so all of it counts; open requests are freed."""
    who = asker(Limits(tokens_per_day=1000, concurrent=3))

    async def body() -> None:
        async with form.replica() as other:
            async with form.replica(close=False) as killed:
                service = killed
                for _ in range(2):
                    await service.acquire(who, 100, 0.0)
            before = await outcome(other, who, 950)
            assert isinstance(before, RateLimited | LimitsUnavailable)
            form.clock.now += form.config.lease + 1
            open_now = [await outcome(other, who, 100) for _ in range(4)]
            expected = 4 if not form.redis else 3
            assert sum(isinstance(one, Reservation) for one in open_now) >= min(3, expected)
            used, held = await spent(other._store, "key:k", "tokens/day")
            assert 200 <= used <= 1000 - 300
            assert used + held <= 1000

    asyncio.run(body())


def test_one_that_was_only_slow_is_charged_what_it_spent(form: Form) -> None:
    """A lease that was burned is corrected when its holder comes back."""
    who = asker(Limits(tokens_per_day=1000))

    async def body() -> None:
        async with form.replica() as slow, form.replica() as other:
            running = await slow.acquire(who, 400, 0.0)
            form.clock.now += form.config.lease + 1
            service = await other.acquire(who, 100, 0.0)
            used, _ = await spent(other._store, "key:k", "tokens/day")
            assert used >= 400
            slow.settle(running, 50, 0.0)
            other.settle(service, 100, 0.0)
            slow.forget(await slow.acquire(who, 10, 0.0))
        store = await open_store(form.store)
        assert await spent(store, "key:k", "tokens/day") == (150, 0)
        await store.close()

    asyncio.run(body())


def test_a_reservation_nobody_settles_ends(form: Form) -> None:
    """L2: it counts as used, and its place is free."""
    who = asker(Limits(tokens_per_day=100, gpu_seconds_total=10, concurrent=1))

    async def body(service: LimitService) -> None:
        lost = await service.acquire(who, 60, 3.0)
        form.clock.now += form.config.expire + 1
        service.sweep(form.clock.now)
        assert service.stats().expired == 1
        service.forget(lost)
        assert isinstance(await outcome(service, who, 41), BudgetSpent)
        assert isinstance(await outcome(service, who, 0, 7.001), BudgetSpent)
        assert isinstance(await outcome(service, who, 40, 7.0), Reservation)

    run(form, body)


def test_who_asks_no_more_is_forgotten(form: Form) -> None:
    """Memory is bounded by who is active; what was spent is in the store."""

    async def body(service: LimitService) -> None:
        for n in range(20):
            who = asker(Limits(tokens_per_day=100, concurrent=1, requests_per_minute=6), key=f"k{n}")
            service.settle(await service.acquire(who, 10, 0.0), 10, 0.0)
        assert service.stats().meters == 60
        async with asyncio.timeout(20):
            while service.stats().meters:
                form.clock.now += 400
                service._ledger._bell.set()
                if service._shared is not None:
                    service._shared._bell.set()
                await asyncio.sleep(0.01)
                service.sweep(form.clock.now)
        assert service.stats().principals == 0

    run(form, body)


async def rested(form: Form, service: LimitService) -> None:
    """Time goes on, and nobody asks for anything, until every lease is ended."""
    async with asyncio.timeout(20):
        while service._ledger.stats().meters:
            form.clock.now += form.config.lease
            service._ledger._bell.set()
            await asyncio.sleep(0.005)


async def use(service: LimitService, who: Asker, amount: int) -> None:
    service.settle(await service.acquire(who, amount, 0.0), amount, 0.0)


def test_a_budget_that_was_forgotten_goes_on_where_it_was(form: Form) -> None:
    """L2: claims of the meter that is made again are no old ones for the ledger, however many were made before: no
    refusal that is false, and nothing is given back."""
    who = asker(Limits(tokens_total=1000))

    async def body(service: LimitService) -> None:
        for _ in range(4):
            await use(service, who, 200)
            await rested(form, service)
        form.clock.now += FORGET_SECONDS + 1
        service.sweep(form.clock.now)
        assert service.stats().meters == 0
        await use(service, who, 150)
        await use(service, who, 50)
        assert isinstance(await outcome(service, who, 1), BudgetSpent)
        await rested(form, service)
        assert await spent(service._store, "key:k", "tokens/total") == (1000, 0)

    run(form, body)


@pytest.mark.parametrize("end", ["sweep", "close"])
def test_what_was_used_without_an_estimate_is_told(form: Form, end: str) -> None:
    """L2: a request that took nothing of a budget runs without a lease; nobody may ask after it."""
    who = asker(Limits(gpu_seconds_total=100))

    async def body() -> None:
        async with form.replica() as service:
            service.settle(await service.acquire(who, 10, 0.0), 10, 7.0)
            if end == "sweep":
                form.clock.now += FORGET_SECONDS + 1
                service.sweep(form.clock.now)
                await rested(form, service)
                assert await spent(service._store, "key:k", "gpu/total") == (7000, 0)
                service.sweep(form.clock.now)
                assert service.stats().meters == 0
        store = await open_store(form.store)
        assert await spent(store, "key:k", "gpu/total") == (7000, 0)
        await store.close()

    asyncio.run(body())


def test_spells_of_use_share_a_lease(form: Form) -> None:
    """The ledger's row stays short; a lease that rested for long is not taken up again."""
    who = asker(Limits(tokens_total=1000))

    async def leases(service: LimitService) -> int:
        (row,) = await service._store.budgets("key:k")
        return len(row.leases)

    async def body(service: LimitService) -> None:
        for _ in range(5):
            await use(service, who, 10)
            await rested(form, service)
        assert await leases(service) == 1
        form.clock.now += REUSED + 1
        await use(service, who, 10)
        await rested(form, service)
        assert await leases(service) == 2
        assert await spent(service._store, "key:k", "tokens/total") == (60, 0)

    run(form, body)


# ---- races


@pytest.mark.parametrize("replicas", [1, 2])
def test_no_race_overspends(form: Form, replicas: int) -> None:
    """L2: 200 parallel requests, failures, disconnects at any await, estimates that were too high; budgets that admit
    fewer. At every moment settled + reserved is within the budget, and in the end nothing is held."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    budget, open_most = 3_000, 20
    limits = Limits(tokens_per_day=budget, gpu_seconds_total=200, concurrent=open_most)
    keys = [asker(Limits(tokens_per_day=2_000), key=f"k{n}", tenant=limits) for n in range(2)]
    settled = {"tokens": 0, "gpu": 0.0}
    running: dict[Reservation, tuple[int, float]] = {}

    async def request(service: LimitService) -> None:
        tokens, gpu = draw.randrange(1, 100), draw.random() * 5
        reservation = await service.acquire(draw.choice(keys), tokens, gpu)
        running[reservation] = tokens, gpu
        try:
            assert len(running) <= (open_most if form.redis else open_most * replicas)
            assert settled["tokens"] + sum(held for held, _ in running.values()) <= budget
            assert settled["gpu"] + sum(held for _, held in running.values()) <= 200.001
            await asyncio.sleep(draw.random() * 0.02)
            if draw.random() < 0.3:
                raise ConnectionError
            used = draw.randrange(tokens + 1), draw.random() * gpu
            settled["tokens"] += used[0]
            settled["gpu"] += used[1]
        except BaseException:
            used = (0, 0.0)
            raise
        finally:
            del running[reservation]
            service.settle(reservation, *used)

    async def body() -> None:
        async with form.replica() as one, form.replica() as two:
            services = [one, two][:replicas]
            tasks = []
            for _ in range(200):
                tasks.append(asyncio.create_task(request(draw.choice(services))))
                if draw.random() < 0.2:
                    draw.choice(tasks).cancel()
                if draw.random() < 0.3:
                    await asyncio.sleep(0.005)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            wrong = [r for r in results if isinstance(r, AssertionError)]
            assert not wrong
            assert settled["tokens"] > 0
            assert all(service.stats().open == 0 for service in services)
        store = await open_store(form.store)
        assert await spent(store, "tenant:x", "tokens/day") == (settled["tokens"], 0)
        used, held = await spent(store, "tenant:x", "gpu/total")
        assert held == 0
        assert settled["gpu"] * 1000 <= used <= settled["gpu"] * 1000 + 200
        await store.close()

    asyncio.run(body())


def test_exactly_k_of_200_pass(form: Form) -> None:
    """L2: equal requests against a budget of k of them, all at once: k, not one more and not one less."""
    who = asker(Limits(tokens_per_day=70 * 13))

    async def body(service: LimitService) -> None:
        async def one() -> bool:
            got = await outcome(service, who, 13)
            if isinstance(got, Reservation):
                await asyncio.sleep(0)
                service.settle(got, 13, 0.0)
            return isinstance(got, Reservation)

        assert sum(await asyncio.gather(*(one() for _ in range(200)))) == 70
        assert isinstance(await outcome(service, who, 1), BudgetSpent)

    run(form, body)


def test_two_gateways_do_not_hold_the_rest_of_a_budget_against_each_other(form: Form) -> None:
    """L2: each has half of what a request needs, and requests wait at both all the time; one of them gets it."""
    who = asker(Limits(tokens_total=24))

    async def body() -> None:
        async with form.replica() as one, form.replica() as two:
            for service in (one, two):
                service.forget(await service.acquire(who, 12, 0.0))
            for _ in range(20):
                form.clock.now += 0.3
                for service in (one, two):
                    got = await outcome(service, who, 23)
                    if isinstance(got, Reservation):
                        return
                    assert isinstance(got, RateLimited), "it may still come"
            raise AssertionError("nobody ever gets what is left")

    asyncio.run(body())


def test_an_interrupted_wait_holds_nothing(form: Form) -> None:
    """H6: a client that leaves while its gateway leases."""
    who = asker(Limits(tokens_per_day=100, concurrent=1))

    async def body(service: LimitService) -> None:
        for _ in range(5):
            task = asyncio.create_task(service.acquire(who, 60, 0.0))
            await asyncio.sleep(0)
            task.cancel()
            (got,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(got, Reservation):  # what an earlier one asked for had come: this one did not wait
                service.forget(got)
        service.settle(await service.acquire(who, 100, 0.0), 100, 0.0)
        assert service.stats().open == 0

    run(form, body)


# ---- the store away


def test_without_the_store_budgets_are_refused_and_come_back(postgresql: Any, postgresql_url: str) -> None:
    """L3, fail closed: what is leased is spent, then 503 within the deadline; recovery without restart."""
    form = Form(postgresql_url)
    form.config = type(form.config)(store_deadline=0.3)
    who, free = asker(Limits(tokens_per_day=1000)), asker(Limits(requests_per_minute=100), key="f")

    async def body(service: LimitService) -> None:
        service.forget(await service.acquire(who, 100, 0.0))
        postgresql.pause()
        try:
            service.settle(await service.acquire(who, 60, 0.0), 60, 0.0)
            async with asyncio.timeout(3):
                assert isinstance(await outcome(service, who, 900), LimitsUnavailable)
            assert isinstance(await outcome(service, who, 900), LimitsUnavailable)
            assert isinstance(await outcome(service, free, 900), Reservation), "no budget: not concerned"
            form.clock.now += form.config.lease
            assert isinstance(await outcome(service, who, 1), LimitsUnavailable)
        finally:
            postgresql.resume()
        async with asyncio.timeout(20):
            while not isinstance(got := await outcome(service, who, 900), Reservation):
                form.clock.now += 1
                await asyncio.sleep(0.05)
        service.settle(got, 900, 0.0)
        assert isinstance(await outcome(service, who, 100), BudgetSpent)

    run(form, body)


def test_the_application_role_may_keep_budgets(postgresql_url: str) -> None:
    """O6, U4: the grants of `fairgate migrate` suffice."""
    from gateway.store.postgresql import grants

    async def body() -> None:
        for sql in ["DROP ROLE IF EXISTS limits_app", "CREATE ROLE limits_app LOGIN", *grants("limits_app")]:
            await statement(postgresql_url, sql)
        form = Form(postgresql_url.replace("owner@", "limits_app@"))
        async with form.replica() as service:
            assert isinstance(await outcome(service, asker(Limits(tokens_total=10)), 5), Reservation)
        await statement(postgresql_url, "DROP OWNED BY limits_app")
        await statement(postgresql_url, "DROP ROLE limits_app")

    asyncio.run(body())


# ---- the ledger's rule


def claim(holder: str, number: int, **figures: int) -> Claim:
    return Claim("s", "b", holder, number, figures.pop("limit", 100), figures.pop("spent", 0), figures.pop("kept", 0),
                 **figures)  # fmt: skip


def test_a_repeated_or_late_claim_counts_once() -> None:
    """An answer may be lost and a claim may arrive after a later one."""
    row = LedgerRow("s", "b")
    assert decide(row, claim("h", 1, need=40), 0, 10).granted == 40
    assert decide(row, claim("h", 2, spent=40), 1, 10).spent == 40
    assert decide(row, claim("h", 3, spent=40), 1, 10).spent == 40
    late = decide(row, claim("h", 1, need=40), 2, 10)
    assert (late.granted, row.spent, row.held) == (0, 40, 0)


def test_a_burned_lease_counts_until_its_holder_returns() -> None:
    row = LedgerRow("s", "b")
    decide(row, claim("h", 1, need=40), 0, 10)
    other = decide(row, claim("i", 1, need=70), 10, 10)
    assert (other.granted, other.spent, other.others) == (60, 40, 0)
    assert decide(row, claim("h", 2, spent=5, kept=10), 11, 10).spent == 5
    assert (row.spent, row.held) == (5, 70)
    for now in (30, 3_600_000_100):
        decide(row, claim("j", now), now, 10)
    assert row.spent == 75
    assert set(row.leases) == {"j"}


class Holders:
    """Two gateways' meters of one budget against its row of the ledger; what a test draws is lost or comes late."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.now = 0.0
        self.row = LedgerRow("s", "b")
        self.used = 0
        self.sent: list[tuple[float, Claim]] = []
        self.meters = [self.made("a"), self.made("b")]

    def made(self, holder: str) -> Budget:
        return Budget("s", "b", TOKENS, 1000, math.inf, holder)

    def ask(self, meter: Budget, amount: int, lost: float) -> bool:
        """One round; whether the lease ended. A claim may be lost, and so may its answer."""
        meter.waiting += amount
        claim = meter.claim(self.now)
        self.sent.append((self.now, claim))
        if self.draw.random() < lost:
            meter.waiting = 0
            return False
        standing = decide(self.row, claim, int(self.now * 1e6), 10_000_000)
        if self.draw.random() < lost:
            meter.waiting = 0
            return False
        return meter.apply(standing, self.now + 10, self.now)

    def spend(self, meter: Budget) -> None:
        amount = self.draw.randrange(1, 60)
        if meter.room(self.now) < amount:
            self.ask(meter, amount, 0.3)
        if meter.room(self.now) >= amount:
            used = self.draw.randrange(amount + 1)
            meter.take(amount)
            meter.settle(amount, used)
            self.used += used

    def again(self) -> None:
        """An old claim arrives once more, while the ledger has its lease's name: a connection lives no longer."""
        late = [claim for sent, claim in self.sent[-20:] if sent > self.now - REUSED]
        if late:
            decide(self.row, self.draw.choice(late), int(self.now * 1e6), 10_000_000)

    def rest(self, place: int) -> None:
        """Renewed until it ends, as the lender does; it may be forgotten then."""
        while not self.ask(self.meters[place], 0, 0.2):
            pass
        if self.draw.random() < 0.3:
            self.meters[place] = self.made(self.meters[place].holder)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_history_of_leases_overspends_or_forgets(seed: int) -> None:
    """L2: leases that end, rest, are taken up again or replaced, while claims and answers are lost and old claims
    arrive again: the budget is never passed, and in the end the ledger knows what was used, to the token."""
    world = Holders(seed)
    for _ in range(world.draw.randrange(60)):
        place = world.draw.randrange(2)
        for _ in range(world.draw.randrange(4)):
            world.spend(world.meters[place])
            assert world.used <= 1000
        if world.draw.random() < 0.3:
            world.again()
        world.rest(place)
        world.now += world.draw.choice((0.1, 4.0, 200.0, REUSED + 1))
    assert (world.row.spent, world.row.held) == (world.used, 0)


def test_headroom_leaves_something_for_others() -> None:
    row = LedgerRow("s", "b")
    assert decide(row, claim("h", 1, need=10, want=1000), 0, 10).granted == 25
    assert decide(row, claim("i", 1, need=80, want=1000), 0, 10).granted == 75


def test_windows_are_days_and_months_in_utc() -> None:
    """Days and months of UTC; also in leap years and at the year's end."""
    for wall, name, end in [
        (1_709_164_800.0, "day/2024-02-29", 1_709_251_200.0),
        (1_709_251_199.9, "day/2024-02-29", 1_709_251_200.0),
        (1_709_164_800.0, "month/2024-02", 1_709_251_200.0),
        (1_735_689_599.0, "month/2024-12", 1_735_689_600.0),
    ]:
        assert window("day" if name.startswith("day") else "month", wall) == (name, end)
    assert window("total", 1.0) == ("total", float("inf"))


def test_durations_as_go_prints_them() -> None:
    """A10: the format of OpenAI's reset fields."""
    given = [0, 0.0203, 0.9996, 1, 1.5, 59.999, 60, 360, 3600, 3661, 86_400.2]
    told = ["0s", "21ms", "1s", "1s", "1.5s", "59.999s", "1m0s", "6m0s", "1h0m0s", "1h1m1s", "24h0m0s"]
    assert [duration(seconds) for seconds in given] == told


def test_repr_says_the_state() -> None:
    budget = Budget("key:k", "tokens/total", 1, 10, float("inf"), "h")
    budget.free, budget.held = 3, 2
    assert repr(budget) == "<Budget key:k tokens/total spent=0 held=2 free=3>"
