"""Rotation of keys, on each database (K6)."""

import asyncio

import pytest

from gateway.errors import Unauthenticated
from gateway.services import accounts
from gateway.services.accounts import DAY, HOUR, AccountError
from gateway.services.keys import KeyService
from gateway.store.base import Key, Store
from gateway.store.limits import Limits
from tests.services.keyring import CHEAP, IP, Clock, ring, service

TERMS = {
    "name": "laptop", "days": 30, "models": ("a",), "scopes": ("chat",), "cidrs": ("192.0.2.0/24",),
    "priority": "batch", "queue_timeout": 1.5, "on_behalf": True, "force_model": "a",
    "limits": Limits(requests_per_minute=7),
}  # fmt: skip
NEW = {"id", "hash", "created_at", "expires_at", "last_used_at"}


async def stored(store: Store, key_id: str) -> Key:
    return next(key for key in await store.keys() if key.id == key_id)


async def works(keys: KeyService, token: bytes) -> bool:
    try:
        await keys.verify(token, IP)
    except Unauthenticated:
        return False
    return True


def test_the_new_key_has_the_terms_of_the_old_one(store_url: str) -> None:
    """K6: whatever a key may do survives its rotation; how long it lives counts from now."""

    async def body() -> None:
        async with ring(store_url) as made:
            first, token = await made.another(**TERMS)
            await made.store.touch_keys({first.id: 5})
            began = accounts.now_us()
            old, new, text = await accounts.rotate_key(made.store, first.id, 2.0, CHEAP)
            assert text.encode() != token
            kept = [name for name in Key.__struct_fields__ if name not in NEW]
            assert [getattr(new, name) for name in kept] == [getattr(first, name) for name in kept]
            assert new.expires_at == new.created_at + 30 * DAY
            assert began + 2 * HOUR <= (old.expires_at or 0) <= accounts.now_us() + 2 * HOUR
            assert (await stored(made.store, first.id)).expires_at == old.expires_at
            assert await stored(made.store, new.id) == new

    asyncio.run(body())


def test_both_keys_work_until_the_overlap_ends(store_url: str) -> None:
    """K6, K3: a gateway that holds the old key in its cache stops taking it at the end of the overlap."""

    async def body() -> None:
        wall = Clock(accounts.now_us() / 1e6)
        async with ring(store_url) as made, service(made.store, wall=wall) as keys:
            assert await works(keys, made.token)
            _, _, text = await accounts.rotate_key(made.store, made.key.id, 1.0, CHEAP)
            keys.invalidate()
            assert await works(keys, made.token)
            assert await works(keys, text.encode())
            wall.now += 3700
            assert not await works(keys, made.token)
            assert await works(keys, text.encode())

    asyncio.run(body())


def test_rotation_never_lengthens_the_life_of_the_old_key(store_url: str) -> None:
    async def body() -> None:
        async with ring(store_url) as made:
            first, _ = await made.another(days=1)
            await accounts.rotate_key(made.store, first.id, 48.0, CHEAP)
            assert (await stored(made.store, first.id)).expires_at == first.expires_at
            forever, _ = await made.another(days=None)
            old, new, _ = await accounts.rotate_key(made.store, forever.id, 0, CHEAP)
            assert new.expires_at is None
            assert (await stored(made.store, forever.id)).expires_at == old.expires_at == new.created_at

    asyncio.run(body())


@pytest.mark.parametrize("days", [30, None])
def test_a_second_successor_lives_as_long_as_the_first(store_url: str, days: int | None) -> None:
    """K6: the text of the first was lost, say. The overlap that the old key has left is not what it was to live."""

    async def body() -> None:
        async with ring(store_url) as made:
            first, _ = await made.another(days=days)
            for _ in range(2):
                _, new, _ = await accounts.rotate_key(made.store, first.id, 24.0, CHEAP)
                assert new.expires_at == (None if days is None else new.created_at + days * DAY)

    asyncio.run(body())


def test_a_revoked_or_unknown_key_and_a_wrong_overlap_are_refused(store_url: str) -> None:
    """K3: a revoked key does not come back by its successor."""

    async def body() -> None:
        async with ring(store_url) as made:
            for overlap in (-1.0, 90 * 24 + 1.0, float("nan")):
                with pytest.raises(AccountError, match="overlap"):
                    await accounts.rotate_key(made.store, made.key.id, overlap, CHEAP)
            with pytest.raises(AccountError, match="no key"):
                await accounts.rotate_key(made.store, "nothing", 1.0, CHEAP)
            await made.store.revoke_key(made.key.id, 1)
            with pytest.raises(AccountError, match="revoked"):
                await accounts.rotate_key(made.store, made.key.id, 1.0, CHEAP)
            assert len(await made.store.keys()) == 1
            assert not await made.store.expire_key("nothing", 1)

    asyncio.run(body())


def test_no_successor_of_a_key_that_is_revoked_meanwhile_lives(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """K3: between the look at the old key and the row of the new one."""

    async def body() -> None:
        async with ring(store_url) as made:
            add = made.store.add_key

            async def revoke_first(key: Key) -> None:
                await made.store.revoke_key(made.key.id, 1)
                await add(key)

            monkeypatch.setattr(made.store, "add_key", revoke_first)
            with pytest.raises(AccountError, match="revoked"):
                await accounts.rotate_key(made.store, made.key.id, 1.0, CHEAP)
            assert [key.revoked_at for key in await made.store.keys()].count(None) == 0

    asyncio.run(body())
