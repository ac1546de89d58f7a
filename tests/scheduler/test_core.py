"""The core's edges: odd input, limits and refusals, gates and pools that change, reservations, restarts."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from math import inf, isfinite, nan

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core import Core
from scheduler.model import Decision, Granted, Queued, Refusal, Refused, Saved, SavedParty, Ticket
from scheduler.reservations import Window
from scheduler.settings import Settings, describe
from scheduler.sync import SyncScheduler
from tests.scheduler.test_invariants import check_tree


def core(slots: int = 1, **values: object) -> Core:
    made = Core(Settings(**values), 0.0)  # type: ignore[arg-type]
    made.set_gate(0.0, "g", slots)
    made.set_pool(0.0, "m", [("g", 0)])
    return made


def ticket(user: str = "u", **values: object) -> Ticket:
    return Ticket("m", str(values.pop("tenant", "t")), user, cost=float(values.pop("cost", 100.0)), **values)  # type: ignore[arg-type]


def submit(made: Core, now: float, user: str = "u", **values: object) -> Granted | Queued | Refused:
    answer, _ = made.submit(now, ticket(user, **values))
    return answer


def granted(made: Core, now: float, user: str = "u", **values: object) -> int:
    answer = submit(made, now, user, **values)
    assert isinstance(answer, Granted), answer
    return answer.id


def queued(made: Core, now: float, user: str = "u", **values: object) -> int:
    answer = submit(made, now, user, **values)
    assert isinstance(answer, Queued), answer
    return answer.id


def grants(decided: Sequence[Decision]) -> list[int]:
    return [decision.id for decision in decided if isinstance(decision, Granted)]


def refusals(decided: Sequence[Decision]) -> dict[int, Refusal]:
    return {decision.id: decision.reason for decision in decided if isinstance(decision, Refused)}


# -- odd input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["cost", "share", "tenant_share", "class_offset"])
@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_ticket_with_a_number_that_is_none_is_an_error(field: str, value: float) -> None:
    made = core()
    with pytest.raises(ValueError, match="finite"):
        submit(made, 0.0, **{field: value})
    assert made.running == made.queued == 0


def test_extreme_estimates_and_shares_are_clamped_and_do_no_harm() -> None:
    """Shares of 0 or below, estimates of 0, below 0 or 10^12 and more: an order, finite usage, no error."""
    made = core()
    first = granted(made, 0.0, cost=1e300, share=0.0, tenant_share=-1.0)
    for n, cost in enumerate((0.0, -5.0, 1e12, 1e-300)):
        queued(made, 0.0, f"u{n}", cost=cost, share=1e300 if n % 2 else 1e-300)
    running, order = [first], []
    while running:
        decided = made.release(1.0, running.pop(), 1e300)
        running += grants(decided)
        order += grants(decided)
    assert len(order) == 4
    assert all(isfinite(party.usage) and party.usage >= 0.0 for party in made.stats(1.0).parties)
    assert made.stats(1.0).parties[0].share == 1e-3


def test_now_must_be_a_number() -> None:
    made = core()
    with pytest.raises(ValueError, match="NaN"):
        made.tick(nan)
    with pytest.raises(ValueError, match="NaN"):
        submit(made, nan)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda made, now: made.submit(now, ticket(cost=nan)),
        lambda made, now: made.release(now, 1, nan),
        lambda made, now: made.charge(now, 1, nan),
        lambda made, now: made.set_gate(now, "g", -1),
        lambda made, now: made.set_pool(now, "m", [("g", 0), ("g", 1)]),
        lambda made, now: made.set_pool(now, "m", [("unknown", 0)]),
        lambda made, now: made.set_reservations(now, [Window("w", "t", 90.0, 99.0)] * 2),
    ],
)
def test_a_call_that_is_an_error_loses_no_decision(wrong: Callable[[Core, float], object]) -> None:
    """Who timed out meanwhile is told at the next call: a decision that nobody hears of is a slot or a client lost."""
    made = core()
    granted(made, 0.0)
    late = queued(made, 0.0, timeout=5.0)
    with pytest.raises((ValueError, KeyError)):
        wrong(made, 10.0)
    assert refusals(made.tick(10.0)) == {late: Refusal.QUEUE_TIMEOUT}
    made.set_reservations(10.0, [])
    assert isinstance(submit(made, 10.0), Queued)


def test_a_view_of_no_moment_stops_no_clock() -> None:
    made = core()
    made.export_usage(nan)
    assert isinstance(submit(made, 1.0), Granted)
    assert made.now == 1.0


def test_an_unknown_model_is_refused_not_let_through() -> None:
    made = core()
    answer, _ = made.submit(0.0, Ticket("nobody", "t", "u"))
    assert isinstance(answer, Refused)
    assert answer.reason is Refusal.UNKNOWN_POOL


def test_slots_below_zero_are_an_error_and_zero_slots_make_tickets_wait() -> None:
    made = core(slots=0)
    number = queued(made, 0.0)
    with pytest.raises(ValueError, match="negative"):
        made.set_gate(0.0, "g", -1)
    assert made.fleet.gates["g"].slots == 0
    assert grants(made.set_gate(1.0, "g", 1)) == [number]


def test_a_second_release_changes_nothing_and_is_counted() -> None:
    made = core()
    first, second, third = granted(made, 0.0), queued(made, 0.0), queued(made, 0.0)
    assert grants(made.release(1.0, first, 10.0)) == [second]
    assert not made.release(1.0, first, 10.0)
    assert not made.release(1.0, third, 10.0), "it waits; it holds no slot"
    assert not made.release(1.0, 999, 10.0)
    assert (made.running, made.queued, made.stray_releases) == (1, 1, 3)
    with pytest.raises(ValueError, match="NaN"):
        made.release(1.0, second, nan)
    assert made.running == 1


def test_cancel_after_the_grant_gives_the_slot_back_and_refunds() -> None:
    made = core()
    first, second = granted(made, 0.0), queued(made, 0.0, "v")
    assert grants(made.cancel(1.0, first)) == [second]
    assert made.stats(1.0).parties[0].usage == 0.0
    assert not made.cancel(1.0, first)
    assert not made.cancel(1.0, 12345)
    assert made.running == 1


def test_charges_count_at_once_and_bad_ones_are_errors() -> None:
    made = core()
    number = granted(made, 0.0, cost=100.0)
    made.charge(0.0, number, 50.0)
    made.charge(0.0, 999, 50.0)
    assert made.stats(0.0).parties[0].usage == pytest.approx(150.0)
    for extra in (-1.0, nan, inf):
        with pytest.raises(ValueError, match="charge"):
            made.charge(0.0, number, extra)
    made.release(0.0, number, 120.0)
    assert made.stats(0.0).parties[0].usage == pytest.approx(120.0)


@pytest.mark.parametrize("field", describe(), ids=lambda field: field.name)
def test_settings_refuse_what_is_out_of_range(field: object) -> None:
    """Every setting: NaN, infinities, below and above the range, the wrong kind."""
    from scheduler.settings import Field

    assert isinstance(field, Field)
    bad = [nan, inf, -inf, field.low - 1, field.high * 2 + 1, "1", True]
    for value in [*bad, field.low] if field.low_open else bad:
        with pytest.raises(ValueError, match=field.name):
            Settings().changed(**{field.name: value})
    if not field.optional:
        with pytest.raises(ValueError, match=field.name):
            Settings().changed(**{field.name: None})
    assert getattr(Settings().changed(**{field.name: field.high}), field.name) == field.high
    assert field.text.endswith(".")


def test_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(ValueError, match="priority_boost"):
        Settings().changed(priority_boost=1.0)


# -- limits and refusals -----------------------------------------------------------------------------------------


def test_a_party_is_capped_and_told_when_to_come_back() -> None:
    made = core(user_cap=3)
    granted(made, 0.0)
    for _ in range(3):
        queued(made, 0.0)
    answer = submit(made, 0.0)
    assert isinstance(answer, Refused)
    assert (answer.reason, answer.ahead) == (Refusal.QUEUE_FULL, 3)
    assert 1.0 <= answer.retry_after <= 720.0
    queued(made, 0.0, "other")


def test_timeouts_come_in_order_and_on_time() -> None:
    made = core()
    granted(made, 0.0)
    late, soon = queued(made, 0.0, timeout=9.0), queued(made, 1.0, "v", timeout=3.0)
    assert made.next_deadline() == 4.0
    assert not made.tick(3.9)
    assert refusals(made.tick(4.0)) == {soon: Refusal.QUEUE_TIMEOUT}
    assert made.next_deadline() == 9.0
    assert refusals(made.tick(100.0)) == {late: Refusal.QUEUE_TIMEOUT}


def test_a_slot_is_never_granted_to_a_ticket_whose_time_is_up() -> None:
    made = core()
    first = granted(made, 0.0)
    dead, alive = queued(made, 0.0, timeout=5.0), queued(made, 0.0, timeout=50.0)
    decided = made.release(5.0, first, 10.0)
    assert refusals(decided) == {dead: Refusal.QUEUE_TIMEOUT}
    assert grants(decided) == [alive]


def test_a_timeout_of_zero_takes_only_a_free_slot() -> None:
    made = core()
    granted(made, 0.0, timeout=0.0)
    answer = submit(made, 0.0, timeout=0.0)
    assert isinstance(answer, Refused)
    assert answer.reason is Refusal.QUEUE_TIMEOUT


def test_a_ticket_that_its_own_backlog_dooms_is_refused_at_once() -> None:
    """Own queue needs more than 1.5 queue timeouts: 429 now, not after the timeout."""
    made = core(user_cap=64)
    number, now = granted(made, 0.0, timeout=1e6), 0.0
    for _ in range(10):
        queued(made, now, timeout=1e6)
    for _ in range(5):
        now += 10.0
        number = grants(made.release(now, number, 100.0))[0]
    answer = submit(made, now, timeout=20.0)
    assert isinstance(answer, Refused)
    assert answer.reason is Refusal.QUEUE_TIMEOUT
    assert answer.estimate >= 30.0
    queued(made, now, "other", timeout=20.0)


def drain(made: Core, now: float, running: int, seconds: float, count: int) -> float:
    """One after the other, `count` times; the time after."""
    for _ in range(count):
        now += seconds
        (running, *_) = [*grants(made.release(now, running, 100.0)), -1]
    return now


def test_a_backlog_that_is_over_dooms_no_later_one() -> None:
    """The crowd in which its turns came every 100 s has gone; so has the rest of the party's own queue."""
    made = core()
    running = granted(made, 0.0, timeout=1e6)
    waiting = [queued(made, 0.0, timeout=1e6) for _ in range(6)]
    now = drain(made, 0.0, running, 100.0, 5)
    assert isinstance(submit(made, now, timeout=60.0), Refused)
    made.cancel(now, waiting[-1])
    made.release(now + 1.0, waiting[4], 100.0)
    for _ in range(3):
        now += 100.0
        running = granted(made, now)
        for _ in range(4):
            queued(made, now, timeout=60.0)
        now = drain(made, now, running, 1.0, 5)
    assert made.queued == made.running == 0


