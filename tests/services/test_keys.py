"""From a key to a principal: verification, caches, revocation, failures (K)."""

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import argon2
import msgspec
import pytest

from gateway.errors import AuthUnavailable, Forbidden, GatewayError, RateLimited, Unauthenticated
from gateway.http1.eager import Call
from gateway.services import proofs
from gateway.services.keyfmt import checksum, mint
from gateway.services.keys import FAILURE_QUANTUM, KeyService
from gateway.services.principal import Principal
from gateway.services.rights import SCOPES, principal_of
from gateway.store.base import Chain, Changes, Key, Store, StoreError, Tenant, User
from tests.services.keyring import CHEAP, IP, Clock, Gate, connection, revoke, ring, service
from tests.wire import WAIT


@pytest.fixture
def url(store_url: str) -> str:
    """Each test runs on both databases."""
    return store_url


async def answer(keys: KeyService, token: bytes, ip: str = IP) -> Principal:
    """As the phase does: the cache first."""
    grant = keys.lookup(token, ip)
    return grant.principal if grant is not None else await keys.verify(token, ip)


async def heard(keys: KeyService, change: Coroutine[Any, Any, object]) -> None:
    """Make a change in the store, and wait until the service knows."""
    epoch = keys.epoch
    await change
    async with asyncio.timeout(WAIT):
        while keys.epoch == epoch:
            await asyncio.sleep(0.01)


def test_a_key_becomes_a_principal_and_is_cached(url: str) -> None:
    """K2, K3"""

    async def body() -> None:
        async with ring(url) as it, service(it.store) as keys:
            assert keys.lookup(it.token, IP) is None
            principal = await keys.verify(it.token, IP)
            assert (principal.tenant, principal.user, principal.key) == (it.tenant.id, it.user.id, it.key.id)
            assert principal.scopes == frozenset(SCOPES)
            grant = keys.lookup(it.token, IP)
            assert grant is not None
            assert grant.principal is principal
            assert keys.stats().hashed == 1

    asyncio.run(body())


def test_neither_the_token_nor_the_secret_is_kept(url: str) -> None:
    """K3: the cache holds digests under a key of the process; the store holds Argon2id."""

    async def body() -> None:
        async with ring(url) as it, service(it.store) as keys:
            await keys.verify(it.token, IP)
            # Not `vars`: attributes of a compiled class are in no dictionary.
            state = {name: getattr(keys, name) for name in dir(keys) if not name.startswith("__")}
            held = repr(state).encode()
            assert it.key.id.encode() in held, "what was granted is there"
            assert it.token not in held
            assert it.token[16:44] not in held
            assert it.key.hash.startswith("$argon2id$")

    asyncio.run(body())


