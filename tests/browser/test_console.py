"""The console in headless Chromium, served by a real gateway: what an operator does, and what it must not do."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from gateway.services import accounts
from gateway.services.accounts import KeyTerms
from tests.admin.desk import BASE, Desk, desk
from tests.admin.test_login import independent
from tests.browser.chromium import MARKS, launched, watched
from tests.services.keyring import CHEAP, connection

pytestmark = MARKS
HOSTILE = "<img src=x onerror=document.title='owned'>"
VIEWS = ("now", "people", "usage", "settings", "records")


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    """A loop in a thread: the engine behind the gateway answers from there."""
    with start_blocking_portal() as started:
        yield started


@pytest.fixture(scope="module")
def office(portal: BlockingPortal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with portal.wrap_async_context_manager(desk(tmp_path_factory.mktemp("console"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of the file."""
    with launched() as started:
        yield started


@pytest.fixture
def page(browser: Any, office: Desk) -> Iterator[Any]:
    """The console just opened."""
    with watched(browser, f"http://127.0.0.1:{office.gateway.admin_port}", "/admin/") as opened:
        yield opened


def enter(page: Any, key: str) -> None:
    page.fill("#key", key)
    page.press("#key", "Enter")


def view(page: Any, name: str) -> None:
    """Open a view, and wait until it is there."""
    page.click(f"#tab-{name}")
    page.wait_for_selector(f"#tab-{name}[aria-current=true]")


def part(page: Any, title: str) -> Any:
    """The section of that title."""
    return page.locator("section").filter(has=page.get_by_role("heading", name=re.compile(f"^{title}")))


def submit(section: Any, **fields: str) -> None:
    """Fill a form and send it."""
    for name, value in fields.items():
        section.locator(f"input[name={name}]").fill(value)
    section.locator("form button").click()


def test_without_an_admin_key_nothing_is_shown(page: Any, office: Desk) -> None:
    """K1: not with a wrong one, nor with one that asks models."""
    for key, said in (("fg_wrong", "Incorrect API key"), (office.keys["data"], "no admin scope")):
        enter(page, key)
        page.locator("#note.bad").filter(has_text=said).wait_for()
        assert page.is_hidden("#tabs")
        assert page.input_value("#key") == ""


def test_every_view_opens(page: Any, office: Desk) -> None:
    enter(page, office.keys["read"])
    page.wait_for_selector("#tabs:visible")
    assert [button.get_attribute("id") for button in page.query_selector_all("#tabs button")] == [
        f"tab-{name}" for name in VIEWS
    ]
    for name in VIEWS:
        view(page, name)
        page.wait_for_selector("main table, main .muted")
        assert page.locator("#note.bad:visible").count() == 0, page.text_content("#note")
    view(page, "now")
    part(page, "fairgate .*: ready").wait_for()
    assert "m" in part(page, "Queues").locator("td").all_text_contents()


def test_a_tenant_a_user_and_a_key_are_made_and_ended(page: Any, office: Desk, portal: BlockingPortal) -> None:
    """O8: the key is shown once, works, and is refused as soon as it is revoked."""
    enter(page, office.keys["admin"])
    page.wait_for_selector("#tabs:visible")
    view(page, "people")
    part(page, "Tenants").locator("input[name=all_models]").check()
    submit(part(page, "Tenants"), name="labs")
    part(page, "Tenants").get_by_role("cell", name="labs").wait_for()
    submit(part(page, "Users"), tenant="labs", name="eve")
    part(page, "Users").get_by_role("cell", name="labs/eve").wait_for()
    submit(part(page, "Keys"), tenant="labs", user="eve", name="phone")
    token = page.locator("#note code").text_content()
    assert portal.call(office.chat, token) == 200
    line = part(page, "Keys").locator("tr").filter(has_text="phone")
    assert "labs/eve" in line.text_content()
    assert token not in part(page, "Keys").inner_html()
    page.once("dialog", lambda asked: asked.dismiss())
    line.get_by_role("button", name="Revoke").click()
    page.wait_for_selector("#note", state="hidden")
    assert portal.call(office.chat, token) == 200
    page.once("dialog", lambda asked: asked.accept())
    line.get_by_role("button", name="Revoke").click()
    page.get_by_text("is revoked.").wait_for()
    assert portal.call(office.chat, token) == 401
    assert "revoked" in line.text_content()
    assert token not in page.content()


def test_a_key_that_only_reads_is_told_so(page: Any, office: Desk) -> None:
    """O8: and what was typed stays."""
    enter(page, office.keys["read"])
    page.wait_for_selector("#tabs:visible")
    view(page, "people")
    submit(part(page, "Tenants"), name="more")
    page.wait_for_selector("#note.bad")
    assert "admin:write" in page.text_content("#note")
    assert part(page, "Tenants").locator("input[name=name]").input_value() == "more"


