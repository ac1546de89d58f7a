"""The hash chain of the audit trail (U4): what a row's hash covers, and how a chain is checked. Pure.

hash(n) = SHA-256(hash(n-1) | writer | 0 | seq | recorded_at | the record as MessagePack); before the first row the hash
is empty. Changing, deleting, inserting or reordering rows breaks the chain at that row. Recomputing all later hashes is
detected by the anchors, which are heads written elsewhere.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping

import msgspec

from gateway.store.base import AUDIT_COLUMNS, AuditRow, Head

_AT = struct.Struct(">QQ")
_WIDTH = len(AUDIT_COLUMNS)
Encode = Callable[[AuditRow], bytes]
"""A row's AUDIT_COLUMNS -> the bytes that were hashed."""


def digest(before: bytes, writer: str, seq: int, recorded_at: int, record: bytes) -> bytes:
    """The hash of a row, given the hash of the row before it."""
    return hashlib.sha256(b"%b%b\0%b%b" % (before, writer.encode(), _AT.pack(seq, recorded_at), record)).digest()


def link(head: Head, seq: int, recorded_at: int, record: bytes) -> Head:
    """The head after one more row."""
    return Head(head.writer, seq, recorded_at, digest(head.hash, head.writer, seq, recorded_at, record))


class Broken(msgspec.Struct, frozen=True):
    """The first row of a writer that does not follow from the one before it. `row` is the id of the request, empty if
    the row is missing."""

    writer: str
    seq: int
    row: str
    reason: str


class Checker:
    """Checks one writer's rows in order. `head` is the last good one of `rows`.

    `dropped` are the last rows of what retention dropped at once: seq -> hash, which is empty if it was not recorded.
    All rows up to the latest of them may be missing. The first remaining row must follow from one of them or from an
    anchor. If it follows from neither, it cannot be checked, and `unproven` is True.
    """

    def __init__(self, writer: str, anchors: Mapping[int, bytes], dropped: Mapping[int, bytes] | None = None) -> None:
        self.head = Head(writer)
        self.rows = 0
        self.unproven = False
        self._anchors = anchors
        self._noted = dropped or {}
        self._dropped = max(self._noted, default=0)

    def follow(self, rows: Iterable[AuditRow], encode: Encode) -> Broken | None:
        """Check rows -> the first fault, if any."""
        for number, row in enumerate(rows):
            if number == 0 and self._again(row):
                continue
            fault = self._check(row, encode)
            if fault is not None:
                return fault
        return None

    def _again(self, row: AuditRow) -> bool:
        """Pages overlap by one row, so that a second row with the same number cannot hide between two pages."""
        head = self.head
        return head.seq > 0 and row[_WIDTH:] == (head.writer, head.seq, head.recorded_at, head.hash)

    def _check(self, row: AuditRow, encode: Encode) -> Broken | None:
        record, (writer, seq, recorded_at, stored) = row[:_WIDTH], row[_WIDTH:]
        assert isinstance(seq, int)  # noqa: S101 -- the columns' types, for the type checker
        assert isinstance(recorded_at, int)  # noqa: S101 -- as above
        assert isinstance(stored, bytes)  # noqa: S101 -- as above
        name = str(record[0])
        if self.head.seq == 0 and 1 < seq <= self._dropped + 1:
            before = self._anchors.get(seq - 1) or self._noted.get(seq - 1)
            if not before:
                self.unproven = True
                self.head = Head(str(writer), seq, recorded_at, stored)
                return self._anchored(name)
            self.head = Head(self.head.writer, seq - 1, 0, before)
        elif self.head.seq == 0 and seq > 1:
            return Broken(self.head.writer, self._dropped + 1, "", "the row is missing")
        if seq <= self.head.seq:
            return Broken(self.head.writer, seq, name, "the row was inserted")
        if seq != self.head.seq + 1:
            return Broken(self.head.writer, self.head.seq + 1, "", "the row is missing")
        expected = link(self.head, seq, recorded_at, encode(record))
        if expected.hash != stored:
            return Broken(self.head.writer, seq, name, "the row is not what was written")
        if recorded_at < self.head.recorded_at:
            return Broken(self.head.writer, seq, name, "the row is older than the one before it")
        self.head = expected
        return self._anchored(name)

    def _anchored(self, name: str) -> Broken | None:
        self.rows += 1
        anchor = self._anchors.get(self.head.seq)
        if anchor is None:
            return None
        if anchor != self.head.hash:
            return Broken(self.head.writer, self.head.seq, name, "the chain was computed anew: an anchor differs")
        return None

    def end(self, stored: Head) -> Broken | None:
        """After the last row: neither the store's head nor an anchor may name a later row, which would be missing."""
        last = max(self._anchors, default=0)
        if not self.rows and max(stored.seq, last) <= self._dropped:
            return None
        if stored.seq > self.head.seq or last > self.head.seq:
            return Broken(self.head.writer, self.head.seq + 1, "", "rows at the end are missing")
        if stored.seq < self.head.seq or (self.head.seq and stored.hash != self.head.hash):
            return Broken(self.head.writer, stored.seq + 1, "", "rows were added behind the writer's back")
        return None
