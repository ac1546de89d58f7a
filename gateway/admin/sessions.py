"""Sessions of the console: who is logged in, by the secret that the browser stores.

Kept in memory only, so they end with the process. Must not know cookies or how anybody logged in.
"""

import secrets
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from gateway.services import bounded
from gateway.services.principal import Principal

PERSON: Final = "oidc:"
"""Prefix of the name under which a session's actions are recorded; no key's name begins with it."""
MOST: Final = 1000


class Sessions:
    """`seconds` is the lifetime of a session; `clock` is in monotonic seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        # By the hash of the secret, so that the time of a look-up reveals nothing
        self._open: dict[bytes, tuple[float, Principal]] = {}

    def begin(self, who: Principal) -> str:
        """The secret of a new session."""
        secret = secrets.token_urlsafe(32)
        bounded.put(self._open, _name(secret), (self._clock() + self._seconds, who), MOST)
        return secret

    def find(self, secret: str) -> Principal | None:
        """The owner of the session, unless it has expired."""
        until, who = self._open.get(_name(secret), (0.0, None))
        return who if until > self._clock() else None

    def end(self, secret: str) -> None:
        """End a session at once."""
        self._open.pop(_name(secret), None)


def _name(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
