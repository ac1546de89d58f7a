"""What all requests together hold now, and which wait. Pure facts.

Not compiled (`hatch_build.py`): records keep their options and types.
"""

import msgspec


class LedgerStats(msgspec.Struct, frozen=True):
    """Now: requests past admission, bytes of request bodies, requests waiting for a slot."""

    open: int
    body_bytes: int
    waiting: int


class Waiting(msgspec.Struct, frozen=True):
    """One request that waits for a slot: `position` requests go first and it takes `estimate` seconds more, both
    "about" and free to rise (a priority queue). `since` in Unix seconds."""

    id: str
    model: str
    position: int
    estimate: float
    since: float