def test_the_time_between_two_backlogs_is_no_gap_between_turns() -> None:
    """The last that waited left without a turn; the next queue forms five minutes later."""
    made = core()
    first, second, left = granted(made, 0.0), queued(made, 0.0), queued(made, 0.0)
    assert grants(made.release(1.0, first, 100.0)) == [second]
    made.cancel(1.0, left)
    made.release(2.0, second, 100.0)
    running = granted(made, 300.0)
    for _ in range(2):
        queued(made, 300.0)
    drain(made, 300.0, running, 1.0, 1)
    queued(made, 301.0, timeout=60.0)


def test_when_all_queues_are_full_the_longest_pays() -> None:
    made = core(user_cap=100, global_cap=10)
    granted(made, 0.0)
    heavy = [queued(made, 0.0, "heavy") for _ in range(8)]
    queued(made, 0.0, "light")
    queued(made, 0.0, "light")
    answer, others = made.submit(0.0, ticket("new"))
    assert isinstance(answer, Queued)
    assert refusals(others) == {heavy[-1]: Refusal.EVICTED}
    again = submit(made, 0.0, "heavy")
    assert isinstance(again, Refused)
    assert again.reason is Refusal.QUEUE_FULL
    assert made.queued == 10


def test_eviction_weighs_queues_by_share() -> None:
    made = core(user_cap=100, global_cap=10)
    granted(made, 0.0)
    for _ in range(6):
        queued(made, 0.0, "paying", share=4.0)
    small = [queued(made, 0.0, "small") for _ in range(4)]
    _, others = made.submit(0.0, ticket("new"))
    assert refusals(others) == {small[-1]: Refusal.EVICTED}


