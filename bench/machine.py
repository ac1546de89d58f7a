"""What the machine is, and what processes cost: CPU seconds and proportional memory, read from /proc.

Knows nothing of gateways or load. Linux only.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from dataclasses import dataclass
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cpu:
    """CPU seconds a process tree has used. `user` and `system` come in ticks of 10 ms and include ended threads; `run`
    is the scheduler's own clock, exact, of living threads; `main` is the part of the first process's first thread."""

    user: float
    system: float
    run: float
    main: float

    @property
    def total(self) -> float:
        """The exact figure, unless threads that ended are missing from it."""
        ticks = self.user + self.system
        return self.run if self.run > ticks - 5 * TICK else ticks

    @property
    def user_share(self) -> float | None:
        ticks = self.user + self.system
        return self.user / ticks if ticks else None

    def __sub__(self, earlier: Cpu) -> Cpu:
        return Cpu(
            self.user - earlier.user, self.system - earlier.system, self.run - earlier.run, self.main - earlier.main
        )


def tree(pid: int) -> list[int]:
    """The process and all its living descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found.extend(int(child) for child in task.read_text().split())
            except OSError:  # the thread ended while we looked
                continue
    return found


def cpu_of(pids: list[int]) -> Cpu:
    """Sum of utime and stime (proc(5), fields 14 and 15), and of all threads' run times."""
    user = system = run = main = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user += int(fields[11])
        system += int(fields[12])
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                used = int(task.read_text().split()[0])
            except OSError:  # the thread ended while we looked
                continue
            run += used
            main += used if task.parent.name == str(pids[0]) else 0
    return Cpu(user * TICK, system * TICK, run / 1e9, main / 1e9)


def connections() -> int:
    """TCP sockets of this machine that are open or in TIME_WAIT."""
    words = Path("/proc/net/sockstat").read_text().partition("TCP:")[2].split()
    return int(words[words.index("inuse") + 1]) + int(words[words.index("tw") + 1])


def pss_mb(pids: list[int]) -> float:
    """Proportional set size of all processes in MB (10^6 bytes): shared pages count by share."""
    kilobytes = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                kilobytes += int(line.split()[1])
    return kilobytes * 1024 / 1e6


def prioritise(pid: int, nice: int) -> None:
    """Raise (below 0, root only) the priority of a process, and of its session, which Linux schedules as one group.

    On a machine that others use too, this keeps their turns out of the measured ones.
    """
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    group = Path(f"/proc/{pid}/autogroup")
    if group.exists():
        group.write_text(str(nice))


def allow_many_files(wanted: int = 65_536) -> int:
    """Raise the limit of open files for us and all we start, as far as the system lets us. The limit reached."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, hard), max(wanted, hard)))
    except (ValueError, PermissionError):  # only root may raise the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def first_line(command: list[str]) -> str:
    """The first line a command prints, on either stream; empty if it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return ""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else ""


def facts() -> dict[str, str]:
    """What a reader needs to judge the figures; no names of hosts or paths."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")), platform.machine()
    )
    flags = next((line for line in cpuinfo if line.startswith("flags")), "")
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return {
        "cpu": f"{model}, {os.cpu_count()} cores" + (", virtual machine" if " hypervisor" in flags else ""),
        "memory": f"{int(memory.split()[1]) / 1e6:.0f} GB",
        "kernel": platform.release().partition("-")[0] + f", TCP {congestion}",
        "compiler": first_line(["cc", "--version"]),
    }
