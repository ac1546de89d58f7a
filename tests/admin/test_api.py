"""The admin API over real HTTP, on both databases, in one process and with workers (O8)."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import config, loading
from gateway.admin.asks import LimitChanges
from gateway.admin.table import BASE, ROWS, find
from gateway.errors import MethodNotAllowed, NotFound
from gateway.services import accounts
from gateway.services.accounts import KeyTerms
from gateway.store.base import Key
from gateway.store.limits import Limits
from tests.admin.desk import SCOPES_OF, WITHIN, Desk, desk
from tests.gateway import gateway
from tests.process import CHEAP_IDENTITY
from tests.servers import free_port
from tests.services.keyring import CHEAP, connection

pytestmark = pytest.mark.timeout(240)


class Tour:
    """Asks every route once and remembers which."""

    def __init__(self, it: Desk) -> None:
        self.it = it
        self.seen: set[tuple[str, str]] = set()

    async def do(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        row, _ = find(method, path.partition("?")[0])
        self.seen.add((row.method, row.path))
        answer = await self.it.ask(method, BASE + path, body)
        assert answer.status_code == status, f"{method} {path}: {answer.text}"
        assert answer.headers["content-type"] == "application/json"
        return answer.json()


@pytest.mark.parametrize("workers", [1, 2])
def test_every_route_does_what_the_command_line_does(store_url: str, tmp_path: Path, workers: int) -> None:
    """O8, U7: what the command line does to a store, with the same results, and each change a row."""

    async def body() -> None:
        async with desk(tmp_path, store_url, workers=workers) as it:
            tour = Tour(it)
            await _people(tour)
            await _limits(tour)
            await _keys(tour)
            await _settings(tour)
            await _state(tour)
            assert tour.seen == {(row.method, row.path) for row in ROWS}

    asyncio.run(body())


async def _people(tour: Tour) -> None:
    made = await tour.do("POST", "/tenants", {"name": "lab", "models": ["m"], "share": 2}, 201)
    assert (made["name"], made["models"], made["share"], made["allow_all_models"]) == ("lab", ["m"], 2, False)
    assert [row["name"] for row in (await tour.do("GET", "/tenants"))["data"]] == ["acme", "lab"]
    assert (await tour.do("GET", "/tenants/lab"))["id"] == made["id"]
    assert (await tour.do("POST", f"/tenants/{made['id']}/disable"))["disabled_at"] is not None
    assert (await tour.do("POST", "/tenants/lab/enable"))["disabled_at"] is None
    assert (await tour.do("PUT", "/tenants/lab/share", {"share": 3}))["share"] == 3
    assert (await tour.do("GET", "/tenants/lab"))["share"] == 3
    person = await tour.do("POST", "/tenants/lab/users", {"name": "lea"}, 201)
    assert person["tenant"] == made["id"]
    assert [row["name"] for row in (await tour.do("GET", "/users"))["data"]] != []
    assert [row["name"] for row in (await tour.do("GET", "/tenants/lab/users"))["data"]] == ["lea"]
    assert (await tour.do("GET", "/tenants/lab/users/lea")) == person
    assert (await tour.do("POST", "/tenants/lab/users/lea/disable"))["disabled_at"] is not None
    assert (await tour.do("POST", "/tenants/lab/users/lea/enable"))["disabled_at"] is None
    assert (await tour.do("PUT", "/tenants/lab/users/lea/share", {"share": 0.5}))["share"] == 0.5


async def _limits(tour: Tour) -> None:
    for path in ("/tenants/lab", "/tenants/lab/users/lea", f"/keys/{tour.it.ids['data']}"):
        asked = {"requests_per_minute": 60, "tokens_per_day": 1000}
        assert (await tour.do("PATCH", f"{path}/limits", asked))["limits"] == asked
        changed = await tour.do("PATCH", f"{path}/limits", {"requests_per_minute": None})
        assert changed["limits"] == {"tokens_per_day": 1000}
        shown = await tour.do("GET", f"{path}/limits")
        assert shown["budgets"]["tokens_per_day"]["spent"] == 0
        assert (await tour.do("DELETE", f"{path}/limits"))["limits"] == {}


async def _keys(tour: Tour) -> None:
    it = tour.it
    made = await tour.do("POST", "/keys", {"tenant": "lab", "user": "lea", "name": "laptop", "expires_days": 7}, 201)
    assert made["token"].startswith(f"fg_{made['id']}_")
    assert await it.chat(made["token"]) == 200
    shown = await tour.do("GET", f"/keys/{made['id']}")
    assert (shown["name"], "token" in shown, "hash" in shown) == ("laptop", False, False)
    listed = (await tour.do("GET", "/keys?tenant=lab&user=lea"))["data"]
    assert [row["id"] for row in listed] == [made["id"]]
    assert made["token"][16:] not in json.dumps(listed)
    after = await tour.do("POST", f"/keys/{made['id']}/rotate", {"overlap_hours": 0.5}, 201)
    assert (after["replaces"]["id"], after["name"]) == (made["id"], "laptop")
    assert await it.chat(after["token"]) == 200
    path = f"/keys/{after['id']}"
    assert (await tour.do("POST", f"{path}/disable"))["disabled_at"] is not None
    await _until(it, after["token"], 401)
    assert (await tour.do("POST", f"{path}/enable"))["disabled_at"] is None
    await _until(it, after["token"], 200)
    assert (await tour.do("POST", f"{path}/revoke"))["revoked_at"] is not None
    await _until(it, after["token"], 401)


async def _until(it: Desk, token: str, status: int) -> None:
    """Workers follow the store: a change acts within a second."""
    async with asyncio.timeout(WITHIN):
        while await it.chat(token) != status:
            await asyncio.sleep(0.05)


async def _settings(tour: Tour) -> None:
    rows = {row["name"]: row for row in (await tour.do("GET", "/settings"))["data"]}
    assert rows["queue_timeout"]["source"] == "configuration"
    changed = await tour.do("PUT", "/settings/queue_timeout", {"value": 77})
    assert (changed["value"], changed["source"]) == (77, "runtime")
    assert await tour.do("GET", "/settings/queue_timeout") == changed
    assert await tour.do("DELETE", "/settings/queue_timeout") == rows["queue_timeout"]
    wish = {"tenant": "lab", "models": ["m"], "start": "2099-01-01T10:00:00+01:00", "minutes": 30}
    refused = await tour.it.ask("POST", f"{BASE}/reservations", wish)
    assert (refused.status_code, "ten years" in refused.json()["error"]["message"]) == (400, True)
    made = await tour.do(
        "POST", "/reservations", {"tenant": "lab", "user": "lea", "minutes": 30, "exclusive": True}, 201
    )
    assert (made["state"], made["mode"]) == ("requested", "exclusive")
    assert (await tour.do("POST", f"/reservations/{made['id']}/approve"))["state"] == "approved"
    against = {"tenant": "acme", "minutes": 30, "exclusive": True, "approve": True}
    taken = await tour.it.ask("POST", f"{BASE}/reservations", against)
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "conflict")
    assert [row["id"] for row in (await tour.do("GET", "/reservations"))["data"]] == [made["id"]]
    assert (await tour.do("POST", f"/reservations/{made['id']}/cancel"))["state"] == "cancelled"


async def _state(tour: Tour) -> None:
    it = tour.it
    me = await tour.do("GET", "/self")
    assert (me["key"], me["scopes"]) == (it.ids["admin"], ["admin:read", "admin:write"])
    assert (await tour.do("GET", "/stats"))["scheduler"]["gates"][0]["gate"] == "e"
    assert (await tour.do("GET", "/backends"))["data"][0]["name"] == "e"
    assert (await tour.do("GET", "/models"))["data"] == [
        {"model": "m", "backends": ["e"], "loaded": ["e"], "names": []}
    ]
    actions = (await tour.do("GET", "/actions?kind=key&limit=3"))["data"]
    assert [json.loads(row["body"])["did"] for row in actions] == ["disable", "enable", "revoke"]
    assert {row["actor"] for row in actions} == {f"key:{it.ids['admin']}"}
    one = (await tour.do("GET", f"/actions?kind=key&id={it.ids['data']}"))["data"]
    assert {row["id"] for row in one} == {it.ids["data"]}
    async with asyncio.timeout(WITHIN):
        while len(rows := (await tour.do("GET", "/audit?status=200&model=m&limit=200"))["data"]) < 3:
            await asyncio.sleep(0.1)
    assert {row["status"] for row in rows} == {200}
    assert (await tour.do("GET", f"/audit?key={it.ids['write']}"))["data"] == []
    since = time.strftime("%Y-%m-%d", time.gmtime())
    hours = await tour.do("GET", "/usage?by=hour&limit=1")
    assert len(hours["data"]) == 1
    used = await tour.do("GET", f"/usage?by=user&since={since}&tenant=lab")
    assert (await tour.do("GET", f"/usage?by=user&since={since}&tenant=lab&offset=1"))["data"] == []
    assert (used["by"], used["data"][0]["name"], used["data"][0]["requests"] > 0) == ("user", "lab/lea", True)


# ---- who may


ANY = {"tenant": "acme", "user": "ann", "key": "nobody", "setting": "nothing", "reservation": "nothing"}


def test_scopes_of_every_route(tmp_path: Path) -> None:
    """K7, C-T2, S-A5, N-13: every route by nobody, a data key, a key that reads, and one that writes."""

    async def body() -> None:
        async with desk(tmp_path, identity={**CHEAP_IDENTITY, "failures_per_minute": 1_000_000}) as it:
            for row in ROWS:
                path = BASE + row.path.format(**ANY)
                want = {"": 401, "data": 403, "fg_wrong": 401}
                want |= {"write": 403} if row.scope == "admin:read" else {"read": 403}
                for key, status in want.items():
                    answer = await it.ask(row.method, path, {"nothing": 1}, key=key)
                    assert answer.status_code == status, f"{row.method} {row.path} by {key!r}: {answer.text}"
                    assert set(answer.json()) == {"error"}
                good = await it.ask(row.method, path, {"nothing": 1}, key=row.scope.removeprefix("admin:"))
                assert good.status_code in (200, 400, 404), f"{row.method} {row.path}: {good.text}"
            for key, status in {"": 401, "data": 403, "read": 404, "write": 404}.items():
                assert (await it.ask("GET", f"{BASE}/nothing", key=key)).status_code == status, key
            async with connection(it.store) as store:
                assert len(await store.operations_history(None, 100)) == 7, "none of these changed anything"
            lines = [json.loads(line) for line in it.gateway.log().splitlines() if "lacks the scope for" in line]
            refused = {(line["key"], line["scope"]) for line in lines}
            assert refused == {(it.ids["read"], "admin:write"), (it.ids["write"], "admin:read")}, (
                "who tried is in the log"
            )

    asyncio.run(body())


def test_each_key_opens_its_own_plane_only(tmp_path: Path) -> None:
    """K7: admin keys open nothing on the data plane, not even its lists; the scopes are never mixed."""

    async def body() -> None:
        async with desk(tmp_path) as it:
            for path in ("/v1/models", "/api/tags", "/api/queue", "/api/usage"):
                url = f"http://127.0.0.1:{it.gateway.port}{path}"
                for key, status in (("admin", 403), ("data", 200)):
                    assert (await it.ask("GET", url, key=key)).status_code == status, path
            assert await it.chat(it.keys["admin"]) == 403
            assert await it.chat(it.keys["data"]) == 200

    asyncio.run(body())


def test_the_api_makes_no_admin_key(tmp_path: Path) -> None:
    """S-A5, S-A6: made, rotated and enabled on the host only; taken away here too."""

    async def body() -> None:
        async with desk(tmp_path) as it:
            for scopes in (["admin:read"], ["chat", "admin:write"]):
                answer = await it.ask("POST", f"{BASE}/keys", {"tenant": "acme", "user": "ann", "scopes": scopes})
                assert (answer.status_code, answer.json()["error"]["param"]) == (403, "scopes")
            own, other = (f"{BASE}/keys/{it.ids[name]}" for name in ("admin", "other"))
            for path in (own, other):
                assert (await it.ask("POST", f"{path}/rotate")).status_code == 403
            assert (await it.ask("POST", f"{other}/disable")).status_code == 200
            assert (await it.ask("POST", f"{other}/enable")).status_code == 403
            assert (await it.ask("GET", f"{BASE}/self", key="other")).status_code == 401
            assert len((await it.get("/keys"))["data"]) == 5

    asyncio.run(body())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_revoked_admin_key_is_refused_at_once(tmp_path: Path, workers: int) -> None:
    """K3: by the next request when it was revoked here, within a second when on the host."""

    async def body() -> None:
        async with desk(tmp_path, workers=workers) as it:
            for name in ("other", "read"):
                assert (await it.get("/self", key=name))["key"] == it.ids[name]
            assert (await it.ask("POST", f"{BASE}/keys/{it.ids['other']}/revoke")).status_code == 200
            assert (await it.ask("GET", f"{BASE}/self", key="other")).status_code == 401
            async with connection(it.store) as store:
                await store.revoke_key(it.ids["read"], time.time_ns() // 1000)
            async with asyncio.timeout(WITHIN):
                while (await it.ask("GET", f"{BASE}/self", key="read")).status_code != 401:
                    await asyncio.sleep(0.05)

    asyncio.run(body())


def test_two_admins_at_once_keep_their_names(store_url: str, tmp_path: Path) -> None:
    """U7: each change is a row in the name of the key that made it, however many are made together."""

    async def body() -> None:
        async with desk(tmp_path, store_url) as it:

            async def many(name: str) -> None:
                made = [{"name": f"{name}{number}"} for number in range(12)]
                answers = await asyncio.gather(*(it.ask("POST", f"{BASE}/tenants", one, key=name) for one in made))
                assert {answer.status_code for answer in answers} == {201}
                answer = await it.ask("PUT", f"{BASE}/settings/queue_timeout", {"value": 9}, key=name)
                assert answer.status_code == 200

            await asyncio.gather(many("admin"), many("other"))
            async with connection(it.store) as store:
                rows = await store.operations_history("tenant", 100)
                told = await store.operations_history("setting", 100)
            for name in ("admin", "other"):
                mine = [row for row in rows if row.actor == f"key:{it.ids[name]}"]
                assert sorted(json.loads(row.body or "")["name"] for row in mine) == sorted(
                    f"{name}{number}" for number in range(12)
                )
            assert sorted(row.actor for row in told) == sorted(f"key:{it.ids[name]}" for name in ("admin", "other"))

    asyncio.run(body())


@pytest.mark.parametrize("workers", [1, 2])
def test_guesses_are_throttled_together_with_the_data_planes(tmp_path: Path, workers: int) -> None:
    """K4: an address that failed on either plane is refused before anything is hashed; a proven key is exempt."""

    async def body() -> None:
        identity = {"argon2_time_cost": 1, "argon2_memory_kib": 8, "failures_per_minute": 4}
        async with desk(tmp_path, workers=workers, identity=identity) as it:
            assert (await it.ask("GET", f"{BASE}/self")).status_code == 200
            for _ in range(2):
                assert await it.chat("fg_wrong") == 401
            answers: list[httpx.Response] = []
            async with asyncio.timeout(WITHIN):
                while not answers or answers[-1].status_code == 401:
                    answers.append(await it.ask("GET", f"{BASE}/self", key="fg_wrong"))
            assert (answers[-1].status_code, len(answers) <= 3) == (429, True), [a.status_code for a in answers]
            assert int(answers[-1].headers["retry-after"]) >= 1
            assert (await it.ask("GET", f"{BASE}/self")).status_code == 200
            statuses = [await it.chat("fg_wrong") for _ in range(2)]
            assert statuses[-1] == 429, "the first may overtake what the worker is told"

    asyncio.run(body())


@pytest.mark.parametrize("proxies", [[], ["127.0.0.1/32"]])
def test_networks_of_an_admin_key_hold(tmp_path: Path, proxies: list[str]) -> None:
    """K9, H9: the peer's address counts, and what a named proxy says of its own; nobody else's word."""

    async def body() -> None:
        async with desk(tmp_path, trusted_proxies=proxies) as it:
            async with connection(it.store) as store:
                owner = await store.chain(it.ids["admin"])
                assert owner is not None
                terms = KeyTerms(scopes=("admin:read",), cidrs=("192.0.2.0/24",))
                it.keys["near"] = (await accounts.create_key(store, owner.user, terms, CHEAP))[1]

            async def status(said: str) -> int:
                headers = {"x-forwarded-for": said} if said else {}
                return (await it.ask("GET", f"{BASE}/self", key="near", headers=headers)).status_code

            assert [await status(said) for said in ("", "198.51.100.1", "192.0.2.9, 198.51.100.1")] == [403] * 3
            assert await status("192.0.2.9") == (200 if proxies else 403)

    asyncio.run(body())


def test_the_name_it_is_called_by(tmp_path: Path) -> None:
    """DNS rebinding: a page of another name that leads here is told nothing, whatever key it has."""

    async def body() -> None:
        async with desk(tmp_path, admin={"hosts": ["fairgate.lab", "2001:db8::7"]}) as it:
            port = it.gateway.admin_port
            for host in (
                f"127.0.0.1:{port}",
                "localhost",
                f"LOCALHOST:{port}",
                "[::1]:9",
                "fairgate.lab",
                "[2001:db8::7]:1",
            ):
                for path in (f"{BASE}/self", "/admin/"):
                    assert (await it.ask("GET", path, headers={"host": host})).status_code == 200, host
            for host in (
                "evil.example",
                f"evil.example:{port}",
                "127.0.0.1.evil.example",
                "10.0.0.1",
                "localhost.",
                "",
            ):
                for path in (f"{BASE}/self", "/admin/"):
                    answer = await it.ask("GET", path, headers={"host": host})
                    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied"), host
                assert (await it.ask("GET", "/metrics", headers={"host": host})).status_code == 200
            moved = await it.ask("GET", "/admin", headers={"host": "evil.example"})
            assert (moved.status_code, moved.headers["location"]) == (307, "admin/")

    asyncio.run(body())


def test_only_bearer_and_only_json(tmp_path: Path) -> None:
    """CSRF: nothing that a browser sends by itself or without asking first does anything."""

    async def body() -> None:
        async with desk(tmp_path) as it:
            key, path = it.keys["admin"], f"{BASE}/tenants"
            asked = {"name": "x"}
            for headers in (
                {"x-api-key": key},
                {"cookie": f"key={key}"},
                {"authorization": f"Basic {key}"},
                {"authorization": key},
            ):
                answer = await it.ask("POST", path, asked, key="", headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
                answer = await it.ask("POST", path, asked, headers={"content-type": kind})
                assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type"), kind
            plain = await it.ask("OPTIONS", path, headers={"origin": "http://evil.example"})
            assert plain.status_code == 405
            assert plain.headers["allow"] == "GET, POST"
            good = await it.ask("GET", path, headers={"origin": "http://evil.example"})
            assert [name for name in (*good.headers, *plain.headers) if name.startswith("access-control")] == []
            assert "set-cookie" not in good.headers
            assert good.headers["cache-control"] == "no-store"

    asyncio.run(body())


WRONG = [
    ("POST", "/tenants", {"nmae": "x"}, 400, "nmae"),
    ("POST", "/tenants", {}, 400, "name"),
    ("POST", "/tenants", {"name": "x", "limits": {"rpm": 1}}, 400, "limits.rpm"),
    ("POST", "/tenants", {"name": "x", "models": [1]}, 400, "models[0]"),
    ("POST", "/tenants", {"name": "a b"}, 400, None),
    ("POST", "/tenants", {"name": "acme"}, 409, None),
    ("POST", "/tenants", ["x"], 400, None),
    ("POST", "/tenants/acme/disable", {"now": True}, 400, "now"),
    ("PUT", "/tenants/acme/share", {}, 400, "share"),
    ("GET", "/tenants/nobody", None, 404, None),
    ("GET", "/tenants?limit=201", None, 400, "limit"),
    ("GET", "/tenants?limit=0", None, 400, "limit"),
    ("GET", "/tenants?offset=-1", None, 400, "offset"),
    ("GET", "/tenants?page=1", None, 400, "page"),
    ("GET", "/settings?limit=1", None, 400, "limit"),
    ("DELETE", "/tenants/acme/limits?burst=1", None, 400, "burst"),
    ("GET", "/tenants?limit=1&limit=2", None, 400, None),
    ("GET", "/keys?user=ann", None, 400, "tenant"),
    ("GET", "/keys/nobody", None, 404, None),
    ("POST", "/keys", {"tenant": "acme", "user": "nobody"}, 404, None),
    ("POST", "/keys", {"tenant": "acme", "user": "ann", "expires_days": 366}, 400, None),
    ("POST", "/keys", {"tenant": "acme", "user": "ann", "scopes": ["root"]}, 400, "scopes"),
    ("PATCH", "/tenants/acme/limits", {}, 400, None),
    ("PATCH", "/tenants/acme/limits", {"burst": 0}, 400, "burst"),
    ("PATCH", "/tenants/acme/limits", {"burst": 1}, 400, None),
    ("PUT", "/settings/nothing", {"value": 1}, 404, None),
    ("PUT", "/settings/queue_timeout", {"value": -1}, 400, None),
    ("PUT", "/settings/queue_timeout", {"value": {"a": 1}}, 400, None),
    ("PUT", "/settings/queue_timeout", {"value": 7000}, 400, None),
    ("POST", "/reservations", {"tenant": "acme", "minutes": 1, "start": "soon"}, 400, "start"),
    ("POST", "/reservations", {"tenant": "acme", "minutes": 1, "models": ["m\n"]}, 400, None),
    ("POST", "/reservations/none/approve", None, 404, None),
    ("GET", "/usage?since=2026-01-01T00:30", None, 400, "since"),
    ("GET", "/usage?by=colour", None, 400, "by"),
    ("GET", "/audit?outcome=lost", None, 400, "outcome"),
    ("GET", "/audit?limit=100000", None, 400, "limit"),
    ("GET", "/audit?since=soon", None, 400, "since"),
    ("GET", "/actions?id=x", None, 400, "kind"),
    ("GET", "/nothing", None, 404, None),
    ("GET", "/tenants/%00", None, 404, None),
    ("GET", "/audit?key=%00", None, 400, None),
    ("POST", "/keys", {"tenant": "acme", "user": "ann", "force_model": "\0"}, 400, None),
    ("POST", "/keys", {"tenant": "acme", "user": "ann", "force_model": "m\n"}, 400, None),
    ("POST", "/keys", {"tenant": "acme", "user": "ann", "force_model": "m" * 300}, 400, None),
    ("GET", "/audit?key=%ff", None, 400, None),
    ("GET", "/tenants/", None, 404, None),
    ("PUT", "/tenants", {}, 405, None),
]


def test_what_is_wrong_is_named_and_changes_nothing(store_url: str, tmp_path: Path) -> None:
    """Strict bodies and queries: an unknown member is refused with its path."""

    async def body() -> None:
        async with desk(tmp_path, store_url) as it:
            for method, path, asked, status, param in WRONG:
                answer = await it.ask(method, BASE + path, asked)
                assert answer.status_code == status, f"{method} {path} {asked}: {answer.text}"
                error = answer.json()["error"]
                assert (set(error), error["param"]) == ({"code", "message", "param"}, param), f"{path} {asked}: {error}"
                assert error["message"]
            for content in (b"{", b"\xff", b"[" * 5000, b'{"name": "x"} {}'):
                answer = await it.ask("POST", f"{BASE}/tenants", content=content)
                assert answer.status_code == 400, content[:10]
            large = await it.ask("POST", f"{BASE}/tenants", content=b'{"name": "' + b"x" * 65_536 + b'"}')
            assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
            assert [row["name"] for row in (await it.get("/tenants"))["data"]] == ["acme"]

    asyncio.run(body())


def test_what_may_stand_there_is_told(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as it:

            async def told(method: str, path: str, asked: Any = None) -> str:
                return str((await it.ask(method, BASE + path, asked)).json()["error"]["message"])

            assert (await told("GET", "/usage?by=colour")).startswith("none of tenant, user, key, model")
            assert (await told("GET", "/actions?kind=keys")).startswith("none of ")
            assert (await told("GET", "/audit?outcome=lost")).endswith("bug, interrupted")
            assert "did you mean 'name'" in await told("POST", "/tenants", {"nmae": "x"})
            scopes = await told("POST", "/keys", {"tenant": "acme", "user": "ann", "scopes": ["root"]})
            assert "chat" in scopes
            assert "admin" not in scopes

    asyncio.run(body())


def test_lists_come_in_parts(store_url: str, tmp_path: Path) -> None:
    """Bounds on every list: as many rows as were asked for, and where the next part begins."""

    async def body() -> None:
        async with desk(tmp_path, store_url) as it:
            for number in range(4):
                await it.ask("POST", f"{BASE}/tenants/acme/users", {"name": f"u{number}"})
            assert await _all(it, "/users") == ["ann", "u0", "u1", "u2", "u3"]
            assert await _all(it, "/tenants/acme/users") == ["ann", "u0", "u1", "u2", "u3"]
            assert await _all(it, "/keys") == list(SCOPES_OF)
            assert await _all(it, "/keys", "&tenant=acme&user=u1") == []

    asyncio.run(body())


async def _all(it: Desk, path: str, more: str = "") -> list[str]:
    """The names of a list, two at a time."""
    names: list[str] = []
    offset: int | None = 0
    while offset is not None:
        part = await it.get(f"{path}?limit=2&offset={offset}{more}")
        assert len(part["data"]) <= 2
        assert offset < 20
        names += [row["name"] for row in part["data"]]
        offset = part["next_offset"]
    return names


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_of_it_exists_when_it_is_off(tmp_path: Path, workers: int) -> None:
    """O8: off unless configured."""

    async def body() -> None:
        assert config.Admin().api is False
        async with desk(tmp_path, workers=workers, admin={"api": False}) as it:
            for path in (f"{BASE}/self", f"{BASE}/tenants", "/admin/", "/admin", f"{BASE}/"):
                for method in ("GET", "POST", "OPTIONS"):
                    answer = await it.ask(method, path)
                    assert (answer.status_code, answer.text) == (404, "Not Found"), path
            for path in ("/metrics", "/healthz", "/readyz", "/stats"):
                assert (await it.ask("GET", path, key="")).status_code == 200

    asyncio.run(body())


def test_a_store_that_is_away_denies(tmp_path: Path) -> None:
    """K5: what cannot be checked or done is refused; nothing of the database is told."""

    async def body() -> None:
        admin = config.Admin(listen=f"127.0.0.1:{free_port()}", api=True)
        async with gateway("http://127.0.0.1:1", admin=admin) as g:
            known, new = [await g.add_key(scopes=("admin:read",)) for _ in range(2)]
            async with httpx.AsyncClient(base_url=f"http://{admin.listen}", trust_env=False) as http:

                async def ask(key: str) -> tuple[int, str]:
                    answer = await http.get(f"{BASE}/tenants", headers={"authorization": f"Bearer {key}"})
                    assert ".db" not in answer.text
                    return answer.status_code, answer.json().get("error", {}).get("code", "")

                assert await ask(known) == (200, "")
                await g.store.close()
                assert await ask(known) == (503, "unavailable")
                assert await ask(new) == (503, "auth_unavailable")

    asyncio.run(body())


def test_it_needs_a_listener() -> None:
    with pytest.raises(config.ConfigError, match=r"admin\.api"):
        loading.parse("admin: {listen: '', api: true}")
    with pytest.raises(config.ConfigError, match=r"admin\.hosts"):
        loading.parse("admin: {api: true, hosts: ['http://x/']}")


def test_the_table_matches_whole_paths() -> None:
    assert find("GET", "/tenants/a/users/b")[1] == {"tenant": "a", "user": "b"}
    for path in ("/tenants/a/users/b/c", "", "/", "/tenants//limits", "/keys/"):
        with pytest.raises(NotFound):
            find("GET", path)
    with pytest.raises(MethodNotAllowed) as refused:
        find("PUT", "/keys")
    assert refused.value.allow == "GET, POST"
    assert len({(row.method, row.path) for row in ROWS}) == len(ROWS)


def test_limits_may_be_changed_one_by_one() -> None:
    """The members of a change are those of the limits."""
    assert set(LimitChanges.__struct_fields__) == set(Limits.__struct_fields__)


def test_a_key_is_shown_without_its_hash() -> None:
    """N-13: whatever a key's row gets, its hash stays out."""
    shown = accounts.public(Key(id="k", user="u", name="n", hash="$argon2id$x", created_at=1))
    assert "$argon2id$x" not in str(shown)


def test_a_wrong_name_is_compared_with_some_names_only(tmp_path: Path) -> None:
    """With ten thousand, whoever may read could hold the loop that grants slots."""

    async def body() -> None:
        async with connection(str(tmp_path / "s.db")) as store:
            tenant = await accounts.create_tenant(store, "acme")
            for number in range(250):
                await accounts.create_user(store, tenant, f"{'late' if number else 'early'}-{number:03}")
            with pytest.raises(accounts.NoSuch, match="did you mean 'early-000'"):
                await accounts.find_user(store, tenant, "earl-000")
            with pytest.raises(accounts.NoSuch) as refused:
                await accounts.find_user(store, tenant, "lat-249")
            assert "late-249" not in str(refused.value)

    asyncio.run(body())
