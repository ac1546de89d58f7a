"""What a home is worth to conversations: `python -m bench.scheduler.affinity [--seeds 5] [--write]`.

Four backends of four slots with one model; people hold conversations, think between two turns, and each backend keeps
the beginnings of the conversations it served last, as far as it saw them. A turn computes only what is not there. Asked
of the real core, with its slots and queue: how much of the prompts is found, and what do waits become?
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from bench.scheduler.report import put_section, table
from scheduler.core import Core
from scheduler.model import Decision, Granted, Ticket
from scheduler.settings import Settings

BACKENDS, SLOTS = 4, 4
KEPT = 60
"""Conversations whose beginning one backend has room for."""
TURNS = 8.0  # of a conversation, at the mean
THINK = 10.0  # seconds between an answer and the next turn, at the mean
DECODE = 2.0  # seconds of an answer, at the mean
PREFILL = 0.4  # seconds of the prompt for each turn of it that is not kept
SECONDS = 1800.0
WARM = 300.0  # not counted
PEOPLE = (20, 50, 70, 100)
LOADS = (0.0, 1.0, 1.25, 2.0, 1000.0)


@dataclass
class Talk:
    """One person's conversation: `turn` is the one that comes next."""

    person: int
    number: int
    turn: int = 0
    asked: float = 0.0


@dataclass
class World:
    """The core, its backends' caches and the clock."""

    rng: random.Random
    core: Core
    caches: dict[str, OrderedDict[int, int]] = field(default_factory=dict)
    events: list[tuple[float, int, Callable[[float], None]]] = field(default_factory=list)
    talks: dict[int, Talk] = field(default_factory=dict)  # by ticket
    count: int = 0
    sent: int = 0  # earlier turns that prompts began with
    found: int = 0  # of those, kept by the backend
    waits: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def at(self, when: float, what: Callable[[float], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, what))

    def ask(self, now: float, talk: Talk) -> None:
        talk.asked = now
        ticket = Ticket("m", "t", f"u{talk.person}", cost=1.0, timeout=1e9, conversation=talk.number)
        answer, others = self.core.submit(now, ticket)
        self.talks[answer.id] = talk
        self.hear(now, [answer] if isinstance(answer, Granted) else [])
        self.hear(now, others)

    def hear(self, now: float, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            assert isinstance(decision, Granted), decision
            self.run(now, decision)

    def run(self, now: float, granted: Granted) -> None:
        talk = self.talks.pop(granted.id)
        cache = self.caches[granted.gate]
        known = cache.pop(talk.number, 0)
        cache[talk.number] = talk.turn + 1
        if len(cache) > KEPT:
            cache.popitem(last=False)
        takes = self.rng.expovariate(1 / DECODE) + PREFILL * (talk.turn + 1 - known)
        if now >= WARM:
            self.waits.append(granted.waited)
            self.times.append(granted.waited + takes)
            self.sent += talk.turn
            self.found += known
        self.at(now + takes, lambda then: self.end(then, granted.id, talk))

    def end(self, now: float, ticket: int, talk: Talk) -> None:
        self.hear(now, self.core.release(now, ticket, 1.0))
        fresh = self.rng.random() < 1 / TURNS
        self.count += fresh
        talk = Talk(talk.person, self.count + 1_000_000 if fresh else talk.number, 0 if fresh else talk.turn + 1)
        self.at(now + self.rng.expovariate(1 / THINK), lambda then: self.ask(then, talk))


def play(people: int, load: float, seed: int) -> tuple[float, float, float]:
    """One run -> share of earlier turns that were kept, mean wait, mean time to the end of an answer."""
    core = Core(Settings(affinity=load), 0.0)
    world = World(random.Random(seed), core)
    for number in range(BACKENDS):
        core.set_gate(0.0, f"gpu{number}", SLOTS)
        world.caches[f"gpu{number}"] = OrderedDict()
    core.set_pool(0.0, "m", [(name, 0) for name in world.caches])
    for person in range(people):
        talk = Talk(person, person + 1)
        world.at(world.rng.expovariate(1 / THINK), lambda then, talk=talk: world.ask(then, talk))  # type: ignore[misc]
    while world.events[0][0] < SECONDS:
        now, _, what = heapq.heappop(world.events)
        what(now)
    return world.found / world.sent, fmean(world.waits), fmean(world.times)


def rows(seeds: int) -> list[list[str]]:
    found: list[list[str]] = []
    for people in PEOPLE:
        cells = [str(people)]
        for load in LOADS:
            runs = [play(people, load, seed) for seed in range(seeds)]
            hits, wait, time = (fmean(run[k] for run in runs) for k in range(3))
            cells.append(f"{hits:.0%} / {wait:.2f} / {time:.2f}")
        found.append(cells)
    return found


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    named = {0.0: "0 (off)", 1000.0: "1000 (no bound)"}
    text = "\n\n".join([
        "## Conversations and their homes",
        f"`python -m bench.scheduler.affinity --seeds {options.seeds} --write`: {BACKENDS} backends of {SLOTS} slots, "
        f"each with room for the beginnings of {KEPT} conversations; {TURNS:g} turns, {THINK:g} s between two, "
        f"{PREFILL:g} s of prompt a turn unless kept, {DECODE:g} s of answer. Earlier turns found in the cache / "
        "mean wait / mean time to the end of the answer, in seconds, by `affinity`:",
        table(["people", *(named.get(load, f"{load:g}") for load in LOADS)], rows(options.seeds)),
    ])  # fmt: skip
    print(text)
    if options.write:
        put_section("affinity", text)


if __name__ == "__main__":
    main()
