"""The table of metrics: every name, help text, label with its bounded values, and bucket.

Pure data, from which counting (`metrics.py`), the scrape and the documentation derive. No label ever contains a key, an
id or a string chosen by a client.
"""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from gateway.errors import GatewayError

OUTCOMES: Final = ("done", "refused", "upstream_failed", "client_gone", "timed_out", "bug", "interrupted")
AUTH_RESULTS: Final = ("ok", "missing", "invalid", "forbidden", "throttled", "unavailable")


def _codes(kind: type[GatewayError]) -> set[str]:
    return {kind.code}.union(*map(_codes, kind.__subclasses__()))


# Labels whose values are fixed. `dialect` and `route` are given at construction; `model` and `backend` are made known.
LABELS: Final[Mapping[str, tuple[str, ...]]] = {
    "status": ("1xx", "2xx", "3xx", "4xx", "5xx"),
    "outcome": OUTCOMES,
    "result": AUTH_RESULTS,
    "code": tuple(sorted(_codes(GatewayError))),
    "type": ("input", "output", "cached"),
    "direction": ("in", "out"),
    "kind": ("connect", "timeout", "broken"),
    "state": ("closed", "open", "half_open"),
    "side": ("client", "upstream"),
    "held": ("bodies", "answers"),
    "lender": ("store", "redis"),
    "cause": ("queue_full", "export_failed"),
    "fate": ("stored", "dropped", "redaction_failed"),
}

Bounds = tuple[float, ...]
"""A named type, so that compiled code passes the tuple itself and not its members."""

# vLLM's own buckets, so that panels can be compared (vllm:time_to_first_token_seconds).
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
TTFT: Final[Bounds] = (*_FIRST, 160.0, 640.0, 2560.0)
GAP: Final[Bounds] = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 40.0, 80.0,
)  # fmt: skip
QUEUE: Final[Bounds] = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
DURATION: Final[Bounds] = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
OVERHEAD: Final[Bounds] = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
LAG: Final[Bounds] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


