"""What every store keeps and promises, on each database (D)."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from gateway.store import StoreError, open_store
from gateway.store.base import Change, Changes, Conflict, Key, Store, Tenant, User
from gateway.store.operations import SavedUsage
from tests.services.keyring import connection

TENANT = Tenant(id="t1", name="acme", created_at=1, share=2.5, models=("llama3:8b", "ünï/x"), cidrs=("10.0.0.0/8",))
USER = User(id="u1", tenant="t1", name="ann@example.com", created_at=2, share=0.5)
KEY = Key(
    id="k1",
    user="u1",
    name="laptop",
    hash="$argon2id$x",
    created_at=3,
    expires_at=4,
    allow_all_models=False,
    models=("a",),
    scopes=("chat",),
    cidrs=("::/0",),
    priority="batch",
    queue_timeout=1.5,
    on_behalf=True,
    force_model="a",
)


async def fill(store: Store) -> None:
    await store.add_tenant(TENANT)
    await store.add_user(USER)
    await store.add_key(KEY)


def test_rows_come_back_as_they_went(store_url: str) -> None:
    """D: both databases keep every field."""

    async def body() -> None:
        async with connection(store_url) as store:
            await fill(store)
            bare = Key(id="k2", user="u1", name="", hash="h", created_at=9)
            await store.add_key(bare)
        async with connection(store_url) as store:
            assert await store.tenants() == [TENANT]
            assert await store.users() == await store.users("t1") == [USER]
            assert await store.users("t2") == []
            assert await store.keys() == await store.keys(user="u1") == await store.keys(tenant="t1") == [KEY, bare]
            assert await store.keys(user="u2") == []
            chain = await store.chain("k1")
            assert chain is not None
            assert (chain.tenant, chain.user, chain.key) == (TENANT, USER, KEY)
            assert await store.chain("k9") is None

    asyncio.run(body())


def test_rows_are_found_by_id_and_name_the_id_first(store_url: str) -> None:
    async def body() -> None:
        async with connection(store_url) as store:
            await fill(store)
            await store.add_tenant(Tenant(id="t2", name="t1", created_at=1))
            await store.add_user(User(id="u2", tenant="t1", name="u1", created_at=1))
            assert await store.tenant("acme") == await store.tenant("t1") == TENANT
            assert await store.user("t1", "ann@example.com") == await store.user("t1", "u1") == USER
            assert await store.user("t2", "u1") is None
            assert await store.tenant("nobody") is None

    asyncio.run(body())


def test_names_are_taken_once_and_owners_must_exist(store_url: str) -> None:
    """K1"""

    async def body() -> None:
        async with connection(store_url) as store:
            await fill(store)
            with pytest.raises(Conflict):
                await store.add_tenant(Tenant(id="t2", name="acme", created_at=1))
            with pytest.raises(Conflict):
                await store.add_user(User(id="u2", tenant="t1", name=USER.name, created_at=1))
            with pytest.raises(Conflict):
                await store.add_user(User(id="u2", tenant="nobody", name="x", created_at=1))
            with pytest.raises(Conflict):
                await store.add_key(KEY)
            assert await store.tenants() == [TENANT]

    asyncio.run(body())


def test_changes_are_numbered_in_order(store_url: str) -> None:
    """K3: updates are told to watchers; insertions and uses are not changes."""

    async def body() -> None:
        async with connection(store_url) as store:
            await fill(store)
            await store.touch_keys({"k1": 5})
            assert await store.version() == 0
            assert await store.disable_tenant("t1", 7)
            assert await store.disable_user("u1", 8)
            assert await store.revoke_key("k1", 9)
            assert not await store.revoke_key("k9", 9)
            assert not await store.disable_user("u9", 9)
            everything = (Change("tenant", "t1"), Change("user", "u1"), Change("key", "k1"))
            assert await store.changes(0) == Changes(3, everything)
            assert await store.changes(2) == Changes(3, everything[2:])
            assert await store.changes(3) == Changes(3)
            chain = await store.chain("k1")
            assert chain is not None
            assert (chain.tenant.disabled_at, chain.user.disabled_at, chain.key.revoked_at) == (7, 8, 9)

    asyncio.run(body())


def test_a_watcher_that_is_too_late_or_ahead_is_told_to_forget_all(store_url: str) -> None:
    """K3: the log is pruned; a database may be put back to an earlier state."""

    async def body() -> None:
        async with connection(store_url) as store:
            await fill(store)
            await store.disable_tenant("t1", 1)
            await store.disable_tenant("t1", None)
            assert (await store.changes(50)) == Changes(2, complete=False)
            assert not (await store.changes(-5)).complete

    asyncio.run(body())


def test_parallel_changes_leave_no_gap(store_url: str) -> None:
    """K3: whoever saw version n has seen all before it, whichever transaction committed first."""

    async def body() -> None:
        async with contextlib.AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(connection(store_url)) for _ in range(3)]
            await fill(stores[0])
            seen: list[Change] = []
            version = 0

            async def watch() -> None:
                nonlocal version
                while version < 60:
                    changes = await stores[0].changes(version)
                    assert changes.complete
                    assert changes.version == version + len(changes.items)
                    version = changes.version
                    seen.extend(changes.items)

            writes = [stores[n % 3].disable_tenant("t1", n) for n in range(60)]
            async with asyncio.timeout(30):
                await asyncio.gather(watch(), *writes)
            assert len(seen) == 60

    asyncio.run(body())


def test_revoking_again_keeps_the_first_time(store_url: str) -> None:
    async def body() -> None:
        async with connection(store_url) as store:
            await fill(store)
            await store.revoke_key("k1", 10)
            await store.revoke_key("k1", 20)
            assert (await store.keys())[0].revoked_at == 10

    asyncio.run(body())


def test_last_use_never_moves_backwards(store_url: str) -> None:
    """K6: batches of several gateways arrive in any order."""

    async def body() -> None:
        async with connection(store_url) as store:
            await fill(store)
            await store.add_key(Key(id="k2", user="u1", name="", hash="", created_at=4))
            await store.touch_keys({"k1": 30, "k2": 5})
            await store.touch_keys({"k1": 20})
            await store.touch_keys({})
            assert [key.last_used_at for key in await store.keys()] == [30, 5]

    asyncio.run(body())


def test_a_key_that_is_not_there_keeps_no_other_ones_last_use(store_url: str) -> None:
    """K6: a batch may name a key that a database put back does not have."""

    async def body() -> None:
        async with connection(store_url) as store:
            await fill(store)
            await store.touch_keys({"a": 1, "k1": 30, "z": 1})
            assert [key.last_used_at for key in await store.keys()] == [30]

    asyncio.run(body())


def test_a_change_wakes_the_watchers_of_another_connection(store_url: str) -> None:
    """K3: within a second."""

    async def body() -> None:
        async with connection(store_url) as store, connection(store_url) as elsewhere:
            await fill(store)
            await elsewhere.wait_change(0.1)
            await store.disable_user("u1", 1)
            began = time.monotonic()
            while not (await elsewhere.changes(0)).items:
                await elsewhere.wait_change(0.5)
            assert time.monotonic() - began < 1.0

    asyncio.run(body())


def test_a_connection_that_could_not_listen_is_made_anew(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """K3: it would be open, and hear nothing."""
    listen = asyncpg.Connection.add_listener
    failures = [TimeoutError()]

    async def fails_once(self: Any, *given: Any) -> None:
        if failures:
            raise failures.pop()
        await listen(self, *given)

    monkeypatch.setattr(asyncpg.Connection, "add_listener", fails_once)

    async def body() -> None:
        async with connection(postgresql_url) as store, connection(postgresql_url) as elsewhere:
            await fill(store)
            for _ in range(3):  # without a listener, with a new one, and until a notification
                await elsewhere.wait_change(0.1)
            began = time.monotonic()
            waiting = asyncio.ensure_future(elsewhere.wait_change(10.0))
            await store.disable_user("u1", 1)
            await waiting
            assert time.monotonic() - began < 5.0

    asyncio.run(body())


def test_saved_usage_is_each_gateways_own_or_the_latest(store_url: str) -> None:
    """S: of several gateways none takes another's accounts for its own; a new one begins with what is known."""

    async def body() -> None:
        async with connection(store_url) as store:
            assert await store.saved_usage("a") is None
            for saved in (SavedUsage("a", "{}", 5), SavedUsage("b", "{}", 7), SavedUsage("a", '{"n": 1}', 6)):
                await store.save_usage(saved, oldest=0)
            assert await store.saved_usage("a") == SavedUsage("a", '{"n": 1}', 6)
            assert await store.saved_usage("new") == SavedUsage("b", "{}", 7)
            await store.save_usage(SavedUsage("c", "{}", 9), oldest=7)
            assert await store.saved_usage("a") == SavedUsage("c", "{}", 9)
            assert await store.saved_usage("b") == SavedUsage("b", "{}", 7)

    asyncio.run(body())