def test_whose_share_falls_has_the_longer_queue_at_once() -> None:
    """Its queues elsewhere weigh more too, though nothing joined them."""
    made = core(global_cap=20)
    made.set_gate(0.0, "h", 1)
    made.set_pool(0.0, "other", [("h", 0)])
    granted(made, 0.0, "first")
    waiting = [queued(made, 0.0, "much", share=10.0) for _ in range(12)]
    for _ in range(8):
        queued(made, 0.0, "little")
    answer, _ = made.submit(0.0, Ticket("other", "t", "much", share=1.0))
    assert isinstance(answer, Granted)
    answer, others = made.submit(0.0, ticket("new"))
    assert isinstance(answer, Queued)
    assert refusals(others) == {waiting[-1]: Refusal.EVICTED}


def test_who_grew_while_the_queues_were_emptier_pays_as_well() -> None:
    made = core(user_cap=100, global_cap=20)
    granted(made, 0.0)
    for number in [queued(made, 0.0, f"gone{n}") for n in range(10)][:4]:
        made.cancel(0.0, number)
    heavy = [queued(made, 0.0, "heavy") for _ in range(3)]
    for n in range(11):
        queued(made, 0.0, f"light{n}")
    _, others = made.submit(0.0, ticket("new"))
    assert refusals(others) == {heavy[-1]: Refusal.EVICTED}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_nobody_below_its_cap_is_refused_for_somebody_elses_backlog(seed: int) -> None:
    """Invariant 13, under random traffic against tight caps."""
    rng = random.Random(seed)
    made = core(user_cap=6, global_cap=15)
    granted(made, 0.0)
    waits: dict[str, int] = {}
    owner: dict[int, str] = {}
    for _ in range(150):
        user = f"u{rng.choice([0, 0, 0, 1, 2, 3, 4, 5, 6, 7])}"
        answer, others = made.submit(0.0, ticket(user, timeout=inf))
        for evicted in others:
            assert isinstance(evicted, Refused)
            fattest = owner[evicted.id]
            assert waits[fattest] == max(waits.values())
            assert waits[fattest] > waits.get(user, 0)
            waits[fattest] -= 1
        if isinstance(answer, Queued):
            waits[user] = waits.get(user, 0) + 1
            owner[answer.id] = user
        elif isinstance(answer, Refused):
            assert waits[user] in (6, max(waits.values()))
        assert sum(waits.values()) == made.queued <= 15


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_the_newest_of_the_longest_queue_goes(seed: int) -> None:
    """Whatever its class, and whoever left before it."""
    rng = random.Random(seed)
    made = core(user_cap=100, global_cap=40)
    granted(made, 0.0)
    heavy: list[int] = []
    while made.queued < 40:
        heavy.append(queued(made, 0.0, "heavy", timeout=inf, class_offset=rng.choice([0.0, 20.0, -20.0])))
        if rng.random() < 0.4:
            made.cancel(0.0, heavy.pop(rng.choice([-1, rng.randrange(len(heavy))])))
    for number in range(15):
        _, others = made.submit(0.0, ticket(f"u{number}", timeout=inf))
        assert refusals(others) == {heavy.pop(): Refusal.EVICTED}
        if rng.random() < 0.4:
            made.cancel(0.0, heavy.pop(rng.randrange(len(heavy))))
            heavy.append(queued(made, 0.0, "heavy", timeout=inf, class_offset=rng.choice([0.0, 20.0])))
    assert [place.id for place in made.waiting(0.0, "t", "heavy")] == heavy


def seconds(call: Callable[[], object]) -> float:
    """CPU time of this process: what else the machine does is not in it."""
    gc.collect()
    began = time.process_time()
    call()
    return time.process_time() - began


def evictions(waiting: int) -> float:
    """What 200 newcomers cost at the cap, with that many waiting in one queue."""
    made = core(user_cap=waiting, global_cap=waiting)
    granted(made, 0.0)
    for _ in range(waiting):
        queued(made, 0.0, "heavy", timeout=inf)
    made.submit(0.0, ticket("first", timeout=inf))

    def come() -> None:
        for number in range(200):
            queued(made, 0.0, f"u{number}", timeout=inf)

    return seconds(come)


def test_an_eviction_costs_the_same_however_long_the_queue() -> None:
    assert evictions(32_000) < 8 * min(evictions(1_000) for _ in range(3))


def test_retry_after_grows_with_the_own_backlog() -> None:
    """Invariant 13: finite, at least 1, monotone."""
    figures = []
    for backlog in range(1, 40, 3):
        made = core(user_cap=backlog)
        number = granted(made, 0.0)
        for _ in range(backlog + 2):
            submit(made, 0.0, timeout=1e6)
        number = grants(made.release(8.0, number, 100.0))[0]
        queued(made, 8.0, timeout=1e6)
        answer = submit(made, 10.0, timeout=1e6)
        assert isinstance(answer, Refused)
        figures.append(answer.retry_after)
    assert figures == sorted(figures)
    assert all(1.0 <= figure <= 720.0 for figure in figures)


