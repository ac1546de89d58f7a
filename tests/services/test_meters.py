"""Meters without a lender: what they say of themselves."""

import math

import pytest

from gateway.services.budget import Budget
from gateway.services.limit_facts import SharedAnswer
from gateway.services.meters import REQUESTS, TOKENS, Bucket, Gauge, SharedBucket, SharedGauge
from gateway.store.limits import Standing


def test_a_bucket_says_when_it_is_full_again() -> None:
    """A10: `x-ratelimit-reset-*` is the time until nothing of the limit is used."""
    bucket = Bucket("key:k", REQUESTS, per_minute=30, most=10, now=100.0)
    assert (bucket.remaining(100.0), bucket.reset(100.0), bucket.idle(100.0)) == (10, 0.0, True)
    bucket.take(4)
    assert (bucket.remaining(100.0), bucket.idle(100.0)) == (6, False)
    assert bucket.reset(100.0) == pytest.approx(8.0, abs=1e-4)
    assert bucket.reset(105.0) == pytest.approx(3.0, abs=1e-4)
    assert (bucket.remaining(105.0), bucket.remaining(108.0), bucket.idle(108.0)) == (8, 10, True)
    bucket.settle(0, 30)  # the truth was more than all there is
    assert (bucket.remaining(108.0), bucket.idle(108.0)) == (0, False)
    assert bucket.reset(108.0) == pytest.approx(60.0, abs=1e-4)


def test_a_bucket_that_shrinks_keeps_what_was_used() -> None:
    """L5"""
    bucket = Bucket("key:k", TOKENS, per_minute=6000, most=6000, now=0.0)
    bucket.take(1000)
    bucket.retune(600, 600, 0.0)
    assert (bucket.remaining(0.0), bucket.rate) == (600, 10)
    bucket.take(600)
    bucket.retune(6000, 6000, 0.0)
    assert bucket.remaining(0.0) == 0
    assert bucket.reset(0.0) == pytest.approx(60.0, abs=1e-4)


def test_open_requests_come_back_whatever_they_used() -> None:
    """L1"""
    gauge = Gauge("key:k", 2)
    gauge.take(1)
    gauge.take(1)
    assert (gauge.room(0.0), gauge.idle(0.0)) == (0, False)
    gauge.settle(1, 0)
    gauge.settle(1, 1)
    assert (gauge.room(0.0), gauge.idle(0.0)) == (2, True)


def test_a_budget_tells_its_debt_once_and_asks_for_nothing_on_its_account() -> None:
    """L3: what exceeded the estimate is in `spent`; it is not held as well, and nobody else's part covers it."""
    budget = Budget("key:k", "tokens/total", TOKENS, 1000, math.inf, "h")
    budget.claim(0.0)
    budget.apply(Standing(granted=100, spent=0, others=0), until=10.0, now=0.0)
    budget.take(80)
    budget.settle(80, 150)
    assert budget.room(1.0) == -50
    claim = budget.claim(1.0)
    assert (claim.spent, claim.kept, claim.need) == (150, 0, 0)
    assert budget.room(1.0) == 0
    assert budget.room(10.0) < 0  # the lease is over


def test_a_raised_rate_counts_from_then_on() -> None:
    """L1: nine idle seconds at six a minute are not nine at six thousand."""
    bucket = Bucket("key:k", REQUESTS, per_minute=6, most=6, now=0.0)
    bucket.take(6)
    bucket.retune(6000, 6000, 9.0)
    assert bucket.room(9.0) == pytest.approx(0.9, abs=1e-3)


def test_a_grant_that_comes_after_its_limit_was_lowered_is_cut() -> None:
    """L2: the round was under way with the old limit."""
    budget = Budget("key:k", "tokens/total", TOKENS, 1000, math.inf, "h")
    budget.waiting = 500
    budget.claim(0.0)
    budget.retune(50, math.inf)
    budget.apply(Standing(granted=500, spent=10, others=15), until=10.0, now=0.0)
    assert (budget.room(1.0), budget.left()) == (25, 25)
    gauge = SharedGauge("key:k", "open", 10)
    gauge.waiting = 5
    gauge.claim()
    gauge.retune(2)
    gauge.apply(SharedAnswer(5, 0), until=10.0, now=0.0)
    gauge.take(1)
    assert gauge.room(1.0) == 1
    gauge.retune(1)
    assert gauge.room(1.0) == 0
    rate = SharedBucket("key:k", "rpm", REQUESTS, 600, 10)
    rate.waiting = 5
    rate.claim()
    rate.retune(60, 3, 0.0)
    rate.apply(SharedAnswer(5, 0), until=10.0, now=0.0)
    assert rate.room(1.0) == 3
    rate.retune(60, 1, 1.0)
    assert rate.room(1.0) == 1


def test_what_is_left_of_a_budget_is_held_and_lent_by_nobody() -> None:
    """A10; also while an answer of the ledger is lost."""
    budget = Budget("key:k", "tokens/day/x", TOKENS, 1000, 500.0, "h")
    budget.waiting = 100
    budget.claim(0.0)
    budget.apply(Standing(granted=100, spent=200, others=300), until=10.0, now=0.0)
    budget.take(60)
    budget.take(40)
    budget.settle(40, 30)
    left = 1000 - 200 - 300 - 60 - 30
    assert (budget.left(), budget.remaining(1.0), budget.reset(1.0)) == (left, left, 499.0)
    assert budget.claim(1.0).told == 0
    assert budget.left() == left, "the answer did not come"
    assert budget.claim(2.0).told == 0
    budget.apply(Standing(granted=0, spent=230, others=300), until=12.0, now=2.0)
    assert (budget.left(), budget.claim(3.0).told) == (left, 30)
    assert budget.reset(600.0) == 0.0
