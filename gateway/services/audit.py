"""The audit trail: one flat row for every request, written behind the requests' backs (U).

Owns the row's type and the way from `put` to the store; must not know how a request is served. `put` never waits: rows
gather here and a task writes them in batches. While the store is down rows are kept, up to a bound; then `full` is
True and the phases refuse requests that could not be recorded.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

import msgspec

from gateway.config import Audit
from gateway.store.base import AUDIT_COLUMNS, AuditRow, Store, StoreError

_log = logging.getLogger("fairgate.audit")

_RETRY_FIRST = 0.1
_RETRY_LONGEST = 5.0
_CLOSE_SECONDS = 10.0
"""How long `close` tries to reach a store that fails."""


class AuditRecord(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One request (U1). `started_at` is Unix microseconds, `_us` fields are durations in microseconds; 0 = the request
    did not get that far. `rank` is the place in the queue at entry, `usage_before` the fair-use cost units at entry,
    `slot_us` the time a backend's slot was held. `error` is a code of gateway.errors. Never a prompt, key or header."""

    id: str
    started_at: int
    tenant: str = ""
    user: str = ""
    key: str = ""
    ip: str = ""
    dialect: str = ""
    route: str = ""
    method: str = ""
    model_asked: str = ""
    model_served: str = ""
    backend: str = ""
    status: int = 0
    outcome: str = ""
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    usage_estimated: bool = False
    queue_us: int = 0
    first_byte_us: int = 0
    total_us: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    rank: int = 0
    queue_len: int = 0
    usage_before: float = 0.0
    slot_us: int = 0

    @classmethod
    def of(cls, row: AuditRow) -> "AuditRecord":
        """From a row of the store."""
        return msgspec.convert(dict(zip(AUDIT_COLUMNS, row, strict=True)), cls, strict=False)


if AuditRecord.__struct_fields__ != AUDIT_COLUMNS:
    raise TypeError("AuditRecord and the store's audit columns differ")


class AuditStats(msgspec.Struct, frozen=True):
    """Counters since start; `pending` rows now, the oldest of them `oldest_seconds` old."""

    written: int
    pending: int
    failures: int
    dropped: int
    oldest_seconds: float


class AuditService:
    """Takes rows from one event loop and writes them to the store."""

    def __init__(self, store: Store, config: Audit, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._rows: deque[AuditRecord] = deque()
        self._bound = 2 * config.backlog_rows
        self._oldest = 0.0  # when the first of the rows came; each batch moves it to the time it was taken
        self._batch_ready = asyncio.Event()
        self._writing = asyncio.Lock()
        self._written = self._failures = self._dropped = 0

    @property
    def full(self) -> bool:
        """No request may begin: its row might find no room (U3)."""
        return len(self._rows) >= self._config.backlog_rows

    def put(self, record: AuditRecord) -> None:
        """Take a row. Requests that run while `full` and the refusals still fit; beyond that rows are counted only."""
        rows = self._rows
        rows.append(record)
        held = len(rows)
        if held == 1:
            self._oldest = self._clock()
        elif held == self._config.batch_rows:
            self._batch_ready.set()
        elif held > self._bound:
            rows.pop()
            self._dropped += 1

    async def run(self) -> None:
        """Write until cancelled: a batch when it is full or `batch_seconds` after the last one."""
        retry = _RETRY_FIRST
        while True:
            await self._batch_or_time()
            try:
                await self._write_all()
                retry = _RETRY_FIRST
            except StoreError as err:
                _log.warning("audit rows wait for the store: %d, %s", len(self._rows), err)
                await asyncio.sleep(retry)
                retry = min(2 * retry, _RETRY_LONGEST)

    async def _batch_or_time(self) -> None:
        try:
            async with asyncio.timeout(self._config.batch_seconds):
                await self._batch_ready.wait()
        except TimeoutError:
            return

    async def _write_all(self) -> None:
        """Batch after batch until less than one is left. Cancelling loses the acknowledgement, not the rows."""
        self._batch_ready.clear()
        async with self._writing:
            while self._rows:
                taken = self._clock()
                batch = list(islice(self._rows, self._config.batch_rows))
                try:
                    await asyncio.shield(self._store.add_audit(_flat(batch)))
                except StoreError:
                    self._failures += 1
                    raise
                for _ in batch:
                    self._rows.popleft()
                self._written += len(batch)
                self._oldest = taken
                if len(batch) < self._config.batch_rows:
                    return

    async def close(self) -> None:
        """Write what is left. A store that keeps failing is given up after a while; what is lost is said."""
        deadline = self._clock() + _CLOSE_SECONDS
        while self._rows:
            try:
                await self._write_all()
            except StoreError as err:
                if self._clock() > deadline:
                    _log.error("audit rows lost: %d, the store failed: %s", len(self._rows), err)
                    return
                await asyncio.sleep(_RETRY_FIRST)

    def stats(self) -> AuditStats:
        """A snapshot for metrics."""
        return AuditStats(
            written=self._written,
            pending=len(self._rows),
            failures=self._failures,
            dropped=self._dropped,
            oldest_seconds=self._clock() - self._oldest if self._rows else 0.0,
        )


def _flat(batch: Iterable[AuditRecord]) -> Iterable[AuditRow]:
    """Lazily: the store's thread does the work."""
    return map(msgspec.structs.astuple, batch)
