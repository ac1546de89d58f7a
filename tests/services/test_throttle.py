"""Failed authentications of one address (K4)."""

import pytest

from gateway.errors import RateLimited
from gateway.services.throttle import FailureThrottle, RefusalPace, network_of


def fail(throttle: FailureThrottle, ip: str, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        throttle.check(ip, now)
        throttle.failed(ip, now)


def test_the_eleventh_failure_of_a_minute_is_not_heard() -> None:
    """K4"""
    throttle = FailureThrottle(10)
    fail(throttle, "192.0.2.1", 10)
    with pytest.raises(RateLimited) as refused:
        throttle.check("192.0.2.1", 0.0)
    assert refused.value.retry_after == pytest.approx(6.0)
    throttle.check("192.0.2.2", 0.0)
    throttle.check("192.0.2.1", 6.0)


@pytest.mark.parametrize(
    ("ip", "same", "other"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1", "192.0.2.2"),
        ("fe80::1%eth0", "fe80::2", "192.0.2.1"),
        ("unknown", "unknown", "192.0.2.1"),
    ],
)
def test_ipv6_counts_by_64(ip: str, same: str, other: str) -> None:
    """K4"""
    assert network_of(ip) == network_of(same) != network_of(other)
    throttle = FailureThrottle(1)
    fail(throttle, ip, 1)
    with pytest.raises(RateLimited):
        throttle.check(same, 0.0)
    throttle.check(other, 0.0)


def test_parallel_failures_are_owed_and_the_debt_is_bounded() -> None:
    """K4: what was under way together does not raise the long-run rate."""
    throttle = FailureThrottle(10)
    for _ in range(1000):
        throttle.failed("192.0.2.1", 0.0)
    with pytest.raises(RateLimited):
        throttle.check("192.0.2.1", 299.0)
    throttle.check("192.0.2.1", 310.0)


def test_the_table_is_bounded() -> None:
    throttle = FailureThrottle(10, hosts=100)
    for number in range(1000):
        throttle.failed(f"192.0.2.{number}", 0.0)
    assert len(throttle) == 100


def test_refusals_beyond_a_burst_take_turns() -> None:
    """K4"""
    pace = RefusalPace(per_second=10.0, burst=3, longest=0.45)
    assert [pace.wait(100.0) for _ in range(7)] == pytest.approx([0.0, 0.0, 0.0, 0.0, 0.1, 0.2, 0.3])
    assert [pace.wait(100.0) for _ in range(3)] == pytest.approx([0.4, 0.45, 0.45]), "the queue has an end"
    assert pace.wait(100.2) == pytest.approx(0.3), "those at its end have not made it longer"
    assert pace.wait(200.0) == 0.0
    assert [pace.wait(300.0) for _ in range(5)][3:] == pytest.approx([0.0, 0.1]), "a pause earns one burst, no more"


def test_a_flood_is_refused_at_the_pace() -> None:
    """K4: whoever asks again as soon as they were refused, from many connections, gets so many answers a second."""
    pace, now, told = RefusalPace(per_second=500.0, burst=50, longest=4.0), 0.0, 0
    waiting = [pace.wait(now) for _ in range(1500)]
    while (now := min(waiting)) < 10.0:
        told += 1
        waiting.remove(now)
        waiting.append(now + pace.wait(now))
    assert told == pytest.approx(5000 + 50, abs=5)
