"""Runs the dashboard and the alert rules against a real Prometheus: `python docker/prometheus/live.py`.

Starts the demo, a Prometheus that scrapes it every second with the shipped rules, and more clients than slots, some of
which leave early or are refused. Meanwhile it runs every query of the dashboard. It exits with 1 and names the queries
without data (except those about zombies) and the rules that failed. Needs `prometheus` on PATH (Debian package
prometheus).
"""

import json
import math
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

HERE = Path(__file__).resolve().parent
DASHBOARD = HERE.parent / "grafana" / "dashboard.json"
SECONDS = 20.0
CLIENTS = 12
SLOTS = 4
UNASKED = re.compile("zombie")
"""Metrics of llama.cpp only, which the demo does not simulate."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def demo() -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "gateway", "demo", "--json", "--slots", str(SLOTS), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None  # noqa: S101  # asked for as a pipe
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """A Prometheus with the shipped configuration, but faster and aimed at `target` -> its address."""
    config = yaml.safe_load((HERE / "prometheus.yaml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(HERE / "alerts.yaml")]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target.removeprefix("http://")]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("prometheus is not on PATH (Debian package prometheus)")
    address = f"127.0.0.1:{free_port()}"
    command = [program, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    with subprocess.Popen([*command, f"--web.listen-address={address}", "--log.level=error"]) as process:  # noqa: S603
        try:
            yield f"http://{address}"
        finally:
            process.terminate()


def client(facts: dict[str, Any], stop: threading.Event) -> int:
    """Send streams, embeddings, a stream left early and requests to be refused until stopped -> number of requests."""
    body = {"model": facts["model"], "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    headers = {"Authorization": f"Bearer {facts['key']}"}
    made = 0
    with httpx.Client(base_url=facts["url"], headers=headers, timeout=30, trust_env=False) as http:
        while not stop.is_set():
            http.post("/v1/chat/completions", json=body | {"stream": True})
            http.post("/v1/embeddings", json={"model": facts["embed_model"], "input": "hello"})
            http.post("/v1/chat/completions", json=body | {"model": "none"})
            http.get("/v1/models", headers={"Authorization": "Bearer wrong"})
            with http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer:
                next(answer.iter_raw(), b"")
            made += 5
    return made


@contextmanager
def load(facts: dict[str, Any]) -> Iterator[list[Future[int]]]:
    """Run all clients while the block runs."""
    stop = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        try:
            yield [pool.submit(client, facts, stop) for _ in range(CLIENTS)]
        finally:
            stop.set()


def answers(url: str, query: str) -> bool:
    text = query.replace("$__rate_interval", "15s")
    reply = httpx.get(f"{url}/api/v1/query", params={"query": text}, timeout=10, trust_env=False).json()
    values = [float(series["value"][1]) for series in reply["data"]["result"]] if reply["status"] == "success" else []
    return any(not math.isnan(value) for value in values)


def unanswered(url: str, queries: list[str]) -> list[str]:
    """The queries without data. They are retried for as long as data was collected: a busy machine misses scrapes."""
    late = time.monotonic() + SECONDS
    while queries := [query for query in queries if not answers(url, query)]:
        if time.monotonic() > late:
            break
    return queries


def main() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    with tempfile.TemporaryDirectory() as folder, demo() as facts, prometheus(Path(folder), facts["admin_url"]) as url:
        with load(facts) as clients:
            time.sleep(SECONDS)
            empty = unanswered(url, [query for query in queries if not UNASKED.search(query)])
        rules = httpx.get(f"{url}/api/v1/rules", timeout=10, trust_env=False).json()["data"]["groups"][0]["rules"]
        sick = [rule["name"] for rule in rules if rule["health"] != "ok"]
        firing = [rule["name"] for rule in rules if rule["state"] == "firing"]
    print(f"{len(queries)} queries, {len(rules)} rules, {sum(one.result() for one in clients)} requests")
    print(f"empty: {empty}; not evaluated: {sick}; firing: {firing}")
    sys.exit(1 if empty or sick else 0)


if __name__ == "__main__":
    main()
