"""The audit trail: one flat row for every request, written behind the requests' backs (U).

Owns the way of a row from `put` to the store; must not know how a request is served. The way:

1. `begin` and `put` append to the local spool, so a crash (kill -9) loses nothing that a client or an engine saw: the
   start of a request is written before anything of it is sent (1 us), a row without a start before `put` returns; the
   ends of a loop turn are written together.
2. A task takes entries from the spool in batches, links them into the writer's hash chain and adds them to the store
   in one transaction that moves the chain's head from where the writer knows it to be. A batch whose acknowledgement
   was lost finds the head moved, and is not added twice.
3. Segments of the spool go when all their rows are in the store.

While the store is down the spool grows, up to its bound; then `full` is True and the phases refuse requests that could
not be recorded (or, by choice, rows are dropped and counted).
"""

import asyncio
import errno
import json
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from gateway.config import Audit
from gateway.services.chain import digest
from gateway.services.keyfmt import without_keys
from gateway.services.record import AuditRecord, AuditStats, Opening
from gateway.services.spool import Position, Spool
from gateway.store.base import AUDIT_COLUMNS, AuditRow, Head, Store, StoreError
from gateway.store.slices import slices

_log = logging.getLogger("fairgate.audit")

_RETRY_FIRST: Final = 0.1
_RETRY_LONGEST: Final = 5.0
CLOSE_SECONDS: Final = 10.0
"""How long `close` tries to reach a store that fails; what is left stays in the spool for the next start."""
_WAITING_BYTES: Final = 16 << 20
"""Of rows that wait in memory while the disk refuses them, some 50,000; the ends of what runs are kept beyond it."""
_SEGMENTS: Final = 16
_LARGEST_SEGMENT: Final = 64 << 20


