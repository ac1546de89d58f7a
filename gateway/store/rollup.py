"""The usage roll-up of the embedded store; for PostgreSQL, the function `usage_roll_up` in the migrations does the
same.

Owns its statements and their step. Must not know when it runs. A step runs in a thread beside an event loop: every row
or value that passes between SQLite and Python hands the interpreter over. So rows are grouped in SQL and returned as
one JSON text, and a step is small enough to block the loop for less than a millisecond.
"""

import sqlite3
from collections.abc import Sequence
from typing import cast

import msgspec

from gateway.store.sketch import pack, sketch, unpack
from gateway.store.slices import slices
from gateway.store.sql import quoted
from gateway.store.usage import CELL_COLUMNS, DAY_US, FAILED, HOUR_COLUMNS, HOUR_US

STEP = 500
"""Audit rows per step, beside an event loop."""
LONG_STEP = 20_000
"""Without an event loop: larger, because a step's commit costs more than its rows."""

_PENDING = (
    "SELECT h.writer, coalesce(m.seq, 0), min(h.seq, coalesce(m.seq, 0) + ?) FROM audit_heads h "
    "LEFT JOIN usage_rolled m ON m.writer = h.writer WHERE h.seq > coalesce(m.seq, 0) ORDER BY h.writer LIMIT 1"
)
_GROUPED = """
    SELECT json_group_array(json(cell)) FROM (
        SELECT json_array(
            {hour}, tenant, "user", "key", model_served,
            count(*), count(*) FILTER (WHERE {failed}),
            sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens), sum(slot_us),
            json_group_array(queue_us) FILTER (WHERE backend <> ''),
            json_group_array(first_byte_us) FILTER (WHERE backend <> '' AND first_byte_us > 0),
            json_group_array(total_us) FILTER (WHERE backend <> '')
        ) AS cell
        FROM audit
        WHERE writer = ? AND seq > ? AND seq <= ?
        GROUP BY {hour}, tenant, "user", "key", model_served
    )
""".format(failed=FAILED, hour=f"recorded_at / {HOUR_US} * {HOUR_US}")  # noqa: S608 -- constants


def _adding(table: str, columns: Sequence[str], keys: int) -> str:
    """A statement that adds a row to the existing one with the same first `keys` columns. They are followed by six
    sums, then sketches."""
    key, sums, sketches = columns[:keys], columns[keys : keys + 6], columns[keys + 6 :]
    return (
        f"INSERT INTO {table} ({quoted(columns)}) VALUES ({', '.join('?' * len(columns))}) "  # noqa: S608 -- constants
        f"ON CONFLICT ({quoted(key)}) DO UPDATE SET "
        + ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in sums)
        + ", "
        + ", ".join(f"{name} = sketch_add({table}.{name}, excluded.{name})" for name in sketches)
    )


_ADD_CELL = _adding("usage_cells", CELL_COLUMNS, 6)
_ADD_HOUR = _adding("usage_hours", HOUR_COLUMNS, 2)
_MARK = "INSERT INTO usage_rolled (writer, seq) VALUES (?, ?) ON CONFLICT (writer) DO UPDATE SET seq = excluded.seq"

_Grouped = tuple[int, str, str, str, str, int, int, int, int, int, int, list[int], list[int], list[int]]
_grouped = msgspec.json.Decoder(list[_Grouped]).decode

_Sums = tuple[int, int, int, int, int, int, bytes, bytes, bytes]
_Totals = dict[tuple[int | str, ...], _Sums]


def roll_step(connection: sqlite3.Connection, most: int) -> int:
    """Add up to `most` rows of one writer to the cells and hours and move its mark, in the caller's transaction -> how
    many."""
    pending = connection.execute(_PENDING, (most,)).fetchone()
    if pending is None:
        return 0
    writer, after, upto = pending
    cells: _Totals = {}
    hours: _Totals = {}
    (found,) = connection.execute(_GROUPED, (writer, after, upto)).fetchone()
    for some in slices(_grouped(found)):
        for group in some:
            _count(group, cells, hours)
    for statement, totals in ((_ADD_CELL, cells), (_ADD_HOUR, hours)):
        for part in slices([(*key, *sums) for key, sums in totals.items()]):
            connection.executemany(statement, part)
    connection.execute(_MARK, (writer, upto))
    return int(upto) - int(after)


def _count(group: _Grouped, cells: _Totals, hours: _Totals) -> None:
    """Add the requests of one party for one model in one hour to that party's hour and day, and to the hour of all
    parties."""
    hour, tenant, user, key, model = group[:5]
    queue, first_byte, total = map(sketch, group[11:])
    sums: _Sums = (*group[5:11], queue, first_byte, total)
    _add(cells, (HOUR_US, hour, tenant, user, key, model), sums)
    _add(cells, (DAY_US, hour // DAY_US * DAY_US, tenant, user, key, model), sums)
    _add(hours, (hour, model), sums)


def _add(totals: _Totals, key: tuple[int | str, ...], sums: _Sums) -> None:
    known = totals.get(key)
    if known is not None:
        counted = (one + other for one, other in zip(known[:6], sums[:6], strict=True))
        sketches = (sketch_add(one, other) for one, other in zip(known[6:], sums[6:], strict=True))
        sums = cast(_Sums, (*counted, *sketches))
    totals[key] = sums


def sketch_add(one: bytes, other: bytes) -> bytes:
    """SQLite's function of that name. An empty sketch has no first bucket."""
    if len(one) == 1 or len(other) == 1:
        return other if len(one) == 1 else one
    first = min(one[0], other[0])
    return pack(first, unpack(one, first) + unpack(other, first))


class SketchSum:
    """SQLite's aggregate `sketch_sum`."""

    def __init__(self) -> None:
        self._sum = 0

    def step(self, kept: bytes) -> None:
        self._sum += unpack(kept)

    def finalize(self) -> bytes:
        return pack(0, self._sum)
