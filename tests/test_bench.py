"""bench/ and loadtests/ say what is: a figure of a broken run is no figure, what is worse is called worse, and what
they put in the place of the product's parts still fits. Feeds made-up rows; measures nothing.
"""

import asyncio
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from bench import floors, launch, plots, profile, report
from bench.micro import compare
from bench.micro.parts import parts
from bench.micro.rig import ANSWER, BODY, FRAME, STREAM_END, STREAM_HEAD, rig
from bench.plans import PLANS
from bench.run import Plan
from bench.scenarios import SCENARIOS
from loadtests.load import answered
from tests.flow.engine import Engine, plain
from tests.gateway import chat, gateway
from tests.source import NEEDS_SOURCE

FACTS = {
    "facts": {"cpu": "made up"},
    "peers": {
        name: {"version": "1", "note": "", "base_mb": 1.0, "start_s": 0.2} for name in ("direct", "nginx", "fairgate")
    },
    "rounds": 2,
    "seconds": 5.0,
    "files": 20_000,
}


def row(peer: str, number: int, cpu_us: float, *, errors: int = 0, scenario: str = "S1") -> dict[str, Any]:
    spread = {"n": 1, "p50": 100.0 + cpu_us, "p99": 200.0, "max": 300.0}
    names = ("latency_us", "head_us", "first_us", "gap_us", "transit_us")
    load = {"errors": errors, "troubles": {"order": errors} if errors else {}, "all_requests": 10, "all_sound": 10}
    return {
        "round": number,
        "peer": peer,
        "scenario": scenario,
        "spin": True,
        "units_per_s": 1e6 / cpu_us,
        "cpu_us": cpu_us,
        "core_share": 1.0,
        "pss_mb": 20.0,
        "watched": {},
        "abort_us": [],
        "load": {**load, **dict.fromkeys(names, spread), "firsts_held": 0, "gaps_held": 0, "polls_empty": 0.5},
        "backend": {"polls": 10, "polls_empty": 5},
    }


ROWS = [FACTS] + [
    row(*given) for given in (("nginx", 0, 10), ("fairgate", 0, 20), ("nginx", 1, 30), ("fairgate", 1, 45))
]


def goal(rows: list[dict[str, Any]], name: str) -> str:
    return next(line for line in floors.table(rows).splitlines() if line.startswith(f"| {name} |"))


def test_ratios_are_taken_within_a_round() -> None:
    """Medians of 10/20 and 30/45, not 20/32.5."""
    assert goal(ROWS, "JSON 1 KB, x nginx").split("|")[4:7] == [" 0.58 ", " met ", " missed "]


def test_a_broken_run_gives_no_figure() -> None:
    broken = [*ROWS[:4], row("fairgate", 1, 20, errors=1)]
    assert goal(broken, "JSON 1 KB, x nginx").split("|")[4] == " 0.50 "
    assert "1 order" in report.report(broken, "title")
    assert goal([FACTS, row("nginx", 0, 10), row("fairgate", 0, 20, errors=1)], "JSON 1 KB, x nginx").count("not") == 1


def test_a_report_names_what_was_not_measured() -> None:
    assert "not measured" in goal(ROWS, "MB per 1 000 open streams")
    memory = {"memory": "fairgate", "rest_mb": 40.0, "start_s": 0.4, "troubles": {}, "M5": {"each_1000_mb": 4.0}}
    assert goal([*ROWS, memory], "MB per 1 000 open streams").split("|")[5:7] == [" met ", " missed "]
    absent = {**FACTS, "missing": {"litellm": "no network"}}
    assert "Not measured: litellm: no network" in report.report([absent, *ROWS[1:]], "title")


def test_pages_and_pictures_of_rows_have_every_gateway() -> None:
    page = report.report(ROWS, "title")
    assert "| nginx | 66 667 |" in page
    assert "| fairgate | 36 111 |" in page
    assert plots.svg(ROWS).count("<rect") == 3  # the ground and two bars


