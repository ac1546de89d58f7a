"""The keys of an issuer: what is believed of a JWKS, and when it is fetched, from a real server (K9)."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.issuer import Jwt
from gateway.services import jwks as jwks_module
from gateway.services.jwks import MAX_JWKS, MAX_KEYS, JwksError, KeySet, KeysUnavailable, fault_of, read_keys, signed_by
from gateway.services.token_facts import TokenStats
from tests.services.engines import HANG, answer, running
from tests.services.issuer import EC, PATH, RSA, WRITTEN, Issuer, Signer, jwks, shown_at
from tests.services.keyring import Clock

BOTH = ("RS256", "ES256")
NEW = Signer("new", "ES256")


@asynccontextmanager
async def key_set(section: Jwt, **more: Any) -> AsyncIterator[KeySet]:
    keys = KeySet(section, **more)
    try:
        yield keys
    finally:
        await keys.close()


async def outcome(keys: KeySet, kid: str) -> str:
    """`key`, `none` or `unavailable`."""
    try:
        return "none" if await keys.find(kid, "RS256") is None else "key"
    except KeysUnavailable:
        return "unavailable"


def test_each_key_has_the_algorithm_of_its_own_type() -> None:
    found = read_keys(WRITTEN, BOTH)
    assert {kid: key.algorithm_name for kid, key in found.items()} == {"rsa-1": "RS256", "ec-1": "ES256"}
    assert list(read_keys(WRITTEN, ("ES256",))) == ["ec-1"]


UNUSABLE: dict[str, Any] = {
    "symmetric": {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0", "kid": "x", "alg": "HS256"},
    "for encryption": RSA.public(use="enc"),
    "for signing only": RSA.public(key_ops=["sign"]),
    "another algorithm of RSA": RSA.public(alg="PS256"),
    "HS256 on an RSA key": RSA.public(alg="HS256"),
    "no name": {**RSA.public(), "kid": ""},
    "a name that is a number": RSA.public(kid=7),
    "weak": Signer("weak", bits=1024).public(),
    "an exponent of 1": RSA.public(e="AQ"),
    "a modulus that is no number": RSA.public(n="!!"),
    "another curve": EC.public(crv="P-384"),
    "a point beside the curve": EC.public(x=EC.public()["y"]),
    "not an object": [],
    "an unknown type": {"kty": "AKP", "kid": "x"},
}


@pytest.mark.parametrize("key", UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_verify_is_left_out(key: Any) -> None:
    """RFC 7517 section 5: beside a good key it does no harm, alone it is no JWKS."""
    assert list(read_keys(json.dumps({"keys": [key, RSA.public()]}), BOTH)) == ["rsa-1"]
    with pytest.raises(JwksError, match="none of 1 keys"):
        read_keys(json.dumps({"keys": [key]}), BOTH)


def test_of_two_keys_with_one_name_the_first_counts() -> None:
    twice = {"keys": [RSA.public(), Signer("rsa-1").public()]}
    found = read_keys(json.dumps(twice), BOTH)
    assert found["rsa-1"].key.public_numbers() == RSA.private.public_key().public_numbers()


def test_private_parts_are_not_read() -> None:
    leaked = RSA.public(d="AQAB", p="AQAB", q="AQAB", dp="AQAB", dq="AQAB", qi="AQAB")
    (key,) = read_keys(json.dumps({"keys": [leaked]}), BOTH).values()
    assert not hasattr(key.key, "private_numbers")


def test_no_more_keys_are_read_than_an_issuer_can_have() -> None:
    many = [{"kty": "oct", "kid": str(number)} for number in range(MAX_KEYS)] + [RSA.public()]
    with pytest.raises(JwksError):
        read_keys(json.dumps({"keys": many}), BOTH)


@pytest.mark.parametrize("text", [b"", b"<html>", b"[]", b'{"keys": {}}', b"\xff\xfe", b'{"keys":' + b"[" * 100_000])
def test_what_is_no_jwks_is_none(text: bytes) -> None:
    with pytest.raises(JwksError):
        read_keys(text, BOTH)


@pytest.mark.parametrize("signer", [RSA, EC])
def test_a_long_token_is_checked_in_as_few_steps_as_a_short_one(signer: Signer) -> None:
    """Who floods with forged ones chooses their length: no step of the interpreter for each byte of it."""
    key = read_keys(WRITTEN, BOTH)[signer.kid]

    def steps(said: dict[str, Any]) -> int:
        token, seen = signer.sign(said), 0

        def count(*event: Any) -> None:
            nonlocal seen
            seen += 1

        sys.setprofile(count)
        try:
            payload = signed_by(key, token)
        finally:
            sys.setprofile(None)
        assert payload == json.dumps(said).encode()
        return seen

    steps({})  # what is imported at first use
    assert steps({"more": "x" * 5000}) == steps({})


def test_a_signature_is_written_in_one_way() -> None:
    """RFC 4648, 3.5: else each token had others beside it that are as good."""
    token = RSA.sign({})
    key = read_keys(WRITTEN, BOTH)[RSA.kid]
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    ends = [token[:-1] + end.encode() for end in last]
    assert [end for end in ends if signed_by(key, end) is not None] == [token]
    for odd in (token + b"=", token + b"A", token[:-1], token + b"\n", b".".join([token, b""])):
        assert signed_by(key, odd) is None


def test_a_jwks_of_a_file_is_all_there_is() -> None:
    """No name leads anywhere else."""

    async def body() -> None:
        async with key_set(shown_at(WRITTEN)) as keys:
            keys.start()
            assert [await outcome(keys, kid) for kid in ("rsa-1", "new", "../../etc/passwd")] == ["key", "none", "none"]
            assert keys.stats() == TokenStats(signers=2)

    asyncio.run(body())


def test_a_new_key_is_found_by_its_name_and_one_that_is_gone_is_gone() -> None:
    """A rotation: the unknown name leads to one fetch, whose answer replaces all that was known."""

    async def body() -> None:
        clock = Clock()
        async with running(issuer := Issuer(RSA)), key_set(issuer.section(), clock=clock) as keys:
            assert await outcome(keys, "rsa-1") == "key"
            issuer.shows(NEW)
            clock.now += 11
            assert await outcome(keys, "new") == "key"
            assert await outcome(keys, "rsa-1") == "none"
            assert issuer.fetches == 2

    asyncio.run(body())


def test_a_flood_of_made_up_names_costs_one_fetch_in_ten_seconds() -> None:
    async def body() -> None:
        clock = Clock()
        async with running(issuer := Issuer(RSA)), key_set(issuer.section(), clock=clock) as keys:
            found = await asyncio.gather(*(outcome(keys, f"made-up-{number}") for number in range(200)))
            assert (set(found), issuer.fetches) == ({"none"}, 1)
            clock.now += 9
            assert [await outcome(keys, f"more-{number}") for number in range(100)] == ["none"] * 100
            assert issuer.fetches == 1
            clock.now += 2
            await asyncio.gather(*(outcome(keys, f"again-{number}") for number in range(100)))
            assert issuer.fetches == 2
            assert len(keys._keys) == 1, "names that strangers give are not kept"

    asyncio.run(body())


def test_known_keys_hold_while_the_issuer_is_gone_and_then_nothing_is_let_in() -> None:
    """Bounded by `keep`; a name that may be a new key's is denied, not refused. It comes back by itself."""

    async def body() -> None:
        clock = Clock()
        async with running(issuer := Issuer(RSA)), key_set(issuer.section(), clock=clock) as keys:
            assert await outcome(keys, "rsa-1") == "key"
            await issuer.stop()
            clock.now += 3600
            assert await outcome(keys, "rsa-1") == "key"
            assert await outcome(keys, "new") == "unavailable"
            clock.now += 1
            assert await outcome(keys, "rsa-1") == "unavailable"
            assert keys.stats() == TokenStats(fetched=1, failed=1, signers=1, age=3601.0), "one try in ten seconds"
            clock.now += 10
            assert await outcome(keys, "rsa-1") == "unavailable"
            await issuer.start()
            clock.now += 10
            assert await outcome(keys, "rsa-1") == "key"

    asyncio.run(body())


