"""What every process of the gateway sets up for itself: open files, garbage collection and signals; and the rules of a
reload. Must not know services."""

import asyncio
import ctypes
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable

import anyio
import msgspec

from gateway.config import Config, ConfigError
from gateway.loading import expire_fault

log = logging.getLogger("fairgate.app")

GC_THRESHOLDS = (5_000, 1, 500)
"""Requests make no reference cycles, so collections find almost nothing, and each one stalls all streams. Young
collections visit at most 15 000 objects (4 ms on a slow core) while many streams open at once; full collections, which
visit everything, are rare."""
RESTART_ONLY = (
    "listen",
    "workers",
    "reuse_port",
    "store",
    "admin",
    "identity",
    "audit",
    "prompts",
    "shared",
    "limits",
    "tracing",
)
"""Settings that are read once. A reload keeps their old values and reports the ones that differ."""
FILES_PER_STREAM = 2
FILES_SPARE = 256
M_MMAP_THRESHOLD = -3
LARGE_BLOCK = 1 << 20  # bytes: larger than the objects that requests and answers are made of


def raise_file_limit(connections: int) -> None:
    """Raise the limit to two descriptors per stream; log a warning if the system does not allow that."""
    wanted = connections * FILES_PER_STREAM + FILES_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        log.warning("open-file limit too low for caps.connections", extra={"limit": most, "wanted": wanted})


def hold_standard_files() -> None:
    """Open standard input, output and error on /dev/null if the caller closed them. Otherwise a socket or the store
    would get their numbers, and libuv aborts the process when one below 3 is closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)  # None if Python found it closed
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def settle_garbage() -> None:
    """Exclude the objects made so far from garbage collection, and make collections rare."""
    give_large_blocks_back()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def give_large_blocks_back() -> None:
    """Make glibc return large blocks to the system. After the first 19 MiB block of Argon2 is freed, glibc would keep
    such blocks for each thread: 40 MB after the first keys were checked. A fixed threshold (mallopt(3)) prevents
    that."""
    # Musl and others have no mallopt, and do not keep such blocks
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def on_signals() -> asyncio.Event:
    """An event that is set by the next SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def unless_second_signal(drain: Callable[[], Awaitable[None]]) -> None:
    """Drain; a second signal ends the drain at once (H13)."""
    again = on_signals()
    async with anyio.create_task_group() as group:

        async def cut() -> None:
            await again.wait()
            group.cancel_scope.cancel()

        group.start_soon(cut)
        await drain()
        group.cancel_scope.cancel()


def cause_of(error: Exception) -> Exception:
    """The error that stopped the services, taken out of the exception groups around it."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def close_all(*closings: Awaitable[None]) -> None:
    """Run all closings concurrently and wait for each: a store that does not answer costs its timeout only once. Raises
    their failures as a group."""
    ended = await asyncio.gather(*closings, return_exceptions=True)
    if faults := [each for each in ended if isinstance(each, BaseException)]:
        raise BaseExceptionGroup("closing failed", faults)


def in_force(old: Config, new: Config) -> tuple[Config, list[str]]:
    """The new configuration, except that settings which need a restart keep their old values; and the names of those
    that differ. Raises ConfigError if the two do not fit together."""
    if old.backends and not new.backends:
        raise ConfigError("backends: none is left; the file seems to be empty or half written")
    names = [name for name in RESTART_ONLY if getattr(old, name) != getattr(new, name)]
    if (old.tls is None) != (new.tls is None):
        names.append("tls")
    kept = {name: getattr(old, name) for name in names}
    if old.log.level != new.log.level:
        names.append("log.level")
        kept["log"] = msgspec.structs.replace(new.log, level=old.log.level)
    joined = msgspec.structs.replace(new, **kept)
    if "limits" in kept and (fault := expire_fault(joined)):
        raise ConfigError(f"limits.expire: until a restart it is {old.limits.expire:g}, {fault}")
    return joined, names


def early_hangup() -> asyncio.Event:
    """An event that is set by a SIGHUP during the start. Without a handler the signal would end the process."""
    early = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, early.set)
    return early


def reload_on_hangup(
    reload: Callable[[Config], list[str] | Awaitable[list[str]]], load: Callable[[], Config], early: asyncio.Event
) -> None:
    """On SIGHUP, and once for an `early` one, load a new configuration; if that fails, keep the old one and log why
    (O7)."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def take() -> None:
        try:
            ignored = reload(load())
            if not isinstance(ignored, list):
                ignored = await ignored
        except (ConfigError, OSError, ValueError) as err:
            # Logged separately: `client_secret: why` would be scrubbed like a secret
            setting, _, why = str(err).partition(": ")
            log.error("configuration not reloaded: %s", setting, extra={"why": why})
        else:
            log.info("configuration reloaded", extra={"needs_restart": ignored})

    def hangup() -> None:
        task = loop.create_task(take())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGHUP, hangup)
    if early.is_set():
        hangup()
