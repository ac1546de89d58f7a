"""Sessions of the console: who logged in, by the secret that the browser keeps.

In memory: they end with the process, and nothing else knows of them. Must not know cookies or how anybody logged in.
"""

import secrets
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from gateway.services import bounded
from gateway.services.principal import Principal

PERSON: Final = "oidc:"
"""Begins what records call who acts in a session; a key's begins otherwise."""
MOST: Final = 1000


class Sessions:
    """`seconds` is the life of one, `clock` monotonic seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._open: dict[bytes, tuple[float, Principal]] = {}  # by the hash: a look-up tells nothing by its time

    def begin(self, who: Principal) -> str:
        """The secret of a new session."""
        secret = secrets.token_urlsafe(32)
        bounded.put(self._open, _name(secret), (self._clock() + self._seconds, who), MOST)
        return secret

    def find(self, secret: str) -> Principal | None:
        """Whose it is, if it lasts."""
        until, who = self._open.get(_name(secret), (0.0, None))
        return who if until > self._clock() else None

    def end(self, secret: str) -> None:
        """At once."""
        self._open.pop(_name(secret), None)


def _name(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
