"""Two admins at the same moment: what each was told is what holds (O8, U7)."""

import asyncio
import datetime
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.admin import call
from gateway.errors import Unavailable
from tests.admin.desk import BASE, Desk, desk

pytestmark = pytest.mark.timeout(120)
ROUNDS = 5
"""Without turns about one of twenty goes well by chance."""


def test_changes_at_once_overwrite_nothing(store_url: str, tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path, store_url) as it:
            for n in range(ROUNDS):
                await _limits(it)
                await _windows(it, n)
                await _decisions(it)

    asyncio.run(body())


def test_no_change_waits_long_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that hangs under one is no reason for the others to hang one after another."""
    monkeypatch.setattr(call, "TURN_SECONDS", 0.01)

    async def body() -> None:
        office = call.Office(cast(Any, None), cast(Any, None))
        async with office.turn():
            with pytest.raises(Unavailable):
                async with office.turn():
                    raise AssertionError
        async with office.turn():
            pass

    asyncio.run(body())


async def _limits(it: Desk) -> None:
    """Each changes what it names."""
    path = f"{BASE}/tenants/acme/limits"
    assert (await it.ask("DELETE", path)).status_code == 200
    changes = {"concurrent": 5}, {"tokens_per_day": 1000}
    told = await asyncio.gather(*(it.ask("PATCH", path, each) for each in changes))
    assert [each.status_code for each in told] == [200, 200]
    assert (await it.get("/tenants/acme/limits"))["limits"] == changes[0] | changes[1]


async def _windows(it: Desk, n: int) -> None:
    """Of two that shut each other out one is refused."""
    start = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1 + n)).isoformat()
    wish = {"start": start, "minutes": 5, "exclusive": True, "approve": True}
    other = f"other{n}"
    assert (await it.ask("POST", f"{BASE}/tenants", {"name": other})).status_code == 201
    both = (it.ask("POST", f"{BASE}/reservations", wish | {"tenant": each}) for each in ("acme", other))
    assert sorted(each.status_code for each in await asyncio.gather(*both)) == [201, 409]


async def _decisions(it: Desk) -> None:
    """What was cancelled is not approved any more."""
    made = await it.ask("POST", f"{BASE}/reservations", {"tenant": "acme", "minutes": 5})
    path = f"{BASE}/reservations/{made.json()['id']}"
    cancelled, _ = await asyncio.gather(it.ask("POST", f"{path}/cancel"), it.ask("POST", f"{path}/approve"))
    assert cancelled.status_code == 200
    states = {row["id"]: row["state"] for row in (await it.get("/reservations?limit=200"))["data"]}
    assert states[made.json()["id"]] == "cancelled"
