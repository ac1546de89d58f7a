"""Authentication: a key becomes a `Principal` (K). Owns verification, its caches and their revocation.

Must not know limits, routing or HTTP; `rights` decides what a key may do. Rules:

- A verified key is cached under a keyed digest (SHA-256 with a key that lives and dies with the process). Neither the
  key nor anything that would allow guessing it offline is kept. `lookup` answers from this cache without waiting.
- A successful Argon2id check (this digest matches that stored hash) is remembered separately from what the store says
  about the key. When an entry expires or its tenant changes, one read of the store renews it, without hashing.
- Everything read from the store is read again after `cache_seconds`; a change (revocation, disabling) drops what was
  derived from it at once. If anything changes during a verification, it reads the store again before its result is
  used, so it can never bring back a revoked key.
- If the store is down or slow, requests are denied with AuthUnavailable (K5).
- Failures of one address are throttled before the store and Argon2 are used. A key that was proven before is exempt,
  also from the limits on concurrent verifications: one bad client must not lock out others behind the same address.
- Unknown ids never reach Argon2. Every failure is answered at a multiple of `FAILURE_QUANTUM` after its start, so that
  the time of a single one does not reveal whether the secret or the id was wrong. The time of many at once may: ids are
  public.
- Refusals are paced (`turn_to_refuse`), so that a flood of them leaves the processor to other requests.
"""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from typing import TypeVar

from gateway.config import Identity
from gateway.errors import AuthUnavailable, Forbidden, GatewayError, Unauthenticated
from gateway.services import bounded
from gateway.services.key_facts import KeyStats
from gateway.services.keyfmt import parse, shaped
from gateway.services.principal import ISSUED, Grant, Principal
from gateway.services.proofs import ChainReader, Prover
from gateway.services.rights import inside, principal_of
from gateway.services.throttle import FailureThrottle, RefusalPace
from gateway.services.verdict import DENIALS, LAPSED, NO_GUESSES, PASSING, Refusal, TokenJudge, Verdict
from gateway.store.base import Chain, Changes, Store, StoreError

_log = logging.getLogger("fairgate.keys")

FAILURE_QUANTUM = 0.1
"""Seconds; several times one Argon2id verification at the default cost (17 ms). See the rules above."""
CHANGE_POLL = 0.5
"""Seconds between two polls of the store for changes: a revocation elsewhere acts within 1 s (K3)."""
CHANGE_GAP = 0.25
"""Minimum seconds between applying changes. A running verification reads the store again after each change that is
applied; with hundreds of changes a second it would never finish, and be denied."""
_GUESSES = 2
"""Unproven secrets of one key that are verified concurrently; further ones are refused (BUSY)."""
_REREADS = 3
"""How often a verification starts over because something changed during it."""

T = TypeVar("T")


