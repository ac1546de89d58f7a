"""Interleaved rounds: every scenario on every gateway in turn, once per round, all gateways up all the time.

Owns the order, the window in which CPU is read, and the rows written. Must not know how a gateway starts or a table
looks.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import machine
from bench.peers import PEERS, Peer
from bench.scenarios import SCENARIOS, Scenario
from bench.tools import Backend, BenchError, run_load

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to run. Cores are CPU numbers; seconds is the measured window of one run."""

    peers: list[str]
    scenarios: list[str]
    title: str = ""
    rounds: int = 3
    seconds: float = 5.0
    spins: tuple[bool, ...] = (True,)
    proxy_core: int = 0
    load_core: int = 1
    nice: int = 0
    lock: Path | None = None  # held while one scenario visits all gateways once: others who measure here take turns


@dataclass
class Window:
    """The measured window: CPU and memory of a gateway's process tree, what it watched itself, CPU of the load side."""

    peer: Peer
    backend: int
    pids: list[int]
    begin: machine.Cpu = field(default_factory=lambda: machine.Cpu(0, 0, 0, 0))
    tools: machine.Cpu = field(default_factory=lambda: machine.Cpu(0, 0, 0, 0))
    used: machine.Cpu = field(default_factory=lambda: machine.Cpu(0, 0, 0, 0))
    pss_mb: float = 0.0
    watched: dict[str, float] = field(default_factory=dict)

    def on_begin(self, load: int) -> None:
        self.peer.watched()
        self.tools = machine.cpu_of([self.backend, load])
        self.begin = machine.cpu_of(self.pids)

    def on_end(self, load: int) -> None:
        self.used = machine.cpu_of(self.pids) - self.begin
        self.tools = machine.cpu_of([self.backend, load]) - self.tools
        self.watched = self.peer.watched()
        self.pss_mb = machine.pss_mb(self.pids)  # the streams are still open here


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


FILES_SPARE = 500
LOOK, IDLE, LONGEST_REST = 0.25, 0.05, 75.0
"""Seconds between two looks, the part of a core that all gateways together need for nothing, and seconds at most."""
CROWD, LEFT = 1_000, 3_000
"""Behind a run of more than CROWD connections, those that may still be open or in TIME_WAIT. A gateway that keeps
thousands to the backend lets go of them seconds later, all at once, and the backend, which all share, would read their
ends in another one's window."""


def fits(peer: Peer, scenario: Scenario) -> bool:
    keyed = scenario.bad_key or scenario.many_keys
    return scenario.api in peer.speaks and (peer.needs_key or not keyed) and (scenario.gentle or not peer.slow)


