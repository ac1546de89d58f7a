"""What locust's users do: clients of the OpenAI and the Ollama API, well-behaved and not. Loaded by `loadtests.load`.

Every stream is judged: each frame there and in order, and the end. Its time to the first frame (TTFT), its mean gap and
its longest gap become statistics of their own, named after the party that asked. What was answered is counted by route,
to be compared with what the gateway counted. `LOAD_PLAN` names a JSON file: where the gateway is, the keys of each
tenant, how many users of each class, where the counts go.
"""

import itertools
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from locust import HttpUser, between, constant, events, task

PLAN = json.loads(Path(os.environ["LOAD_PLAN"]).read_text())
MARK = re.compile(rb"#(\d{8})@")  # of bench/load/backend.c: the number of a frame
WORDS = "the quick brown fox jumps over the lazy dog "
FRAMES = 40
counted: Counter[str] = Counter()
"""`route outcome` -> requests; the outcome is 2xx, 4xx, 5xx or gone."""
_turn = itertools.count()


class Unsound(Exception):
    """A stream that is not whole."""


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _write_counts(**_: Any) -> None:
    Path(PLAN["counts"]).write_text(json.dumps(counted))


def tell(kind: str, name: str, seconds: float) -> None:
    events.request.fire(  # type: ignore[no-untyped-call]
        request_type=kind, name=name, response_time=seconds * 1e3, response_length=0, exception=None, context={}
    )


class Stream:
    """Judges the lines of one answer as they come, and times its frames."""

    def __init__(self, party: str, ends: tuple[bytes, ...], frames: int) -> None:
        self.party, self.ends, self.frames = party, ends, frames
        self.began = self.last = time.perf_counter()
        self.next = 0
        self.longest = 0.0
        self.ended = False

    def line(self, line: bytes) -> None:
        mark = MARK.search(line)
        if mark is None:
            self.ended |= any(end in line for end in self.ends)
            return
        now = time.perf_counter()
        if int(mark[1]) != self.next:
            raise Unsound(f"frame {int(mark[1])} where {self.next} was due")
        if self.next == 0:
            tell("TTFT", self.party, now - self.began)
            self.first = now
        else:
            self.longest = max(self.longest, now - self.last)
        self.next, self.last = self.next + 1, now

    def finish(self) -> None:
        """Raises Unsound if anything is missing."""
        if self.next != self.frames or not self.ended:
            raise Unsound(f"{self.next} of {self.frames} frames, end {'there' if self.ended else 'missing'}")
        tell("GAP mean", self.party, (self.last - self.first) / (self.frames - 1))
        tell("GAP longest", self.party, self.longest)


class Client(HttpUser):
    """One person with one key. Subclasses say which API, and how they behave."""

    abstract = True
    host = PLAN["url"]
    tenant = "team-a"
    party = "ordinary"
    api: ClassVar[str]
    wait_time = between(0.2, 1.0)

    def on_start(self) -> None:
        keys = PLAN["keys"][self.tenant]
        self.client.headers["Authorization"] = f"Bearer {keys[next(_turn) % len(keys)]}"
        self.client.trust_env = False

    # ---- the two APIs

    def chat_body(self, stream: bool, words: int = 20, frames: int = FRAMES) -> tuple[str, dict[str, Any]]:
        messages = [{"role": "user", "content": WORDS * words}]
        if self.api == "openai":
            return "/v1/chat/completions", {
                "model": "bench",
                "messages": messages,
                "stream": stream,
                "max_tokens": frames,
            }
        options = {"num_predict": frames}
        return "/api/chat", {"model": "bench:latest", "messages": messages, "stream": stream, "options": options}

    def ask(self, what: str, path: str, body: dict[str, Any] | None) -> None:
        """A whole answer; refusals are answers too, and counted apart."""
        method = "GET" if body is None else "POST"
        with self.client.request(method, path, json=body, name=f"{self.api} {what}", catch_response=True) as response:
            self.note(path, response)

    def note(self, path: str, response: Any) -> bool:
        """Count an answer's head. False: no good answer follows."""
        status = response.status_code
        counted[f"{path} {status // 100}xx"] += 1
        if status in (429, 503):
            response.success()
            tell("REFUSED", self.party, response.elapsed.total_seconds())
        elif status != 200:
            response.failure(f"status {status}")
        return bool(status == 200)

    def watch(self, what: str, *, words: int = 20, frames: int = FRAMES, leave_after: int = 0) -> None:
        """A stream to its end, or until the client leaves."""
        path, body = self.chat_body(True, words, frames)
        ends = (b"[DONE]",) if self.api == "openai" else (b'"done":true',)
        judge = Stream(self.party, ends, frames)
        with self.client.post(path, json=body, stream=True, name=f"{self.api} {what}", catch_response=True) as response:
            if response.status_code != 200:
                self.note(path, response)
                return
            try:
                for line in lines(response):
                    judge.line(line)
                    if leave_after and judge.next >= leave_after:
                        counted[f"{path} gone"] += 1
                        response.raw.close()
                        return
                self.note(path, response)
                judge.finish()
            except Unsound as error:
                response.failure(str(error))


