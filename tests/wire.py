"""Raw HTTP/1.1 over a socket, for tests that look at bytes: one client, and a backend that tests script."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import ClassVar

WAIT = 5.0  # seconds; a deadline for events, never a pause


class Client:
    """A connection that sends bytes and reads answers by their framing."""

    opened: ClassVar[list["Client"]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.seen = b""  # what a test has read ahead of an answer's end
        self.opened.append(self)

    @classmethod
    async def close_all(cls) -> None:
        """End every connection of this test; call it before the loop ends."""
        while cls.opened:
            client = cls.opened.pop()
            client.reset()
            await asyncio.gather(client.writer.wait_closed(), return_exceptions=True)

    @classmethod
    async def connect(cls, port: int) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(WAIT):
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = text.rstrip("\r\n").split("\r\n")
        pairs = (field.split(": ", 1) for field in fields)
        return int(line.split(" ")[1]), {name.lower(): value for name, value in pairs}

    async def answer(self, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Status, fields and payload of one answer."""
        status, fields = await self.head()
        if head_only or status in (204, 304):
            return status, fields, b""
        async with asyncio.timeout(WAIT):
            if "content-length" in fields:
                return status, fields, await self.reader.readexactly(int(fields["content-length"]))
            if fields.get("transfer-encoding") == "chunked":
                return status, fields, b"".join([chunk async for chunk in self.chunks()])
            return status, fields, await self.reader.read()

    async def chunks(self):  # type: ignore[no-untyped-def]  # noqa: ANN201  # an async generator of bytes
        """The payload of each chunk, as framed on the wire."""
        while True:
            size = int((await self.reader.readuntil(b"\r\n")).strip(), 16)
            data = await self.reader.readexactly(size + 2)
            assert data.endswith(b"\r\n")
            if size == 0:
                return
            yield data[:-2]

    async def at_end(self) -> bool:
        """Whether the peer has closed: waits for it."""
        async with asyncio.timeout(WAIT):
            return not await self.reader.read(1)

    async def rest(self) -> bytes:
        async with asyncio.timeout(WAIT):
            return await self.reader.read()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Backend:
    """A server whose connections run `script`; `closed` counts connections whose peer went away."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections = 0
        self.closed: asyncio.Queue[int] = asyncio.Queue()
        self.port = 0
        self._server: asyncio.Server | None = None
        # A loop knows its tasks weakly: a script that waits for ever would be collected, and its connection with it.
        self._scripts: set[asyncio.Task[None] | None] = set()

    async def __aenter__(self) -> "Backend":
        self._server = await asyncio.start_server(self._run, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self._scripts.add(asyncio.current_task())
        try:
            await self.script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the peer left: `closed` says so
        finally:
            self._scripts.discard(asyncio.current_task())
            writer.close()
            self.closed.put_nowait(number)


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of one request with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
    )
    return head, await reader.readexactly(length)