def test_a_waiting_ticket_knows_its_position_and_estimated_wait() -> None:
    made = core(slots=2)
    running = [granted(made, 0.0, "a"), granted(made, 0.0, "a")]
    made.release(10.0, running[0], 100.0)
    granted(made, 10.0, "a")
    own = [queued(made, 10.0, "a", tag=f"a{n}") for n in range(3)]
    other = queued(made, 10.0, "b")
    place = made.position(11.5, other)
    assert place is not None
    assert (place.ahead, place.estimate) == (0, pytest.approx(0.5 * 10.0 / 2))
    places = made.waiting(11.5, "t", "a")
    assert [(p.id, p.tag) for p in places] == [(number, f"a{n}") for n, number in enumerate(own)]
    assert [p.ahead for p in places] == [1, 2, 3]
    assert made.position(10.0, running[1]) is None
    assert made.waiting(10.0, "t", "nobody") == []


def test_who_goes_before_older_ones_of_its_own_party_is_told_so() -> None:
    """A party's classes go in their own order: k own requests before it are those that will be."""
    made = core()
    granted(made, 0.0)
    batch = [queued(made, 0.0, class_offset=-20.0) for _ in range(3)]
    answer = submit(made, 0.0, class_offset=20.0)
    assert isinstance(answer, Queued)
    assert answer.rank == 0
    assert [at.ahead for at in made.waiting(0.0, "t", "u")] == [1, 2, 3, 0]
    ahead = [at.ahead for number in (*batch, answer.id) if (at := made.position(0.0, number)) is not None]
    assert ahead == [1, 2, 3, 0]


def test_what_is_told_of_a_party_counts_its_grants_and_their_waits() -> None:
    """Of a tenant: those of its users together."""
    made = core()
    running = granted(made, 0.0, "a")
    queued(made, 1.0, "a")
    queued(made, 2.0, "b")
    for now in (4.0, 8.0):
        (running,) = grants(made.release(now, running, 100.0))
    told = made.stats(8.0)
    assert {party.user: (party.grants, party.waited) for party in told.parties} == {"a": (2, 7.0), "b": (1, 2.0)}
    assert [(tenant.grants, tenant.waited) for tenant in told.tenants] == [(3, 9.0)]
    assert told.granted == 3


def test_drain_refuses_all_that_wait_and_all_that_come() -> None:
    made = core()
    first = granted(made, 0.0)
    waiting = [queued(made, 0.25, user) for user in "abc"]
    decided = made.close(1.0)
    assert refusals(decided) == dict.fromkeys(waiting, Refusal.DRAINING)
    assert [decision.waited for decision in decided if isinstance(decision, Refused)] == [0.75] * 3
    answer = submit(made, 1.0)
    assert isinstance(answer, Refused)
    assert answer.reason is Refusal.DRAINING
    assert not made.release(2.0, first, 1.0)
    assert made.queued == made.running == 0
    assert made.next_deadline() == inf


# -- gates and pools ---------------------------------------------------------------------------------------------


def test_a_grant_takes_the_preferred_gate_then_the_freest() -> None:
    made = Core(now=0.0)
    for gate, slots in (("cold", 9), ("warm", 2), ("hot", 3)):
        made.set_gate(0.0, gate, slots)
    made.set_pool(0.0, "m", [("cold", 1), ("warm", 0), ("hot", 0)])
    chosen = []
    for _ in range(6):
        answer = submit(made, 0.0)
        assert isinstance(answer, Granted)
        chosen.append(answer.gate)
    assert chosen == ["hot", "warm", "hot", "warm", "hot", "cold"]


def test_a_ticket_avoids_the_gates_that_failed_it() -> None:
    """R5: also where they are preferred and free, and another is busy; not where no other has slots."""
    made = Core(now=0.0)
    for gate in ("a", "b", "c"):
        made.set_gate(0.0, gate, 1)
    made.set_pool(0.0, "m", [("a", 0), ("b", 0), ("c", 1)])
    first = submit(made, 0.0, avoid=("a",))
    second = submit(made, 0.0, avoid=("a", "b"))
    assert isinstance(first, Granted)
    assert isinstance(second, Granted)
    assert (first.gate, second.gate) == ("b", "c")
    waiting = queued(made, 0.0, "w", avoid=("a",))
    assert grants(made.release(0.0, second.id, 1.0)) == [waiting]
    made.set_gate(0.0, "b", 0)
    stuck = queued(made, 0.0, "x", avoid=("a",))
    assert grants(made.set_gate(0.0, "c", 0)) == [stuck]
    last = queued(made, 0.0, "y", avoid=("b",))
    assert grants(made.release(0.0, stuck, 1.0)) == [last]
    assert isinstance(submit(made, 0.0, "z", avoid=("a", "b", "c")), Queued)


def test_who_avoids_a_gate_keeps_it_from_nobody_behind_it() -> None:
    """R5: it waits though a gate is free; its party's next request, which may go there, brings both on their way."""
    made = Core(now=0.0)
    for gate, slots in (("a", 2), ("b", 1)):
        made.set_gate(0.0, gate, slots)
    made.set_pool(0.0, "m", [("b", 0), ("a", 1)])
    granted(made, 0.0, "x")
    first = queued(made, 0.0, "u", avoid=("a",))
    answer, others = made.submit(0.0, ticket("u"))
    assert isinstance(answer, Queued)
    assert grants(others) == [first, answer.id]
    assert (made.queued, made.running) == (0, 3)


