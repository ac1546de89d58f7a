"""Lists of people and keys while others make some (O5)."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import cli
from gateway.store.base import Store
from gateway.store.sql import SqlStore


@pytest.mark.parametrize("family", ["users", "keys"])
def test_whoever_is_made_meanwhile_breaks_no_list(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tenant, its user and a key come between a list's first read and its last."""
    where = ["--store", str(tmp_path / "fairgate.db")]
    for line in ("tenants create acme", "users create ann --tenant acme", "keys create --tenant acme --user ann"):
        assert cli.main([*line.split(), *where]) == 0
    made: list[str] = []

    def meanwhile(name: str) -> None:
        read = getattr(SqlStore, name)

        async def then_more(self: Store, *given: Any) -> Any:
            found = await read(self, *given)
            if not made:
                made.append(name)
                await _add(self)
            return found

        monkeypatch.setattr(SqlStore, name, then_more)

    reads = {name: getattr(SqlStore, name) for name in ("tenants", "users", "keys")}

    async def _add(store: Store) -> None:
        (tenant,) = await reads["tenants"](store)
        (user,) = await reads["users"](store)
        (key,) = await reads["keys"](store)
        await store.add_tenant(msgspec.structs.replace(tenant, id="t2", name="late"))
        await store.add_user(msgspec.structs.replace(user, id="u2", tenant="t2"))
        await store.add_key(msgspec.structs.replace(key, id="k2", user="u2"))

    for name in reads:
        meanwhile(name)
    capsys.readouterr()
    assert cli.main([family, "list", *where]) == 0
    assert made
    assert "acme" in capsys.readouterr().out