def test_a_setting_is_changed_and_put_back(page: Any, office: Desk) -> None:
    enter(page, office.keys["admin"])
    page.wait_for_selector("#tabs:visible")
    view(page, "settings")
    settings = part(page, "Fair-use settings")
    name = settings.locator("tbody tr td").first.text_content()
    line = settings.locator("tbody tr").first
    value = line.locator("td").nth(1).text_content()
    submit(settings, name=name, value="nonsense")
    page.wait_for_selector("#note.bad")
    more = str(int(value) + 1)
    submit(settings, name=name, value=more)
    line.get_by_role("button", name="As configured").click()
    page.wait_for_function("text => document.querySelector('tbody tr td:nth-child(2)').textContent === text", arg=value)
    view(page, "records")
    done = part(page, "What admins did").locator("tbody tr")
    done.nth(1).wait_for()
    assert [done.nth(n).locator("td").last.text_content() for n in (0, 1)] == ["cleared", more]


def test_a_window_is_approved_by_who_sees_whose_it_is(page: Any, office: Desk, portal: BlockingPortal) -> None:
    """S: of a user, and of a whole tenant."""
    for wish in ({"minutes": 5, "user": "ann"}, {"minutes": 6}):
        asked = {"tenant": "acme", "exclusive": True} | wish
        made = portal.call(lambda body: office.ask("POST", f"{BASE}/reservations", body), asked)
        assert made.status_code == 201
    enter(page, office.keys["admin"])
    page.wait_for_selector("#tabs:visible")
    view(page, "settings")
    lines = part(page, "Reservations").locator("tbody tr")
    lines.nth(1).wait_for()
    assert sorted(lines.locator("td:nth-child(2)").all_text_contents()) == ["acme", "acme/ann"]
    lines.filter(has_text="acme/ann").get_by_role("button", name="Approve").click()
    lines.filter(has_text="acme/ann").get_by_text("approved").wait_for()


def test_what_clients_say_is_text(page: Any, office: Desk, portal: BlockingPortal) -> None:
    """H8: a model's name is markup nowhere."""
    asked = {"model": HOSTILE, "messages": [{"role": "user", "content": "x"}]}
    url = f"http://127.0.0.1:{office.gateway.port}/v1/chat/completions"
    bearer = {"authorization": f"Bearer {office.keys['data']}"}
    assert portal.call(lambda: office.http.post(url, json=asked, headers=bearer)).status_code == 403
    enter(page, office.keys["read"])
    page.wait_for_selector("#tabs:visible")
    while not page.locator("main").get_by_text(HOSTILE).count():  # the row is written in the background
        view(page, "records")
        page.wait_for_selector("main section:nth-child(2)")
    assert page.locator("main img").count() == 0
    assert page.title() == "fairgate console"


def test_the_key_is_forgotten(page: Any, office: Desk) -> None:
    """K1: it was in no storage, cookie or address, and is nowhere afterwards."""
    enter(page, office.keys["read"])
    page.wait_for_selector("#tabs:visible")
    kept = "() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    assert office.keys["read"] not in page.evaluate(kept) + page.content()
    page.click("#leave")
    page.get_by_text("The key is forgotten.").wait_for()
    assert page.is_hidden("#tabs")
    assert page.evaluate("() => key") == ""


def test_a_second_click_is_no_second_key_and_the_first_is_shown(page: Any, office: Desk) -> None:
    """O8: a key is shown once, so nothing that fails afterwards takes it away."""
    enter(page, office.keys["admin"])
    page.wait_for_selector("#tabs:visible")
    view(page, "people")
    keys = part(page, "Keys")
    keys.locator("tbody tr").first.wait_for()
    asked: list[Any] = []

    def answer(route: Any) -> None:
        asked.append(route.request.method)
        if asked[-1] == "GET":
            route.fulfill(status=503, json={"error": {"code": "x", "message": "not now", "param": None}})
        else:
            route.continue_()

    page.route("**/v1/keys**", answer)
    keys.locator("input[name=tenant]").fill("acme")
    keys.locator("input[name=user]").fill("ann")
    with page.expect_response(lambda told: told.status == 503):
        keys.locator("form button").dblclick()
    page.locator("#note code").filter(has_text="fg_").wait_for()
    assert asked.count("POST") == 1
    assert "not now" not in page.text_content("#note")