def test_a_tenant_pays_by_waiting_for_what_it_is_given_while_one_of_it_waits() -> None:
    """Section 5.1: since = max(arrival, paid), also where a slot goes past one who avoids it."""
    made, now = core(usage_weight=0.0), 0.0
    made.set_gate(0.0, "h", 1)
    made.set_pool(0.0, "m", [("g", 0), ("h", 1)])
    for now, user, cost in [(20.0 * n, "x", 100.0) for n in range(20)] + [(400.0, "dear", 1000.0)]:
        made.release(now + 10.0, granted(made, now, user, tenant=user), cost)
    now += 10.0
    other = granted(made, now, "y", tenant="y")
    busy = granted(made, now, "x", tenant="x")
    made.release(now, other, 0.0)
    queued(made, now, "retry", tenant="dear", avoid=("g",))
    granted(made, now, tenant="dear")
    rival = queued(made, now + 0.1, "rival", tenant="rival")
    assert grants(made.release(now + 0.2, busy, 100.0)) == [rival]


def test_a_gate_on_trial_takes_one_request_beside_those_of_before() -> None:
    """R2: a stream of before, however long it runs, keeps no probe away; what it holds counts again after the trial."""
    made = core(slots=3)
    first, second = (granted(made, 0.0) for _ in range(2))
    made.set_gate(0.0, "g", 0)
    waiting = [queued(made, 0.0) for _ in range(5)]
    assert grants(made.set_gate(1.0, "g", 1, trial=True)) == waiting[:1]
    assert not grants(made.set_gate(1.0, "g", 1, trial=True))
    assert not grants(made.release(1.0, first, 1.0))
    assert grants(made.release(1.0, waiting[0], 1.0)) == waiting[1:2]
    assert not grants(made.set_gate(1.0, "g", 1))
    assert grants(made.set_gate(1.0, "g", 3)) == waiting[2:3]
    assert grants(made.release(1.0, second, 1.0)) == waiting[3:4]


def test_lowering_slots_kills_nothing_and_a_returning_gate_keeps_its_count() -> None:
    made = core(slots=3)
    running = [granted(made, 0.0) for _ in range(3)]
    waiting = [queued(made, 0.0) for _ in range(3)]
    assert not made.set_gate(0.0, "g", 1)
    assert made.running == 3
    assert not made.release(1.0, running[0], 1.0)
    made.remove_gate(1.0, "g")
    made.remove_gate(1.0, "unknown")
    assert not made.set_gate(1.0, "g", 2)
    assert made.fleet.gates["g"].running == 2
    assert not made.set_pool(1.0, "m", [("g", 0)])
    assert grants(made.release(2.0, running[1], 1.0)) == waiting[:1]


def test_pools_share_a_gate_and_the_best_head_of_all_goes_first() -> None:
    made = core()
    made.set_pool(0.0, "n", [("g", 0)])
    first = granted(made, 0.0, "heavy", cost=5000.0)
    queued(made, 0.0, "heavy")
    answer, _ = made.submit(1.0, Ticket("n", "t", "light", cost=10.0))
    assert grants(made.release(2.0, first, 5000.0)) == [answer.id]


def test_of_the_heads_of_one_tenant_its_users_decide_though_another_tenant_waits() -> None:
    """The tenant is chosen first; which of its models goes next is a matter between its users."""
    made = core()
    made.set_pool(0.0, "n", [("g", 0)])
    made.set_pool(0.0, "o", [("g", 0)])
    running = granted(made, 0.0, "heavy", cost=100_000.0)
    queued(made, 0.0, "heavy", cost=1.0)
    answer, _ = made.submit(1.0, Ticket("n", "t", "light", cost=1.0))
    assert isinstance(answer, Queued)
    other, _ = made.submit(1.0, Ticket("o", "rival", "r", cost=1.0))
    assert isinstance(other, Queued)
    made.fleet.ledger.tenants["rival"].grown = 1e9  # the rival is last whatever happens
    assert grants(made.release(1.0, running, 100_000.0)) == [answer.id]


def test_a_removed_pool_refuses_its_waiters_and_may_come_back() -> None:
    made = core()
    first, second = granted(made, 0.0), queued(made, 0.0)
    assert refusals(made.remove_pool(0.0, "m")) == {second: Refusal.UNKNOWN_POOL}
    assert isinstance(submit(made, 0.0), Refused)
    made.set_pool(0.0, "m", [("g", 0)])
    third = queued(made, 0.0)
    assert grants(made.release(1.0, first, 1.0)) == [third]
    assert not made.remove_pool(1.0, "unknown")


def test_a_pool_must_name_known_gates_once() -> None:
    made = core()
    with pytest.raises(KeyError):
        made.set_pool(0.0, "m", [("g", 0), ("nowhere", 0)])
    with pytest.raises(ValueError, match="twice"):
        made.set_pool(0.0, "m", [("g", 0), ("g", 1)])
    granted(made, 0.0)


# -- settings at runtime -----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_settings_change_under_load_without_losing_anybody(seed: int) -> None:
    """Atomic at runtime, `levels` included: everybody still waits and is served, counts stay right."""
    rng = random.Random(seed)
    made, now = core(slots=2), 0.0
    running = [granted(made, now) for _ in range(2)]
    waiting = {queued(made, now, f"u{n % 5}", tenant=f"t{n % 3}") for n in range(20)}
    while running:
        now += 1.0
        changed = Settings(
            levels=rng.choice([1, 2]), half_life=rng.choice([10.0, 300.0]), rounds=rng.choice([0.5, 4.0]),
            wait_weight=rng.random(), credit=rng.choice([None, 1.0]),
        )  # fmt: skip
        assert not made.set_settings(now, changed), "nobody is decided by it"
        check_tree(made.fleet.pools["m"])
        new = grants(made.release(now, running.pop(0), 100.0))
        assert waiting.issuperset(new)
        waiting.difference_update(new)
        running += new
    assert not waiting
    assert sum(party.usage for party in made.stats(now).parties) == pytest.approx(
        sum(tenant.usage for tenant in made.stats(now).tenants)
    )
    for later in range(1, 10):
        made.tick(now + later * 1e5)
    assert made.stats(now + 1e6).tenants == made.stats(now + 1e6).parties == (), "who is idle is forgotten"


