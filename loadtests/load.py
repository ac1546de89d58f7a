"""Locust against the gateway, scraped by a real Prometheus: `python -m loadtests.load`, headless, one command.

    python -m loadtests.load [--scenarios steady,burst,abuser,agents,churn] [--seconds 40] [--out loadtests/results]

Starts the model server of `bench/`, a gateway with two backends (OpenAI and Ollama) and few slots, a Prometheus; then
one scenario after the other, each a locust run of `users.py`. Writes load.md and load.svg. Exits 1 if a stream was not
whole, if Prometheus and locust do not agree on what was answered, or if promtool complains about the metrics page.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.tools import Backend
from loadtests import loadreport
from loadtests.prometheus import Prometheus, complaints
from loadtests.rig import Rig
from tests.process import ROOT, RigError

SLOTS = 12
FRAME_RATE = 50
TENANTS = ("team-a", "team-b", "abuser")
REQUESTS = "sum by (route, status, outcome) (fairgate_requests_total)"


@dataclass(frozen=True)
class Scenario:
    """Users of each class of `users.py`; `peak` makes it a burst from `calm` users to so many and back."""

    title: str
    users: dict[str, int]
    peak: int = 0
    calm: int = 0


SCENARIOS = {
    "steady": Scenario("two teams, both APIs, chats, streams, embeddings, lists, aborts", {"OpenAI": 12, "Ollama": 8}),
    "burst": Scenario("the same, but many at once for a third of the time", {"OpenAI": 3, "Ollama": 2}, 70, 10),
    "abuser": Scenario("an ordinary load beside one user with 30 streams", {"OpenAI": 8, "Ollama": 4, "Abuser": 30}),
    "agents": Scenario("an ordinary load beside coding agents", {"OpenAI": 6, "Ollama": 4, "Agent": 12}),
    "churn": Scenario(
        "an ordinary load beside clients that come, leave and bring wrong keys",
        {"OpenAI": 6, "Ollama": 4, "Churner": 20},
    ),
}


@dataclass
class Result:
    """What one scenario brought."""

    name: str
    scenario: Scenario
    stats: list[dict[str, str]]
    history: list[dict[str, str]]
    counted: Counter[str]
    scraped: Counter[str]
    quantiles: dict[str, float] = field(default_factory=dict)

    @property
    def failures(self) -> int:
        return sum(int(row["Failure Count"]) for row in self.stats if row["Name"] != "Aggregated")

    @property
    def disagreements(self) -> list[str]:
        keys = sorted(self.counted.keys() | self.scraped.keys())
        differ = [key for key in keys if self.counted[key] != self.scraped[key]]
        return [f"{key}: locust {self.counted[key]}, Prometheus {self.scraped[key]}" for key in differ]


def settings(port: int) -> dict[str, Any]:
    """Two backends that are one process; half of the slots each."""
    url = f"http://127.0.0.1:{port}"
    backends = [
        {"name": "openai", "url": url, "engine": "openai", "slots": SLOTS // 2},
        {"name": "ollama", "url": url, "engine": "ollama", "slots": SLOTS // 2},
    ]
    return {"backends": backends, "caps": {"connections_per_ip": 10_000, "connections_per_key": 1000}}


def answered(values: dict[Any, float]) -> Counter[str]:
    """Prometheus' labels as `route outcome`, as `users.py` counts."""
    found: Counter[str] = Counter()
    for labels, value in values.items():
        told = dict(labels)
        end = "gone" if told["outcome"] == "client_gone" else told["status"]
        found[f"{told['route']} {end}"] += round(value)
    return found


def locust(plan: dict[str, Any], scenario: Scenario, folder: Path) -> None:
    """One headless run. Failures of requests are in its files; this raises RigError if locust itself fails."""
    (folder / "plan.json").write_text(json.dumps(plan))
    files = str(ROOT / "loadtests" / "users.py")
    command = [sys.executable, "-m", "locust", "--headless", "--only-summary", "--csv", str(folder / "out")]
    command += ["--csv-full-history", "--stop-timeout", "30", "--exit-code-on-error", "0", "--loglevel", "WARNING"]
    if scenario.peak:
        command += ["-f", f"{files},{ROOT / 'loadtests' / 'burst.py'}"]
    else:
        users = str(sum(scenario.users.values()))
        command += ["-f", files, "--users", users, "--spawn-rate", "20", "--run-time", f"{plan['seconds']}s"]
    environment = os.environ | {"LOAD_PLAN": str(folder / "plan.json"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *scenario.users], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode or not (folder / "counts.json").exists():
        raise RigError(f"locust failed: {done.stderr[-2000:]}")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run(rig: Rig, prometheus: Prometheus, name: str, seconds: int) -> Result:
    """One scenario, and the gateway's own count of it as Prometheus has it."""
    scenario = SCENARIOS[name]
    before = answered(prometheus.settled(REQUESTS))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        plan = {
            "url": f"http://127.0.0.1:{rig.port}",
            "keys": rig.keys_of,
            "users": scenario.users,
            "seconds": seconds,
            "peak": scenario.peak,
            "calm": scenario.calm,
            "counts": str(folder / "counts.json"),
        }
        locust(plan, scenario, folder)
        scraped = answered(prometheus.settled(REQUESTS))
        scraped.subtract(before)
        return Result(
            name=name,
            scenario=scenario,
            stats=rows(folder / "out_stats.csv"),
            history=rows(folder / "out_stats_history.csv"),
            counted=Counter(json.loads((folder / "counts.json").read_text())),
            scraped=+scraped,
            quantiles=quantiles(prometheus, seconds),
        )


def quantiles(prometheus: Prometheus, seconds: int) -> dict[str, float]:
    """The gateway's own view of time to the first token, in milliseconds."""
    found = {}
    for quantile in (0.5, 0.95):
        rate = f"rate(fairgate_time_to_first_token_seconds_bucket[{seconds}s])"
        values = prometheus.ask(f"histogram_quantile({quantile}, sum by (le) ({rate}))")
        found[f"p{quantile * 100:.0f}"] = next(iter(values.values()), float("nan")) * 1e3
    return found


async def everything(options: argparse.Namespace) -> tuple[list[Result], list[str]]:
    """All scenarios, and promtool's complaints about the page at the end."""
    with Backend(options.core) as backend, tempfile.TemporaryDirectory() as folder:
        backend.set(rate=FRAME_RATE)
        async with Rig(settings(backend.port), tenants=TENANTS) as rig:
            with Prometheus(f"127.0.0.1:{rig.admin_port}", Path(folder)) as prometheus:
                results = []
                for name in options.scenarios.split(","):
                    results.append(await asyncio.to_thread(run, rig, prometheus, name, options.seconds))
                    print(loadreport.summary(results[-1]), flush=True)
                page = (await asyncio.to_thread(rig.fetch, "/metrics"))[1]
                return results, complaints(page)


def main() -> int:
    known = argparse.ArgumentParser(prog="python -m loadtests.load", description=__doc__.partition("\n")[0])
    known.add_argument("--scenarios", default=",".join(SCENARIOS))
    known.add_argument("--seconds", type=int, default=40, help="of each scenario")
    known.add_argument("--core", type=int, default=0, help="of the model server")
    known.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = known.parse_args()
    try:
        results, said = asyncio.run(everything(options))
    except RigError as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    page = loadreport.page(results, said, options.seconds)
    (options.out / "load.md").write_text(page)
    (options.out / "load.svg").write_text(loadreport.plot(results))
    print(page)
    return 1 if said or any(result.failures or result.disagreements for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
