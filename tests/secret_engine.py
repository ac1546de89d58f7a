"""What searches for secrets share: how a leak is recognised, and an engine that gives away the key it was given."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager


def leaked(text: str, *secrets: str) -> list[str]:
    """Secrets, or long pieces of them, that stand in a text."""
    return [secret for secret in secrets if any(part in text for part in _parts(secret))]


def _parts(secret: str) -> Iterator[str]:
    """A half of a secret is as good as all of it to whoever guesses the rest."""
    half = max(6, len(secret) // 2)
    yield secret[:half] if not secret.startswith("fg_") else secret[16 : 16 + 8]
    yield secret[-half:]


class Echo:
    """An engine that tells everybody the key it was given, in every place where an engine can say something."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                lines = [line for line in head.split("\r\n") if line]
                fields = dict(line.lower().split(": ", 1) for line in lines[1:])
                key = next((line.partition("Bearer ")[2] for line in lines if "Bearer" in line), "")
                body = (await reader.readexactly(int(fields.get("content-length", 0)))).decode()
                self.seen.add(key)
                do = json.loads(body).get("seed", 0) if body else -1
                if body and do == 9:
                    break
                writer.write(_said(do, key))
                if do >= 5:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        writer.close()

    @asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=tls)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()


MODELS = '{"object":"list","data":[{"id":"m","object":"model","owned_by":"x"}]}'
STATUSES = {0: "500 X", 1: "401 Unauthorized", 2: "404 Not Found", 3: "400 Bad Request", 4: "503 X"}


def _said(do: int, key: str) -> bytes:
    """What goes wrong is chosen by the request's `seed`."""
    text = MODELS if do < 0 else json.dumps({"error": {"message": f"the key {key} is wrong: image"}})
    head = f"HTTP/1.1 {STATUSES.get(do, '200 OK')}\r\nX-Key: {key}\r\nServer: {key}\r\nWWW-Authenticate: {key}\r\n"
    if do == 5:
        return f"{key} not HTTP\r\n\r\n".encode()
    if do == 6:
        return f"{head}Transfer-Encoding: chunked\r\n\r\n{key}\r\n".encode()
    if do == 7:
        return f"{head}{key} : x\r\n\r\n".encode()
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
