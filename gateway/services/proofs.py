"""The two slow steps of a verification: reading a key from the store, and Argon2id. Both are protected against floods.

Must not know caches, addresses or what a refusal is called. Rules:

- Reads are batched: what is requested during one read waits for the next. Thousands of unknown keys a second cost the
  store some fifty reads.
- Argon2id runs in threads of lower priority than the loop, in two lanes. A key for which a wrong secret was tried
  recently uses the second lane: one thread, which rests after each wrong secret for several times as long as the check
  took. So after the first guess in a minute, guessing a key costs a fraction of one core, and other keys do not wait
  behind it.
"""

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import argon2

from gateway.config import Identity
from gateway.services import bounded
from gateway.store.base import CHAINS_AT_ONCE, Chain, Store

VERIFY_NICE = 5
"""Nice value: with this, threads get a third of the loop's share when the processor is busy."""
READ_PAUSE = 0.02
"""Seconds between two reads of the store while more is waiting."""
SUSPECT_SECONDS = 60.0
"""Seconds that a key stays in the second lane after a wrong secret."""
SUSPECT_PATIENCE = 2.0
"""Maximum seconds that a secret waits for the second lane."""
_SUSPECTS = 4096
_RESTS = 9
"""The rest after a wrong secret, as a multiple of the time of the check: guesses get a tenth of one core."""


class ChainReader:
    """Reads keys with their owners, many at once. `timeout`: seconds one read of the store may take."""

    def __init__(self, store: Store, timeout: float) -> None:
        self._store = store
        self._timeout = timeout
        self._waiting: dict[str, list[asyncio.Future[Chain | None]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def read(self, key_id: str) -> Chain | None:
        """The key as the store has it now or later. Raises StoreError, or TimeoutError."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Chain | None] = loop.create_future()
        self._waiting.setdefault(key_id, []).append(waiter)
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._read_all())
        return await waiter

    async def _read_all(self) -> None:
        while self._waiting:
            batch = {key_id: self._waiting.pop(key_id) for key_id in list(islice(self._waiting, CHAINS_AT_ONCE))}
            found: dict[str, Chain] = {}
            failure: Exception | None = None
            try:
                async with asyncio.timeout(self._timeout):
                    found = await self._store.chains(list(batch))
            except Exception as err:  # whatever it is, it belongs to those who asked
                failure = err
            for key_id, waiters in batch.items():
                _tell(waiters, found.get(key_id), failure)
            if self._waiting:
                await asyncio.sleep(READ_PAUSE)

    async def close(self) -> None:
        """Stop reading; nobody waits any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _tell(waiters: list[asyncio.Future[Chain | None]], value: Chain | None, failure: Exception | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if failure is None:
            waiter.set_result(value)
        else:
            waiter.set_exception(failure)


class Prover:
    """Checks secrets against stored hashes, off the loop. `hashed` counts."""

    def __init__(self, config: Identity, clock: Callable[[], float]) -> None:
        self.hashed = 0
        self._clock = clock
        self._hasher = hasher(config)
        self._lane = ThreadPoolExecutor(config.argon2_threads, "fairgate-argon2", _step_back)
        self._second_lane = ThreadPoolExecutor(1, "fairgate-guesses", _step_back)
        self._suspects: dict[str, float] = {}  # key id -> end of its time in the second lane

    async def matches(self, key_id: str, stored: str, secret: bytes) -> bool:
        """Whether the secret belongs to the key. Raises TimeoutError if the second lane is too long."""
        self.hashed += 1
        loop = asyncio.get_running_loop()
        if self._suspects.get(key_id, 0.0) > self._clock():
            async with asyncio.timeout(SUSPECT_PATIENCE):
                matches = await loop.run_in_executor(
                    self._second_lane, _checked_with_rest, self._hasher, stored, secret
                )
        else:
            matches = await loop.run_in_executor(self._lane, secret_matches, self._hasher, stored, secret)
        if not matches:
            bounded.put(self._suspects, key_id, self._clock() + SUSPECT_SECONDS, _SUSPECTS)
        return matches

    def close(self) -> None:
        """End the threads after their current work."""
        self._lane.shutdown(wait=False)
        self._second_lane.shutdown(wait=False, cancel_futures=True)


def hasher(config: Identity) -> argon2.PasswordHasher:
    """Argon2id as configured (RFC 9106); a verification takes its cost from the stored string."""
    return argon2.PasswordHasher(
        time_cost=config.argon2_time_cost, memory_cost=config.argon2_memory_kib, parallelism=1, hash_len=32
    )


def secret_matches(of: argon2.PasswordHasher, stored: str, secret: bytes) -> bool:
    """Runs in a thread. A stored text that is not a hash matches nothing; a damaged hash raises VerificationError."""
    try:
        return of.verify(stored, secret)
    except (argon2.exceptions.VerifyMismatchError, argon2.exceptions.InvalidHashError):
        return False


def _checked_with_rest(of: argon2.PasswordHasher, stored: str, secret: bytes) -> bool:
    """A right secret returns at once, a wrong one after the rest."""
    started = time.perf_counter()
    matches = secret_matches(of, stored, secret)
    if not matches:
        time.sleep(_RESTS * (time.perf_counter() - started))
    return matches


def _step_back() -> None:
    """Lower the priority of this verifying thread, so that guesses do not take the processor from requests. Only on
    systems with thread priorities (Linux)."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # a seccomp filter may forbid it; keys are verified all the same
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + VERIFY_NICE))
