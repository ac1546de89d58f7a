"""Fixtures that give a test a store of its own on each database. One server per session, one database per test."""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from gateway.store.postgresql import migrate
from tests.servers import PostgreSQL, Redis, Unavailable

_TEMPLATE = "template_fairgate"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A running server; its template database has the schema."""
    try:
        server = PostgreSQL()
    except Unavailable as err:
        pytest.skip(str(err))
    try:
        server.start()
        asyncio.run(_statement(server, f"CREATE DATABASE {_TEMPLATE}"))
        asyncio.run(migrate(server.url(_TEMPLATE)))
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """A running, empty server."""
    try:
        server = Redis()
    except Unavailable as err:
        pytest.skip(str(err))
    try:
        server.start()
        yield server
    finally:
        server.close()


async def _statement(server: PostgreSQL, sql: str) -> None:
    connection = await asyncpg.connect(server.url("postgres"))
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> str:
    """An empty database with the schema."""
    name = f"test_{next(_numbers)}"
    asyncio.run(_statement(postgresql, f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}"))
    return postgresql.url(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "fairgate.db")
    url: str = request.getfixturevalue("postgresql_url")
    return url
