"""The write-ahead spool of the audit trail: a directory of append-only segments on the local disk (U2, U3).

Owns the file format, group commit, recovery and the limit of disk space; must not know what a payload means or who
reads it.

A segment is MAGIC, followed by frames of `length, checksum, kind, number, seq, at` and a payload. A START frame says
that the request with this number runs; an END frame ends it and is entry `seq` of the trail, recorded `at` (Unix
microseconds, never decreasing). A GIVEN_UP frame ends it without an entry, so it has neither seq, at nor payload.
Sequence numbers have no gaps during the life of the directory, whose `writer` file names it. Every segment begins with
a BASE frame (the last seq before it) and repeats the STARTs that are still open, so an older segment can be deleted as
soon as its ENDs are delivered.

Frames are gathered in memory and written together. What is written survives the process (kill -9); what is synced also
survives the machine. A lock ensures that only one process uses a directory.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

from gateway.services.keyfmt import random_text

MAGIC: Final = b"FGSPOOL1"
_FRAME: Final = struct.Struct("<II")  # length of the rest, its CRC-32
_HEAD: Final = struct.Struct("<BQQQ")  # kind, number, seq, at
_BOTH: Final = struct.Struct(_FRAME.format + _HEAD.format[1:])  # both in one call
_BASE: Final = 0
_START: Final = 1
_END: Final = 2
_GIVEN_UP: Final = 3
_LONGEST_FRAME: Final = 1 << 20
"""Anything longer is damage: a record has a few hundred bytes."""
_READ_BYTES: Final = 1 << 18
_WRITE_BYTES: Final = 1 << 18
"""Approximate bytes per write: after the disk has refused, much may wait, and another failed try must be cheap."""
_USED: Final = (
    "another fairgate with this configuration seems to run: it holds the audit spool {}; end that one, or give this "
    "one an audit.spool and an admin.listen of its own"
)


class SpoolError(Exception):
    """The directory cannot be used; the message says why and what to do."""


Entry = tuple[int, int, bytes]
"""One END frame: seq, at and payload. A plain tuple, since busy gateways create half a million a minute."""


class Position(NamedTuple):
    """The position of a reader: a segment and an offset in it."""

    segment: int
    offset: int = len(MAGIC)


class _Frame(NamedTuple):
    kind: int
    number: int
    seq: int
    at: int
    payload: bytes
    end: int  # offset after the frame


def _pack(kind: int, number: int, seq: int, at: int, payload: bytes) -> bytes:
    body = _HEAD.pack(kind, number, seq, at) + payload
    return _FRAME.pack(len(body), crc32(body)) + body


def _frames(data: bytes, offset: int) -> Iterator[_Frame]:
    """The complete and undamaged frames of `data`, which begins at `offset` of its file; stops at the first other
    bytes."""
    at = 0
    while len(data) - at >= _FRAME.size:
        length, check = _FRAME.unpack_from(data, at)
        body = data[at + _FRAME.size : at + _FRAME.size + length]
        if not _HEAD.size <= length <= _LONGEST_FRAME or len(body) < length or crc32(body) != check:
            return
        at += _FRAME.size + length
        kind, number, seq, when = _HEAD.unpack_from(body)
        yield _Frame(kind, number, seq, when, body[_HEAD.size :], offset + at)


def _take_entries(data: bytes, count: int, found: list[Entry]) -> int:
    """Add the entries of complete, undamaged frames in `data` until `found` has `count`; returns where they end.

    Like `_frames`, for a reader that needs END frames only: other frames are skipped by their length.
    """
    at, length = 0, len(data)
    while length - at >= _BOTH.size and len(found) < count:
        size, check, kind, _, seq, when = _BOTH.unpack_from(data, at)
        start = at + _FRAME.size
        end = start + size
        if not _HEAD.size <= size <= _LONGEST_FRAME or end > length:
            break
        if kind == _END:
            if crc32(data[start:end]) != check:
                break
            found.append((seq, when, data[at + _BOTH.size : end]))
        at = end
    return at


def _write(file: int, data: bytes, offset: int) -> None:
    """Write all of it. A full disk may take a part and refuse the next one. Raises OSError."""
    while data:
        took = os.pwrite(file, data, offset)
        if took == len(data):
            return
        if not took:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data, offset = data[took:], offset + took


class Spool:
    """Opens (and recovers) the directory. `read` and `sync` may run in another thread than the rest, one at a time.

    `interrupted` are number and payload of the requests that were running when the last process ended: the caller must
    end each. `size` is in bytes, on disk or waiting to be written; `unwritten` of them are in memory. `damaged` names
    what recovery could not read.
    """

    def __init__(
        self,
        directory: Path,
        segment_bytes: int,
        *,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self.directory = directory
        self._segment_bytes = segment_bytes
        self._now = now
        self._buffer: list[bytes] = []
        self.unwritten = 0
        self._open: dict[int, bytes] = {}
        self._number = 0
        self._at = 0
        self.seq = 0
        self._sizes: dict[int, int] = {}  # segment -> bytes written
        self._bases: dict[int, int] = {}  # segment -> last seq before it
        self._durable: dict[int, int] = {}  # segment -> bytes synced; a reader does not see more
        self._file = -1
        self._current = 0  # the segment being written
        self._retired: list[int] = []  # files of complete segments that must still be synced
        self._doomed: list[Path] = []  # released segments that must still be deleted
        self.size = 0
        self.damaged: list[str] = []
        self._lock = self._locked()
        self._directory = os.open(directory, os.O_RDONLY)
        try:
            self.writer = self._writer()
            self._recover()
            self._next_segment()
        except OSError as err:
            os.close(self._directory)
            os.close(self._lock)
            raise SpoolError(f"audit spool {directory}: {err.strerror}") from err
        self.interrupted = [(number, frame[_FRAME.size + _HEAD.size :]) for number, frame in self._open.items()]

    # -- writing

    def begin(self, payload: bytes) -> int:
        """Record that a request runs -> its number, for `end`."""
        self._number += 1
        frame = _pack(_START, self._number, 0, 0, payload)
        self._open[self._number] = frame
        self._add(frame)
        return self._number

    def end(self, number: int, payload: bytes) -> int:
        """Record the end of a request (number 0: without a start) -> its seq."""
        self._open.pop(number, None)
        self.seq += 1
        self._at = max(self._at, self._now() // 1000)
        self._add(_pack(_END, number, self.seq, self._at, payload))
        return self.seq

    def forget(self, number: int) -> None:
        """Record that a request ended without an entry (number 0: without a start). These few bytes are written even if
        there is no room for entries; otherwise the next process would take the request for interrupted."""
        if self._open.pop(number, None) is not None:
            self._add(_pack(_GIVEN_UP, number, 0, 0, b""))

    def _add(self, frame: bytes) -> None:
        self._buffer.append(frame)
        self.unwritten += len(frame)
        self.size += len(frame)

    def flush(self) -> None:
        """Write what was gathered. If this raises OSError nothing is lost: the next flush tries again."""
        if not self._buffer:
            return
        current = self._current
        while self._buffer:
            frames = self._next_frames()
            size, data = self._sizes[current], b"".join(frames)
            try:
                _write(self._file, data, size)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, size)  # remove an incomplete frame before the next try
                raise
            del self._buffer[: len(frames)]
            self.unwritten -= len(data)
            self._sizes[current] = size + len(data)
        if self._sizes[current] >= self._segment_bytes:
            self._next_segment()

    def _next_frames(self) -> list[bytes]:
        """The frames of the next write; almost always all of them."""
        if self.unwritten <= _WRITE_BYTES:
            return self._buffer
        taken = 0
        for count, frame in enumerate(self._buffer, 1):
            taken += len(frame)
            if taken >= _WRITE_BYTES:
                return self._buffer[:count]
        return self._buffer

    def sync(self) -> None:
        """Sync what was written to disk, and delete released segments; slow. After an OSError, the next sync continues
        where this one stopped."""
        while self._doomed:
            self._doomed[0].unlink(missing_ok=True)
            self._doomed.pop(0)
        written = dict(self._sizes)
        if written == self._durable:
            return
        # The current file first: flushes go on meanwhile, so it may have become complete by now. A complete file that
        # the disk refuses stays in the list, since its content is durable only after its own sync.
        os.fsync(self._file)
        for complete in list(self._retired):
            os.fsync(complete)
            self._retired.remove(complete)
            os.close(complete)
        if written.keys() != self._durable.keys():
            os.fsync(self._directory)
        self._durable = written

    def _next_segment(self) -> None:
        """Begin a new segment. The buffer is empty here."""
        number = max(self._sizes, default=0) + 1
        first = MAGIC + _pack(_BASE, 0, self.seq, self._at, b"") + b"".join(self._open.values())
        file = os.open(self._path(number), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            _write(file, first, 0)
        except OSError:
            os.close(file)
            self._path(number).unlink()
            raise
        if self._file >= 0:
            self._retired.append(self._file)
        self._file, self._current = file, number
        self._sizes[number] = len(first)
        self._bases[number] = self.seq
        self.size += len(first)

    # -- reading

    @property
    def start(self) -> Position:
        """The beginning of the oldest segment."""
        return Position(min(self._sizes))

    def read(self, position: Position, count: int) -> tuple[list[Entry], Position]:
        """Up to `count` entries from this position, and the position after them."""
        found: list[Entry] = []
        while len(found) < count:
            durable = self._durable
            data = self._bytes(position, durable.get(position.segment, 0))
            end = _take_entries(data, count, found)
            if end:
                position = Position(position.segment, position.offset + end)
                continue
            later = [number for number in durable if number > position.segment]
            if not later:
                break
            position = Position(min(later))
        return found, position

    def _bytes(self, position: Position, durable: int) -> bytes:
        want = min(durable - position.offset, _READ_BYTES)
        if want <= 0:
            return b""
        with self._path(position.segment).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), want, position.offset)

    def release(self, seq: int) -> None:
        """Everything up to `seq` is delivered: release segments without later entries."""
        numbers = sorted(self._sizes)
        for number, successor in itertools.pairwise(numbers):
            if self._bases[successor] > seq:
                return
            self._doomed.append(self._path(number))
            self.size -= self._sizes.pop(number)
            del self._bases[number]

    # -- opening

    def _recover(self) -> None:
        """Read all segments in order."""
        paths = sorted(self.directory.glob("*.log"))
        for path in paths:
            self._recover_segment(path, last=path == paths[-1])

    def _recover_segment(self, path: Path, *, last: bool) -> None:
        """An incomplete frame at the very end is what an interrupted write leaves; anywhere else it is damage, and the
        file is kept."""
        data = path.read_bytes()
        number, end = int(path.stem), 0
        if data.startswith(MAGIC):
            end = len(MAGIC)
            for frame in _frames(data[end:], end):
                self._replay(number, frame)
                end = frame.end
        if end < len(data):
            if not last:
                path.with_suffix(".damaged").write_bytes(data[end:])
                self.damaged.append(f"{path.name}: {len(data) - end} bytes after {end} are unreadable")
            os.truncate(path, end)
        self._sizes[number] = end
        self._bases.setdefault(number, self.seq)
        self.size += end

    def _replay(self, segment: int, frame: _Frame) -> None:
        self._at = max(self._at, frame.at)
        if frame.kind == _BASE:
            self._bases[segment] = frame.seq
            self.seq = max(self.seq, frame.seq)
        elif frame.kind == _START:
            self._number = max(self._number, frame.number)
            self._open[frame.number] = _pack(_START, frame.number, 0, 0, frame.payload)
        else:
            self._open.pop(frame.number, None)
            self.seq = max(self.seq, frame.seq)

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:012d}.log"

    def _locked(self) -> int:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as err:
            raise SpoolError(f"audit spool {self.directory}: {err.strerror}") from err
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            os.close(lock)
            raise SpoolError(_USED.format(self.directory)) from err
        return lock

    def _writer(self) -> str:
        """The name of this directory's chain, created once."""
        path = self.directory / "writer"
        if path.exists():
            return path.read_text(encoding="ascii").strip()
        name, fresh = random_text(12), self.directory / "writer.new"
        with fresh.open("w", encoding="ascii") as file:
            file.write(name)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        return name

    def close(self) -> None:
        """Write what was not flushed and release the directory, even if the disk refuses and this raises SpoolError,
        which says how many rows are lost."""
        try:
            self.flush()
            self.sync()
        except OSError as err:
            lost: list[Entry] = []
            _take_entries(b"".join(self._buffer), len(self._buffer), lost)
            rows = f"; {len(lost)} rows that waited for room are lost" if lost else ""
            raise SpoolError(f"audit spool {self.directory}: {err.strerror}{rows}") from err
        finally:
            for file in (*self._retired, self._file, self._directory, self._lock):
                os.close(file)

    def __repr__(self) -> str:
        return f"<Spool {self.directory} writer={self.writer} seq={self.seq} open={len(self._open)}>"
