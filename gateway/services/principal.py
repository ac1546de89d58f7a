"""Who is asking, once a key or token was verified. Pure facts: `rights` makes principals, `keys` grants."""

import ipaddress
from dataclasses import dataclass

from gateway.store.limits import Scoped

ISSUED = "jwt:"
"""Begins the key id of who came with a token of an issuer; no key's id does."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Principal:
    """Who is asking and what it may. Shares are weights of fair use; `queue_timeout` is seconds, `expires_at` Unix
    seconds; `models` is the effective set (K8); `cidrs` are allowlists, each of which must contain the client."""

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
    """Of tenant, user and key, where they have any (K1): all of them hold, so the tightest does."""
    prompt_days: int = 0
    """What it asks is kept that long; 0 = it is not (U5)."""

    def may_use(self, model: str) -> bool:
        """Whether identity allows the model; discovery decides whether it exists."""
        return self.allow_all_models or model in self.models


@dataclass(frozen=True)
class Grant:
    """A verified key. `until`: monotonic seconds, the earlier of the cache's and the key's own end."""

    until: float
    principal: Principal
