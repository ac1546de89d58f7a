"""What is counted comes out of a scrape, in both formats, within the table and its bounds."""

import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from prometheus_client import Metric, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gateway.errors import GatewayError, QueueFull
from gateway.services.backend_facts import BackendStats
from gateway.services.counts import Counts
from gateway.services.limit_facts import LenderStats, LimitStats
from gateway.services.metrics import BACKENDS_MAX, MODELS_MAX, OTHER, Metrics
from gateway.services.metrics_table import DURATION, LABELS, METRICS, OVERHEAD, QUEUE, TTFT, reference
from gateway.services.prompts import PromptStats
from gateway.services.record import AuditStats
from gateway.services.samples import (
    of_audit,
    of_backends,
    of_fairness,
    of_limits,
    of_prompts,
    of_scheduler,
    of_tokens,
    of_tracing,
    of_zombies,
)
from gateway.services.tally import Histogram
from gateway.services.token_facts import TokenStats
from gateway.services.tracing import TracingStats
from gateway.services.zombies import ZombieStats
from scheduler.model import GateStats, PoolStats, Stats

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def metrics() -> Metrics:
    made = Metrics(dialects=["openai", "ollama"], routes=["/v1/chat/completions", "/api/chat"])
    made.know(models=["m", "n", "m\tollama"], backends=["a"])
    return made


def busy() -> Metrics:
    """Every counter moved and every gauge supplied once."""
    made = metrics()
    made.count_request("openai", "/v1/chat/completions", 200, "done")
    made.settle("m", duration=2.0, queue=0.2, first_byte=0.3, prompt=5, completion=7, cached=2, overhead=0.0003)
    made.settle("m", duration=1.0, queue=0.1, estimated=True, bytes_in=10, bytes_out=20)
    made.gaps("m")(0.04)
    made.auth("ok")
    made.refused(QueueFull.code)
    made.retried("a")
    made.observe_loop_lag(0.002)
    made.register("backends", lambda: of_backends([backend()]))
    made.register("scheduler", lambda: of_scheduler(scheduler()))
    made.register("fairness", lambda: of_fairness({"m": 0.9, "late": 0.6, "later": 0.7}))
    made.register("zombies", lambda: of_zombies([ZombieStats("a", 1, 6)]))
    made.register("limits", lambda: of_limits(LIMITS))
    made.register("audit", lambda: of_audit(AUDIT))
    made.register("prompts", lambda: of_prompts(PromptStats(4, 2, 1, 0)))
    made.register("tokens", lambda: of_tokens(TokenStats(7, 3, 1, 2, 4.5)))
    made.register("tracing", lambda: of_tracing(TracingStats(1, 5, 2, 3)))
    made.register(
        "others",
        lambda: [
            ("fairgate_queue_timeout_seconds", (), 60),
            ("fairgate_key_hashes_total", (), 1),
            ("fairgate_keys_cached", (), 1),
            ("fairgate_connections_accepted_total", (), 9),
            ("fairgate_connections_refused_total", (), 2),
            ("fairgate_connections", ("client",), 5),
            ("fairgate_buffered_bytes", ("bodies",), 6),
            ("fairgate_log_lines_dropped_total", (), 0),
            ("fairgate_workers", (), 2),
            ("fairgate_worker_restarts_total", (), 1),
        ],
    )
    return made


AUDIT = AuditStats(4, 3, 0, 0, 1.5, interrupted=1, spool_bytes=4096, spool_limit=1 << 30)
LIMITS = LimitStats(3, 0, 1, 2, 9, store=LenderStats(5, 0, 2, False), shared=LenderStats(6, 2, 1, True))


def backend() -> BackendStats:
    return BackendStats(
        name="a",
        engine="vllm",
        state="half_open",
        up=True,
        slots=4,
        models=2,
        loaded=("m",),
        failures={"connect": 1, "timeout": 0, "broken": 0},
        misses=0,
        ejections=1,
        last_seen=1.5,
        version="",
        failure="",
    )


def scheduler() -> Stats:
    def pool(name: str, oldest: float) -> PoolStats:
        return PoolStats(
            pool=name, queued=2, running=1, slots=4, oldest_wait=oldest, service_time=1.0, mean_cost=1.0, scale=1.0
        )

    return Stats(
        now=0.0,
        queued=4,
        running=2,
        pools=(pool("m", 3.0), pool("m\tollama", 2.0)),
        gates=(GateStats(gate="a", slots=4, running=2),),
        parties=(),
        tenants=(),
        granted=9,
        refused={},
        stray_releases=0,
        mismatches=1,
    )


