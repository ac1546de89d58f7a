"""What the client tests share: one `fairgate demo --json` process in front of a simulated Ollama of its own.

Bad keys are throttled by address: the tests of one session may fail to authenticate fewer than ten times on it.
"""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import ollama
import openai
import pytest

QUESTION: list[Any] = [{"role": "user", "content": "Tell me about lighthouses, queues and “naïve” cafés"}]
ENDLESS: list[Any] = [{"role": "user", "content": "Write 90000 words about patience"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASK_WEATHER: list[Any] = [{"role": "user", "content": "Use the tool to get the weather of Oslo"}]
ANIMAL: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "legs": {"type": "integer"}},
    "required": ["name", "legs"],
}
PACE = 400  # tokens a second: quick, yet the endless answer (4096 tokens) lasts ten seconds
STARTS = 60  # seconds a process may take to start on a busy machine


def word(number: int) -> str:
    """A word of its own for each number below 676; the simulated model repeats it."""
    return "Queue" + chr(ord("a") + number // 26) + chr(ord("a") + number % 26)


class Site(NamedTuple):
    """A running gateway: its address and key, its models, and the simulated Ollama behind it."""

    url: str
    key: str
    model: str
    embed_model: str
    backend: str

    def stats(self) -> dict[str, Any]:
        """What the backend saw so far."""
        return dict(httpx.get(f"{self.backend}/simulated/stats").json())

    def wait(self, event: str, count: int = 1) -> None:
        """Until the backend saw `event` so often in all."""
        query: dict[str, Any] = {"event": event, "count": count, "timeout": 10}
        answer = httpx.get(f"{self.backend}/simulated/wait", params=query, timeout=15)
        assert answer.status_code == 200, answer.text

    @contextlib.contextmanager
    def abort_seen(self) -> Iterator[None]:
        """What happens inside makes the engine see exactly one more client leave, at once, and nothing runs on."""
        before = self.stats()["aborted"]
        yield
        self.wait("abort", before + 1)
        self.wait("idle")
        assert self.stats()["aborted"] == before + 1


@contextlib.contextmanager
def running(*command: str) -> Iterator[dict[str, Any]]:
    """A module of ours in a process of its own; the facts of its first line."""
    with subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()
            process.wait(STARTS)
            assert process.returncode in (0, -signal.SIGTERM)


@contextlib.contextmanager
def demo(engine: str) -> Iterator[Site]:
    """A gateway as `fairgate demo --json` starts it, in front of a simulated Ollama that it takes for this kind."""
    pace = ("--tokens-per-second", str(PACE), "--ttft", "0", "--load-seconds", "0", "--slots", "32")
    with running("gateway.simulated", "--listen", "127.0.0.1:0", *pace) as backend:
        front = ("--backend", backend["url"], "--engine", engine, "--slots", "32")
        with running("gateway", "demo", "--json", "--listen", "127.0.0.1:0", *front) as facts:
            yield Site(facts["url"], facts["key"], facts["model"], facts["embed_model"], backend["url"])


@pytest.fixture(scope="session")
def own() -> Iterator[Site]:
    """One for the session, whose engine speaks all APIs."""
    with demo("ollama") as made:
        yield made


@pytest.fixture(scope="session")
def compatible() -> Iterator[Site]:
    """One whose engine is asked in OpenAI's words only (A4)."""
    with demo("openai") as made:
        yield made


@pytest.fixture
def site(own: Site) -> Site:
    """What a test talks to; modules for clients of other APIs than OpenAI's have it twice."""
    return own


@pytest.fixture
def sdk(site: Site) -> Iterator[openai.OpenAI]:
    """The openai client, unmodified, with the site's key."""
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=site.key) as client:
        yield client


@pytest.fixture
def native(site: Site) -> Iterator[ollama.Client]:
    """The ollama client, unmodified, with the site's key."""
    client = ollama.Client(host=site.url, headers={"Authorization": f"Bearer {site.key}"})
    yield client
    client._client.close()  # older releases of the client offer no way to close its connections
