"""The scheduler's settings: names, defaults, ranges and their meaning, in one table.

Owns the `Settings` record and its checks; the documentation is generated from the same fields (`describe`). Must not
know what a setting does.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

Doc = msgspec.Meta


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of one scheduler; immutable, replaced as a whole. `ValueError` for a value out of its range, NaN
    or infinity. The priority formula that uses them is in `ranking`."""

    base_priority: Annotated[
        float,
        Doc(ge=-1e6, le=1e6, description="Points every request starts with. Shifts the figures shown, not the order."),
    ] = 100.0
    wait_weight: Annotated[
        float,
        Doc(ge=0, le=1e3, description="Points for each mean service time of the model that service has been owed."),
    ] = 0.4
    usage_weight: Annotated[
        float, Doc(ge=0, le=1e4, description="Points lost each time usage grows by a factor of e.")
    ] = 10.0
    usage_scale: (
        Annotated[
            float,
            Doc(
                gt=0,
                le=1e12,
                description="Usage (cost units) below which differences hardly count. null: `rounds` x slots x mean "
                "cost of a request, which suits every model.",
            ),
        ]
        | None
    ) = None
    half_life: Annotated[
        float, Doc(ge=1, le=30 * 86400, description="Seconds after which past usage counts only half.")
    ] = 300.0
    queue_timeout: Annotated[
        float, Doc(ge=0.1, le=86400, description="Seconds a request may wait, unless its key or header sets less.")
    ] = 60.0
    rounds: Annotated[
        float,
        Doc(
            gt=0,
            le=1e6,
            description="The usage scale in rounds of the slots (one round = slots x mean cost of a request).",
        ),
    ] = 8.0
    credit: (
        Annotated[
            float,
            Doc(
                ge=0,
                le=1e6,
                description="Rounds of the slots by which a user or tenant that returns from a pause may be ahead of "
                "those that stayed. null: unlimited.",
            ),
        ]
        | None
    ) = 2.0
    free: Annotated[
        float,
        Doc(
            ge=0,
            le=1e6,
            description="A wait counts from this many mean requests (per share) before the next fair turn.",
        ),
    ] = 2.0
    landmark: (
        Annotated[
            float,
            Doc(
                gt=0,
                le=86400,
                description="Seconds between updates of estimates and ranks, at most 100 half-lives. null: a tenth of "
                "`half_life`.",
            ),
        ]
        | None
    ) = None
    levels: Annotated[
        int, Doc(ge=1, le=2, description="2: fair between tenants, then between the users of each. 1: users only.")
    ] = 2
    user_cap: Annotated[
        int, Doc(ge=1, le=10_000_000, description="Requests one user may have waiting for one model.")
    ] = 64
    global_cap: Annotated[
        int,
        Doc(
            ge=1,
            le=100_000_000,
            description="Requests that may wait in all queues together. Beyond that, the newest request of the longest "
            "queue is dropped.",
        ),
    ] = 10_000
    give_up: Annotated[
        float,
        Doc(
            ge=1,
            le=1e6,
            description="A request is refused at once if its user's backlog needs more than this many queue timeouts.",
        ),
    ] = 1.5
    input_weight: Annotated[float, Doc(ge=0, le=1e3, description="Cost units of an input token.")] = 1.0
    cached_weight: Annotated[
        float, Doc(ge=0, le=1e3, description="Cost units of an input token that the engine had cached.")
    ] = 0.1
    output_weight: Annotated[float, Doc(ge=0, le=1e3, description="Cost units of an output token.")] = 2.0
    first_output: Annotated[
        float, Doc(ge=0, le=1e6, description="Output tokens expected of a user's first request on a model.")
    ] = 256.0
    charge_every: Annotated[
        int,
        Doc(ge=1, le=1_000_000, description="Output tokens between corrections of a stream that exceeds its estimate."),
    ] = 256
    affinity: Annotated[
        float,
        Doc(
            ge=0,
            le=1e3,
            description="A conversation stays on one backend of its model while that has a free slot and runs at most "
            "this many times its part of the requests (1.25: a quarter more). 0: off, the backend with the most free "
            "slots is used. Values between 0 and 1 are refused.",
        ),
    ] = 0.0
    offset_batch: Annotated[float, Doc(ge=-1e4, le=1e4, description="Points of class `batch`.")] = -20.0
    offset_interactive: Annotated[float, Doc(ge=-1e4, le=1e4, description="Points of class `interactive`.")] = 0.0
    offset_system: Annotated[float, Doc(ge=-1e4, le=1e4, description="Points of class `system`.")] = 20.0

    def __post_init__(self) -> None:
        for field in describe():
            field.check(getattr(self, field.name))
        if 0.0 < self.affinity < 1.0:
            raise ValueError(f"affinity: {self.affinity!r} is neither 0 nor at least 1")

    @property
    def landmark_every(self) -> float:
        """Seconds between landmarks; at most 100 half-lives, so that the growth of costs stays finite (`usage`)."""
        return self.half_life / 10 if self.landmark is None else min(self.landmark, 100 * self.half_life)

    def changed(self, **values: Any) -> Settings:
        """A copy with some values replaced; `ValueError` for an unknown name or a bad value."""
        unknown = values.keys() - {field.name for field in describe()}
        if unknown:
            raise ValueError(f"unknown setting: {', '.join(sorted(unknown))}")
        return msgspec.structs.replace(self, **values)


class Field(msgspec.Struct, frozen=True):
    """One row of the table of settings."""

    name: str
    default: float | int | None
    low: float
    low_open: bool
    high: float
    optional: bool
    whole: bool
    text: str

    @property
    def span(self) -> str:
        """The range as text, e.g. `> 0, <= 1e+12, or null`."""
        text = f"{'>' if self.low_open else '>='} {self.low:g}, <= {self.high:g}"
        return text + ", or null" if self.optional else text

    def check(self, value: Any) -> None:
        """Raise `ValueError` unless the value is a number of the right kind inside the range."""
        if value is None and self.optional:
            return
        kinds = (int,) if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            raise ValueError(f"{self.name}: {value!r} is not a {'whole' if self.whole else 'finite'} number")
        if value < self.low or value > self.high or (self.low_open and value == self.low):
            raise ValueError(f"{self.name}: {value!r} is outside its range ({self.span})")


_TABLE: list[Field] = []


def describe() -> list[Field]:
    """Every setting with default, range and meaning, in the order of the record."""
    if not _TABLE:
        _TABLE.extend(_rows())
    return _TABLE


def _rows() -> Iterator[Field]:
    hints = typing.get_type_hints(Settings, include_extras=True)
    for info in msgspec.structs.fields(Settings):
        hint = hints[info.name]
        optional = types.NoneType in typing.get_args(hint)
        base, meta = typing.get_args(typing.get_args(hint)[0] if optional else hint)
        yield Field(
            name=info.name,
            default=info.default,
            low=meta.gt if meta.ge is None else meta.ge,
            low_open=meta.ge is None,
            high=meta.le,
            optional=optional,
            whole=base is int,
            text=meta.description,
        )
