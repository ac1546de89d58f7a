"""Fixtures of several services' tests."""

from pathlib import Path

import pytest

from tests.services.limited import Form, command


@pytest.fixture(params=["embedded", "shared"])
def form(request: pytest.FixtureRequest, tmp_path: Path) -> Form:
    """SQLite and counting in the process; PostgreSQL and Redis."""
    if request.param == "embedded":
        return Form(str(tmp_path / "fairgate.db"))
    redis = request.getfixturevalue("redis")
    command(redis.port, "FLUSHALL")
    return Form(request.getfixturevalue("postgresql_url"), redis.url())
