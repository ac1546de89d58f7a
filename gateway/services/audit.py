"""The audit trail: one flat row for every request, written asynchronously (U).

Owns the path of a row from `put` to the store; must not know how a request is served. The path:

1. `begin` and `put` append to the local spool, so a crash (kill -9) loses nothing that a client or an engine has seen:
   the start of a request is written before anything of it is sent (1 us), and a row without a start is written before
   `put` returns. The ends of one turn of the loop are written together.
2. A task takes entries from the spool in batches, links them into the writer's hash chain and adds them to the store
   in one transaction. That transaction also moves the head of the chain, from where the writer knows it to be. If the
   acknowledgement of a batch was lost, the head has moved already and the batch is not added twice.
3. Segments of the spool are deleted when all their rows are in the store.

While the store is down the spool grows up to its limit. Then `full` is True, and the phases refuse requests that could
not be recorded (or, if configured so, rows are dropped and counted).
"""

import asyncio
import errno
import json
import logging
import os
import sys
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
"""Seconds that `close` tries to reach a failing store; remaining rows stay in the spool for the next start."""
_WAITING_BYTES: Final = 16 << 20
"""Maximum bytes of rows that wait in memory while the disk refuses them, about 50,000 rows; ends of running requests
are kept beyond this."""
_SEGMENTS: Final = 16
_LARGEST_SEGMENT: Final = 64 << 20


INTERRUPTED: Final = "interrupted"
"""Outcome and error of a request that was running when the process was killed (U3)."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(AuditRecord).decode
_fields: Final = msgspec.msgpack.Decoder(tuple).decode


def spool_path(config: Audit, store: Store) -> Path:
    """The configured spool directory, else one beside the store."""
    return Path(config.spool or f"{store.home}.spool")


class AuditService:
    """Takes rows from one event loop. The constructor opens the spool, including rows of an earlier process, and may
    raise SpoolError."""

    def __init__(self, store: Store, config: Audit, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        segment = min(_LARGEST_SEGMENT, config.spool_bytes // _SEGMENTS)
        self._spool = Spool(spool_path(config, store), segment)
        self._ceiling = config.spool_bytes + config.spool_bytes // 8
        self._position = self._spool.start
        self._sent = self._spool.seq  # no row of this spool with a higher number can be in the store
        self._head: Head | None = None  # None: must be read from the store
        self._delivered = 0
        self._broken = False
        self._again = 0.0  # when to try again after the disk refused
        self._closed = False
        self._flush_planned = False
        self._drained_at = clock()
        self._anchored = (clock(), 0)  # time and seq of the last anchor
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
        """Whether no request may begin, because the spool has no room for its row or the disk refuses rows (U3)."""
        return (self._spool.size >= self._config.spool_bytes or self._broken) and self._config.when_full == "deny"

    def begin(self, opening: Opening) -> int:
        """Record the start of a request that goes to an engine -> a number for `put`. If the process dies now, this
        becomes the request's row."""
        if self._spool.size >= self._config.spool_bytes or self._crowded():
            return 0
        number = self._spool.begin(_encode(opening))
        self._flush_now()
        return number

    def put(self, record: AuditRecord, begun: int = 0) -> None:
        """Record a request. `begun` is the number from `begin`, if it was called."""
        if self._spool.size >= self._limit(begun) or (not begun and self._crowded()):
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

    def _limit(self, begun: int) -> int:
        """The bound. While new requests are denied, rows of refusals may exceed it up to the ceiling, and rows of
        running requests without limit: there are never more of them than requests that may be open."""
        if self._config.when_full != "deny":
            return self._config.spool_bytes
        return sys.maxsize if begun else self._ceiling

    def _crowded(self) -> bool:
        """Whether the disk refuses (even now, if a retry is due) and the rows in memory have reached their limit."""
        if not self._broken or self._spool.unwritten < _WAITING_BYTES:
            return False
        self._flush_now()
        return self._spool.unwritten >= _WAITING_BYTES

    def _flush_soon(self) -> None:
        """Flush at the end of this turn of the loop, for all its rows together."""
        if not self._flush_planned:
            self._flush_planned = True
            asyncio.get_running_loop().call_soon(self._flush_planned_now)

    def _flush_planned_now(self) -> None:
        self._flush_planned = False
        self._flush_now()

    def _flush_now(self) -> None:
        """Flush, but only once per `batch_seconds` while the disk refuses: otherwise each refused request would try
        again."""
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
            # Whatever it was: the rows are safe in the spool, and without this task nobody would deliver them
            except Exception as err:
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
        """Deliver batch after batch until one is not full. Cancelling it may lose an acknowledgement, but never a
        row."""
        loop = asyncio.get_running_loop()
        async with self._shipping:
            while not self._closed:
                try:
                    head = self._head or await self._stored_head()
                    self._head = None  # unknown until the batch is acknowledged
                    # Rows that the disk refuses cannot be read, however old they get.
                    read_at = self._drained_at if self._broken else self._clock()
                    rows, after, position, full = await loop.run_in_executor(self._shipper, self._prepare, head)
                    self._sent = max(self._sent, after.seq)
                    moved = not rows or await asyncio.shield(self._store.add_audit(head, after, rows))
                except (StoreError, OSError):
                    self._failures += 1
                    raise
                if not moved:
                    continue  # an earlier batch had been added after all
                self._acknowledge(after, position, len(rows))
                if not full:  # newer rows wait for the next batch: each costs a sync and a transaction
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
        """Runs in a thread: the durable entries after the last batch as rows of the chain, and whether there may be
        more. Rows that the store already has are skipped."""
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
        """Write the head to a file outside of the database: whoever rewrites all rows there cannot rewrite this (U4).
        A failure is logged and tried again when the next anchor is due; rows do not wait for it."""
        path = Path(self._config.anchors or self._spool.directory / "anchors.jsonl")
        line = {"writer": head.writer, "seq": head.seq, "recorded_at": head.recorded_at, "hash": head.hash.hex()}
        seq = head.seq
        try:
            _append_line(path, json.dumps(line).encode())
        except OSError as err:
            _log.error("an anchor of the audit trail could not be written: %s: %s", path, err.strerror)
            _, seq = self._anchored
        self._anchored = (self._clock(), seq)

    # -- life

    async def close(self) -> None:
        """Deliver the remaining rows. Those that a failing store does not take stay in the spool for the next start."""
        self._flush()
        deadline = self._clock() + CLOSE_SECONDS
        while self._clock() < deadline:
            try:
                await self._ship_all()
                break
            except (StoreError, OSError) as err:
                _log.warning("audit rows wait in the spool: %d, %s", self._pending(), err)
                await asyncio.sleep(_RETRY_FIRST)
        for _ in range(2):  # the disk may take the whole line after it took a part of it
            if self._head is not None and self._head.seq > self._anchored[1]:
                self._anchor(self._head)
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


def _append_line(path: Path, line: bytes) -> None:
    """Append and sync a complete line, also after an incomplete one. Raises OSError; a part that the disk has taken is
    removed."""
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)
    try:
        size = os.fstat(file).st_size
        torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        data = b"\n" * torn + line + b"\n"
        if os.write(file, data) != len(data):
            os.ftruncate(file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file)
    finally:
        os.close(file)


def _payload(record: AuditRecord) -> bytes:
    """The record as it is spooled and hashed. Keys, tokens and characters that no database takes (NUL, lone surrogates)
    are replaced."""
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
