"""Admin actions are rows (U7), on each database: written with the change itself, by whom, without secrets."""

import asyncio
import json

import pytest

from gateway.services import accounts
from gateway.services.accounts import KeyTerms
from gateway.store.base import CHAINS_AT_ONCE, Conflict, Key, StoreError, User
from gateway.store.limits import Limits
from tests.services.keyring import CHEAP, connection


def test_every_change_of_who_may_do_what_is_a_row(store_url: str) -> None:
    """U7"""

    async def body() -> None:
        async with connection(store_url) as store:
            store.actor = "ada"
            tenant = await accounts.create_tenant(store, "acme", allow_all_models=True)
            user = await accounts.create_user(store, tenant, "ann")
            key, token = await accounts.create_key(store, user, KeyTerms(name="laptop"), CHEAP)
            _, fresh, _ = await accounts.rotate_key(store, key.id, 1.0, CHEAP)
            await store.set_limits("user", user.id, Limits(requests_per_minute=5))
            await store.set_share("tenant", tenant.id, 2.5)
            await store.set_share("user", user.id, 0.5)
            await store.set_prompt_days(key.id, 7)
            for at in (1, None):
                await store.disable_tenant(tenant.id, at)
                await store.disable_user(user.id, at)
                await store.disable_key(key.id, at)
            await store.revoke_key(key.id, 2)
            rows = await store.operations_history(None, 100)
            assert {row.actor for row in rows} == {"ada"}
            assert [(row.kind, row.id, json.loads(row.body or "")["did"]) for row in rows] == [
                ("tenant", tenant.id, "create"),
                ("user", user.id, "create"),
                ("key", key.id, "create"),
                ("key", fresh.id, "create"),
                ("key", key.id, "expire"),
                ("user", user.id, "limit"),
                ("tenant", tenant.id, "share"),
                ("user", user.id, "share"),
                ("key", key.id, "keep prompts"),
                ("tenant", tenant.id, "disable"),
                ("user", user.id, "disable"),
                ("key", key.id, "disable"),
                ("tenant", tenant.id, "enable"),
                ("user", user.id, "enable"),
                ("key", key.id, "enable"),
                ("key", key.id, "revoke"),
            ]
            text = "".join(row.body or "" for row in rows)
            assert json.loads(rows[5].body or "")["limits"] == {"requests_per_minute": 5}
            assert "laptop" in text
            assert "argon2" not in text
            assert key.hash not in text
            assert token not in text

    asyncio.run(body())


def test_a_change_that_was_not_made_leaves_no_row(store_url: str) -> None:
    """U7: one transaction: a refused change leaves none, nor one that found nothing."""

    async def body() -> None:
        async with connection(store_url) as store:
            tenant = await accounts.create_tenant(store, "acme")
            with pytest.raises(Conflict):
                await store.add_tenant(tenant)
            with pytest.raises(Conflict):
                await store.add_user(User(id="u", tenant="nobody", name="x", created_at=1))
            with pytest.raises(Conflict):
                await store.add_key(Key(id="k", user="nobody", name="", hash="h", created_at=1))
            assert not await store.disable_key("k", 1)
            assert not await store.revoke_key("k", 1)
            assert not await store.set_prompt_days("k", 1)
            assert len(await store.operations_history(None, 100)) == 1

    asyncio.run(body())


def test_a_view_acts_in_another_name_and_ends_with_its_store(store_url: str) -> None:
    """U7: changes of several at once never mix their names; closing is the store's own."""

    async def body() -> None:
        async with connection(store_url) as store:
            store.actor = "ada"
            views = {name: store.acting(name) for name in ("ben", "cleo")}

            async def make(name: str) -> None:
                for number in range(5):
                    await accounts.create_tenant(views[name], f"{name}{number}")

            await asyncio.gather(*map(make, views))
            await accounts.create_tenant(store, "ada0")
            rows = await store.operations_history("tenant", 100)
            assert len(rows) == 11
            assert all(json.loads(row.body or "")["name"][:-1] == row.actor for row in rows)
        for view in views.values():
            with pytest.raises(StoreError):
                await view.tenants()

    asyncio.run(body())


def test_labels_name_the_owners_too(store_url: str) -> None:
    """Of more ids than one read takes; unknown ones are left out."""

    async def body() -> None:
        async with connection(store_url) as store:
            tenant = await accounts.create_tenant(store, "acme")
            users = [await accounts.create_user(store, tenant, f"u{number}") for number in range(CHAINS_AT_ONCE + 3)]
            named, plain = [
                (await accounts.create_key(store, users[0], KeyTerms(name=name), CHEAP))[0] for name in ("laptop", "")
            ]
            assert await store.labels("tenant", [tenant.id, "gone"]) == {tenant.id: "acme"}
            assert await store.labels("user", [user.id for user in users]) == {u.id: f"acme/{u.name}" for u in users}
            assert await store.labels("key", [named.id, plain.id]) == {
                named.id: "acme/u0/laptop",
                plain.id: f"acme/u0/{plain.id}",
            }
            assert await store.labels("user", []) == {}
            assert await store.key("gone") is None
            assert await store.key(named.id) == named

    asyncio.run(body())
