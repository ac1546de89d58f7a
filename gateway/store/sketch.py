"""Percentile sketches: how often durations fell into buckets of one ratio, kept as one number. Pure.

Bucket 0 counts what is below a millisecond, bucket n what is from 2^((n-1)/6) to 2^(n/6) milliseconds, the last one all
that is longer (26 hours). The count of bucket n is the n-th digit of a number, so adding numbers adds sketches. SQLite
keeps digits of 40 bits in a blob, after one byte that says which bucket is the first; PostgreSQL a NUMERIC with digits
of 12 decimals, whose zeros at the end it does not store either. The migrations of PostgreSQL have the same buckets.
"""

import itertools
import math
from collections.abc import Iterable

PER_OCTAVE = 6
BUCKETS = 160
ERROR = 2 ** (0.5 / PER_OCTAVE) - 1
"""A percentile is the geometric middle of its bucket: at most 6 % from the nearest rank in the values; below a
millisecond it is 0."""
_BITS, _BYTES, _DECIMALS = 40, 5, 12
"""Of a digit: no count reaches 10^12, a thousand requests a second for thirty years."""


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
    """The number whose lowest digit is bucket `first`, which is not above the one in the blob."""
    return int.from_bytes(kept[1:], "little") << _BITS * (kept[0] - first)


def counts(kept: bytes | str) -> list[int]:
    """By bucket, from a blob of SQLite or the text of a NUMERIC."""
    if isinstance(kept, bytes):
        digits = (kept[at : at + _BYTES] for at in range(1, len(kept), _BYTES))
        return [0] * kept[0] + [int.from_bytes(digit, "little") for digit in digits]
    return [int(kept[max(0, end - _DECIMALS) : end]) for end in range(len(kept), 0, -_DECIMALS)]


def percentile(of: list[int], rank: int) -> float | None:
    """Milliseconds at the nearest rank of counts by bucket; None where nothing was counted."""
    total = sum(of)
    if not total:
        return None
    wanted = (total * rank + 99) // 100
    bucket = next(bucket for bucket, upto in enumerate(itertools.accumulate(of)) if upto >= wanted)
    return round(2 ** ((bucket - 0.5) / PER_OCTAVE), 3) if bucket else 0.0