class KeyService:
    """Verifies keys. Belongs to one event loop; only Argon2 runs elsewhere. `wall` gives Unix seconds."""

    def __init__(
        self,
        store: Store,
        config: Identity,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._wall = wall
        self._salt = secrets.token_bytes(32)
        self._verified: dict[bytes, Grant] = {}
        self._negative: dict[bytes, tuple[float, Refusal]] = {}
        self._proofs: dict[bytes, tuple[str, str]] = {}  # digest -> (key id, stored hash that it matched)
        self._flights: dict[bytes, asyncio.Task[Verdict]] = {}
        self._guesses: Counter[str] = Counter()  # key id -> running verifications of unproven secrets
        self._throttle = FailureThrottle(config.failures_per_minute)
        self._pace = RefusalPace()
        self._reader = ChainReader(store, config.store_timeout)
        self._prover = Prover(config, clock)
        self._epoch = 0  # incremented whenever anything derived from the store may be stale
        self._seen = 0  # the store's version up to which changes were applied
        self._looked_at = self._forget_at = clock()
        self._used: dict[str, int] = {}
        self._watcher: asyncio.Task[None] | None = None
        self.tokens: TokenJudge | None = None
        """Verifies credentials that are not keys but may be tokens of an issuer (K9)."""
        self._refused = self._unavailable = 0
        self.on_failure: Callable[[str], None] = lambda ip: None
        """Called with the address of each failed authentication in this process."""

    # -- hot path

    def lookup(self, token: bytes, ip: str) -> Grant | None:
        """The cached grant of a key; None: call `verify`. Raises Unauthenticated (failed recently), RateLimited (this
        address fails too often) or Forbidden (not from this address)."""
        digest = sha256(self._salt + token).digest()
        grant = self._verified.get(digest)
        if grant is not None and grant.until > self._clock():
            cidrs = grant.principal.cidrs
            if cidrs and not inside(ip, cidrs):
                raise Forbidden("This API key may not be used from this address.")
            return grant
        if digest not in self._proofs:
            self._refuse_known(digest, ip)
        return None

    def holds(self, grant: Grant, epoch: int) -> bool:
        """Whether a grant from `lookup` is still valid, where `epoch` is its value at that time."""
        return epoch == self._epoch and grant.until > self._clock()

    def _refuse_known(self, digest: bytes, ip: str) -> None:
        now = self._clock()
        self._throttle.check(ip, now)
        until, refusal = self._negative.get(digest, (now, Refusal.INVALID))
        if until > now:
            self._count_failure(ip)
            raise Unauthenticated(refusal.value)

    # -- slow path

    async def verify(self, token: bytes, ip: str) -> Principal:
        """Verify a key against the store. Raises the same errors as `lookup`, and AuthUnavailable. May be interrupted:
        the verification goes on for others who wait for the same key, and its result is cached."""
        started = self._clock()
        parsed = parse(token) or self._as_token(token)
        if parsed is None:
            self._count_failure(ip)
            raise Unauthenticated(Refusal.INVALID.value)
        digest = sha256(self._salt + token).digest()
        verdict = await self._joined(digest, *parsed)
        if isinstance(verdict, Principal):
            if verdict.cidrs and not inside(ip, verdict.cidrs):
                raise Forbidden("This API key may not be used from this address.")
            return verdict
        if verdict not in DENIALS:
            if verdict in NO_GUESSES:
                self._refused += 1
            else:
                self._count_failure(ip)
            await self._quantised(started)
        raise self._error(verdict)

    def _as_token(self, token: bytes) -> tuple[str, bytes] | None:
        """Parse a token of an issuer: it has no key id, and is its own secret."""
        return ("", token) if self.tokens is not None and shaped(token) else None

    def _error(self, refusal: Refusal) -> GatewayError:
        if refusal in DENIALS:
            self._unavailable += 1
            return AuthUnavailable(refusal.value, retry_after=1.0)
        return Unauthenticated(refusal.value)

    def _count_failure(self, ip: str) -> None:
        self._refused += 1
        self.failed_at(ip)
        self.on_failure(ip)

    def failed_at(self, ip: str) -> None:
        """An authentication from this address failed, here or in another worker."""
        self._throttle.failed(ip, self._clock())

    def turn_to_refuse(self) -> "asyncio.Future[None] | None":
        """A future that is done when a failed authentication may be answered; None: at once."""
        wait = self._pace.wait(self._clock())
        return _after(wait) if wait else None

    def _quantised(self, started: float) -> "asyncio.Future[None]":
        """A future that is done at the next multiple of FAILURE_QUANTUM after `started`."""
        return _after(FAILURE_QUANTUM - (self._clock() - started) % FAILURE_QUANTUM)

    def _joined(self, digest: bytes, key_id: str, secret: bytes) -> "asyncio.Future[Verdict]":
        """A separate future for the shared verification of this digest, so that giving it up disturbs nobody else."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Verdict] = loop.create_future()
        flight = self._flights.get(digest)
        if flight is None:
            guess = key_id != "" and digest not in self._proofs
            if guess and self._crowded(key_id):
                waiter.set_result(Refusal.BUSY)
                return waiter
            flight = self._flights[digest] = loop.create_task(self._flight(digest, key_id, secret))
            self._guesses[key_id] += guess
            flight.add_done_callback(lambda _: self._landed(digest, key_id, guess))
        flight.add_done_callback(lambda done: _settle(waiter, _verdict_of(done)))
        return waiter

    def _crowded(self, key_id: str) -> bool:
        """Whether too many unproven secrets are being verified, in total or for this key."""
        return self._guesses.total() >= self._config.argon2_queue or self._guesses[key_id] >= _GUESSES

    def _landed(self, digest: bytes, key_id: str, guess: bool) -> None:
        self._flights.pop(digest, None)
        self._guesses[key_id] -= guess
        if not self._guesses[key_id]:
            del self._guesses[key_id]

    async def _flight(self, digest: bytes, key_id: str, secret: bytes) -> Verdict:
        for _ in range(_REREADS):
            epoch = self._epoch
            verdict = await self._judge(digest, key_id, secret)
            if epoch == self._epoch:
                self._remember(digest, verdict)
                if verdict in LAPSED:  # logged once per `cache_seconds`; then the verdict comes from the cache
                    _log.warning("a key that lapsed is used", extra={"key": key_id, "why": verdict.name.lower()})
                return verdict
        return Refusal.UNAVAILABLE

    async def _judge(self, digest: bytes, key_id: str, secret: bytes) -> Verdict:
        """One read of the store, and Argon2 unless this digest was proven against the same stored hash."""
        if not key_id:
            return await self._judge_token(digest, secret)
        try:
            async with asyncio.timeout(self._config.store_timeout):
                chain = await self._reader.read(key_id)
        except (StoreError, TimeoutError) as err:
            _log.warning("the store did not answer for a key: %s", err or "timeout")
            return Refusal.UNAVAILABLE
        if chain is None:
            return Refusal.INVALID
        if self._proofs.get(digest) != (key_id, chain.key.hash):
            self._proofs.pop(digest, None)
            try:
                matches = await self._prover.matches(key_id, chain.key.hash, secret)
            except TimeoutError:
                return Refusal.BUSY
            if not matches:
                return Refusal.INVALID
            bounded.put(self._proofs, digest, (key_id, chain.key.hash), self._config.cache_size)
        return self._status(chain)

    async def _judge_token(self, digest: bytes, token: bytes) -> Verdict:
        """A token once found good counts as proven, so that the throttle spares its holder after the cache has dropped
        it."""
        verdict = await self.tokens.judge(token) if self.tokens is not None else Refusal.INVALID
        if isinstance(verdict, Principal):
            bounded.put(self._proofs, digest, ("", ""), self._config.cache_size)
        elif verdict not in DENIALS:
            self._proofs.pop(digest, None)
        return verdict

    def _status(self, chain: Chain) -> Verdict:
        if chain.key.revoked_at is not None:
            return Refusal.REVOKED
        if any(row.disabled_at is not None for row in (chain.tenant, chain.user, chain.key)):
            return Refusal.DISABLED
        if chain.key.expires_at is not None and chain.key.expires_at <= self._wall() * 1e6:
            return Refusal.EXPIRED
        return principal_of(chain)

    def _remember(self, digest: bytes, verdict: Verdict) -> None:
        """Cache the verdict. There must be no await between the check of the epoch and this."""
        now = self._clock()
        if isinstance(verdict, Principal):
            self._forget_ended(now)
            until = now + self._config.cache_seconds
            if verdict.expires_at is not None:
                until = min(until, now + verdict.expires_at - self._wall())
            bounded.put(self._verified, digest, Grant(until, verdict), self._config.cache_size)
            if not verdict.key.startswith(ISSUED):
                self._used[verdict.key] = int(self._wall() * 1e6)
        elif verdict not in PASSING:
            self._proofs.pop(digest, None)  # the holder of a revoked key is throttled like any stranger
            bounded.put(self._negative, digest, (now + self._config.cache_seconds, verdict), self._config.cache_size)

    def _forget_ended(self, now: float) -> None:
        """Drop expired grants, once per `cache_seconds`: most tokens are used for a short time only."""
        if now >= self._forget_at:
            self._forget_at = now + self._config.cache_seconds
            for digest in [digest for digest, grant in self._verified.items() if grant.until <= now]:
                del self._verified[digest]

    @property
    def epoch(self) -> int:
        """Incremented whenever anything derived from the store may be stale."""
        return self._epoch

    # -- what changed

    def forget(self, row_id: str) -> None:
        """This process changed a tenant, user or key: what was derived from it is read again at once."""
        self._epoch += 1
        self._negative.clear()
        self._drop(lambda p: row_id in (p.key, p.user, p.tenant))

    def invalidate(self) -> None:
        """Forget everything read from the store. Proofs stay, since they hold only for the same stored hash."""
        self._epoch += 1
        self._verified.clear()
        self._negative.clear()

    def _apply(self, changes: Changes) -> bool:
        """Apply changes; whether there were any."""
        self._seen = changes.version
        self._looked_at = self._clock()
        if not changes.complete:
            self.invalidate()
        elif changes.items:
            self._epoch += 1
            self._negative.clear()  # a credential that failed may have been enabled
            stale = {change.id for change in changes.items}
            self._drop(lambda p: p.key in stale or p.user in stale or p.tenant in stale)
        return bool(changes.items) or not changes.complete

    def _drop(self, stale: Callable[[Principal], bool]) -> None:
        """Drop stale grants by a scan: 5 ms at the default limit of 100 000 keys, but changes are rare."""
        for digest in [digest for digest, entry in self._verified.items() if stale(entry.principal)]:
            del self._verified[digest]

    # -- life

    async def start(self) -> None:
        """Start polling for changes made elsewhere. Raises StoreError."""
        self._seen = await self._store.version()
        self._looked_at = self._clock()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        gap = 0.0
        while True:
            try:
                await asyncio.sleep(gap)
                await self._store.wait_change(CHANGE_POLL - gap)
                gap = CHANGE_GAP if self._apply(await self._store.changes(self._seen)) else 0.0
                await self._write_used()
            except Exception as err:  # whatever it was: without this task, no revocation made elsewhere would act
                expected = isinstance(err, StoreError)
                _log.warning("the store's changes were not read: %s", err, exc_info=None if expected else err)
                await asyncio.sleep(CHANGE_POLL)

    async def _write_used(self) -> None:
        if self._used:
            used, self._used = self._used, {}
            try:
                await self._store.touch_keys(used)
            except BaseException:
                self._used = used | self._used
                raise

    async def close(self) -> None:
        """Stop polling, write the times of last use, end the threads."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await asyncio.gather(*self._flights.values(), return_exceptions=True)
        await self._reader.close()
        try:
            await self._write_used()
        except StoreError as err:
            _log.warning("the last uses of %d keys were not written: %s", len(self._used), err)
        self._prover.close()

    @property
    def silence(self) -> float:
        """Seconds since the store last answered the poll for changes, which runs every CHANGE_POLL."""
        return self._clock() - self._looked_at

    def stats(self) -> KeyStats:
        """A snapshot for metrics."""
        return KeyStats(
            hashed=self._prover.hashed,
            refused=self._refused,
            unavailable=self._unavailable,
            cached=len(self._verified),
            negative=len(self._negative),
            flights=len(self._flights),
            silence=self.silence,
        )


def _after(seconds: float) -> "asyncio.Future[None]":
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    loop.call_later(seconds, _settle, waiter, None)
    return waiter


def _settle(waiter: "asyncio.Future[T]", value: T) -> None:
    if not waiter.done():
        waiter.set_result(value)


def _verdict_of(flight: "asyncio.Task[Verdict]") -> Verdict:
    """A verification that raised counts as a denial; its exception goes to the log."""
    if flight.cancelled():
        return Refusal.UNAVAILABLE
    error = flight.exception()
    if error is not None:
        _log.error("a verification broke", exc_info=error)
        return Refusal.UNAVAILABLE
    return flight.result()
