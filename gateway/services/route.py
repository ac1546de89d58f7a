"""Where a request may go: an engine, and the terms of a model. Plain data, created by `catalogue`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backend:
    """One engine as a request needs it. `auth` is the value of its Authorization field, or empty."""

    name: str
    engine: str
    host_header: bytes
    base_path: bytes
    auth: bytes

    def __repr__(self) -> str:
        """Without `auth`."""
        return f"<Backend {self.name} {self.engine} {self.host_header.decode()}>"


@dataclass(frozen=True)
class Terms:
    """Timeouts and limits of one model (R4, A6). Times are in seconds; `cost_factor` weighs its tokens in fair use."""

    connect: float
    first_byte: float
    between: float
    total: float
    retries: int
    max_output_tokens: int
    cost_factor: float


@dataclass(frozen=True)
class Route:
    """Where a model may be served. `model` is its name at the engine, `candidates` are backends, preferred ones first.

    `pool` is the scheduler's queue: the model's name. If only some of its backends serve this kind of request, it is
    the name, a tab (which no name contains) and their engines.
    """

    pool: str
    model: str
    candidates: tuple[str, ...]
    terms: Terms