def lines(response: Any) -> Iterator[bytes]:
    """The lines of a body as soon as they are there."""
    rest = b""
    for data in response.iter_content(chunk_size=None):
        *whole, rest = (rest + data).split(b"\n")
        yield from whole
    if rest:
        yield rest


class Ordinary(Client):
    """Somebody who chats."""

    abstract = True

    @task(5)
    def chat(self) -> None:
        self.ask("chat", *self.chat_body(False))

    @task(5)
    def stream(self) -> None:
        self.watch("stream")

    @task(1)
    def embed(self) -> None:
        if self.api == "openai":
            self.ask("embed", "/v1/embeddings", {"model": "bench", "input": WORDS})
        else:
            self.ask("embed", "/api/embed", {"model": "bench:latest", "input": WORDS})

    @task(1)
    def list(self) -> None:
        self.ask("list", "/v1/models" if self.api == "openai" else "/api/tags", None)

    @task(1)
    def abort(self) -> None:
        self.watch("abort", leave_after=3)


class OpenAI(Ordinary):
    api = "openai"
    weight = PLAN["users"].get("OpenAI", 1)


class Ollama(Ordinary):
    api = "ollama"
    tenant = "team-b"
    weight = PLAN["users"].get("Ollama", 1)


class Abuser(Client):
    """One person's script: many long streams at once, the next as soon as one ends."""

    api = "openai"
    tenant = party = "abuser"
    weight = PLAN["users"].get("Abuser", 1)
    wait_time = constant(0)

    def on_start(self) -> None:
        self.client.headers["Authorization"] = f"Bearer {PLAN['keys'][self.tenant][0]}"
        self.client.trust_env = False

    @task
    def flood(self) -> None:
        self.watch("flood", words=100, frames=2 * FRAMES)


class Agent(Client):
    """A coding agent: a run of calls whose prompts grow, nothing between them; then it thinks."""

    api = "openai"
    party = "agents"
    weight = PLAN["users"].get("Agent", 1)
    wait_time = between(1, 3)

    @task
    def work(self) -> None:
        for step in range(1, random.randint(3, 8)):
            self.watch("agent step", words=100 * step, frames=FRAMES // 2)


class Churner(Client):
    """A new connection for each request, half of them left early, some with a wrong key."""

    api = "openai"
    party = "churn"
    weight = PLAN["users"].get("Churner", 1)
    wait_time = between(0, 0.2)

    @task(3)
    def short(self) -> None:
        self.client.close()
        self.ask("chat, new connection", *self.chat_body(False))

    @task(3)
    def left(self) -> None:
        self.client.close()
        self.watch("abort, new connection", leave_after=random.randint(1, 5))

    @task(1)
    def wrong_key(self) -> None:
        path, body = self.chat_body(False)
        with self.client.post(
            path, json=body, headers={"Authorization": "Bearer wrong"}, name="openai wrong key", catch_response=True
        ) as response:
            counted[f"{path} {response.status_code // 100}xx"] += 1
            if response.status_code in (401, 429):
                response.success()
