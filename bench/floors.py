"""The goals as a table: each floor and stretch figure, what a run reached, and whether that is enough.

Reads rows; runs nothing. Ratios are taken within a round, of CPU time per unit, which is what a core can do; where a
run has no figure for a goal the table says so instead of leaving the line out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.report import Row, Run, Value, against, at, cpu, median, runs, sound, speed, text

OURS = "fairgate"
Measure = Callable[["Rows"], float | None]


class Rows:
    """The rows of one file, and the questions goals ask of them."""

    def __init__(self, rows: list[Row], ours: str) -> None:
        self.ours = ours
        self.runs = runs(rows)
        self.memory = {row["memory"]: row for row in rows if "memory" in row}

    def _run(self, scenario: str, *peers: str) -> tuple[Run, bool] | None:
        """The first run in which all of them met this scenario, the load side spinning if it did anywhere."""
        for spin in (True, False):
            for run in self.runs:
                if set(peers) <= run.of(scenario, spin).keys():
                    return run, spin
        return None

    def ratio(self, scenario: str, over: str, under: str, value: Value) -> float | None:
        return self.pair(scenario, over, under, value, lambda one, other: one / other)

    def pair(
        self, scenario: str, one: str, other: str, value: Value, combine: Callable[[float, float], float]
    ) -> float | None:
        """Median over rounds of two gateways' figures, combined."""
        found = self._run(scenario, one, other)
        if found is None:
            return None
        peers = found[0].of(scenario, found[1])
        return against(peers[one], peers[other], value, combine)

    def added(self, scenario: str, peer: str, value: Value) -> float | None:
        """Over the direct path."""
        return self.pair(scenario, peer, "direct", value, lambda own, direct: own - direct)

    def own(self, scenario: str, value: Value, peer: str = "") -> float | None:
        """Median of the sound rows of one gateway, ours unless another is named."""
        peer = peer or self.ours
        found = self._run(scenario, peer)
        if found is None:
            return None
        return median(value(row) for row in found[0].of(scenario, found[1])[peer] if sound(row))

    def share_sound(self, scenario: str) -> float | None:
        """1 if every answer was whole, in order and ours; less otherwise."""
        found = self._run(scenario, self.ours)
        if found is None:
            return None
        rows = found[0].of(scenario, found[1])[self.ours]
        whole, asked = (float(sum(row["load"][name] for row in rows)) for name in ("all_sound", "all_requests"))
        return whole / max(1.0, asked)

    def of_memory(self, *path: str) -> float | None:
        row: object = self.memory.get(self.ours)
        for step in path:
            row = row.get(step) if isinstance(row, dict) else None
        return float(row) if isinstance(row, int | float) else None

    def start(self) -> float | None:
        alone = self.of_memory("start_s")
        if alone is not None:
            return alone
        starts = [run.facts["peers"][self.ours]["start_s"] for run in self.runs if self.ours in run.facts["peers"]]
        return median(starts)


@dataclass(frozen=True)
class Goal:
    """`at_least`: more is better. A stretch of None is not set."""

    name: str
    measure: Measure
    floor: float
    stretch: float | None
    at_least: bool = False

    def reached(self, value: float, bound: float | None) -> str:
        if bound is None:
            return "-"
        return "met" if (value >= bound if self.at_least else value <= bound) else "missed"


def _times(scenario: str, peer: str) -> Measure:
    """How many times cheaper than a peer a unit is."""
    return lambda rows: rows.ratio(scenario, peer, rows.ours, cpu)


def _first(quantile: str) -> Measure:
    def beyond_nginx(rows: Rows) -> float | None:
        ours, theirs = (rows.added("S4", peer, at("first_us", quantile)) for peer in (rows.ours, "nginx"))
        return None if ours is None or theirs is None else ours - theirs

    return beyond_nginx


def _added_ratio(rows: Rows) -> float | None:
    ours, theirs = (rows.added("S2-10k", peer, at("latency_us", "p50")) for peer in (rows.ours, "nginx"))
    return None if ours is None or not theirs else ours / theirs


def _audit(rows: Rows) -> float | None:
    """Of the plain form: nothing can be left out of the compiled one."""
    if rows.ours != OURS:
        return None
    return rows.pair("S1", "fairgate-postgresql", "fairgate-no-audit", cpu, lambda full, less: full - less)


def _stall(rows: Rows) -> float | None:
    peer = f"{rows.ours}-watched"
    found = [rows.own(name, lambda row: row["watched"]["busy_ms"], peer) for name in ("S1", "S5")]
    return max((value for value in found if value is not None), default=None)


def _two_workers(rows: Rows) -> float | None:
    return rows.ratio("S1", f"{rows.ours}-2-workers", rows.ours, speed)


def _milliseconds(value: float | None) -> float | None:
    return None if value is None else value / 1e3


