"""Tokens of an identity provider (JWT, RFC 7519) as a credential beside keys (K9): who is the user, and what may it do?

Owns the rules for a token's head and claims, and for its user. `jwks` owns the issuer's keys and the check of
signatures; `keys` owns the cache, the throttle and the effect of changes in the store. Rules:

- Nothing in a token is believed, and the store is not asked, before its signature was checked with the issuer's key of
  the name in its head, or with the only possible key if the head has no name. The head is read for that name and the
  algorithm only; addresses and keys in it (jku, x5u, jwk) are ignored. A head with critical extensions (`crit`, RFC
  8725) or unencoded claims (`b64`, RFC 7797) is refused.
- `iss`, `aud` and `exp` are required. A token bound to its sender (`cnf`, RFC 7800) is refused, because the proof it
  requires is not asked for here.
- A token stands for a user of a tenant, both found by name. It has the rights of a key of that user created without
  terms of its own: the tenant's models and networks, the limits of both. Its key id is `jwt:` and the user's id for
  every token of the user, so whatever is counted by key is counted for all of them together.
- A tenant is never created here; a user only if the section says so.
"""

import asyncio
import logging
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import UNSET

from gateway.config import ConfigError, Identity
from gateway.issuer import Jwt
from gateway.services import accounts, bounded
from gateway.services.principal import ISSUED
from gateway.services.rights import principal_of
from gateway.services.token_facts import TokenStats
from gateway.services.verdict import Refusal, Verdict
from gateway.store.base import Chain, Key, Store, StoreError, Tenant, User

if TYPE_CHECKING:
    from gateway.services.jwks import KeySet

_log = logging.getLogger("fairgate.tokens")

EXTRA = "pip install 'fairgate[jwt]'"
STRANGER_SECONDS: Final = 5.0
"""Seconds for which a user that was not found, or is disabled, is not looked up again, whatever tokens name it."""
_STRANGERS: Final = 4096


_Time = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] | Annotated[float, msgspec.Meta(ge=0, le=1 << 53)]


class _Head(msgspec.Struct, frozen=True):
    alg: str
    kid: str = ""
    crit: Any = UNSET
    b64: Any = True


class _Claims(msgspec.Struct, frozen=True):
    """Times are Unix seconds (NumericDate)."""

    iss: str
    aud: str | list[str]
    exp: _Time
    nbf: _Time = 0
    iat: _Time = 0
    cnf: Any = UNSET


_head = msgspec.json.Decoder(_Head)


