"""Proof that the load generator notices broken answers: each fault must be named, soundness must pass."""

from __future__ import annotations

from bench.tools import Backend, run_load

# What the load must report for each fault; a longer frame and a missing one also change the byte count, but the first
# verdict wins (order before number before bytes).
STREAM_FAULTS = {
    "none": None,
    "missing": "order",
    "short": "missing",
    "swapped": "order",
    "truncated": "closed",
    "foreign": "foreign",
    "unended": "ending",
    "longer": "bytes",
}
JSON_FAULTS = {"none": None, "missing": "order", "truncated": "closed", "foreign": "foreign", "status": "status"}


def trouble_of(backend: Backend, core: int, fault: str, api: str, stream: bool) -> set[str]:
    """Troubles that one short run reports while every third answer has this fault."""
    backend.set(frames=40, rate=0, **{"break": fault}, every=3)
    bytes_ = backend.expected_bytes(api=api, stream=stream, frames=40, usage=False)
    options = ["--port", str(backend.port), "--conns", "4", "--warmup", "0", "--duration", "0.3", "--frames", "40"]
    options += ["--expect-bytes", str(bytes_), "--expect-usage", str(int(not stream or api == "ollama"))]
    options += (["--stream"] if stream else []) + (["--ollama"] if api == "ollama" else [])
    result = run_load(core, options, lambda pid: None, lambda pid: None)
    assert result["all_sound"] > 0, "no sound answer among the broken ones"
    return set(result["troubles"])


def held(backend: Backend, core: int, fault: str) -> int:
    """First frames that a short paced run reports as held back."""
    backend.set(frames=4, rate=20, **{"break": fault}, every=1)
    options = ["--port", str(backend.port), "--conns", "4", "--warmup", "0", "--duration", "0.5", "--frames", "4"]
    result = run_load(core, [*options, "--stream", "--frame-rate", "20"], lambda pid: None, lambda pid: None)
    assert not result["errors"], result["troubles"]
    return int(result["firsts_held"])


def main(core: int) -> int:
    """Try every fault in every shape. 0 if each was noticed and nothing sound was blamed."""
    failed = 0
    with Backend(core) as backend:
        for api in ("openai", "ollama"):
            for stream, faults in ((True, STREAM_FAULTS), (False, JSON_FAULTS)):
                for fault, expected in faults.items():
                    found = trouble_of(backend, core, fault, api, stream)
                    good = found == ({expected} if expected else set())
                    failed += not good
                    shape = f"{api} {'stream' if stream else 'json'}"
                    print(
                        f"{'ok  ' if good else 'FAIL'} {shape:14} {fault:10} -> {', '.join(sorted(found)) or 'sound'}"
                    )
        for fault in ("none", "held"):
            count = held(backend, core, fault)
            good = bool(count) == (fault == "held")
            failed += not good
            print(f"{'ok  ' if good else 'FAIL'} openai paced    {fault:10} -> {count} first frames held")
    return 1 if failed else 0
