"""Who sends what: the situations every policy is put into.

Owns the workloads. S is the mean service time of an ordinary request (about 5.5 s), a rate of `slots / S` is full load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.scheduler.sim import Model, Source

PLAIN = Model()
SERVICE = PLAIN.prefill + 500 / 5000 + 200 / PLAIN.speed
COST = 900.0
FULL = PLAIN.slots / SERVICE
"""Requests per second that the plain model can serve."""


@dataclass(frozen=True)
class Scenario:
    """Sources on models for `until` seconds, measured from `measure_from`."""

    name: str
    title: str
    sources: list[Source]
    models: tuple[Model, ...] = (PLAIN,)
    until: float = 1500.0
    measure_from: float = 150.0
    noise: float = 0.3


def _lights(count: int, load: float, model: Model = PLAIN, tenants: int = 0) -> list[Source]:
    """`count` users that together offer `load` of the model's capacity."""
    service = model.prefill + 500 / 5000 + 200 / model.speed
    rate = load * model.slots / service / count
    return [
        Source((f"t{n % tenants}" if tenants else "all", f"light{n}", "k"), model=model.name, rate=rate)
        for n in range(count)
    ]


def _backlogged(name: str, **more: object) -> Source:
    return Source(("all", name, "k"), "heavy", parallel=30, **more)  # type: ignore[arg-type]


def calm() -> Scenario:
    return Scenario("calm", "20 users, 50 % load", _lights(20, 0.5))


def busy() -> Scenario:
    return Scenario("busy", "100 users, 95 % load", _lights(100, 0.95), until=2500.0)


def abuser() -> Scenario:
    lights = _lights(10, 0.31)
    return Scenario(
        "abuser", "10 light users, one sends 100 times as much",
        [*lights, Source(("all", "abuser", "k"), "heavy", rate=100 * lights[0].rate)],
    )  # fmt: skip


def agents() -> Scenario:
    heavy = [Source(("all", f"agent{n}", "k"), "heavy", parallel=50) for n in range(3)]
    return Scenario("agents", "10 light users, 3 agents with 50 requests open each", [*_lights(10, 0.3), *heavy])


def onoff() -> Scenario:
    burst = [
        Source(("all", f"burst{n}", "k"), "heavy", rate=FULL, on=40.0, off=160.0, start=50.0 * n) for n in range(3)
    ]
    return Scenario("onoff", "10 light users, 3 that burst", [*_lights(10, 0.3), *burst])


def keys() -> Scenario:
    lights = _lights(10, 0.31)
    return Scenario(
        "keys", "as abuser, over 100 keys of one user",
        [*lights, Source(("all", "abuser", "k"), "heavy", rate=100 * lights[0].rate, keys=100)],
    )  # fmt: skip


def accounts() -> Scenario:
    fakes = [Source(("sybil", f"fake{n}", "k"), "sybil", parallel=5) for n in range(20)]
    honest = Source(("honest", "heavy", "k"), "honest", parallel=30)
    return Scenario("accounts", "10 light users, one honest heavy, 20 accounts of one tenant", [
        *_lights(10, 0.2, tenants=5), honest, *fakes,
    ])  # fmt: skip


def crowd() -> Scenario:
    return Scenario("crowd", "500 light users at 85 % load and an abuser", [
        *_lights(500, 0.85), Source(("all", "abuser", "k"), "heavy", parallel=100),
    ], until=2000.0)  # fmt: skip


def newcomer() -> Scenario:
    old = [_backlogged(f"old{n}") for n in range(8)]
    new = [_backlogged(f"new{n}", start=700.0) for n in range(4)]
    return Scenario("newcomer", "8 heavy users, 4 more join", [*old, *new], measure_from=700.0, until=2200.0)


def shares() -> Scenario:
    return Scenario("shares", "heavy users with shares 1, 2 and 4", [
        _backlogged(f"share{share}-{n}", share=float(share)) for share in (1, 2, 4) for n in range(2)
    ], until=2500.0)  # fmt: skip


def mixed(noise: float = 0.3) -> Scenario:
    sizes = (0.2, 0.2, 0.5, 0.5, 1.0, 1.0, 2.0, 5.0)
    heavy = [_backlogged(f"size{size}-{n}", size=size, tail=1.0) for n, size in enumerate(sizes)]
    return Scenario(
        "noise" if noise > 0.5 else "mixed",
        "heavy users, lengths 1 to 25, " + ("estimates off by e^N(0,1)" if noise > 0.5 else "heavy tails"),
        heavy, until=6000.0, measure_from=600.0, noise=noise,
    )  # fmt: skip


def noise() -> Scenario:
    return mixed(1.0)


def churn() -> Scenario:
    rate = 1.1 * FULL / 100
    come = [(max(0.0, 3.0 * n), 3.0 * n + 300.0) for n in range(-100, 500)]
    return Scenario("churn", "users come and go, 110 % load", [
        Source(("all", f"user{n}", "k"), rate=rate, start=start, stop=stop) for n, (start, stop) in enumerate(come)
        if stop > 0
    ])  # fmt: skip


def fleet() -> Scenario:
    models = (Model("a", 8), Model("b", 4, 1.0, 20.0), Model("c", 6, 0.2, 120.0), Model("d", 2, 2.0, 10.0))
    sources = [source for model in models for source in _lights(10, 0.3, model)]
    sources += [Source(("all", "abuser", "k"), "heavy", model=model.name, parallel=60) for model in models]
    return Scenario("fleet", "4 models, light users on each, an abuser on all", sources, models, until=2500.0)


def many_shares() -> Scenario:
    return Scenario("many shares", "40 heavy users with shares 1 and 4", [
        _backlogged(f"share{share}-{n}", share=float(share)) for share in (1, 4) for n in range(20)
    ], until=5000.0)  # fmt: skip


SCENARIOS: list[Callable[[], Scenario]] = [
    calm, busy, abuser, agents, onoff, keys, accounts, crowd, churn, fleet, newcomer, shares, many_shares, mixed, noise,
]  # fmt: skip
