"""Percentile sketches: counts of durations in exponential buckets, stored as one number. Pure.

Bucket 0 counts durations below a millisecond, bucket n those from 2^((n-1)/6) to 2^(n/6) milliseconds, the last one all
longer ones (26 hours). The count of bucket n is the n-th digit of a number, so adding numbers adds sketches. SQLite
stores digits of 40 bits in a blob, after one byte that names the first bucket. PostgreSQL stores a NUMERIC with digits
of 12 decimals, whose trailing zeros take no space either. The migrations of PostgreSQL use the same buckets.
"""

import itertools
import math
from collections.abc import Iterable

PER_OCTAVE = 6
BUCKETS = 160
ERROR = 2 ** (0.5 / PER_OCTAVE) - 1
"""A percentile is the geometric middle of its bucket: at most 6 % from the nearest-rank value; below a millisecond it
is 0."""
_BITS, _BYTES, _DECIMALS = 40, 5, 12
"""The size of a digit: no count reaches 10^12, which is a thousand requests a second for thirty years."""


def sketch(durations: Iterable[int]) -> bytes:
    """The sketch of durations in microseconds, as SQLite keeps it."""
    buckets = [_bucket(us) for us in durations]
    first = min(buckets, default=0)
    return pack(first, sum(1 << _BITS * (bucket - first) for bucket in buckets))


def _bucket(us: int) -> int:
    return 0 if us < 1000 else min(BUCKETS - 1, 1 + int(PER_OCTAVE * math.log2(us / 1000)))


def pack(first: int, number: int) -> bytes:
    """`first` is the bucket of the number's lowest digit."""
    return bytes((first,)) + number.to_bytes((number.bit_length() + 7) // 8, "little")


def unpack(kept: bytes, first: int = 0) -> int:
    """The number whose lowest digit is bucket `first`, which must not be above the first bucket in the blob."""
    return int.from_bytes(kept[1:], "little") << _BITS * (kept[0] - first)


def counts(kept: bytes | str) -> list[int]:
    """Counts by bucket, from a blob of SQLite or the text of a NUMERIC."""
    if isinstance(kept, bytes):
        digits = (kept[at : at + _BYTES] for at in range(1, len(kept), _BYTES))
        return [0] * kept[0] + [int.from_bytes(digit, "little") for digit in digits]
    return [int(kept[max(0, end - _DECIMALS) : end]) for end in range(len(kept), 0, -_DECIMALS)]


def percentile(of: list[int], rank: int) -> float | None:
    """The value at the nearest rank, in milliseconds, from counts by bucket; None if all are zero."""
    total = sum(of)
    if not total:
        return None
    wanted = (total * rank + 99) // 100
    bucket = next(bucket for bucket, upto in enumerate(itertools.accumulate(of)) if upto >= wanted)
    return round(2 ** ((bucket - 0.5) / PER_OCTAVE), 3) if bucket else 0.0