def test_without_any_weight_no_tenant_keeps_the_turns_to_itself() -> None:
    """Invariant 5: among equals about first come, first served, also while one always has somebody waiting."""
    made = core(wait_weight=0.0, usage_weight=0.0)
    running = granted(made, 0.0, "a", tenant="t1")
    queued(made, 0.0, "a", tenant="t1", timeout=inf)
    other = queued(made, 0.0, "b", tenant="t2", timeout=inf)
    order: list[int] = []
    for now in range(1, 5):
        queued(made, now, "a", tenant="t1", timeout=inf)
        order += grants(made.release(now, running, 100.0))
        running = order[-1]
    assert order.index(other) <= 2


def test_a_tenant_competes_with_the_highest_class_that_is_left() -> None:
    made = core()
    running = granted(made, 0.0, "x", tenant="x", cost=1.0)
    high, middle, low = (queued(made, 0.0, f"u{n}", cost=1.0, class_offset=n) for n in (80.0, 40.0, -80.0))
    rival = queued(made, 0.0, "v", tenant="s", cost=1.0, class_offset=-40.0)
    order = []
    for _ in range(4):
        (running,) = grants(made.release(1.0, running, 1.0))
        order.append(running)
    assert order == [high, middle, rival, low]


def test_classes_shift_the_order_within_and_between_tenants() -> None:
    made = core()
    first = granted(made, 0.0, "x")
    batch = queued(made, 0.0, "a", class_offset=-20.0)
    normal = queued(made, 0.0, "b", tenant="t2")
    urgent = queued(made, 0.0, "a", class_offset=20.0)
    order, number = [], first
    for _ in range(3):
        number = grants(made.release(0.0, number, 100.0))[0]
        order.append(number)
    assert order == [urgent, normal, batch]


def test_an_urgent_request_that_is_given_up_leaves_its_tenant_no_head_start() -> None:
    """The tenant's class is that of who still waits, whatever its rank was made with."""
    made, now = core(), 0.0
    for now in (10.0, 20.0, 30.0, 40.0):  # what is learned from the fifth renews no ranks
        made.release(now, granted(made, now - 10.0, "past", tenant="past"), 100.0)
    first = granted(made, now, "x", tenant="x")
    normal = queued(made, now, "b", tenant="t2")
    queued(made, now, "c", class_offset=-20.0)
    urgent = queued(made, now, "a", class_offset=20.0)
    made.cancel(now, urgent)
    assert grants(made.release(now + 10.0, first, 100.0)) == [normal]


# -- reservations ------------------------------------------------------------------------------------------------


def window(mode: str = "exclusive", start: float = 100.0, end: float = 200.0, **values: object) -> Window:
    return msgspec.convert(
        {"id": "w", "tenant": "holder", "start": start, "end": end, "mode": mode, **values}, type=Window, strict=False
    )


def learned(slots: int = 1) -> Core:
    """A core that knows S = 10 s and C = 100."""
    made = core(slots)
    number = granted(made, 0.0, "past")
    made.release(10.0, number, 100.0)
    return made


def test_exclusive_nobody_else_starts_inside_or_would_end_too_late() -> None:
    """Invariant 11."""
    made = learned()
    made.set_reservations(10.0, [window()])
    first = granted(made, 80.0)
    other, holder = queued(made, 85.0, timeout=1000.0), queued(made, 86.0, "h", tenant="holder", timeout=1000.0)
    # Ends at 95, ten seconds would be too long for anybody else; the holder has waited less and goes.
    assert grants(made.release(95.0, first, 100.0)) == [holder]
    assert not made.release(150.0, holder, 100.0), "the slot stays free: the window is the holder's"
    again = granted(made, 160.0, "h", tenant="holder")
    assert not made.release(170.0, again, 100.0)
    assert 170.0 < made.next_deadline() <= 200.0
    assert not made.tick(199.9)
    assert made.next_deadline() == 200.0
    assert grants(made.tick(200.0)) == [other]


def test_a_short_request_of_others_may_fill_the_time_before_the_window() -> None:
    made = learned()
    made.set_reservations(10.0, [window()])
    granted(made, 95.0, cost=40.0)


@pytest.mark.parametrize("given_up", [True, False])
def test_a_short_request_behind_one_too_long_for_the_time_left_goes_when_that_one_is_gone(given_up: bool) -> None:
    """Invariant 1: no idle slot while an eligible request queues."""
    made = learned()
    made.set_reservations(10.0, [window()])
    first = granted(made, 80.0)
    long = queued(made, 85.0, cost=1000.0, timeout=8.0)
    short = queued(made, 85.0, cost=20.0)
    assert not grants(made.release(91.0, first, 100.0))
    assert grants(made.cancel(92.0, long) if given_up else made.tick(93.0)) == [short]


def test_others_are_refused_when_the_window_outlasts_their_patience() -> None:
    made = learned()
    made.set_reservations(10.0, [window()])
    made.tick(100.0)
    answer = submit(made, 110.0, timeout=20.0)
    assert isinstance(answer, Refused)
    assert answer.reason is Refusal.RESERVED
    assert 90.0 <= answer.estimate <= 110.0
    assert answer.retry_after >= 90.0
    patient = queued(made, 110.0, timeout=95.0)
    at = made.position(110.0, patient)
    assert at is not None
    assert at.estimate >= 90.0, "who waits for the end of the window is told so"
    late = queued(made, 120.0, "late", timeout=500.0)
    made.set_reservations(150.0, [window(end=400.0)])
    assert refusals(made.tick(205.0)) == {patient: Refusal.RESERVED}
    assert grants(made.set_reservations(210.0, [])) == [late], "cancelling the window frees everybody"


