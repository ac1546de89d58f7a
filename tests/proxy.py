"""A TCP proxy that makes a server slow."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slow:
    """A TCP proxy before a server that passes answers on after `latency` seconds. `to` is where new connections go."""

    def __init__(self, port: int) -> None:
        self.latency = 0.0
        self.to = port

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.to)
        except ConnectionError:  # the server is down: whoever asks is told so by the end of the connection
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await asyncio.gather(self._pass(reader, back, False), self._pass(there, writer, True))
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.close()
            back.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, late: bool) -> None:
        while data := await reader.read(65536):
            if late:
                await asyncio.sleep(self.latency)
            writer.write(data)
        raise ConnectionResetError