def fitting(scenario: Scenario, files: int) -> Scenario:
    """The scenario with no more connections than a gateway can have that needs two descriptors for each."""
    return replace(scenario, conns=min(scenario.conns, (files - FILES_SPARE) // 2))


def load_arguments(peer: Peer, scenario: Scenario, backend: Backend, plan: Plan, spin: bool) -> list[str]:
    """The load generator's command line for this gateway and scenario."""
    options = ["--port", str(peer.port), "--duration", str(plan.seconds), "--timeout", "60"]
    options += scenario.arguments()
    if scenario.bad_key:
        options += ["--header", "Authorization: Bearer fg_nobody_wrong_key_000000000000"]
    elif keys := peer.keys_file(many=scenario.many_keys):
        options += ["--keys", str(keys)]
    else:
        for line in peer.headers():
            options += ["--header", line]
    if peer.exact:
        bytes_ = backend.expected_bytes(api=scenario.api, stream=scenario.stream, frames=scenario.frames, usage=False)
        options += ["--expect-bytes", str(bytes_)]
    if peer.usage_hidden:
        options += ["--expect-usage", str(int(not scenario.stream or scenario.api == "ollama"))]
    return options + (["--spin"] if spin else [])


def measure(peer: Peer, scenario: Scenario, backend: Backend, plan: Plan, spin: bool) -> Row:
    """One run of one scenario on one gateway. A row: the load's result, CPU, memory, and what the backend saw."""
    backend.set(frames=scenario.frames, rate=scenario.frame_rate, spin=int(spin))
    backend.stats()
    window = Window(peer, backend.pid, peer.pids())
    arguments = load_arguments(peer, scenario, backend, plan, spin)
    try:
        result = run_load(plan.load_core, arguments, window.on_begin, window.on_end)
    finally:
        backend.set(spin=0)
    units = result["requests"] if scenario.unit == "request" else result["frames"]
    seen = backend.stats()
    aborts = seen.pop("aborts")
    return {
        "peer": peer.name,
        "scenario": scenario.name,
        "conns": scenario.conns,
        "spin": spin,
        "unit": scenario.unit,
        "units_per_s": units / plan.seconds,
        "cpu_us": window.used.total * 1e6 / units if units else None,
        "cpu_main_us": window.used.main * 1e6 / units if units else None,
        "cpu_user_share": window.used.user_share,
        "core_share": window.used.total / plan.seconds,
        "tools_share": window.tools.total / plan.seconds,
        "pss_mb": window.pss_mb,
        "base_mb": peer.base_mb,
        "abort_us": abort_delays(result.pop("aborts"), aborts),
        "watched": window.watched,
        "load": result,
        "backend": seen,
    }


def abort_delays(left: list[list[int]], seen: list[list[int]]) -> list[float]:
    """Microseconds from a client's close to the backend seeing its upstream closed, for the streams both lists name."""
    seen_at = {seed: at for seed, at in seen}  # noqa: C416 - JSON gives lists
    return sorted((seen_at[seed] - at) / 1e3 for seed, at in left if seed in seen_at)


def start_peers(plan: Plan, backend: Backend, started: list[Peer]) -> dict[str, str]:
    """Append to `started` all gateways of the plan that can run here, installed and answering; the others' reasons.

    The caller's list holds each one from before its start, so that it can stop them whatever happens.
    """
    missing: dict[str, str] = {}
    for name in plan.peers:
        peer = PEERS[name](plan.proxy_core, backend.port)
        peer.nice = plan.nice
        reason = peer.missing()
        if reason:
            reason = installed(peer)
        if not reason:
            started.append(peer)
            try:
                peer.start()
            except (BenchError, OSError) as error:
                reason = str(error)
                started.remove(peer)
                peer.stop()
        if reason:
            say(f"skipped {name}: {reason}")
            missing[name] = reason
            continue
        say(f"started {name} in {peer.started_in:.2f} s: {peer.version()}, {peer.base_mb:.0f} MB")
    return missing


def installed(peer: Peer) -> str | None:
    """Try to install it; why that failed, or None."""
    try:
        peer.install()
    except (BenchError, OSError, subprocess.SubprocessError) as error:
        return str(error)
    return peer.missing()


def rest(peers: list[Peer], before: int) -> None:
    """Until all gateways are idle and the connections `before` gone: what the run before left to do, such as rows on
    their way to a store, would be done in the next one's window, on its core."""
    crowded = before > CROWD
    pids = [pid for peer in peers for pid in peer.pids()]
    until = time.monotonic() + LONGEST_REST
    used = machine.cpu_of(pids)
    while time.monotonic() < until:
        time.sleep(LOOK)
        now = machine.cpu_of(pids)
        if (now - used).total <= IDLE * LOOK and not (crowded and machine.connections() > LEFT):
            return
        used = now


def stop_all(peers: list[Peer]) -> None:
    for peer in peers:
        peer.stop()


def turns(plan: Plan, peers: list[Peer]) -> Iterator[tuple[int, bool, Scenario, Peer]]:
    """The order of runs: per round and scenario all gateways in turn, each round beginning with another one."""
    for number in range(plan.rounds):
        for name in plan.scenarios:
            for spin in plan.spins:
                shift = number % len(peers)
                for peer in peers[shift:] + peers[:shift]:
                    if fits(peer, SCENARIOS[name]):
                        yield number, spin, SCENARIOS[name], peer


def line_of(row: Row) -> str:
    cpu = "" if not row["cpu_us"] else f"{row['cpu_us']:.1f} us/{row['unit']} "
    load = row["load"]
    return (
        f"{row['scenario']:9} {'spin' if row['spin'] else 'rest'} {row['peer']:16} {row['units_per_s']:9.0f}/s {cpu}"
        f"core {row['core_share']:.2f} p50 {load['latency_us']['p50']:.0f} p99 {load['latency_us']['p99']:.0f} us"
        + (f" ERRORS {load['troubles']}" if load["errors"] else "")
    )


@contextlib.contextmanager
def holding(lock: Path | None) -> Iterator[None]:
    """The lock file, exclusively, or nothing."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file releases it


def about(peers: list[Peer], plan: Plan) -> Row:
    """What a reader must know of this run: the machine, the gateways, the plan."""
    starts = {
        peer.name: {
            "version": peer.version(),
            "note": peer.note,
            "base_mb": round(peer.base_mb, 1),
            "start_s": round(peer.started_in, 3),
        }
        for peer in peers
    }
    return {
        "facts": machine.facts(),
        "title": plan.title,
        "peers": starts,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "files": machine.allow_many_files(),
    }


def run(plan: Plan, rows_to: Path, on_row: Callable[[Row], None] = lambda row: say(line_of(row))) -> list[Row]:
    """Run the plan. Rows are appended to the JSON lines file as they come, after a line with the facts of the run."""
    files = machine.allow_many_files()
    if plan.nice:
        machine.prioritise(os.getpid(), plan.nice)  # the tools inherit it
    rows: list[Row] = []
    with Backend(plan.load_core) as backend, rows_to.open("a") as out, contextlib.ExitStack() as stack:
        peers: list[Peer] = []
        stack.callback(stop_all, peers)
        missing = start_peers(plan, backend, peers)

        def keep(row: Row) -> None:
            out.write(json.dumps(row) + "\n")
            out.flush()
            rows.append(row)

        keep({**about(peers, plan), "missing": missing})
        connections = 0
        for _, group in itertools.groupby(turns(plan, peers), lambda turn: turn[:3]):
            with holding(plan.lock):
                for number, spin, scenario, peer in group:
                    rest(peers, connections)
                    connections = scenario.conns
                    keep({"round": number, **measure(peer, fitting(scenario, files), backend, plan, spin)})
                    on_row(rows[-1])
    return rows
