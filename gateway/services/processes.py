"""Figures of the gateway's processes from the operating system: the sums of prometheus-client's `process_*` metrics.
Linux only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric

_NOT_SUMS: Final[Mapping[str, Callable[[float, float], float]]] = {
    "process_start_time_seconds": min,
    "process_max_fds": min,
}


def collect(pids: Sequence[int]) -> Iterator[Metric]:
    """The families for these processes, or for this one if none is given. A process that has ended adds nothing."""
    totals: dict[str, float] = {}
    families: dict[str, Metric] = {}
    for pid in pids or ("self",):
        for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            families.setdefault(family.name, family)
            for sample in family.samples:
                join = _NOT_SUMS.get(sample.name, _add)
                totals[sample.name] = join(totals[sample.name], sample.value) if sample.name in totals else sample.value
    for family in families.values():
        family.samples = [sample._replace(value=totals[sample.name]) for sample in family.samples]
        yield family


def _add(one: float, other: float) -> float:
    return one + other
