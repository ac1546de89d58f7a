"""Writes the Grafana dashboard from the table of metrics; `--check` only compares.

Every metric has a panel: a counter as its rate, a gauge as is, a histogram as three quantiles. ROWS assigns panels to
rows by name; a metric that no row claims is an error, so that a new one cannot be forgotten.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from gateway.services.metrics_table import METRICS, Described  # noqa: E402  (the checkout's own)

OUT = HERE / "dashboard.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}

# Row -> prefixes of the metric names it claims; the first row that matches takes the metric.
ROWS: dict[str, tuple[str, ...]] = {
    "Is it well?": (
        "fairgate_requests_total",
        "fairgate_errors_total",
        "fairgate_backend_up",
        "fairgate_breaker_state",
    ),
    "Is it fair?": ("fairgate_queue", "fairgate_running", "fairgate_jain"),
    "Is it fast?": (
        "fairgate_time_to_first",
        "fairgate_inter_chunk",
        "fairgate_request_duration",
        "fairgate_overhead",
        "fairgate_loop_lag",
    ),
    "Who uses what?": (
        "fairgate_tokens",
        "fairgate_usage",
        "fairgate_body",
        "fairgate_auth",
        "fairgate_key",
        "fairgate_limit",
    ),
    "Engines": ("fairgate_slots", "fairgate_backend", "fairgate_retries"),
    "The audit trail": ("fairgate_audit",),
    "The gateway itself": ("fairgate_",),
}
QUANTILES = (0.5, 0.95, 0.99)


def targets(metric: Described) -> list[tuple[str, str]]:
    """(query, legend) of a metric's panel."""
    by = ", ".join(metric.labels)
    legend = " ".join(f"{{{{{label}}}}}" for label in metric.labels) or metric.name.removeprefix("fairgate_")
    grouped = f"sum by ({by})" if by else "sum"
    if metric.kind == "counter":
        return [(f"{grouped} (rate({metric.name}[$__rate_interval]))", legend)]
    if metric.kind == "gauge":
        worst = "min" if metric.name == "fairgate_jain_index" else "max"  # of several gateways
        return [(f"{worst} by ({by}) ({metric.name})" if by else f"{worst} ({metric.name})", legend)]
    le = ", ".join(("le", *metric.labels))
    rate = f"sum by ({le}) (rate({metric.name}_bucket[$__rate_interval]))"
    return [(f"histogram_quantile({q}, {rate})", f"p{round(q * 100)} {legend}".strip()) for q in QUANTILES]


def unit(metric: Described) -> str:
    if "bytes" in metric.name:
        return "binBps" if metric.kind == "counter" else "bytes"
    if metric.kind == "counter":
        return "ops"
    return "s" if metric.name.endswith("_seconds") else "short"


def panel(metric: Described, number: int, column: int, top: int) -> dict[str, Any]:
    queries = [
        {"expr": expr, "legendFormat": legend, "refId": chr(ord("A") + index), "datasource": SOURCE}
        for index, (expr, legend) in enumerate(targets(metric))
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": metric.name.removeprefix("fairgate_").replace("_", " "),
        "description": metric.help,
        "datasource": SOURCE,
        "gridPos": {"x": column * 8, "y": top, "w": 8, "h": 7},
        "fieldConfig": {"defaults": {"unit": unit(metric), "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": queries,
    }


def rows() -> dict[str, list[Described]]:
    """All metrics by row, in the order of the table."""
    claimed: dict[str, list[Described]] = {row: [] for row in ROWS}
    for metric in METRICS:
        row = next((row for row, starts in ROWS.items() if metric.name.startswith(starts)), None)
        if row is None:
            raise SystemExit(f"no row of the dashboard claims {metric.name}")
        claimed[row].append(metric)
    return claimed


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    top = 0
    for row, metrics in rows().items():
        grid = {"x": 0, "y": top, "w": 24, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": row, "gridPos": grid, "panels": []})
        top += 1
        for index, metric in enumerate(metrics):
            panels.append(panel(metric, len(panels) + 1, index % 3, top + index // 3 * 7))
        top += -(-len(metrics) // 3) * 7
    return {
        "uid": "fairgate",
        "title": "fairgate",
        "schemaVersion": 39,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "tags": ["fairgate"],
        "templating": {"list": []},
        "panels": panels,
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--check", action="store_true", help="change nothing; fail when the file is stale")
    if arguments.parse_args().check:
        stale = not OUT.exists() or OUT.read_text(encoding="utf-8") != text()
        sys.exit("run: python docker/grafana/dashboard.py" if stale else 0)
    OUT.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
