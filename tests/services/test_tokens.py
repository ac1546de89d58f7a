"""Tokens of an issuer as credentials: what is refused and why, and whose the others are (K9). Real signatures, a real
store, the key service in front as in a gateway."""

import asyncio
import json
from contextlib import asynccontextmanager
from typing import Any, get_args

import jwt
import msgspec
import pytest

from gateway.config import Identity
from gateway.errors import AuthUnavailable, Forbidden, RateLimited, Unauthenticated
from gateway.issuer import Jwt
from gateway.services import accounts
from gateway.services.keyfmt import MAX_TOKEN
from gateway.services.keys import KeyService
from gateway.services.principal import Principal
from gateway.services.rights import SCOPES
from gateway.services.tokens import STRANGER_SECONDS, TokenService, open_tokens
from gateway.services.verdict import Refusal
from gateway.store.base import StoreError, Tenant
from gateway.store.limits import Limits, Scoped
from tests.services.engines import running
from tests.services.issuer import AUDIENCE, EC, NAME, PATH, RSA, WRITTEN, Issuer, Signer, claims, jwks, part, shown_at
from tests.services.keyring import CHEAP, IP, Clock, Gate, Ring, connection, ring, service

WALL = 1_800_000_000.0


@pytest.fixture
def url(store_url: str) -> str:
    """Each test runs on both databases."""
    return store_url


@asynccontextmanager
async def door(store: Any, section: Jwt, clock: Clock | None = None, identity: Identity = CHEAP) -> Any:
    """A key service that takes tokens; both clocks are one, WALL at first."""
    time = clock or Clock(WALL)
    async with service(store, identity, clock=time, wall=time) as keys:
        tokens = open_tokens(section, store, identity)
        assert tokens is not None
        tokens._clock = tokens._wall = tokens.signers._clock = time
        keys.tokens = tokens
        try:
            yield keys
        finally:
            await tokens.signers.close()


async def answer(keys: KeyService, token: bytes, ip: str = IP) -> Principal:
    """As the phase does: the cache first."""
    grant = keys.lookup(token, ip)
    return grant.principal if grant is not None else await keys.verify(token, ip)


async def told(keys: KeyService, token: bytes, ip: str = IP) -> str:
    """The sentence of a refusal, or `let in`."""
    try:
        await answer(keys, token, ip)
    except (Unauthenticated, AuthUnavailable, RateLimited) as error:
        return str(error)
    return "let in"


def good(**more: Any) -> bytes:
    return RSA.sign(claims(WALL, **more))


def test_a_token_is_a_user_of_a_tenant(url: str) -> None:
    """Both algorithms; what it may do is its tenant's and user's; nothing of a key's own."""

    async def body() -> None:
        limits = Limits(requests_per_minute=7)
        terms = {"models": ("m", "n"), "share": 3.0, "limits": limits, "cidrs": ("192.0.2.0/24",)}
        async with ring(url, **terms) as it, door(it.store, shown_at(WRITTEN)) as keys:
            for signer in (RSA, EC):
                principal = await answer(keys, signer.sign(claims(WALL)))
                assert (principal.tenant, principal.user) == (it.tenant.id, it.user.id)
                assert principal.key == f"jwt:{it.user.id}", "the same whatever the token"
                assert (principal.tenant_share, principal.share, principal.priority) == (3.0, 1.0, "interactive")
                assert principal.may_use("m")
                assert not principal.may_use("o")
                assert principal.scopes == frozenset(SCOPES)
                assert principal.limits == (Scoped(f"tenant:{it.tenant.id}", limits),)
                assert (principal.on_behalf, principal.force_model, principal.prompt_days) == (False, "", 0)
            with pytest.raises(Forbidden):
                await answer(keys, good(), "198.51.100.1")
            assert await answer(keys, it.token), "keys work beside it"

    asyncio.run(body())


def test_the_scopes_are_those_of_keys() -> None:
    assert Jwt.__annotations__ is not None
    (field,) = [field for field in msgspec.structs.fields(Jwt) if field.name == "scopes"]
    assert field.default == SCOPES
    assert set(get_args(get_args(get_args(field.type)[0])[0])) == set(SCOPES)