BROKEN = {
    "garbage": answer(b"<html>welcome</html>"),
    "an error": answer(b"{}", 500),
    "no keys": answer(b'{"keys": []}'),
    "too long": answer(json.dumps(jwks(NEW)).encode() + b" " * MAX_JWKS),
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
    "torn": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    "packed": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
    "nothing": HANG,
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
def test_an_answer_that_is_none_changes_nothing(raw: bytes) -> None:
    async def body() -> None:
        clock = Clock()
        issuer = Issuer(RSA)
        issuer.says("/elsewhere", jwks(NEW))
        async with running(issuer), key_set(issuer.section(timeout=0.2), clock=clock) as keys:
            assert await outcome(keys, "rsa-1") == "key"
            issuer.answers[PATH] = raw
            clock.now += 11
            assert await outcome(keys, "new") == "unavailable"
            assert await outcome(keys, "rsa-1") == "key"
            assert issuer.asked["/elsewhere"] == 0

    asyncio.run(body())


def test_a_slow_answer_is_waited_for_by_a_bounded_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_module, "MAX_WAITING", 3)

    async def body() -> None:
        issuer = Issuer(RSA)
        issuer.answers[PATH] = HANG
        async with running(issuer), key_set(issuer.section(timeout=0.5)) as keys:
            asked = [asyncio.ensure_future(outcome(keys, "rsa-1")) for _ in range(10)]
            async with asyncio.timeout(5):
                while not issuer.fetches:
                    await asyncio.sleep(0)
            assert [one.done() for one in asked] == [False] * 3 + [True] * 7
            assert set(await asyncio.gather(*asked)) == {"unavailable"}
            assert (issuer.fetches, keys._waiting) == (1, 0)

    asyncio.run(body())


