"""The scenarios: what load, which unit is counted, what a sound answer is. README.md explains each.

Only descriptions; nothing here starts anything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Scenario:
    """One shape of load. `unit` is what CPU time is divided by: a request or a frame."""

    name: str
    title: str
    unit: str = "request"
    api: str = "openai"
    mode: str = "closed"
    conns: int = 64
    stream: bool = False
    frames: int = 200
    frame_rate: float = 0  # frames/s of one stream, 0 = as fast as possible
    request_rate: float = 0  # open loop
    prompt_bytes: int = 1024
    ramp: float = 0  # seconds over which the connections start
    slow: int = 0  # of them, readers that take 10 KiB/s
    bad_key: bool = False
    many_keys: bool = False  # another key with every request
    warmup: float = 1.0
    gentle: bool = False  # a load that the slowest gateways can bear

    def arguments(self) -> list[str]:
        """Options of the load generator, port and gateway headers aside."""
        options = ["--mode", self.mode, "--conns", str(self.conns), "--prompt-bytes", str(self.prompt_bytes)]
        options += ["--frames", str(self.frames), "--ramp", str(self.ramp)]
        options += ["--frame-rate", str(self.frame_rate), "--warmup", str(self.warmup)]
        options += ["--stream"] if self.stream else []
        options += ["--ollama"] if self.api == "ollama" else []
        options += ["--rate", str(self.request_rate)] if self.mode == "open" else []
        options += ["--slow", str(self.slow)] if self.slow else []
        options += ["--rotate"] if self.many_keys else []
        options += ["--expect-status", "0"] if self.bad_key else []
        return options


def _json(name: str, title: str, **more: object) -> Scenario:
    return replace(Scenario(name, title), **more)  # type: ignore[arg-type]


def _streams(name: str, title: str, conns: int, rate: float, **more: object) -> Scenario:
    base = Scenario(name, title, unit="frame", stream=True, conns=conns, frame_rate=rate)
    return replace(base, **more)  # type: ignore[arg-type]


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        _json("S1", "JSON, 1 KB, 64 connections, closed loop", gentle=True),
        _json("S1-32k", "JSON, 32 KB, 64 connections, closed loop", prompt_bytes=32_768),
        _json("S1-1m", "JSON, 1 MB, 8 connections, closed loop", prompt_bytes=1_048_576, conns=8),
        _json("S1-ollama", "Ollama JSON, 1 KB, 64 connections, closed loop", api="ollama"),
        _json("S2", "JSON, 1 KB, 1 000 requests/s, evenly", mode="open", request_rate=1000, conns=200),
        _json("S2-10k", "JSON, 1 KB, 10 000 requests/s, evenly", mode="open", request_rate=10_000, conns=400),
        _json("S2-40", "JSON, 1 KB, 40 requests/s, evenly", mode="open", request_rate=40, conns=64, gentle=True),
        _streams("S3", "SSE, 64 streams x 200 frames as fast as possible", 64, 0),
        _streams("S4", "SSE, 200 streams x 50 frames/s", 200, 50, ramp=1),
        _streams("S4-10", "SSE, 10 streams x 50 frames/s", 10, 50, ramp=1, gentle=True),
        _streams("S5", "SSE, 1 000 streams x 50 frames/s", 1000, 50, ramp=2),
        _streams("S6", "SSE, 2 000 streams x 50 frames/s", 2000, 50, ramp=4),
        _streams("S3-ndjson", "NDJSON, 64 streams x 200 frames as fast as possible", 64, 0, api="ollama"),
        _streams("S4-ndjson", "NDJSON, 200 streams x 50 frames/s", 200, 50, ramp=1, api="ollama"),
        _streams("S5-ndjson", "NDJSON, 1 000 streams x 50 frames/s", 1000, 50, ramp=2, api="ollama"),
        _streams("M1", "1 000 streams x 2 frames/s", 1000, 2, ramp=1, frames=20),
        _streams("M5", "5 000 streams x 2 frames/s, opened in 2.5 s", 5000, 2, ramp=2.5, warmup=-2.5, frames=20),
        _streams("M10", "10 000 streams x 2 frames/s, opened in 10 s", 10_000, 2, ramp=10, frames=30),
        _streams("W1", "4 slow readers among 64 fast streams", 68, 0, slow=4),
        _json("I1", "idle: 1 000 kept connections", mode="idle", conns=1000, ramp=1),
        _json("K1", "1 000 keys, another one with every request", many_keys=True),
        _json("F1", "flood of an invalid key, 64 connections", bad_key=True),
        _streams("A1", "clients leave after 5 frames, 16 connections", 16, 200, mode="abort"),
    )
}
"""Every run's measured window begins `warmup` seconds after the ramp: in M5 with it, for the opening is the point."""
