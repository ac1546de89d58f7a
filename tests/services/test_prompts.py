"""Prompts of keys that opted in (U5): nothing of anybody else, redacted or not at all, bounded, and gone in time."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway import loading
from gateway.config import ConfigError, Prompts
from gateway.services.principal import Principal
from gateway.services.prompts import BATCH, DAY, SWEEP_SECONDS, PromptService
from gateway.store.base import Store, StoreError
from gateway.store.prompts import Prompt
from tests.flow.engine import Engine, plain
from tests.gateway import chat, gateway
from tests.services.keyring import Clock, connection
from tests.wire import WAIT

WHO = Principal("t", "u", "k", prompt_days=2)
SECRET = "my-card-is-4711"

HOOKS = """
def hide(body):
    return body.replace(b"4711", b"****")

def text(body):
    return "n\\u00f6"

def broken(body):
    raise ValueError("cannot redact " + body.decode())

def nothing(body):
    return None

number = 5
"""


@pytest.fixture
def hooks(tmp_path: Path) -> Iterator[str]:
    """The name of an importable module of redactions."""
    name = "redactions_of_a_test"
    (tmp_path / f"{name}.py").write_text(HOOKS)
    sys.path.insert(0, str(tmp_path))
    yield name
    sys.path.remove(str(tmp_path))
    sys.modules.pop(name, None)


@asynccontextmanager
async def running(store: Any, clock: Clock | None = None, **settings: Any) -> AsyncIterator[PromptService]:
    service = PromptService(store, Prompts(**settings), wall=clock or Clock())
    task = asyncio.create_task(service.run())
    try:
        yield service
    finally:
        await service.close()
        task.cancel()


async def idle(service: PromptService) -> None:
    async with asyncio.timeout(WAIT):
        while service.stats().pending_bytes:
            await asyncio.sleep(0.005)


async def bodies(store: Store, clock: Clock, key: str = "") -> list[bytes]:
    return [prompt.body for prompt in await store.prompts(key, 100, int(clock() * 1e6))]


def test_only_a_key_that_opted_in_is_kept() -> None:
    """U5: by default nothing; what is kept is what was asked, under the request's id; off again within a second."""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            (key,) = await g.store.keys()
            other = await g.add_key(user="other")
            assert (await g.ask("/v1/chat/completions", chat()))[0] == 200
            assert await g.store.set_prompt_days(key.id, 3)
            g.app.keys.invalidate()
            body = json.dumps(chat(user=SECRET)).encode()
            assert (await g.ask("/v1/chat/completions", body, extra="X-Request-ID: r1\r\n"))[0] == 200
            assert (await g.ask("/v1/chat/completions", chat(), key=other))[0] == 200
            assert (await g.ask("/v1/chat/completions", chat(model="forbidden")))[0] == 403
            await idle(g.app.prompts)
            (prompt,) = await g.store.prompts("", 10, 0)
            assert (prompt.id, prompt.key, prompt.body, prompt.size) == ("r1", key.id, body, len(body))
            assert (prompt.route, prompt.model) == ("/v1/chat/completions", "m")
            assert prompt.expires_at - prompt.at == 3 * DAY
            assert g.app.prompts.stats().stored == 1
            assert await g.store.set_prompt_days(key.id, 0)
            g.app.keys.invalidate()
            assert (await g.ask("/v1/chat/completions", chat()))[0] == 200
            await idle(g.app.prompts)
            assert g.app.prompts.stats().stored == 1

    uvloop.run(main())


def test_what_is_stored_was_redacted(store_url: str, hooks: str) -> None:
    """U5"""

    async def body() -> None:
        clock = Clock()
        async with connection(store_url) as store:
            async with running(store, clock, redact=f"{hooks}:hide") as service:
                service.keep("r1", WHO, "/x", "m", SECRET.encode())
            async with running(store, clock, redact=f"{hooks}:text") as service:
                service.keep("r2", WHO, "/x", "m", b"x")
            assert await bodies(store, clock) == [b"my-card-is-****", "n\u00f6".encode()]

    asyncio.run(body())


