"""Limits that change, gateways that were away for long, and which refusal is told: on SQLite + in-process and on
PostgreSQL + Redis."""

import asyncio
from pathlib import Path

import pytest

from gateway.config import Quotas
from gateway.errors import BudgetSpent, RateLimited
from gateway.services.limits import LimitService, Reservation
from gateway.services.meters import FRESH, REQUESTS, TOKENS, SharedBucket, SharedGauge
from gateway.services.shared import SharedCounts
from gateway.store.limits import Claim, LedgerRow, Limits, decide
from tests.servers import Redis
from tests.services.keyring import Clock
from tests.services.limited import Asker, Form, asker, command, outcome, run, spent

SECOND = 1_000_000
MIDNIGHT = 1_800_057_600.0


async def use(service: LimitService, who: Asker, amount: int) -> None:
    service.settle(await service.acquire(who, amount, 0.0), amount, 0.0)


# ---- away for long


def claim(holder: str, number: int, **figures: int) -> Claim:
    return Claim("s", "b", holder, number, 1000, figures.pop("spent", 0), figures.pop("kept", 0), **figures)


def test_a_holder_that_the_ledger_forgot_adds_only_what_it_never_told() -> None:
    """L2: two gateways without the database for 61 minutes; what the later one had on lease stays burned."""
    row, lease = LedgerRow("s", "b"), 10 * SECOND
    decide(row, claim("a", 1), 0, lease)
    decide(row, claim("b", 1, need=500), 0, lease)
    decide(row, claim("b", 2, spent=400, kept=100), 0, lease)
    decide(row, claim("a", 2), 3611 * SECOND, lease)
    assert (row.spent, set(row.leases)) == (500, {"a"})
    decide(row, claim("b", 3, spent=430, told=400), 3612 * SECOND, lease)
    assert row.spent == 530
    decide(row, claim("b", 4, spent=440, told=430), 3613 * SECOND, lease)
    assert row.spent == 540


def test_a_gateway_that_was_cut_off_for_hours_is_not_charged_again(form: Form) -> None:
    """L2: also when it claims again and again after that, and begins a new lease."""
    who = asker(Limits(tokens_total=2000))

    async def body() -> None:
        async with form.replica() as cut_off, form.replica() as other:
            await use(cut_off, who, 300)
            running = await cut_off.acquire(who, 50, 0.0)
            known, leased = await spent(other._store, "key:k", "tokens/total")
            assert known == 300
            form.clock.now += 2 * 3600
            await use(other, who, 10)
            cut_off.settle(running, 30, 0.0)
            await use(cut_off, who, 20)
            await use(cut_off, who, 200)
        async with form.replica() as later:
            await use(later, who, 1)
            used, _ = await spent(later._store, "key:k", "tokens/total")
            assert 560 <= used <= 561 + leased

    asyncio.run(body())


# ---- limits that change


def test_a_lowered_budget_holds_over_what_is_leased(form: Form) -> None:
    """L2: settled and reserved together stay within the new one."""

    async def body(service: LimitService) -> None:
        service.settle(await service.acquire(asker(Limits(tokens_total=1000)), 100, 0.0), 10, 0.0)
        lowered = asker(Limits(tokens_total=50))
        assert isinstance(await outcome(service, lowered, 80), BudgetSpent)
        assert isinstance(await outcome(service, lowered, 40), Reservation)
        assert isinstance(await outcome(service, lowered, 1), RateLimited)

    run(form, body)


def test_fewer_open_requests_hold_over_what_is_leased(form: Form) -> None:
    """L1"""
    many, few = asker(Limits(concurrent=10)), asker(Limits(concurrent=1))

    async def body(service: LimitService) -> None:
        for reservation in await asyncio.gather(*(service.acquire(many, 0, 0.0) for _ in range(10))):
            service.forget(reservation)
        first = await service.acquire(few, 0, 0.0)
        assert isinstance(await outcome(service, few), RateLimited)
        form.clock.now += FRESH
        more = asker(Limits(concurrent=2))
        assert isinstance(await outcome(service, more), Reservation)
        service.forget(first)
        assert isinstance(await outcome(service, more), Reservation)
        assert isinstance(await outcome(service, more), RateLimited)

    run(form, body)


def test_a_changed_rate_holds_at_once_and_from_then_on(form: Form) -> None:
    """L1: idle time before the change counts by the rate of then."""
    slow, fast = asker(Limits(requests_per_minute=6, burst=1)), asker(Limits(requests_per_minute=6000, burst=900))

    async def body(service: LimitService) -> None:
        await service.acquire(slow, 0, 0.0)
        form.clock.now += 9
        assert isinstance(await outcome(service, fast), RateLimited)
        form.clock.now += 0.3
        assert sum([isinstance(await outcome(service, fast), Reservation) for _ in range(40)]) == 30
        form.clock.now += 9
        assert isinstance(await outcome(service, slow), Reservation)
        assert isinstance(await outcome(service, slow), RateLimited)

    run(form, body)


