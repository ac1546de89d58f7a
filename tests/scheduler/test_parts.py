"""The smaller parts: estimates, the adaptive limit, the explanation, the import rule."""

from __future__ import annotations

import ast
import io
import json
import random
import time
from math import inf, nan
from pathlib import Path

import pytest

import scheduler
from scheduler.__main__ import main
from scheduler.aimd import Aimd
from scheduler.averages import Averages
from scheduler.crowd import Crowd
from scheduler.estimate import Estimator, cost
from scheduler.explain import EXAMPLE, Case, Party, rank
from scheduler.model import Ticket
from scheduler.pool import Pool
from scheduler.settings import Settings
from scheduler.usage import Ledger


def test_cost_weighs_input_cache_and_output() -> None:
    assert cost(Settings(), 100, 1000, 50) == 100 + 100 + 100
    assert cost(Settings(input_weight=0, output_weight=3), 100, 0, 50, factor=2.0) == 300


def test_estimates_learn_bytes_per_token_and_each_users_output() -> None:
    made = Estimator(Settings())
    assert made.request_cost("m", "t", "u", 4000, None) == 1000 + 2 * 256
    assert made.output_tokens("m", "t", "u", 10) == 10
    assert made.request_cost("m", "t", "u", 4000, 0) == 1000, "embeddings produce nothing"
    for _ in range(300):
        made.observe("m", "t", "u", size=3000, tokens_in=1000, tokens_out=40)
    assert made.input_tokens("m", 3000) == pytest.approx(1000, rel=0.01)
    assert made.output_tokens("m", "t", "u", 4096) == pytest.approx(40)
    assert made.output_tokens("m", "t", "other", 4096) == 256
    made.observe("m", "t", "u", 0, 0, 0)


@pytest.mark.parametrize(("size", "tokens"), [(10_000_000, 10), (60_000, 300), (200, 100_000)])
def test_what_is_no_text_does_not_teach_what_text_costs(size: int, tokens: int) -> None:
    """L2: white space or an image would let the next prompts of all pass for nothing, or for far too much."""
    made = Estimator(Settings())
    made.observe("m", "t", "u", size, tokens, 1)
    assert 800 < made.input_tokens("m", 4_000) < 1_100
    for _ in range(1000):
        made.observe("m", "t", "u", size, tokens, 1)
    assert 250 <= made.input_tokens("m", 4_000) <= 4_000


def test_the_memory_of_estimates_is_bounded() -> None:
    made = Estimator(Settings(), limit=10)
    for n in range(100):
        made.observe("m", "t", f"u{n}", 100, 10, 5)
    assert made.output_tokens("m", "t", "u0", None) == 256
    assert made.output_tokens("m", "t", "u99", None) == 5


def test_aimd_settles_near_the_knee_and_follows_a_loss_of_capacity() -> None:
    """An engine whose time per token grows beyond a batch of 20 (then 10): the limit stays around what meets 25 ms."""
    limiter, now = Aimd(0.025, low=2, high=100), 0.0
    limits = []
    for step in range(40_000):
        knee = 20 if step < 20_000 else 10
        tpot = 0.016 * max(1.0, limiter.limit / knee)
        now += 1.0 / limiter.limit
        limits.append(limiter.observe(tpot, now - 0.5, now))
    assert 24 <= sum(limits[10_000:20_000]) / 10_000 <= 34
    assert 12 <= sum(limits[30_000:]) / 10_000 <= 18


def test_aimd_stays_in_its_bounds_and_ignores_nonsense() -> None:
    limiter = Aimd(0.05, low=3, high=9)
    for now in range(100):
        limiter.observe(0.01, float(now), float(now))
    assert limiter.limit == 9
    for now in range(1000):
        limiter.observe(random.Random(now).choice([1.0, nan, inf, -1.0, 0.0]), float(now), float(now))
    assert limiter.limit == 3
    for bad in ({"objective": 0.0}, {"objective": nan}, {"objective": 1.0, "low": 0}, {"objective": 1.0, "high": 0}):
        with pytest.raises(ValueError, match=r"objective|limits"):
            Aimd(**bad)


