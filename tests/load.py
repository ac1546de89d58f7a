"""Load of which every request is accounted for: an engine that notes what it ran, clients that note what they saw, and
the comparison of both with the audit trail.

Must not know what happens to the gateways meanwhile.
"""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from gateway.services import trail
from gateway.services.record import AuditRecord
from tests.services.keyring import connection

MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
COST = 10
"""Tokens of every request that the engine finishes."""
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": COST}
ANSWER = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": USAGE,
    }
).encode()
BODY = json.dumps({"model": "m", "max_tokens": 3, "messages": [{"role": "user", "content": "x"}]}).encode()
PATIENCE = 30.0
"""Seconds for one request; the deadlines of what a gateway waits for are far below."""
NOTICE = 0.002
"""Seconds after which an engine has seen that earlier callers left, so that it may count."""


class Engine:
    """An OpenAI-compatible engine that takes up to `delay` seconds and fails a part of the time. `ran` are the requests
    it began by their id, `done` those it finished; `running` now, `most` at once."""

    def __init__(self, rng: random.Random, delay: float = 0.02, failures: float = 0.0) -> None:
        self.rng, self.delay, self.failures = rng, delay, failures
        self.ran: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.running = self.most = 0
        self.url = ""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Engine"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1000)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                fields = _fields(head)
                await reader.readexactly(int(fields.get(b"content-length", 0)))
                if head.startswith(b"GET"):
                    writer.write(_whole(MODELS))
                elif not await self._run(_given(fields[b"x-request-id"]), reader, writer):
                    break
        writer.transport.abort()

    async def _run(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request -> whether the connection goes on. A caller that leaves frees it."""
        self.ran[name] += 1
        self.running += 1
        try:
            await asyncio.sleep(NOTICE)
            self.most = max(self.most, self.running)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.rng.random() * self.delay):
                    await reader.read(1)
                    return False  # the gateway left: nothing else comes on this connection
        finally:
            self.running -= 1
        if self.rng.random() < self.failures:
            writer.write(self.rng.choice([b"", b"HTTP/1.1 200 OK\r\nContent-Len", _whole(b"{}", b"500 X")]))
            await writer.drain()
            return False
        self.done[name] += 1
        writer.write(_whole(ANSWER))
        return True


def _given(request_id: bytes) -> str:
    """The client's own id, without the ending that makes it unique."""
    return request_id.rpartition(b".")[0].decode()


def _fields(head: bytes) -> dict[bytes, bytes]:
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return {name.lower(): value.strip() for name, _, value in lines}


def _whole(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


class Load:
    """Clients that ask all the time, each on a kept connection to the gateways in turn. `finished` are the requests
    whose whole answer was seen, with its status; `late` those that were not answered in time. `name` begins the ids of
    its requests."""

    def __init__(
        self, ports: Sequence[int], token: str, clients: int, rate: float | None = None, name: str = "req"
    ) -> None:
        self.ports, self.token, self.clients = ports, token, clients
        self.name = name
        self.pause = clients / rate if rate else 0.0
        self.sent = 0
        self.finished: dict[str, int] = {}
        self.late: list[str] = []
        self.answered = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        tasks = [asyncio.create_task(self._client(number)) for number in range(self.clients)]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        broken = [end for end in ended if not isinstance(end, asyncio.CancelledError)]
        assert not broken, broken

    async def forgotten(self) -> None:
        """Wait for the next answer with `answered` from here on: those of a process that was killed have come by now,
        and one that was just started cannot answer yet."""
        await asyncio.sleep(0.1)
        self.answered.clear()

    async def _client(self, number: int) -> None:
        port = self.ports[number % len(self.ports)]
        due = asyncio.get_running_loop().time() + self.pause * number / self.clients
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    while True:
                        due = await self._paced(due)
                        await self._ask(reader, writer)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(0.02)

    async def _paced(self, due: float) -> float:
        """Wait for one's turn -> the next one; turns that were missed are left out."""
        now = asyncio.get_running_loop().time()
        if self.pause and due > now:
            await asyncio.sleep(due - now)
        return max(due, now - 1.0) + self.pause

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sent += 1
        name = f"{self.name}-{self.sent}"
        try:
            async with asyncio.timeout(PATIENCE):
                writer.write(request(name, self.token))
                status, _ = await answer(reader)
        except TimeoutError:
            self.late.append(name)
            raise ConnectionError from None
        self.finished[name] = status
        if status == 200:
            self.answered.set()

    def statuses(self) -> Counter[int]:
        return Counter(self.finished.values())


def request(name: str, token: str, body: bytes = BODY) -> bytes:
    """The bytes of one request whose audit row will be called `name`."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Request-ID: {name}\r\n"
    return f"{head}Authorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """One whole answer with a length -> its status and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    return int(head[9:12]), await reader.readexactly(int(_fields(head)[b"content-length"]))


class Account(msgspec.Struct):
    """What the audit trail of a store says: `rows` by request, outcomes, broken chains."""

    rows: Counter[str]
    outcomes: dict[str, str]
    broken: list[str]
    chains: int

    def faults(self, load: Load, engine: Engine) -> list[str]:
        """Every way in which it differs from what clients and engine saw, in sentences."""
        return list(self._faults(load, engine))

    def _faults(self, load: Load, engine: Engine) -> Iterator[str]:
        yield from self.broken
        if lost := load.finished.keys() - self.rows.keys():
            yield f"{len(lost)} requests that clients saw finished have no row: {sorted(lost)[:3]}"
        if twice := [name for name, count in self.rows.items() if count > 1]:
            yield f"{len(twice)} requests have two rows or more: {sorted(twice)[:3]}"
        if unknown := engine.ran.keys() - self.rows.keys():
            yield f"{len(unknown)} requests that reached the engine have no row: {sorted(unknown)[:3]}"
        done = [name for name, status in load.finished.items() if status == 200]
        if wrong := [name for name in done if self.outcomes.get(name, "done") not in ("done", "interrupted")]:
            yield f"{len(wrong)} finished requests are recorded as something else: {sorted(wrong)[:3]}"
        if load.late:
            yield f"{len(load.late)} requests were not answered within {PATIENCE:g} s: {load.late[:3]}"

    def cut_behind_the_answer(self, load: Load) -> int:
        """Finished requests whose last byte left in the moment of the kill: their row says `interrupted`."""
        return sum(status == 200 and self.outcomes.get(name) == "interrupted" for name, status in load.finished.items())

    def count(self, outcome: str) -> int:
        return sum(each == outcome for each in self.outcomes.values())


async def account(store_url: str) -> Account:
    """Read the whole trail of a store and check its chains."""
    async with connection(store_url) as opened:
        rows = [AuditRecord.of(row) for row in await opened.audit_tail(10_000_000)]
        chains = await trail.verify(opened, {})
    broken = [f"chain {chain.writer} is broken: {chain.broken}" for chain in chains if chain.broken]
    return Account(Counter(row.id for row in rows), {row.id: row.outcome for row in rows}, broken, len(chains))


def engine_section(engine: Engine, slots: int = 64) -> list[dict[str, Any]]:
    """The `backends` of a gateway's file."""
    return [{"name": "e", "url": engine.url, "engine": "openai", "slots": slots}]