def test_who_gives_up_waiting_does_not_end_the_fetch() -> None:
    async def body() -> None:
        issuer = Issuer(RSA)
        async with running(issuer), key_set(issuer.section()) as keys:
            gone = asyncio.ensure_future(keys.find("rsa-1", "RS256"))
            stays = asyncio.ensure_future(keys.find("rsa-1", "RS256"))
            await asyncio.sleep(0)
            gone.cancel()
            assert await stays is not None
            assert issuer.fetches == 1

    asyncio.run(body())


def test_the_keys_are_fetched_again_without_being_asked_for() -> None:
    """A key that the issuer took back is gone after `refresh`, also where no unknown name leads to a fetch."""

    async def body() -> None:
        issuer = Issuer(RSA)
        async with running(issuer), key_set(issuer.section(refresh=0.05, retry=0.01)) as keys:
            keys.start()
            assert await outcome(keys, "rsa-1") == "key"
            issuer.answers[PATH] = answer(b"garbage")  # the keeper outlives it
            async with asyncio.timeout(5):
                while keys.stats().failed < 2:
                    await asyncio.sleep(0.01)
                issuer.shows(NEW)
                while "rsa-1" in keys._keys:
                    await asyncio.sleep(0.01)
            keys.retire()
            assert keys._keeper is not None
            await asyncio.wait([keys._keeper], timeout=5)
            assert keys._keeper.cancelled()

    asyncio.run(body())


def test_another_set_of_the_same_issuer_begins_with_its_keys() -> None:
    """A reload while the issuer is away costs nobody anything."""

    async def body() -> None:
        async with running(issuer := Issuer(RSA)), key_set(issuer.section()) as old:
            assert await outcome(old, "rsa-1") == "key"
            await issuer.stop()
            async with key_set(issuer.section(keep=1000.0)) as new, key_set(shown_at(issuer.url + "/other")) as other:
                new.inherit(old)
                other.inherit(old)
                assert (await outcome(new, "rsa-1"), await outcome(other, "rsa-1")) == ("key", "unavailable")

    asyncio.run(body())


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def body() -> None:
        async with running(issuer := Issuer(RSA)), key_set(issuer.section()) as keys:
            assert await outcome(keys, "rsa-1") == "key"

    asyncio.run(body())


def test_what_the_doctor_is_told(tmp_path: Path) -> None:
    """As the gateway reads them, each fault in words."""

    async def body() -> list[str]:
        issuer, told = Issuer(RSA), []
        async with running(issuer):
            told.append(await fault_of(issuer.section()))
            told.append(await fault_of(issuer.section(algorithms=("ES256",))))
            issuer.answers[PATH] = HANG
            told.append(await fault_of(issuer.section(timeout=0.2)))
        told.append(await fault_of(issuer.section()))
        told.append(await fault_of(shown_at("https://127.0.0.1:9/keys", ca=str(tmp_path / "none.pem"))))
        return [*told, await fault_of(shown_at("{}")), await fault_of(shown_at(WRITTEN))]

    fine, no_key, slow, gone, no_ca, no_jwks, written = asyncio.run(body())
    assert (fine, written) == ("", "")
    assert ("can verify ES256" in no_key, "within 0.2 s" in slow) == (True, True)
    assert all((gone, no_ca, no_jwks))
