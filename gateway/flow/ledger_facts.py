"""Records about all requests together: what they hold, and which of them wait. Plain data.

Not compiled (`hatch_build.py`): these are records that need msgspec's options.
"""

import msgspec


class LedgerStats(msgspec.Struct, frozen=True):
    """Current numbers: requests past admission, bytes of request bodies, requests waiting for a slot."""

    open: int
    body_bytes: int
    waiting: int


class Waiting(msgspec.Struct, frozen=True):
    """One request that waits for a slot: `position` requests are ahead of it, and it waits about `estimate` more
    seconds. Both may rise, since this is a priority queue. `since` is in Unix seconds."""

    id: str
    model: str
    position: int
    estimate: float
    since: float
