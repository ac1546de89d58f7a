"""The metrics page: values by name and labels become text or OpenMetrics, in the order of the table.

Objects of prometheus-client are made here only, at a scrape. Must not know what is counted, or where.
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
    """(content type, parts): the text or OpenMetrics format as `accept` prefers.

    The parts are made one by one, so that a caller can let the loop turn between them. Metrics of one name in a row
    share one head.
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
    """A registry of one family, for encoders."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def _without_head(part: bytes) -> bytes:
    """A family's samples without its help and type, which stand before the first of them only."""
    while part.startswith(b"# "):
        part = part.partition(b"\n")[2]
    return part


def families(values: Values, *, apart: bool) -> Iterator[Metric]:
    """Every metric of the table. `apart`: histograms as one family for each of their label values, in a row."""
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
