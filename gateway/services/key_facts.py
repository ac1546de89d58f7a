"""What is counted of keys. A pure fact.

Not compiled (`hatch_build.py`): records keep their options.
"""

import msgspec


class KeyStats(msgspec.Struct, frozen=True):
    """Counters since start, and sizes now."""

    hashed: int
    refused: int
    unavailable: int
    cached: int
    negative: int
    flights: int
    silence: float = 0.0
    """Seconds since the store last answered the look at its changes."""
