"""What is counted of tokens and their issuer's keys. A pure fact."""

import msgspec


class TokenStats(msgspec.Struct, frozen=True):
    """Counters since start, and what is known of the issuer now."""

    checked: int = 0
    """Signatures."""
    fetched: int = 0
    failed: int = 0
    """Fetches of the issuer's keys, by how they ended."""
    signers: int = 0
    """Keys that verify."""
    age: float = 0.0
    """Seconds since the issuer's keys were last read; of keys from a file, 0."""


NO_TOKENS = TokenStats()