def test_claims_are_named_by_the_section(url: str) -> None:
    """A claim inside another, a claim whose name has dots, one tenant for all."""

    async def body() -> None:
        nested = claims(WALL, org=None, sub=None, company={"id": "acme"}, **{"https://x.example/mail": "ann"})
        section = shown_at(WRITTEN, tenant_claim=("company", "id"), user_claim=("https://x.example/mail",))
        async with ring(url) as it, door(it.store, section) as keys:
            assert (await answer(keys, RSA.sign(nested))).user == it.user.id
        section = shown_at(WRITTEN, tenant="acme", scopes=("chat",))
        async with connection(url) as store, door(store, section) as keys:
            found = await answer(keys, RSA.sign(claims(WALL, org="elsewhere")))
            assert (found.user, found.scopes) == (it.user.id, frozenset({"chat"}))

    asyncio.run(body())


def test_a_list_of_audiences_may_name_others_too(url: str) -> None:
    async def body() -> None:
        async with ring(url) as it, door(it.store, shown_at(WRITTEN)) as keys:
            assert await told(keys, good(aud=["other", AUDIENCE])) == "let in"
            assert await told(keys, good(aud=["other"])) == Refusal.FOREIGN.value

    asyncio.run(body())


# ---- what is refused


def with_head(**head: Any) -> bytes:
    """Rightly signed, with that in its head."""
    return RSA.sign(claims(WALL), **head)


def raw_head(**head: Any) -> bytes:
    return RSA.sign_raw(
        json.dumps({"alg": "RS256", "kid": RSA.kid, **head}).encode(), json.dumps(claims(WALL)).encode()
    )