@pytest.mark.parametrize("function", ["broken", "nothing"])
def test_a_redaction_that_fails_stores_nothing_and_says_nothing(
    store_url: str, hooks: str, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    """U5: fail closed; the exception quotes the prompt, so its text is not logged. The others are kept."""

    async def body() -> None:
        clock = Clock()
        async with connection(store_url) as store:
            async with running(store, clock, redact=f"{hooks}:{function}") as service:
                service.keep("r1", WHO, "/x", "m", SECRET.encode())
                await idle(service)
                assert (service.stats().stored, service.stats().redaction_failed) == (0, 1)
            assert await bodies(store, clock) == []

    asyncio.run(body())
    assert "redact failed" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("name", ["no_such_module:f", "{hooks}:missing", "{hooks}:number"])
def test_a_redaction_that_cannot_be_had_does_not_start(name: str, hooks: str, tmp_path: Path) -> None:
    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            with pytest.raises(ConfigError, match="redact"):
                PromptService(store, Prompts(redact=name.format(hooks=hooks)))

    asyncio.run(body())


def test_a_redaction_is_named_as_module_and_function() -> None:
    with pytest.raises(ConfigError, match="redact"):
        loading.parse("prompts: {redact: just_a_word}")


def test_a_long_prompt_is_cut_after_the_redaction(store_url: str, hooks: str) -> None:
    """U5: cutting first could leave half of a secret that the redaction does not know."""

    async def body() -> None:
        clock = Clock()
        async with connection(store_url) as store:
            async with running(store, clock, redact=f"{hooks}:hide", max_bytes=1024) as service:
                service.keep("r", WHO, "/x", "m", b"x" * 1022 + b"4711" + b"y" * 5000)
            (prompt,) = await store.prompt("r", 0)
            assert (prompt.body, prompt.size) == (b"x" * 1022 + b"**", 6026)

    asyncio.run(body())


def test_a_prompt_is_gone_when_its_days_are_over(store_url: str) -> None:
    """U5: for readers at once, from the database at the next sweep."""

    async def body() -> None:
        clock = Clock()
        async with connection(store_url) as store:
            async with running(store, clock) as service:
                service.keep("r", WHO, "/x", "m", b"body")
                await idle(service)
            assert await bodies(store, clock) == [b"body"]
            clock.now += 2 * 86_400
            assert await bodies(store, clock) == await store.prompt("r", int(clock() * 1e6)) == []
            assert len(await store.prompts("", 9, 0)) == 1
            async with running(store, clock), asyncio.timeout(WAIT):
                while await store.prompts("", 9, 0):
                    await asyncio.sleep(0.005)

    asyncio.run(body())


def test_prompts_are_deleted_by_request_key_or_altogether(store_url: str) -> None:
    async def body() -> None:
        clock = Clock()
        async with connection(store_url) as store:
            async with running(store, clock) as service:
                for n, key in enumerate("kkjjj"):
                    who = Principal("t", "u", key, prompt_days=1)
                    service.keep(f"r{n}", who, "/x", "m", b"%d" % n)
            assert await store.delete_prompts(request="r0") == 1
            assert await store.delete_prompts(request="r9") == 0
            assert await bodies(store, clock, "k") == [b"1"]
            assert await store.delete_prompts(key="j") == 3
            assert await bodies(store, clock) == [b"1"]
            assert await store.delete_prompts() == 1

    asyncio.run(body())


def test_many_prompts_are_deleted_in_steps(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """U5: no statement has more to delete than its deadline allows, whatever is kept."""
    monkeypatch.setattr("gateway.store.prompts.DELETED_AT_ONCE", 2)
    taken: list[int] = []

    async def body() -> None:
        async with connection(store_url) as store:
            execute = store._execute  # type: ignore[attr-defined]  # what a statement deletes

            async def counted(*args: Any) -> int:
                taken.append(await execute(*args))
                return taken[-1]

            for n, key in enumerate("kkkkkjjj"):
                kept = {"tenant": "t", "user": "u", "route": "/", "model": "m", "size": 1, "body": b"x"}
                await store.add_prompts([Prompt(id="r", at=n, expires_at=n + 9, key=key, **kept)])  # type: ignore[arg-type]  # the fields' types
            store._execute = counted  # type: ignore[attr-defined]  # as above
            assert [await store.delete_prompts(key="k"), await store.expire_prompts(15)] == [5, 2]
            assert [await store.delete_prompts(), await store.delete_prompts()] == [1, 0]
            assert taken == [2, 2, 1, 2, 1]

    asyncio.run(body())


def test_a_deleted_prompt_is_no_longer_in_the_file(tmp_path: Path) -> None:
    """U5: SQLite would only mark its pages as free."""
    path = tmp_path / "fairgate.db"

    async def body() -> None:
        async with connection(path) as store, running(store) as service:
            service.keep("r", WHO, "/x", "m", SECRET.encode() * 3000)
        assert SECRET.encode() in path.read_bytes()
        async with connection(path) as store:
            assert await store.delete_prompts(key="k") == 1

    asyncio.run(body())
    assert all(SECRET.encode() not in file.read_bytes() for file in tmp_path.iterdir() if file.is_file())


class Counting:
    """The real store; how many prompts each transaction wrote, and how often it was asked to delete. `meanwhile`
    happens during each transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.written: list[int] = []
        self.swept = 0
        self.meanwhile: Callable[[], object] = lambda: None

    async def add_prompts(self, prompts: Any) -> None:
        self.meanwhile()
        await self._store.add_prompts(prompts)
        self.written.append(len(prompts))

    async def expire_prompts(self, now: int) -> int:
        deleted = await self._store.expire_prompts(now)
        self.swept += 1
        return deleted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_prompts_that_come_one_by_one_are_written_together(tmp_path: Path) -> None:
    """A transaction has its sync. What comes during one waits for the next; a stop writes all of it."""

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            counting = Counting(store)
            async with running(counting) as service:

                async def writes(count: int) -> None:
                    async with asyncio.timeout(WAIT):
                        while len(counting.written) < count:
                            await asyncio.sleep(0.005)

                async with asyncio.timeout(WAIT):
                    while not counting.swept:
                        await asyncio.sleep(0.005)
                for n in range(10):
                    service.keep(f"r{n}", WHO, "/x", "m", b"body")
                    for _ in range(10):
                        await asyncio.sleep(0)
                await idle(service)
                counting.meanwhile = lambda: service.keep("during", WHO, "/x", "m", b"body")
                service.keep("before", WHO, "/x", "m", b"body")
                await writes(2)
                counting.meanwhile = lambda: None
                for n in range(5):
                    service.keep(f"after{n}", WHO, "/x", "m", b"body")
                await writes(3)
                assert counting.written == [10, 1, 6]
                for n in range(2 * BATCH + 1):
                    service.keep(f"last{n}", WHO, "/x", "m", b"body")
            assert counting.written[3:] == [BATCH, BATCH, 1]
            assert len(await store.prompts("", 1000, 0)) == sum(counting.written)

    asyncio.run(body())


def test_a_crowd_of_prompts_is_not_waited_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """U5: what would find no room soon is written at once."""
    monkeypatch.setattr("gateway.services.prompts.GATHER_SECONDS", 2 * WAIT)

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store, running(store, pending_bytes=2048) as service:
            for n in range(4):
                service.keep(f"r{n}", WHO, "/x", "m", b"x" * 1000)
                service.keep(f"s{n}", WHO, "/x", "m", b"x" * 1000)
                await idle(service)
            assert service.stats().dropped == 0

    asyncio.run(body())


def test_expired_prompts_are_deleted_whatever_the_wall_clock_does(tmp_path: Path) -> None:
    """U5: once a minute, also after it was set back by an hour, and not at every prompt after it was set forward."""

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            counting, clock, wall = Counting(store), Clock(), Clock()
            service = PromptService(counting, Prompts(), clock=clock, wall=wall)
            task = asyncio.create_task(service.run())

            async def another(name: str) -> None:
                service.keep(name, WHO, "/x", "m", b"body")
                await idle(service)

            async def swept(times: int) -> None:
                async with asyncio.timeout(WAIT):
                    while counting.swept < times:
                        await asyncio.sleep(0.005)

            await another("r1")
            await swept(1)
            wall.now -= 3600
            clock.now += SWEEP_SECONDS
            await another("r2")
            await swept(2)
            wall.now += 7200
            await another("r3")
            await another("r4")
            assert counting.swept == 2
            await service.close()
            task.cancel()

    asyncio.run(body())


class Broken:
    """The real store, which refuses prompts while it is broken and never deletes what has expired."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.broken = True
        self.refused = asyncio.Event()

    async def add_prompts(self, prompts: Any) -> None:
        if self.broken:
            self.refused.set()
            raise StoreError("broken on purpose")
        await self._store.add_prompts(prompts)

    async def expire_prompts(self, now: int) -> int:
        raise StoreError("broken on purpose")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_a_store_that_is_away_costs_bounded_memory_and_delays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """U5: what finds no room is dropped and counted; what waited is written after recovery, once."""
    monkeypatch.setattr("gateway.services.prompts._RETRY", 0.01)

    async def body() -> None:
        clock = Clock()
        async with connection(tmp_path / "x.db") as store:
            broken = Broken(store)
            async with running(broken, clock, pending_bytes=2048) as service:
                for n in range(5):
                    service.keep(f"r{n}", WHO, "/x", "m", b"%d" % n * 1000)
                async with asyncio.timeout(WAIT):
                    await broken.refused.wait()
                assert (service.stats().dropped, service.stats().pending_bytes) == (3, 2000)
                broken.broken = False
                await idle(service)
            assert await bodies(store, clock) == [b"0" * 1000, b"1" * 1000]

    asyncio.run(body())


def test_what_waits_is_written_though_nothing_can_be_deleted(tmp_path: Path) -> None:
    async def body() -> None:
        clock = Clock()
        async with connection(tmp_path / "x.db") as store:
            broken = Broken(store)
            broken.broken = False
            async with running(broken, clock) as service:
                service.keep("r", WHO, "/x", "m", b"body")
                await idle(service)
                assert await bodies(store, clock) == [b"body"]

    asyncio.run(body())


def test_a_stop_does_not_wait_for_a_store_that_is_away(tmp_path: Path) -> None:
    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            async with running(Broken(store)) as service:
                service.keep("r", WHO, "/x", "m", b"body")
            assert service.stats().dropped == 1

    asyncio.run(body())