INTERRUPTED: Final = "interrupted"
"""Outcome and error of a request that ran when the process was killed (U3)."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(AuditRecord).decode
_fields: Final = msgspec.msgpack.Decoder(tuple).decode


def spool_path(config: Audit, store: Store) -> Path:
    """The directory as configured, else beside the store."""
    return Path(config.spool or f"{store.home}.spool")


class AuditService:
    """Takes rows from one event loop. Making one opens the spool, with what an earlier process left, and may raise
    SpoolError."""

    def __init__(self, store: Store, config: Audit, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        segment = min(_LARGEST_SEGMENT, config.spool_bytes // _SEGMENTS)
        self._spool = Spool(spool_path(config, store), segment)
        self._ceiling = config.spool_bytes + config.spool_bytes // 8
        self._position = self._spool.start
        self._sent = self._spool.seq  # no row of this spool beyond it can be in the store
        self._head: Head | None = None  # None: only the store knows
        self._delivered = 0
        self._broken = False
        self._again = 0.0  # when a disk that refused is tried again
        self._closed = False
        self._flush_planned = False
        self._drained_at = clock()
        self._anchored = (clock(), 0)  # when, and which seq
        self._batch_ready = asyncio.Event()
        self._shipping = asyncio.Lock()
        self._shipper = ThreadPoolExecutor(1, "fairgate-audit")
        self._written = self._failures = self._dropped = 0
        self._interrupted = self._recover()

    def _recover(self) -> int:
        for fault in self._spool.damaged:
            _log.error("the audit spool is damaged: %s", fault)
        for number, payload in self._spool.interrupted:
            record = msgspec.structs.replace(_decode(payload), outcome=INTERRUPTED, error=INTERRUPTED)
            self._spool.end(number, _payload(record))
        self._flush()
        return len(self._spool.interrupted)

    # -- hot path

    @property
    def full(self) -> bool:
        """No request may begin: its row might find no room, or the disk refuses rows (U3)."""
        return (self._spool.size >= self._config.spool_bytes or self._broken) and self._config.when_full == "deny"

    def begin(self, opening: Opening) -> int:
        """A request goes to an engine: what is known of it -> a number for `put`. If the process dies now, this is its
        row."""
        if self._spool.size >= self._config.spool_bytes or self._crowded():
            return 0
        number = self._spool.begin(_encode(opening))
        self._flush_now()
        return number

    def put(self, record: AuditRecord, begun: int = 0) -> None:
        """The one row of a request; `begun` is what `begin` gave, if it was called."""
        if self._spool.size >= self._limit() or (not begun and self._crowded()):
            self._spool.forget(begun)
            self._dropped += 1
            if begun:
                self._flush_soon()
            return
        seq = self._spool.end(begun, _payload(record))
        if begun:
            self._flush_soon()
        else:
            self._flush_now()
        if seq - self._delivered == self._config.batch_rows:
            self._batch_ready.set()

    def _limit(self) -> int:
        """Rows of what runs, and of refusals, still fit above the bound while requests are denied."""
        return self._ceiling if self._config.when_full == "deny" else self._config.spool_bytes

    def _crowded(self) -> bool:
        """The disk refuses, also now if a try is due, and as much waits for it as memory is meant to hold."""
        if not self._broken or self._spool.unwritten < _WAITING_BYTES:
            return False
        self._flush_now()
        return self._spool.unwritten >= _WAITING_BYTES

    def _flush_soon(self) -> None:
        """At the end of this loop turn, for all rows of the turn."""
        if not self._flush_planned:
            self._flush_planned = True
            asyncio.get_running_loop().call_soon(self._flush_planned_now)

    def _flush_planned_now(self) -> None:
        self._flush_planned = False
        self._flush_now()

    def _flush_now(self) -> None:
        """Once every `batch_seconds` while the disk refuses: every request that is refused would try again."""
        if not self._broken or self._clock() >= self._again:
            self._flush()

    def _flush(self) -> None:
        try:
            self._spool.flush()
        except OSError as err:
            if not self._broken:
                _log.error("the audit spool cannot be written: %s", err.strerror)
            self._broken = True
            self._again = self._clock() + self._config.batch_seconds
        else:
            self._broken = False

    # -- to the store

    async def run(self) -> None:
        """Deliver until cancelled or closed: a batch when it is full or `batch_seconds` after the last one."""
        retry = _RETRY_FIRST
        while not self._closed:
            await self._batch_or_time()
            try:
                await self._ship_all()
                await self._anchor_if_due()
                retry = _RETRY_FIRST
            except Exception as err:  # whatever it was: rows are safe in the spool, and nobody else would deliver them
                expected = isinstance(err, StoreError | OSError)
                _log.warning("audit rows wait: %d, %s", self._pending(), err, exc_info=None if expected else err)
                await asyncio.sleep(retry)
                retry = min(2 * retry, _RETRY_LONGEST)

    async def _batch_or_time(self) -> None:
        try:
            async with asyncio.timeout(self._config.batch_seconds):
                await self._batch_ready.wait()
        except TimeoutError:
            pass
        self._batch_ready.clear()
        if self._broken:
            self._flush()

    async def _ship_all(self) -> None:
        """Batch after batch until one is not full. Being cancelled loses an acknowledgement, never a row."""
        loop = asyncio.get_running_loop()
        async with self._shipping:
            while not self._closed:
                try:
                    head = self._head or await self._stored_head()
                    self._head = None  # until the batch is acknowledged
                    # What a disk refuses is not read, however old it gets.
                    read_at = self._drained_at if self._broken else self._clock()
                    rows, after, position, full = await loop.run_in_executor(self._shipper, self._prepare, head)
                    self._sent = max(self._sent, after.seq)
                    moved = not rows or await asyncio.shield(self._store.add_audit(head, after, rows))
                except (StoreError, OSError):
                    self._failures += 1
                    raise
                if not moved:
                    continue  # an earlier batch was added after all
                self._acknowledge(after, position, len(rows))
                if not full:  # what came meanwhile waits for the next batch: every one has its sync and its transaction
                    self._drained_at = max(self._drained_at, read_at)
                    return

    async def _stored_head(self) -> Head:
        head = await self._store.audit_head(self._spool.writer)
        if head.seq > self._sent:
            place = self._spool.directory
            raise StoreError(f"the store has newer rows of writer {head.writer} than {place}: move {place} away")
        if head.seq < self._delivered:
            _log.error("the store was put back from row %d of writer %s to %d", self._delivered, head.writer, head.seq)
            self._position, self._delivered = self._spool.start, head.seq
        return head

    def _prepare(self, head: Head) -> tuple[list[AuditRow], Head, Position, bool]:
        """In a thread: what is durable behind the last batch, as rows of the chain, and whether more may be there. Rows
        the store has are passed over."""
        self._spool.sync()
        entries, position = self._spool.read(self._position, self._config.batch_rows)
        rows: list[AuditRow] = []
        writer, seq, at, last = head.writer, head.seq, head.recorded_at, head.hash
        for some in slices([entry for entry in entries if entry[0] > seq]):
            for entry in some:
                seq, at, payload = entry
                fields = _fields(payload)
                if len(fields) < len(AUDIT_COLUMNS):  # spooled by an older version
                    record = _decode(payload)
                    fields, payload = msgspec.structs.astuple(record), _encode(record)
                last = digest(last, writer, seq, at, payload)
                rows.append((*fields, writer, seq, at, last))
        return rows, Head(writer, seq, at, last), position, len(entries) >= self._config.batch_rows

    def _acknowledge(self, head: Head, position: Position, rows: int) -> None:
        self._head, self._position = head, position
        self._delivered = head.seq
        self._written += rows
        self._spool.release(head.seq)
        if self._delivered >= self._spool.seq:
            self._drained_at = self._clock()

    def _pending(self) -> int:
        return max(0, self._spool.seq - self._delivered)

    # -- anchors

    async def _anchor_if_due(self) -> None:
        when, seq = self._anchored
        head = self._head
        if head is not None and head.seq > seq and self._clock() - when >= self._config.anchor_seconds:
            await asyncio.get_running_loop().run_in_executor(self._shipper, self._anchor, head)

    def _anchor(self, head: Head) -> None:
        """Note the head outside of the database: who rewrites all rows there cannot rewrite this (U4)."""
        path = Path(self._config.anchors or self._spool.directory / "anchors.jsonl")
        line = {"writer": head.writer, "seq": head.seq, "recorded_at": head.recorded_at, "hash": head.hash.hex()}
        file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)
        try:
            _append_line(file, json.dumps(line).encode())
            os.fsync(file)
        finally:
            os.close(file)
        self._anchored = (self._clock(), head.seq)

    # -- life

    async def close(self) -> None:
        """Deliver what is left; what a failing store does not take stays in the spool for the next start."""
        self._flush()
        deadline = self._clock() + CLOSE_SECONDS
        while self._clock() < deadline:
            try:
                await self._ship_all()
                if self._head is not None and self._head.seq > self._anchored[1]:
                    self._anchor(self._head)
                break
            except (StoreError, OSError) as err:
                _log.warning("audit rows wait in the spool: %d, %s", self._pending(), err)
                await asyncio.sleep(_RETRY_FIRST)
        async with self._shipping:
            self._closed = True
        self._batch_ready.set()
        self._shipper.shutdown()
        self._spool.close()

    def stats(self) -> AuditStats:
        """A snapshot for metrics."""
        pending = self._pending()
        return AuditStats(
            written=self._written,
            pending=pending,
            failures=self._failures,
            dropped=self._dropped,
            oldest_seconds=self._clock() - self._drained_at if pending else 0.0,
            interrupted=self._interrupted,
            spool_bytes=self._spool.size,
            spool_limit=self._config.spool_bytes,
        )


def _append_line(file: int, line: bytes) -> None:
    """A line of its own, whatever stands before it. Raises OSError: of what the disk took in part, nothing is left."""
    size = os.fstat(file).st_size
    torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
    data = b"\n" * torn + line + b"\n"
    if os.write(file, data) != len(data):
        os.ftruncate(file, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _payload(record: AuditRecord) -> bytes:
    """As it is spooled and hashed. Replaced are keys, tokens and what no database takes (NUL, lone surrogates)."""
    try:
        payload = _encode(record)
        if payload.find(b"fg_") < 0 and payload.find(b"eyJ") < 0 and "\0" not in record.model_asked:
            return payload
    except UnicodeEncodeError:
        pass
    texts = {name: value for name in AUDIT_COLUMNS if isinstance(value := getattr(record, name), str)}
    clean = {name: _storable(value) for name, value in texts.items()}
    return _encode(msgspec.structs.replace(record, **clean))


def _storable(text: str) -> str:
    return without_keys(text).replace("\0", "\ufffd").encode("utf-8", "replace").decode()