def test_preferred_lets_the_holder_first_and_others_have_the_rest() -> None:
    made = learned()
    made.set_reservations(10.0, [window("preferred")])
    first = granted(made, 110.0)
    other, holder = queued(made, 110.0, "b"), queued(made, 111.0, "h", tenant="holder")
    assert grants(made.release(112.0, first, 100.0)) == [holder]
    assert grants(made.release(113.0, holder, 100.0)) == [other]


def test_usage_inside_the_paid_window_does_not_count() -> None:
    made = learned()
    made.set_reservations(10.0, [window(), window(id="v", tenant="half", usage_factor=0.5, mode="preferred")])
    made.release(120.0, granted(made, 110.0, "h", tenant="holder"), 500.0)
    usage = {party.tenant: party.usage for party in made.stats(120.0).parties}
    assert usage["holder"] == 0.0
    made.set_reservations(120.0, [window(id="v", tenant="half", usage_factor=0.5, mode="preferred")])
    made.release(130.0, granted(made, 130.0, "x", tenant="half"), 500.0)
    usage = {party.tenant: party.usage for party in made.stats(130.0).parties}
    assert usage["half"] == pytest.approx(250.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["exclusive", "preferred"]))
def test_before_and_after_a_window_the_order_is_that_without_it(seed: int, mode: str) -> None:
    """Invariant 11: a window of somebody who is not there, over and cancelled, leaves no trace in the order."""
    orders = []
    for windows in ([], [window(mode, start=50.0, end=60.0)]):
        rng = random.Random(seed)
        made = learned(slots=2)
        running = [granted(made, 11.0, "x"), granted(made, 11.0, "y")]
        for n in range(30):
            queued(made, 11.0 + n * 0.01, f"u{n % 7}", timeout=1e6, cost=rng.expovariate(0.01))
        made.set_reservations(12.0, windows)
        made.tick(55.0)
        if seed % 2:
            made.set_reservations(56.0, [])
        made.tick(70.0)
        order, now = [], 70.0
        while running:
            now += rng.random()
            new = grants(made.release(now, running.pop(0), 50.0 + 100.0 * rng.random()))
            order += new
            running += new
        orders.append(order)
    assert orders[0] == orders[1]
    assert len(orders[0]) == 30


def parting(parties: int) -> float:
    """What the end of an exclusive window costs that held up so many parties, each."""
    made = core(global_cap=10**6)
    used = [SavedParty("t", f"u{n}", float(parties - n)) for n in range(parties)]  # the last to come go first
    made.import_usage(0.0, Saved(tuple(used), (), ()))
    first = granted(made, 0.0)
    for n in range(parties):
        queued(made, 0.0, f"u{n}", timeout=inf)
    made.set_reservations(0.0, [window(start=1.0)])
    made.tick(1.0)
    assert not made.release(2.0, first, 100.0)
    return seconds(lambda: made.tick(200.0)) / parties


def test_a_window_that_held_up_a_crowd_ends_as_fast_as_another() -> None:
    assert parting(24_000) < 6 * min(parting(1_000) for _ in range(3))


def defining(pools: int) -> float:
    """What it costs to tell of every model again who serves it, as each change of an engine does; each."""
    made = core()
    made.set_reservations(0.0, [window(start=1.0)])

    def tell() -> None:
        for number in range(pools):
            made.set_pool(0.0, f"m{number}", [("g", 0)])

    tell()
    return seconds(tell) / pools


def test_a_pool_among_many_is_told_as_fast_as_among_few() -> None:
    """All are told in one turn of the loop: no stream moves meanwhile."""
    assert defining(2_000) < 6 * min(defining(100) for _ in range(3))


@pytest.mark.parametrize(
    "values", [{"start": 5.0, "end": 5.0}, {"end": inf}, {"start": nan}, {"usage_factor": 2.0}, {"usage_factor": nan}]
)
def test_windows_that_make_no_sense_are_errors(values: dict[str, float]) -> None:
    with pytest.raises((ValueError, msgspec.ValidationError)):
        Window(**{"id": "w", "tenant": "t", "start": 1.0, "end": 2.0, **values})  # type: ignore[arg-type]


def test_two_windows_of_one_id_are_an_error() -> None:
    with pytest.raises(ValueError, match="twice"):
        core().set_reservations(0.0, [window(), window()])


# -- restart -----------------------------------------------------------------------------------------------------


def test_an_abuser_gets_no_amnesty_from_a_restart() -> None:
    made = core(slots=4)
    for n in range(40):
        made.release(n + 1.0, granted(made, float(n), "abuser"), 1000.0)
    saved = msgspec.json.decode(msgspec.json.encode(made.export_usage(40.0)), type=Saved)
    restarted = Core(now=7.0)
    restarted.set_gate(7.0, "g", 1)
    restarted.set_pool(7.0, "m", [("g", 0)])
    restarted.import_usage(7.0, saved, age=300.0)
    before = {(p.tenant, p.user): p.usage for p in made.stats(40.0).parties}
    after = {(p.tenant, p.user): p.usage for p in restarted.stats(7.0).parties}
    assert after["t", "abuser"] == pytest.approx(before["t", "abuser"] / 2.0)
    assert restarted.stats(7.0).tenants[0].usage == pytest.approx(made.stats(40.0).tenants[0].usage / 2.0)
    first = granted(restarted, 8.0, "somebody")
    abuser, light = queued(restarted, 8.0, "abuser"), queued(restarted, 9.0, "light")
    assert grants(restarted.release(9.0, first, 100.0)) == [light]
    assert restarted.position(9.0, abuser) is not None
    assert restarted.stats(9.0).pools[0].mean_cost > 0.0


