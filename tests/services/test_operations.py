"""Settings and reservations at runtime, and fair use across a restart; the clock is the tests' own."""

import contextlib
import datetime
import getpass
import io
import json
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import uvloop

from gateway.cli import main
from gateway.services import tuning
from gateway.services.accounts import NoSuch, Taken, create_tenant
from gateway.services.operations import Operations
from gateway.store import open_store
from gateway.store.base import Store
from gateway.store.operations import Reservation, SavedUsage
from scheduler.aio import Lease, Rejected, Scheduler
from scheduler.estimate import Estimator
from scheduler.model import Refusal, Ticket
from scheduler.settings import Settings


class World:
    """One gateway's scheduler over a store, on a clock that stands still until moved."""

    def __init__(self, store: Store, seconds: float = 0.0, name: str = "a") -> None:
        self.seconds = seconds
        self.scheduler = Scheduler(Settings(), clock=lambda: self.seconds)
        self.scheduler.set_gate("g", 1)
        self.scheduler.set_pool("m", [("g", 0)])
        self.estimator = Estimator(Settings())
        self.operations = Operations(
            store,
            self.scheduler,
            self.estimator,
            Settings(),
            writer=name,
            clock=lambda: self.seconds,
            wall=lambda: 1_000_000.0 + self.seconds,
        )

    def use(self, user: str, cost: float) -> None:
        got = self.scheduler.submit(Ticket(pool="m", tenant="t", user=user, cost=cost))
        assert isinstance(got, Lease)
        got.release(cost)

    def usage(self, user: str) -> float:
        return sum(each.usage for each in self.scheduler.stats().parties if each.user == user)


def test_usage_survives_a_restart_decayed_by_the_absence(tmp_path: Path) -> None:
    """S: an abuser gets no amnesty."""

    async def main() -> None:
        store = await open_store(str(tmp_path / "s.db"))
        before = World(store)
        await before.operations.start()
        before.use("heavy", 100_000.0)
        await before.operations.close()
        after = World(store, seconds=300.0)  # one half-life later
        await after.operations.start()
        assert after.usage("heavy") == pytest.approx(50_000.0, rel=1e-3)
        await store.close()

    uvloop.run(main())


def test_each_of_several_gateways_goes_on_with_its_own_fair_use(tmp_path: Path) -> None:
    """S: who was heavy on the one that saved first gets no amnesty there."""

    async def main() -> None:
        store = await open_store(str(tmp_path / "s.db"))
        for name, user in (("a", "heavy"), ("b", "other")):
            before = World(store, name=name)
            await before.operations.start()
            before.use(user, 1000.0)
            await before.operations.close()
        after = World(store, name="a")
        await after.operations.start()
        assert (after.usage("heavy"), after.usage("other")) == (pytest.approx(1000.0), 0.0)
        await store.close()

    uvloop.run(main())