def test_a_closed_store_says_so(store_url: str) -> None:
    async def body() -> None:
        store = await open_store(store_url)
        await store.ping()
        await store.close()
        await store.close()
        with pytest.raises(StoreError):
            await store.ping()

    asyncio.run(body())


@pytest.mark.parametrize("url", ["mysql://localhost/x", "postgresql://127.0.0.1:1/x", "/nowhere/at/all.db"])
def test_what_cannot_be_opened_is_a_store_error(url: str) -> None:
    with pytest.raises(StoreError):
        asyncio.run(open_store(url))


def test_a_store_error_names_no_password() -> None:
    """O3"""
    with pytest.raises(StoreError) as failed:
        asyncio.run(open_store("postgresql://owner:hunter2@127.0.0.1:1/x"))
    assert "hunter2" not in str(failed.value)


def test_sqlite_urls_name_files(tmp_path: Path) -> None:
    asyncio.run(_open_and_close(f"sqlite:///{tmp_path / 'x.db'}"))
    assert (tmp_path / "x.db").exists()


async def _open_and_close(url: str) -> None:
    await (await open_store(url)).close()


def test_two_gateways_that_used_the_same_keys_do_not_wait_for_each_other(postgresql_url: str) -> None:
    """K3, K6: a deadlock would last a second, in which no revocation is heard."""

    async def body() -> None:
        async with connection(postgresql_url) as one, connection(postgresql_url) as two:
            await fill(one)
            await one.add_key(msgspec.structs.replace(KEY, id="k2"))
            await one.touch_keys({"k1": 1, "k2": 1})
            third = await asyncpg.connect(postgresql_url)
            hold = third.transaction()
            await hold.start()
            await third.execute("SELECT * FROM key_use WHERE \"key\" = 'k2' FOR UPDATE")
            later = asyncio.ensure_future(two.touch_keys({"k2": 3, "k1": 3}))
            await waiting(third, 1)
            sooner = asyncio.ensure_future(one.touch_keys({"k1": 2, "k2": 2}))
            await waiting(third, 2)
            await hold.rollback()
            await third.close()
            await asyncio.gather(sooner, later)
            assert [key.last_used_at for key in await one.keys()] == [3, 3]

    asyncio.run(body())


async def waiting(watcher: "asyncpg.Connection[asyncpg.Record]", count: int) -> None:
    """Until so many connections wait for another."""
    async with asyncio.timeout(10):
        while await watcher.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < count:
            await asyncio.sleep(0.005)