def test_the_secret_is_in_no_file(tmp_path: Path) -> None:
    """K2: what is stored is its Argon2id hash."""

    async def body() -> bytes:
        async with ring(tmp_path / "fairgate.db") as it:
            return it.token[16:44]

    secret = asyncio.run(body())
    assert not any(secret in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("change", ["revoked", "key", "tenant", "user"])
def test_revoking_and_disabling_act_at_once_across_processes(url: str, change: str) -> None:
    """K3: a change made through another connection acts within a second."""

    async def body() -> None:
        async with ring(url) as it, connection(url) as elsewhere, service(it.store) as keys:
            await keys.verify(it.token, IP)
            began = time.monotonic()
            if change == "revoked":
                await elsewhere.revoke_key(it.key.id, 1)
            elif change == "key":
                await elsewhere.disable_key(it.key.id, 1)
            elif change == "tenant":
                await elsewhere.disable_tenant(it.tenant.id, 1)
            else:
                await elsewhere.disable_user(it.user.id, 1)
            while keys.lookup(it.token, IP) is not None:
                assert time.monotonic() - began < 1.0
                await asyncio.sleep(0.01)
            with pytest.raises(Unauthenticated, match=r"revoked|disabled"):
                await keys.verify(it.token, IP)

    asyncio.run(body())


@pytest.mark.parametrize("level", ["user", "key"])
def test_enabling_again_acts_too(url: str, level: str) -> None:
    """K6: what was refused is asked for again after a change."""

    async def body() -> None:
        async with ring(url) as it, service(it.store) as keys:
            row = it.user if level == "user" else it.key
            disable = it.store.disable_user if level == "user" else it.store.disable_key
            await heard(keys, disable(row.id, 1))
            with pytest.raises(Unauthenticated):
                await keys.verify(it.token, IP)
            await heard(keys, disable(row.id, None))
            assert (await answer(keys, it.token)).key == it.key.id

    asyncio.run(body())


def test_revoking_here_acts_at_once_and_on_nobody_else(url: str) -> None:
    """K3: before the store's changes are looked at; the moment is kept."""

    async def body() -> None:
        wall = Clock(1_700_000_000.5)
        async with ring(url) as it:
            _, other = await it.another()
            async with service(it.store, wall=wall) as keys:
                await asyncio.gather(keys.verify(it.token, IP), keys.verify(other, IP))
                assert await revoke(it.store, keys, it.key.id, wall.now)
                assert keys.lookup(it.token, IP) is None
                assert keys.lookup(other, IP) is not None
            revoked = {key.id: key.revoked_at for key in await it.store.keys(it.user.id)}
            assert revoked[it.key.id] == 1_700_000_000_500_000

    asyncio.run(body())


def test_a_lookup_under_way_never_brings_back_a_revoked_key(url: str) -> None:
    """K3: the store was read before the revocation, the answer arrives after it."""

    async def body() -> None:
        async with ring(url) as it:
            gate = Gate(it.store)
            async with service(gate) as keys:
                gate.open.clear()
                under_way = asyncio.ensure_future(keys.verify(it.token, IP))
                await gate.read.wait()
                assert await revoke(it.store, keys, it.key.id)
                gate.open.set()
                with pytest.raises(Unauthenticated, match="revoked"):
                    await under_way
                with pytest.raises(Unauthenticated):
                    await answer(keys, it.token)
                assert keys.stats().cached == 0

    asyncio.run(body())


def test_a_store_that_changes_all_the_time_denies(url: str) -> None:
    """K5: an answer that cannot be trusted is 503, and nothing is cached."""

    class Restless(Gate):
        keys: KeyService

        async def chains(self, key_ids: Sequence[str]) -> dict[str, Chain]:
            found = await super().chains(key_ids)
            self.keys.invalidate()
            return found

    async def body() -> None:
        async with ring(url) as it:
            gate = Restless(it.store)
            async with service(gate) as keys:
                gate.keys = keys
                with pytest.raises(AuthUnavailable):
                    await keys.verify(it.token, IP)
                assert keys.stats().cached == 0

    asyncio.run(body())


class Busy(Gate):
    """Another key changes all the time, and the database tells so at once. A read takes until the next change was
    looked at, or 0.1 s."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.looked = asyncio.Event()
        self.days = itertools.cycle([1, 2])
        self.other = ""

    async def wait_change(self, seconds: float) -> None:
        await self._store.set_prompt_days(self.other, next(self.days))

    async def changes(self, since: int) -> Changes:
        found: Changes = await self._store.changes(since)
        self.looked.set()
        return found

    async def chains(self, key_ids: Sequence[str]) -> dict[str, Chain]:
        found = await super().chains(key_ids)
        self.looked.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await self.looked.wait()
        return found


def test_changes_of_other_keys_deny_nobody(url: str) -> None:
    """K3, K5: a verification reads again when anything changed meanwhile; it finds an end though something always
    does."""

    async def body() -> None:
        async with ring(url) as it:
            busy = Busy(it.store)
            busy.other = (await it.another())[0].id
            async with service(busy) as keys:
                for _ in range(3):
                    assert (await keys.verify(it.token, IP)).key == it.key.id
                    keys.invalidate()

    asyncio.run(body())


def test_while_the_store_is_down_cached_keys_work_until_their_entry_ends(url: str) -> None:
    """K5: never 401, never allowed."""

    async def body() -> None:
        clock = Clock()
        async with ring(url) as it:
            _, fresh = await it.another()
            gate = Gate(it.store)
            async with service(gate, clock=clock) as keys:
                await keys.verify(it.token, IP)
                gate.broken = True
                clock.now += CHEAP.cache_seconds - 1
                assert keys.lookup(it.token, IP) is not None
                with pytest.raises(AuthUnavailable):
                    await answer(keys, fresh)
                clock.now += 2
                assert keys.lookup(it.token, IP) is None
                with pytest.raises(AuthUnavailable):
                    await answer(keys, it.token)
                gate.broken = False
                assert (await answer(keys, it.token)).key == it.key.id
                assert (await answer(keys, fresh)).key != it.key.id

    asyncio.run(body())


def test_a_store_that_hangs_denies_in_time(url: str) -> None:
    """K5: a deadline, not a hang."""

    async def body() -> None:
        async with ring(url) as it:
            gate = Gate(it.store)
            async with service(gate, msgspec.structs.replace(CHEAP, store_timeout=0.05)) as keys:
                gate.open.clear()
                with pytest.raises(AuthUnavailable) as refused:
                    await keys.verify(it.token, IP)
                assert refused.value.status == 503
                assert refused.value.retry_after
                gate.open.set()

    asyncio.run(body())


def test_renewal_needs_no_hashing(url: str) -> None:
    """K3: an entry that ends is renewed by one read of the store; a new hash of the same key is proven again."""

    async def body() -> None:
        clock = Clock()
        async with ring(url) as it, service(it.store, clock=clock) as keys:
            await keys.verify(it.token, IP)
            clock.now += CHEAP.cache_seconds + 1
            assert keys.lookup(it.token, IP) is None
            await keys.verify(it.token, IP)
            assert keys.stats().hashed == 1

    asyncio.run(body())


def test_a_key_expires_on_time_though_cached(url: str) -> None:
    """K3, K6"""

    async def body() -> None:
        clock, wall = Clock(), Clock(time.time())
        async with ring(url) as it, service(it.store, clock=clock, wall=wall) as keys:
            assert it.key.expires_at is not None
            wall.now = it.key.expires_at / 1e6 - 5
            await keys.verify(it.token, IP)
            clock.now += 4
            wall.now += 4
            assert keys.lookup(it.token, IP) is not None
            clock.now += 2
            wall.now += 2
            assert keys.lookup(it.token, IP) is None
            with pytest.raises(Unauthenticated, match="expired"):
                await keys.verify(it.token, IP)

    asyncio.run(body())


def test_why_a_key_is_refused_is_told_its_holder_each_time(url: str) -> None:
    """Also from memory, and nobody else."""

    async def body() -> None:
        async with ring(url) as it:
            await it.store.disable_user(it.user.id, 1)
            async with service(it.store) as keys:
                for _ in range(2):
                    with pytest.raises(Unauthenticated, match="disabled"):
                        await answer(keys, it.token)
                wrong = wrong_secret(it.token)
                for _ in range(2):
                    with pytest.raises(Unauthenticated, match="Incorrect"):
                        await answer(keys, wrong)

    asyncio.run(body())


def test_the_log_names_a_key_that_lapsed_once_while_it_is_remembered(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """K3: records name no key that was not let in, and a revoked one that is still used matters. A guess is no key."""

    async def body() -> None:
        async with ring(url) as it:
            await it.store.revoke_key(it.key.id, 1)
            async with service(it.store) as keys:
                for token in (it.token, it.token, wrong_secret(it.token)):
                    with pytest.raises(Unauthenticated):
                        await answer(keys, token)
            said = [vars(record) for record in caplog.records if record.message == "a key that lapsed is used"]
            assert [(each["key"], each["why"]) for each in said] == [(it.key.id, "revoked")]

    asyncio.run(body())


def test_unknown_keys_never_reach_argon2_and_malformed_ones_not_even_the_store(url: str) -> None:
    """K3, K4"""

    async def body() -> None:
        async with ring(url) as it:
            gate = Gate(it.store)
            async with service(gate) as keys:
                for bad in (b"sk-1234", b"", it.token[:-1] + b"!", mint().token.encode()[:-2] + b"00"):
                    with pytest.raises(Unauthenticated):
                        await answer(keys, bad)
                assert gate.reads == 0
                assert keys.stats().refused == 4, "a guess is one, however bad"
                with pytest.raises(Unauthenticated):
                    await answer(keys, mint().token.encode())
                assert gate.reads == 1
                assert keys.stats().hashed == 0

    asyncio.run(body())


def wrong_secret(token: bytes) -> bytes:
    """A well-formed key with the id of another and a secret of its own."""
    other = mint().token.encode()
    body = token[:16] + other[16:44]
    return body + checksum(body)


def test_a_wrong_secret_is_refused_once_by_hashing_then_from_memory(url: str) -> None:
    """K3: unknown keys are cached negatively."""

    async def body() -> None:
        async with ring(url) as it, service(it.store) as keys:
            wrong = wrong_secret(it.token)
            with pytest.raises(Unauthenticated):
                await answer(keys, wrong)
            for _ in range(3):
                with pytest.raises(Unauthenticated):
                    await answer(keys, wrong)
            assert (keys.stats().hashed, keys.stats().refused) == (1, 4)
            assert (await answer(keys, it.token)).key == it.key.id

    asyncio.run(body())


def test_the_negative_cache_is_bounded(url: str) -> None:
    """K3: floods stay cheap in memory too."""

    async def body() -> None:
        config = msgspec.structs.replace(CHEAP, cache_size=16, failures_per_minute=10_000)
        async with ring(url) as it, service(it.store, config) as keys:
            await asyncio.gather(
                *(answer(keys, mint().token.encode(), f"198.51.100.{n}") for n in range(100)), return_exceptions=True
            )
            assert keys.stats().negative == 16
            assert not keys._guesses, "of tries that are over, nothing is kept"

    asyncio.run(body())


def test_failures_of_an_address_are_throttled_before_any_work(url: str) -> None:
    """K4: 429 before the store and Argon2; a proven key behind the same address still works."""

    async def body() -> None:
        clock = Clock()
        async with ring(url) as it:
            gate = Gate(it.store)
            async with service(gate, clock=clock) as keys:
                await answer(keys, it.token)
                for _ in range(CHEAP.failures_per_minute):
                    with pytest.raises(Unauthenticated):
                        await answer(keys, wrong_secret(it.token))
                reads, hashed = gate.reads, keys.stats().hashed
                with pytest.raises(RateLimited) as refused:
                    await answer(keys, wrong_secret(it.token))
                assert refused.value.retry_after
                assert (gate.reads, keys.stats().hashed) == (reads, hashed)
                assert keys.lookup(it.token, IP) is not None
                with pytest.raises(Unauthenticated):
                    await answer(keys, wrong_secret(it.token), "192.0.2.8")
                clock.now += 60
                with pytest.raises(Unauthenticated):
                    await answer(keys, wrong_secret(it.token))

    asyncio.run(body())


def test_argon2_never_runs_on_the_loop_and_once_for_many_waiters(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """K3"""
    ran_in = []
    real = proofs.secret_matches

    def recorded(of: argon2.PasswordHasher, stored: str, secret: bytes) -> bool:
        ran_in.append(threading.current_thread())
        return real(of, stored, secret)

    monkeypatch.setattr(proofs, "secret_matches", recorded)

    async def body() -> None:
        async with ring(url) as it, service(it.store) as keys:
            found = await asyncio.gather(*(keys.verify(it.token, IP) for _ in range(50)))
            assert {p.key for p in found} == {it.key.id}

    asyncio.run(body())
    assert len(ran_in) == 1
    assert threading.main_thread() not in ran_in


def test_too_many_verifications_at_once_deny(url: str) -> None:
    """K3: the queue of Argon2 is bounded."""

    async def body() -> None:
        async with ring(url) as it:
            gate = Gate(it.store)
            async with service(gate, msgspec.structs.replace(CHEAP, argon2_queue=4)) as keys:
                gate.open.clear()
                tokens = [mint().token.encode() for _ in range(5)]
                waiting = [asyncio.ensure_future(keys.verify(token, IP)) for token in tokens[:4]]
                await gate.read.wait()
                with pytest.raises(AuthUnavailable):
                    await keys.verify(tokens[4], IP)
                gate.open.set()
                assert all(
                    isinstance(error, Unauthenticated)
                    for error in await asyncio.gather(*waiting, return_exceptions=True)
                )

    asyncio.run(body())


def test_giving_up_disturbs_nobody_else(url: str) -> None:
    """K3: single flight; H6: one waiter leaves (a cancelled task, and a coroutine stepped without a task)."""

    async def body() -> None:
        async with ring(url) as it:
            gate = Gate(it.store)
            async with service(gate) as keys:
                gate.open.clear()
                errors: list[BaseException] = []

                async def stepped() -> None:
                    try:
                        await keys.verify(it.token, IP)
                    except ConnectionAbortedError as err:
                        errors.append(err)

                leaving = asyncio.ensure_future(keys.verify(it.token, IP))
                call = Call(stepped(), lambda: None)
                call.resume()
                staying = asyncio.ensure_future(keys.verify(it.token, IP))
                await gate.read.wait()
                leaving.cancel()
                call.throw(ConnectionAbortedError())
                assert call.done
                assert len(errors) == 1
                gate.open.set()
                assert (await staying).key == it.key.id
                assert gate.reads == 1

    asyncio.run(body())


def test_a_coroutine_without_a_task_gets_its_answer(url: str) -> None:
    """The request driver steps `verify` itself."""

    async def body() -> None:
        async with ring(url) as it, service(it.store) as keys:
            done = asyncio.Event()
            found: list[Principal] = []

            async def stepped() -> None:
                found.append(await keys.verify(it.token, IP))

            Call(stepped(), done.set).resume()
            await done.wait()
            assert found[0].key == it.key.id

    asyncio.run(body())


def test_the_time_of_a_failure_does_not_tell_why(url: str) -> None:
    """K4, K8: unknown id and wrong secret are answered at the same beat after their beginning."""

    async def body() -> None:
        async with ring(url) as it, service(it.store) as keys:
            loop = asyncio.get_running_loop()
            for bad in (mint().token.encode(), wrong_secret(it.token)):
                began = loop.time()
                with pytest.raises(Unauthenticated):
                    await keys.verify(bad, IP)
                assert loop.time() - began >= FAILURE_QUANTUM * 0.99

    asyncio.run(body())


def test_networks_of_key_and_tenant_both_hold(url: str) -> None:
    """K6: a CIDR allowlist on each; cached or not."""

    async def body() -> None:
        networks = {"allow_all_models": True, "cidrs": ("192.0.2.0/24", "2001:db8::/32")}
        async with ring(url, **networks) as it, service(it.store) as keys:
            _, narrow = await it.another(cidrs=("192.0.2.128/25",))
            assert (await answer(keys, it.token, "2001:db8::1")).key == it.key.id
            assert (await answer(keys, it.token, "::ffff:192.0.2.7")).key == it.key.id
            for ip in ("198.51.100.1", "unknown"):
                with pytest.raises(Forbidden):
                    await answer(keys, it.token, ip)
            assert await answer(keys, narrow, "192.0.2.200")
            for ip in ("192.0.2.7", "2001:db8::1"):
                with pytest.raises(Forbidden):
                    await answer(keys, narrow, ip)

    asyncio.run(body())


def test_an_error_nobody_foresaw_does_not_end_the_watch(url: str) -> None:
    """K3: revocations made elsewhere act after it too."""

    class Odd(Gate):
        odd = True

        async def changes(self, since: int) -> Changes:
            if self.odd:
                self.odd = False
                raise RuntimeError("odd on purpose")
            found: Changes = await self._store.changes(since)
            return found

    async def body() -> None:
        async with ring(url) as it, connection(url) as elsewhere, service(Odd(it.store)) as keys:
            await keys.verify(it.token, IP)
            await elsewhere.revoke_key(it.key.id, 1)
            async with asyncio.timeout(10):
                while keys.lookup(it.token, IP) is not None:
                    await asyncio.sleep(0.02)

    asyncio.run(body())


def test_an_incomplete_log_of_changes_empties_the_cache(url: str) -> None:
    """K3: a log of changes that was cut short since the last look leaves nothing in the cache."""

    class Cut(Gate):
        async def changes(self, since: int) -> Changes:
            found: Changes = await self._store.changes(since)
            return Changes(found.version, complete=not found.items)

    async def body() -> None:
        async with ring(url) as it, connection(url) as elsewhere, service(Cut(it.store)) as keys:
            await keys.verify(it.token, IP)
            await heard(keys, elsewhere.revoke_key(it.key.id, 1))
            with pytest.raises(Unauthenticated):
                await answer(keys, it.token)

    asyncio.run(body())


def test_a_change_is_applied_once(url: str) -> None:
    """K3: what was applied is not read again at every look, or caches and verifications would never hold."""

    class Counting(Gate):
        looks = 0

        async def changes(self, since: int) -> Changes:
            self.looks += 1
            found: Changes = await self._store.changes(since)
            return found

    async def body() -> None:
        async with ring(url) as it, connection(url) as elsewhere:
            store = Counting(it.store)
            async with service(store) as keys:
                await heard(keys, elsewhere.revoke_key(it.key.id, 1))
                epoch, looks = keys.epoch, store.looks
                async with asyncio.timeout(WAIT):
                    while store.looks < looks + 2:
                        await asyncio.sleep(0.01)
                assert keys.epoch == epoch

    asyncio.run(body())


def test_the_silence_of_the_store_is_told(url: str) -> None:
    """Since its last answer; a look that succeeds ends it."""

    async def body() -> None:
        clock = Clock()
        async with ring(url) as it, service(it.store, clock=clock) as keys:
            clock.now += 30
            assert keys.stats().silence == 30
            async with asyncio.timeout(WAIT):
                while keys.silence:
                    await asyncio.sleep(0.01)

    asyncio.run(body())


def test_last_use_is_written_in_batches(url: str) -> None:
    """K6: what a store did not take is written with the next."""

    class Full(Gate):
        refused = asyncio.Event()

        async def touch_keys(self, used: dict[str, int]) -> None:
            if not self.refused.is_set():
                self.refused.set()
                raise StoreError("full on purpose")
            await self._store.touch_keys(used)

    async def body() -> None:
        async with ring(url) as it:
            wall, store = Clock(1_700_000_000.0), Full(it.store)
            async with service(store, wall=wall) as keys:
                await keys.verify(it.token, IP)
                await asyncio.wait_for(store.refused.wait(), WAIT)
            (key,) = await it.store.keys(it.user.id)
            assert key.last_used_at == 1_700_000_000_000_000

    asyncio.run(body())


def test_a_verification_that_breaks_denies(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """K5: an unexpected exception is no permission; it is logged, without the secret."""

    def broken(*_: object) -> bool:
        raise MemoryError

    async def body() -> None:
        async with ring(url) as it, service(it.store) as keys:
            monkeypatch.setattr(proofs, "secret_matches", broken)
            with caplog.at_level(logging.ERROR), pytest.raises(AuthUnavailable):
                await keys.verify(it.token, IP)
            assert "broke" in caplog.text
            assert it.token[16:44].decode() not in caplog.text

    asyncio.run(body())


ALL, A, AB, NONE = ("all", ()), ("named", ("a",)), ("named", ("a", "b")), ("named", ())


@pytest.mark.parametrize(
    ("tenant", "allow", "models", "expected"),
    [
        (ALL, None, (), ALL),
        (ALL, None, ("a",), A),
        (ALL, True, (), ALL),
        (ALL, False, (), NONE),
        (ALL, False, ("a",), A),
        (AB, None, (), AB),
        (AB, None, ("a", "c"), A),
        (AB, True, (), AB),
        (AB, False, (), NONE),
        (AB, False, ("a", "c"), A),
        (NONE, None, (), NONE),
        (NONE, None, ("a",), NONE),
        (NONE, True, (), NONE),
        (NONE, False, ("a",), NONE),
    ],
)
def test_models_of_a_key_never_pass_its_tenant(
    tenant: tuple[str, tuple[str, ...]],
    allow: bool | None,
    models: tuple[str, ...],
    expected: tuple[str, tuple[str, ...]],
) -> None:
    """K8: default deny; the key narrows; its own allow_all_models is tri-state."""
    chain = Chain(
        Tenant(id="t", name="t", created_at=0, allow_all_models=tenant[0] == "all", models=tenant[1]),
        User(id="u", tenant="t", name="u", created_at=0),
        Key(id="k", user="u", name="", hash="", created_at=0, allow_all_models=allow, models=models),
    )
    principal = principal_of(chain)
    for model in "abc":
        assert principal.may_use(model) == (expected[0] == "all" or model in expected[1])


@pytest.mark.parametrize(
    ("tenant", "models", "usable"),
    [
        (("embed", "lib/chat", "small:8b"), (), {"embed", "embed:latest", "lib/chat", "lib/chat:latest", "small:8b"}),
        (("embed",), ("embed:latest",), {"embed:latest"}),
        (("embed:latest",), ("embed",), {"embed:latest"}),
        (("embed:latest",), (), {"embed:latest"}),
    ],
)
def test_a_model_named_without_a_tag_is_the_latest(
    tenant: tuple[str, ...], models: tuple[str, ...], usable: set[str]
) -> None:
    """K8: the names that operators type are those that clients say, and Ollama lists them with their tag."""
    chain = Chain(
        Tenant(id="t", name="t", created_at=0, models=tenant),
        User(id="u", tenant="t", name="u", created_at=0),
        Key(id="k", user="u", name="", hash="", created_at=0, models=models),
    )
    principal = principal_of(chain)
    asked = {f"{name}{tag}" for name in ("embed", "lib/chat", "small", "small:8b") for tag in ("", ":latest", ":1b")}
    assert {model for model in asked if principal.may_use(model)} == usable


def test_a_burst_of_changes_and_verifications_never_serves_a_revoked_key(url: str) -> None:
    """K3: many keys, revoked at every possible moment of their verification."""

    async def body() -> None:
        async with ring(url) as it, service(it.store) as keys:
            for number in range(20):
                key, token = await it.another()
                under_way = asyncio.ensure_future(keys.verify(token, f"203.0.113.{number}"))
                for _ in range(number):
                    await asyncio.sleep(0)
                await revoke(it.store, keys, key.id)
                with_error = await asyncio.gather(under_way, return_exceptions=True)
                assert isinstance(with_error[0], Principal | GatewayError)
                with pytest.raises(Unauthenticated):
                    await answer(keys, token, f"203.0.113.{100 + number}")

    asyncio.run(body())


def test_every_refusal_is_counted(url: str) -> None:
    """The stats that metrics render."""

    async def body() -> None:
        async with ring(url) as it:
            gate = Gate(it.store)
            async with service(gate) as keys:
                await keys.verify(it.token, IP)
                for bad in itertools.islice(iter(lambda: mint().token.encode(), b""), 3):
                    with pytest.raises(Unauthenticated):
                        await answer(keys, bad)
                gate.broken = True
                with pytest.raises(AuthUnavailable):
                    await answer(keys, mint().token.encode())
                stats = keys.stats()
                assert (stats.hashed, stats.refused, stats.cached, stats.negative) == (1, 3, 1, 3)
                assert stats.unavailable == 1

    asyncio.run(body())
