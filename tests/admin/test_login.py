"""Sessions of the console for people whom an OpenID provider knows (O8): in, acting, out, and whatever goes wrong."""

import asyncio
import contextlib
import importlib.util
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import msgspec
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from gateway.admin import api
from gateway.admin.gate import Gate
from gateway.admin.sessions import MOST, Sessions
from gateway.issuer import Oidc
from gateway.services.principal import Principal
from gateway.source import ConfigError
from tests.admin.desk import BASE, Desk, desk
from tests.admin.provider import CLIENT, SECRET, Provider
from tests.servers import free_port
from tests.services.issuer import EC, RSA, Signer

ACTS = {"x-fairgate-console": "1"}
SESSION = "fairgate-session"


class Browser:
    """Goes where it is led, one step at a time, and keeps cookies."""

    def __init__(self, office: Desk) -> None:
        self.at = f"http://127.0.0.1:{office.gateway.admin_port}"
        self.http = httpx.AsyncClient(trust_env=False, timeout=30)

    async def go(self, address: str, **more: Any) -> httpx.Response:
        return await self.http.get(httpx.URL(self.at).join(address), **more)

    async def to_provider(self) -> str:
        """Begin -> the address of the provider."""
        begun = await self.go("/admin/login")
        assert begun.status_code == 303, begun.text
        return begun.headers["location"]

    async def back(self) -> str:
        """Begin and log in -> the address that leads back."""
        return (await self.http.get(await self.to_provider())).headers["location"]

    async def log_in(self) -> httpx.Response:
        """The whole way -> the last answer."""
        return await self.go(await self.back())

    async def ask(self, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """As the console does."""
        return await self.http.request(method, self.at + BASE + path, json=body, headers=ACTS, **more)


@asynccontextmanager
async def office(folder: Path, provider: Provider, **more: Any) -> AsyncIterator[tuple[Desk, Browser]]:
    async with provider.running(), desk(folder, admin={"oidc": provider.section(**more)}) as it:
        browser = Browser(it)
        async with browser.http:
            yield it, browser


def run(folder: Path, provider: Provider, test: Callable[[Desk, Browser], Awaitable[None]], **more: Any) -> None:
    async def main() -> None:
        async with office(folder, provider, **more) as (it, browser):
            await test(it, browser)

    asyncio.run(main())


def test_a_person_logs_in_acts_and_logs_out(tmp_path: Path) -> None:
    """O8: the trail names the person; after the end the cookie is worth nothing."""

    async def test(it: Desk, browser: Browser) -> None:
        assert b'data-login="on"' in (await browser.go("/admin/")).content
        done = await browser.log_in()
        assert (done.status_code, done.headers["location"]) == (303, "./")
        assert (await browser.ask("GET", "/self")).json() == {
            "key": "oidc:ann",
            "user": "ann",
            "tenant": "",
            "scopes": ["admin:read", "admin:write"],
        }
        assert (await browser.ask("POST", "/tenants", {"name": "labs"})).status_code == 201
        last = (await it.get("/actions?kind=tenant&limit=1"))["data"][0]
        assert (last["actor"], last["id"]) == ("oidc:ann", (await it.get("/tenants/labs"))["id"])
        kept = browser.http.cookies[SESSION]
        left = await browser.http.post(f"{browser.at}/admin/logout", headers=ACTS)
        assert left.status_code == 204
        assert SESSION not in browser.http.cookies
        browser.http.cookies.set(SESSION, kept)
        assert (await browser.ask("GET", "/self")).status_code == 401

    run(tmp_path, Provider(), test)


@asynccontextmanager
async def independent() -> AsyncIterator[str]:
    """Authlib's server, behind the package oidc-provider-mock, in a process of its own -> the issuer."""
    if importlib.util.find_spec("oidc_provider_mock") is None:
        pytest.skip("oidc-provider-mock is not installed (the group `test` has it)")
    port = free_port()
    ann = '{"sub": "ann@lab", "groups": ["ops"]}'
    command = [sys.executable, "-m", "oidc_provider_mock", "-p", str(port), "--user-claims", ann]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(30):
            while process.returncode is None:
                with contextlib.suppress(OSError):
                    (await asyncio.open_connection("127.0.0.1", port))[1].close()
                    break
                await asyncio.sleep(0.05)
        yield f"http://localhost:{port}"  # not the console's site
    finally:
        process.terminate()
        await process.wait()


def test_an_independent_provider_lets_in_too(tmp_path: Path) -> None:
    """Discovery, PKCE, nonce, keys and tokens as others have them."""

    async def main() -> None:
        async with independent() as issuer:
            section = {"issuer": issuer, "client_id": "console", "role_claim": ["groups"], "read": ["ops"]}
            async with desk(tmp_path, admin={"oidc": section | {"client_secret": "any"}}) as it:
                browser = Browser(it)
                async with browser.http:
                    form = await browser.to_provider()
                    back = (await browser.http.post(form, data={"sub": "ann@lab"})).headers["location"]
                    done = await browser.go(back)
                    assert done.status_code == 303, done.text
                    me = (await browser.ask("GET", "/self")).json()
                    assert (me["user"], me["scopes"]) == ("ann@lab", ["admin:read"])

    asyncio.run(main())


def test_without_a_provider_nothing_of_it_is_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with desk(tmp_path) as it:
            for path in ("/admin/login", "/admin/callback", "/admin/logout"):
                assert (await it.ask("GET", path)).status_code == 404
            assert b"data-login=" not in (await it.ask("GET", "/admin/")).content

    asyncio.run(main())


def test_a_session_acts_for_the_console_alone(tmp_path: Path) -> None:
    """CSRF: a cookie by itself opens nothing, a key is asked for instead; the field alone neither."""

    async def test(it: Desk, browser: Browser) -> None:
        done = await browser.log_in()
        cookie = next(line for line in done.headers.get_list("set-cookie") if line.startswith(SESSION))
        assert {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=28800"} <= set(cookie.split("; "))
        assert (await browser.go(f"{BASE}/self")).status_code == 401
        assert (await browser.http.post(f"{browser.at}/admin/logout")).status_code == 403
        assert (await browser.ask("GET", "/self")).status_code == 200
        plain = await browser.http.post(f"{browser.at}{BASE}/tenants", content=b'{"name": "x"}', headers=ACTS)
        assert plain.status_code == 415, "not as JSON"
        for cookies in ({}, {SESSION: "guessed"}, {SESSION: ""}):
            async with httpx.AsyncClient(cookies=cookies, trust_env=False) as other:
                assert (await other.get(f"{browser.at}{BASE}/self", headers=ACTS)).status_code == 401
        with_key = ACTS | {"authorization": f"Bearer {it.keys['data']}"}
        assert (await browser.http.get(f"{browser.at}{BASE}/self", headers=with_key)).status_code == 403

    run(tmp_path, Provider(), test)


def but(**members: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a token says, changed; None leaves a claim out."""
    return lambda said: {name: value for name, value in {**said, **members}.items() if value is not None}


CLAIMS: dict[str, dict[str, Any]] = {
    "of another login": {"nonce": "x"},
    "without a nonce": {"nonce": None},
    "with an odd nonce": {"nonce": ["x"]},
    "for somebody else": {"aud": "else"},
    "for another party": {"azp": "else"},
    "for several, none named": {"aud": [CLIENT, "else"]},
    "of another issuer": {"iss": "https://login.example"},
    "expired": {"exp": 1},
    "without an end": {"exp": None},
    "of tomorrow": {"iat": 1 << 40},
    "without a role": {"groups": ["staff"]},
    "with odd roles": {"groups": {"ops": True}},
    "with a number for roles": {"groups": 7},
    "without a name": {"sub": None},
    "with a name that none can have": {"sub": "a b"},
}
ANSWERS: dict[str, tuple[Callable[[str], Response], int]] = {
    "refused": (lambda token: JSONResponse({"error": "invalid_grant"}, 400), 403),
    "another client": (lambda token: JSONResponse({"error": "invalid_client"}, 401), 503),
    "an odd question": (lambda token: JSONResponse({"error": "invalid_request"}, 400), 503),
    "refused in no words": (lambda token: PlainTextResponse("no", 400), 503),
    "broken": (lambda token: PlainTextResponse("at 10.0.0.5", 500), 503),
    "no JSON": (lambda token: PlainTextResponse("<html>"), 503),
    "no token": (lambda token: JSONResponse({"access_token": "x"}), 503),
    "endless": (lambda token: PlainTextResponse("x" * 1_000_000), 503),
    "elsewhere": (lambda token: Response(status_code=307, headers={"location": "http://127.0.0.1:1/"}), 503),
    "torn": (lambda token: JSONResponse({"id_token": token[:-3]}), 403),
    "unsigned": (lambda token: JSONResponse({"id_token": "eyJhbGciOiJub25lIiwia2lkIjoicnNhLTEifQ.e30."}), 403),
    "no token at all": (lambda token: JSONResponse({"id_token": "é"}), 403),
}
SIGNERS = {"an unknown key": (Signer("else"), 403), "a key of that name": (Signer(RSA.kid), 403), "ES256": (EC, 403)}
BACK = {
    "the provider said no": ({"error": "access_denied", "code": ""}, 403),
    "another provider": ({"iss": "https://else.example"}, 403),
    "another login": ({"state": "x"}, 400),
    "no login": ({"state": ""}, 400),
    "a made-up code": ({"code": "x"}, 403),
}


def test_whoever_is_not_believed_is_not_let_in(tmp_path: Path) -> None:
    """Fail closed: no session, no word of the provider, and the next good one is let in."""
    provider = Provider()

    async def refused(browser: Browser, what: str, status: int) -> None:
        done = await browser.log_in()
        assert (done.status_code, SESSION in browser.http.cookies) == (status, False), f"{what}: {done.text}"
        assert "10.0.0.5" not in done.text

    async def test(it: Desk, browser: Browser) -> None:
        for what, members in CLAIMS.items():
            provider.spoil = but(**members)
            await refused(browser, what, 403)
        provider.spoil = but(sub="auth0|1")
        assert "no name" in (await browser.log_in()).text
        provider.spoil = but()
        for what, (answer, status) in ANSWERS.items():
            provider.token = answer
            await refused(browser, what, status)
        provider.token = None
        for what, (signer, status) in SIGNERS.items():
            provider.signer = signer
            await refused(browser, what, status)
        provider.signer = RSA
        for what, (back, status) in BACK.items():
            provider.back = back
            await refused(browser, what, status)
        provider.back = {}
        assert (await browser.log_in()).status_code == 303

    run(tmp_path, provider, test)


def test_a_login_belongs_to_the_browser_that_began_it(tmp_path: Path) -> None:
    """Nobody is led into another's session; a way back is good once."""

    async def test(it: Desk, browser: Browser) -> None:
        stolen = await browser.back()
        victim = Browser(it)
        async with victim.http:
            assert (await victim.go(stolen)).status_code == 400
            await victim.to_provider()
            assert (await victim.go(stolen)).status_code == 400
            assert SESSION not in victim.http.cookies
        assert (await browser.go(stolen)).status_code == 303
        assert (await browser.go(stolen)).status_code == 400

    run(tmp_path, Provider(), test)


DOCUMENTS: dict[str, dict[str, Any]] = {
    "of another issuer": {"issuer": "https://else.example"},
    "in clear over a network": {"token_endpoint": "http://login.example/token"},
    "no address": {"jwks_uri": "javascript:x"},
    "of other types": {"authorization_endpoint": 7},
}


@pytest.mark.parametrize("what", DOCUMENTS)
def test_a_document_that_is_none_lets_nobody_in(what: str, tmp_path: Path) -> None:
    provider = Provider()
    provider.document = DOCUMENTS[what]

    async def test(it: Desk, browser: Browser) -> None:
        assert (await browser.go("/admin/login")).status_code == 503
        assert (await it.ask("GET", f"{BASE}/self")).status_code == 200, "keys are as before"

    run(tmp_path, provider, test)


def test_an_endpoint_that_cannot_be_asked_lets_nobody_in(tmp_path: Path) -> None:
    """It is an address, and longer than any that is asked for."""
    provider = Provider()
    provider.document = {"token_endpoint": f"https://127.0.0.1:1/{'x' * 70_000}"}

    async def test(it: Desk, browser: Browser) -> None:
        assert (await browser.log_in()).status_code == 503

    run(tmp_path, provider, test)


@pytest.mark.parametrize(
    ("secret", "methods", "basic"),
    [("", None, False), (SECRET, None, True), (SECRET, ["client_secret_post"], False), ("", ["none"], False)],
)
def test_the_client_authenticates_to_the_provider_by_the_method_it_supports(
    secret: str, methods: list[str] | None, basic: bool, tmp_path: Path
) -> None:
    """RFC 6749, 2.3.1; the secret goes nowhere else."""
    provider = Provider(secret)
    provider.methods = methods

    async def test(it: Desk, browser: Browser) -> None:
        assert (await browser.log_in()).status_code == 303
        (asked,) = provider.asked
        assert bool(asked["authorization"]) == basic
        assert ("client_secret" in asked) == (bool(secret) and not basic)
        assert secret == "" or secret not in await browser.to_provider()

    run(tmp_path, provider, test)


@pytest.mark.parametrize(
    ("groups", "scopes"),
    [("see", ["admin:read"]), (["do", 7], ["admin:write"]), (["see", "do"], ["admin:read", "admin:write"])],
)
def test_roles_open_what_the_section_says(groups: Any, scopes: list[str], tmp_path: Path) -> None:
    provider = Provider()
    provider.claims = {"sub": "x", "who": {"name": "bob"}, "org": {"groups": groups}}

    async def test(it: Desk, browser: Browser) -> None:
        assert (await browser.log_in()).status_code == 303
        may = "admin:read" in scopes
        me = await browser.ask("GET", "/self")
        assert me.status_code == (200 if may else 403)
        assert not may or (me.json()["user"], me.json()["scopes"]) == ("bob", scopes)

    claims = {"name_claim": ["who", "name"], "role_claim": ["org", "groups"]}
    run(tmp_path, provider, test, read=["see"], write=["do"], **claims)


def test_over_https_cookies_are_of_this_host_alone(tmp_path: Path) -> None:
    """RFC 6265bis: `__Host-`; the name in `url` is one that the listener is called by."""

    async def test(it: Desk, browser: Browser) -> None:
        begun = await browser.go("/admin/login", headers={"host": "console.example"})
        cookie = begun.headers["set-cookie"]
        assert cookie.startswith("__Host-fairgate-login=")
        assert {"HttpOnly", "Secure", "SameSite=lax", "Path=/"} <= set(cookie.split("; "))
        asked = parse_qs(urlsplit(begun.headers["location"]).query)
        assert asked["redirect_uri"] == ["https://console.example/admin/callback"]
        assert (await browser.go("/admin/login", headers={"host": "else.example"})).status_code == 403

    run(tmp_path, Provider(), test, url="https://console.example/admin/")


def test_a_provider_that_is_away_locks_no_key_out(tmp_path: Path) -> None:
    """K5, O8: keys are the way in that needs no provider."""
    provider = Provider()

    async def main() -> None:
        async with provider.running():
            section = provider.section()
        async with desk(tmp_path, admin={"oidc": section}) as it:
            browser = Browser(it)
            async with browser.http:
                assert (await browser.go("/admin/login")).status_code == 503
                assert (await it.ask("GET", f"{BASE}/self")).status_code == 200

    asyncio.run(main())


WHO = Principal(tenant="", user="ann", key="oidc:ann")


def test_sessions_end_and_are_bounded() -> None:
    now = 100.0
    sessions = Sessions(60.0, lambda: now)
    secret = sessions.begin(WHO)
    assert sessions.find(secret) is WHO
    assert sessions.find(secret[:-1]) is None
    now += 59.9
    assert sessions.find(secret) is WHO
    now += 0.1
    assert sessions.find(secret) is None
    kept = [sessions.begin(WHO) for _ in range(MOST + 1)]
    assert sessions.find(kept[0]) is None
    assert sessions.find(kept[-1]) is WHO
    sessions.end(kept[-1])
    assert sessions.find(kept[-1]) is None


def test_a_login_that_cannot_work_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    section = Oidc(issuer="https://a", client_id="b", url="https://c/admin/", role_claim=("d",), read=("e",), ca="none")
    with pytest.raises(ConfigError, match=r"admin\.oidc\.ca: "):
        api._login(section, msgspec.UNSET)  # type: ignore[arg-type]  # not reached
    monkeypatch.setitem(sys.modules, "gateway.admin.login", None)
    with pytest.raises(ConfigError, match=r"admin\.oidc: PyJWT .*fairgate\[jwt\]"):
        api._login(section, msgspec.UNSET)  # type: ignore[arg-type]  # not reached
    assert api._login(None, Gate(None, None)) is None  # type: ignore[arg-type]  # as above
