"""Several processes that serve as one gateway: real ones, one queue, one set of limits, one page of metrics (D)."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gateway.services.accounts import KeyTerms, create_key, create_tenant, create_user
from gateway.store import open_store
from gateway.store.base import STORED_COLUMNS
from gateway.store.limits import Limits
from tests.flow.engine import DONE, END, SSE_HEAD, STOP, WORD, Engine, LlamaCpp, chunk, frame, hang, plain, stream
from tests.flow.engine import START as OPENING
from tests.gateway import FAST_HASH
from tests.servers import free_port
from tests.services.engines import running
from tests.services.issuer import AUDIENCE, NAME, RSA, Issuer, claims
from tests.test_handover import START, Gate, Held, asked, ended, refused
from tests.wire import Client

pytestmark = pytest.mark.timeout(400)

CHATS = ("completions", "messages")  # ends of their paths
ID_PREFIX = 12  # hex digits of a request id that name the process


class Crew(Gate):
    """A gateway with two workers."""

    def __init__(self, folder: Path, engine: str, slots: int = 4, **settings: Any) -> None:
        backends = [{"name": "engine", "url": engine, "engine": "openai", "slots": slots}]
        super().__init__(folder, "crew", free_port(), engine, **{"workers": 2, "backends": backends, **settings})
        self.folder = folder

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False) as http:
            return await http.get(f"http://127.0.0.1:{self.admin}{path}")

    async def stats(self) -> dict[str, Any]:
        return dict((await self.get("/stats")).json())

    async def metrics(self) -> dict[tuple[str, ...], float]:
        families = parse_text((await self.get("/metrics")).text)
        return {(s.name, *sorted(s.labels.values())): s.value for f in families for s in f.samples}

    async def until(self, holds: Any) -> dict[str, Any]:
        """Poll `/stats` until it holds."""
        async with asyncio.timeout(START):
            while not holds(stats := await self.stats()):
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.02)
        return stats

    async def by_worker(self, each: int) -> list[list[Client]]:
        """Connections to both workers, `each` many; the kernel chooses, an answer's id tells which it chose."""
        found: dict[str, list[Client]] = {}
        async with asyncio.timeout(START):
            while len(found) < 2 or min(map(len, found.values())) < each:
                client = await Client.connect(self.port)
                await client.send(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
                _, fields, _ = await client.answer()
                found.setdefault(fields["x-request-id"][:ID_PREFIX], []).append(client)
        return [clients[:each] for clients in found.values()]

    def pids(self, stats: dict[str, Any]) -> list[int]:
        return [worker["pid"] for worker in stats["workers"]]

    async def rows(self, count: int, outcome: str = "") -> list[dict[str, Any]]:
        """Audit rows of chats, once there are so many."""
        store = await open_store(str(self.folder / "fairgate.db"))
        try:
            async with asyncio.timeout(START):
                while True:
                    rows = [dict(zip(STORED_COLUMNS, row, strict=True)) for row in await store.audit_tail(10_000)]
                    rows = [row for row in rows if row["route"].endswith(CHATS) and outcome in ("", row["outcome"])]
                    if len(rows) >= count:
                        return rows
                    await asyncio.sleep(0.05)
        finally:
            await store.close()


HEALTHZ = ("fairgate_requests_total", "/healthz", "2xx", "done", "openai")


async def keys(folder: Path, *users: str, **terms: Any) -> list[str]:
    store = await open_store(str(folder / "fairgate.db"))
    try:
        tenant = await create_tenant(store, "t", allow_all_models=True)
        made = [await create_user(store, tenant, user) for user in users]
        return [(await create_key(store, user, KeyTerms(**terms), FAST_HASH))[1] for user in made]
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def crew(folder: Path, engine: Engine, **settings: Any) -> AsyncIterator[Crew]:
    gate = Crew(folder, engine.url, **settings)
    async with ended(gate):
        await gate.ready()
        yield gate


class Counted:
    """An engine that says how many requests it had at once; each takes a moment."""

    def __init__(self, seconds: float = 0.01) -> None:
        self.now = self.most = self.total = 0
        self.order: list[str] = []
        self._seconds = seconds

    async def answer(
        self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.now += 1
        self.total += 1
        self.most = max(self.most, self.now)
        self.order.append(json.loads(body).get("user", ""))
        await asyncio.sleep(self._seconds)
        self.now -= 1
        await plain(head, body, reader, writer)


async def ask(client: Client, key: str, **more: Any) -> int:
    await client.send(asked(key, **more))
    return (await client.answer())[0]


def test_two_workers_share_the_slots_and_one_page_sums(tmp_path: Path) -> None:
    """S, O2, U4: the engine never has more than its slots; each worker writes a chain of its own."""
    counted = Counted()

    async def main() -> None:
        async with Engine(counted.answer) as engine:
            (key,) = await keys(tmp_path, "u")
            async with crew(tmp_path, engine, slots=3) as gate:
                one, two = await gate.by_worker(8)

                async def many(client: Client) -> list[int]:
                    return [await ask(client, key) for _ in range(5)]

                async with asyncio.timeout(START):
                    answers = await asyncio.gather(*map(many, [*one, *two]))
                assert {status for mine in answers for status in mine} == {200}
                assert counted.most == 3
                rows = await gate.rows(80)
                assert len({row["writer"] for row in rows}) == 2
                assert len({row["id"] for row in rows}) == 80
                found = await gate.metrics()
                assert found["fairgate_requests_total", "/v1/chat/completions", "2xx", "done", "openai"] == 80
                assert found["fairgate_queue_seconds_count", "m"] == 80
                assert found["fairgate_audit_written_total",] >= 80
                assert found["fairgate_workers",] == 2
                assert found["fairgate_slots_running", "engine"] == 0
                stats = await gate.stats()
                assert stats["scheduler"]["granted"] == 80
                assert stats["server"]["open"] >= 16

    uvloop.run(main())


def test_what_an_engine_works_on_for_one_worker_is_not_given_to_the_other(tmp_path: Path) -> None:
    """R8"""

    async def main() -> None:
        async with LlamaCpp() as engine:
            (key,) = await keys(tmp_path, "u")
            backends = [{"name": "engine", "url": engine.url, "engine": "llamacpp", "slots": 1}]
            async with crew(tmp_path, engine, backends=backends) as gate:
                (left,), (stays,) = await gate.by_worker(1)
                await left.send(asked(key))
                await engine.chats.get()
                left.close()
                await gate.until(lambda stats: stats["zombies"] == [{"backend": "engine", "held": 1, "seen": 1}])
                assert len(await gate.rows(1, "client_gone")) == 1
                following = asyncio.ensure_future(ask(stays, key))
                await gate.until(lambda stats: stats["scheduler"]["queued"] == 1)
                await engine.looked(3)
                assert engine.chats.empty()
                engine.go.set()
                assert await following == 200
                assert engine.most == 1
                found = await gate.metrics()
                assert (found["fairgate_slots_zombie", "engine"], found["fairgate_zombies_total", "engine"]) == (0, 1)

    uvloop.run(main())


def test_every_worker_serves_anthropics_api(tmp_path: Path) -> None:
    """A3: the routes of a catalogue that came from the parent, and the tokens of both ends of a stream."""

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + b"".join(map(chunk, (OPENING, WORD, END, STOP))) + b"0\r\n\r\n")

    async def main() -> None:
        async with Engine(answer) as engine:
            (key,) = await keys(tmp_path, "u")
            backends = [{"name": "engine", "url": engine.url, "engine": "vllm", "slots": 4}]
            async with crew(tmp_path, engine, backends=backends) as gate:
                for (client,) in await gate.by_worker(1):
                    await client.send(asked(key, "/v1/messages", stream=True))
                    status, _, body = await client.answer()
                    assert (status, body) == (200, OPENING + WORD + END + STOP)
                rows = await gate.rows(2)
                assert {row["dialect"] for row in rows} == {"anthropic"}
                assert [(row["prompt_tokens"], row["completion_tokens"]) for row in rows] == [(7, 3)] * 2

    uvloop.run(main())


def test_a_light_user_at_one_worker_passes_an_abuser_at_the_other(tmp_path: Path) -> None:
    """S: one fair queue. The abuser's 40 waiting requests came first and are of another worker."""
    counted = Counted(0.03)

    async def main() -> None:
        async with Engine(counted.answer) as engine:
            heavy, light = await keys(tmp_path, "heavy", "light")
            async with crew(tmp_path, engine, slots=1) as gate:
                one, two = await gate.by_worker(40)
                flood = [asyncio.ensure_future(ask(client, heavy, user="heavy")) for client in one]
                await gate.until(lambda stats: stats["scheduler"]["queued"] >= 30)
                began = counted.total
                queue = await gate_queue(two[1], heavy)
                assert len(queue) >= 25
                assert sorted(row["position"] for row in queue)[0] >= 0
                assert await ask(two[0], light, user="light") == 200
                assert counted.order.index("light") - began < 8
                async with asyncio.timeout(START):
                    assert set(await asyncio.gather(*flood)) == {200}

    uvloop.run(main())


async def gate_queue(client: Client, key: str) -> list[dict[str, Any]]:
    """`GET /api/queue` at one worker shows what waits at the other."""
    await client.send(f"GET /api/queue HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
    return list(json.loads((await client.answer())[2])["waiting"])


def test_a_killed_worker_frees_its_slots_at_once_and_comes_back(tmp_path: Path) -> None:
    """S, U3: who waits at the other worker is served; what ran is in the audit as interrupted, once."""
    held = Held()

    async def main() -> None:
        async with Engine(held.answer) as engine:
            (key,) = await keys(tmp_path, "u")
            async with crew(tmp_path, engine, slots=2, scheduling={"queue_timeout": 60}) as gate:
                one, two = await gate.by_worker(3)
                for client in one[:2]:
                    await client.send(asked(key, stream=True))
                    assert (await client.head())[0] == 200
                waiting = two[0]
                await waiting.send(asked(key, stream=True))
                stats = await gate.until(lambda stats: stats["scheduler"]["queued"] == 1)
                counted = await gate.metrics()
                victim = worker_of(one[0], gate.pids(stats))
                os.kill(victim, signal.SIGKILL)
                assert (await waiting.head())[0] == 200
                held.gate.set()
                assert b"[DONE]" in b"".join([part async for part in waiting.chunks()])
                stats = await gate.until(lambda stats: [worker["up"] for worker in stats["workers"]] == [True, True])
                assert victim not in gate.pids(stats)
                assert sum(worker["restarts"] for worker in stats["workers"]) == 1
                assert stats["scheduler"]["running"] == 0
                assert (await gate.metrics())[HEALTHZ] >= counted[HEALTHZ] >= 6  # counters never fall
                rows = await gate.rows(3)
                assert sorted(row["outcome"] for row in rows) == ["done", "interrupted", "interrupted"]
                assert await ask((await gate.by_worker(1))[0][0], key, stream=True) == 200

    uvloop.run(main())


def worker_of(client: Client, pids: list[int]) -> int:
    """Which process has the other end of this connection."""
    port = client.writer.get_extra_info("sockname")[1]
    for pid in pids:
        table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
        inodes = {row.split()[9] for row in table if int(row.split()[2].split(":")[1], 16) == port}
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                name = file.readlink().name
                if name.startswith("socket:[") and name[8:-1] in inodes:
                    return pid
    raise AssertionError("no worker has this connection")


def test_limits_hold_over_workers(tmp_path: Path) -> None:
    """L1, L2: a burst of requests, open requests, and a budget, asked for at both workers at once."""
    counted = Counted()

    async def main() -> None:
        async with Engine(counted.answer) as engine:
            (rated,) = await keys(tmp_path, "rated", limits=Limits(requests_per_minute=1, burst=7))
            store = await open_store(str(tmp_path / "fairgate.db"))
            owner = await store.tenant("t")
            assert owner is not None
            spender = await create_user(store, owner, "spender")
            limits = Limits(concurrent=3, tokens_total=1000)
            bound = (await create_key(store, spender, KeyTerms(limits=limits), FAST_HASH))[1]
            await store.close()
            async with crew(tmp_path, engine, slots=50) as gate:
                one, two = await gate.by_worker(20)
                answers = await asyncio.gather(*(ask(client, rated) for client in [*one, *two]))
                assert answers.count(200) == 7
                assert set(answers) == {200, 429}
                counted.most = counted.total = 0

                async def spend(client: Client) -> None:
                    while True:
                        await client.send(asked(bound, max_tokens=20))
                        status, _, body = await client.answer()
                        if status == 429:
                            if json.loads(body)["error"]["code"] == "budget_exceeded":
                                return
                            await asyncio.sleep(0.01)

                async with asyncio.timeout(START):
                    await asyncio.gather(*map(spend, [*one[:4], *two[:4]]))
                assert counted.most == 3
                rows = await gate.rows(7 + counted.total, "done")
                used = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows) - 7 * 10
                assert 900 <= used <= 1000

    uvloop.run(main())


def test_drain_lets_streams_of_all_workers_end(tmp_path: Path) -> None:
    """H13"""
    held = Held()

    async def main() -> None:
        async with Engine(held.answer) as engine:
            (key,) = await keys(tmp_path, "u")
            async with crew(tmp_path, engine, slots=100) as gate:
                clients = [client for mine in await gate.by_worker(5) for client in mine]
                for client in clients:
                    await client.send(asked(key, stream=True))
                    assert (await client.head())[0] == 200
                gate.terminate()
                async with asyncio.timeout(START):
                    while await refused(gate.port) is False:
                        await asyncio.sleep(0.01)
                held.gate.set()
                for client in clients:
                    assert b"".join([part async for part in client.chunks()]) == frame("a") + frame("b") + DONE
                assert await gate.exit_code() == 0
                assert {row["outcome"] for row in await gate.rows(10)} == {"done"}

    uvloop.run(main())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    """H13: a second signal cuts; a parent that is killed takes its workers along, and their rows are written."""
    held = Held()

    async def main() -> None:
        async with Engine(held.answer) as engine:
            (key,) = await keys(tmp_path, "u")
            async with crew(tmp_path, engine, slots=100) as gate:
                pids = gate.pids(await gate.stats())
                clients = [client for mine in await gate.by_worker(2) for client in mine]
                for client in clients:
                    await client.send(asked(key, stream=True))
                    assert (await client.head())[0] == 200
                if number == signal.SIGTERM:
                    gate.terminate()
                    async with asyncio.timeout(START):
                        while await refused(gate.port) is False:
                            await asyncio.sleep(0.01)
                gate.process.send_signal(number)
                await gate.exit_code()
                async with asyncio.timeout(START):
                    while any(map(alive, pids)):
                        await asyncio.sleep(0.01)
                for client in clients:
                    with contextlib.suppress(ConnectionError):
                        assert b"[DONE]" not in await client.rest()
                assert {row["outcome"] for row in await gate.rows(4)} == {"interrupted"}

    uvloop.run(main())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_reload_reaches_all_workers_or_none(tmp_path: Path) -> None:
    """O7"""

    async def main() -> None:
        async with Engine(plain) as old, Engine(plain, ("new-model",)) as new:
            (key,) = await keys(tmp_path, "u")
            async with crew(tmp_path, old) as gate:
                file = tmp_path / "crew.yaml"
                config = json.loads(file.read_text())
                clients = [mine[0] for mine in await gate.by_worker(1)]
                broken = [{"name": "b", "url": "https://localhost:1", "engine": "openai", "ca": "/nowhere.pem"}]
                file.write_text(json.dumps({**config, "backends": broken}))
                gate.process.send_signal(signal.SIGHUP)
                async with asyncio.timeout(START):
                    while "not reloaded" not in gate.log.read_text():
                        await asyncio.sleep(0.01)
                assert [await ask(client, key) for client in clients] == [200, 200]
                for_a_restart = {"workers": 3, "store": str(tmp_path / "other.db")}
                backend = {"name": "other", "url": new.url, "engine": "openai", "slots": 3}
                file.write_text(json.dumps({**config, "backends": [backend], **for_a_restart}))
                gate.process.send_signal(signal.SIGHUP)
                await gate.until(lambda stats: [each["gate"] for each in stats["scheduler"]["gates"]] == ["other"])
                await gate.until(lambda stats: stats["backends"][0]["models"] == 1)
                for client in clients:
                    assert await ask(client, key, model="new-model") == 200
                    assert await ask(client, key) == 403
                assert '"needs_restart":["workers","store"]' in gate.log.read_text()
                victim = gate.pids(await gate.stats())[0]
                os.kill(victim, signal.SIGKILL)
                stats = await gate.until(lambda stats: [w["up"] for w in stats["workers"]] == [True, True])
                assert victim not in gate.pids(stats)
                for mine in await gate.by_worker(1):
                    assert await ask(mine[0], key, model="new-model") == 200, "the store is still that of all"

    uvloop.run(main())


def test_who_waits_at_any_worker_is_served_by_a_backend_that_a_reload_brings(tmp_path: Path) -> None:
    """O7: the grants for it come with the configuration that names it, to all workers."""

    async def main() -> None:
        async with Engine(hang) as busy, Engine(plain) as new:
            (key,) = await keys(tmp_path, "u")
            async with crew(tmp_path, busy, slots=1) as gate:
                first, *waiting = [client for mine in await gate.by_worker(6) for client in mine]
                await first.send(asked(key))
                await asyncio.wait_for(busy.chats.get(), START)
                for client in waiting:
                    await client.send(asked(key))
                await gate.until(lambda stats: stats["scheduler"]["queued"] == len(waiting))
                file = tmp_path / "crew.yaml"
                config = json.loads(file.read_text())
                brought = {"name": "new", "url": new.url, "engine": "openai", "slots": 2}
                file.write_text(json.dumps({**config, "backends": [*config["backends"], brought]}))
                gate.process.send_signal(signal.SIGHUP)
                async with asyncio.timeout(START):
                    assert [(await client.answer())[0] for client in waiting] == [200] * len(waiting)
                assert new.chats.qsize() == len(waiting)
                first.reset()

    uvloop.run(main())


@pytest.mark.parametrize("eject_after", [1, 2])
def test_an_engine_that_serves_is_kept_by_what_workers_tell_however_late_its_looks_come(
    tmp_path: Path, eject_after: int
) -> None:
    """R2: also where one look that fails would eject it."""
    terms = {"interval": 1.0, "timeout": 0.2, "forget": 2.0, "eject_after": eject_after}

    async def main() -> None:
        async with Engine(plain) as engine:
            (key,) = await keys(tmp_path, "u")
            async with crew(tmp_path, engine, discovery=terms) as gate:
                clients = [client for mine in await gate.by_worker(1) for client in mine]
                engine.list_after = 3600.0
                answers = set()
                async with asyncio.timeout(START):
                    while ((await gate.stats())["backends"][0]["last_seen"] or 0.0) < 6.0:
                        answers |= {await ask(client, key) for client in clients}
                    assert answers == {200}
                await gate.until(lambda stats: stats["backends"][0]["state"] == "open")
                await gate.until(lambda stats: stats["backends"][0]["models"] == 0)

    uvloop.run(main())


def test_a_worker_that_is_late_for_a_reload_gets_it_after_all(tmp_path: Path) -> None:
    """O7: it was stopped for longer than the reload waits, and shorter than what is taken for dead."""

    async def main() -> None:
        async with Engine(plain) as engine:
            (key,) = await keys(tmp_path, "u")
            async with crew(tmp_path, engine) as gate:
                file = tmp_path / "crew.yaml"
                clients = [mine[0] for mine in await gate.by_worker(1)]
                file.write_text(json.dumps({**json.loads(file.read_text()), "aliases": {"other": "m"}}))
                late = gate.pids(await gate.stats())[0]
                os.kill(late, signal.SIGSTOP)
                gate.process.send_signal(signal.SIGHUP)
                async with asyncio.timeout(START):
                    while "configuration reloaded" not in gate.log.read_text():
                        await asyncio.sleep(0.01)
                os.kill(late, signal.SIGCONT)
                async with asyncio.timeout(START):
                    for client in clients:
                        while await ask(client, key, model="other") != 200:
                            await asyncio.sleep(0.1)
                assert late in gate.pids(await gate.stats())

    uvloop.run(main())


def test_a_worker_that_dies_between_its_answer_and_the_end_of_a_reload_gets_it(tmp_path: Path) -> None:
    """O7: the process in its place has prepared nothing, so it is asked again; the other worker is late."""

    async def main() -> None:
        async with Engine(plain) as engine:
            (key,) = await keys(tmp_path, "u")
            async with crew(tmp_path, engine) as gate:
                file = tmp_path / "crew.yaml"
                file.write_text(json.dumps({**json.loads(file.read_text()), "aliases": {"other": "m"}}))
                late, victim = gate.pids(await gate.stats())
                os.kill(late, signal.SIGSTOP)
                gate.process.send_signal(signal.SIGHUP)
                for _ in range(2):
                    await gate.stats()  # a second each, for the stopped one; the other answers in order
                os.kill(victim, signal.SIGKILL)
                await gate.until(lambda stats: victim not in gate.pids(stats) and stats["workers"][1]["up"])
                os.kill(late, signal.SIGCONT)
                for mine in await gate.by_worker(1):
                    async with asyncio.timeout(START):
                        while await ask(mine[0], key, model="other") != 200:
                            await asyncio.sleep(0.1)

    uvloop.run(main())


def test_a_worker_that_starts_during_a_reload_gets_it(tmp_path: Path) -> None:
    """O7: it was welcomed with the configuration of before, and is told the new one once it listens."""

    async def main() -> None:
        async with Engine(plain) as old, Engine(plain, ("new-model",)) as new:
            (key,) = await keys(tmp_path, "u")
            async with crew(tmp_path, old) as gate:
                victim, _ = before = gate.pids(await gate.stats())
                os.kill(victim, signal.SIGKILL)
                stats = await gate.until(lambda stats: set(gate.pids(stats)) - {0, *before})
                (fresh,) = set(gate.pids(stats)) - set(before)
                os.kill(fresh, signal.SIGSTOP)  # it is slow
                file = tmp_path / "crew.yaml"
                backend = {"name": "other", "url": new.url, "engine": "openai", "slots": 3}
                file.write_text(json.dumps({**json.loads(file.read_text()), "backends": [backend]}))
                gate.process.send_signal(signal.SIGHUP)
                await gate.until(lambda stats: [each["gate"] for each in stats["scheduler"]["gates"]] == ["other"])
                os.kill(fresh, signal.SIGCONT)
                stats = await gate.until(lambda stats: [w["up"] for w in stats["workers"]] == [True, True])
                for mine in await gate.by_worker(1):
                    async with asyncio.timeout(START):
                        while await ask(mine[0], key, model="new-model") == 403:
                            await asyncio.sleep(0.01)
                stats = await gate.stats()
                assert fresh in gate.pids(stats)
                assert sum(worker["restarts"] for worker in stats["workers"]) == 1
                assert "Traceback" not in gate.log.read_text()

    uvloop.run(main())


def test_a_revoked_key_is_soon_refused_by_all_workers(tmp_path: Path) -> None:
    """K3: each follows the store's changes. A second is enough; a busy machine gets more, far below the minute that
    a verified key would live."""

    async def main() -> None:
        async with Engine(plain) as engine:
            (key,) = await keys(tmp_path, "u")
            async with crew(tmp_path, engine) as gate:
                clients = [mine[0] for mine in await gate.by_worker(1)]
                assert [await ask(client, key) for client in clients] == [200, 200]
                store = await open_store(str(tmp_path / "fairgate.db"))
                (stored,) = await store.keys()
                await store.revoke_key(stored.id, 1)
                await store.close()
                async with asyncio.timeout(10.0):
                    for client in clients:
                        while await ask(client, key) != 401:
                            await asyncio.sleep(0.02)

    uvloop.run(main())


def test_tokens_of_an_issuer_are_taken_by_all_workers(tmp_path: Path) -> None:
    """K9, K3: each verifies by itself; a user that is disabled is soon refused by all; a reload reaches all."""

    async def main() -> None:
        issuer = Issuer(RSA)
        await keys(tmp_path, "ann")
        async with running(issuer), Engine(plain) as engine:
            section = {"issuer": NAME, "audience": AUDIENCE, "jwks": issuer.address, "tenant": "t"}
            async with crew(tmp_path, engine, jwt=section) as gate:
                token = RSA.sign(claims()).decode()
                both = [one for (one,) in await gate.by_worker(1)]

                async def statuses() -> list[int]:
                    for client in both:
                        await client.send(asked(token))
                    return [(await client.answer())[0] for client in both]

                assert await statuses() == [200, 200]
                assert issuer.fetches == 2
                assert (await gate.metrics())["fairgate_token_checks_total",] == 2
                assert len({row["key"] for row in await gate.rows(2)}) == 1
                store = await open_store(str(tmp_path / "fairgate.db"))
                tenant = await store.tenant("t")
                assert tenant is not None
                user = await store.user(tenant.id, "ann")
                assert user is not None
                await store.disable_user(user.id, 1)
                await store.close()
                async with asyncio.timeout(2):
                    while await statuses() != [401, 401]:
                        await asyncio.sleep(0.05)

    uvloop.run(main())


def test_failed_authentications_count_over_workers(tmp_path: Path) -> None:
    """K4: an address has one allowance, wherever the kernel takes it."""

    async def main() -> None:
        async with Engine(plain) as engine:
            await keys(tmp_path, "u")
            identity = {"argon2_time_cost": 1, "argon2_memory_kib": 8, "failures_per_minute": 4}
            async with crew(tmp_path, engine, identity=identity) as gate:
                one, two = (mine[0] for mine in await gate.by_worker(1))
                assert [await ask(one, f"fg_wrong{n}") for n in range(4)] == [401] * 4
                for _ in range(2):  # what was said before a question is heard before its answer
                    await gate.stats()
                assert await ask(two, "fg_wrong") == 429

    uvloop.run(main())


class Installed(Crew):
    """Run by the installed command."""

    command = (str(Path(sys.executable).with_name("fairgate")),)


def test_workers_are_not_looked_for_in_the_working_directory(tmp_path: Path) -> None:
    """The installed command, run where somebody left a package of the same name."""
    if not Path(Installed.command[0]).exists():
        pytest.skip("the package is not installed")
    Installed.directory = tmp_path
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "__init__.py").write_text("raise SystemExit('not this one')")

    async def main() -> None:
        async with Engine(plain) as engine:
            await keys(tmp_path, "u")
            gate = Installed(tmp_path, engine.url)
            async with ended(gate):
                await gate.ready()

    uvloop.run(main())


