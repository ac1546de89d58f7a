"""When a lender is asked; the clock is the test's own, and who is asked answers at once."""

import asyncio
import math
from collections.abc import Callable, Sequence

from gateway.services.budget import Budget
from gateway.services.lender import ROUND_METERS, Lender
from gateway.services.meters import TOKENS
from gateway.store.limits import Standing
from tests.services.keyring import Clock

LEASE = 10.0


class World:
    """A lender of budgets that run on: every round leaves something to be renewed."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.rounds: list[list[Budget]] = []
        self.asked: dict[Budget, float] = {}
        self.longest = 0.0
        self.broken = False
        self.during: Callable[[], None] = lambda: None
        """Called once, in the next round."""
        self.lender = Lender("nobody", self._answer, (), lease=LEASE, deadline=5.0, clock=self.clock)

    async def _answer(self, budgets: Sequence[Budget]) -> list[bool]:
        if self.broken:
            raise KeyError("a bug")
        now = self.clock()
        self.rounds.append(list(budgets))
        for budget in budgets:
            self.longest = max(self.longest, now - self.asked.get(budget, now))
            self.asked[budget] = now
            budget.claim(now)
            budget.apply(Standing(0, 0, 0), now + LEASE, now)
        during, self.during = self.during, lambda: None
        during()
        return [False] * len(budgets)

    async def turn(self, seconds: float) -> None:
        """Time goes on, and the lender gets the turns of the loop that it needs to see it."""
        self.clock.now += seconds
        self.lender._bell.set()
        for _ in range(10):
            await asyncio.sleep(0)


def test_renewals_that_are_due_soon_share_a_round() -> None:
    """Meters that were first asked for one by one are renewed together: a round is a transaction. None comes late."""

    async def body() -> None:
        world = World()
        world.lender.start()
        for number in range(ROUND_METERS // 2):
            world.lender.refill(Budget(f"key:{number}", "tokens/total", TOKENS, 1, math.inf, "h"), 1)
            await world.turn(0.02)
        world.rounds.clear()
        for _ in range(1000):
            await world.turn(0.01)
        assert len(world.rounds) <= 20
        assert all(len(asked) > 1 for asked in world.rounds)
        assert len(world.asked) == ROUND_METERS // 2
        assert world.longest <= LEASE / 4 + 0.02
        await world.lender.close()

    asyncio.run(body())


def test_who_waits_takes_along_what_is_due_soon() -> None:
    async def body() -> None:
        """`soon` is due half a second after the last round, `later` one and a half."""
        world = World()
        world.lender.start()
        soon, later, asks = (Budget(f"key:{n}", "tokens/total", TOKENS, 1, math.inf, "h") for n in range(3))
        world.lender.refill(soon, 1)
        await world.turn(1.0)
        world.lender.refill(later, 1)
        await world.turn(1.0)
        world.lender.refill(asks, 1)
        await world.turn(1.0)
        assert world.rounds == [[soon], [later], [asks, soon]]
        await world.lender.close()

    asyncio.run(body())


def test_a_round_that_breaks_at_the_end_does_not_keep_the_rest_from_closing() -> None:
    async def body() -> None:
        world = World()
        world.lender.start()
        world.lender.refill(Budget("key:1", "tokens/total", TOKENS, 1, math.inf, "h"), 1)
        await world.turn(0.0)
        world.broken = True
        await world.lender.close()

    asyncio.run(body())


def test_what_is_told_during_a_round_makes_another_one() -> None:
    """L1: that round may have reported what was before; a place handed over must not wait for the next renewal."""

    async def body() -> None:
        world = World()
        world.lender.start()
        budget = Budget("key:0", "tokens/total", TOKENS, 1, math.inf, "h")
        world.lender.refill(budget, 1)
        await world.turn(0.0)
        world.during = lambda: world.lender.tell(budget)
        world.lender.refill(budget, 1)
        await world.turn(LEASE / 10)
        assert world.rounds == [[budget]] * 3
        await world.turn(LEASE / 10)
        assert len(world.rounds) == 3
        await world.lender.close()

    asyncio.run(body())
