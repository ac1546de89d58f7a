"""Counts the metrics that `metrics_table.py` describes.

Counting is plain integers in dictionaries and lists (0.1 to 0.2 us per call); `exposition.py` formats them at a scrape.
Label values outside the table's sets count as `other`; models and backends must be made known first, up to a maximum
number. Must not know control flow: services are read at scrape, through sources that turn their frozen `stats()` into
samples.
"""

import logging
import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from prometheus_client.core import Metric

from gateway import __version__
from gateway.services import processes
from gateway.services.counts import Counts
from gateway.services.exposition import Labels, Values, families, page
from gateway.services.metrics_table import BY_NAME, DURATION, LABELS, LAG, OVERHEAD, QUEUE, TTFT
from gateway.services.tally import Histogram, ModelTally

log = logging.getLogger("fairgate.metrics")

OTHER: Final = "other"
MODELS_MAX: Final = 200  # label values; each costs 4 histograms, about 90 lines of a scrape
BACKENDS_MAX: Final = 1000

Sample = tuple[str, Labels, float]
"""(metric name, label values in the table's order, value)."""
Source = Callable[[], Iterable[Sample]]


class Metrics:
    """The counters of one process. `dialects` and `routes` are the values of those labels."""

    def __init__(self, *, dialects: Iterable[str], routes: Iterable[str]) -> None:
        self._values: dict[str, set[str]] = {label: set(values) for label, values in LABELS.items()}
        self._values |= {"dialect": set(dialects), "route": set(routes), "model": set(), "backend": set()}
        self._values |= {"version": {__version__}, "python": {platform.python_version()}}
        self._requests: dict[tuple[str, str, int, str], int] = {}
        # Known series start at 0: a rate does not see the first event of a series that begins with it.
        self._counts = {label: dict.fromkeys(LABELS.get(label, ()), 0) for label in _COUNTED}
        self._models: dict[str, ModelTally] = {OTHER: ModelTally()}
        self._overhead = Histogram(OVERHEAD)
        self._lag = Histogram(LAG)
        self._bytes_in = self._bytes_out = 0
        self._scrape_failures = 0
        self._sources: dict[str, Source] = {}
        self.pids: Callable[[], Sequence[int]] = lambda: ()
        """The processes whose sum the `process_*` metrics are; empty: only this one."""

    # -- counting -------------------------------------------------------------------------------------------------

    def count_request(self, dialect: str, route: str, status: int, outcome: str) -> None:
        """Count one ended request. `route` is the path of its row in the route table, `status` what the client got."""
        key = (dialect, route, status // 100, outcome)
        try:
            self._requests[key] += 1
        except KeyError:
            known = (
                self._known("dialect", dialect),
                self._known("route", route),
                key[2] if 1 <= key[2] <= 5 else 0,
                self._known("outcome", outcome),
            )
            self._requests[known] = self._requests.get(known, 0) + 1

    def settle(
        self,
        model: str,
        *,
        duration: float,
        queue: float | None = None,
        first_byte: float | None = None,
        prompt: int = 0,
        completion: int = 0,
        cached: int = 0,
        estimated: bool = False,
        bytes_in: int = 0,
        bytes_out: int = 0,
        overhead: float | None = None,
    ) -> None:
        """Everything that an ended, routed request adds, except for `count_request`. Times in seconds, None = did not
        happen."""
        mine = self._models.get(model) or self._models[OTHER]
        # `Histogram.observe` four times, inlined: the calls would be half of this function's cost.
        histogram = mine.duration
        histogram.counts[bisect_left(DURATION, duration)] += 1
        histogram.sum += duration
        if queue is not None:
            histogram = mine.queue
            histogram.counts[bisect_left(QUEUE, queue)] += 1
            histogram.sum += queue
        if first_byte is not None:
            histogram = mine.ttft
            histogram.counts[bisect_left(TTFT, first_byte)] += 1
            histogram.sum += first_byte
        if overhead is not None:
            histogram = self._overhead
            histogram.counts[bisect_left(OVERHEAD, overhead)] += 1
            histogram.sum += overhead
        mine.prompt += prompt
        mine.completion += completion
        mine.cached += cached
        mine.estimated += estimated
        self._bytes_in += bytes_in
        self._bytes_out += bytes_out

    def gaps(self, model: str) -> Callable[[float], None]:
        """A function to call with the seconds between two reads of a stream of `model`; get it once per stream."""
        return (self._models.get(model) or self._models[OTHER]).observe_gap

    def observe_loop_lag(self, seconds: float) -> None:
        self._lag.observe(seconds)

    def auth(self, result: str) -> None:
        """Count one authentication; see AUTH_RESULTS."""
        self._count("result", result)

    def refused(self, code: str) -> None:
        """Count one error sent to a client, by `GatewayError.code`."""
        self._count("code", code)

    def retried(self, backend: str) -> None:
        """Count one more attempt; `backend` is where the previous one failed."""
        self._count("backend", backend)

    def _count(self, label: str, value: str) -> None:
        counts = self._counts[label]
        try:
            counts[value] += 1
        except KeyError:
            known = self._known(label, value)
            counts[known] = counts.get(known, 0) + 1

    # -- adding up processes --------------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """All counters of this process, without sources."""
        return Counts(
            requests=list(self._requests.items()),
            counts=self._counts,
            models={name: model.drawn() for name, model in self._models.items()},
            histograms=(self._overhead.drawn(), self._lag.drawn()),
            totals=(self._bytes_in, self._bytes_out, self._scrape_failures),
        )

    def add(self, counts: Counts) -> None:
        """Add these counters to the ones here."""
        self.know(models=counts.models)
        for key, count in counts.requests:
            self._requests[key] = self._requests.get(key, 0) + count
        for label, values in counts.counts.items():
            mine = self._counts[label]
            for value, count in values.items():
                mine[value] = mine.get(value, 0) + count
        for name, drawn in counts.models.items():
            (self._models.get(name) or self._models[OTHER]).add(drawn)
        self._overhead.add(counts.histograms[0])
        self._lag.add(counts.histograms[1])
        self._bytes_in += counts.totals[0]
        self._bytes_out += counts.totals[1]
        self._scrape_failures += counts.totals[2]

    def show(self, every: Iterable[Counts]) -> None:
        """Replace all counters here by the sum of these."""
        self._requests = {}
        self._counts = {label: {} for label in self._counts}
        self._models = {name: ModelTally() for name in self._models}
        self._overhead, self._lag = Histogram(OVERHEAD), Histogram(LAG)
        self._bytes_in = self._bytes_out = self._scrape_failures = 0
        for counts in every:
            self.add(counts)

    # -- what is known --------------------------------------------------------------------------------------------

    def know(self, *, models: Iterable[str] = (), backends: Iterable[str] = ()) -> None:
        """Allow these as label values from now on, up to the maximum. None is ever removed, since counters only grow.

        A queue of the scheduler (`Route.pool`) may be given for a model: anything after its tab is ignored.
        """
        for model in (name.partition("\t")[0] for name in models):
            if model not in self._models and len(self._models) <= MODELS_MAX:
                self._models[model] = ModelTally()
                self._values["model"].add(model)
        for backend in backends:
            if len(self._values["backend"]) < BACKENDS_MAX:
                self._values["backend"].add(backend)
                self._counts["backend"].setdefault(backend, 0)

    def _known(self, label: str, value: str) -> str:
        return value if value in self._values[label] else OTHER

    def register(self, name: str, source: Source) -> None:
        """Read `source` at every scrape. It replaces an earlier one of the same name (reload)."""
        self._sources[name] = source

    # -- exposition -----------------------------------------------------------------------------------------------

    def exposition(self, accept: str = "") -> tuple[str, Iterator[bytes]]:
        """(content type, parts) as `accept` prefers; see `exposition.page`."""
        return page(self._families(apart=True), accept)

    def collect(self) -> Iterator[Metric]:
        """The families in the order of the table, then the process's own: prometheus-client's Collector protocol."""
        return self._families(apart=False)

    def _families(self, *, apart: bool) -> Iterator[Metric]:
        yield from families(self._gather(), apart=apart)
        yield from processes.collect(self.pids())

    def _gather(self) -> Values:
        """Metric -> label values -> value. Values that share the label `other` are combined (`_joined`)."""
        values: Values = {}
        for name, labels, value in (*self._own(), *self._models_own()):
            values.setdefault(name, {})[labels] = value
        for name, labels, number in self._read_sources():
            known = tuple(map(self._known, BY_NAME[name].labels, labels))
            cell = values.setdefault(name, {})
            before = cell.get(known)
            if isinstance(before, float | int):
                number = _joined(name)((before, number))
            cell[known] = number
        values["fairgate_scrape_failures_total"] = {(): float(self._scrape_failures)}
        return values

    def _own(self) -> Iterator[tuple[str, Labels, float | Histogram]]:
        for (dialect, route, status, outcome), count in self._requests.items():
            yield "fairgate_requests_total", (dialect, route, f"{status}xx" if status else OTHER, outcome), count
        for label, metric in _COUNTED.items():
            for value, count in self._counts[label].items():
                yield metric, (value,), count
        yield "fairgate_body_bytes_total", ("in",), self._bytes_in
        yield "fairgate_body_bytes_total", ("out",), self._bytes_out
        yield "fairgate_overhead_seconds", (), self._overhead
        yield "fairgate_loop_lag_seconds", (), self._lag
        yield "fairgate_build_info", (__version__, platform.python_version()), 1.0

    def _models_own(self) -> Iterator[tuple[str, Labels, float | Histogram]]:
        for name, model in self._models.items():
            yield "fairgate_queue_seconds", (name,), model.queue
            yield "fairgate_time_to_first_token_seconds", (name,), model.ttft
            yield "fairgate_inter_chunk_seconds", (name,), model.gap
            yield "fairgate_request_duration_seconds", (name,), model.duration
            yield "fairgate_tokens_total", (name, "input"), model.prompt
            yield "fairgate_tokens_total", (name, "output"), model.completion
            yield "fairgate_tokens_total", (name, "cached"), model.cached
            yield "fairgate_usage_estimated_total", (name,), model.estimated

    def _read_sources(self) -> Iterator[Sample]:
        """If a source fails, this is logged and counted, and the others are still shown."""
        for name, source in self._sources.items():
            try:
                samples = [sample for sample in source() if _check(sample)]
            except Exception:
                self._scrape_failures += 1
                log.exception("metrics source failed", extra={"source": name})
            else:
                yield from samples


_COUNTED: Final = {
    "code": "fairgate_errors_total",
    "result": "fairgate_auth_total",
    "backend": "fairgate_retries_total",
}


def _joined(name: str) -> Callable[[Iterable[float]], float]:
    """How values are combined: the maximum of ages, the minimum of indices, the sum of everything else."""
    if name.endswith("_seconds"):
        return max
    return min if name == "fairgate_jain_index" else sum


def _check(sample: Sample) -> bool:
    """Raises ValueError for a sample that the table does not describe."""
    name, labels, _ = sample
    described = BY_NAME.get(name)
    if described is None or described.kind == "histogram" or len(described.labels) != len(labels):
        raise ValueError(f"no metric {name} with {len(labels)} labels")
    return True
