"""The public keys of a token issuer (JWKS, RFC 7517) by their name (`kid`), and the check of signatures.

Owns fetching and what is accepted of an answer; everything that needs PyJWT is here. Must not know claims, tenants or
who asks. Rules:

- A key has one algorithm, given by its own type (RSA: RS256, P-256: ES256); a token cannot choose another. Symmetric
  keys, keys for encryption and weak keys are ignored, and so are private parts.
- An answer is untrusted: bounded in size and time, without redirects or proxies from the environment. An answer without
  a usable key counts as a failure.
- The keys are fetched again every `refresh` seconds, and when a name is not among them, but at most every `retry`
  seconds, so floods of invented names cost the issuer nothing. If fetching fails, the old keys are used for `keep`
  seconds. After that nothing can be verified (KeysUnavailable), and nothing is let in.
"""

import asyncio
import logging
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Final

import httpx
import jwt
import msgspec

from gateway.issuer import Jwt
from gateway.services.discovery import LookFailed, client, get
from gateway.services.token_facts import TokenStats
from gateway.services.verdict import Refusal

_log = logging.getLogger("fairgate.tokens")

MAX_JWKS: Final = 256 * 1024  # bytes; ten RSA keys with certificates are 30 KB
MAX_KEYS: Final = 64
RSA_BITS: Final = range(2048, 8192 + 1)  # RFC 7518 section 3.3; with longer keys one check takes a millisecond
MAX_WAITING: Final = 256
"""Maximum tokens that wait for one fetch; further ones are told to retry."""

_ALGORITHMS: Final = {("RSA", ""): "RS256", ("EC", "P-256"): "ES256"}


class JwksError(Exception):
    """The text contains no usable key."""


class KeysUnavailable(Exception):
    """It is unknown at present whether the issuer has this key."""


class _Key(msgspec.Struct, frozen=True):
    kty: str
    kid: str
    alg: str = ""
    use: str = "sig"
    key_ops: tuple[str, ...] = ("verify",)
    n: str = ""
    e: str = ""
    crv: str = ""
    x: str = ""
    y: str = ""


class _Keys(msgspec.Struct, frozen=True):
    keys: list[msgspec.Raw]


def read_keys(text: bytes | str, algorithms: tuple[str, ...]) -> dict[str, jwt.PyJWK]:
    """The keys that verify signatures, by name. Others are ignored (RFC 7517 section 5), and so is the second of two
    keys with the same name. Raises JwksError if none is left."""
    try:
        listed = msgspec.json.decode(text, type=_Keys).keys
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise JwksError(f"no JWKS: {err}") from err
    found: dict[str, jwt.PyJWK] = {}
    for raw in listed[:MAX_KEYS]:
        key = _usable(raw, algorithms)
        if key is not None:
            found.setdefault(*key)
    if not found:
        raise JwksError(f"none of {len(listed)} keys can verify {' or '.join(algorithms)}")
    return found


def _usable(raw: msgspec.Raw, algorithms: tuple[str, ...]) -> tuple[str, jwt.PyJWK] | None:
    try:
        key = msgspec.json.decode(raw, type=_Key)
        algorithm = _ALGORITHMS.get((key.kty, key.crv))
        meant = key.alg in ("", algorithm) and key.use == "sig" and "verify" in key.key_ops
        if algorithm not in algorithms or not meant or not key.kid:
            return None
        parts = {"n": key.n, "e": key.e} if key.kty == "RSA" else {"crv": key.crv, "x": key.x, "y": key.y}
        made = jwt.PyJWK({"kty": key.kty, **parts}, algorithm)
        weak = key.kty == "RSA" and made.key.key_size not in RSA_BITS
    except (msgspec.MsgspecError, jwt.PyJWTError, ValueError, RecursionError):
        return None
    return None if weak else (key.kid, made)


def signed_by(key: jwt.PyJWK, token: bytes) -> bytes | None:
    """The token's claims if it was signed with that key, else None. Blocks the loop for 50 us (RS256) or 100 us
    (ES256), plus 5 us for each KiB. Does not read the head, which was checked against this key before."""
    said, _, signature = token.rpartition(b".")
    try:
        if key.Algorithm.verify(said, key.key, _decoded(signature)):
            return _decoded(said.partition(b".")[2])
    except ValueError:  # includes binascii's errors
        pass
    return None


def _decoded(part: bytes) -> bytes:
    """Decodes base64url in its only form by RFC 7515 section 2. Raises ValueError. PyJWT's own decoder executes a step
    of the interpreter for each byte."""
    raw = urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    if urlsafe_b64encode(raw).rstrip(b"=") != part:
        raise ValueError("not base64url")
    return raw


