"""The usage roll-up of the embedded store: what `usage_roll_up` of the migrations is on PostgreSQL.

Owns its statements and their step. Must not know when it runs. The step is built for a thread beside an event loop:
each row or value that SQLite and Python pass one another is a change of the interpreter's owner, so rows are grouped in
SQL and come as one JSON text, and a step is small enough for the loop to wait less than a millisecond for it.
"""

import sqlite3

import msgspec

from gateway.store.sketch import pack, sketch, unpack
from gateway.store.slices import slices
from gateway.store.sql import quoted
from gateway.store.usage import CELL_COLUMNS, FAILED, SPANS

STEP = 500
"""Rows of the trail, beside an event loop."""
LONG_STEP = 20_000
"""Where none runs: a commit costs a step more than its rows do."""

_PENDING = (
    "SELECT h.writer, coalesce(m.seq, 0), min(h.seq, coalesce(m.seq, 0) + ?) FROM audit_heads h "
    "LEFT JOIN usage_marks m ON m.writer = h.writer WHERE h.seq > coalesce(m.seq, 0) ORDER BY h.writer LIMIT 1"
)
_CELLS = f"""
    SELECT json_group_array(json(cell)) FROM (
        SELECT json_array(
            span, recorded_at / span * span, tenant, "user", "key", model_served,
            count(*), count(*) FILTER (WHERE {FAILED}),
            sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens), sum(slot_us),
            json_group_array(queue_us) FILTER (WHERE backend <> ''),
            json_group_array(first_byte_us) FILTER (WHERE backend <> '' AND first_byte_us > 0),
            json_group_array(total_us) FILTER (WHERE backend <> '')
        ) AS cell
        FROM audit CROSS JOIN (SELECT {SPANS["hour"]} AS span UNION ALL SELECT {SPANS["day"]})
        WHERE writer = ? AND seq > ? AND seq <= ?
        GROUP BY span, recorded_at / span, tenant, "user", "key", model_served
    )
"""  # noqa: S608 -- constants
_KEY, _SUMS, _SKETCHES = CELL_COLUMNS[:6], CELL_COLUMNS[6:12], CELL_COLUMNS[12:]
_ADD = (
    f"INSERT INTO usage_cells ({quoted(CELL_COLUMNS)}) VALUES ({', '.join('?' * len(CELL_COLUMNS))}) "  # noqa: S608
    f"ON CONFLICT ({quoted(_KEY)}) DO UPDATE SET "
    + ", ".join(f"{name} = usage_cells.{name} + excluded.{name}" for name in _SUMS)
    + ", "
    + ", ".join(f"{name} = sketch_add(usage_cells.{name}, excluded.{name})" for name in _SKETCHES)
)
_MARK = "INSERT INTO usage_marks (writer, seq) VALUES (?, ?) ON CONFLICT (writer) DO UPDATE SET seq = excluded.seq"

_Cell = tuple[int, int, str, str, str, str, int, int, int, int, int, int, list[int], list[int], list[int]]
_decode = msgspec.json.Decoder(list[_Cell]).decode


def roll_step(connection: sqlite3.Connection, most: int) -> int:
    """Add up to `most` rows of one writer to the cells and move its mark, in the caller's transaction -> how many."""
    pending = connection.execute(_PENDING, (most,)).fetchone()
    if pending is None:
        return 0
    writer, after, upto = pending
    (cells,) = connection.execute(_CELLS, (writer, after, upto)).fetchone()
    for some in slices(_decode(cells)):
        connection.executemany(_ADD, [(*cell[:12], *map(sketch, cell[12:])) for cell in some])
    connection.execute(_MARK, (writer, upto))
    return int(upto) - int(after)


def sketch_add(one: bytes, other: bytes) -> bytes:
    """SQLite's function of that name."""
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