def test_a_day_ends_at_midnight_and_not_a_look_later(form: Form) -> None:
    """L1: what was planned before midnight holds until then."""
    form.clock.now = MIDNIGHT - 5
    who = asker(Limits(tokens_per_day=100))

    async def body(service: LimitService) -> None:
        await use(service, who, 100)
        assert isinstance(await outcome(service, who, 1), BudgetSpent)
        form.clock.now += 6
        assert isinstance(await outcome(service, who, 100), Reservation)

    run(form, body)


# ---- which refusal is told


def test_of_two_rates_the_longer_wait_is_told(form: Form) -> None:
    """A10"""
    who = asker(Limits(requests_per_minute=60, burst=1, tokens_per_minute=600))

    async def body(service: LimitService) -> None:
        await use(service, who, 5000)
        refused = await outcome(service, who, 1)
        assert isinstance(refused, RateLimited)
        assert refused.retry_after == pytest.approx(440.1, abs=1.0)

    run(form, body)


def test_a_spent_budget_is_told_before_a_rate(form: Form) -> None:
    """A10: what never comes back says so, whatever comes back sooner; also when the ledger said so a while ago."""
    tenant = Limits(requests_per_minute=2)
    who, other = asker(Limits(tokens_total=10), tenant=tenant), asker(Limits(), key="o", tenant=tenant)

    async def body(service: LimitService) -> None:
        await use(service, who, 10)
        assert isinstance(await outcome(service, who, 5), BudgetSpent)
        await use(service, other, 10)
        assert isinstance(await outcome(service, other, 5), RateLimited)
        for _ in range(2):
            refused = await outcome(service, who, 5)
            assert isinstance(refused, BudgetSpent)
            assert refused.retry_after is None
            form.clock.now += 5

    run(form, body)


def test_what_can_never_fit_is_not_told_to_come_back(form: Form) -> None:
    """L1: more than the whole budget of a day."""
    who = asker(Limits(tokens_per_day=100, gpu_seconds_per_day=5))

    async def body(service: LimitService) -> None:
        never = "do not suffice: this request may use {}; a smaller max_tokens may fit."
        for amount, gpu, noun, figures in [
            (101, 0.0, "tokens", "101 of 100"),
            (1, 5.5, "seconds of GPU time", "5.5 of 5"),
        ]:
            refused = await outcome(service, who, amount, gpu)
            assert isinstance(refused, BudgetSpent)
            assert refused.message == f"The {noun} of this key for this day {never.format(figures)}"
            assert refused.retry_after is None
        await use(service, who, 60)
        later = await outcome(service, who, 50)
        assert isinstance(later, BudgetSpent)
        assert "may use 50 of 100; they return in " in later.message
        assert later.retry_after is not None

    run(form, body)


def test_the_fields_tell_of_rates_before_budgets_and_of_tokens_only(form: Form) -> None:
    """A10: seconds of GPU time are no tokens."""
    who = asker(Limits(tokens_total=100, gpu_seconds_total=7, requests_per_minute=5))

    async def body(service: LimitService) -> None:
        await use(service, who, 30)
        requests, tokens = service.shown(who)
        now = form.clock.now
        assert [(one.most, one.remaining(now)) for one in requests] == [(5, 4)]
        assert [(one.most, one.remaining(now)) for one in tokens] == [(100, 70)]

    run(form, body)


def test_a_fraction_of_a_millisecond_is_reserved_whole(form: Form) -> None:
    """L2: also the last of a budget."""
    who = asker(Limits(gpu_seconds_total=1))

    async def body(service: LimitService) -> None:
        assert (await service.acquire(who, 0, 0.0012)).amounts[2] == 2
        assert isinstance(await outcome(service, who, 0, 0.9981), RateLimited)
        assert isinstance(await outcome(service, who, 0, 0.998), Reservation)

    run(form, body)


# ---- Redis' clock set back


def counts(redis: Redis, at: Clock, config: Quotas) -> SharedCounts:
    """A gateway's, whose own clock is not Redis'."""
    return SharedCounts(redis.url(), config, clock=Clock(), time_ms=lambda: int(at.now * 1000))


def test_a_clock_of_redis_that_is_set_back_stops_nobody_for_hours(redis: Redis) -> None:
    """L3: the loss of the data was noticed at a time that is still to come; a lease later that is over."""
    command(redis.port, "FLUSHALL")
    at, config = Clock(), Quotas(deadline=5.0)
    gauge, bucket = SharedGauge("key:k", "open", 4), SharedBucket("key:k", "rpm", REQUESTS, 60, 10)

    async def body() -> None:
        one = counts(redis, at, config)
        await one.ask([gauge])
        command(redis.port, "FLUSHALL")
        await one.ask([gauge])
        at.now -= 7200
        gauge.waiting = 1
        await one.ask([gauge])
        assert gauge.free == 0, "others may hold them still"
        at.now += config.lease + 1
        gauge.waiting = bucket.waiting = 1
        await one.ask([gauge, bucket])
        assert (gauge.free, bucket.free) == (1, 1)
        await one.close()

    asyncio.run(body())