def test_whose_key_it_is_is_found_among_many(page: Any, office: Desk, portal: BlockingPortal) -> None:
    """From a tenant to its users, from a user to the keys, where one page does not hold all."""

    async def crowd() -> None:
        async with connection(office.store) as opened:
            tenant = await accounts.create_tenant(opened, "zoo")
            for n in range(101):
                user = await accounts.create_user(opened, tenant, f"ape{n:03}")
            await accounts.create_key(opened, user, KeyTerms(name="rope"), CHEAP)

    portal.call(crowd)
    enter(page, office.keys["admin"])
    page.wait_for_selector("#tabs:visible")
    view(page, "people")
    users, keys = part(page, "Users"), part(page, "Keys")
    part(page, "Tenants").locator("tr").filter(has_text="zoo").get_by_role("button", name="Users and keys").click()
    users.get_by_text("Only of zoo.").wait_for()
    users.get_by_role("button", name="Next").click()
    users.locator("tr").filter(has_text="zoo/ape100").get_by_role("button", name="Keys").click()
    keys.get_by_text("Only of zoo/ape100.").wait_for()
    lines = keys.locator("tbody tr")
    assert (lines.count(), lines.filter(has_text="rope").filter(has_text="zoo/ape100").count()) == (1, 1)
    page.on("dialog", lambda asked: asked.dismiss() if "rope of zoo/ape100" in asked.message else asked.accept())
    lines.get_by_role("button", name="Revoke").click()
    page.wait_for_selector("#note", state="hidden")
    assert "active" in lines.text_content()
    keys.get_by_role("button", name="Show all").click()
    lines.nth(1).wait_for()
    assert keys.get_by_text("Only of").count() == 0


def test_what_runs_is_looked_at_again_after_a_fault(page: Any, office: Desk) -> None:
    """One look that fails is said, and is not the last."""
    enter(page, office.keys["read"])
    part(page, "fairgate .*: ready").wait_for()
    page.route("**/v1/stats", lambda route: route.abort(), times=1)
    page.wait_for_selector("#note.bad:visible")
    page.wait_for_selector("#note", state="hidden")


def test_a_key_that_is_revoked_closes_the_console(page: Any, office: Desk, portal: BlockingPortal) -> None:
    """K3: and nothing of what it showed stays."""
    enter(page, office.keys["other"])
    part(page, "fairgate .*: ready").wait_for()
    path = f"{BASE}/keys/{office.ids['other']}/revoke"
    assert portal.call(lambda: office.ask("POST", path)).status_code == 200
    part(page, "Closed").filter(has_text="revoked").wait_for()
    assert page.is_hidden("#tabs")


def test_the_head_fits_a_small_screen(page: Any, office: Desk) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    enter(page, office.keys["read"])
    page.wait_for_selector("#leave:visible")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360


@contextlib.contextmanager
def logged_in(browser: Any, portal: BlockingPortal, folder: Path, **roles: list[str]) -> Iterator[Any]:
    """The console of a gateway of its own, just after a login at another site as somebody with the role `ops`."""
    with portal.wrap_async_context_manager(independent()) as issuer:
        section = {"issuer": issuer, "client_id": "console", "client_secret": "any", "role_claim": ["groups"]}
        with portal.wrap_async_context_manager(desk(folder, admin={"oidc": section | roles})) as office:
            home = f"http://127.0.0.1:{office.gateway.admin_port}"
            with watched(browser, home, "/admin/", issuer) as page:
                page.click("#login:visible")
                page.fill("input[name=sub]", "ann@lab")
                page.press("input[name=sub]", "Enter")
                page.wait_for_url(f"{home}/admin/")
                yield page


def test_a_person_logs_in_at_another_site_and_out_again(browser: Any, portal: BlockingPortal, tmp_path: Path) -> None:
    """O8: the browser's own rules for cookies hold, the provider being another site; a reload keeps the session."""
    with logged_in(browser, portal, tmp_path, read=["ops"]) as page:
        page.wait_for_selector("#tabs:visible")
        assert "ann@lab: admin:read" in page.text_content("#note")
        view(page, "people")
        submit(part(page, "Tenants"), name="more")
        page.locator("#note.bad").filter(has_text="admin:write").wait_for()
        page.reload()
        page.wait_for_selector("#tabs:visible")
        assert page.evaluate("() => document.cookie") == ""
        page.route("**/logout", lambda route: route.fulfill(status=503, body="busy"), times=1)
        page.get_by_role("button", name="Log out").click()
        page.locator("#note.bad").filter(has_text="still logged in").wait_for()
        page.get_by_role("button", name="Log out").click()
        page.get_by_text("You are logged out.").wait_for()
        page.wait_for_selector("#login:visible")
        page.reload()
        page.wait_for_selector("#login:visible")
        assert page.is_hidden("#tabs")


def test_a_session_that_is_over_is_said(browser: Any, portal: BlockingPortal, tmp_path: Path) -> None:
    """O8: who logged in sent no key, and is not told to."""
    with logged_in(browser, portal, tmp_path, read=["ops"]) as page:
        part(page, "fairgate .*: ready").wait_for()
        page.context.clear_cookies()
        page.get_by_text("Your session is over. Log in again.").wait_for()
        page.wait_for_selector("#login:visible")
        assert page.is_hidden("#tabs")


def test_a_person_who_may_not_read_is_told_so(browser: Any, portal: BlockingPortal, tmp_path: Path) -> None:
    """O8: a login that worked does not look like none."""
    with logged_in(browser, portal, tmp_path, write=["ops"]) as page:
        page.locator("#note.bad").filter(has_text="admin:read").wait_for()