def scrape(made: Metrics, accept: str = "") -> str:
    return b"".join(made.exposition(accept)[1]).decode()


def values(made: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(scrape(made))
        for sample in family.samples
    }


def value(made: Metrics, name: str, **labels: str) -> float:
    return values(made)[name, tuple(sorted(labels.items()))]


def test_a_scrape_shows_what_was_counted() -> None:
    """O2"""
    made = busy()
    expect = [
        (1, "fairgate_requests_total", {"dialect": "openai", "route": "/v1/chat/completions", "status": "2xx"}),
        (5, "fairgate_tokens_total", {"model": "m", "type": "input"}),
        (7, "fairgate_tokens_total", {"model": "m", "type": "output"}),
        (2, "fairgate_tokens_total", {"model": "m", "type": "cached"}),
        (1, "fairgate_usage_estimated_total", {"model": "m"}),
        (20, "fairgate_body_bytes_total", {"direction": "out"}),
        (2, "fairgate_request_duration_seconds_count", {"model": "m"}),
        (3.0, "fairgate_request_duration_seconds_sum", {"model": "m"}),
        (1, "fairgate_time_to_first_token_seconds_bucket", {"model": "m", "le": "0.5"}),
        (0, "fairgate_time_to_first_token_seconds_bucket", {"model": "m", "le": "0.25"}),
        (1, "fairgate_inter_chunk_seconds_count", {"model": "m"}),
        (1, "fairgate_overhead_seconds_bucket", {"le": "0.0005"}),
        (1, "fairgate_errors_total", {"code": "queue_full"}),
        (1, "fairgate_auth_total", {"result": "ok"}),
        (1, "fairgate_retries_total", {"backend": "a"}),
        (4, "fairgate_queue_depth", {"model": "m"}),
        (3.0, "fairgate_queue_oldest_seconds", {"model": "m"}),
        (2, "fairgate_slots_running", {"backend": "a"}),
        (1, "fairgate_slot_mismatches_total", {}),
        (1, "fairgate_slots_zombie", {"backend": "a"}),
        (6, "fairgate_zombies_total", {"backend": "a"}),
        (1, "fairgate_breaker_state", {"backend": "a", "state": "half_open"}),
        (0, "fairgate_breaker_state", {"backend": "a", "state": "closed"}),
        (1.5, "fairgate_backend_last_seen_seconds", {"backend": "a"}),
        (4, "fairgate_audit_written_total", {}),
        (1.5, "fairgate_audit_oldest_seconds", {}),
        (4096, "fairgate_audit_spool_bytes", {}),
        (1 << 30, "fairgate_audit_spool_limit_bytes", {}),
        (1, "fairgate_audit_interrupted_total", {}),
        (3, "fairgate_limit_reservations", {}),
        (1, "fairgate_limit_expired_total", {}),
        (2, "fairgate_limit_failures_total", {"lender": "redis"}),
        (0, "fairgate_limit_failing", {"lender": "store"}),
        (1, "fairgate_limit_failing", {"lender": "redis"}),
        (4, "fairgate_prompts_total", {"fate": "stored"}),
        (2, "fairgate_prompts_total", {"fate": "dropped"}),
        (1, "fairgate_prompts_total", {"fate": "redaction_failed"}),
        (5, "fairgate_traces_exported_total", {}),
        (2, "fairgate_traces_lost_total", {"cause": "queue_full"}),
        (3, "fairgate_traces_lost_total", {"cause": "export_failed"}),
        (0.9, "fairgate_jain_index", {"model": "m"}),
        (0.6, "fairgate_jain_index", {"model": OTHER}),
        (0, "fairgate_scrape_failures_total", {}),
    ]
    for number, name, labels in expect:
        assert value(made, name, **labels, **({"outcome": "done"} if "requests_total" in name else {})) == number, name


def test_series_with_known_labels_start_at_zero() -> None:
    """O2: `rate` and `increase` see no rise in a series that begins with its first event, so an alert would miss it."""
    quiet = metrics()
    for code in LABELS["code"]:
        assert value(quiet, "fairgate_errors_total", code=code) == 0
    for result in LABELS["result"]:
        assert value(quiet, "fairgate_auth_total", result=result) == 0
    assert value(quiet, "fairgate_retries_total", backend="a") == 0