def hmac_with_the_public_key() -> bytes:
    """The confusion of RFC 8725 section 2.1: whoever has the public key signs, if the verifier believes the head."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    secret = RSA.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    said = f"{part({'alg': 'HS256', 'kid': RSA.kid})}.{part(claims(WALL))}".encode()
    return said + b"." + part(jwt.get_algorithm_by_name("HS256").sign(said, secret)).encode()


def unsigned(end: str) -> bytes:
    return f"{part({'alg': 'none', 'kid': RSA.kid})}.{part(claims(WALL))}.{end}".encode()


def torn(at: int) -> bytes:
    token = good()
    return token[:at] + (b"A" if token[at : at + 1] != b"A" else b"B") + token[at + 1 :]


STRANGERS_KEY = Signer(RSA.kid)
LATER = Signer("unknown")
INVALID, FORGED, FOREIGN = Refusal.INVALID, Refusal.FORGED, Refusal.FOREIGN
UNKNOWN, STRANGER = Refusal.UNKNOWN_SIGNER, Refusal.STRANGER

REFUSED: dict[str, tuple[bytes, Refusal]] = {
    "no signature": (unsigned(""), INVALID),
    "alg none with something": (unsigned("AAAA"), FORGED),
    "HS256 with the public key": (hmac_with_the_public_key(), FORGED),
    "another's key under the name": (STRANGERS_KEY.sign(claims(WALL)), FORGED),
    "RS256 said of an ES256 key": (RSA.sign(claims(WALL), kid=EC.kid), FORGED),
    "ES256 said of an RS256 key": (EC.sign(claims(WALL), kid=RSA.kid), FORGED),
    "a signature of zeros": (good().rpartition(b".")[0] + b"." + b"A" * 342, FORGED),
    "claims changed": (good().replace(b".ey", b".eyA", 1), FORGED),
    "head changed": (torn(3), FORGED),
    "unknown name": (LATER.sign(claims(WALL)), UNKNOWN),
    "name that is a path": (with_head(kid="../../../../dev/null"), UNKNOWN),
    "name that is an address": (with_head(kid="https://evil.example/keys"), UNKNOWN),
    "name that is SQL": (with_head(kid="' OR 1=1 --"), UNKNOWN),
    "name that is a number": (raw_head(kid=1), FORGED),
    "name that is null": (raw_head(kid=None), FORGED),
    "key in the head": (STRANGERS_KEY.sign(claims(WALL), kid="mine", jwk=STRANGERS_KEY.public()), UNKNOWN),
    "keys at an address in the head": (STRANGERS_KEY.sign(claims(WALL), kid="mine", jku="http://e/k"), UNKNOWN),
    "certificate at an address": (STRANGERS_KEY.sign(claims(WALL), kid="mine", x5u="http://e/k"), UNKNOWN),
    "crit": (raw_head(crit=["exp"]), FORGED),
    "crit of nothing": (raw_head(crit=[]), FORGED),
    "crit that is null": (raw_head(crit=None), FORGED),
    "b64 without crit": (raw_head(b64=False), FORGED),
    "algorithm in small letters": (raw_head(alg="rs256"), FORGED),
    "algorithm as a list": (raw_head(alg=["RS256"]), FORGED),
    "PS256": (raw_head(alg="PS256"), FORGED),
    "head twice": (RSA.sign_raw(b'{"alg":"none","alg":"RS256","kid":"rsa-1","kid":"x"}', b"{}"), UNKNOWN),
    "head of brackets": (RSA.sign_raw(b"[" * 3000, b"{}"), FORGED),
    "head that is not UTF-8": (RSA.sign_raw(b'{"alg":"RS256","kid":"\xff"}', b"{}"), FORGED),
    "claims that are no JSON": (RSA.sign(b"hello"), FOREIGN),
    "claims that are a list": (RSA.sign([1]), FOREIGN),
    "claims of brackets": (RSA.sign(b'{"a":' + b"[" * 4000), FOREIGN),
    "claims that are not UTF-8": (RSA.sign(b'{"sub":"\xff"}'), FOREIGN),
    "no exp": (good(exp=None), FOREIGN),
    "exp as text": (good(exp=str(int(WALL) + 60)), FOREIGN),
    "exp as a flag": (good(exp=True), FOREIGN),
    "exp without end": (RSA.sign(json.dumps(claims(WALL)).replace(str(int(WALL) + 300), "1e999").encode()), FOREIGN),
    "exp of 400 digits": (good(exp=10**400), FOREIGN),
    "exp that is no number": (good(exp=float("nan")), FOREIGN),
    "exp before time": (good(exp=-1), FOREIGN),
    "exp in the year 2100": (good(exp=4_102_444_800), Refusal.TOO_LONG),
    "expired": (good(exp=int(WALL) - 31), Refusal.ENDED),
    "nbf in the future": (good(nbf=int(WALL) + 31), Refusal.TOO_EARLY),
    "nbf as text": (good(nbf="0"), FOREIGN),
    "made in the future": (good(iat=int(WALL) + 31), Refusal.TOO_EARLY),
    "no aud": (good(aud=None), FOREIGN),
    "wrong aud": (good(aud="other"), FOREIGN),
    "aud as part of a word": (good(aud=AUDIENCE + "-admin"), FOREIGN),
    "aud in capitals": (good(aud=AUDIENCE.upper()), FOREIGN),
    "empty list of aud": (good(aud=[]), FOREIGN),
    "aud as an object": (good(aud={AUDIENCE: 1}), FOREIGN),
    "aud with a number": (good(aud=[AUDIENCE, 1]), FOREIGN),
    "no iss": (good(iss=None), FOREIGN),
    "wrong iss": (good(iss="https://login.example.evil"), FOREIGN),
    "iss with a slash more": (good(iss=NAME + "/"), FOREIGN),
    "iss as a list": (good(iss=[NAME]), FOREIGN),
    "bound to its sender": (good(cnf={"jkt": "abc"}), FOREIGN),
    "no tenant": (good(org=None), STRANGER),
    "tenant that is a number": (good(org=1), STRANGER),
    "tenant that is a list": (good(org=["acme"]), STRANGER),
    "tenant that is not ours": (good(org="elsewhere"), STRANGER),
    "tenant in capitals": (good(org="ACME"), STRANGER),
    "tenant with a NUL": (good(org="acme\0"), STRANGER),
    "tenant with half a character": (RSA.sign(json.dumps(claims(WALL)).replace("acme", "\\ud800").encode()), FOREIGN),
    "tenant with a line end": (good(org="acme\n"), STRANGER),
    "no user": (good(sub=None), STRANGER),
    "user that is an object": (good(sub={"name": "ann"}), STRANGER),
    "user that is empty": (good(sub=""), STRANGER),
    "user that is not ours": (good(sub="bob"), STRANGER),
    "user that is SQL": (good(sub="ann' OR '1'='1"), STRANGER),
    "too long": (good(more="x" * MAX_TOKEN), INVALID),
    "five parts": (b".".join([b"eyJhbGciOiJSUzI1NiJ9"] * 5), INVALID),
    "two parts": (good().rpartition(b".")[0], INVALID),
    "padded": (good() + b"=", INVALID),
    "of another alphabet": (good().replace(b".", b"+.", 1), INVALID),
}


@pytest.mark.parametrize(("token", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(token: bytes, why: Refusal, tmp_path: Any) -> None:
    """RFC 8725, RFC 7519 section 4.1: 401, and whoever did not sign is told nothing."""

    async def body() -> None:
        async with ring(tmp_path / "fairgate.db") as it, door(it.store, shown_at(WRITTEN)) as keys:
            assert await told(keys, good()) == "let in", "else the table proves nothing"
            with pytest.raises(Unauthenticated) as refused:
                await answer(keys, token)
            assert (refused.value.status, str(refused.value)) == (401, why.value)
            assert keys.stats().cached == 1

    asyncio.run(body())


def test_an_algorithm_that_is_not_chosen_is_refused(url: str) -> None:
    async def body() -> None:
        async with ring(url) as it, door(it.store, shown_at(WRITTEN, algorithms=("ES256",))) as keys:
            assert await told(keys, EC.sign(claims(WALL))) == "let in"
            assert await told(keys, good()) == FORGED.value

    asyncio.run(body())


def test_ids_of_the_store_are_no_names(url: str) -> None:
    """A claim is a name: who can choose one at the issuer must not reach another by its id."""

    async def body() -> None:
        async with ring(url) as it, door(it.store, shown_at(WRITTEN)) as keys:
            assert await told(keys, good(org=it.tenant.id)) == STRANGER.value
            assert await told(keys, good(sub=it.user.id)) == STRANGER.value
            assert await told(keys, good(sub="ann\0")) == STRANGER.value, "no database is asked for it"

    asyncio.run(body())


def test_only_tokens_of_the_configured_tenants_are_accepted(url: str) -> None:
    async def body() -> None:
        async with ring(url) as it, door(it.store, shown_at(WRITTEN, tenants=("other",))) as keys:
            other = await accounts.create_tenant(it.store, "other")
            await accounts.create_user(it.store, other, "ann")
            assert await told(keys, good()) == STRANGER.value
            assert await told(keys, good(org="other")) == "let in"

    asyncio.run(body())


# ---- users made at first sight


def test_users_are_made_only_where_the_section_says_so(url: str) -> None:
    """Once, whoever comes at once; in tenants that exist; with names a user can have. Audited as every making (U7)."""

    async def body() -> None:
        async with ring(url) as it:
            async with door(it.store, shown_at(WRITTEN, create_users=True)) as keys:
                news = [RSA.sign(claims(WALL, sub="bob", jti=str(number))) for number in range(8)]
                found = await asyncio.gather(*(answer(keys, token) for token in news))
                assert len({principal.user for principal in found}) == 1
                assert await told(keys, good(org="elsewhere", sub="cyd")) == STRANGER.value
                assert await told(keys, good(sub="auth0|123")) == STRANGER.value
                assert await told(keys, good(sub="x" * 129)) == STRANGER.value
                assert await told(keys, RSA.sign(claims(WALL, sub="eve", exp=int(WALL) - 60))) == Refusal.ENDED.value
            assert sorted(user.name for user in await it.store.users()) == ["ann", "bob"]
            assert len(await it.store.tenants()) == 1
            rows = await it.store.operations_history("user", 10)
            assert found[0].user in {row.id for row in rows}

    asyncio.run(body())


def test_a_user_that_was_not_there_comes_in_a_few_seconds_later(url: str) -> None:
    """Its absence is remembered for a moment, so that whoever asks again and again does not ask the store."""

    async def body() -> None:
        clock = Clock(WALL)
        async with ring(url) as it, door(it.store, shown_at(WRITTEN), clock) as keys:
            token = good(sub="bob")
            assert await told(keys, token) == STRANGER.value
            await accounts.create_user(it.store, it.tenant, "bob")
            assert await told(keys, token) == STRANGER.value
            clock.now += STRANGER_SECONDS
            assert await told(keys, token) == "let in"

    asyncio.run(body())


# ---- the cache, the throttle, changes


def checks(keys: KeyService) -> int:
    assert isinstance(keys.tokens, TokenService)
    return keys.tokens.stats().checked


def test_a_token_is_verified_once_and_ends_on_time(url: str) -> None:
    """The skew is the issuer's: 30 s after `exp` by our clock it is over, cached or not."""

    async def body() -> None:
        clock = Clock(WALL)
        async with ring(url) as it, door(it.store, shown_at(WRITTEN), clock) as keys:
            token = good(exp=int(WALL) + 10)
            grant = keys.lookup(token, IP)
            assert grant is None
            for _ in range(20):
                await answer(keys, token)
            assert checks(keys) == 1
            clock.now += 39
            assert keys.lookup(token, IP) is not None
            clock.now += 1
            assert keys.lookup(token, IP) is None
            assert await told(keys, token) == Refusal.ENDED.value

    asyncio.run(body())


