"""One limit of one scope, counted here or leased from elsewhere. Pure: time is an argument, nothing waits.

Owns the arithmetic of rates and open requests, and of everything leased (budgets: `budget`) on this side of a lease;
must not know requests, databases or Redis. Every meter has the same methods: `room` (what may be taken now), `take`,
`settle` (replace what was taken by the actual use) and `refusal` (why not). A `Leased` meter holds a part of something
shared: it may spend `free` until `until`, and its `claim` and `apply` are one round with the lender.

Amounts are integers: requests, tokens, milliseconds of GPU slot time, open requests. Times are seconds of one monotonic
clock.
"""

import itertools
import math
from typing import Any, Final

from gateway.errors import GatewayError, LimitsUnavailable, RateLimited
from gateway.services.limit_facts import SharedAnswer

REQUESTS: Final = 0
TOKENS: Final = 1
GPU: Final = 2
OPEN: Final = 3
"""What a meter counts; also the index of its amount in a reservation."""
NOUNS: Final = ("requests", "tokens", "seconds of GPU time", "open requests")

EPSILON: Final = 1e-6
"""Rounding errors of rates must not refuse the last whole token."""
FRESH: Final = 0.25
"""Seconds for which "there is no more" is believed without asking again: refused callers must not flood the lender."""
HELD_RETRY: Final = 1.0
"""Seconds to wait for what running requests hold: most settle for less than they reserved."""


_claims: Final = itertools.count(1)
"""Claim numbers for open requests, each used once in this process: Redis knows their holder by process only, and would
take the claims of a meter that was forgotten and created again for old ones."""


def who(scope: str) -> str:
    """`key:ID` -> how an error message names it."""
    return f"this {scope.partition(':')[0]}"


class Bucket:
    """A rate, counted in this process: `rate` per second, filling up to `most`."""

    __slots__ = ("_at", "_level", "most", "rate", "scope", "unit")

    def __init__(self, scope: str, unit: int, per_minute: int, most: int, now: float) -> None:
        self.scope = scope
        self.unit = unit
        self.rate = per_minute / 60
        self.most = most
        self._level = float(most)
        self._at = now

    def retune(self, per_minute: int, most: int, now: float) -> None:
        """Change the limit: what was used stays used, and the time until now counts at the old rate."""
        self.room(now)
        self._level = min(self._level, most)
        self.rate, self.most = per_minute / 60, most

    def room(self, now: float) -> float:
        level = self._level + (now - self._at) * self.rate
        self._level = level = min(level, self.most)
        self._at = now
        return level + EPSILON

    def take(self, amount: int) -> None:
        self._level -= amount

    def settle(self, taken: int, used: int) -> None:
        """The level may fall below zero; later requests then wait for it."""
        self._level += taken - used

    def refusal(self, amount: int, now: float) -> GatewayError:
        return rate_refusal(self, amount, self.room(now))

    def remaining(self, now: float) -> int:
        return max(0, int(self.room(now)))

    def reset(self, now: float) -> float:
        """Seconds until it is full."""
        return max(0.0, (self.most - self.room(now)) / self.rate)

    def idle(self, now: float) -> bool:
        """Whether it could be forgotten without any effect."""
        return self.room(now) >= self.most

    def __repr__(self) -> str:
        return f"<Bucket {self.scope} {NOUNS[self.unit]} {self._level:.1f}/{self.most}>"


class Gauge:
    """Open requests, counted in this process."""

    __slots__ = ("held", "most", "scope", "unit")

    def __init__(self, scope: str, most: int) -> None:
        self.scope = scope
        self.unit = OPEN
        self.most = most
        self.held = 0

    def room(self, now: float) -> float:
        return self.most - self.held

    def retune(self, most: int) -> None:
        self.most = most

    def take(self, amount: int) -> None:
        self.held += amount

    def settle(self, taken: int, used: int) -> None:
        self.held -= taken

    def refusal(self, amount: int, now: float) -> GatewayError:
        return open_refusal(self.scope, self.most)

    def idle(self, now: float) -> bool:
        return self.held == 0

    def __repr__(self) -> str:
        return f"<Gauge {self.scope} {self.held}/{self.most}>"