class KeySet:
    """The keys of one issuer. Belongs to one event loop. Raises JwksError or OSError if keys given in the section
    itself cannot be read. `clock` is in monotonic seconds."""

    def __init__(self, section: Jwt, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._section = section
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._text = b""
        self._read_at = self._tried_at = float("-inf")
        self._begun = clock()
        self._sound = True  # whether the last fetch succeeded
        self._waiting = self._checked = self._fetched = self._failed = 0
        self._flight: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        if section.written_out:
            self._keys = read_keys(section.jwks, self._section.algorithms)
        else:
            self._http = client(section.jwks, key="", ca=section.ca, timeout=section.timeout)

    def start(self) -> None:
        """Start fetching; the first tokens wait for it."""
        if not self._section.written_out:
            self._keeper = asyncio.get_running_loop().create_task(self._keep())

    def inherit(self, other: "KeySet") -> None:
        """Start with the keys, and their age, of another set for the same issuer."""
        mine, its = self._section, other._section
        if (mine.issuer, mine.jwks, mine.algorithms) == (its.issuer, its.jwks, its.algorithms):
            self._keys, self._text, self._read_at = other._keys, other._text, other._read_at

    async def signed(self, token: bytes, kid: str, algorithm: str) -> bytes | Refusal:
        """The claims of a token that names this key and algorithm, after checking its signature; or why it is
        refused."""
        try:
            key = await self.find(kid, algorithm)
        except KeysUnavailable:
            return Refusal.NO_SIGNERS
        if key is None:
            return Refusal.UNKNOWN_SIGNER
        if key.algorithm_name != algorithm:
            return Refusal.FORGED
        self._checked += 1
        return signed_by(key, token) or Refusal.FORGED

    async def find(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        """The key of that name; for a token without a name, the only key of that algorithm (OpenID Connect Core, 10.1).
        None: the issuer has no such key. Raises KeysUnavailable. May be interrupted: the fetch goes on for others."""
        key = self._known(kid, algorithm)
        if self._section.written_out or (key is not None and self._fresh()):
            return key
        under_way = self._flight is not None and not self._flight.done()
        if under_way or self._clock() - self._tried_at >= self._section.retry:
            await self._wait()
        key = self._known(kid, algorithm)
        if not self._fresh() or (key is None and not self._sound):
            raise KeysUnavailable
        return key

    def _known(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        if kid:
            return self._keys.get(kid)
        some = [key for key in self._keys.values() if key.algorithm_name == algorithm]
        return some[0] if len(some) == 1 else None

    def _fresh(self) -> bool:
        return self._clock() - self._read_at <= self._section.keep

    async def _wait(self) -> None:
        if self._waiting >= MAX_WAITING:
            raise KeysUnavailable
        self._waiting += 1
        try:
            await asyncio.shield(self._fetching())
        finally:
            self._waiting -= 1

    def _fetching(self) -> asyncio.Task[None]:
        """The current fetch, or a new one."""
        if self._flight is None or self._flight.done():
            self._tried_at = self._clock()
            self._flight = asyncio.get_running_loop().create_task(self._fetch())
        return self._flight

    async def _keep(self) -> None:
        while True:
            left = self._tried_at + self._pause() - self._clock()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await asyncio.shield(self._fetching())

    def _pause(self) -> float:
        return self._section.refresh if self._sound else self._section.retry

    async def _fetch(self) -> None:
        """Never raises; `_sound` tells whether it succeeded."""
        try:
            await self._read()
        except Exception as err:  # whatever it was: unless fetching goes on, no token would ever be accepted again
            self._sound = False
            self._failed += 1
            _log.warning("the issuer's keys were not read: %s", str(err) or type(err).__name__)
        else:
            self._sound = True
            self._fetched += 1
            self._read_at = self._clock()

    async def _read(self) -> None:
        async with asyncio.timeout(self._section.timeout):
            text = await get(self._http, self._section.jwks, MAX_JWKS)
        if text != self._text:
            self._keys, self._text = read_keys(text, self._section.algorithms), text

    def retire(self) -> None:
        """Fetch no more; those that wait for a fetch still get its result."""
        if self._keeper is not None:
            self._keeper.cancel()

    async def close(self) -> None:
        """Stop everything; nobody waits any more."""
        tasks = [task for task in (self._keeper, self._flight) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._section.written_out:
            await self._http.aclose()

    def stats(self) -> TokenStats:
        """A snapshot for metrics. Before the first successful fetch, the age is that of this object."""
        age = 0.0 if self._section.written_out else self._clock() - max(self._read_at, self._begun)
        return TokenStats(
            checked=self._checked, fetched=self._fetched, failed=self._failed, signers=len(self._keys), age=age
        )


async def fault_of(section: Jwt) -> str:
    """Why the section's keys cannot be fetched now; empty if they can."""
    try:
        keys = KeySet(section)
        try:
            if not section.written_out:
                await keys._read()
        finally:
            await keys.close()
    except TimeoutError:
        return f"no answer within {section.timeout:g} s"
    except (JwksError, LookFailed, httpx.HTTPError, OSError) as err:
        return str(err) or type(err).__name__
    return ""
