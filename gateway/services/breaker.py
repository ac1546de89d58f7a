"""The circuit breaker of one backend: three states, two kinds of evidence. Pure: time is an argument.

Requests (passive evidence) and looks (active checks by discovery) are counted separately: a health endpoint that
answers must not excuse an engine that fails every request, and a dead idle backend must be ejected before it fails a
request. A backend that serves is alive, however late its looks come: a failed look does not count if a request was
served since the look before. The evidence that opened the breaker must be refuted. If looks opened it, the next good
look closes it. If requests opened it, then after `eject_for` and a good look exactly one request is let through, and
its result decides.

Must not know what a backend, a slot or a request is.
"""

from enum import StrEnum


class State(StrEnum):
    """`OPEN` means ejected: no requests are sent."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Counts consecutive failures. Every method returns whether the state changed; `now` is in seconds of any clock."""

    __slots__ = (
        "_by_requests",
        "eject_after",
        "eject_for",
        "ejections",
        "failures",
        "misses",
        "served",
        "state",
        "until",
    )

    def __init__(self, eject_after: int, eject_for: float) -> None:
        self.eject_after = eject_after
        self.eject_for = eject_for
        self.state = State.CLOSED
        self.failures = 0
        self.misses = 0
        self.served = False  # a request was served since the last look
        self.until = 0.0  # while OPEN: no probe is let through before this time
        self.ejections = 0
        self._by_requests = False

    def __repr__(self) -> str:
        return f"<Breaker {self.state} failures={self.failures} misses={self.misses} until={self.until}>"

    def succeeded(self, *, served: bool = True) -> bool:
        """A request was answered. Ignored while OPEN, since it was sent before the ejection. `served`: the answer was
        no error; a proxy in front of a dead engine could answer with an error too."""
        if self.state is State.OPEN:
            return False
        if served:
            self.served = True
        self.failures = 0
        if self.state is State.CLOSED:
            return False
        self.state = State.CLOSED
        return True

    def failed(self, now: float) -> bool:
        """A request failed, and the backend is to blame."""
        if self.state is State.OPEN:
            return False
        self.failures += 1
        if self.state is State.CLOSED and self.failures < self.eject_after:
            return False
        return self._open(now, by_requests=True)

    def seen(self, now: float) -> bool:
        """A look succeeded."""
        self.misses = 0
        self.served = False
        if self.state is not State.OPEN:
            return False
        if not self._by_requests:
            self.state = State.CLOSED
            self.failures = 0
            return True
        if now < self.until:
            return False
        self.state = State.HALF_OPEN
        return True

    def missed(self, now: float) -> bool:
        """A look failed. An open breaker stays open for another `eject_for`."""
        if self.served:
            self.served = False
            self.misses = 0
            return False
        self.misses += 1
        if self.state is State.OPEN:
            self.until = now + self.eject_for
            return False
        if self.state is State.CLOSED and self.misses < self.eject_after:
            return False
        return self._open(now, by_requests=self.state is State.HALF_OPEN)

    def _open(self, now: float, *, by_requests: bool) -> bool:
        self.state = State.OPEN
        self.served = False
        self.until = now + self.eject_for
        self.ejections += 1
        self._by_requests = by_requests
        return True
