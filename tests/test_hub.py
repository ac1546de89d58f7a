"""In which order the scheduler hears what changed."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import uvloop
from anyio.abc import TaskGroup

from gateway import config as cfg
from gateway.hub import LocalHub
from gateway.store import open_store
from scheduler.aio import Lease, Waiter
from scheduler.model import Ticket
from tests.flow.engine import Engine, plain

BOTH = ("x", "y")


def backend(name: str, engine: Engine, model: str, slots: int) -> cfg.Backend:
    return cfg.Backend(name=name, url=engine.url, engine="openai", models=[model], slots=slots)


@asynccontextmanager
async def started(config: cfg.Config, home: Path) -> AsyncIterator[tuple[LocalHub, TaskGroup]]:
    """A hub on a store of its own, and the group for what it runs; all of it has ended afterwards."""
    store = await open_store(str(home / "fairgate.db"))
    hub = LocalHub(config, store, lambda topology: None)
    try:
        async with anyio.create_task_group() as group:
            await hub.start()
            yield hub, group
            group.cancel_scope.cancel()
    finally:
        await hub.close()
        await store.close()


def test_an_engine_with_another_model_is_not_for_who_waits_for_the_one_it_had(tmp_path: Path) -> None:
    """It has more slots from the same moment on. Who waits for its new model, or for what it leaves, gets them."""

    async def main() -> None:
        async with Engine(plain, BOTH) as one, Engine(plain, BOTH) as two:
            before = cfg.Config(backends=[backend("a", one, "x", 1), backend("b", two, "x", 1)])
            after = cfg.Config(backends=[backend("a", one, "y", 4), backend("b", two, "x", 2)])
            async with started(before, tmp_path) as (hub, group):
                hub.run(group)
                await hub.backends.looked()
                await moved(hub, before, after)

    async def moved(hub: LocalHub, before: cfg.Config, after: cfg.Config) -> None:
        _, adopt = hub.prepare(before)
        adopt()
        held = [hub.scheduler.submit(Ticket("x", "t", "u")) for _ in range(2)]
        assert sorted(lease.gate for lease in held if isinstance(lease, Lease)) == ["a", "b"]
        waiting = [hub.scheduler.submit(Ticket("x", "t", f"u{n}")) for n in range(3)]
        _, adopt = hub.prepare(after)
        adopt()
        granted = [w.future.result().gate for w in waiting if isinstance(w, Waiter) and w.future.done()]
        assert granted == ["b"]
        await hub.backends.looked()
        new = hub.scheduler.submit(Ticket("y", "t", "u"))
        assert isinstance(new, Lease)
        assert new.gate == "a"

    bounded(main())


def test_what_was_seen_while_a_configuration_was_prepared_stays_when_it_is_put_in_force(tmp_path: Path) -> None:
    """Workers may take seconds to prepare theirs: who began to wait for a new model meanwhile goes on waiting."""

    async def main() -> None:
        async with Engine(plain, BOTH) as engine:
            config = cfg.Config(backends=[backend("a", engine, "x", 1)])
            async with started(config, tmp_path) as (hub, group):
                await prepared(hub, group, config)

    async def prepared(hub: LocalHub, group: TaskGroup, config: cfg.Config) -> None:
        _, adopt = hub.prepare(config)
        await hub.backends.refresh()
        held, waiting = (hub.scheduler.submit(Ticket("x", "t", "u")) for _ in range(2))
        assert isinstance(held, Lease)
        assert isinstance(waiting, Waiter)
        hub.run(group)
        adopt()
        assert not waiting.future.done()
        held.release(1.0)
        assert waiting.future.result().gate == "a"

    bounded(main())


def bounded(main: Coroutine[None, None, None]) -> None:
    async def within() -> None:
        async with asyncio.timeout(30):
            await main

    uvloop.run(within())
