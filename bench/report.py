"""Rows to Markdown tables: medians over rounds, ratios taken within a round. A run with any error gives no figure.

A rows file holds one or more runs, each begun by a line of facts; memory rows may follow. Only arithmetic and text.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.scenarios import SCENARIOS, Scenario

Row = dict[str, Any]
Value = Callable[[Row], float | None]
REFERENCE = "nginx"


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclass
class Run:
    """One interleaved run: its facts and its measured rows."""

    facts: Row
    rows: list[Row] = field(default_factory=list)

    def of(self, scenario: str, spin: bool) -> dict[str, list[Row]]:
        """Peer -> its rows of this scenario."""
        peers: dict[str, list[Row]] = {}
        for row in self.rows:
            if (row["scenario"], row["spin"]) == (scenario, spin):
                peers.setdefault(row["peer"], []).append(row)
        return peers

    def turns(self) -> list[tuple[str, bool]]:
        """What was run, in its order."""
        return list(dict.fromkeys((row["scenario"], row["spin"]) for row in self.rows))


def runs(rows: Iterable[Row]) -> list[Run]:
    found: list[Run] = []
    for row in rows:
        if "facts" in row:
            found.append(Run(row))
        elif "scenario" in row:
            found[-1].rows.append(row)
    return found


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


def cpu(row: Row) -> float | None:
    value: float | None = row["cpu_us"]
    return value


def speed(row: Row) -> float | None:
    return float(row["units_per_s"])


def columns(scenario: Scenario) -> list[Column]:
    """The figures that say something about this scenario."""
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
        shown += [plain("held", held)] if scenario.frame_rate else []
    else:
        shown += [plain("p50 us", at("latency_us", "p50")), plain("p99", at("latency_us", "p99"))]
    if scenario.mode == "open":
        shown += [over_direct("added p50", at("latency_us", "p50")), over_direct("added p99", at("latency_us", "p99"))]
    if scenario.mode == "abort":
        shown += [plain("abort seen p50 us", lambda row: median(row["abort_us"]))]
        shown += [plain("max", lambda row: max(row["abort_us"], default=None))]
    return [
        *shown,
        plain("PSS MB", lambda row: row["pss_mb"] or None),
        plain("tools idle", idle),
        plain("tools core", tools),
    ]


def tools(row: Row) -> float | None:
    """Share of a core that backend and load generator took; 1 where they spin."""
    share: float | None = None if row["spin"] else row.get("tools_share")
    return share


def held(row: Row) -> float | None:
    """First frames over 30 ms behind their head, and gaps over 100 ms beyond the pace: each one was held back."""
    load = row["load"]
    return float(load["firsts_held"] + load["gaps_held"]) if "gaps_held" in load else None


def idle(row: Row) -> float | None:
    """Share of looks that found nothing, of the busier tool; near 0 it was the limit. None where they sleep."""
    if not row["spin"] or not row["backend"]["polls"]:
        return None
    return float(min(row["load"]["polls_empty"], row["backend"]["polls_empty"] / row["backend"]["polls"]))


def verdict(rows: list[Row]) -> str:
    """What integrity found in all rounds of one gateway: `all sound`, or the troubles counted."""
    troubles: dict[str, int] = {}
    for row in rows:
        for name, count in row["load"]["troubles"].items():
            troubles[name] = troubles.get(name, 0) + count
    requests = sum(row["load"]["all_requests"] for row in rows)
    return counted(troubles) or f"{requests} sound"


def counted(troubles: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in troubles.items())


def table(run: Run, name: str, spin: bool) -> str:
    """One Markdown section."""
    scenario, peers = SCENARIOS[name], run.of(name, spin)
    title = scenario.title
    conns = next(iter(peers.values()))[0].get("conns", scenario.conns)
    if conns < scenario.conns:
        title += f"; {conns} connections here, for {run.facts['files']} descriptors"
    shown = columns(scenario)
    lines = [f"### {scenario.name}: {title} ({'load side spins' if spin else 'load side sleeps'})", ""]
    lines.append("| gateway | " + " | ".join(title for title, _ in shown) + " | integrity |")
    lines.append("|---|" + "---:|" * len(shown) + "---|")
    for peer in sorted(peers, key=lambda peer: order(peers[peer])):
        cells = [text(value(peers, peer)) for _, value in shown]
        lines.append(f"| {peer} | " + " | ".join(cells) + f" | {verdict(peers[peer])} |")
    return "\n".join(lines)


def order(rows: list[Row]) -> float:
    """Cheapest first; the direct path, which has no CPU of its own, before all."""
    return median(row["cpu_us"] for row in rows) or 0.0


def head(found: list[Run]) -> str:
    """Machine, versions and what the runs were."""
    facts = found[0].facts
    lines = [f"- {name}: {value}" for name, value in facts["facts"].items()]
    lines.append(
        f"- {facts['rounds']} interleaved rounds of {facts['seconds']:g} s; proxy alone on one core, tools on another"
    )
    if "files" in facts:
        lines.append(f"- open files: at most {facts['files']} a process")
    lines += ["", "| gateway | version | kind | start s | base MB |", "|---|---|---|---:|---:|"]
    peers = {name: peer for run in found for name, peer in run.facts["peers"].items()}
    for name, peer in peers.items():
        lines.append(f"| {name} | {peer['version']} | {peer['note']} | {peer['start_s']:.2f} | {peer['base_mb']:.0f} |")
    missing = {name: reason for run in found for name, reason in run.facts.get("missing", {}).items()}
    lines += [f"\nNot measured: {name}: {reason}" for name, reason in missing.items()]
    return "\n".join(lines)


def features(run: Run) -> str:
    """The price of each feature: everything on, less everything on but this."""
    lines = ["### What a feature costs: CPU of everything on, less CPU without it", ""]
    lines += ["| left out | " + " | ".join(f"us/{SCENARIOS[name].unit} in {name}" for name, _ in run.turns()) + " |"]
    lines += ["|---|" + "---:|" * len(run.turns())]
    names = [name for name in run.facts["peers"] if name.startswith(("fairgate-no", "fairgate-bare"))]
    for peer in names:
        cells = []
        for name, spin in run.turns():
            peers = run.of(name, spin)
            saved = against(peers["fairgate"], peers.get(peer, []), cpu, lambda own, that: own - that)
            cells.append(text(saved))
        lines.append(f"| {peer.removeprefix('fairgate-')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if names else ""


def memory(rows: list[Row]) -> str:
    """The memory rows as a table; megabytes."""
    names = [name for name in ("I1", "M1", "M5") if rows and name in rows[0]]
    lines = ["## Memory, each gateway freshly started (MB, proportional set size)", ""]
    each = [f"each 1 000: {SCENARIOS[name].title}" for name in names]
    lines.append("| gateway | start s | at rest | after S1 | " + " | ".join(each) + " | afterwards | troubles |")
    lines.append("|---|" + "---:|" * (len(names) + 5))
    for row in rows:
        cells = [row["start_s"], row["rest_mb"], row["warm_mb"], *(row[name]["each_1000_mb"] for name in names)]
        shown = [*map(text, [*cells, row["after_mb"]]), counted(row["troubles"]) or "none"]
        lines.append(f"| {row['memory']} | " + " | ".join(shown) + " |")
    return "\n".join(lines) if rows else ""


def report(rows: list[Row], title: str) -> str:
    """The whole page."""
    found = runs(rows)
    sections: list[str] = []
    for run in found:
        heading: str = run.facts.get("title", "")
        sections.append(f"## {heading[0].upper()}{heading[1:]}" if heading and run.rows else "")
        sections += [table(run, name, spin) for name, spin in run.turns()]
        sections.append(features(run))
    sections.append(memory([row for row in rows if "memory" in row]))
    return "\n\n".join(part for part in [f"# {title}", head(found) if found else "", *sections] if part) + "\n"
