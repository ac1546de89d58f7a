"""The state of the backends at one moment. Plain data.

Not compiled (`hatch_build.py`): workers send these records to each other.
"""

from typing import Final, Literal

import msgspec

from gateway.api.model_info import ModelInfo
from gateway.services.catalogue import Pools

Failure = Literal["connect", "timeout", "broken"]
FAILURES: Final[tuple[Failure, ...]] = ("connect", "timeout", "broken")


class Topology(msgspec.Struct, frozen=True):
    """What may be granted. `gates`: backend -> slots. An ejected backend has 0. One whose probe is awaited has 1, which
    is granted in addition to requests that ran there before; it is then listed in `trials`.

    `pools`: queue -> its (backend, preference), where 0 = model loaded, 1 = not; backends of equal preference are
    ordered by weight. A pool that is missing no longer exists.
    """

    gates: dict[str, int]
    pools: Pools
    trials: frozenset[str] = frozenset()


class BackendStats(msgspec.Struct, frozen=True):
    """One backend at one moment. `last_seen`: seconds ago, None = never; `failure`: that of the last check, or
    empty."""

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
    """What another process must know of a backend to serve requests."""

    stats: BackendStats
    models: tuple[ModelInfo, ...]
