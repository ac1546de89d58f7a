"""What is known of the backends at one moment. Pure facts.

Not compiled (`hatch_build.py`): workers send them to each other.
"""

from typing import Final, Literal

import msgspec

from gateway.api.model_info import ModelInfo
from gateway.services.catalogue import Pools

Failure = Literal["connect", "timeout", "broken"]
FAILURES: Final[tuple[Failure, ...]] = ("connect", "timeout", "broken")


class Topology(msgspec.Struct, frozen=True):
    """What may be granted. `gates`: backend -> slots, 0 while ejected, 1 while its probe is awaited: that one goes
    beside what ran there before, and the backend is in `trials`.

    `pools`: queue -> its (backend, preference), 0 = model loaded, 1 = not; equals stand in order of weight.
    A pool that is missing is gone.
    """

    gates: dict[str, int]
    pools: Pools
    trials: frozenset[str] = frozenset()


class BackendStats(msgspec.Struct, frozen=True):
    """One backend at one moment. `last_seen`: seconds ago, None = never; `failure`: of the last look, or empty."""

    name: str
    engine: str
    state: str
    up: bool
    slots: int
    models: int
    loaded: tuple[str, ...]
    failures: dict[str, int]
    misses: int
    ejections: int
    last_seen: float | None
    version: str
    failure: str


class Seen(msgspec.Struct, frozen=True):
    """One backend as another process must know it to serve requests."""

    stats: BackendStats
    models: tuple[ModelInfo, ...]
