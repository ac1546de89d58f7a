"""End users on whose behalf a key acts (K10): for one request, the named user replaces the key's principal.

Owns the reading of those users and its cache; must not know where a request names them. If the key's tenant has a user
of that name, its share and limits apply. An unknown name is a party of its own too, with the share and the limits of
the key's own user; each name counts for itself, and keys of different users do not share its limits. The key's rights
stay, and the limits of key and tenant apply to all users together.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

import msgspec

from gateway.config import Identity
from gateway.errors import AuthUnavailable, BadRequest, Forbidden
from gateway.services import bounded
from gateway.services.keyfmt import without_keys
from gateway.services.keys import KeyService
from gateway.services.principal import Principal
from gateway.store.base import Store, StoreError, User
from gateway.store.limits import NO_LIMITS, Scoped

_log = logging.getLogger("fairgate.keys")

LONGEST_NAME = 256
UNKNOWN = "~"
"""Prefix for the name of a user that the store does not know; no id begins with it."""


class _Entry(msgspec.Struct, frozen=True, gc=False):
    base: Principal
    epoch: int
    until: float
    acting: Principal | None  # None: disabled


class EndUsers:
    """Finds the principals of end users. Belongs to one event loop. `clock` is in monotonic seconds."""

    def __init__(
        self, store: Store, keys: KeyService, config: Identity, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._keys = keys
        self._config = config
        self._clock = clock
        self._known: dict[tuple[str, str], _Entry] = {}

    def lookup(self, base: Principal, name: str) -> Principal | None:
        """The acting principal if it is cached; None: call `find`. Raises BadRequest, Forbidden."""
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise BadRequest(f"The name of the end user is at most {LONGEST_NAME} printable characters.")
        if without_keys(name) != name:
            raise BadRequest("The name of the end user contains an API key.")
        entry = self._known.get((base.key, name))
        if entry is None or entry.base is not base or entry.epoch != self._keys.epoch or entry.until <= self._clock():
            return None
        return _allowed(entry.acting)

    async def find(self, base: Principal, name: str) -> Principal:
        """Read it from the store. Raises AuthUnavailable, Forbidden. May be interrupted."""
        epoch = self._keys.epoch
        found = await asyncio.get_running_loop().create_task(self._read(base.tenant, name))
        if isinstance(found, StoreError | TimeoutError):
            _log.warning("the store did not answer for an end user: %s", found or "timeout")
            raise AuthUnavailable("End users cannot be looked up at the moment.", retry_after=1.0)
        acting = acting_for(base, name, found)
        entry = _Entry(base, epoch, self._clock() + self._config.cache_seconds, acting)
        bounded.put(self._known, (base.key, name), entry, self._config.cache_size)
        return _allowed(acting)

    async def _read(self, tenant: str, name: str) -> User | StoreError | TimeoutError | None:
        """Runs in its own Task, which the timeout needs."""
        try:
            async with asyncio.timeout(self._config.store_timeout):
                user = await self._store.user(tenant, name)
        except (StoreError, TimeoutError) as err:
            return err
        return user if user is not None and user.name == name else None


def acting_for(base: Principal, name: str, user: User | None) -> Principal | None:
    """`base` acting for `user`, or for a user the store does not know; None if the user is disabled."""
    if user is not None and user.disabled_at is not None:
        return None
    own = next((scoped.limits for scoped in base.limits if scoped.scope == f"user:{base.user}"), NO_LIMITS)
    if user is None:
        party, share, limits = UNKNOWN + name, base.share, own
        scope = f"user:{base.tenant}/{base.user}/{UNKNOWN}{name}"
    else:
        party, share, limits, scope = user.id, user.share, user.limits, f"user:{user.id}"
    scopes = [scoped for scoped in base.limits if not scoped.scope.startswith("user:")]
    if limits != NO_LIMITS:
        outer = sum(scoped.scope.startswith("tenant:") for scoped in scopes)
        scopes.insert(outer, Scoped(scope, limits))
    return replace(base, user=party, share=share, limits=tuple(scopes))


def _allowed(acting: Principal | None) -> Principal:
    if acting is None:
        raise Forbidden("This end user is disabled.")
    return acting
