"""Identity and audit while a real PostgreSQL is stopped, paused, killed and restarted (K5, U3)."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from gateway.errors import AuthUnavailable, Unauthenticated
from gateway.services.audit import AuditService
from gateway.services.keys import KeyService
from gateway.services.principal import Principal
from gateway.store import StoreError
from tests.servers import PostgreSQL
from tests.services.keyring import CHEAP, IP, Ring, connection, ring, service
from tests.services.test_audit import config, record, running, stored, until
from tests.services.test_trail import verified

IMPATIENT = msgspec.structs.replace(CHEAP, store_timeout=0.5)


@pytest.fixture
def server(postgresql: PostgreSQL) -> Iterator[PostgreSQL]:
    """Left running, whatever the test did to it."""
    yield postgresql
    postgresql.resume()
    if not postgresql.answers():
        postgresql.kill()
        postgresql.start()


async def answer(keys: KeyService, token: bytes) -> Principal:
    grant = keys.lookup(token, IP)
    return grant.principal if grant is not None else await keys.verify(token, IP)


async def in_thread(work: Callable[[], None]) -> None:
    """Servers start and stop while the loop runs on."""
    await asyncio.get_running_loop().run_in_executor(None, work)


async def recovered(keys: KeyService, token: bytes) -> None:
    """Until the key is verified again, without anything being restarted on our side."""
    async with asyncio.timeout(20):
        while True:
            try:
                await answer(keys, token)
                return
            except AuthUnavailable:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def two_keys(url: str) -> AsyncIterator[tuple[Ring, KeyService, bytes]]:
    """A service that has verified the ring's key, and one more key it has not."""
    async with ring(url) as it, service(it.store, IMPATIENT) as keys:
        _, fresh = await it.another()
        await keys.verify(it.token, IP)
        yield it, keys, fresh


def test_a_stopped_database_denies_what_is_not_cached_and_recovers(postgresql_url: str, server: PostgreSQL) -> None:
    """K5: 503, never 401, never allowed."""

    async def body() -> None:
        async with two_keys(postgresql_url) as (it, keys, fresh):
            await in_thread(server.stop)
            assert (await answer(keys, it.token)).key == it.key.id
            for _ in range(3):
                with pytest.raises(AuthUnavailable):
                    await answer(keys, fresh)
            await in_thread(server.start)
            await recovered(keys, fresh)

    asyncio.run(body())


def test_a_silent_database_denies_in_time_and_recovers(postgresql_url: str, server: PostgreSQL) -> None:
    """K5: SIGSTOP leaves connections open; a deadline ends the wait."""

    async def body() -> None:
        async with two_keys(postgresql_url) as (it, keys, fresh):
            server.pause()
            began = time.monotonic()
            with pytest.raises(AuthUnavailable):
                await answer(keys, fresh)
            assert time.monotonic() - began < 3.0
            assert (await answer(keys, it.token)).key == it.key.id
            server.resume()
            await recovered(keys, fresh)

    asyncio.run(body())


@pytest.mark.parametrize("how", ["restart", "pause"])
def test_revocation_is_heard_after_the_database_was_away(postgresql_url: str, server: PostgreSQL, how: str) -> None:
    """K3: the listening connection is made anew; what was missed meanwhile is read."""

    async def body() -> None:
        async with two_keys(postgresql_url) as (it, keys, fresh):
            if how == "restart":
                await in_thread(server.restart)
            else:
                server.pause()
                await asyncio.sleep(1.0)
                server.resume()
            await recovered(keys, fresh)
            async with connection(postgresql_url) as elsewhere:
                await elsewhere.revoke_key(it.key.id, 1)
            async with asyncio.timeout(10):
                while True:
                    try:
                        await answer(keys, it.token)
                    except Unauthenticated:
                        return
                    await asyncio.sleep(0.02)

    asyncio.run(body())


@pytest.mark.parametrize("fault", ["stop", "kill", "pause"])
def test_rows_written_while_the_database_is_away_arrive_once(
    postgresql_url: str, server: PostgreSQL, tmp_path: Path, fault: str
) -> None:
    """U3: 0 lost, 0 twice, the chain whole; the fault strikes in the middle of batches."""

    async def body() -> int:
        async with connection(postgresql_url) as store:
            async with running(store, config(tmp_path, batch_rows=20)) as service_:
                count = await strike(service_, server, fault)
                await until(lambda: service_.stats().pending == 0, 60)
            names = [row.id for row in await stored(store)]
            assert names == [f"r{number}" for number in range(count)]
            return count

    count = asyncio.run(body())
    chain = verified(postgresql_url)
    assert (chain.rows, chain.broken) == (count, None)


async def strike(service_: AuditService, server: PostgreSQL, fault: str) -> int:
    """Rows all the time, a fault among them -> how many rows."""
    count = 0
    stop = asyncio.Event()

    async def put() -> None:
        nonlocal count
        while not stop.is_set():
            for _ in range(10):
                service_.put(record(f"r{count}"))
                count += 1
            await asyncio.sleep(0.005)

    putting = asyncio.ensure_future(put())
    await until(lambda: service_.stats().written > 50)
    await in_thread(getattr(server, fault))
    await asyncio.sleep(0.3)
    await in_thread(server.resume if fault == "pause" else server.start)
    written = service_.stats().written
    await until(lambda: service_.stats().written > written, 60)
    stop.set()
    await putting
    return count


def test_a_database_that_is_away_at_the_start_is_an_error(postgresql_url: str, server: PostgreSQL) -> None:
    """K5: a gateway does not begin to serve what it cannot check."""
    server.stop()

    async def body() -> None:
        async with connection(postgresql_url):
            pass

    with pytest.raises(StoreError):
        asyncio.run(body())