class TokenService:
    """Verifies tokens. Belongs to one event loop. `wall` gives Unix seconds, `clock` monotonic seconds."""

    def __init__(
        self,
        section: Jwt,
        signers: "KeySet",
        store: Store,
        identity: Identity,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.section = section
        self.signers = signers
        self._store = store
        self._identity = identity
        self._clock = clock
        self._wall = wall
        self._tenants = frozenset(section.tenants)
        self._strangers: dict[tuple[str, str], tuple[float, Refusal]] = {}

    async def judge(self, token: bytes) -> Verdict:
        """The token's user, or why the token is refused."""
        section = self.section
        said = await said_in(token, section, self.signers, self._wall)
        if isinstance(said, Refusal):
            return said
        tenant = section.tenant or named(said, section.tenant_claim)
        user = named(said, section.user_claim)
        if not tenant or not user or (self._tenants and tenant not in self._tenants):
            return Refusal.STRANGER
        return await self._account(tenant, user, said["exp"] + section.clock_skew)

    async def _account(self, tenant: str, user: str, ends: float) -> Verdict:
        until, refusal = self._strangers.get((tenant, user), (0.0, Refusal.STRANGER))
        if until > self._clock():
            return refusal
        try:
            async with asyncio.timeout(self._identity.store_timeout):
                verdict = await self._found(tenant, user, ends)
        except (StoreError, TimeoutError) as err:
            _log.warning("the store did not answer for a token: %s", err or "timeout")
            return Refusal.UNAVAILABLE
        if isinstance(verdict, Refusal):
            bounded.put(self._strangers, (tenant, user), (self._clock() + STRANGER_SECONDS, verdict), _STRANGERS)
        return verdict

    async def _found(self, tenant_name: str, user_name: str, ends: float) -> Verdict:
        """The tenant and user, both by name and never by id. Raises StoreError."""
        tenant = await self._store.tenant(tenant_name)
        if tenant is None or tenant.name != tenant_name:
            return Refusal.STRANGER
        if tenant.disabled_at is not None:
            return Refusal.OWNER_DISABLED
        user = await self._user(tenant, user_name)
        if user is None:
            return Refusal.STRANGER
        if user.disabled_at is not None:
            return Refusal.OWNER_DISABLED
        return principal_of(Chain(tenant, user, key_of(user, self.section.scopes, ends)))

    async def _user(self, tenant: Tenant, name: str) -> User | None:
        user = await self._store.user(tenant.id, name)
        if user is not None and user.name == name:
            return user
        if not self.section.create_users:
            return None
        try:
            made = await accounts.create_user(self._store, tenant, name)
        except accounts.AccountError:  # created elsewhere at this moment
            user = await self._store.user(tenant.id, name)
            return user if user is not None and user.name == name else None
        _log.info("a token made a user", extra={"tenant": tenant.id, "user": made.id})
        return made

    def stats(self) -> TokenStats:
        """A snapshot for metrics."""
        return self.signers.stats()


async def said_in(token: bytes, section: Jwt, signers: "KeySet", wall: Callable[[], float]) -> dict[str, Any] | Refusal:
    """The claims of a token, after checking its signature, names and times; or why it is refused."""
    head = _head_of(token)
    if head is None or head.alg not in section.algorithms or head.crit is not UNSET or head.b64 is not True:
        return Refusal.FORGED
    payload = await signers.signed(token, head.kid, head.alg)
    if isinstance(payload, Refusal):
        return payload
    try:
        said = msgspec.json.decode(payload, type=dict[str, Any])
        claims = msgspec.convert(said, _Claims)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Refusal.FOREIGN
    return _fault(claims, section, wall()) or said


def _fault(claims: _Claims, section: Jwt, now: float) -> Refusal | None:
    audience = [claims.aud] if isinstance(claims.aud, str) else claims.aud
    if claims.iss != section.issuer or section.audience not in audience or claims.cnf is not UNSET:
        return Refusal.FOREIGN
    if claims.exp + section.clock_skew <= now:
        return Refusal.ENDED
    if max(claims.nbf, claims.iat) - section.clock_skew > now:
        return Refusal.TOO_EARLY
    if claims.exp - section.clock_skew > now + section.longest:
        return Refusal.TOO_LONG
    return None


def key_of(user: User, scopes: tuple[str, ...], ends: float) -> Key:
    """The key under which all tokens of a user are counted; it is in no store. `ends` is in Unix seconds."""
    return Key(
        id=ISSUED + user.id,
        user=user.id,
        name="",
        hash="",
        created_at=0,
        expires_at=int(ends * 1e6),
        scopes=scopes,
    )


def _head_of(token: bytes) -> _Head | None:
    part = token.partition(b".")[0]
    try:
        return _head.decode(urlsafe_b64decode(part + b"=" * (-len(part) % 4)))
    except (ValueError, RecursionError):  # includes msgspec's and binascii's errors
        return None


def claim(said: dict[str, Any], path: tuple[str, ...]) -> Any:
    """The value at the end of `path`, or None."""
    value: Any = said
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def named(said: dict[str, Any], path: tuple[str, ...]) -> str:
    """The string at the end of `path` if it is a valid name of a tenant or user; else empty."""
    value = claim(said, path)
    return value if isinstance(value, str) and accounts.is_name(value) else ""


def open_tokens(section: Jwt | None, store: Store, identity: Identity) -> TokenService | None:
    """None if tokens are not accepted. Raises ConfigError if what the section names cannot be read or fetched."""
    if section is None:
        return None
    try:
        from gateway.services.jwks import JwksError, KeySet
    except ImportError as error:
        raise ConfigError(f"jwt: PyJWT is not installed ({error.name}): {EXTRA}") from error
    try:
        return TokenService(section, KeySet(section), store, identity)
    except JwksError as error:
        raise ConfigError(f"jwt.jwks: {error}") from error
    except OSError as error:
        raise ConfigError(f"jwt.ca: {error}") from error
