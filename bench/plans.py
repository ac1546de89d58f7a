"""What the two ready-made runs consist of: `quick` for a look, `full` for the record. Only lists."""

from __future__ import annotations

from dataclasses import replace

from bench.run import Plan

OURS = ["fairgate", "fairgate-compiled", "fairgate-compiled-postgresql"]
GOOD = ["direct", "nginx", "haproxy", *OURS, "vllm-router", "sglang-router", "aiohttp"]
SLOW = ["direct", "nginx", "fairgate", "fastapi", "portkey", "litellm"]
FEATURES = ["no-auth", "no-limits", "no-scheduler", "no-audit", "no-metrics", "bare", "postgresql", "watched"]


def quick(base: Plan) -> list[Plan]:
    """Under four minutes: the three scenarios that matter most, beside nginx."""
    rounds = min(2, base.rounds)
    return [replace(base, peers=["direct", "nginx", "fairgate"], scenarios=["S1", "S4", "S5"], rounds=rounds)]


def full(base: Plan) -> list[Plan]:
    """Everything; each plan starts its own gateways, so that none idles beside a measurement that it is not part of."""
    few = replace(base, rounds=min(2, base.rounds))
    return [
        replace(base, title="the field", peers=GOOD, scenarios=["S1", "S1-32k", "S2", "S2-10k", "S3", "S4", "S5"]),
        replace(base, title="many streams", peers=[*GOOD[:6], "vllm-router"], scenarios=["S6", "M5"]),
        replace(
            few,
            title="large prompts, slow readers, leavers",
            peers=["direct", "nginx", "fairgate", "vllm-router"],
            scenarios=["S1-1m", "W1", "A1"],
        ),
        replace(few, title="ten thousand streams", peers=["fairgate", "nginx", "vllm-router"], scenarios=["M10"]),
        replace(
            base,
            title="gateways that need milliseconds",
            peers=SLOW,
            scenarios=["S1", "S2-40", "S4-10"],
            spins=(False,),
        ),
        replace(
            base, title="the load side sleeps", peers=GOOD[:-1], scenarios=["S1", "S2", "S4", "S5"], spins=(False,)
        ),
        replace(
            few,
            title="Ollama's API",
            peers=["direct", "nginx", "fairgate-ollama", "vllm-router", "aiohttp"],
            scenarios=["S1-ollama", "S3-ndjson", "S4-ndjson", "S5-ndjson"],
        ),
        replace(few, title="keys", peers=["fairgate"], scenarios=["K1", "F1"]),
        replace(
            base,
            title="one feature less",
            peers=["nginx", "fairgate", *(f"fairgate-{name}" for name in FEATURES), "fairgate-compiled-watched"],
            scenarios=["S1", "S5"],
        ),
        replace(
            base,
            title="two workers",
            peers=["nginx", *(f"{name}{more}" for name in OURS[:2] for more in ("", "-2-workers"))],
            scenarios=["S1", "S5"],
            spins=(False,),
        ),
    ]


PLANS = {"quick": quick, "full": full}