def test_what_a_dead_gateway_held_is_free_a_lease_after_redis_clock_was_set_back(redis: Redis) -> None:
    command(redis.port, "FLUSHALL")
    at, config = Clock(), Quotas(deadline=5.0)
    dead, alive = SharedGauge("key:k", "open", 4), SharedGauge("key:k", "open", 4)

    async def body() -> None:
        first, second = counts(redis, at, config), counts(redis, at, config)
        dead.waiting = 4
        await first.ask([dead])
        at.now -= 7200
        alive.waiting = 1
        await second.ask([alive])
        assert (dead.free, alive.free) == (4, 0)
        at.now += config.lease + 1
        alive.waiting = 1
        await second.ask([alive])
        assert alive.free == 1
        await first.close()
        await second.close()

    asyncio.run(body())


def test_a_rate_of_redis_says_when_its_debt_is_paid(redis: Redis) -> None:
    """A10: until nothing of it is used, as a rate that is counted here."""
    command(redis.port, "FLUSHALL")
    at = Clock()
    bucket = SharedBucket("key:k", "tpm", TOKENS, 600, 600)

    async def body() -> None:
        one = SharedCounts(redis.url(), Quotas(deadline=5.0), clock=at, time_ms=lambda: int(at.now * 1000))
        bucket.waiting = 600
        await one.ask([bucket])
        bucket.take(600)
        bucket.settle(600, 5600)
        assert (bucket.remaining(at.now), bucket.reset(at.now)) == (0, pytest.approx(560.0))
        await one.ask([bucket])
        assert (bucket.remaining(at.now), bucket.reset(at.now)) == (0, pytest.approx(560.0))
        assert (bucket.remaining(at.now + 530), bucket.reset(at.now + 530)) == (300, pytest.approx(30.0))
        await one.close()

    asyncio.run(body())


# ---- open requests of several gateways


def test_a_gateway_that_holds_all_open_requests_hands_some_over(redis: Redis, tmp_path: Path) -> None:
    """L1, L3: one gateway has more to do than may be open at once, another is asked now and then: both get some, and
    together no more than the limit."""
    command(redis.port, "FLUSHALL")
    form = Form(str(tmp_path / "limits.db"), redis.url())
    who = asker(Limits(concurrent=3))

    async def body() -> None:
        async with form.replica() as busy, form.replica() as other:
            held = [await busy.acquire(who, 1, 0.0) for _ in range(3)]
            got: list[Reservation] = []
            for turn in range(40):
                form.clock.now += 0.3
                if turn % 4 == 0 and isinstance(found := await outcome(other, who), Reservation):
                    got.append(found)
                busy.settle(held.pop(0), 1, 0.0)
                await answered(busy)
                while isinstance(found := await outcome(busy, who), Reservation):
                    held.append(found)
                assert 0 < len(held) <= 3 - len(got)
                if len(got) == 2:
                    return
            raise AssertionError("who came first keeps all")

    asyncio.run(body())


def test_short_requests_go_on_while_some_are_handed_over(redis: Redis, tmp_path: Path) -> None:
    """One is handed over every FRESH at most: what ends sooner is used again here, without a round."""
    command(redis.port, "FLUSHALL")
    form = Form(str(tmp_path / "limits.db"), redis.url())
    who = asker(Limits(concurrent=3))

    async def body() -> None:
        async with form.replica() as busy, form.replica() as other:
            held = [await busy.acquire(who, 1, 0.0) for _ in range(3)]
            assert isinstance(await outcome(other, who), RateLimited)
            form.clock.now += FRESH
            assert isinstance(await outcome(busy, who), RateLimited), "by now it knows of the other"
            for reservation in held:
                busy.settle(reservation, 1, 0.0)
            assert [isinstance(await outcome(busy, who), Reservation) for _ in range(3)] == [True, True, False]
            await answered(busy)
            form.clock.now += FRESH
            assert isinstance(await outcome(other, who), Reservation)

    asyncio.run(body())


def test_short_requests_hold_no_more_than_were_open_at_once(redis: Redis) -> None:
    """L1: however many end between two rounds, the rest may be open elsewhere."""
    command(redis.port, "FLUSHALL")
    at, config = Clock(), Quotas(deadline=5.0)
    busy, other = SharedGauge("key:k", "open", 9), SharedGauge("key:k", "open", 9)

    async def body() -> None:
        first, second = counts(redis, at, config), counts(redis, at, config)
        busy.waiting = 2
        for _ in range(6):
            await first.ask([busy])
            for _ in range(20):
                busy.take(1)
                busy.take(1)
                busy.settle(1, 0)
                busy.settle(1, 0)
        other.waiting = 7
        await second.ask([other])
        assert (busy.free, other.free) == (2, 7)
        await first.close()
        await second.close()

    asyncio.run(body())


async def answered(service: LimitService) -> None:
    """Until Redis has heard all that it is to be told now by a gateway that holds something: during a round its meter
    is not due."""
    lender = service._shared
    assert lender is not None
    async with asyncio.timeout(5):
        while not lender._due or any(meter.due <= lender._clock() for meter in lender._due):
            await asyncio.sleep(0.001)