@pytest.mark.parametrize(("accept", "whole"), [("", generate_latest), (OPENMETRICS, generate_openmetrics)])
def test_a_scrape_is_made_in_small_parts(accept: str, whole: Callable[[Any], bytes]) -> None:
    """No part has the histograms of two models: the loop turns between parts. Together they are the whole page."""
    made = busy()
    made.know(models=[f"model-{n}" for n in range(20)])
    parts = list(made.exposition(accept)[1])
    for part in parts:
        assert len(set(re.findall(rb'_bucket\{.*model="([^"]*)"', part))) <= 1
    page = b"".join(parts)
    ours = page[: page.index(b"# HELP process_")]
    assert ours == whole(made)[: len(ours)]
    assert len(set(heads := re.findall(rb"# (?:HELP|TYPE) \S+", page))) == len(heads)


@pytest.mark.parametrize("accept", ["", "text/plain;version=0.0.4", OPENMETRICS])
def test_both_formats_parse_and_hold_the_whole_table(accept: str) -> None:
    """O2: negotiated by Accept; every metric of the table appears, and none besides it and the process's own."""
    made = busy()
    content_type, _ = made.exposition(accept)
    text = scrape(made, accept)
    families: Iterator[Metric] = parse_openmetrics(text) if accept == OPENMETRICS else parse_text(text)
    shown = {family.name: family for family in families}
    assert content_type.startswith("application/openmetrics-text" if accept == OPENMETRICS else "text/plain")
    table = {described.name.removesuffix("_total"): described for described in METRICS}
    assert {name for name in shown if not name.startswith("process_")} == set(table)
    for name, described in table.items():
        assert shown[name].type == described.kind
        assert shown[name].documentation == described.help
        assert shown[name].samples, name


def test_counters_of_several_processes_add_up() -> None:
    """O2: what several processes counted, as one page; a label a process does not know yet is not lost."""
    one, other = busy(), busy()
    other.know(models=["late"])
    other.settle("late", duration=1.0, queue=0.5)
    counts = [msgspec.msgpack.decode(msgspec.msgpack.encode(each.counts()), type=Counts) for each in (one, other)]
    total = metrics()
    for _ in range(2):  # each time in place of what was shown before
        total.show(counts)
    alone = {name: count for name, count in values(one).items() if name[0] in COUNTED}
    assert len(alone) > 20
    assert {name: count for name, count in values(total).items() if name in alone} == {
        name: 2 * count for name, count in alone.items()
    }
    assert value(total, "fairgate_queue_seconds_count", model="late") == 1


COUNTED = (
    "fairgate_requests_total",
    "fairgate_errors_total",
    "fairgate_auth_total",
    "fairgate_retries_total",
    "fairgate_tokens_total",
    "fairgate_usage_estimated_total",
    "fairgate_body_bytes_total",
    "fairgate_request_duration_seconds_bucket",
    "fairgate_request_duration_seconds_sum",
    "fairgate_overhead_seconds_count",
    "fairgate_loop_lag_seconds_sum",
)


def test_promtool_has_nothing_to_say() -> None:
    """O2"""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian package prometheus) is not installed")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=scrape(busy()), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_strangers_count_as_other_and_add_no_series() -> None:
    """O2: whatever a client sends, the number of series stands still."""
    made = busy()
    made.count_request("x", "/nowhere", 999, "odd")
    made.settle("ghost", duration=1.0)
    before = values(made)
    draw = random.Random(7)
    for n in range(2000):
        made.count_request(f"d{n}", f"/r{n}", draw.choice([0, 600, 999, -1]), f"o{n}")
        made.settle(f"stolen-{n}", duration=1.0, queue=1.0, prompt=1)
        made.gaps(f"x{n}")(1.0)
        made.auth("fg_secret" if n == 0 else "odd")
        made.refused(f"c{n}")
        made.retried(f"b{n}")
    after = values(made)
    new = {key for key in after if key not in before}
    assert {name for name, _ in new} <= {
        "fairgate_auth_total",
        "fairgate_errors_total",
        "fairgate_retries_total",
    }
    assert all(OTHER in dict(labels).values() for _, labels in new)
    assert value(made, "fairgate_tokens_total", model=OTHER, type="input") == 2000
    assert "stolen" not in scrape(made)
    assert "fg_secret" not in scrape(made)


def test_known_models_and_backends_are_bounded() -> None:
    """O2"""
    made = metrics()
    made.know(models=[f"m{n}" for n in range(5000)], backends=[f"b{n}" for n in range(5000)])
    for n in range(5000):
        made.settle(f"m{n}", duration=0.1)
        made.retried(f"b{n}")
    counts = {
        dict(labels)["model"] for name, labels in values(made) if name == "fairgate_request_duration_seconds_count"
    }
    assert len(counts) == MODELS_MAX + 1
    backends = [labels for name, labels in values(made) if name == "fairgate_retries_total"]
    assert len(backends) == BACKENDS_MAX + 1  # the rest is `other`


