"""The fairness index: of those that always have something waiting, over what a scheduler really served them."""

from collections.abc import Callable

import pytest

from gateway.services.evenness import WINDOW, Evenness, jain
from scheduler.core import Core
from scheduler.model import Granted, Ticket

SLOTS = 2


class Line:
    """One model served in steps of a second: every running request ends, then everybody asks."""

    def __init__(self) -> None:
        self.core = Core()
        self.core.set_gate(0.0, "gpu", SLOTS)
        self.core.set_pool(0.0, "m\tollama", [("gpu", 0)])
        self.now = 0.0
        self.running: list[tuple[int, float]] = []
        self.cost: dict[int, float] = {}
        self.evenness = Evenness()

    def ask(self, ticket: Ticket) -> None:
        answer, others = self.core.submit(self.now, ticket)
        self.cost[answer.id] = ticket.cost
        self._started([answer, *others])

    def keep(self, ticket: Ticket, depth: int) -> None:
        """Fill up the user's queue to this depth."""
        for _ in range(depth - len(self.core.waiting(self.now, ticket.tenant, ticket.user))):
            self.ask(ticket)

    def serve(self, seconds: float, ask: Callable[[int], None]) -> dict[str, float]:
        """Go on for so long -> the index at the end."""
        for second in range(int(seconds)):
            ended, self.running = self.running, []
            for number, cost in ended:
                self._started(self.core.release(self.now, number, cost))
            ask(second)
            self.now += 1.0
            index = self.evenness.look(self.now, self.core.backlogs()) if second % 15 == 0 else {}
        return index or self.evenness.look(self.now, self.core.backlogs())

    def _started(self, decided: list[object]) -> None:
        self.running += [(each.id, self.cost[each.id]) for each in decided if isinstance(each, Granted)]


def ticket(user: str, tenant: str = "t", cost: float = 100.0, offset: float = 0.0) -> Ticket:
    return Ticket("m\tollama", tenant, user, cost=cost, class_offset=offset)


def test_an_abuser_beside_light_users_does_not_look_unfair() -> None:
    """They asked for little and got it at once: there is nobody to compare the abuser with."""
    line = Line()

    def ask(second: int) -> None:
        line.keep(ticket("abuser", cost=1000.0), 10)
        line.ask(ticket(f"light{second % 20}"))

    assert line.serve(4 * WINDOW, ask) == {}
    assert max(each.waited / each.grants for each in line.core.stats(line.now).parties if each.user != "abuser") <= 1.0


def test_a_starved_user_with_a_queue_looks_unfair() -> None:
    """Also where each request of it runs into its timeout, 60 s, and the client asks again a little later."""
    line = Line()

    def ask(second: int) -> None:
        if second % 65 < 60:
            line.keep(ticket("starved", offset=-1000.0), 1)
        line.keep(ticket("abuser"), 10)

    assert line.serve(3 * WINDOW, ask) == {"m": 0.5}


def test_users_with_queues_in_turns_look_fair_whatever_their_requests_cost() -> None:
    line = Line()

    def ask(second: int) -> None:
        line.keep(ticket("many", cost=100.0), 10)
        line.keep(ticket("large", cost=400.0), 3)

    assert line.serve(3 * WINDOW, ask)["m"] > 0.95


def test_users_are_compared_within_their_tenant_and_tenants_with_each_other() -> None:
    """Tenants come first: the five users of one have a fifth each of what the only user of another has."""
    line = Line()

    def ask(second: int) -> None:
        for n in range(5):
            line.keep(ticket(f"u{n}", "large"), 3)
        line.keep(ticket("alone", "small"), 3)

    assert line.serve(3 * WINDOW, ask)["m"] > 0.95


def test_it_needs_a_window_and_as_many_ended_requests_as_parties() -> None:
    line = Line()

    def ask(second: int) -> None:
        line.keep(ticket("a"), 10)
        line.keep(ticket("b", offset=-1000.0), 1)

    assert line.serve(WINDOW - 1, ask) == {}
    assert line.serve(WINDOW, ask) == {"m": 0.5}
    line.running.clear()  # the engine hangs
    assert line.serve(3 * WINDOW, lambda second: None) == {}


def test_who_had_nothing_waiting_in_between_is_left_out() -> None:
    line = Line()

    def ask(second: int) -> None:
        line.keep(ticket("a"), 10)
        if second % 200 < 180:
            line.keep(ticket("b"), 1)

    assert line.serve(3 * WINDOW, ask) == {}


@pytest.mark.parametrize(
    ("served", "index"), [([], None), ([0.0], None), ([5.0], 1.0), ([1.0, 1.0], 1.0), ([1.0, 0.0, 0.0, 0.0], 0.25)]
)
def test_jain_by_its_formula(served: list[float], index: float | None) -> None:
    assert jain(served) == index