class Described(msgspec.Struct, frozen=True):
    """One row of the table. A counter's name ends in `_total`; buckets are upper bounds, `+Inf` is implied."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: Final = (
    Described(
        "fairgate_requests_total",
        "counter",
        "Requests that have ended.",
        labels=("dialect", "route", "status", "outcome"),
    ),
    Described("fairgate_errors_total", "counter", "Errors sent to clients, by code.", labels=("code",)),
    Described("fairgate_auth_total", "counter", "Authentications by result.", labels=("result",)),
    Described("fairgate_tokens_total", "counter", "Tokens; `cached` is a part of `input`.", labels=("model", "type")),
    Described(
        "fairgate_usage_estimated_total", "counter", "Requests whose tokens had to be estimated.", labels=("model",)
    ),
    Described(
        "fairgate_body_bytes_total", "counter", "Bytes of request and answer bodies relayed.", labels=("direction",)
    ),
    Described(
        "fairgate_retries_total", "counter", "Retries after a failed attempt on this backend.", labels=("backend",)
    ),
    Described(
        "fairgate_queue_seconds", "histogram", "Time a request waited for a slot.", labels=("model",), buckets=QUEUE
    ),
    Described(
        "fairgate_time_to_first_token_seconds",
        "histogram",
        "Time from a request's arrival to the first byte of its answer's body.",
        labels=("model",),
        buckets=TTFT,
    ),
    Described(
        "fairgate_inter_chunk_seconds",
        "histogram",
        "Time between two reads of a stream.",
        labels=("model",),
        buckets=GAP,
    ),
    Described(
        "fairgate_request_duration_seconds",
        "histogram",
        "Time from a request's arrival to the last byte of its answer.",
        labels=("model",),
        buckets=DURATION,
    ),
    Described(
        "fairgate_overhead_seconds", "histogram", "Time a request spent in the gateway itself.", buckets=OVERHEAD
    ),
    Described("fairgate_loop_lag_seconds", "histogram", "How late the event loop ran a timer.", buckets=LAG),
    Described("fairgate_queue_depth", "gauge", "Requests waiting for a slot.", labels=("model",)),
    Described("fairgate_running", "gauge", "Requests holding a slot.", labels=("model",)),
    Described(
        "fairgate_queue_oldest_seconds", "gauge", "Time the longest-waiting request has waited.", labels=("model",)
    ),
    Described("fairgate_queue_timeout_seconds", "gauge", "How long a request may wait (`scheduling.queue_timeout`)."),
    Described("fairgate_slots", "gauge", "Slots offered; 0 while ejected.", labels=("backend",)),
    Described("fairgate_slots_running", "gauge", "Slots in use.", labels=("backend",)),
    Described(
        "fairgate_slot_mismatches_total",
        "counter",
        "Times the count of taken slots differed from the slots in use: a bug in the gateway.",
    ),
    Described(
        "fairgate_slots_zombie",
        "gauge",
        "Slots of ended requests whose engine is still computing.",
        labels=("backend",),
    ),
    Described(
        "fairgate_zombies_total",
        "counter",
        "Requests that ended while their engine was still computing.",
        labels=("backend",),
    ),
    Described(
        "fairgate_jain_index",
        "gauge",
        "Jain's fairness index of the cost served per share, over the parties that had requests waiting throughout the "
        "last 5 to 10 minutes; 1 is even. Absent with fewer than two such parties.",
        labels=("model",),
    ),
    Described(
        "fairgate_backend_up", "gauge", "1 if the last poll of the backend succeeded, else 0.", labels=("backend",)
    ),
    Described(
        "fairgate_backend_models",
        "gauge",
        "Models the gateway currently knows at the backend.",
        labels=("backend",),
    ),
    Described(
        "fairgate_backend_models_loaded", "gauge", "Models the backend has loaded in memory.", labels=("backend",)
    ),
    Described(
        "fairgate_backend_last_seen_seconds",
        "gauge",
        "Time since the last successful poll of the backend.",
        labels=("backend",),
    ),
    Described(
        "fairgate_backend_ejections_total", "counter", "Times the backend's breaker opened.", labels=("backend",)
    ),
    Described(
        "fairgate_backend_failures_total", "counter", "Requests that failed at the backend.", labels=("backend", "kind")
    ),
    Described(
        "fairgate_breaker_state",
        "gauge",
        "1 for the current state of the breaker, else 0.",
        labels=("backend", "state"),
    ),
    Described("fairgate_audit_pending", "gauge", "Audit rows not yet in the store."),
    Described("fairgate_audit_oldest_seconds", "gauge", "Age of the oldest audit row not yet in the store."),
    Described("fairgate_audit_spool_bytes", "gauge", "Size of the audit spool on disk."),
    Described("fairgate_audit_spool_limit_bytes", "gauge", "Maximum size of the audit spool (`audit.spool_bytes`)."),
    Described("fairgate_audit_written_total", "counter", "Audit rows written to the store."),
    Described("fairgate_audit_failures_total", "counter", "Failed writes of audit batches."),
    Described("fairgate_audit_dropped_total", "counter", "Audit rows lost because there was no room."),
    Described(
        "fairgate_audit_interrupted_total",
        "counter",
        "Audit rows written for requests that were running when an earlier process was killed.",
    ),
    Described(
        "fairgate_key_hashes_total", "counter", "Keys checked with Argon2id; all others were found in the cache."
    ),
    Described("fairgate_keys_cached", "gauge", "Verified keys and tokens in the cache."),
    Described(
        "fairgate_token_checks_total", "counter", "Token signatures checked; all other tokens were found in the cache."
    ),
    Described("fairgate_jwks_fetches_total", "counter", "Fetches of the issuer's keys that returned keys."),
    Described("fairgate_jwks_failures_total", "counter", "Fetches of the issuer's keys that failed or returned none."),
    Described("fairgate_jwks_age_seconds", "gauge", "Time since the issuer's keys were last read (`jwt.keep`)."),
    Described("fairgate_prompts_total", "counter", "Prompts of keys that opted in, by outcome.", labels=("fate",)),
    Described("fairgate_limit_reservations", "gauge", "Requests that hold a reservation on a limit or budget."),
    Described("fairgate_limit_expired_total", "counter", "Reservations that expired unsettled; they count as used."),
    Described(
        "fairgate_limit_rounds_total",
        "counter",
        "Requests for quota sent to a lender (the store or Redis).",
        labels=("lender",),
    ),
    Described(
        "fairgate_limit_failures_total", "counter", "Requests for quota that failed or timed out.", labels=("lender",)
    ),
    Described(
        "fairgate_limit_failing",
        "gauge",
        "1 while a lender does not answer; it lends no new quota then.",
        labels=("lender",),
    ),
    Described("fairgate_traces_waiting", "gauge", "Requests whose trace is waiting for export."),
    Described("fairgate_traces_exported_total", "counter", "Requests whose trace the collector accepted."),
    Described("fairgate_traces_lost_total", "counter", "Requests whose trace was lost.", labels=("cause",)),
    Described("fairgate_connections", "gauge", "Open connections.", labels=("side",)),
    Described("fairgate_connections_accepted_total", "counter", "Client connections accepted."),
    Described("fairgate_connections_refused_total", "counter", "Client connections refused because a cap was reached."),
    Described(
        "fairgate_buffered_bytes",
        "gauge",
        "Bytes buffered: request bodies, and answers for slow readers.",
        labels=("held",),
    ),
    Described(
        "fairgate_log_lines_dropped_total",
        "counter",
        "Log lines dropped because standard error did not accept them.",
    ),
    Described("fairgate_workers", "gauge", "Processes that serve requests."),
    Described("fairgate_worker_restarts_total", "counter", "Workers that exited unexpectedly and were restarted."),
    Described("fairgate_scrape_failures_total", "counter", "Metric sources that failed during a scrape."),
    Described("fairgate_build_info", "gauge", "Always 1; the labels give the version.", labels=("version", "python")),
)

BY_NAME: Final = {described.name: described for described in METRICS}


def reference() -> str:
    """The table in Markdown, for the documentation."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for one in METRICS:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        lines.append(f"| `{one.name}` | {one.kind} | {labels} | {one.help} |")
    return "\n".join(lines) + "\n"
