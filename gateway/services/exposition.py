"""The metrics page: turns values by name and labels into the text or OpenMetrics format, in the order of the table.

prometheus-client's objects are created only here, at a scrape. Must not know what is counted, or where.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from gateway.services.metrics_table import METRICS, Described
from gateway.services.tally import Histogram

Labels = tuple[str, ...]
Values = dict[str, dict[Labels, float | Histogram]]
"""metric -> label values -> value."""

_FAMILIES: Final[Mapping[str, Any]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def page(metrics: Iterator[Metric], accept: str) -> tuple[str, Iterator[bytes]]:
    """(content type, parts) in the text or OpenMetrics format, as `accept` prefers.

    The parts are generated one by one, so that a caller can let the loop turn between them. Consecutive metrics of one
    name share one head.
    """
    encoder, content_type = choose_encoder(accept)
    return content_type, _parts(metrics, encoder, content_type.startswith("application/openmetrics-text"))


def _parts(metrics: Iterator[Metric], encoder: Callable[[Any], bytes], openmetrics: bool) -> Iterator[bytes]:
    end, before = b"# EOF\n", ""
    for family in metrics:
        part = encoder(_One(family))
        if openmetrics:
            part = part.removesuffix(end)
        yield _without_head(part) if family.name == before else part
        before = family.name
    if openmetrics:
        yield end


class _One:
    """A registry with a single family, for prometheus-client's encoders."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def _without_head(part: bytes) -> bytes:
    """A family's samples without help and type lines, which may appear only once per name."""
    while part.startswith(b"# "):
        part = part.partition(b"\n")[2]
    return part


def families(values: Values, *, apart: bool) -> Iterator[Metric]:
    """Every metric of the table. `apart`: a histogram becomes one family for each of its label values, one after the
    other."""
    for described in METRICS:
        cells = values.get(described.name, {})
        if apart and cells and described.kind == "histogram":
            for labels, cell in cells.items():
                yield _family(described, {labels: cell})
        else:
            yield _family(described, cells)


def _family(described: Described, values: Mapping[Labels, float | Histogram]) -> Metric:
    family = _FAMILIES[described.kind](described.name, described.help, labels=described.labels)
    for labels, value in values.items():
        if isinstance(value, Histogram):
            family.add_metric(labels, value.cumulated(), value.sum)
        else:
            family.add_metric(labels, float(value))
    result: Metric = family
    return result
