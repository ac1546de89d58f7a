"""Tenants, users and keys of a benchmark, made in the gateway's own environment: `python -m bench.keys CONFIG COUNT`.

Prints the keys, one a line. Each is limited in requests, tokens and open requests as a real key would be, but far above
any load (`--unlimited`: not at all). Knows the store, not the running gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from pathlib import Path

from gateway import config as cfg
from gateway import loading
from gateway.services.accounts import KeyTerms, create_key, create_tenant, create_user
from gateway.store import open_store
from gateway.store.base import User
from gateway.store.limits import NO_LIMITS, Limits

TENANTS, USERS = 2, 4  # users of each tenant
FAR = Limits(requests_per_minute=1 << 40, tokens_per_minute=1 << 40, concurrent=1 << 20)


async def make(config: cfg.Config, count: int, limits: Limits) -> list[str]:
    """The keys, their owners in turn. What is there already is used."""
    store = await open_store(config.store)
    try:
        users: list[User] = []
        for number in range(TENANTS):
            name = f"tenant{number}"
            tenant = await store.tenant(name) or await create_tenant(store, name, allow_all_models=True)
            names = [f"user{n}" for n in range(USERS)]
            users += [await store.user(tenant.id, user) or await create_user(store, tenant, user) for user in names]
        owners = itertools.islice(itertools.cycle(users), count)
        terms = KeyTerms(limits=limits)
        return [(await create_key(store, owner, terms, config.identity))[1] for owner in owners]
    finally:
        await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--unlimited", action="store_true")
    given = parser.parse_args()
    limits = NO_LIMITS if given.unlimited else FAR
    print("\n".join(asyncio.run(make(loading.load(given.config), given.count, limits))))


if __name__ == "__main__":
    main()
