"""The connections to one backend: opened, kept alive, and reused newest first (R6).

Must not know what is sent over them, and must not decide on retries.
"""

import asyncio
import errno
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from gateway.errors import ConnectFailed, ConnectTimeout, Overloaded
from gateway.http1.client import State, UpstreamConnection
from gateway.http1.facts import Address, PoolStats
from gateway.http1.reply import ResponseHeads

REST: Final = 0.005
"""Seconds that a connection rests after an answer before it is reused. If the engine sends stray bytes after its
answer, they arrive while no request is under way, and the connection is closed. Otherwise they would be taken for the
answer to the next request."""


def _abandon(task: "asyncio.Task[UpstreamConnection]") -> None:
    """Nobody waits for this dial any more: close what it opened and ignore its failure."""
    if not task.cancelled() and task.exception() is None:
        task.result().abort()


def trusting(ca: str) -> ssl.SSLContext:
    """A client-side TLS context that trusts the authorities in `ca`, or the system's if it is empty. Raises OSError,
    which names the file."""
    try:
        return ssl.create_default_context(cafile=ca or None)
    except OSError as err:  # ssl.SSLError is a subclass; neither names the file
        raise OSError(f"{ca}: {err.strerror or err}") from err


class Pool:
    """The connections to one backend address (R6): LIFO reuse, idle expiry, and no limit of its own (slots limit the
    use)."""

    def __init__(
        self, address: Address, idle_expiry: float, rest: float = REST, used: "set[Pool] | None" = None
    ) -> None:
        """Times are in seconds. The pool is a member of `used` while it has connections. Raises OSError for an unusable
        `ca`."""
        self.address = address
        self._tls = trusting(address.ca) if address.tls else None
        self.idle_expiry = idle_expiry
        self.connections: set[UpstreamConnection] = set()
        self.retired = False
        self.dialled = self.reused = 0
        self.heads = ResponseHeads()
        self.rest = rest
        self._used: set[Pool] = set() if used is None else used
        self._resting: deque[UpstreamConnection] = deque()  # most recently used last
        self._idle: deque[UpstreamConnection] = deque()  # those that have rested; same order
        self._loop = asyncio.get_running_loop()
        self.now: Callable[[], float] = self._loop.time

    def take(self) -> UpstreamConnection | None:
        """The most recently used idle connection that has rested, or None."""
        self._rested(self.now())
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                connection.reused = True
                self.reused += 1
                return connection
            connection.abort()
        return None

    async def dial(self, timeout: float) -> UpstreamConnection:  # noqa: ASYNC109  # callers have no Task for asyncio.timeout
        """Open a new connection. Raises ConnectFailed, or Overloaded if this process has run out of file descriptors,
        for which the engine is not to blame. If it is interrupted, the half-open connection is closed."""
        self.dialled += 1
        task = self._loop.create_task(self._connect(timeout))
        try:
            connection = await task
        except BaseException:
            task.add_done_callback(_abandon)
            task.cancel()
            raise
        if connection.state is State.CLOSED or connection.transport.is_closing():
            raise ConnectFailed("The engine cannot be reached.", cause="it closed the connection at once")
        return connection

    async def _connect(self, seconds: float) -> UpstreamConnection:
        address = self.address
        options: dict[str, Any] = {}
        if self._tls is not None:
            options = {"ssl": self._tls, "server_hostname": address.host}
        try:
            async with asyncio.timeout(seconds):
                connection = UpstreamConnection(self)
                factory = cast("Callable[[], asyncio.Protocol]", lambda: connection)
                await self._loop.create_connection(factory, address.host, address.port, **options)
        except (OSError, TimeoutError) as err:
            if isinstance(err, OSError) and err.errno in (errno.EMFILE, errno.ENFILE):
                full = Overloaded("The gateway has no file descriptors left.")
                full.cause = repr(err)  # for the log
                raise full from err
            cause = f"{address.host}:{address.port}: {err!r}"
            if isinstance(err, TimeoutError):
                raise ConnectTimeout("The engine did not accept a connection in time.", cause=cause) from err
            raise ConnectFailed("The engine cannot be reached.", cause=cause) from err
        # Not in connection_made: if the dial is cancelled after that, uvloop never reports that the connection was
        # lost.
        if connection.state is not State.CLOSED:
            self.connections.add(connection)
            self._used.add(self)
        return connection

    def put(self, connection: UpstreamConnection) -> None:
        """Keep an idle connection for the next exchange."""
        if self.retired or connection.transport.is_closing() or not connection.transport.is_reading():
            connection.abort()
            return
        connection.idle_since = self.now()
        self._resting.append(connection)

    def _rested(self, now: float) -> None:
        while self._resting and self._resting[0].idle_since + self.rest <= now:
            self._idle.append(self._resting.popleft())

    def forget(self, connection: UpstreamConnection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._used.discard(self)

    def sweep(self, now: float) -> None:
        """Handle expired timers and close connections that were idle too long; called about once a second."""
        for connection in [c for c in self.connections if c.due(now)]:
            connection.expired(now)
        self._rested(now)
        while self._idle and self._idle[0].idle_since + self.idle_expiry <= now:
            self._idle.popleft().abort()

    def retire(self) -> None:
        """Close idle connections now and the others when their exchange ends. For a backend that was removed or
        changed."""
        self.retired = True
        for connection in (*self._resting, *self._idle):
            connection.abort()
        self._resting.clear()
        self._idle.clear()

    def close(self) -> None:
        self.retire()
        for connection in list(self.connections):
            connection.abort()

    def stats(self) -> PoolStats:
        idle = len(self._resting) + len(self._idle)
        return PoolStats(open=len(self.connections), idle=idle, dialled=self.dialled, reused=self.reused)
