"""Conversations have homes among the backends of a model, and nobody waits for one (R3, setting `affinity`)."""

from __future__ import annotations

from collections import Counter
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core import Core
from scheduler.gates import Gate, home_gate
from scheduler.model import Granted, Queued, Ticket
from scheduler.settings import Settings

MANY = 2000
UNBOUNDED = 1000.0


def core(*gates: tuple[str, int, int], affinity: float = UNBOUNDED) -> Core:
    """A model on gates of (name, slots, preference)."""
    made = Core(Settings(affinity=affinity), 0.0)
    for name, slots, _ in gates:
        made.set_gate(0.0, name, slots)
    made.set_pool(0.0, "m", [(name, preference) for name, _, preference in gates])
    return made


def granted(made: Core, conversation: int, avoid: tuple[str, ...] = ()) -> Granted:
    answer, _ = made.submit(1.0, Ticket("m", "t", "u", conversation=conversation, avoid=avoid))
    assert isinstance(answer, Granted)
    return answer


def homes(names: str) -> list[str]:
    """The home of each of MANY conversations while nothing else runs."""
    made = core(*((name, 1, 0) for name in names))
    found = []
    for conversation in range(1, MANY + 1):
        answer = granted(made, conversation)
        found.append(answer.gate)
        made.release(1.0, answer.id, 1.0)
    return found


def test_every_conversation_has_one_home_and_they_are_spread_evenly() -> None:
    first = homes("abcd")
    assert first == homes("dcba")
    assert all(0.2 * MANY < count < 0.3 * MANY for count in Counter(first).values())


def test_only_conversations_of_a_gate_that_goes_or_comes_move() -> None:
    before, after = homes("abcd"), homes("abce")
    moved = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert moved
    assert all(old == "d" or new == "e" for old, new in moved)
    assert all(new == old or old == "d" for old, new in zip(before, homes("abc"), strict=True))


def test_a_gate_with_more_slots_is_home_to_more() -> None:
    made = core(("a", 1, 0), ("b", 3, 0))
    found: Counter[str] = Counter()
    for conversation in range(1, MANY + 1):
        answer = granted(made, conversation)
        found[answer.gate] += 1
        made.release(1.0, answer.id, 1.0)
    assert 0.2 * MANY < found["a"] < 0.3 * MANY


def test_a_full_home_is_not_waited_for_and_taken_again_later() -> None:
    made = core(("a", 1, 0), ("b", 1, 0), ("c", 1, 0))
    home, second = granted(made, 7), granted(made, 7)
    assert home.gate != second.gate
    made.release(2.0, home.id, 1.0)
    made.release(2.0, second.id, 1.0)
    assert granted(made, 7).gate == home.gate


def test_a_backend_that_has_the_model_in_memory_goes_before_the_home() -> None:
    made = core(("a", 1, 1), ("b", 1, 1), ("c", 1, 1), ("warm", 1, 0))
    assert {granted(made, 7).gate for _ in range(1)} == {"warm"}
    assert granted(made, 7).gate in "abc"


def test_a_retry_does_not_go_home_to_the_gate_that_failed() -> None:
    made = core(("a", 4, 0), ("b", 4, 0), ("c", 4, 0))
    home = granted(made, 7)
    second = granted(made, 7, avoid=(home.gate,))
    assert second.gate != home.gate
    assert granted(made, 7, avoid=(home.gate,)).gate == second.gate
    assert granted(made, 7, avoid=("a", "b", "c")).gate in "abc"


def test_without_the_setting_or_a_conversation_most_free_slots_decide() -> None:
    for made, conversation in ((core(("a", 4, 0), ("b", 4, 0), affinity=0.0), 7), (core(("a", 4, 0), ("b", 4, 0)), 0)):
        assert Counter(granted(made, conversation).gate for _ in range(8)) == {"a": 4, "b": 4}


@pytest.mark.parametrize("affinity", [0.25, 1e-9, 0.999])
def test_less_than_its_part_is_no_part(affinity: float) -> None:
    """0.25 where a quarter more was meant would give up homes among equals."""
    with pytest.raises(ValueError, match=r"affinity: .* is neither 0 nor at least 1"):
        Settings(affinity=affinity)
    with pytest.raises(ValueError, match="affinity"):
        Settings().changed(affinity=affinity)


