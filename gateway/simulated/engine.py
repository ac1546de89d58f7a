"""The simulated machine: slots, a bounded queue, loaded models and the pace of generation.

Owns: who runs, what is loaded, and counts of all that happened, which tests may wait for.
Must not know: HTTP and dialects; requests reach it as a `Plan`.
"""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from gateway.simulated.catalog import DEFAULT_MODELS, Catalog, Model
from gateway.simulated.plan import Piece, Plan

DEFAULT_KEEP_ALIVE = 300.0  # seconds; OLLAMA_KEEP_ALIVE is 5m
EVENTS = ("request", "queue", "start", "complete", "abort", "refuse", "mutation", "load")
# The share of one token's time that the gap before it may differ, both ways.
_JITTER = 0.2
_KEPT_REQUESTS = 256


@dataclass(frozen=True)
class Settings:
    """How the simulated Ollama behaves.

    `slots` is per model (OLLAMA_NUM_PARALLEL), `max_queue` for all (OLLAMA_MAX_QUEUE); `tokens_per_second` 0 means
    unpaced; `ttft` and `load_seconds` in seconds; `check_host` as real Ollama on a loopback address does.
    """

    models: tuple[str, ...] = DEFAULT_MODELS
    slots: int = 1
    tokens_per_second: float = 40.0
    ttft: float = 0.25
    load_seconds: float = 0.2
    max_queue: int = 512
    check_host: bool = True
    seed: int = 0


class Busy(Exception):
    """The queue is full: real Ollama's 503 with its own words (two blanks included)."""

    def __init__(self) -> None:
        super().__init__("server busy, please try again.  maximum pending requests exceeded")


@dataclass(frozen=True)
class Timing:
    """What the final frame reports; durations in whole nanoseconds."""

    total: int
    load: int
    prompt_eval: int
    eval: int
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True)
class End:
    """The last event of a generation."""

    done_reason: str
    timing: Timing


class Tally:
    """Counts of events and gauges, and futures of those who wait for them. Single event loop, no locks."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.running = 0
        self.queued = 0
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def note(self, event: str) -> None:
        """Count one `event` of EVENTS and wake those it satisfies."""
        self.counts[event] += 1
        self.wake()

    def wake(self) -> None:
        """Let waiters look again, after a gauge changed."""
        for reached, future in self._waiters:
            if not future.done() and reached():
                future.set_result(None)

    async def wait(self, event: str, count: int, timeout: float) -> bool:  # noqa: ASYNC109 - the route's own parameter
        """Wait until `event` happened `count` times in all (or, for `idle`, nothing runs or waits); False if late."""

        def reached() -> bool:
            if event == "idle":
                return self.running == 0 and self.queued == 0
            return self.counts[event] >= count

        if reached():
            return True
        waiter = (reached, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            await asyncio.wait_for(waiter[1], timeout)
        except TimeoutError:
            return False
        finally:
            self._waiters.remove(waiter)
        return True


class Engine:
    """One simulated Ollama process: catalog, loaded models, slots and the tally. `clock` gives Unix seconds."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.catalog = Catalog(settings.models)
        self.tally = Tally()
        self.seen: deque[dict[str, Any]] = deque(maxlen=_KEPT_REQUESTS)
        self._clock = clock
        self._gates = {model.name: asyncio.Semaphore(settings.slots) for model in self.catalog.all()}
        self._loaded: dict[str, float] = {}
        self._draw = random.Random(settings.seed)  # noqa: S311 - repeatable pace, no secret

    def loaded(self) -> list[tuple[Model, float]]:
        """Models in memory with the Unix time their keep_alive ends (infinity: never)."""
        now = self._clock()
        self._loaded = {name: ends for name, ends in self._loaded.items() if ends > now}
        return [(model, self._loaded[model.name]) for model in self.catalog.all() if model.name in self._loaded]

    def unload(self, model: Model) -> None:
        """Forget `model` (keep_alive 0)."""
        self._loaded.pop(model.name, None)

    async def load(self, model: Model, keep_alive: float | None) -> float:
        """Have `model` in memory for `keep_alive` seconds from now (negative: for ever); seconds it took."""
        started = time.perf_counter()
        if all(each.name != model.name for each, _ in self.loaded()):
            await asyncio.sleep(self.settings.load_seconds)
            self.tally.note("load")
        self._keep(model, keep_alive)
        return time.perf_counter() - started

    def _keep(self, model: Model, keep_alive: float | None) -> None:
        seconds = DEFAULT_KEEP_ALIVE if keep_alive is None else keep_alive
        self._loaded[model.name] = float("inf") if seconds < 0 else self._clock() + seconds

    @asynccontextmanager
    async def slot(self, model: Model) -> AsyncIterator[None]:
        """Hold one of `model`'s slots, first come first served; a cancelled wait leaves the queue.

        Raises Busy when `max_queue` requests wait already.
        """
        gate = self._gates[model.name]
        await self._enter(gate)
        self.tally.running += 1
        self.tally.note("start")
        ending = "complete"
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            ending = "abort"
            raise
        finally:
            self.tally.running -= 1
            gate.release()
            self.tally.note(ending)

    async def _enter(self, gate: asyncio.Semaphore) -> None:
        if gate.locked():
            if self.tally.queued >= self.settings.max_queue:
                self.tally.note("refuse")
                raise Busy
            self.tally.note("queue")
        waiting = gate.locked()
        self.tally.queued += waiting
        try:
            await gate.acquire()
        except asyncio.CancelledError:
            self.tally.note("abort")
            raise
        finally:
            self.tally.queued -= waiting
            self.tally.wake()

    async def generate(self, model: Model, said: Plan, keep_alive: float | None) -> AsyncIterator[Piece | End]:
        """Yield the pieces of `said` at the set pace, then, with the slot already free, one End.

        Closing the iterator early gives the slot back at once. Raises Busy before the first piece.
        """
        started = time.perf_counter()
        async with self.slot(model):
            load = await self.load(model, keep_alive)
            loaded = time.perf_counter()
            await asyncio.sleep(self.settings.ttft)
            prompted = time.perf_counter()
            due = prompted
            for piece in said.pieces:
                due += self._gap()
                # sleep(0) when late or unpaced: other requests and a cancellation get their turn at each token.
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                yield piece
            ended = time.perf_counter()
            self._keep(model, keep_alive)
            if keep_alive == 0:
                self.unload(model)
        timing = Timing(
            total=_ns(ended - started),
            load=_ns(load),
            prompt_eval=_ns(prompted - loaded),
            eval=_ns(ended - prompted),
            prompt_tokens=said.prompt_tokens,
            tokens=len(said.pieces),
        )
        yield End(said.done_reason, timing)

    def _gap(self) -> float:
        rate = self.settings.tokens_per_second
        return self._draw.uniform(1 - _JITTER, 1 + _JITTER) / rate if rate else 0.0

    def stats(self) -> dict[str, Any]:
        """What happened so far, for `GET /simulated/stats`."""
        counts = self.tally.counts
        return {
            "requests": counts["request"],
            "running": self.tally.running,
            "queued": self.tally.queued,
            "started": counts["start"],
            "completed": counts["complete"],
            "aborted": counts["abort"],
            "refused": counts["refuse"],
            "mutations": counts["mutation"],
            "loads": counts["load"],
            "loaded": [model.name for model, _ in self.loaded()],
        }


def _ns(seconds: float) -> int:
    return max(1, round(seconds * 1e9))
