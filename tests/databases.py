"""Fixtures that give a test an empty store on each database. One server per session, emptied for each test."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from gateway.store.postgresql import migrate
from tests.servers import PostgreSQL, Redis, Unavailable

DATABASE = "fairgate"

EMPTY = """
DO $$
DECLARE
    names TEXT;
BEGIN
    SELECT string_agg(quote_ident(tablename), ', ') INTO names FROM pg_tables
        WHERE schemaname = 'public' AND tablename NOT IN ('schema_migrations', 'change_counter');
    EXECUTE 'TRUNCATE ' || names || ' RESTART IDENTITY CASCADE';
    UPDATE change_counter SET version = 0;
END
$$
"""


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A running server; the database DATABASE has the schema."""
    try:
        server = PostgreSQL()
    except Unavailable as err:
        pytest.skip(str(err))
    try:
        server.start()
        asyncio.run(statement(server.url("postgres"), f"CREATE DATABASE {DATABASE}"))
        asyncio.run(migrate(server.url(DATABASE)))
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


async def statement(url: str, sql: str) -> None:
    """Run SQL as whoever `url` names."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> str:
    """The emptied database; a database for each test would cost seconds on a busy disk."""
    url = postgresql.url(DATABASE)
    asyncio.run(statement(url, EMPTY))
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "fairgate.db")
    url: str = request.getfixturevalue("postgresql_url")
    return url
