"""The listeners and all client connections: caps, timers, drain.

Knows sockets and connections; must not know what is requested on them.
"""

import asyncio
import ssl
from collections.abc import Callable
from email.utils import formatdate
from typing import Final

import msgspec

from gateway.config import Caps, Timeouts
from gateway.http1.connection import Connection, Handler, Phase
from gateway.http1.counter import ConnectionCounter
from gateway.http1.facts import ServerStats
from gateway.http1.listener import Listener
from gateway.http1.wire import WireLimits

# Seconds for which a drain keeps a connection open that has not sent its first request yet
FRESH_AT_DRAIN: Final = 1.0
CUT: Final = 1.0  # seconds for clients of interrupted requests to read the last bytes; most need no time
EXPIRED_A_TURN: Final = 20  # timers handled in one turn of the loop: an answer with its record takes 0.1 ms


class HttpServer:
    """The listeners and their connections: caps, one coarse clock for all timers, drain."""

    def __init__(
        self, handler: Handler, caps: Caps, timeouts: Timeouts, shared: Callable[[str], bool] = lambda peer: False
    ) -> None:
        self.handler = handler
        self.counter = ConnectionCounter(caps, shared)
        self.retune(caps, timeouts, shared)
        self.connections: set[Connection] = set()
        self.draining = False
        self.date_line = b""
        self.accepted = self.requests = self.timed_out = 0
        self._listeners: list[Listener] = []
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._empty: asyncio.Event = asyncio.Event()
        self._timer = self._loop.call_soon(self.sweep)

    def retune(self, caps: Caps, timeouts: Timeouts, shared: Callable[[str], bool]) -> None:
        """Apply new caps and timeouts. Open connections keep their wire limits. `shared`: see `ConnectionCounter`."""
        self.caps = self.counter.caps = caps
        self.counter.shared = shared
        self.timeouts = timeouts
        self.limits = WireLimits(
            head_bytes=caps.head_bytes,
            header_count=caps.headers,
            target_bytes=caps.target_bytes,
            body_bytes=caps.body_bytes,
        )
        self._interval = max(0.01, min(1.0, min(msgspec.structs.astuple(timeouts)) / 4))

    def secure(self, tls: ssl.SSLContext | None) -> None:
        """Use this TLS context, and the current handshake timeout, for new connections; open ones go on."""
        for listener in self._listeners:
            listener.secure(tls, self.timeouts.tls_handshake)

    async def listen(
        self, host: str, port: int, tls: ssl.SSLContext | None = None, *, reuse_port: bool = False, alone: bool = True
    ) -> int:
        """Listen on host:port (0 = any); returns the actual port. Raises OSError.

        With `reuse_port` another process may listen there too, and take over (H13); `alone`: only a successor does.
        """
        listener = Listener(
            lambda: Connection(self), tls, self.timeouts.tls_handshake, self.counter, reuse_port, alone=alone
        )
        actual = await listener.open(host, port)
        self._listeners.append(listener)
        return actual

    def opened(self, connection: Connection) -> None:
        """Count a new connection, or refuse it (H3)."""
        self.accepted += 1
        self.connections.add(connection)
        if not self.counter.opened(connection, connection.peer_ip):
            connection.phase = Phase.CLOSED
            self.handler.crowded(connection)
            connection.send()
            connection.transport.close()

    def closed(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.counter.closed(connection.peer_ip)
        if self.draining and not self.connections:
            self._empty.set()

    def sweep(self) -> None:
        """One pass over all timers. Coarse (a quarter of the shortest timeout), and without any cost per request."""
        now = self.now()
        self.date_line = b"Date: %b\r\n" % formatdate(usegmt=True).encode()
        due = [c for c in self.connections if c.deadline <= now or c.stall_deadline <= now or c.quiet_at <= now]
        # Scheduled first, so that a fault below cannot stop all timers
        self._timer = self._loop.call_later(self._interval, self.sweep)
        self._expire(due, now)

    def _expire(self, due: list[Connection], now: float) -> None:
        """Handle the timers that are still due, a few per turn of the loop: many connections that stall together must
        not block it."""
        for connection in due[:EXPIRED_A_TURN]:
            if connection.deadline <= now or connection.stall_deadline <= now:
                connection.expired(now)
            elif connection.quiet_at <= now:
                connection.quiet()
        if len(due) > EXPIRED_A_TURN:
            self._loop.call_soon(self._expire, due[EXPIRED_A_TURN:], now)

    async def drain(self, deadline: float) -> bool:
        """Stop accepting and let running requests finish for up to `deadline` seconds (H13). True if all of them
        did."""
        self.draining = True
        for listener in self._listeners:
            await listener.close_after_queue()
        soon = self.now() + FRESH_AT_DRAIN
        for connection in [c for c in self.connections if c.call is None]:
            if connection.fresh:
                connection.deadline = min(connection.deadline, soon)
            else:
                connection.close()
        return await self._emptied(deadline)

    async def _emptied(self, seconds: float) -> bool:
        """Wait until no connection is left. False: that took longer than `seconds`."""
        if self.connections:
            self._empty.clear()  # it may have been set before the accept queue was emptied
            try:
                await asyncio.wait_for(self._empty.wait(), seconds)
            except TimeoutError:
                return False
        return True

    async def ended(self) -> None:
        """Wait after `close` until all connections have ended; those that take too long are aborted. With TLS even an
        abort needs some turns of the loop."""
        self.draining = True
        if await self._emptied(CUT):
            return
        for connection in list(self.connections):
            connection.transport.abort()
        await self._emptied(CUT)

    def close(self) -> None:
        """End everything: requests at once; `ended` waits for their connections."""
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.cut()
        self._timer.cancel()

    def stats(self) -> ServerStats:
        busy = sum(1 for c in self.connections if c.call is not None)
        return ServerStats(
            open=len(self.connections),
            busy=busy,
            accepted=self.accepted,
            refused=self.counter.refused,
            requests=self.requests,
            timed_out=self.timed_out,
            buffered=sum(c.transport.get_write_buffer_size() for c in self.connections),
        )
