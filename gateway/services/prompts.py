"""Prompts of the keys that opted in (U5): redacted, then kept for as many days as their key says; written
asynchronously.

Owns the path from `keep` to the store and the deletion of expired prompts; must not know what a prompt says. This is no
audit record: what finds no room is dropped and counted, and a crash loses what was not written yet. A prompt on which
the redaction fails is never stored. The text of that exception is not even logged, since it may quote the prompt.
"""

import asyncio
import contextlib
import importlib
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from gateway.config import ConfigError, Prompts
from gateway.services.principal import Principal
from gateway.store.base import Store, StoreError
from gateway.store.prompts import Prompt

_log = logging.getLogger("fairgate.prompts")

DAY = 86_400_000_000
"""Microseconds."""
SWEEP_SECONDS = 60.0
BATCH = 50
GATHER_SECONDS = 0.2
"""Seconds from the arrival of a prompt to its transaction, which is synced and includes what came meanwhile; less if
half of the room for waiting prompts is filled."""
_RETRY = 1.0
_CLOSE_SECONDS = 5.0

Redact = Callable[[bytes], bytes | str]
"""A request's body -> what may be kept of it. Called in a thread, one at a time."""


class PromptStats(msgspec.Struct, frozen=True):
    """Counters since start; `pending_bytes` wait to be written now."""

    stored: int
    dropped: int
    redaction_failed: int
    pending_bytes: int


def redaction(name: str) -> Redact | None:
    """The function named by `MODULE:FUNCTION`; None without a name. Raises ConfigError."""
    if not name:
        return None
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as err:  # an import runs the operator's code
        raise ConfigError(f"prompts.redact: {name!r} cannot be imported: {type(err).__name__}: {err}") from err
    if not callable(found):
        raise ConfigError(f"prompts.redact: {name!r} is not a function")
    return found  # type: ignore[no-any-return]  # checked when it is called


class PromptService:
    """Belongs to one event loop. `clock` is in monotonic seconds, `wall` in Unix seconds. The constructor raises
    ConfigError."""

    def __init__(
        self,
        store: Store,
        config: Prompts,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._wall = wall
        self._redact = redaction(config.redact)
        self._pending: deque[Prompt] = deque()
        self._held = 0
        self._ready = asyncio.Event()  # something waits to be written
        self._crowded = asyncio.Event()  # too much waits to gather more
        self._writing = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "fairgate-prompts")
        self._stored = self._dropped = self._failed = 0

    def keep(self, request: str, who: Principal, route: str, model: str, body: bytes) -> None:
        """Keep a body for `who.prompt_days`; never waits."""
        if self._held + len(body) > self._config.pending_bytes:
            self._dropped += 1
            return
        now = int(self._wall() * 1e6)
        prompt = Prompt(
            id=request,
            at=now,
            expires_at=now + who.prompt_days * DAY,
            tenant=who.tenant,
            user=who.user,
            key=who.key,
            route=route,
            model=model,
            size=len(body),
            body=body,
        )
        self._pending.append(prompt)
        self._held += len(body)
        self._ready.set()
        if 2 * self._held > self._config.pending_bytes:
            self._crowded.set()

    async def run(self) -> None:
        """Write what is pending, then delete what has expired, until cancelled. A store that cannot delete still gets
        what waits."""
        swept = -math.inf
        while True:
            try:
                await self._write()
                if self._clock() - swept >= SWEEP_SECONDS:
                    await self._store.expire_prompts(int(self._wall() * 1e6))
                    swept = self._clock()
                await _wait(self._ready, SWEEP_SECONDS)
                await _wait(self._crowded, GATHER_SECONDS)
            except StoreError as err:
                _log.warning("%d prompts wait to be written, others to expire: %s", len(self._pending), err)
                await asyncio.sleep(_RETRY)

    async def _write(self) -> None:
        """Write batches until one is not full. If cancelled or failing, the batch stays pending."""
        async with self._writing:
            full = True
            while full and (batch := list(itertools.islice(self._pending, BATCH))):
                full = len(batch) == BATCH
                rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._redacted, batch)
                await self._store.add_prompts(rows)
                self._stored += len(rows)
                self._failed += len(batch) - len(rows)
                for _ in batch:
                    self._held -= len(self._pending.popleft().body)
            self._crowded.clear()
            if not self._pending:
                self._ready.clear()

    def _redacted(self, batch: list[Prompt]) -> list[Prompt]:
        """Runs in the thread: what may be stored of each prompt, without those on which the redaction failed."""
        rows = []
        for prompt in batch:
            try:
                body = prompt.body if self._redact is None else _as_bytes(self._redact(prompt.body))
            except Exception as err:  # fail closed, whatever the operator's code does
                _log.error("prompts.redact failed: %s; the prompt is not stored", type(err).__name__)
                continue
            rows.append(msgspec.structs.replace(prompt, size=len(body), body=body[: self._config.max_bytes]))
        return rows

    async def close(self) -> None:
        """Write what is pending; what the store does not take in time is dropped and counted."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._pending:
                    await self._write()
        except (StoreError, TimeoutError) as err:
            self._dropped += len(self._pending)
            _log.warning("prompts dropped: %d, %s", len(self._pending), err or "timeout")
        self._thread.shutdown(wait=False, cancel_futures=True)

    def stats(self) -> PromptStats:
        """A snapshot for metrics."""
        return PromptStats(self._stored, self._dropped, self._failed, self._held)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set, or for so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _as_bytes(kept: object) -> bytes:
    if isinstance(kept, str):
        return kept.encode("utf-8", "replace")
    if not isinstance(kept, bytes):
        raise TypeError("neither bytes nor str")
    return kept
