"""Listening sockets: opened, closed, and handed over to another process without a refused connection (H13).

Owns the queue of connections that nobody has accepted yet. Must not know requests.
"""

import asyncio
import contextlib
import ctypes
import os
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from typing import Any, cast

BACKLOG = 4096
SO_ATTACH_REUSEPORT_CBPF, SO_DETACH_REUSEPORT_BPF = 51, 68
"""socket(7), since Linux 4.5 and 5.3; Python has no names for them."""
HANDSHAKES = 0.05
"""Seconds for connections whose handshake had begun before their successor's address got all new ones."""
_ALWAYS_THE_SECOND = struct.pack("HBBI", 0x06, 0, 0, 1)  # BPF_RET | BPF_K: the socket that was bound as number 1


class Listener:
    """One address. Connections go to protocols of `factory`: objects with the methods of `asyncio.Protocol`.

    With `reuse_port` another process may listen there too (SO_REUSEPORT, socket(7)); Linux gives each its share of the
    new connections, and resets those in the queue of a socket that closes. `close_after_queue` lets them in instead.
    `alone`: nobody shares the address but a successor. Then new connections are sent there first, so that none comes
    between the last look at the queue and its end.
    """

    def __init__(
        self,
        factory: Callable[[], Any],
        tls: ssl.SSLContext | None,
        handshake: float,
        reuse_port: bool,
        *,
        alone: bool = True,
    ) -> None:
        self._factory = cast("Callable[[], asyncio.Protocol]", factory)
        self._tls = tls
        self._handshake = handshake if tls else None
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
            ssl=self._tls,
            backlog=BACKLOG,
            reuse_address=True,
            reuse_port=self._reuse_port or None,
            ssl_handshake_timeout=self._handshake,
        )
        if self._reuse_port and self._alone:
            with contextlib.suppress(OSError):  # there is a program only where a process handed over before
                for known in self._server.sockets:
                    known.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        self._server.close()

    async def close_after_queue(self) -> None:
        """Close; where the address is shared, who stands in the queue is let in first."""
        waiting = []
        queues = [socket.socket(fileno=os.dup(known.fileno())) for known in self._server.sockets]
        if self._reuse_port and self._alone:
            for queue in queues:
                prefer_successor(queue)
            await asyncio.sleep(HANDSHAKES)
        self._server.close()
        for queue in queues:
            if self._reuse_port:
                waiting += accept_all(queue)
            queue.close()
        for accepted in waiting:
            try:
                await self._loop.connect_accepted_socket(
                    self._factory, accepted, ssl=self._tls, ssl_handshake_timeout=self._handshake
                )
            except OSError:
                accepted.close()  # it left, or failed its handshake


def prefer_successor(listening: socket.socket) -> None:
    """From now on Linux gives new connections of this shared address to the second who listens there, if there is one.

    The older socket is number 0 of the two; where there is no number 1 the kernel chooses as if nothing were said.
    """
    program = ctypes.create_string_buffer(_ALWAYS_THE_SECOND)
    listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, struct.pack("@HP", 1, ctypes.addressof(program)))


def accept_all(queue: socket.socket) -> list[socket.socket]:
    """Everybody who stands in the queue of a listening socket now."""
    queue.setblocking(False)
    accepted = []
    while True:
        try:
            accepted.append(queue.accept()[0])
        except BlockingIOError:
            return accepted
        except ConnectionError:
            continue  # this one left while it waited
