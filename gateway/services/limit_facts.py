"""Answers of lenders, and the counters of limits. Plain data.

Not compiled (`hatch_build.py`): these are records that need msgspec's options.
"""

import msgspec


class LenderStats(msgspec.Struct, frozen=True):
    """Counters since start. `meters` take part in rounds now; `silence`: seconds for which every round has failed."""

    rounds: int
    failures: int
    meters: int
    failing: bool
    silence: float = 0.0


class LimitStats(msgspec.Struct, frozen=True):
    """Counters since start: `refused`, `expired`. Now: `open` reservations, `principals`, `meters`."""

    open: int
    refused: int
    expired: int
    principals: int
    meters: int
    store: LenderStats
    shared: LenderStats | None


class SharedAnswer(msgspec.Struct, frozen=True):
    """Redis' answer for one meter: the amount granted, what is left there, whether Redis recently lost its data, and
    (for open requests) whether another gateway found too few."""

    granted: int
    rest: int
    unsure: bool = False
    sought: bool = False