GOALS = (
    Goal("JSON 1 KB, x nginx", _times("S1", "nginx"), 0.50, 0.65, True),
    Goal("JSON 32 KB, x nginx", _times("S1-32k", "nginx"), 0.45, 0.60, True),
    Goal("JSON 1 KB, x vllm-router", _times("S1", "vllm-router"), 1.7, 2.2, True),
    Goal("JSON 1 KB, x sglang-router", _times("S1", "sglang-router"), 2.1, 2.8, True),
    Goal("JSON 1 KB, x aiohttp relay", _times("S1", "aiohttp"), 6, 8, True),
    Goal("JSON 1 KB, x FastAPI + httpx", _times("S1", "fastapi"), 70, 100, True),
    Goal("JSON 1 KB, x Portkey", _times("S1", "portkey"), 50, 65, True),
    Goal("JSON 1 KB, x LiteLLM", _times("S1", "litellm"), 300, 400, True),
    Goal("CPU per frame at 50 k/s, x nginx", lambda rows: rows.ratio("S5", rows.ours, "nginx", cpu), 1.35, 1.15),
    Goal("the same, x vllm-router", lambda rows: rows.ratio("S5", rows.ours, "vllm-router", cpu), 1.0, None),
    Goal("100 k frames/s: share of answers whole", lambda rows: rows.share_sound("S6"), 1.0, 1.0, True),
    Goal("100 k frames/s: frames/s that came", lambda rows: rows.own("S6", speed), 95_000, 99_000, True),
    Goal("100 k frames/s: share of the core", lambda rows: rows.own("S6", lambda row: row["core_share"]), 0.80, 0.62),
    Goal("first frame p50 at 200 x 50, us beyond nginx's", _first("p50"), 50, 20),
    Goal(
        "first frame p99 at 200 x 50, x nginx's",
        lambda rows: rows.ratio("S4", rows.ours, "nginx", at("first_us", "p99")),
        2.0,
        1.2,
    ),
    Goal(
        "frame transit p99 at 200 x 50, ms added",
        lambda rows: _milliseconds(rows.added("S4", rows.ours, at("transit_us", "p99"))),
        1.0,
        0.3,
    ),
    Goal("JSON p50 at 10 k/s, added, x nginx's", _added_ratio, 1.5, 1.15),
    Goal("MB per 1 000 open streams", lambda rows: rows.of_memory("M5", "each_1000_mb"), 5.0, 3.5),
    Goal("MB at rest", lambda rows: rows.of_memory("rest_mb"), 60, 35),
    Goal("5 000 streams in 2.5 s: share whole", lambda rows: rows.share_sound("M5"), 1.0, 1.0, True),
    Goal(
        "5 000 streams in 2.5 s: first frame p99, ms",
        lambda rows: _milliseconds(rows.own("M5", at("first_us", "p99"))),
        15,
        1,
    ),
    Goal("audit to PostgreSQL, us of our CPU a request", _audit, 2.0, 1.2),
    Goal("longest loop stall of its own, ms (S1, S5)", _stall, 5.0, 1.0),
    Goal("start to first answer, s", lambda rows: rows.start(), 0.6, 0.3),
    Goal("10 000 streams at once: share whole", lambda rows: rows.share_sound("M10"), 1.0, None, True),
    Goal(
        "all on, of the throughput of all off",
        lambda rows: rows.ratio("S1", "fairgate-bare", rows.ours, cpu),
        0.70,
        0.85,
        True,
    ),
    Goal("2 workers, x one", _two_workers, 1.7, None, True),
)


def table(rows: list[Row], ours: str = OURS) -> str:
    """Markdown, of the gateway that is called `ours` in the rows. The last line counts."""
    asked = Rows(rows, ours)
    lines = ["| goal | floor | stretch | measured | floor | stretch |", "|---|---:|---:|---:|---|---|"]
    counts = {"met": 0, "missed": 0, "not measured": 0}
    for goal in GOALS:
        value = goal.measure(asked)
        sign = ">=" if goal.at_least else "<="
        floor = "not measured" if value is None else goal.reached(value, goal.floor)
        stretch = "-" if value is None else goal.reached(value, goal.stretch)
        counts[floor] += 1
        wish = "-" if goal.stretch is None else f"{sign} {goal.stretch:g}"
        lines.append(f"| {goal.name} | {sign} {goal.floor:g} | {wish} | {text(value)} | {floor} | {stretch} |")
    lines += ["", f"Floors: {', '.join(f'{count} {name}' for name, count in counts.items())}."]
    return "\n".join(lines)


def tables(rows: list[Row]) -> str:
    """Of the plain installation and of the compiled wheel, on the embedded store and on the live one that the goals
    speak of; as far as each was measured."""
    parts = {
        "Plain": OURS,
        "Compiled": f"{OURS}-compiled",
        "Compiled, records to PostgreSQL": f"{OURS}-compiled-postgresql",
    }
    known = {row["peer"] for row in rows if "peer" in row}
    return "\n\n".join(f"### {title}\n\n{table(rows, name)}" for title, name in parts.items() if name in known)
