"""Models that share a backend: nobody is better or worse off for the model that it asks."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

import pytest

from scheduler.commons import linked
from scheduler.core import Core
from scheduler.model import Decision, Granted, Queued, Refused, Ticket
from scheduler.pool import Pool
from scheduler.settings import Settings

MODELS = {"large": (20.0, 4000.0), "middle": (5.0, 1000.0), "small": (1.0, 200.0)}
"""How long a request takes, in seconds, and what it costs."""


def core(slots: int = 4, models: Sequence[str] = tuple(MODELS)) -> Core:
    made = Core(Settings(), 0.0)
    made.set_gate(0.0, "g", slots)
    for model in models:
        made.set_pool(0.0, model, [("g", 0)])
    return made


def pools(made: Core) -> dict[str, Pool]:
    return made.fleet.pools


class Backend:
    """A backend of four slots with three models, in simulated time."""

    def __init__(self) -> None:
        self.core = core()
        self.events: list[tuple[float, int, int, str, str, str]] = []
        """When, a tie, the number of the request that ends or 0, and by whom: tenant, user, model."""
        self.open: dict[int, tuple[float, str, str, str]] = {}
        self.backlogged: set[str] = set()
        self.ties = 0
        self.waits: dict[str, list[float]] = defaultdict(list)
        self.refused: dict[str, int] = defaultdict(int)
        self.served: dict[str, float] = defaultdict(float)

    def due(self, when: float, ends: int, tenant: str, user: str, model: str) -> None:
        self.ties += 1
        heapq.heappush(self.events, (when, self.ties, ends, tenant, user, model))

    def asks_every(self, seconds: float, tenant: str, user: str, model: str, until: float) -> None:
        for turn in range(int(until / seconds)):
            self.due((turn + 0.5) * seconds, 0, tenant, user, model)

    def keeps(self, requests: int, tenant: str, user: str, model: str) -> None:
        """As one ends or is refused, this user asks again."""
        self.backlogged.add(user)
        for number in range(requests):
            self.due(number / 100, 0, tenant, user, model)

    def run(self, until: float) -> None:
        while self.events[0][0] < until:
            now, _, ends, tenant, user, model = heapq.heappop(self.events)
            self.follow(now, self.core.tick(now))
            cost = MODELS[model][1]
            if ends:
                self.served[user] += cost
                self.follow(now, self.core.release(now, ends, cost))
            if not ends or user in self.backlogged:
                answer, others = self.core.submit(now, Ticket(model, tenant, user, cost=cost, timeout=60.0))
                self.open[answer.id] = now, tenant, user, model
                self.follow(now, [answer, *others])

    def follow(self, now: float, decided: Sequence[Decision | Queued]) -> None:
        for each in decided:
            if isinstance(each, Queued):
                continue
            since, tenant, user, model = self.open.pop(each.id)
            if isinstance(each, Granted):
                self.waits[user].append(now - since)
                self.due(now + MODELS[model][0], each.id, tenant, user, model)
                continue
            self.refused[user] += 1
            if user in self.backlogged:
                self.due(now + each.retry_after, 0, tenant, user, model)


@pytest.mark.parametrize("tenant", ["t", "lab"])
def test_a_backlog_before_a_large_model_refuses_nobody_at_a_small_one(tenant: str) -> None:
    """They wait for a slot to come free, every five seconds in the mean, and one of the next ones is theirs."""
    backend = Backend()
    backend.keeps(60, "t", "heavy", "large")
    for number in range(10):
        backend.asks_every(20.0, tenant, f"light{number}", "small", 600.0)
    backend.run(600.0)
    del backend.waits["heavy"], backend.refused["heavy"]
    assert not backend.refused
    assert max(wait for waits in backend.waits.values() for wait in waits) < 30.0


@pytest.mark.parametrize("tenants", [1, 3], ids=["one tenant", "a tenant each"])
def test_backlogged_users_of_all_models_get_the_same_service(tenants: int) -> None:
    backend = Backend()
    for number, model in enumerate(MODELS):
        for user in range(4):
            backend.keeps(8, f"t{number % tenants}", f"{model}{user}", model)
    backend.run(1800.0)
    assert len(backend.served) == 12
    assert min(backend.served.values()) > 0.7 * max(backend.served.values())


def test_one_before_a_large_model_gets_its_share_among_many_before_a_small_one() -> None:
    """It asks for three times its share."""
    backend = Backend()
    for number in range(50):
        backend.keeps(1, "t", f"u{number}", "small")
    backend.asks_every(90.0, "t", "large", "large", 3600.0)
    backend.run(3600.0)
    large = backend.served.pop("large")
    mean = sum(backend.served.values()) / 50
    assert 0.6 * mean < large < 1.7 * mean


@pytest.mark.parametrize("tenant", ["t", "lab"])
def test_who_used_less_goes_first_whatever_a_request_of_its_model_costs(tenant: str) -> None:
    made = core(1)
    for turn in range(30):
        large, _ = made.submit(float(turn), Ticket("large", "t", "heavy", cost=4000.0))
        made.release(float(turn), large.id, 4000.0)
        for _ in range(3):
            small, _ = made.submit(float(turn), Ticket("small", tenant, "light", cost=200.0))
            made.release(float(turn), small.id, 200.0)
    running, _ = made.submit(30.0, Ticket("large", "t", "heavy", cost=4000.0))
    made.submit(30.0, Ticket("large", "t", "heavy", cost=4000.0))
    light, _ = made.submit(30.0, Ticket("small", tenant, "light", cost=200.0))
    assert [decided.id for decided in made.release(30.0, running.id, 4000.0)] == [light.id]


# -- who is ranked with whom -------------------------------------------------------------------------------------


def run(made: Core, model: str, seconds: float, cost: float) -> None:
    now = made.now
    answer, _ = made.submit(now, Ticket(model, "t", "u", cost=cost))
    assert isinstance(answer, Granted)
    made.release(now + seconds, answer.id, cost)


def units(made: Core, model: str) -> tuple[float, float, float]:
    epoch = pools(made)[model].epoch
    return epoch.service, epoch.mean_cost, epoch.slots


def test_models_that_share_a_gate_go_by_the_mean_of_all_their_requests() -> None:
    made = core(4, ("large", "small"))
    run(made, "large", 20.0, 4000.0)
    for _ in range(3):
        run(made, "small", 1.0, 200.0)
    made.tick(made.now + 30.0)
    assert units(made, "large") == units(made, "small") == pytest.approx((23.0 / 4, 4600.0 / 4, 4.0))
    assert pools(made)["small"].averages.service == pytest.approx(1.0)
    assert pools(made)["large"].averages.expected(4000.0) == pytest.approx(20.0)


def test_models_that_are_told_of_common_gates_later_mix_what_each_has_learned() -> None:
    made = core(4, ("large",))
    made.set_gate(0.0, "h", 2)
    made.set_pool(0.0, "small", [("h", 0)])
    run(made, "large", 20.0, 4000.0)
    for _ in range(3):
        run(made, "small", 1.0, 200.0)
    assert units(made, "large") == pytest.approx((20.0, 4000.0, 4.0))
    made.set_pool(made.now, "small", [("g", 1), ("h", 0)])
    assert units(made, "large") == units(made, "small") == pytest.approx((23.0 / 4, 4600.0 / 4, 6.0))
    made.set_gate(made.now, "h", 3)
    assert units(made, "large") == units(made, "small") == pytest.approx((23.0 / 4, 4600.0 / 4, 7.0))
    made.remove_gate(made.now, "g")
    assert units(made, "small") == pytest.approx((1.0, 200.0, 3.0))
    assert units(made, "large") == pytest.approx((20.0, 4000.0, 1.0))


def test_gates_link_models_by_way_of_others_and_a_removed_one_parts_them() -> None:
    made = core(1, ("a",))
    for gate in "hi":
        made.set_gate(0.0, gate, 1)
    made.set_pool(0.0, "b", [("g", 0), ("h", 0)])
    made.set_pool(0.0, "c", [("h", 0)])
    made.set_pool(0.0, "d", [("i", 0)])
    of = pools(made)
    assert {pool.name for pool in linked(of["a"])} == {"a", "b", "c"}
    assert of["a"].commons is of["b"].commons is of["c"].commons
    assert (of["c"].commons.slots, of["d"].commons.slots) == (2.0, 1.0)
    gone = of["b"]
    made.remove_pool(0.0, "b")
    assert all(pool.commons.pools == [pool] for pool in (gone, *of.values()))
    assert {pool.commons.slots for pool in of.values()} == {1.0}


def test_before_a_request_has_ended_estimates_of_all_count() -> None:
    made = core(4, ("large", "small"))
    made.submit(0.0, Ticket("large", "t", "u", cost=4000.0))
    made.submit(0.0, Ticket("small", "t", "v", cost=200.0))
    assert units(made, "large")[1] == units(made, "small")[1] == pytest.approx(2100.0)


def test_what_an_earlier_run_learned_of_each_counts_for_all() -> None:
    old = core(4, ("large", "small"))
    run(old, "large", 20.0, 4000.0)
    run(old, "small", 1.0, 200.0)
    saved = old.export_usage(old.now)
    late, early = core(4, ("large", "small")), Core(Settings(), 0.0)
    late.import_usage(0.0, saved)
    early.import_usage(0.0, saved)
    early.set_gate(0.0, "g", 4)
    for model in ("large", "small"):
        early.set_pool(0.0, model, [("g", 0)])
    for made in (late, early):
        assert units(made, "large") == units(made, "small") == pytest.approx((10.5, 2100.0, 4.0))


def test_who_waits_before_several_models_is_one_in_the_crowd() -> None:
    made = core(1, ("large", "small"))
    made.set_gate(0.0, "h", 1)
    made.set_pool(0.0, "apart", [("h", 0)])
    for model in ("large", "apart"):
        made.submit(0.0, Ticket(model, "t", "first", cost=1.0))
    for model in ("large", "small", "apart"):
        for user in ("u", "v"):
            made.submit(0.0, Ticket(model, "t", user, cost=1.0))
    node = pools(made)["small"].nodes["t", "u"]
    assert pools(made)["small"].commons.crowd(node) == (2.0, 1.0)


def test_who_goes_first_is_told_over_all_models_that_share_the_backend() -> None:
    """In the queue and of a refusal: ten of another model are before this user, who used much lately."""
    made = core(1, ("large", "small"))
    run(made, "large", 20.0, 4000.0)
    run(made, "small", 20.0, 50_000.0)
    now = made.now
    for number in range(11):
        made.submit(now, Ticket("large", "t", f"v{number}", cost=4000.0))
    answer, _ = made.submit(now, Ticket("small", "t", "u", cost=200.0, timeout=30.0))
    stands = made.position(now + 1.0, answer.id)
    assert stands is not None
    assert (stands.ahead, stands.estimate) == (10, pytest.approx(210.0))
    (refused,) = made.tick(now + 30.0)
    assert isinstance(refused, Refused)
    assert refused.ahead == 10
    assert 210.0 <= refused.retry_after <= 252.0


def turns(made: Core, seen: bool) -> str:
    """The models of many requests of a second each, one after the other; two users always have some waiting. `seen`: it
    is known at once that the backend has nothing but the latest model."""
    waiting: dict[int, str] = {}

    def ask(model: str) -> Granted | Queued:
        answer, _ = made.submit(made.now, Ticket(model, "t", model, cost=100.0))
        assert not isinstance(answer, Refused)
        waiting[answer.id] = model
        return answer

    running = ask("a")
    for model in "abab":
        ask(model)
    order = ""
    for _ in range(200):
        model = waiting.pop(running.id)
        ask(model)
        order += model
        for each in "ab" if seen else "":
            made.set_pool(made.now, each, [("g", int(each != model))])
        (running,) = grants(made.release(made.now + 1.0, running.id, 100.0))
    return order


def grants(decided: Sequence[Decision]) -> list[Granted]:
    return [each for each in decided if isinstance(each, Granted)]


@pytest.mark.parametrize("seen", [False, True])
def test_models_that_do_not_fit_beside_each_other_have_some_turns_each(seen: bool) -> None:
    """They are not loaded for every turn; both users get the same all the same, and none waits long."""
    made = core(1, ("a", "b"))
    made.set_pool(0.0, "b", [("g", 1)])
    run(made, "a", 1.0, 100.0)
    order = turns(made, seen)
    stays = [len(list(stay)) for _, stay in groupby(order)]
    assert len(order) / len(stays) > 2.5
    assert max(stays) < 10
    assert abs(order.count("a") - order.count("b")) < 10


def test_models_that_are_loaded_have_turns_one_by_one() -> None:
    made = core(1, ("a", "b"))
    run(made, "a", 1.0, 100.0)
    assert len([*groupby(turns(made, seen=False))]) > 150