@pytest.mark.parametrize("body", ['"text"', '{"users": 1}', '{"users": [{"field_of_a_later_version": 1}]}'])
def test_fair_use_that_cannot_be_read_stops_nothing(
    tmp_path: Path, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    """S: as other gateways, or a later version, may have saved it."""

    async def main() -> None:
        store = await open_store(str(tmp_path / "s.db"))
        await store.save_usage(SavedUsage("a", body, 1_000_000_000_000), oldest=0)
        world = World(store)
        await world.operations.start()
        world.use("u", 1.0)
        await store.close()

    uvloop.run(main())
    assert "the fair use that a saved is not taken over" in caplog.text


def test_settings_apply_whole_or_not_at_all(tmp_path: Path) -> None:
    """S: range-checked, and a stored value that is no longer valid leaves the last settings in force."""

    async def main() -> None:
        store = await open_store(str(tmp_path / "s.db"))
        world = World(store)
        await world.operations.start()
        await store.operate("setting", "half_life", "60", 1, "me")
        await world.operations.look()
        assert world.estimator.settings.half_life == 60.0
        await store.operate("setting", "rounds", "-1", 2, "me")
        await world.operations.look()
        assert world.estimator.settings.half_life == 60.0
        assert world.estimator.settings.rounds == Settings().rounds
        await store.operate("setting", "rounds", None, 3, "me")
        await store.operate("setting", "half_life", None, 4, "me")
        await world.operations.look()
        assert world.estimator.settings == Settings()
        await store.close()

    uvloop.run(main())


def test_an_approved_exclusive_window_keeps_others_out_until_it_is_cancelled(tmp_path: Path) -> None:
    """S 5.5: on every gateway that looks at the store, in wall-clock time."""

    async def main() -> None:
        store = await open_store(str(tmp_path / "s.db"))
        world = World(store)
        await world.operations.start()
        start = int(1_000_000e6)
        asked = Reservation(id="r", tenant="holder", starts_at=start, ends_at=start + 3_600_000_000, mode="exclusive")

        async def put(state: str) -> None:
            body = json.dumps({**_plain(asked), "state": state})
            await store.operate("reservation", "r", body, 1, "me")
            await world.operations.look()

        await put("requested")
        world.use("other", 1.0)
        await put("approved")
        with pytest.raises(Rejected) as refused:
            world.scheduler.submit(Ticket(pool="m", tenant="t", user="other", cost=1.0, timeout=60.0))
        assert refused.value.refused.reason is Refusal.RESERVED
        got = world.scheduler.submit(Ticket(pool="m", tenant="holder", user="u", cost=1.0))
        assert isinstance(got, Lease)
        got.release(1.0)
        await put("cancelled")
        world.use("other", 1.0)
        await store.close()

    uvloop.run(main())


def test_a_window_of_a_model_holds_for_all_of_its_queues(tmp_path: Path) -> None:
    """S 5.5, S-Z2: also where only some of its backends serve the request, and by the name without `:latest`."""

    async def main() -> None:
        store = await open_store(str(tmp_path / "s.db"))
        world = World(store)
        covered, free = ("m", "m\tollama", "m:latest", "n:latest\tvllm"), ("m:7b", "other\tollama")
        for pool in (*covered, *free):
            world.scheduler.set_pool(pool, [("g", 0)])
        start = int(1_000_000e6)
        row = Reservation(id="r", tenant="holder", starts_at=start, ends_at=start + 3_600_000_000, mode="exclusive")
        body = {**_plain(row), "models": ["m", "n"], "state": "approved"}
        await store.operate("reservation", "r", json.dumps(body), 1, "me")
        await world.operations.start()
        for pool in covered:
            with pytest.raises(Rejected):
                world.scheduler.submit(Ticket(pool=pool, tenant="t", user="other", cost=1.0, timeout=60.0))
        for pool in free:
            got = world.scheduler.submit(Ticket(pool=pool, tenant="t", user="other", cost=1.0))
            assert isinstance(got, Lease)
            got.release(1.0)
        await store.close()

    uvloop.run(main())


UNREADABLE = [
    {"field_of_a_later_version": 1},
    {"mode": "mode of a later version"},
    {"state": 7},
    {"ends_at": 0},
    {"ends_at": 10**400},
]


@pytest.mark.parametrize("more", UNREADABLE)
def test_a_reservation_that_cannot_be_read_keeps_nobody_else_from_being_served(
    tmp_path: Path, more: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    """S: after a step back to an older version, say. It is logged, and the other windows act."""

    async def main() -> None:
        store = await open_store(str(tmp_path / "s.db"))
        world = World(store)
        hour = Reservation(
            id="good", tenant="holder", starts_at=1_000_000_000_000, ends_at=1_003_600_000_000, mode="exclusive"
        )
        good = {**_plain(hour), "state": "approved"}
        await store.operate("reservation", "bad", json.dumps({**good, "id": "bad", "tenant": "t", **more}), 1, "me")
        await store.operate("reservation", "good", json.dumps(good), 1, "me")
        await world.operations.start()
        with pytest.raises(Rejected):
            world.scheduler.submit(Ticket(pool="m", tenant="t", user="other", cost=1.0, timeout=60.0))
        await store.close()

    uvloop.run(main())
    assert [record.levelname for record in caplog.records if "reservation bad" in record.message] == ["ERROR"]


def test_a_reservation_that_cannot_be_read_can_be_cancelled_and_nothing_else(tmp_path: Path) -> None:
    """U7: by its id, which the log names; it is then gone for every version."""

    async def main() -> None:
        store = await open_store(str(tmp_path / "s.db"))
        await store.operate("reservation", "bad", '{"field_of_a_later_version": 1}', 1, "me")
        with pytest.raises(Taken, match="only be cancelled"):
            await tuning.decide(store, "bad", approve=True)
        gone = await tuning.decide(store, "bad", approve=False)
        assert (gone.id, gone.state) == ("bad", "cancelled")
        assert await store.operations("reservation") == []
        with pytest.raises(NoSuch):
            await tuning.decide(store, "bad", approve=False)
        await store.close()

    uvloop.run(main())


@pytest.mark.parametrize("more", UNREADABLE)
def test_a_reservation_that_cannot_be_read_keeps_no_other_from_being_changed(
    tmp_path: Path, more: dict[str, object]
) -> None:
    store = made(tmp_path / "s.db", "lab")

    async def put() -> None:
        opened = await open_store(str(store))
        row = {"id": "bad", "tenant": "t", "starts_at": 1, "ends_at": 1 << 52, "mode": "exclusive", **more}
        await opened.operate("reservation", "bad", json.dumps(row), 1, "me")
        await opened.close()

    uvloop.run(put())
    window = ("--tenant", "lab", "--start", "now", "--minutes", "5", "--exclusive", "--approve")
    (good,) = fairgate(store, "reservations", "create", *window).stdout.split()
    listed = fairgate(store, "reservations", "list", "--json")
    assert [row["id"] for row in json.loads(listed.stdout)] == [good]
    assert fairgate(store, "reservations", "cancel", good).returncode == 0


def _plain(row: Reservation) -> dict[str, object]:
    return {"id": row.id, "tenant": row.tenant, "starts_at": row.starts_at, "ends_at": row.ends_at, "mode": row.mode}


class Shown(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def fairgate(store: Path, *arguments: str) -> Shown:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*arguments, "--store", str(store)])
    return Shown(code, out.getvalue(), err.getvalue())


def made(path: Path, *tenants: str) -> Path:
    async def fill() -> None:
        opened = await open_store(str(path))
        for name in tenants:
            await create_tenant(opened, name, allow_all_models=True)
        await opened.close()

    uvloop.run(fill())
    return path


def test_the_commands_change_show_and_remember(tmp_path: Path) -> None:
    """O5, U7"""
    store = made(tmp_path / "s.db", "lab")
    assert fairgate(store, "settings", "set", "half_life", "120").returncode == 0
    for name, value in (("half_life", "nan"), ("half_life", "-1"), ("nothing", "1"), ("half_life", "[]")):
        refused = fairgate(store, "settings", "set", name, value)
        assert refused.returncode == 1, value
        assert refused.stderr.startswith("fairgate: ")
        assert name in refused.stderr
    shown = json.loads(fairgate(store, "settings", "get", "half_life", "--json").stdout)
    assert shown == {"half_life": {"value": 120.0, "from": "runtime"}}
    assert fairgate(store, "settings", "clear", "half_life").returncode == 0
    history = json.loads(fairgate(store, "settings", "history", "--json").stdout)
    assert [(row["id"], row["body"]) for row in history] == [("half_life", "120"), ("half_life", None)]
    assert {row["actor"] for row in history} == {getpass.getuser()}
    assert history[0]["at"] <= history[1]["at"] <= time.time() * 1e6

    window = ("--tenant", "lab", "--start", "now", "--minutes", "30", "--exclusive")
    created = fairgate(store, "reservations", "create", *window)
    assert created.returncode == 0, created.stderr
    number = created.stdout.strip()
    assert "requested" in fairgate(store, "reservations", "list").stdout
    assert fairgate(store, "reservations", "approve", number).returncode == 0
    assert json.loads(fairgate(store, "reservations", "list", "--json").stdout)[0]["state"] == "approved"
    assert fairgate(store, "reservations", "cancel", number).returncode == 0
    assert fairgate(store, "reservations", "cancel", number).returncode == 1
    for minutes in ("nan", "inf", "0", "-1", "1e10"):
        never = fairgate(store, "reservations", "create", *window[:-3], f"--minutes={minutes}")
        assert (never.returncode, "within ten years" in never.stderr) == (1, True), never.stderr
    assert number in fairgate(store, "reservations", "list").stdout
    assert (
        fairgate(store, "reservations", "create", "--tenant", "nobody", "--start", "now", "--minutes", "1").returncode
        == 1
    )


def test_exclusive_windows_of_two_holders_do_not_cross(tmp_path: Path) -> None:
    """S: nobody would be admitted by both, so nobody would run."""
    store = made(tmp_path / "s.db", "lab", "shop")

    def create(tenant: str, *words: str) -> Shown:
        window = ("--tenant", tenant, "--minutes", "30", *words)
        return fairgate(store, "reservations", "create", *window, *(() if "--start" in words else ("--start", "now")))

    first = create("lab", "--exclusive", "--approve", "--models", "a,b").stdout.strip()
    for words in (("--models", "b,c"), ("--models", "a:latest"), ()):
        crossing = create("shop", "--exclusive", "--approve", *words)
        assert (crossing.returncode, f"{first} is exclusive for somebody else" in crossing.stderr) == (1, True), (
            crossing.stderr
        )
    asked = create("shop", "--exclusive").stdout.strip()
    assert first in fairgate(store, "reservations", "approve", asked).stderr
    tomorrow = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)).isoformat()
    for words in (("--exclusive", "--models", "c"), ("--models", "a"), ("--exclusive", "--start", tomorrow)):
        assert create("shop", "--approve", *words).returncode == 0
    assert create("lab", "--exclusive", "--approve", "--models", "a").returncode == 0
    assert fairgate(store, "reservations", "cancel", first).returncode == 0
