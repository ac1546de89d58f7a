"""What every process of the gateway sets up for itself: open files, garbage collection, signals; what a reload brings
into force. Knows no service."""

import asyncio
import ctypes
import gc
import logging
import resource
import signal
from collections.abc import Awaitable, Callable

import anyio
import msgspec

from gateway.config import Config, ConfigError
from gateway.loading import expire_fault

log = logging.getLogger("fairgate.app")

GC_THRESHOLDS = (5_000, 1, 500)
"""Requests make no cycles, so collections find next to nothing and each is a stall of every stream: young ones walk at
most 15 000 objects (4 ms on a slow core) while a crowd of streams opens, and full ones, which walk all, are rare."""
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
"""Read once; a reload leaves them as they are and says when one differs."""
FILES_PER_STREAM = 2
FILES_SPARE = 256
M_MMAP_THRESHOLD = -3
LARGE_BLOCK = 1 << 20  # bytes: above what requests and answers are made of


def raise_file_limit(connections: int) -> None:
    """Allow two descriptors a stream; say so clearly when the system does not."""
    wanted = connections * FILES_PER_STREAM + FILES_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        log.warning("open-file limit too low for caps.connections", extra={"limit": most, "wanted": wanted})


def settle_garbage() -> None:
    """What was made up to now stays: keep it out of collections, and have those rarely."""
    give_large_blocks_back()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def give_large_blocks_back() -> None:
    """glibc learns from the first freed block of Argon2's 19 MiB to keep such blocks for ever, one for each thread:
    40 MB held after the first keys were checked. A fixed threshold (mallopt(3)) ends that."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl and others have none, and do not keep them
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def on_signals() -> asyncio.Event:
    """Set by the next SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def unless_second_signal(drain: Callable[[], Awaitable[None]]) -> None:
    """Drain; a second signal ends it at once (H13)."""
    again = on_signals()
    async with anyio.create_task_group() as group:

        async def cut() -> None:
            await again.wait()
            group.cancel_scope.cancel()

        group.start_soon(cut)
        await drain()
        group.cancel_scope.cancel()


async def close_all(*closings: Awaitable[None]) -> None:
    """Side by side, each to its end: a store that does not answer is waited for once, not once by each. Raises what
    failed, as a group."""
    ended = await asyncio.gather(*closings, return_exceptions=True)
    if faults := [each for each in ended if isinstance(each, BaseException)]:
        raise BaseExceptionGroup("closing failed", faults)


def in_force(old: Config, new: Config) -> tuple[Config, list[str]]:
    """The new configuration but for what only a restart brings into force, and the names of what differs there. Raises
    ConfigError where the two do not go together."""
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
    """Set by a SIGHUP that comes while the gateway starts: it would end a process that has no handler yet."""
    early = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, early.set)
    return early


def reload_on_hangup(
    reload: Callable[[Config], list[str] | Awaitable[list[str]]], load: Callable[[], Config], early: asyncio.Event
) -> None:
    """On SIGHUP, and for an `early` one, take a new configuration, or keep the old one and say why (O7)."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def take() -> None:
        try:
            ignored = reload(load())
            if not isinstance(ignored, list):
                ignored = await ignored
        except (ConfigError, OSError, ValueError) as err:
            setting, _, why = str(err).partition(": ")  # apart: `client_secret: why` would be scrubbed as a secret is
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
