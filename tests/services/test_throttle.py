"""Failed authentications of one address (K4)."""

import pytest

from gateway.errors import RateLimited
from gateway.services.throttle import FailureThrottle, network_of


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
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"),
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
