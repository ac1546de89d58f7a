"""The counters of `KeyService`. Plain data.

Not compiled (`hatch_build.py`): this is a record that needs msgspec's options.
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
    """Seconds since the store last answered the poll for changes."""
