"""What a gateway needs in memory, each freshly started: at rest, with idle connections, with open streams, and after.

Owns the order of the steps. One row per gateway; the figures are proportional set sizes in MB (10^6 bytes).
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from bench import machine
from bench.peers import PEERS, Peer
from bench.run import Plan, fitting, holding, measure, say
from bench.scenarios import SCENARIOS
from bench.tools import Backend, BenchError

STEPS = ("I1", "M1", "M5")
CALM = 3.0  # seconds a gateway is given to let go before it is looked at
GATEWAYS = ("nginx", "haproxy", "fairgate", "fairgate-compiled", "vllm-router", "sglang-router", "aiohttp")


def weigh(peer: Peer, backend: Backend, plan: Plan) -> dict[str, Any]:
    """Start it, load it step by step, stop it."""
    files = machine.allow_many_files()
    peer.start()
    try:
        row: dict[str, Any] = {"memory": peer.name, "start_s": round(peer.started_in, 3), "rest_mb": peer.base_mb}
        warm = measure(peer, SCENARIOS["S1"], backend, plan, False)
        before = row["warm_mb"] = calm(peer)
        row["troubles"] = dict(warm["load"]["troubles"])
        for name in STEPS:
            scenario = replace(fitting(SCENARIOS[name], files), warmup=1.0)  # all are open before it is weighed
            got = measure(peer, scenario, backend, plan, False)
            row[name] = {"mb": got["pss_mb"], "each_1000_mb": (got["pss_mb"] - before) * 1000 / scenario.conns}
            for trouble, count in got["load"]["troubles"].items():
                row["troubles"][trouble] = row["troubles"].get(trouble, 0) + count
        row["after_mb"] = calm(peer)
        return row
    finally:
        peer.stop()


def calm(peer: Peer) -> float:
    time.sleep(CALM)
    return machine.pss_mb(peer.pids())


def rows(plan: Plan, names: list[str] | None = None) -> list[dict[str, Any]]:
    """All gateways that can run here; nothing else runs meanwhile."""
    found: list[dict[str, Any]] = []
    with Backend(plan.load_core) as backend:
        for name in names or GATEWAYS:
            peer = PEERS[name](plan.proxy_core, backend.port)
            peer.nice = plan.nice
            try:
                if peer.missing():
                    peer.install()
                if reason := peer.missing():
                    raise BenchError(reason)
                with holding(plan.lock):
                    found.append(weigh(peer, backend, plan))
                say(f"memory of {name}: {found[-1]}")
            except BenchError as error:
                say(f"skipped {name}: {error}")
    return found
