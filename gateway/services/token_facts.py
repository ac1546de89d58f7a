"""The counters of tokens and of their issuer's keys. Plain data."""

import msgspec


class TokenStats(msgspec.Struct, frozen=True):
    """Counters since start, and the present state of the issuer's keys."""

    checked: int = 0
    """Signatures checked."""
    fetched: int = 0
    failed: int = 0
    """Fetches of the issuer's keys, by result."""
    signers: int = 0
    """Keys that can verify signatures."""
    age: float = 0.0
    """Seconds since the issuer's keys were last read; of keys from a file, 0."""


NO_TOKENS = TokenStats()
