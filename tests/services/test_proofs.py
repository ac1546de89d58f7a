"""Floods of keys that are none: what they may cost, and what they may not take from others (K3, K4)."""

import asyncio
import os
import sys
import threading
from pathlib import Path

import argon2
import msgspec
import pytest

from gateway.errors import AuthUnavailable, Unauthenticated
from gateway.services import proofs
from gateway.services.keyfmt import mint
from gateway.services.keys import KeyService
from gateway.services.proofs import SUSPECT_SECONDS, VERIFY_NICE, ChainReader
from gateway.store.base import CHAINS_AT_ONCE, StoreError
from tests.services.keyring import CHEAP, IP, Clock, Gate, ring, service
from tests.services.test_keys import answer, wrong_secret
from tests.wire import WAIT


@pytest.fixture
def url(store_url: str) -> str:
    """Each test runs on both databases."""
    return store_url


async def refused(keys: KeyService, token: bytes, ip: str = IP) -> None:
    with pytest.raises(Unauthenticated):
        await answer(keys, token, ip)


def test_concurrent_reads_of_keys_share_one_query(url: str) -> None:
    """Hundreds of unknown ids at once are a handful of reads, and each gets its own answer."""

    async def body() -> None:
        async with ring(url) as it:
            another, _ = await it.another()
            gate = Gate(it.store)
            reader = ChainReader(gate, 2.0)  # type: ignore[arg-type]  # a store by its methods
            ids = [f"unknown-{number}" for number in range(200)]
            found = await asyncio.gather(*map(reader.read, [*ids, it.key.id, another.id, it.key.id]))
            assert found[:200] == [None] * 200
            assert [chain and chain.key.id for chain in found[200:]] == [it.key.id, another.id, it.key.id]
            assert gate.reads == -(-202 // CHAINS_AT_ONCE)
            await reader.close()

    asyncio.run(body())


def test_a_failing_read_fails_all_who_asked_and_the_next_is_tried(url: str) -> None:
    async def body() -> None:
        async with ring(url) as it:
            gate = Gate(it.store)
            reader = ChainReader(gate, 0.05)  # type: ignore[arg-type]  # a store by its methods
            gate.broken = True
            failed = await asyncio.gather(*(reader.read(name) for name in "abc"), return_exceptions=True)
            assert [type(error) for error in failed] == [StoreError] * 3
            gate.broken = False
            gate.open.clear()
            with pytest.raises(TimeoutError):
                await reader.read(it.key.id)
            gate.open.set()
            assert await reader.read(it.key.id) is not None
            await reader.close()

    asyncio.run(body())


def test_a_proven_key_is_renewed_however_many_are_guessed(url: str) -> None:
    """K3: the bound on verifications is for secrets that are not proven."""

    async def body() -> None:
        clock = Clock()
        config = msgspec.structs.replace(CHEAP, argon2_queue=4)
        async with ring(url) as it:
            gate = Gate(it.store)
            async with service(gate, config, clock=clock) as keys:
                await answer(keys, it.token)
                clock.now += CHEAP.cache_seconds + 1
                gate.open.clear()
                guesses = [asyncio.ensure_future(refused(keys, mint().token.encode(), f"10.0.0.{n}")) for n in range(4)]
                renewal = asyncio.ensure_future(answer(keys, it.token))
                await asyncio.sleep(0)
                with pytest.raises(AuthUnavailable):
                    await answer(keys, mint().token.encode())
                gate.open.set()
                assert (await renewal).key == it.key.id
                await asyncio.gather(*guesses)
                assert keys.stats().hashed == 1

    asyncio.run(body())


def test_guesses_of_one_key_leave_room_for_other_keys(url: str) -> None:
    """K4: a few of them wait at once, whatever the bound for all."""

    async def body() -> None:
        async with ring(url) as it:
            _, fresh = await it.another()
            gate = Gate(it.store)
            async with service(gate) as keys:
                gate.open.clear()
                tries = [asyncio.ensure_future(answer(keys, wrong_secret(it.token), f"10.0.0.{n}")) for n in range(20)]
                other = asyncio.ensure_future(answer(keys, fresh))
                await gate.read.wait()
                gate.open.set()
                answers = await asyncio.gather(*tries, return_exceptions=True)
                assert (
                    sorted(type(error).__name__ for error in answers)
                    == ["AuthUnavailable"] * 18 + ["Unauthenticated"] * 2
                )
                assert (await other).key != it.key.id
                assert keys.stats().flights == 0
                assert (await answer(keys, it.token)).key == it.key.id

    asyncio.run(body())


class Held:
    """Checks of secrets against the hashes in `stored` wait for `go`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.stored: set[str] = set()
        self.go = threading.Event()
        self._real = proofs.secret_matches
        patch.setattr(proofs, "secret_matches", self._check)

    def _check(self, of: argon2.PasswordHasher, stored: str, secret: bytes) -> bool:
        if stored in self.stored:
            assert self.go.wait(WAIT)
        return self._real(of, stored, secret)


def test_no_key_waits_behind_guesses_of_another(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """K4: once a wrong secret was tried, further tries of that key have a lane of their own."""
    held = Held(monkeypatch)

    async def body() -> None:
        clock = Clock()
        async with ring(url) as it, service(it.store, clock=clock) as keys:
            _, fresh = await it.another()
            await refused(keys, wrong_secret(it.token))
            held.stored.add(it.key.hash)
            guesses = [asyncio.ensure_future(refused(keys, wrong_secret(it.token), f"10.0.0.{n}")) for n in range(2)]
            assert (await asyncio.wait_for(answer(keys, fresh), WAIT / 2)).key != it.key.id
            held.go.set()
            await asyncio.gather(*guesses)
            held.stored.clear()
            clock.now += SUSPECT_SECONDS + 1
            assert (await answer(keys, it.token)).key == it.key.id, "the lane is for a minute"

    asyncio.run(body())


def test_the_second_lane_is_not_waited_for_without_end(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """K5: who comes when it is long is told to come again, and is not taken for a wrong secret."""
    held = Held(monkeypatch)
    monkeypatch.setattr(proofs, "SUSPECT_PATIENCE", 0.05)

    async def body() -> None:
        async with ring(url) as it, service(it.store) as keys:
            await refused(keys, wrong_secret(it.token))
            held.stored.add(it.key.hash)
            with pytest.raises(AuthUnavailable, match="Too many keys"):
                await answer(keys, it.token)
            held.go.set()
            held.stored.clear()
            assert (await answer(keys, it.token)).key == it.key.id

    asyncio.run(body())


def test_a_wrong_secret_costs_its_lane_a_rest_and_the_right_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """K4: a tenth of one core is what guessing gets."""
    rested: list[float] = []
    monkeypatch.setattr(proofs.time, "sleep", rested.append)
    monkeypatch.setattr(proofs.time, "perf_counter", iter([1.0, 1.5, 2.0, 2.5]).__next__)
    of = proofs.hasher(CHEAP)
    stored = of.hash(b"right")
    assert not proofs._checked_with_rest(of, stored, b"wrong")
    assert rested == [4.5]
    assert proofs._checked_with_rest(of, stored, b"right")
    assert rested == [4.5]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux only")
def test_verifying_threads_step_back_behind_the_loop(tmp_path: Path) -> None:
    """K4: a flood of wrong secrets keeps the processor busy, not the loop waiting."""

    async def body() -> None:
        async with ring(tmp_path / "x.db") as it, service(it.store) as keys:
            await answer(keys, it.token)
            threads = {thread.native_id for thread in keys._prover._lane._threads}
            own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            assert threads
            assert {os.getpriority(os.PRIO_PROCESS, thread or 0) for thread in threads} == {min(19, own + VERIFY_NICE)}

    asyncio.run(body())
