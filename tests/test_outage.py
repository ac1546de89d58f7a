"""The table of docs/operations.md, what is down x what happens, on a whole gateway and real servers: nothing that
cannot be checked is allowed, nobody waits long, and all comes back without a restart (K5, L3, U3)."""

import asyncio
import json
import random
import resource
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.databases import DATABASE, EMPTY, statement
from tests.load import Engine, Load, engine_section
from tests.process import GatewayProcess, fetch
from tests.proxy import Slow
from tests.servers import PostgreSQL, Redis
from tests.services.keyring import connection
from tests.services.limited import command
from tests.site import KINDS, LEASE, RECOVERY, SETTINGS, Site, delivered

pytestmark = pytest.mark.xdist_group("outage")


class World(Site, kw_only=True):
    """A site with its servers behind proxies, that serves one test after the other. Its loop turns in `run` only."""

    runner: asyncio.Runner
    slow: dict[str, Slow]

    def run(self, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.turns += 1
        self.runner.run(body())


@pytest.fixture(scope="module")
def world(postgresql: PostgreSQL, redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Started once: that it serves each test in turn shows that nothing needs a restart."""
    owner = postgresql.url(DATABASE)
    asyncio.run(statement(owner, EMPTY))
    command(redis.port, "FLUSHALL")
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        engine = Engine(random.Random(1))

        async def start() -> World:
            slow = {"postgresql": Slow(postgresql.port), "redis": Slow(redis.port)}
            ports = {name: await stack.enter_async_context(proxy.listening()) for name, proxy in slow.items()}
            await stack.enter_async_context(engine.listening())
            store = owner.replace(str(postgresql.port), str(ports["postgresql"]))
            settings = {**SETTINGS, "store": store, "shared": f"redis://127.0.0.1:{ports['redis']}/6"}
            folder = tmp_path_factory.mktemp("outage")
            gateway = GatewayProcess(folder, {**settings, "backends": engine_section(engine)})
            await asyncio.to_thread(gateway.started)
            return World(runner=runner, gateway=gateway, engine=engine, owner=owner, slow=slow)

        made = runner.run(start())
        try:
            yield made
        finally:
            assert runner.run(asyncio.to_thread(made.gateway.stop)) == 0
            runner.run(stack.aclose())


@pytest.fixture
def servers(postgresql: PostgreSQL, redis: Redis, world: World) -> Iterator[dict[str, PostgreSQL | Redis]]:
    """Left running, whatever a test did to them."""
    yield {"postgresql": postgresql, "redis": redis}
    for name, server in (("postgresql", postgresql), ("redis", redis)):
        world.slow[name].latency = 0.0
        server.resume()
        if not server.answers():
            server.kill()
            server.start()


async def strike(world: World, server: PostgreSQL | Redis, name: str, fault: str) -> None:
    if fault == "slow":
        world.slow[name].latency = 20.0
    else:
        await asyncio.to_thread(getattr(server, fault))


async def mend(world: World, server: PostgreSQL | Redis, name: str, fault: str) -> None:
    world.slow[name].latency = 0.0
    if fault == "pause":
        server.resume()
    elif fault in ("stop", "kill"):
        await asyncio.to_thread(server.start)


DOWN = {
    "postgresql": {
        "cached": "200",
        "fresh": "503 auth_unavailable",
        "rated": "200",
        "few": "200",
        "budget": "503 limits_unavailable",
    },
    "redis": {
        "cached": "200",
        "fresh": "200",
        "rated": "503 limits_unavailable",
        "few": "503 limits_unavailable",
        "budget": "200",
    },
}
"""What is answered once the leases of before are over."""


PART = {"postgresql": "store", "redis": "shared"}
"""What readiness calls it."""


async def readiness(world: World, status: int) -> dict[str, Any]:
    """What the admin listener says once its verdict is `status`; the API's own route agrees."""
    async with asyncio.timeout(RECOVERY):
        while (said := await asyncio.to_thread(world.gateway.fetch, "/readyz"))[0] != status:
            await asyncio.sleep(0.1)
    public = await asyncio.to_thread(fetch, world.gateway.port, "/readyz")
    assert public[0] == status
    return dict(json.loads(said[1]))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", ["stop", "kill", "pause", "slow"])
@pytest.mark.parametrize("name", DOWN)
def test_what_is_down_denies_what_it_checks_and_nothing_else(
    world: World, servers: dict[str, PostgreSQL | Redis], name: str, fault: str
) -> None:
    """K5, L3, U3: never allowed unchecked, never 401, never late; the audit trail loses nothing and doubles nothing.
    O1: while it lasts, requests are better sent to a gateway that has both."""
    server, wanted = servers[name], DOWN[name]

    async def body() -> None:
        await world.provide()
        load = Load([world.gateway.port], world.keys["cached"], 4, rate=100, name=f"{name}-{fault}")
        async with load.running():
            await world.ask_all([*["budget"] * 100, *["rated"] * 100])  # much is on lease when it strikes
            await strike(world, server, name, fault)
            leased = time.monotonic() + LEASE + 0.5
            answers = await world.until(wanted)
            while time.monotonic() < leased:
                answers.append(await world.ask_all(wanted))
            for got in answers:
                for kind, said in got.items():
                    assert said in ("200", wanted[kind]), f"{kind}: only what is on lease may be spent yet"
                    assert kind != "fresh" or said == wanted["fresh"]
            await world.remains(wanted, LEASE)
            said = await readiness(world, 503)
            assert said[PART[name]].startswith("no answer for "), said
            await mend(world, server, name, fault)
            await world.until(dict.fromkeys(KINDS, "200"))
            assert (await readiness(world, 200))[PART[name]] == "ok"
        assert load.statuses().keys() == {200}, "a cached key without limits notices nothing"
        await delivered(world, load)

    world.run(body)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", DOWN)
def test_a_restart_is_over_by_itself(world: World, servers: dict[str, PostgreSQL | Redis], name: str) -> None:
    """K5, L3, U3: Redis comes back empty; both break every connection."""

    async def body() -> None:
        await world.provide()
        load = Load([world.gateway.port], world.keys["cached"], 4, rate=100, name=f"{name}-restart")
        async with load.running():
            await asyncio.to_thread(servers[name].restart)
            said = Counter(said for got in await world.until(dict.fromkeys(KINDS, "200")) for said in got.values())
        filling = {"429 rate_limit_exceeded"} if name == "redis" else set()  # as below: rates fill up from nothing
        assert said.keys() <= {"200", "503 auth_unavailable", "503 limits_unavailable", *filling}
        assert load.statuses().keys() == {200}
        await delivered(world, load)

    world.run(body)


def test_redis_that_lost_its_data_opens_no_more_than_before(world: World, servers: dict[str, Any]) -> None:
    """L3: rates fill up from nothing; open requests wait until the leases of before are over."""

    async def body() -> None:
        await world.provide()
        command(servers["redis"].port, "FLUSHALL")
        said = {said for got in await world.until(dict.fromkeys(KINDS, "200")) for said in got.values()}
        assert said <= {"200", "429 rate_limit_exceeded", "503 limits_unavailable"}

    world.run(body)


async def put_back(owner: str) -> None:
    """Empty it while a gateway writes: the two may meet in a deadlock, which PostgreSQL ends."""
    while True:
        try:
            await statement(owner, EMPTY)
            return
        except asyncpg.DeadlockDetectedError:
            continue


def test_a_database_put_back_to_an_earlier_state(world: World, servers: dict[str, PostgreSQL | Redis]) -> None:
    """K3: keys that it does not know end within a second, cached or not; keys made since work and are revoked in
    time. What tells is the number of its latest change: it is smaller than before."""

    async def body() -> None:
        await world.provide()
        async with connection(world.owner) as store:
            await store.revoke_key(world.keys["cached"][3:15], int(time.time() * 1e6))
        await world.until({"cached": "401 invalid_api_key"})
        await put_back(world.owner)
        await world.until(dict.fromkeys(KINDS, "401 invalid_api_key"))
        world.turns += 1
        await world.provide()
        async with connection(world.owner) as store:
            await store.revoke_key(world.keys["cached"][3:15], int(time.time() * 1e6))
        began = time.monotonic()
        await world.until({"cached": "401 invalid_api_key"})
        assert time.monotonic() - began < 3.0
        world.engine.ran.clear()

    world.run(body)


@pytest.mark.timeout(120)
def test_a_full_disk_under_the_spool_denies(world: World) -> None:
    """U3: a row that cannot be spooled is a check that cannot be made; with room all goes on."""

    async def body() -> None:
        await world.provide()
        size = _newest_segment(world.gateway)
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(world.gateway.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            wanted = dict.fromkeys(KINDS, "503 audit_unavailable")
            await world.until(wanted)
            await world.remains(wanted, 0.5)
        finally:
            resource.prlimit(world.gateway.pid, resource.RLIMIT_FSIZE, unlimited)
        load = Load([world.gateway.port], world.keys["cached"], 1, name="disk")
        await world.until(dict.fromkeys(KINDS, "200"))
        await delivered(world, load)

    world.run(body)


def _newest_segment(gateway: GatewayProcess) -> int:
    """The size of the file that the spool is writing."""
    return max(Path(gateway.settings["audit"]["spool"]).glob("*.log")).stat().st_size