def test_tokens_whose_entries_ended_are_forgotten(url: str) -> None:
    """Each is another, and few come again: the cache holds those of the last minute, not of the day."""

    async def body() -> None:
        clock = Clock(WALL)
        async with ring(url) as it, door(it.store, shown_at(WRITTEN), clock) as keys:
            for number in range(5):
                await answer(keys, good(jti=str(number)))
            clock.now += 30
            await answer(keys, good(jti="later"))
            assert keys.stats().cached == 6
            clock.now += 30
            await answer(keys, good(jti="last"))
            assert keys.stats().cached == 2
            assert keys.lookup(good(jti="later"), IP) is not None

    asyncio.run(body())


def test_many_at_once_are_one_verification(url: str) -> None:
    async def body() -> None:
        async with ring(url) as it, door(it.store, shown_at(WRITTEN)) as keys:
            token = good()
            found = await asyncio.gather(*(answer(keys, token) for _ in range(50)))
            assert (len(set(map(id, found))), checks(keys)) == (1, 1)

    asyncio.run(body())


class Away(Gate):
    """A store whose tenants cannot be read while it is broken."""

    async def tenant(self, ref: str) -> Tenant | None:
        if self.broken:
            raise StoreError("broken on purpose")
        return await self._store.tenant(ref)


