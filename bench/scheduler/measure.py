"""What a run is judged by.

Owns the measures; must not know scenarios or policies. Waits are in units of the model's mean service time S, service
in mean costs C.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bench.scheduler.scenarios import COST, SERVICE, Scenario
from bench.scheduler.sim import Job, Model, Simulation
from scheduler.position import place
from scheduler.sync import SyncScheduler


@dataclass(frozen=True)
class Result:
    """One run."""

    p50: float
    p99: float
    """Of the light users' waits, those still waiting included; NaN without light users."""
    late: float
    """Part of the light users' requests that waited 30 s and more."""
    jain: float
    """Over the heavy users' weighted service."""
    gap: float
    """Largest difference of two heavy users' weighted service, in C."""
    bound: float
    """2 * slots * C_max, in C: VTC's bound on that gap."""
    drought: float
    """Longest time a user had a queue and nothing was started for it, in S."""
    roles: dict[str, float]
    """Service by role, in C."""
    told: float
    """Part of the announced waits that were right within a factor of two or 3 s; NaN if none (S still unknown)."""


def percentile(values: Sequence[float], part: float) -> float:
    """Nearest rank; NaN of nothing."""
    if not values:
        return float("nan")
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def service_time(model: Model) -> float:
    """S of a model for ordinary requests."""
    return model.prefill + 500 / 5000 + 200 / model.speed


def announcer(policy: Any) -> Callable[[Any, float], float] | None:
    """How the policy tells a wait; only ours does."""
    if not isinstance(policy, SyncScheduler):
        return None
    return lambda handle, now: place(handle.pool, now, handle.node, handle.node.n - 1)[1]


def run(scenario: Scenario, make: Callable[[], Any], seed: int) -> Result:
    """Play one scenario with one policy and one seed."""
    policy = make()
    simulation = Simulation(
        policy, scenario.models, scenario.sources, seed, scenario.until, noise=scenario.noise,
        measure_from=scenario.measure_from, announce=announcer(policy),
    ).run()  # fmt: skip
    waits = [_wait(simulation, job) for job in _lights(simulation)]
    heavy = [tally for tally in simulation.users.values() if tally.role == "heavy"]
    served = [tally.service / tally.share / COST for tally in heavy]
    roles: dict[str, float] = {}
    for tally in simulation.users.values():
        roles[tally.role] = roles.get(tally.role, 0.0) + tally.service / COST
    return Result(
        p50=percentile(waits, 0.5),
        p99=percentile(waits, 0.99),
        late=fmean(_seconds(simulation, job) > 30.0 for job in _lights(simulation)) if waits else 0.0,
        jain=sum(served) ** 2 / (len(served) * sum(x * x for x in served)) if len(served) > 1 else float("nan"),
        gap=max(served) - min(served) if len(served) > 1 else float("nan"),
        bound=2 * scenario.models[0].slots * simulation.max_cost / COST,
        drought=max(tally.drought for tally in simulation.users.values()) / SERVICE,
        roles=roles,
        told=_told(simulation),
    )


def _lights(simulation: Simulation) -> list[Job]:
    waiting = [job for job in simulation.abandoned() if job.arrived >= simulation.measure_from]
    return [job for job in [*simulation.jobs, *waiting] if job.source.role == "light"]


def _seconds(simulation: Simulation, job: Job) -> float:
    return (simulation.now if job.started < 0 else job.started) - job.arrived


def _wait(simulation: Simulation, job: Job) -> float:
    return _seconds(simulation, job) / service_time(simulation.models[job.source.model])


def _told(simulation: Simulation) -> float:
    right = []
    for job in simulation.jobs:
        if job.expected > 0:
            wait = job.started - job.arrived
            right.append(abs(wait - job.expected) <= 3.0 or job.expected / 2 <= wait <= job.expected * 2)
    return fmean(right) if right else float("nan")
