"""Where backends listen, and what is counted of connections. Pure facts.

Not compiled (`hatch_build.py`): records keep their options and types.
"""

import msgspec


class Address(msgspec.Struct, frozen=True):
    """Where a backend listens. `ca`: PEM file that verifies a TLS backend; empty: the system's."""

    host: str
    port: int
    tls: bool = False
    ca: str = ""


class PoolStats(msgspec.Struct, frozen=True):
    open: int
    idle: int
    dialled: int
    reused: int


class ServerStats(msgspec.Struct, frozen=True):
    """Counts since start, and what is open now."""

    open: int
    busy: int
    accepted: int
    refused: int
    requests: int
    timed_out: int
    buffered: int
    """Bytes of answers that wait for clients to take them."""
