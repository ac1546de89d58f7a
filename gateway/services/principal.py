"""The authenticated party. Plain data: `rights` creates principals, `keys` grants."""

import ipaddress
from dataclasses import dataclass

from gateway.store.limits import Scoped

ISSUED = "jwt:"
"""Prefix of the key id of a user with a token of an issuer; no key's id begins with it."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Principal:
    """Who is asking and what it may do. Shares are weights of fair use; `queue_timeout` is in seconds, `expires_at` in
    Unix seconds; `models` is the effective set (K8); `cidrs` are allowlists, each of which must contain the client."""

    tenant: str
    user: str
    key: str
    share: float = 1.0
    tenant_share: float = 1.0
    priority: str = "interactive"
    allow_all_models: bool = False
    models: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    queue_timeout: float | None = None
    on_behalf: bool = False
    force_model: str = ""
    expires_at: float | None = None
    cidrs: tuple[tuple[Network, ...], ...] = ()
    limits: tuple[Scoped, ...] = ()
    """Limits of tenant, user and key, if set (K1). All of them apply, so the tightest decides."""
    prompt_days: int = 0
    """Its prompts are kept for this long; 0 = not kept (U5)."""

    def may_use(self, model: str) -> bool:
        """Whether its rights allow the model; discovery decides whether the model exists."""
        return self.allow_all_models or model in self.models


@dataclass(frozen=True)
class Grant:
    """A verified key. `until`: monotonic seconds, when the cache entry or the key itself expires, whichever is
    earlier."""

    until: float
    principal: Principal