def test_a_cached_token_outlives_the_store_until_its_entry_ends(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """K5: then 503, never 401."""

    async def body() -> None:
        clock = Clock(WALL)
        async with ring(url) as it, door(store := Away(it.store), shown_at(WRITTEN), clock) as keys:
            token = good()
            await answer(keys, token)
            store.broken = True
            assert await told(keys, token) == "let in"
            clock.now += 60
            assert await told(keys, token) == Refusal.UNAVAILABLE.value
            assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
                "the store did not answer for a token: broken on purpose"
            ]
            store.broken = False
            assert await told(keys, token) == "let in"

    asyncio.run(body())


def test_forged_tokens_are_throttled_before_any_signature_is_checked(url: str) -> None:
    """K4. Who was let in before stays so; the token that was refused is remembered."""

    async def body() -> None:
        clock, identity = Clock(WALL), msgspec.structs.replace(CHEAP, cache_seconds=1.0)
        async with ring(url) as it, door(it.store, shown_at(WRITTEN), clock, identity) as keys:
            known = good()
            await answer(keys, known)
            forged = [STRANGERS_KEY.sign(claims(WALL, jti=str(number))) for number in range(12)]
            said = [await told(keys, token) for token in forged]
            assert said[:10] == [FORGED.value] * 10
            assert all("Too many" in one for one in said[10:])
            before = checks(keys)
            assert "Too many" in await told(keys, good(jti="new"))
            assert checks(keys) == before
            assert await told(keys, known) == "let in"
            clock.now += 2
            assert "Too many" in await told(keys, good(jti="new"))
            assert await told(keys, known) == "let in", "also when the cache has forgotten it"
            assert checks(keys) == before + 1
            assert await told(keys, good(jti="new"), "198.51.100.9") == "let in"

    asyncio.run(body())


