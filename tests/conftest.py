"""Fixtures that every test may ask for."""

from tests.databases import postgresql, postgresql_url, redis, store_url

__all__ = ["postgresql", "postgresql_url", "redis", "store_url"]