class Leased:
    """A part of a shared limit. `waiting` is the amount that requests wait for, `taken` what was taken since the last
    round."""

    __slots__ = ("_asked", "_needed", "answered", "due", "exhausted", "free", "held", "most", "name", "scope", "taken",
                 "unit", "until", "waiting")  # fmt: skip

    def __init__(self, scope: str, name: str, unit: int, most: int) -> None:
        self.scope = scope
        self.name = name
        self.unit = unit
        self.most = most
        self.free = 0
        self.held = 0
        self.taken = 0
        self.waiting = 0
        self.until = -math.inf
        self.answered = -math.inf
        self.due = math.inf  # when the next round is due; maintained by the lender
        self.exhausted = False  # the lender granted less than was needed
        self._asked = 0  # the part of `waiting` that the current round answers
        self._needed = 0  # what that round asked for in addition to `free`

    def room(self, now: float) -> float:
        """Below zero when the lease has ended: then not even a request that takes nothing may pass."""
        return self.free if now < self.until else -1

    def take(self, amount: int) -> None:
        self.free -= amount
        self.held += amount
        self.taken += amount

    def refused(self, now: float) -> bool:
        """Whether asking again is pointless at the moment."""
        return self.exhausted and now < self.until and now < self.answered + FRESH

    def idle(self, now: float) -> bool:
        return self.held == 0 and self.free <= 0 and not self.waiting and self.due == math.inf

    def _wanted(self) -> tuple[int, int]:
        """Begin a round -> the amount needed in addition to `free`, and the amount desired. Gives up what was not
        needed recently.

        If the lender had no more and the rest is too little for those who wait, it is given up for one round. Otherwise
        two gateways that each hold a part of the rest would keep it from each other for as long as requests come.
        """
        target = self._target()
        if not self.waiting and self.free > target:
            self.free = target
        self.taken = 0
        if self.exhausted and 0 < self.free < self.waiting:
            self.free, self._asked, self._needed = 0, self.waiting, self.waiting
            return 0, 0
        free = max(self.free, 0)
        self._asked, self._needed = self.waiting, max(0, self.waiting - free)
        return self._needed, max(self._needed, target - free)

    def _target(self) -> int:
        """How much is worth keeping free, by the use since the last round."""
        return 2 * self.taken

    def _granted(self, granted: int, until: float, now: float) -> None:
        self.waiting = max(0, self.waiting - self._asked)
        self.free += granted
        self.until = until
        self.answered = now
        self.exhausted = granted < self._needed


class SharedBucket(Leased):
    """A rate counted in Redis. Leased amounts are debited there, and credited if they are returned in time. Only use
    beyond the lease is a debt: for reservations, `free` goes below zero too."""

    __slots__ = ("_at", "_beyond", "_debt", "_rest", "rate")

    def __init__(self, scope: str, name: str, unit: int, per_minute: int, most: int) -> None:
        super().__init__(scope, name, unit, most)
        self.rate = per_minute / 60
        self._debt = 0
        self._beyond = 0  # by how much running requests that are larger than the rate exceed it
        self._rest = float(most)
        self._at = 0.0  # time of that

    def retune(self, per_minute: int, most: int, now: float) -> None:
        self._rest, self._at = self._there(now), now
        self.rate, self.most = per_minute / 60, most
        self._trim()

    def _there(self, now: float) -> float:
        """What is left in Redis, as far as is known here; below zero while a debt is paid off."""
        return min(self.most, self._rest + (now - self._at) * self.rate)

    def _trim(self) -> None:
        self.free = min(self.free, self.most)

    def take(self, amount: int) -> None:
        super().take(amount)
        self._beyond += max(0, amount - self.most)

    def settle(self, taken: int, used: int) -> None:
        self.held -= taken
        self.free += taken - used
        # The rate may have been changed since it was taken: where nothing is held, nothing exceeds it.
        self._beyond = max(0, self._beyond - max(0, taken - self.most)) if self.held else 0

    def refused(self, now: float) -> bool:
        """Also while a request larger than the rate runs: it holds more than the rate, and may not use it all."""
        return (self.free < 0 < self._beyond and now < self.until) or super().refused(now)

    def claim(self) -> tuple[Any, ...]:
        """Kind, rate, maximum, returned amount, debt, need, want. The returned amount is gone here even if the answer
        is lost, and a debt may be reported twice: both err on the safe side."""
        before = max(self.free, 0)
        need, want = self._wanted()
        self._debt = max(0, -self.free - self._beyond)
        back = before - max(self.free, 0)
        return "bucket", self.rate, self.most, back, self._debt, need, want

    def apply(self, answer: SharedAnswer, until: float, now: float) -> bool:
        self.free += self._debt
        self._rest, self._at = float(answer.rest), now
        self._granted(answer.granted, until, now)
        self._trim()
        return not (self.free or self.held or self.waiting)

    def refusal(self, amount: int, now: float) -> GatewayError:
        return rate_refusal(self, amount, self.free + self._there(now))

    def remaining(self, now: float) -> int:
        return max(0, min(self.most, int(self.free + self._there(now))))

    def reset(self, now: float) -> float:
        return max(0.0, self.most - self.free - self._there(now)) / self.rate