def test_a_token_without_the_name_of_a_key(url: str) -> None:
    """OpenID Connect Core, 10.1: an issuer with one key need not name it; of several none is tried."""
    unnamed = RSA.sign_raw(b'{"alg": "RS256"}', json.dumps(claims(WALL)).encode())
    forged = STRANGERS_KEY.sign_raw(b'{"alg": "RS256"}', json.dumps(claims(WALL)).encode())

    async def body() -> None:
        async with ring(url) as it:
            async with door(it.store, shown_at(WRITTEN)) as keys:
                assert await told(keys, unnamed) == "let in"
                assert await told(keys, forged) == FORGED.value
            async with door(it.store, shown_at(json.dumps(jwks(RSA, LATER, EC)))) as keys:
                assert await told(keys, unnamed) == UNKNOWN.value

    asyncio.run(body())


def test_what_the_issuer_signed_is_no_guess(url: str) -> None:
    """One user's stale tokens do not lock out the others behind the same address, nor do those of somebody whom the
    issuer names no audience for (Keycloak's follow the user's roles)."""

    async def body() -> None:
        async with ring(url) as it, door(it.store, shown_at(WRITTEN)) as keys:
            for number in range(15):
                assert await told(keys, good(exp=int(WALL) - 60, jti=str(number))) == Refusal.ENDED.value
                assert await told(keys, good(sub="nobody", jti=str(number))) == STRANGER.value
                assert await told(keys, good(aud="account", jti=str(number))) == FOREIGN.value
                assert await told(keys, good(aud="account")) == FOREIGN.value, "also the same again"
            assert await told(keys, good()) == "let in"
            assert keys.stats().refused == 60

    asyncio.run(body())


def test_a_signer_that_is_not_known_yet_is_no_guess(url: str) -> None:
    """An issuer that begins to sign with a new key: whoever comes before the next fetch may not lock out a whole chat
    interface. Nor may one that shows the new key late, or that showed a known one no longer for a while."""

    async def body() -> None:
        clock, issuer = Clock(WALL), Issuer(RSA)
        async with ring(url) as it, running(issuer), door(it.store, issuer.section(), clock) as keys:
            assert await told(keys, good()) == "let in"
            issuer.shows(EC)
            news = [EC.sign(claims(WALL, jti=str(number))) for number in range(15)]
            assert await asyncio.gather(*(told(keys, token) for token in news)) == [UNKNOWN.value] * 15
            clock.now += 10
            assert await told(keys, news[0]) == "let in"
            issuer.shows(RSA)
            clock.now += 61
            olds = [good(jti=str(number)) for number in range(15)]
            assert await asyncio.gather(*(told(keys, token) for token in olds)) == ["let in"] * 15
            assert await asyncio.gather(*(told(keys, token) for token in news)) == [UNKNOWN.value] * 15
            issuer.shows(EC)
            clock.now += 10
            assert await told(keys, news[1]) == "let in"
            assert keys.stats().refused == 30

    asyncio.run(body())


async def until_refused(keys: KeyService, token: bytes) -> str:
    async with asyncio.timeout(5):
        while (said := await told(keys, token)) == "let in":
            await asyncio.sleep(0.01)
    return said


