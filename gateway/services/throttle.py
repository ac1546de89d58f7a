"""How many failed authentications one address may make (K4), and how fast all are refused. Pure: the caller gives the
time.

A bucket per address, or per /64 for IPv6 since one site owns that many addresses. Failures that were under way
together may overdraw it: the debt is paid off before the address may fail again, so the long-run rate holds whatever
the parallelism.

A refusal costs an answer and a row of the audit trail, so a flood of them could fill the core that everyone's requests
need, from addresses without number. `RefusalPace` spreads them: who floods waits for answers, a connection asks again
only after its answer, and the number of connections is bounded.
"""

import ipaddress

from gateway.errors import RateLimited
from gateway.services import bounded

_DEBT_MINUTES = 5.0
"""An overdrawn address waits at most this long for its next attempt."""
_HOSTS = 65_536
"""Addresses remembered; the one that failed first is forgotten first."""


def network_of(ip: str) -> str:
    """The unit of accounting: an IPv4 address (also when written as mapped IPv6), or an IPv6 /64."""
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
        """Raise RateLimited while the network has no failure left."""
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
    """When each refusal may be told, whatever their number: `per_second` after a burst, each with a turn of its own so
    that they never hold the loop together; none waits longer than `longest` seconds.

    The virtual scheduling form of the generic cell rate algorithm (ITU-T I.371, annex A)."""

    def __init__(self, per_second: float = 250.0, burst: int = 50, longest: float = 8.0) -> None:
        self._gap = 1.0 / per_second
        self._ahead = burst * self._gap
        self._longest = longest
        self._next = 0.0  # when the next one would be due if none came in a burst

    def wait(self, now: float) -> float:
        """Seconds that the refusal of now waits for its turn."""
        due = max(self._next, now)
        wait = max(0.0, due - now - self._ahead)
        if wait >= self._longest:  # the queue is full: those behind it share its end
            return self._longest
        self._next = due + self._gap
        return wait