class SharedGauge(Leased):
    """Open requests counted in Redis. If another gateway finds none left, a place that becomes free here is handed
    over, at most one every FRESH, and not asked back for that long: every gateway gets some, and short requests rarely
    wait for a round."""

    __slots__ = ("_hand_over", "_handed", "_peak", "_unsure")

    def __init__(self, scope: str, name: str, most: int) -> None:
        super().__init__(scope, name, OPEN, most)
        self._unsure = self._hand_over = False
        self._handed = -math.inf
        self._peak = 0  # of `held` since the last round

    def retune(self, most: int) -> None:
        self.most = most
        self._trim()

    def _trim(self) -> None:
        self.free = min(self.free, max(0, self.most - self.held))

    def take(self, amount: int) -> None:
        super().take(amount)
        self._peak = max(self._peak, self.held)

    def settle(self, taken: int, used: int) -> None:
        self.held -= taken
        self.free += taken

    def _target(self) -> int:
        """However many requests ended since: to keep more than were open at once would only take them from others."""
        target, self._peak = self._peak - self.held, self.held
        return target

    def hand_over(self, now: float) -> bool:
        """Called after `settle`. Whether the lender must be told now that a place is free."""
        if not self._hand_over or now < self._handed + FRESH:
            return False
        self._hand_over, self._handed = False, now
        self.free = max(0, self.free - 1)
        return True

    def claim(self) -> tuple[Any, ...]:
        """Kind, limit, amount kept, need, want, number of the claim."""
        need, want = self._wanted()
        return "gauge", self.most, self.held + self.free, need, want, next(_claims)

    def apply(self, answer: SharedAnswer, until: float, now: float) -> bool:
        self._unsure, self._hand_over = answer.unsure, answer.sought and not answer.rest
        self._granted(answer.granted, until, now)
        self.exhausted = self.exhausted or (answer.sought and not answer.granted)
        self._trim()
        return not (self.held or self.free or self.waiting)

    def refusal(self, amount: int, now: float) -> GatewayError:
        if self._unsure:
            return LimitsUnavailable("Open requests are being recounted.", retry_after=HELD_RETRY)
        return open_refusal(self.scope, self.most)


def rate_refusal(meter: Bucket | SharedBucket, amount: int, room: float) -> RateLimited:
    """The error for more than the rate allows, with the time until it allows it."""
    wait = max(0.0, (min(amount, meter.most) - room) / meter.rate)
    what, rate = NOUNS[meter.unit], round(meter.rate * 60)
    return RateLimited(f"The rate of {who(meter.scope)} is {rate} {what} a minute.", retry_after=wait)


def open_refusal(scope: str, most: int) -> RateLimited:
    """The error for too many open requests; nobody knows when one of them will end."""
    return RateLimited(f"No more than {most} requests of {who(scope)} may be open at once.", retry_after=HELD_RETRY)


def duration(seconds: float) -> str:
    """A duration in Go's format, which OpenAI's reset fields use: `1s`, `6m0s`, `20ms`, `0s`."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    whole, rest = divmod(milliseconds, 1000)
    hours, minutes, tail = whole // 3600, whole // 60 % 60, whole % 60
    fraction = f".{rest:03d}".rstrip("0") if rest and whole < 60 else ""
    head = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{head}{tail}{fraction}s"