def test_a_worker_that_cannot_start_is_one_sentence(tmp_path: Path) -> None:
    """Nothing listens when one of them does not; the address of somebody else is not shared by accident."""

    async def main() -> None:
        async with Engine(stream) as engine:
            await keys(tmp_path, "u")
            taken = tmp_path / "spool-crew-1"
            taken.write_text("not a directory")
            gate = Crew(tmp_path, engine.url)
            async with ended(gate):
                assert await gate.exit_code() == 1
                assert "worker 1 could not start" in gate.log.read_text().splitlines()[-1]
            taken.unlink()
            gate = Crew(tmp_path, engine.url, tls={"cert": "none.pem", "key": "none.pem"})
            async with ended(gate):
                assert await gate.exit_code() == 1
                last = gate.log.read_text().splitlines()[-1]
                assert re.search("worker [01] could not start: tls: .*none.pem: No such file", last)
                assert "Traceback" not in gate.log.read_text()
            async with crew(tmp_path, engine) as first:
                second = Crew(
                    tmp_path, engine.url, listen=f"127.0.0.1:{first.port}", audit={"spool": str(tmp_path / "s")}
                )
                async with ended(second):
                    assert await second.exit_code() == 1
                    assert "ddress already in use" in second.log.read_text()

    uvloop.run(main())


def test_spools_of_workers_there_are_no_more_of_are_delivered(tmp_path: Path) -> None:
    """U3: killed with rows in two spools, started again with one process."""

    async def slow(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(frame("a")))
        await reader.read(1)

    async def main() -> None:
        async with Engine(slow) as engine:
            (key,) = await keys(tmp_path, "u")
            gate = Crew(tmp_path, engine.url, slots=10)
            async with ended(gate):
                await gate.ready()
                pids = gate.pids(await gate.stats())
                for client in [mine[0] for mine in await gate.by_worker(1)]:
                    await client.send(asked(key, stream=True))
                    assert (await client.head())[0] == 200
                for blow in (signal.SIGSTOP, signal.SIGKILL):  # all at once: a worker left alone would end its requests
                    for pid in (gate.process.pid, *pids):
                        os.kill(pid, blow)
                await gate.exit_code()
            alone = Gate(tmp_path, "crew", free_port(), engine.url)
            async with ended(alone):
                await alone.ready()
                rows = await gate.rows(2)
                assert [row["outcome"] for row in rows] == ["interrupted"] * 2
                assert len({row["writer"] for row in rows}) == 2

    uvloop.run(main())