def test_what_falls_on_other_is_added_and_of_ages_the_largest_counts() -> None:
    """O2: two sources' unknown models share one series."""
    made = metrics()
    samples = [("queue_depth", 2), ("queue_oldest_seconds", 5), ("queue_depth", 3), ("queue_oldest_seconds", 4)]
    made.register("s", lambda: [(f"fairgate_{name}", (f"x{n}",), number) for n, (name, number) in enumerate(samples)])
    assert value(made, "fairgate_queue_depth", model=OTHER) == 5
    assert value(made, "fairgate_queue_oldest_seconds", model=OTHER) == 5


def test_no_label_could_carry_a_key_or_an_id() -> None:
    """O2, K2"""
    used = {label for described in METRICS for label in described.labels}
    assert used <= {*LABELS, "dialect", "route", "model", "backend", "version", "python"}
    assert not used & {"key", "user", "tenant", "party", "ip", "request_id", "id"}


@pytest.mark.parametrize("seed", range(5))
def test_buckets_hold_what_is_at_or_below_their_bound(seed: int) -> None:
    """O2: against the plain definition, values on the bounds included."""
    draw = random.Random(seed)
    seen = [draw.choice([*QUEUE, draw.expovariate(0.1), 0.0, 1e9]) for _ in range(500)]
    histogram = Histogram(QUEUE)
    for one in seen:
        histogram.observe(one)
    for bound, count in histogram.cumulated():
        assert count == sum(one <= float(bound) for one in seen), (bound, seed)
    assert histogram.sum == pytest.approx(sum(seen))


def test_settle_counts_as_histograms_do() -> None:
    """O2: `settle` writes the histograms out; it must use the buckets they were made with."""
    made = metrics()
    expected = {
        "fairgate_request_duration_seconds": Histogram(DURATION),
        "fairgate_queue_seconds": Histogram(QUEUE),
        "fairgate_time_to_first_token_seconds": Histogram(TTFT),
        "fairgate_overhead_seconds": Histogram(OVERHEAD),
    }
    draw = random.Random(3)
    for _ in range(300):
        each = [draw.choice([*QUEUE, *TTFT, *DURATION, *OVERHEAD, draw.expovariate(1)]) for _ in expected]
        made.settle("m", **dict(zip(("duration", "queue", "first_byte", "overhead"), each, strict=True)))
        for histogram, seconds in zip(expected.values(), each, strict=True):
            histogram.observe(seconds)
    for name, histogram in expected.items():
        model = {} if histogram is expected["fairgate_overhead_seconds"] else {"model": "m"}
        for bound, count in histogram.cumulated():
            assert value(made, f"{name}_bucket", le=bound, **model) == count, (name, bound)
        assert value(made, f"{name}_sum", **model) == pytest.approx(histogram.sum)


def test_a_failing_source_does_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """O2"""
    made = metrics()

    def fails() -> Iterator[tuple[str, tuple[str, ...], float]]:
        yield "fairgate_audit_pending", (), 1
        raise RuntimeError("gone")

    made.register("audit", fails)
    made.register("invented", lambda: [("fairgate_invented", (), 1.0)])
    made.register("wrong", lambda: [("fairgate_queue_depth", (), 1.0)])
    made.register("connections", lambda: [("fairgate_connections", ("client",), 9)])
    assert value(made, "fairgate_connections", side="client") == 9
    assert value(made, "fairgate_scrape_failures_total") == 6
    assert [line.source for line in caplog.records[:3]] == ["audit", "invented", "wrong"]  # type: ignore[attr-defined]
    made.register("audit", lambda: [("fairgate_audit_pending", (), 2)])
    assert value(made, "fairgate_audit_pending") == 2


def test_every_error_has_a_label_and_the_documentation_every_metric() -> None:
    """O2"""

    def codes(kind: type[GatewayError]) -> Iterator[str]:
        yield kind.code
        for one in kind.__subclasses__():
            yield from codes(one)

    assert set(codes(GatewayError)) == set(LABELS["code"])
    assert "\t" not in scrape(busy())
    text = reference()
    assert all(f"| `{described.name}` | {described.kind} |" in text for described in METRICS)
    for described in METRICS:
        assert described.name.endswith("_total") == (described.kind == "counter")
        assert bool(described.buckets) == (described.kind == "histogram")
        assert list(described.buckets) == sorted(set(described.buckets))
