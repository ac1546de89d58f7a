"""What `loadtests.load` found, as Markdown and as charts. Only arithmetic and text."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from bench import machine
from loadtests.plot import Panel, chart

if TYPE_CHECKING:
    from loadtests.load import Result

OWN = ("TTFT", "GAP mean", "GAP longest", "REFUSED")
COLUMNS = {"requests": "Request Count", "failed": "Failure Count", "p50 ms": "50%", "p95 ms": "95%", "p99 ms": "99%"}


def summary(result: Result) -> str:
    """One line."""
    requests = sum(result.counted.values())
    agreed = "; ".join(result.disagreements) or "Prometheus agrees"
    return f"{result.name}: {requests} requests, {result.failures} failed; {agreed}"


def page(results: list[Result], said: list[str], seconds: int) -> str:
    """The whole report."""
    facts = [f"- {name}: {value}" for name, value in machine.facts().items()]
    facts.append(f"- CPython {platform.python_version()}, {machine.first_line(['prometheus', '--version'])}")
    facts.append(
        f"- `python -m loadtests.load --seconds {seconds}`; load, gateway, model server and Prometheus share the cores"
    )
    promtool = "nothing" if not said else "; ".join(said)
    parts = ["# Locust, with Prometheus watching", "\n".join(facts), "![over time](load.svg)"]
    parts += [_scenario(result) for result in results]
    parts.append(f"## The metrics page\n\n`promtool check metrics` says: {promtool}.")
    return "\n\n".join(parts) + "\n"


def _scenario(result: Result) -> str:
    users = ", ".join(f"{count} {name}" for name, count in result.scenario.users.items())
    if result.scenario.peak:
        users = f"{result.scenario.calm}, {result.scenario.peak}, {result.scenario.calm} users, in the ratio {users}"
    lines = [f"## {result.name}: {result.scenario.title}", "", f"{users}.", ""]
    lines += ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for row in sorted(result.stats, key=lambda row: (row["Type"] in OWN, row["Type"], row["Name"])):
        if row["Name"] != "Aggregated":
            cells = [row[column] for column in COLUMNS.values()]
            lines.append(f"| {row['Type']} {row['Name']} | " + " | ".join(cells) + " |")
    ours = ", ".join(f"{name} {value:.0f} ms" for name, value in result.quantiles.items())
    lines += ["", f"The gateway's own histogram of the time to the first token, by PromQL: {ours}.", ""]
    lines += ["| route and end | locust | Prometheus |", "|---|---:|---:|"]
    for key in sorted(result.counted.keys() | result.scraped.keys()):
        differs = "" if result.counted[key] == result.scraped[key] else " **differs**"
        lines.append(f"| {key} | {result.counted[key]} | {result.scraped[key]}{differs} |")
    return "\n".join(lines)


def plot(results: list[Result]) -> str:
    """Users, requests a second and the first frame's p95 of each party, scenario after scenario on one axis."""
    times: list[float] = []
    users: list[float] = []
    rates: list[float] = []
    firsts: dict[str, list[float]] = {}  # party -> a value for each time
    start = 0.0
    for result in results:
        own = [row for row in result.history if row["Name"] == "Aggregated"]
        origin = int(own[0]["Timestamp"]) if own else 0
        ttft = {(row["Name"], row["Timestamp"]): row["95%"] for row in result.history if row["Type"] == "TTFT"}
        for row in own:
            times.append(start + int(row["Timestamp"]) - origin)
            users.append(float(row["User Count"]))
            rates.append(float(row["Requests/s"]))
            for party in {name for name, _ in ttft} | firsts.keys():
                series = firsts.setdefault(party, [0.0] * (len(times) - 1))
                value = ttft.get((party, row["Timestamp"]), "N/A")
                series.append(0.0 if value == "N/A" else float(value))
        start = times[-1] + 1 if times else 0.0
    names = ", ".join(result.name for result in results)
    panels = [
        Panel("users", {"users": users}),
        Panel("events a second (requests and stream statistics)", {"events": rates}),
        Panel("first frame, p95 of ten seconds, ms", dict(firsts)),
    ]
    return chart(f"Locust: {names}", times, panels)
