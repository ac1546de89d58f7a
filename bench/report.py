"""Rows to a Markdown table: medians over rounds, ratios taken within a round. A run with any error gives no figure.

Only arithmetic and text; runs nothing.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.scenarios import SCENARIOS, Scenario

Row = dict[str, Any]
Value = Callable[[Row], float | None]
REFERENCE = "nginx"


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sound(row: Row) -> bool:
    return not row["load"]["errors"]


def median(values: Iterable[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return statistics.median(kept) if kept else None


def against(rows: list[Row], other: list[Row], value: Value, combine: Callable[[float, float], float]) -> float | None:
    """Median over rounds of combine(own, other's of the same round)."""
    theirs = {row["round"]: value(row) for row in other if sound(row)}
    pairs = ((value(row), theirs.get(row["round"])) for row in rows if sound(row))
    return median(combine(own, that) for own, that in pairs if own is not None and that)


def at(name: str, quantile: str) -> Value:
    """A quantile of one of the load's histograms, in microseconds; None if nothing was recorded."""
    return lambda row: row["load"][name][quantile] if row["load"][name]["n"] else None


def text(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


Column = tuple[str, Callable[[dict[str, list[Row]], str], float | None]]


def plain(title: str, value: Value) -> Column:
    return title, lambda peers, name: median(value(row) for row in peers[name] if sound(row))


def over_reference(title: str, value: Value) -> Column:
    return title, lambda peers, name: against(peers[name], peers.get(REFERENCE, []), value, lambda own, ref: own / ref)


def over_direct(title: str, value: Value) -> Column:
    def added(peers: dict[str, list[Row]], name: str) -> float | None:
        return (
            None
            if name == "direct"
            else against(peers[name], peers.get("direct", []), value, lambda own, ref: own - ref)
        )

    return title, added


def columns(scenario: Scenario) -> list[Column]:
    """The figures that say something about this scenario."""
    cpu: Value = lambda row: row["cpu_us"]  # noqa: E731 - one of many small readers
    speed: Value = lambda row: row["units_per_s"]  # noqa: E731
    unit = scenario.unit
    shown = [plain(f"{unit}s/s", speed)]
    if scenario.mode == "closed" and not scenario.frame_rate:
        shown.append(over_reference("rate x nginx", speed))
    shown += [
        plain(f"CPU us/{unit}", cpu),
        over_reference("CPU / nginx", cpu),
        plain("core", lambda row: row["core_share"]),
    ]
    if scenario.stream:
        shown += [plain("first p50 us", at("first_us", "p50")), plain("p99", at("first_us", "p99"))]
        shown += [over_direct("added p50", at("first_us", "p50"))]
        shown += [plain("transit p50 us", at("transit_us", "p50")), plain("p99", at("transit_us", "p99"))]
        shown += [plain("gap p99 us", at("gap_us", "p99")), plain("max", at("gap_us", "max"))]
    else:
        shown += [plain("p50 us", at("latency_us", "p50")), plain("p99", at("latency_us", "p99"))]
    if scenario.mode == "open":
        shown += [over_direct("added p50", at("latency_us", "p50")), over_direct("added p99", at("latency_us", "p99"))]
    if scenario.mode == "abort":
        shown += [plain("abort seen p50 us", lambda row: median(row["abort_us"]))]
        shown += [plain("max", lambda row: max(row["abort_us"], default=None))]
    return [*shown, plain("PSS MB", lambda row: row["pss_mb"] or None)]


def verdict(rows: list[Row]) -> str:
    """What integrity found in all rounds of one gateway: `all sound`, or the troubles counted."""
    troubles: dict[str, int] = {}
    for row in rows:
        for name, count in row["load"]["troubles"].items():
            troubles[name] = troubles.get(name, 0) + count
    requests = sum(row["load"]["all_requests"] for row in rows)
    return f"{requests} sound" if not troubles else ", ".join(f"{count} {name}" for name, count in troubles.items())


def table(scenario: Scenario, spin: bool, rows: list[Row]) -> str:
    """One Markdown section."""
    peers: dict[str, list[Row]] = {}
    for row in rows:
        peers.setdefault(row["peer"], []).append(row)
    shown = columns(scenario)
    lines = [f"### {scenario.name}: {scenario.title} ({'load side spins' if spin else 'load side sleeps'})", ""]
    lines.append("| gateway | " + " | ".join(title for title, _ in shown) + " | integrity |")
    lines.append("|---|" + "---:|" * len(shown) + "---|")
    for name in sorted(peers, key=lambda name: order(peers[name])):
        cells = [text(value(peers, name)) for _, value in shown]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {verdict(peers[name])} |")
    return "\n".join(lines)


def order(rows: list[Row]) -> float:
    """Cheapest first; the direct path, which has no CPU of its own, before all."""
    return median(row["cpu_us"] for row in rows) or 0.0


def head(facts: Row) -> str:
    """Machine, versions and what a run was."""
    lines = [f"- {name}: {value}" for name, value in facts["facts"].items()]
    lines.append(
        f"- {facts['rounds']} interleaved rounds of {facts['seconds']:g} s; proxy alone on one core, tools on another"
    )
    lines += ["", "| gateway | version | kind | start s | base MB |", "|---|---|---|---:|---:|"]
    for name, peer in facts["peers"].items():
        lines.append(f"| {name} | {peer['version']} | {peer['note']} | {peer['start_s']:.2f} | {peer['base_mb']:.0f} |")
    return "\n".join(lines)


def report(rows: list[Row], title: str) -> str:
    """The whole page."""
    facts, *runs = rows
    groups: dict[tuple[str, bool], list[Row]] = {}
    for row in runs:
        groups.setdefault((row["scenario"], row["spin"]), []).append(row)
    sections = [table(SCENARIOS[name], spin, group) for (name, spin), group in groups.items()]
    return "\n\n".join([f"# {title}", head(facts), *sections]) + "\n"