def test_every_plan_names_scenarios_that_exist_and_some_gateway_can_run() -> None:
    for make in PLANS.values():
        for plan in make(Plan([], [])):
            assert plan.peers
            assert set(plan.scenarios) <= SCENARIOS.keys()


@pytest.mark.parametrize(("now", "code"), [(109.0, 0), (111.0, 1)])
def test_a_figure_more_than_ten_per_cent_above_the_kept_one_is_worse(
    tmp_path: Path, now: float, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps({"figures": {"exchange": 100}}))
    assert compare.conclude({"exchange": now}, "instructions", Namespace(against=kept, save=None)) == code
    assert ("WORSE" in capsys.readouterr().out) is bool(code)


def test_a_sample_belongs_to_the_innermost_known_frame() -> None:
    raw = (
        "thread (1): MainThread;run (asyncio/runners.py:1);handle (gateway/flow/phases.py:2);"
        "settle (gateway/flow/settle.py:3);_encode (msgspec/x.py:4) 7\n"
        "thread (1): MainThread;Runner.run (asyncio/runners.py:118) 10\n"
        "thread (2): log-writer;wait (threading.py:1) 99\n"
    )
    found = list(profile.stacks(raw))
    assert [profile.phase_of(frames) for frames, _ in found[:2]] == ["accounting, metrics, audit", profile.KERNEL]
    assert [count for _, count in profile.busy(found, 0.5)] == [7, 2]  # of 17 samples 8 found the loop waiting


def test_clients_that_left_are_told_from_refusals() -> None:
    labels = {"route": "/api/chat", "status": "4xx"}
    values = {
        tuple({**labels, "outcome": "client_gone"}.items()): 2.0,
        tuple({**labels, "outcome": "refused"}.items()): 3.0,
    }
    assert answered(values) == {"/api/chat gone": 2, "/api/chat 4xx": 3}


async def _one_chat(*without: str) -> tuple[int, int, int]:
    """Status, audit rows and requests counted, of a gateway that lacks these features."""
    engine = Engine(plain)
    with launch.without(list(without)):
        async with engine, gateway(engine.url) as g:
            status, _, _ = await g.ask("/v1/chat/completions", chat())
            stats = g.app.audit.stats()
            page = b"".join(g.app.metrics.exposition()[1]).decode()
    ended = [line for line in page.splitlines() if line.startswith('fairgate_requests_total{dialect="openai"')]
    return status, stats.written + stats.pending, sum(int(float(line.split()[-1])) for line in ended)


@NEEDS_SOURCE
def test_the_bench_leaves_features_out_and_the_rest_works() -> None:
    assert asyncio.run(_one_chat()) == (200, 1, 1)
    assert asyncio.run(_one_chat(*launch.FEATURES)) == (200, 0, 0)
    for feature in launch.FEATURES:
        assert asyncio.run(_one_chat(feature))[0] == 200


@NEEDS_SOURCE
def test_the_rig_of_the_micro_benchmarks_exchanges_and_streams() -> None:
    async def run() -> list[str]:
        async with rig(2) as made:
            request = made.request(100)
            made.ask(request)
            made.answer(ANSWER)
            made.check(BODY)
            made.ask(made.request(100, stream=True))
            for data in (STREAM_HEAD, FRAME, STREAM_END):
                made.answer(data)
            made.check(b"0\r\n\r\n")
            return [part.name for part in parts(made)]

    assert "settle" in asyncio.run(run())


def test_goals_of_the_compiled_wheel_stand_beside_those_of_the_plain_one() -> None:
    rows = [*ROWS, row("fairgate-compiled", 0, 12), row("fairgate-compiled", 1, 18)]
    page = floors.tables(rows)
    assert page.index("### Plain") < page.index("### Compiled")
    _, compiled = page.split("### Compiled")
    line = next(line for line in compiled.splitlines() if line.startswith("| JSON 1 KB, x nginx |"))
    assert line.split("|")[4:7] == [" 1.25 ", " met ", " met "]
    assert "### Compiled" not in floors.tables(ROWS)