def test_one_busy_conversation_does_not_fill_its_home_while_others_idle() -> None:
    """With 1.25 its home runs a quarter more than its part, a slot counted as a whole."""
    made = core(*((name, 100, 0) for name in "abcd"), affinity=1.25)
    placed = Counter(granted(made, 7).gate for _ in range(160))
    assert max(placed.values()) == ceil(1.25 * 160 * 100 / 400)


def test_what_hangs_on_an_ejected_gate_does_not_widen_the_part_of_the_others() -> None:
    made = core(("dead", 8, 0), ("a", 8, 0), ("b", 8, 0), affinity=1.25)
    for _ in range(24):
        granted(made, 0)
    for number in range(1, 25):
        if made._requests[number].gate is not made.fleet.gates["dead"]:
            made.release(1.0, number, 1.0)
    for slots in (0, 3):  # ejected, and with fewer slots than requests
        made.set_gate(1.0, "dead", slots)
        taken = [granted(made, 7) for _ in range(8)]
        assert max(Counter(answer.gate for answer in taken).values()) == ceil(1.25 * (slots + 8) * 8 / (slots + 16))
        for answer in taken:
            made.release(1.0, answer.id, 1.0)


def test_turns_go_before_homes() -> None:
    """Who waits takes the slot that comes free, wherever that is."""
    made = core(("a", 1, 0), ("b", 1, 0))
    first = granted(made, 7)
    second = granted(made, 7)
    waiting, _ = made.submit(1.0, Ticket("m", "t", "v", conversation=7))
    assert isinstance(waiting, Queued)
    (decided,) = made.release(2.0, second.id, 1.0)
    assert isinstance(decided, Granted)
    assert (decided.id, decided.gate) == (waiting.id, second.gate)
    assert second.gate != first.gate


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 2)), min_size=1, max_size=6),
    st.integers(1, 2**63 - 1),
    st.floats(0.01, 1000),
)
def test_a_home_has_a_free_slot_and_the_lowest_preference_that_has_one(
    gates: list[tuple[int, int, int]], conversation: int, load: float
) -> None:
    places = []
    for number, (slots, running, preference) in enumerate(gates):
        gate = Gate(f"g{number}", slots)
        gate.running = running
        places.append((gate, preference))
    free = {preference for gate, preference in places if gate.running < gate.slots}
    home = home_gate(places, conversation, load)
    if home is None:
        assert not free or load < 1 or any(gate.running > gate.slots for gate, _ in places) or _all_above(places, load)
        return
    assert home.running < home.slots
    assert dict(places)[home] == min(free)


def _all_above(places: list[tuple[Gate, int]], load: float) -> bool:
    """Nobody who is free runs less than `load` times its part."""
    least = min(preference for gate, preference in places if gate.running < gate.slots)
    equals = [gate for gate, preference in places if preference == least]
    part = load * (sum(min(gate.running, gate.slots) for gate in equals) + 1) / sum(gate.slots for gate in equals)
    return all(gate.running >= part * gate.slots for gate in equals if gate.running < gate.slots)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=60), st.sampled_from([0.0, 1.0, 1.25, 1000.0])
)
def test_no_slot_is_idle_while_somebody_waits(steps: list[tuple[int, int]], load: float) -> None:
    made = core(("a", 2, 0), ("b", 1, 0), ("c", 2, 1), affinity=load)
    running: list[int] = []
    waiting: set[int] = set()
    for what, conversation in steps:
        if what and len(waiting) < 8:
            answer, _ = made.submit(1.0, Ticket("m", "t", f"u{conversation}", conversation=conversation))
            (running.append if isinstance(answer, Granted) else waiting.add)(answer.id)
        elif running:
            for decided in made.release(1.0, running.pop(conversation % len(running)), 1.0):
                waiting.remove(decided.id)
                running.append(decided.id)
        assert not waiting or len(running) == 5
