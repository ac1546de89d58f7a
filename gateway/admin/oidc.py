"""The OpenID provider: the address to log in at, and the person who comes back (O8).

OpenID Connect Core 1.0, authorization code flow (section 3.1), with PKCE (RFC 7636). Owns the requests to the provider
and the checks of its answers. Must not know cookies, sessions or routes. Needs PyJWT. Rules:

- Endpoints come from the provider's own document, which must name the configured issuer; plain http on loopback only.
- An ID token is checked like any token of an issuer (`services.tokens`), and for the nonce of the attempt. Nothing else
  from the provider is read or kept.
- Logins are rare: clients and keys are created for each, so nothing has to be closed or becomes outdated.
"""

import asyncio
import hmac
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, TypeVar
from urllib.parse import quote_plus, urlencode

import httpx
import msgspec

from gateway.http1.pool import trusting
from gateway.issuer import Oidc
from gateway.services.discovery import LookFailed, client, get, read
from gateway.services.jwks import KeySet
from gateway.services.tokens import said_in
from gateway.services.verdict import DENIALS, Refusal
from gateway.urls import fetch_fault

Answer = TypeVar("Answer")

DOCUMENT: Final = "/.well-known/openid-configuration"
KNOWN_SECONDS: Final = 300.0  # for which the provider's document is cached
MAX_ANSWER: Final = 256 * 1024  # bytes


class ProviderFailed(Exception):
    """The provider cannot be reached, or does not answer correctly; the text is for the log."""


class NotBelieved(Exception):
    """What came back does not prove a login that began here; the text may be shown."""


class _Provider(msgspec.Struct, frozen=True):
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)


class _Tokens(msgspec.Struct, frozen=True):
    id_token: str


class _Error(msgspec.Struct, frozen=True):
    error: str


@dataclass(frozen=True)
class Attempt:
    """A login that began in some browser, which stores it. All three values are random: `state` returns with whoever
    logged in, `nonce` in the ID token, and only the holder of `verifier` gets that token."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def begin(cls) -> "Attempt":
        """A new one."""
        return cls(*(secrets.token_urlsafe(32) for _ in range(3)))

    @classmethod
    def kept(cls, text: str) -> "Attempt | None":
        """The attempt stored by a browser, or None."""
        parts = text.split(".")
        return cls(*parts) if len(parts) == 3 and all(parts) and text.isascii() else None

    def __str__(self) -> str:
        return f"{self.state}.{self.nonce}.{self.verifier}"

    @property
    def challenge(self) -> str:
        """The verifier's challenge by S256 (RFC 7636 section 4.2)."""
        return urlsafe_b64encode(sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()


async def fault_of(section: Oidc) -> str:
    """Why nobody can log in at the provider now; empty if it works."""
    try:
        await OpenId(section).address(Attempt.begin())
    except (ProviderFailed, OSError) as err:
        return str(err)
    return ""


class OpenId:
    """One provider. Raises OSError for a certificate authority that cannot be read. `wall` gives Unix seconds, `clock`
    monotonic seconds."""

    def __init__(
        self,
        section: Oidc,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if section.ca:
            trusting(section.ca)
        self._section = section
        self._wall = wall
        self._clock = clock
        self._known: tuple[float, _Provider] | None = None

    async def address(self, attempt: Attempt) -> str:
        """The address at which a browser logs in. Raises ProviderFailed."""
        section = self._section
        endpoint = (await self._provider()).authorization_endpoint
        asked = {
            "response_type": "code",
            "client_id": section.client_id,
            "redirect_uri": section.url + "callback",
            "scope": section.scope,
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": attempt.challenge,
            "code_challenge_method": "S256",
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(asked)}"

    async def claims(self, attempt: Attempt, code: str) -> dict[str, Any]:
        """The claims of the person who came back with that code. Raises ProviderFailed, NotBelieved."""
        provider = await self._provider()
        token = await self._asked(self._exchange(provider, attempt, code))
        section = msgspec.structs.replace(self._section.tokens, jwks=provider.jwks_uri)
        keys = KeySet(section)
        try:
            said = await said_in(token, section, keys, self._wall)
        finally:
            await keys.close()
        if isinstance(said, Refusal):
            raise (ProviderFailed if said in DENIALS else NotBelieved)(said.value)
        nonce, audience = said.get("nonce"), said["aud"]
        if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), attempt.nonce.encode()):
            raise NotBelieved("This login was not started here.")
        several = isinstance(audience, list) and len(audience) > 1
        if said.get("azp", None if several else section.audience) != section.audience:
            raise NotBelieved(Refusal.FOREIGN.value)
        return said

    async def _exchange(self, provider: _Provider, attempt: Attempt, code: str) -> bytes:
        """Exchange the code for an ID token (OpenID Connect Core, 3.1.3)."""
        section = self._section
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": section.url + "callback",
            "code_verifier": attempt.verifier,
        }
        basic = section.client_secret and "client_secret_basic" in provider.token_endpoint_auth_methods_supported
        # RFC 6749 section 2.3.1: both are encoded before they are joined.
        auth = httpx.BasicAuth(quote_plus(section.client_id), quote_plus(section.client_secret)) if basic else None
        if not basic:
            form["client_id"] = section.client_id
        if section.client_secret and not basic:
            form["client_secret"] = section.client_secret
        async with self._client() as http, http.stream("POST", provider.token_endpoint, data=form, auth=auth) as answer:
            text = await read(answer, "token_endpoint", MAX_ANSWER, good=(200, 400))
        if answer.status_code == 200:
            return msgspec.json.decode(text, type=_Tokens).id_token.encode()
        if (error := msgspec.json.decode(text, type=_Error).error) == "invalid_grant":  # RFC 6749 section 5.2
            raise NotBelieved("The provider does not know this login; it may have expired. Start again.")
        raise ProviderFailed(f"token_endpoint: {error[:100]!r}")

    async def _provider(self) -> _Provider:
        if self._known is None or self._clock() - self._known[0] > KNOWN_SECONDS:
            self._known = (self._clock(), await self._asked(self._document()))
        return self._known[1]

    async def _document(self) -> _Provider:
        async with self._client() as http:
            text = await get(http, self._section.issuer.rstrip("/") + DOCUMENT, MAX_ANSWER)
        found = msgspec.json.decode(text, type=_Provider)
        if found.issuer != self._section.issuer:
            raise ProviderFailed("its document is that of another issuer")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if fault := fetch_fault(getattr(found, name)):
                raise ProviderFailed(f"{name}: {fault}")
        return found

    def _client(self) -> httpx.AsyncClient:
        section = self._section
        return client(section.issuer, key="", ca=section.ca, timeout=section.timeout)

    async def _asked(self, question: Awaitable[Answer]) -> Answer:
        """The answer to a request to the provider, within the timeout. Raises ProviderFailed for anything the provider
        does wrong."""
        try:
            async with asyncio.timeout(self._section.timeout):
                return await question
        except TimeoutError as err:
            raise ProviderFailed(f"no answer within {self._section.timeout:g} s") from err
        except (LookFailed, httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, RecursionError) as err:
            raise ProviderFailed(str(err) or type(err).__name__) from err
