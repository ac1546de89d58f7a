"""Listening sockets: opened, closed, and handed over to another process without refusing a connection (H13).

Owns the queue of connections that have not been accepted yet. Must not know requests.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from typing import Any, cast

from gateway.http1.counter import ConnectionCounter

log = logging.getLogger("fairgate.http1")

BACKLOG = 4096
SO_ATTACH_REUSEPORT_CBPF, SO_DETACH_REUSEPORT_BPF = 51, 68
"""socket(7), since Linux 4.5 and 5.3; Python does not define these constants."""
HANDSHAKES = 0.05
"""Seconds for TCP handshakes that were under way when the kernel was told to send new connections to the successor."""
ACCEPTS_A_TURN = 100  # TLS connections accepted per turn of the loop, so that others are served in between
FULL_PAUSE = 1.0  # seconds until accepting is tried again after the process ran out of file descriptors
_ALWAYS_THE_SECOND = struct.pack("HBBI", 0x06, 0, 0, 1)  # BPF_RET | BPF_K: choose the socket that was bound as number 1


class Listener:
    """One listening address. `factory` makes the protocol of each connection: an object with the methods of
    `asyncio.Protocol` and a `transport`, which is None until it is connected.

    With `reuse_port` another process may listen on the same address (SO_REUSEPORT, socket(7)). Linux gives each process
    a share of the new connections, and when a socket closes it resets the ones in its queue; `close_after_queue`
    accepts those first. `alone`: only a successor shares the address. New connections are then steered to it before the
    queue is emptied, so that none arrives between the last look at the queue and its end.
    """

    def __init__(
        self,
        factory: Callable[[], Any],
        tls: ssl.SSLContext | None,
        handshake: float,
        counter: ConnectionCounter,
        reuse_port: bool,
        *,
        alone: bool = True,
    ) -> None:
        self._factory = cast("Callable[[], asyncio.Protocol]", factory)
        self._tls = tls
        self._handshake = handshake if tls else None
        self._counter = counter
        self._queues: list[socket.socket] = []  # for TLS, whose connections are accepted here and not by asyncio
        self._greetings: set[asyncio.Task[None]] = set()
        self._reuse_port = reuse_port
        self._alone = alone and sys.platform == "linux"
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server

    async def open(self, host: str, port: int) -> int:
        """Listen on host:port (0 = any); the actual port is returned. Raises OSError."""
        self._server = await self._loop.create_server(
            self._factory,
            host,
            port,
            backlog=BACKLOG,
            reuse_address=True,
            reuse_port=self._reuse_port or None,
            start_serving=self._tls is None,
        )
        if self._tls is not None:
            self._queues = self._copies()
            for queue in self._queues:
                queue.setblocking(False)
                queue.listen(BACKLOG)
                self._start_accepting(queue)
        if self._reuse_port and self._alone:
            with contextlib.suppress(OSError):  # fails if no earlier process attached a program to this address
                for known in self._server.sockets:
                    known.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
        return int(self._server.sockets[0].getsockname()[1])

    def secure(self, tls: ssl.SSLContext | None, handshake: float) -> None:
        """Use this context and timeout for new handshakes. Does not switch TLS on or off."""
        if self._tls is not None and tls is not None:
            self._tls, self._handshake = tls, handshake

    def close(self) -> None:
        self._stop()
        for greeting in self._greetings:
            greeting.cancel()

    def _stop(self) -> None:
        for queue in self._queues:
            self._loop.remove_reader(queue)
            queue.close()
        self._queues.clear()
        self._server.close()

    def _copies(self) -> list[socket.socket]:
        return [socket.socket(fileno=os.dup(known.fileno())) for known in self._server.sockets]

    # ---- TLS

    def _start_accepting(self, queue: socket.socket) -> None:
        if queue in self._queues:
            self._loop.add_reader(queue, self._accept, queue)

    def _accept(self, queue: socket.socket) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                accepted, _ = queue.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # the client left while it was queued
            except OSError as err:
                log.error("connections wait: %s", err.strerror)
                self._loop.remove_reader(queue)
                self._loop.call_later(FULL_PAUSE, self._start_accepting, queue)
                return
            greeting = self._loop.create_task(self._greet(accepted))
            self._greetings.add(greeting)
            greeting.add_done_callback(self._greetings.discard)

    async def _greet(self, accepted: socket.socket) -> None:
        """Do the TLS handshake if the caps allow one more. A client that disconnects or fails the handshake is dropped
        silently."""
        protocol = self._factory()
        accepted.setblocking(False)
        try:
            if self._counter.enter(protocol, _address(accepted)):
                await self._let_in(accepted, protocol)
            else:
                accepted.close()
        except OSError:
            accepted.close()
        finally:
            self._counter.leave(protocol)

    async def _let_in(self, accepted: socket.socket, protocol: Any) -> None:
        """Connect the protocol. Raises OSError if the client has left. On cancellation uvloop closes only the
        transport, so the protocol is told here."""
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol, accepted, ssl=self._tls, ssl_handshake_timeout=self._handshake
            )
        except asyncio.CancelledError:
            if protocol.transport is not None:
                protocol.connection_lost(None)
            raise

    # ---- handing over

    async def close_after_queue(self) -> None:
        """Close. If the address is shared, connections waiting in the accept queue are accepted first."""
        waiting = []
        queues = self._copies()
        if self._reuse_port and self._alone:
            for queue in queues:
                prefer_successor(queue)
            await asyncio.sleep(HANDSHAKES)
        self._stop()
        for queue in queues:
            if self._reuse_port:
                waiting += accept_all(queue)
            queue.close()
        try:
            while waiting:
                await self._welcome(waiting.pop(0))
        finally:
            for accepted in waiting:
                accepted.close()

    async def _welcome(self, accepted: socket.socket) -> None:
        if self._tls is not None:
            await self._greet(accepted)
            return
        try:
            await self._let_in(accepted, self._factory())
        except OSError:
            accepted.close()  # the client left


def _address(accepted: socket.socket) -> str:
    """The peer's address. Raises OSError if it has left."""
    peer = accepted.getpeername()
    return str(peer[0]) if isinstance(peer, tuple) else ""


def prefer_successor(listening: socket.socket) -> None:
    """Make Linux give new connections of this shared address to the second process that listens there, if there is one.

    The older socket is number 0 of the two. While there is no number 1, the kernel distributes connections as before.
    """
    program = ctypes.create_string_buffer(_ALWAYS_THE_SECOND)
    listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, struct.pack("@HP", 1, ctypes.addressof(program)))


def accept_all(queue: socket.socket) -> list[socket.socket]:
    """Accept every connection that is in the queue of a listening socket now."""
    queue.setblocking(False)
    accepted = []
    while True:
        try:
            accepted.append(queue.accept()[0])
        except BlockingIOError:
            return accepted
        except ConnectionError:
            continue  # the client left while it was queued