def test_the_late_end_of_the_service_time_is_about_the_95th_percentile() -> None:
    rng, averages = random.Random(3), Averages()
    for _ in range(20_000):
        averages.learn(rng.expovariate(0.2), 100.0)
    assert averages.service == pytest.approx(5.0, rel=0.3)
    assert 10.0 < averages.late < 20.0


def test_a_crowd_above_its_bound_is_not_counted_anew_for_each_that_comes() -> None:
    """Its heap holds all that wait, and not many more of what is superseded."""
    ledger = Ledger(0.0, 300.0)
    pool = Pool("m", ledger, Settings(), 0.0)
    nodes = [pool.node(Ticket("m", "t", f"u{n}")) for n in range(100_001)]
    for node in nodes:
        node.n = 1
    crowd = Crowd(nodes)
    began = time.process_time()
    once = Crowd(nodes)
    once_cost = time.process_time() - began
    began = time.process_time()
    for node in nodes[:300]:
        node.n = 2
        crowd.grew(node)
    assert time.process_time() - began < 10 * once_cost
    assert once.longest() in nodes[:300]
    nodes[7].n = 9
    for _ in range(150_000):
        crowd.grew(nodes[7])
    assert crowd.longest() is nodes[7]
    assert len(crowd._heap) < 2 * len(nodes)


def test_the_explanation_adds_up_and_follows_the_order() -> None:
    lines = rank(EXAMPLE)
    assert [line.party.name for line in lines] == ["night-job", "bob", "ann", "dan", "eve"]
    for line in lines:
        assert line.priority == pytest.approx(100.0 + line.party.offset + line.owed + line.used, abs=1e-6)
    assert rank(Case([])) == []


def test_the_command_line_ranks_the_example_arguments_and_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([]) == 0
    assert "bob is 15.92 points ahead of ann, who would go first once owed 199 s more." in capsys.readouterr().out
    assert main(["a:100:5", "b:0:0:2:20", "--slots", "2"]) == 0
    assert "a " in capsys.readouterr().out
    case = {"parties": [{"name": "x", "usage": 5}], "settings": {"wait_weight": 0}}
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(case).encode())))
    assert main(["--json", "-"]) == 0
    assert "x" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["a:b"], ["a:1:2:3:4:5"], ["a", "--slots", "0"], ["--json", "/nonexistent"], ["a:nan"], ["a:-1"], ["a:1:inf"],
        ["a:1:1:0", "b"], ["a:1:1:1:nan"], ["a", "--mean-cost", "inf"], ["a", "a"],
    ],
)  # fmt: skip
def test_the_command_says_what_it_cannot_understand(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("scheduler: ")


def test_a_weightless_wait_is_explained_too() -> None:
    lines = rank(Case([Party("a"), Party("b", usage=1e6)], settings=Settings(wait_weight=0.0)))
    assert [line.party.name for line in lines] == ["a", "b"]


def test_the_package_stands_alone_and_its_core_is_pure() -> None:
    """Imports nothing of the gateway; only the asyncio facade and the command touch the outside."""
    pure = {
        "__future__",
        "bisect",
        "collections",
        "enum",
        "hashlib",
        "heapq",
        "itertools",
        "math",
        "types",
        "typing",
        "zlib",
    }
    outside = {"aio.py": {"asyncio"}, "__main__.py": {"argparse", "sys", "pathlib"}}
    for path in Path(scheduler.__file__).parent.glob("*.py"):
        names = {
            (name.name if isinstance(node, ast.Import) else str(node.module)).split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in node.names
        }
        assert names <= pure | {"scheduler", "msgspec"} | outside.get(path.name, set()), path.name