@pytest.mark.parametrize("levels", [1, 2])
def test_no_tenant_gets_an_amnesty_from_a_restart_with_other_levels(levels: int) -> None:
    before = core(slots=2, levels=3 - levels)
    for user in "ab":
        before.release(0.0, granted(before, 0.0, user), 500.0)
    made = core(levels=levels)
    made.import_usage(0.0, before.export_usage(0.0))
    assert [tenant.usage for tenant in made.stats(0.0).tenants] == [1000.0]


def test_what_was_learned_of_a_model_waits_until_the_model_is_found() -> None:
    """A gateway takes back what it knew before its engines were looked at."""
    saved = learned().export_usage(10.0)
    made = Core(Settings(), 0.0)
    made.import_usage(0.0, saved)
    made.set_gate(1.0, "g", 1)
    made.set_pool(1.0, "m", [("g", 0)])
    assert made.stats(1.0).pools[0].scale == 8 * 1 * 100.0
    assert made.fleet.pools["m"].averages.expected(50.0) == 5.0
    made.release(3.0, granted(made, 2.0), 7.0)
    made.set_pool(4.0, "m", [("g", 1)])
    assert made.stats(4.0).pools[0].scale == 8 * 1 * 7.0, "what this run saw holds"


@pytest.mark.parametrize("usage", [nan, inf, -1.0])
def test_bad_saved_usage_is_an_error_and_takes_nothing_over(usage: float) -> None:
    made = core()
    granted(made, 0.0, cost=100.0)
    saved = made.export_usage(0.0)
    bad = msgspec.structs.replace(saved, users=(*saved.users, msgspec.structs.replace(saved.users[0], usage=usage)))
    fresh = core()
    with pytest.raises(ValueError, match="t/u"):
        fresh.import_usage(0.0, bad)
    assert fresh.stats(0.0).parties == ()


def test_idle_parties_are_forgotten_and_memory_is_bounded_by_active_ones() -> None:
    made = core()
    made.release(0.5, granted(made, 0.0, "busy"), 1000.0)
    for n in range(1000):
        made.release(1.0 + n * 0.01, granted(made, 1.0 + n * 0.01, f"u{n}"), 100.0)
    assert len(made.stats(12.0).parties) == 1001
    for n in range(200):
        made.tick(3600.0 + n * 30.0)
    assert made.stats(1e4).parties == ()
    assert made.stats(1e4).tenants == ()
    assert made.fleet.pools["m"].nodes == {}


def test_a_look_after_a_long_silence_finds_nothing_of_what_was_used() -> None:
    """Nothing happens by itself in an idle scheduler: a week of growth is more than a double holds."""
    week = 7 * 86_400.0
    made = core()
    made.release(2.0, granted(made, 1.0), 1000.0)
    assert made.stats(week).parties[0].usage == pytest.approx(0.0, abs=1e-9)
    fresh = core()
    saved = fresh.export_usage(week)
    made.import_usage(week, msgspec.structs.replace(saved, users=(SavedParty("t", "u", 1000.0),)))
    assert made.stats(week).parties[0].usage == pytest.approx(1000.0)
    made.release(week + 1.0, granted(made, week), 100.0)
    assert made.export_usage(week + 1.0).users[0].usage == pytest.approx(1100.0, rel=0.01)


def test_rare_landmarks_outlast_no_half_life() -> None:
    made = core(half_life=1.0, landmark=86_400.0)
    made.release(2.0, granted(made, 1.0), 1e12)
    late = granted(made, 50_000.0, cost=500.0)
    assert made.stats(50_000.0).parties[0].usage == pytest.approx(500.0)
    made.release(86_000.0, late, 100.0)
    assert made.stats(86_000.0).parties[0].usage == pytest.approx(0.0, abs=1e-9)


# -- without slots of its own --------------------------------------------------------------------------------------


def test_the_synchronous_form_is_tolerant() -> None:
    made = SyncScheduler(user_cap=2)
    assert made.next("m", 0.0) is None
    handles = [made.enqueue(("t", "u", "k"), "m", tokens, 0.0) for tokens in (nan, -1.0, 1e30)]
    assert [handle is None for handle in handles] == [False, False, True]
    first = made.next("m", 1.0)
    assert first is handles[0]
    made.finish(first, nan, 0.5)
    made.finish(first, 10.0, 2.0)
    assert handles[1] is not None
    made.cancel(handles[1], 2.0)
    made.cancel(handles[1], 2.0)
    assert made.next("m", 2.0) is None
    assert made.waiting("m") == made.waiting("unknown") == 0
    timeless = made.enqueue(("t", "u", "k"), "m", 1.0, nan)
    assert timeless is not None
    assert timeless.arrival == 2.0


def test_the_slots_of_each_model_are_its_own() -> None:
    """Told, or the most that ever ran; another model's appearance changes nothing."""
    made = SyncScheduler()
    made.set_slots("told", 8, 0.0)
    for n in range(3):
        made.enqueue(("t", f"u{n}", ""), "seen", 10.0, 0.0)
        made.next("seen", 0.0)
    made.enqueue(("t", "u", ""), "new", 10.0, 0.0)
    assert {name: pool.slots for name, pool in made._pools.items()} == {"told": 8.0, "seen": 3.0, "new": 1.0}


def test_a_request_that_is_over_ends_once() -> None:
    """Neither a second end nor a late charge or cancellation gives a slot or a cost back again."""
    made = SyncScheduler()
    made.enqueue(("t", "u", ""), "m", 10.0, 0.0)
    handle = made.next("m", 0.0)
    assert handle is not None
    made.finish(handle, 30.0, 1.0)
    usage, running = handle.node.account.grown, handle.pool.running
    made.finish(handle, 10.0, 1.0)
    made.charge(handle, 10.0, 1.0)
    made.cancel(handle, 1.0)
    assert (handle.node.account.grown, handle.pool.running) == (usage, running)
    assert running == 0
