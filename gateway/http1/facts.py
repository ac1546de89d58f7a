"""Where backends listen, and counters of connections. Plain data.

Not compiled (`hatch_build.py`): these are records that need msgspec's options.
"""

import msgspec


class Address(msgspec.Struct, frozen=True):
    """Where a backend listens. `ca`: PEM file with the authorities that verify a TLS backend; empty: the system's."""

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
    """Counters since start, and the connections open now."""

    open: int
    busy: int
    accepted: int
    refused: int
    requests: int
    timed_out: int
    buffered: int
    """Bytes of answers that clients have not read yet."""
