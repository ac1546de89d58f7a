"""Measures what a light user feels beside an abuser, with and without fairgate: `python docs/abuser.py`.

A simulated Ollama with two slots; an agent keeps 40 streams going at once; Lea asks one question every two seconds.
Once both talk to the engine directly, once through fairgate with a key each. What is measured is Lea's time to the
first token. Writes docs/img/abuser.json (every sample) and docs/img/abuser.svg (from it). Takes about three minutes.
"""

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from pictures import AMBER, BLUE, IMAGES, LINE, MUTED, box, picture, text

MODEL = "llama3.2:3b"
SLOTS, PACE, TOKENS = 2, 50.0, 60  # tokens a second of one stream, tokens of an answer
STREAMS, EVERY = 40, 2.0
FAIRGATE = [sys.executable, "-m", "gateway"]


@contextmanager
def engine() -> Iterator[str]:
    """A simulated Ollama -> its address."""
    command = [sys.executable, "-m", "gateway.simulated", "--listen", "127.0.0.1:0", "--slots", str(SLOTS)]
    pace = ["--tokens-per-second", str(PACE), "--ttft", "0.1", "--load-seconds", "0"]
    with subprocess.Popen([*command, *pace], stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None  # noqa: S101  # asked for as a pipe
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


@contextmanager
def gateway(url: str, folder: Path) -> Iterator[tuple[str, str, str]]:
    """fairgate in front of `url` -> (address, the agent's key, Lea's key)."""
    port = free_port()
    config = folder / "fairgate.yaml"
    backend = f"{{name: sim, url: '{url}', engine: ollama, slots: {SLOTS}}}"
    config.write_text(
        f"listen: 127.0.0.1:{port}\nstore: {folder}/fairgate.db\nadmin: {{listen: ''}}\nlog: {{level: warning}}\n"
        f"backends: [{backend}]\n",
        encoding="utf-8",
    )
    named = ["--config", str(config)]
    command("tenants", "create", "office", "--all-models", *named)
    keys = []
    for user in ("agent", "lea"):
        command("users", "create", user, "--tenant", "office", *named)
        keys.append(command("keys", "create", "--tenant", "office", "--user", user, *named).strip())
    with subprocess.Popen([*FAIRGATE, "serve", *named]) as process:  # noqa: S603
        try:
            wait_ready(f"http://127.0.0.1:{port}/readyz")
            yield f"http://127.0.0.1:{port}", keys[0], keys[1]
        finally:
            process.terminate()


def command(*arguments: str) -> str:
    return subprocess.run([*FAIRGATE, *arguments], check=True, capture_output=True, text=True).stdout  # noqa: S603


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_ready(url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=1).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit("the gateway did not become ready")


async def first_token(client: httpx.AsyncClient, url: str, key: str) -> float:
    """Seconds to the first token of one chat, which is then read to its end."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "options": {"num_predict": TOKENS}}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    started, first = time.monotonic(), 0.0
    async with client.stream("POST", f"{url}/api/chat", json=body, headers=headers) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line and not first:
                first = time.monotonic() - started
    return first


async def measure(url: str, agent: str, lea: str, seconds: float) -> list[tuple[float, float]]:
    """(second of the run, Lea's wait) of each question she asked."""
    limits = httpx.Limits(max_connections=None)
    samples: list[tuple[float, float]] = []
    async with httpx.AsyncClient(timeout=300, limits=limits, trust_env=False) as client:

        async def work() -> None:
            while True:
                await first_token(client, url, agent)

        async def ask(at: float) -> None:
            samples.append((round(at, 2), round(await first_token(client, url, lea), 3)))

        agents = [asyncio.create_task(work()) for _ in range(STREAMS)]
        await asyncio.sleep(3 * STREAMS * TOKENS / PACE / SLOTS / 10)
        started = time.monotonic()
        questions = []
        while (at := time.monotonic() - started) < seconds:
            questions.append(asyncio.create_task(ask(at)))
            await asyncio.sleep(EVERY)
        await asyncio.gather(*questions)
        for task in agents:
            task.cancel()
        await asyncio.gather(*agents, return_exceptions=True)
    return sorted(samples)


def run(seconds: float) -> dict[str, object]:
    with engine() as url:
        direct = asyncio.run(measure(url, "", "", seconds))
    with tempfile.TemporaryDirectory() as folder, engine() as url, gateway(url, Path(folder)) as (front, agent, lea):
        through = asyncio.run(measure(front, agent, lea, seconds))
    facts = {"slots": SLOTS, "tokens_per_second": PACE, "answer_tokens": TOKENS, "agent_streams": STREAMS}
    return {"python": platform.python_version(), **facts, "direct": direct, "fairgate": through}


def summary(samples: list[tuple[float, float]]) -> tuple[float, float]:
    """(median, worst) wait in seconds."""
    waits = [wait for _, wait in samples]
    return statistics.median(waits), max(waits)


def draw(result: dict[str, list[tuple[float, float]]]) -> None:
    left, top, width, height = 60, 84, 650, 240
    longest = max(wait for series in ("direct", "fairgate") for _, wait in result[series])
    last = max(at for series in ("direct", "fairgate") for at, _ in result[series]) or 1.0
    scale = next(step for step in (5, 10, 20, 30, 40, 60, 90, 120, 300) if step >= longest)
    parts = [text(28, 34, "Lea's wait for the first token while an agent keeps 40 streams going", 15, bold=True)]
    for tick in range(5):
        y = top + height - height * tick / 4
        parts.append(f'<path d="M{left} {y} h{width}" stroke="{LINE}" stroke-dasharray="2 4"/>')
        parts.append(text(left - 10, y + 5, f"{scale * tick / 4:g} s", 12, MUTED, "end"))
    for index, (series, name, colour) in enumerate(
        [("direct", "straight to the engine", AMBER), ("fairgate", "through fairgate", BLUE)]
    ):
        middle, worst = summary(result[series])
        x = left + index * 345
        parts.append(box(x, 50, 12, 12, colour, radius=3))
        parts.append(text(x + 18, 61, f"{name}: median {middle:.1f} s, worst {worst:.1f} s", 12))
        for at, wait in result[series]:
            cx, cy = left + width * at / last, top + height - height * wait / scale
            parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4.5" fill="{colour}" fill-opacity="0.85"/>')
    note = "Two slots, 60 tokens at 50/s, simulated engine; each dot is one question of hers."
    parts.append(text(left, top + height + 26, "time of the run →", 12, MUTED))
    parts.append(text(28, top + height + 52, f"{note} Command: python docs/abuser.py", 12, MUTED))
    picture("abuser", "A light user's wait beside an abuser, measured", 746, 396, parts)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--seconds", type=float, default=60.0, help="of questions, in each of the two runs")
    arguments.add_argument("--draw", action="store_true", help="only draw the picture again, from the samples")
    given = arguments.parse_args()
    samples = IMAGES / "abuser.json"
    if not given.draw:
        samples.write_text(json.dumps(run(given.seconds)) + "\n", encoding="utf-8")
    result = json.loads(samples.read_text(encoding="utf-8"))
    draw(result)
    for series in ("direct", "fairgate"):
        print(series, "median {:.2f} s, worst {:.2f} s".format(*summary(result[series])))


if __name__ == "__main__":
    main()
