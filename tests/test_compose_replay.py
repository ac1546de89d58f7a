"""docker/compose.demo.yaml without a container engine: its configurations, commands and first steps on real processes.

What this cannot show: images, networks, users and mounts; tests/test_docker.py and test_checkers.py look at those.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.databases import statement
from tests.servers import PostgreSQL, Redis, free_port, until

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
DEMO = (DOCKER / "compose.demo.yaml").read_text(encoding="utf-8")
ROLE = "fairgate_app"
START = 60.0


class Service:
    """The `fairgate` image with one mounted configuration."""

    def __init__(self, config: Path) -> None:
        self.environment = os.environ | {"FAIRGATE_CONFIG": str(config), "PYTHONPATH": str(ROOT)}

    def run(self, *words: str) -> str:
        line = [sys.executable, "-m", "gateway", *words]
        done = subprocess.run(line, capture_output=True, text=True, timeout=START, env=self.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def running(self, log: Path, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
        with log.open("wb") as out:
            process = subprocess.Popen([sys.executable, "-m", "gateway", *words], stderr=out, env=self.environment)
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(START) == 0, log.read_text(encoding="utf-8")
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def simulated_ollama() -> Iterator[str]:
    line = [sys.executable, "-m", "gateway.simulated", "--listen", "127.0.0.1:0", "--slots", "4"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait(START)
        process.stdout.close()  # type: ignore[union-attr]  # asked for as a pipe


def ask(url: str, key: str = "", body: Any = None) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(timeout=START, trust_env=False) as http:
        answer = http.post(url, json=body, headers=headers) if body else http.get(url, headers=headers)
    return answer.status_code, answer.text


def answers(url: str) -> bool:
    try:
        return ask(url)[0] == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def database(postgresql: PostgreSQL) -> Iterator[str]:
    """An empty database and a role without any right, as docker/postgres/app_role.sh leaves them."""
    owner = postgresql.url("postgres")
    asyncio.run(statement(owner, "CREATE DATABASE compose"))
    asyncio.run(statement(owner, f"CREATE ROLE {ROLE} LOGIN"))
    try:
        yield "compose"
    finally:
        asyncio.run(statement(owner, "DROP DATABASE compose WITH (FORCE)"))
        asyncio.run(statement(owner, f"DROP ROLE {ROLE}"))


def test_the_demos_services_work_together(postgresql: PostgreSQL, redis: Redis, database: str, tmp_path: Path) -> None:
    """D: from an empty database to a first stream and its record, as the file's own comment tells it."""
    services = yaml.safe_load(DEMO)["services"]
    urls = {
        "owner_url": postgresql.url(database),
        "store_url": postgresql.url(database, ROLE),
        "shared_url": redis.url(),
    }
    for name, url in urls.items():
        (tmp_path / name).write_text(url, encoding="utf-8")
    api, admin = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    with simulated_ollama() as engine:
        places = {
            "/run/secrets": str(tmp_path), "/var/lib/fairgate": str(tmp_path), "http://ollama:11434": engine,
            "0.0.0.0:8080": api, "0.0.0.0:9090": admin,
        }  # fmt: skip
        for name in ("demo", "migrate"):
            text = (DOCKER / f"config/{name}.yaml").read_text(encoding="utf-8")
            for place, here in places.items():
                text = text.replace(place, here)
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        migrate, fairgate = Service(tmp_path / "migrate.yaml"), Service(tmp_path / "demo.yaml")
        for _ in range(2):  # an upgrade runs it again
            migrate.run(*services["migrate"]["command"])
        log = tmp_path / "log"
        with fairgate.running(log, "serve"):
            until(lambda: answers(f"http://{admin}/readyz"), START, lambda: log.read_text(encoding="utf-8"))
            steps = re.findall(r"(?m)^#   fairgate (.*)$", DEMO)
            assert len(steps) == 3
            key = [fairgate.run(*step.split()) for step in steps][-1].strip()
            question = {"model": "llama3.2:3b", "stream": True, "messages": [{"role": "user", "content": "Why?"}]}
            status, stream = ask(f"http://{api}/v1/chat/completions", key, question)
            assert (status, stream.strip().endswith("data: [DONE]")) == (200, True)
            assert ask(f"http://{api}/playground")[0] == 200
            assert "fairgate_requests_total" in ask(f"http://{admin}/metrics")[1]
            until(lambda: '"done"' in fairgate.run("audit", "tail", "--json"), START, lambda: "no audit row came")
        assert "/v1/chat/completions" in fairgate.run("audit", "tail")
