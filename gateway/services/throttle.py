"""How many failed authentications one address may make (K4), and how fast refusals are sent. Pure: the caller passes
the time.

There is a bucket per IPv4 address, and per /64 for IPv6, because one site owns that many addresses. Concurrent failures
may overdraw a bucket. The debt must be paid off before the address may fail again, so the long-run rate holds at any
concurrency.

A refusal costs an answer and an audit row, so a flood of them, from any number of addresses, could use up the processor
that other requests need. `RefusalPace` spreads them out: a flooding client waits for its answers, a connection asks
again only after its answer, and the number of connections is limited.
"""

import ipaddress

from gateway.errors import RateLimited
from gateway.services import bounded

_DEBT_MINUTES = 5.0
"""An overdrawn address waits at most this long for its next attempt."""
_HOSTS = 65_536
"""Addresses remembered; the one whose first failure is oldest is dropped first."""


def network_of(ip: str) -> str:
    """The unit of counting: an IPv4 address (also in its IPv6-mapped form), or an IPv6 /64."""
    if ":" not in ip:
        return ip
    try:
        address = ipaddress.IPv6Address(ip.partition("%")[0])
    except ValueError:
        return ip
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{int(address) >> 64:x}::/64"


class FailureThrottle:
    """Failures per minute of each network. Times are seconds of one monotonic clock."""

    def __init__(self, per_minute: int, hosts: int = _HOSTS) -> None:
        self._capacity = float(per_minute)
        self._rate = per_minute / 60.0
        self._hosts = hosts
        self._buckets: dict[str, tuple[float, float]] = {}  # network -> (failures left, as of)

    def check(self, ip: str, now: float) -> None:
        """Raise RateLimited if the network has no failure left."""
        if not self._buckets:
            return
        left = self._left(network_of(ip), now)
        if left < 1.0:
            seconds = (1.0 - left) / self._rate
            raise RateLimited("Too many failed authentications from this address.", retry_after=seconds)

    def failed(self, ip: str, now: float) -> None:
        """Count one failure."""
        network = network_of(ip)
        left = max(self._left(network, now) - 1.0, -_DEBT_MINUTES * self._capacity)
        bounded.put(self._buckets, network, (left, now), self._hosts)

    def _left(self, network: str, now: float) -> float:
        left, at = self._buckets.get(network, (self._capacity, now))
        return min(self._capacity, left + (now - at) * self._rate)

    def __len__(self) -> int:
        return len(self._buckets)


class RefusalPace:
    """Schedules refusals, however many there are: `per_second` after a burst, each at its own time so that they do not
    block the loop together; none waits longer than `longest` seconds.

    Uses the virtual scheduling form of the generic cell rate algorithm (ITU-T I.371, annex A).
    """

    def __init__(self, per_second: float = 250.0, burst: int = 50, longest: float = 8.0) -> None:
        self._gap = 1.0 / per_second
        self._ahead = burst * self._gap
        self._longest = longest
        self._next = 0.0  # when the next refusal would be due without a burst allowance

    def wait(self, now: float) -> float:
        """Seconds that a refusal of this moment waits."""
        due = max(self._next, now)
        wait = max(0.0, due - now - self._ahead)
        if wait >= self._longest:  # the queue is full: later refusals are sent at its end
            return self._longest
        self._next = due + self._gap
        return wait
