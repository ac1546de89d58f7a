"""The circuit breaker of one backend: three states, two kinds of evidence. Pure: time is an argument.

Requests (passive evidence) and looks (discovery, active evidence) are counted apart: a health endpoint that answers
must not excuse an engine that fails every request, and an idle backend that died must be ejected without a victim. One
that serves is alive, however late its looks come: a look that failed since a request was served does not count.
What opened the breaker must be disproved: one opened by looks closes with the next good look; one opened by requests
lets, after `eject_for` and a good look, exactly one request through, and that request decides.

Must not know what a backend, a slot or a request is.
"""

from enum import StrEnum


class State(StrEnum):
    """`OPEN` means ejected: nothing is sent."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Counts failures in a row. Every method returns whether the state changed; `now` is in seconds of any clock."""

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
        self.served = False  # a request, since the last look
        self.until = 0.0  # meaningful while OPEN: not before this moment is a probe let through
        self.ejections = 0
        self._by_requests = False

    def __repr__(self) -> str:
        return f"<Breaker {self.state} failures={self.failures} misses={self.misses} until={self.until}>"

    def succeeded(self, *, served: bool = True) -> bool:
        """A request was answered. While OPEN it says nothing: it was sent before the ejection. `served`: the answer is
        no error, which what stands before a dead engine could give too."""
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
        """A request failed for the backend's fault."""
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
