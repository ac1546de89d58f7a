"""The rights of a key: its own row and those of its owners become a `Principal` (K1, K7, K8).

Pure. Must not know how a key is verified, nor what is requested with it.
"""

import ipaddress
from functools import lru_cache

from gateway.api.model_names import meant
from gateway.services.principal import Network, Principal
from gateway.store.base import Chain, Key, Tenant, User
from gateway.store.limits import NO_LIMITS, Scoped

SCOPES = ("chat", "completions", "embeddings", "responses", "rerank", "messages", "ollama")
"""Scopes that a route may require (K7); a key has all of them unless it was created with fewer. `admin:*` is never
implied."""


def principal_of(chain: Chain) -> Principal:
    """The rights of a key, from its own row and its owners' rows (K1, K8)."""
    tenant, user, key = chain.tenant, chain.user, chain.key
    allow_all, models = _models(chain)
    lists = [cidrs for cidrs in (tenant.cidrs, key.cidrs) if cidrs]
    return Principal(
        tenant=tenant.id,
        user=user.id,
        key=key.id,
        share=user.share,
        tenant_share=tenant.share,
        priority=key.priority,
        allow_all_models=allow_all,
        models=models,
        scopes=frozenset(key.scopes),
        queue_timeout=key.queue_timeout,
        on_behalf=key.on_behalf,
        force_model=key.force_model,
        expires_at=None if key.expires_at is None else key.expires_at / 1e6,
        cidrs=tuple(tuple(ipaddress.ip_network(cidr) for cidr in cidrs) for cidrs in lists),
        limits=limits_of(tenant, user, key),
        prompt_days=key.prompt_days,
    )


def limits_of(tenant: Tenant, user: User, key: Key) -> tuple[Scoped, ...]:
    """The limits that apply to a key, outermost first, without empty ones."""
    scopes = ((f"tenant:{tenant.id}", tenant), (f"user:{user.id}", user), (f"key:{key.id}", key))
    return tuple(Scoped(scope, row.limits) for scope, row in scopes if row.limits != NO_LIMITS)


def _models(chain: Chain) -> tuple[bool, frozenset[str]]:
    """The tenant's set of models narrowed by the key's -> (all, named). Without any permission the set is empty
    (K8)."""
    tenant, key = chain.tenant, chain.key
    inherits = key.allow_all_models or (key.allow_all_models is None and not key.models)
    if inherits:
        return tenant.allow_all_models, frozenset() if tenant.allow_all_models else meant(tenant.models)
    named = meant(key.models)
    return False, named if tenant.allow_all_models else named & meant(tenant.models)


@lru_cache(maxsize=4096)
def inside(ip: str, cidrs: tuple[tuple[Network, ...], ...]) -> bool:
    """Whether each allowlist contains the address; an IPv4 address mapped into IPv6 counts as IPv4."""
    try:
        address = ipaddress.ip_address(ip.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return all(any(address in network for network in allowed) for allowed in cidrs)
