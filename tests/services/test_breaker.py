"""The breaker's states, one transition at a time, on a clock of the test's own."""

from gateway.services.breaker import Breaker, State


def opened_by_requests(now: float = 0.0) -> Breaker:
    breaker = Breaker(eject_after=3, eject_for=10.0)
    assert [breaker.failed(now) for _ in range(3)] == [False, False, True]
    return breaker


def test_failures_in_a_row_open_it_and_a_success_starts_the_count_again() -> None:
    """R2"""
    breaker = Breaker(eject_after=3, eject_for=10.0)
    for _ in range(5):
        breaker.failed(0.0)
        breaker.failed(0.0)
        assert breaker.succeeded() is False
    assert breaker.state is State.CLOSED
    breaker.failed(0.0)
    breaker.failed(0.0)
    assert breaker.failed(0.0) is True
    assert (breaker.state, breaker.until, breaker.ejections) == (State.OPEN, 10.0, 1)


def test_good_looks_do_not_excuse_failing_requests() -> None:
    """R2: a health endpoint that answers while every request fails."""
    breaker = Breaker(eject_after=3, eject_for=10.0)
    for _ in range(3):
        breaker.seen(0.0)
        breaker.failed(0.0)
    assert breaker.state is State.OPEN
    assert breaker.seen(9.9) is False
    assert breaker.state is State.OPEN


def test_after_its_time_a_good_look_lets_one_probe_decide() -> None:
    """R2"""
    breaker = opened_by_requests()
    assert breaker.seen(10.0) is True
    assert breaker.state is State.HALF_OPEN
    assert breaker.failed(11.0) is True
    assert (breaker.state, breaker.until) == (State.OPEN, 21.0)
    assert breaker.seen(20.0) is False
    assert breaker.seen(21.0) is True
    assert breaker.succeeded() is True
    assert (breaker.state, breaker.failures) == (State.CLOSED, 0)


def test_answers_to_requests_of_before_the_ejection_say_nothing() -> None:
    """R2"""
    breaker = opened_by_requests()
    assert breaker.succeeded() is False
    assert breaker.failed(5.0) is False
    assert (breaker.state, breaker.until) == (State.OPEN, 10.0)


def test_a_dead_backend_gets_no_probe() -> None:
    """R2: while looks fail no client's request is spent on finding out."""
    breaker = opened_by_requests()
    assert breaker.missed(10.0) is False
    assert breaker.until == 20.0
    assert breaker.seen(19.0) is False
    assert breaker.seen(20.0) is True
    assert breaker.missed(21.0) is True
    assert breaker.state is State.OPEN


def test_what_looks_opened_a_look_closes() -> None:
    """R2: an idle backend that was restarted needs no probe request."""
    breaker = Breaker(eject_after=2, eject_for=10.0)
    assert [breaker.missed(0.0), breaker.missed(1.0)] == [False, True]
    assert breaker.state is State.OPEN
    assert breaker.seen(2.0) is True
    assert breaker.state is State.CLOSED
    assert breaker.missed(3.0) is False


def test_a_look_that_failed_since_a_request_was_served_does_not_count() -> None:
    """R2: once for each look, and an error is no service."""
    breaker = Breaker(eject_after=2, eject_for=10.0)
    for _ in range(5):
        breaker.succeeded()
        assert breaker.missed(0.0) is False
        assert breaker.missed(0.0) is False
        assert breaker.misses == 1
    breaker.succeeded(served=False)
    assert breaker.missed(0.0) is True
    assert breaker.seen(1.0) is True
    breaker.succeeded()
    assert breaker.seen(2.0) is False
    assert [breaker.missed(3.0), breaker.missed(4.0)] == [False, True], "served before the last look"
    breaker.succeeded()
    assert breaker.served is False, "an ejected one serves nothing"