def test_disabling_tenant_or_user_elsewhere_ends_a_cached_token(url: str) -> None:
    """K3: what holds a head again (`holds`) forgets it with the same change."""

    async def body() -> None:
        clock = Clock(WALL)
        async with ring(url) as it, connection(url) as elsewhere, door(it.store, shown_at(WRITTEN), clock) as keys:
            token = good()
            for disable in (
                lambda at: elsewhere.disable_user(it.user.id, at),
                lambda at: elsewhere.disable_tenant(it.tenant.id, at),
            ):
                await answer(keys, token)
                epoch, grant = keys.epoch, keys.lookup(token, IP)
                assert grant is not None
                assert keys.holds(grant, epoch)
                await disable(1)
                assert await until_refused(keys, token) == Refusal.OWNER_DISABLED.value
                assert not keys.holds(grant, epoch)
                await disable(None)
                clock.now += STRANGER_SECONDS

    asyncio.run(body())


def test_a_verification_under_way_sees_what_changed_meanwhile(url: str) -> None:
    async def body() -> None:
        async with ring(url) as it, running(issuer := Issuer(RSA)), door(it.store, issuer.section()) as keys:
            issuer.held = asyncio.Event()
            flight = asyncio.ensure_future(told(keys, good()))
            async with asyncio.timeout(5):
                while not issuer.fetches:
                    await asyncio.sleep(0)
            await it.store.disable_user(it.user.id, 1)
            keys.invalidate()
            issuer.held.set()
            assert await flight == Refusal.OWNER_DISABLED.value

    asyncio.run(body())


def test_an_issuer_that_is_away_denies(url: str) -> None:
    """503 and not 401; nothing is held against the address."""

    async def body() -> None:
        async with ring(url) as it, running(issuer := Issuer(RSA)):
            await issuer.stop()
            async with door(it.store, issuer.section()) as keys:
                for number in range(15):
                    with pytest.raises(AuthUnavailable) as denied:
                        await answer(keys, good(jti=str(number)))
                    assert denied.value.retry_after is not None
                assert (await answer(keys, it.token)).key == it.key.id
                await issuer.start()
                keys.tokens.signers._clock = keys.tokens._clock = Clock(WALL + 11)  # type: ignore[union-attr]
                assert await told(keys, good()) == "let in"

    asyncio.run(body())


def test_a_key_that_the_issuer_took_back_ends_its_tokens(url: str) -> None:
    """With the next fetch and the end of the cached entry."""

    async def body() -> None:
        clock = Clock(WALL)
        issuer = Issuer(RSA)
        async with ring(url) as it, running(issuer), door(it.store, issuer.section(), clock) as keys:
            token = good()
            await answer(keys, token)
            issuer.shows(EC)
            clock.now += 61
            assert await told(keys, EC.sign(claims(WALL))) == "let in", "its unknown name led to a fetch"
            assert await told(keys, token) == UNKNOWN.value
            assert issuer.asked[PATH] == 2

    asyncio.run(body())


def test_the_token_is_not_kept(url: str) -> None:
    async def body() -> None:
        async with ring(url) as it, door(it.store, shown_at(WRITTEN)) as keys:
            token = good()
            await answer(keys, token)
            tokens: Any = keys.tokens
            held = repr([{name: getattr(one, name) for name in dir(one) if name[:2] != "__"} for one in (keys, tokens)])
            assert it.user.id in held
            assert token.split(b".")[2].decode() not in held

    asyncio.run(body())


def test_without_a_jwt_section_tokens_are_refused(url: str) -> None:
    async def body() -> None:
        async with ring(url) as it, service(it.store) as keys:
            with pytest.raises(Unauthenticated, match="Incorrect API key"):
                await keys.verify(good(), IP)

    asyncio.run(body())


def test_last_uses_are_written_of_keys_only(url: str) -> None:
    async def body(it: Ring) -> None:
        async with door(it.store, shown_at(WRITTEN)) as keys:
            await answer(keys, good())
            assert keys._used == {}
            await answer(keys, it.token)
            assert list(keys._used) == [it.key.id]

    async def both() -> None:
        async with ring(url) as it:
            await body(it)

    asyncio.run(both())
