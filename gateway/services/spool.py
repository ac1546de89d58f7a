"""The write-ahead spool of the audit trail: a directory of append-only segments on the local disk (U2, U3).

Owns the file format, group commit, recovery and the bound on disk; must not know what a payload means or who reads it.

A segment is MAGIC, then frames of `length, checksum, kind, number, seq, at` and a payload. A START frame says that
number's request runs; an END frame ends it and is entry `seq` of the trail, recorded `at` (Unix microseconds, never
decreasing). A GIVEN_UP frame ends it without an entry: it has neither seq, at nor payload. Sequence numbers run without
a gap for the life of the directory, whose `writer` file names it. Every segment begins with a BASE frame (the last seq
before it) and repeats the STARTs that are still open, so an older one can go as soon as its ENDs are delivered.

Frames gather in memory and are written together; what is written survives the process (kill -9), what is synced also
survives the machine. One process owns a directory, by a lock.
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
_BOTH: Final = struct.Struct(_FRAME.format + _HEAD.format[1:])  # at once
_BASE: Final = 0
_START: Final = 1
_END: Final = 2
_GIVEN_UP: Final = 3
_LONGEST_FRAME: Final = 1 << 20
"""More is damage: a record has a few hundred bytes."""
_READ_BYTES: Final = 1 << 18
_WRITE_BYTES: Final = 1 << 18
"""About what one write takes: after a disk refused, much may wait, and a try that fails again must cost little."""
_USED: Final = (
    "another fairgate with this configuration seems to run: it holds the audit spool {}; end that one, or give this "
    "one an audit.spool and an admin.listen of its own"
)


class SpoolError(Exception):
    """The directory cannot be used; the message says why and what to do."""


Entry = tuple[int, int, bytes]
"""One END frame: seq, at and payload. A plain tuple: half a million a minute are made where much is asked."""


class Position(NamedTuple):
    """Where a reader stands: a segment and an offset into it."""

    segment: int
    offset: int = len(MAGIC)


class _Frame(NamedTuple):
    kind: int
    number: int
    seq: int
    at: int
    payload: bytes
    end: int  # offset after it


def _pack(kind: int, number: int, seq: int, at: int, payload: bytes) -> bytes:
    body = _HEAD.pack(kind, number, seq, at) + payload
    return _FRAME.pack(len(body), crc32(body)) + body


def _frames(data: bytes, offset: int) -> Iterator[_Frame]:
    """The whole and undamaged frames of `data`, which begins at `offset` of its file; ends before anything else."""
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
    """Add the entries of the whole, undamaged frames of `data` until `found` has `count`; where they end.

    As `_frames`, for a reader that looks at END frames only: the others are stepped over by their length.
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
    """All of it. A disk that fills up takes a part and refuses the next one. Raises OSError."""
    while data:
        took = os.pwrite(file, data, offset)
        if took == len(data):
            return
        if not took:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data, offset = data[took:], offset + took


class Spool:
    """Opens (and recovers) the directory. `read` and `sync` may run in another thread than the rest, one at a time.

    `interrupted` are number and payload of what was open when the last process ended: the caller ends each. `size` is
    in bytes, on disk and on their way there, of which `unwritten` are in memory. `damaged` names what recovery could
    not read."""

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
        self._durable: dict[int, int] = {}  # segment -> bytes synced; a reader sees no more
        self._file = -1
        self._current = 0  # the segment that is written
        self._retired: list[int] = []  # files of complete segments that await their sync
        self._doomed: list[Path] = []  # released segments that await their removal
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
        """A request runs -> its number, for `end`."""
        self._number += 1
        frame = _pack(_START, self._number, 0, 0, payload)
        self._open[self._number] = frame
        self._add(frame)
        return self._number

    def end(self, number: int, payload: bytes) -> int:
        """A request ended (number 0: one that never ran) -> its seq."""
        self._open.pop(number, None)
        self.seq += 1
        self._at = max(self._at, self._now() // 1000)
        self._add(_pack(_END, number, self.seq, self._at, payload))
        return self.seq

    def forget(self, number: int) -> None:
        """A request ended and its entry is given up (number 0: one that never ran). A few bytes say so even where there
        is no room for entries, else the next process would take it for interrupted."""
        if self._open.pop(number, None) is not None:
            self._add(_pack(_GIVEN_UP, number, 0, 0, b""))

    def _add(self, frame: bytes) -> None:
        self._buffer.append(frame)
        self.unwritten += len(frame)
        self.size += len(frame)

    def flush(self) -> None:
        """Write what gathered. Raises OSError: nothing was lost, the next flush tries again."""
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
                    os.ftruncate(self._file, size)  # no torn frame before the next try
                raise
            del self._buffer[: len(frames)]
            self.unwritten -= len(data)
            self._sizes[current] = size + len(data)
        if self._sizes[current] >= self._segment_bytes:
            self._next_segment()

    def _next_frames(self) -> list[bytes]:
        """Those of the next write: nearly always all."""
        if self.unwritten <= _WRITE_BYTES:
            return self._buffer
        taken = 0
        for count, frame in enumerate(self._buffer, 1):
            taken += len(frame)
            if taken >= _WRITE_BYTES:
                return self._buffer[:count]
        return self._buffer

    def sync(self) -> None:
        """Have the machine keep what was written, and remove what was released; slow. Raises OSError: the next sync
        goes on with what this one left."""
        while self._doomed:
            self._doomed[0].unlink(missing_ok=True)
            self._doomed.pop(0)
        written = dict(self._sizes)
        if written == self._durable:
            return
        # The current file first: flushes go on meanwhile, so it may be among the complete ones by now. A complete one
        # that the disk does not take stays among them: what it holds is not durable before its own sync.
        os.fsync(self._file)
        for complete in list(self._retired):
            os.fsync(complete)
            self._retired.remove(complete)
            os.close(complete)
        if written.keys() != self._durable.keys():
            os.fsync(self._directory)
        self._durable = written

    def _next_segment(self) -> None:
        """Begin a segment. The buffer is empty here."""
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
        """Of the oldest segment that is left."""
        return Position(min(self._sizes))

    def read(self, position: Position, count: int) -> tuple[list[Entry], Position]:
        """Up to `count` entries from there, and where to go on."""
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
        """Everything up to `seq` is delivered: segments that hold nothing later go."""
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
        """A torn frame at the very end is what an interrupted write leaves; elsewhere it is damage and is kept."""
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
        """The name of this directory's chain, made once."""
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
        """Write what was not flushed, and let another process have the directory. Raises SpoolError if the disk refuses
        what is left: the directory is let go all the same."""
        try:
            self.flush()
            self.sync()
        except OSError as err:
            raise SpoolError(f"audit spool {self.directory}: {err.strerror}") from err
        finally:
            for file in (*self._retired, self._file, self._directory, self._lock):
                os.close(file)

    def __repr__(self) -> str:
        return f"<Spool {self.directory} writer={self.writer} seq={self.seq} open={len(self._open)}>"
