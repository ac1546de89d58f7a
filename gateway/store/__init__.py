"""Where keys, usage and the audit trail are kept: one protocol with an embedded and a shared implementation (D)."""

from pathlib import Path

from gateway.store.base import Store, StoreError
from gateway.store.sqlite import open_sqlite

__all__ = ["Store", "StoreError", "open_store"]


async def open_store(url: str) -> Store:
    """Open the store named by `url`: a path or `sqlite:///PATH`, whose schema is migrated here, or `postgresql://...`,
    whose schema must be current (`migrate`). Raises StoreError."""
    scheme, sep, rest = url.partition("://")
    if not sep:
        return await open_sqlite(Path(url))
    if scheme == "sqlite":
        return await open_sqlite(Path(rest.removeprefix("/")))
    if scheme in ("postgresql", "postgres"):
        from gateway.store.postgresql import open_postgresql  # the embedded store must not need the driver

        return await open_postgresql(url)
    raise StoreError(f"store: {scheme}:// is not a database this program knows")
