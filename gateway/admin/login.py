"""Logging in to the console and out again, over HTTP (O8): two redirects through the browser, and the cookies.

Owns the cookies. The state of a login attempt is kept by the browser that began it, so nobody can be led into somebody
else's session, and nothing is stored here for mere attempts. A session's cookie is sent only with requests from the
console's own origin (SameSite=Strict), and scripts cannot read it. Must not know the provider's protocol, keys or the
API.
"""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, Protocol

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gateway.admin.oidc import Attempt, NotBelieved, ProviderFailed
from gateway.admin.sessions import PERSON, Sessions
from gateway.errors import GatewayError
from gateway.issuer import Oidc
from gateway.services.accounts import ADMIN_SCOPES
from gateway.services.principal import Principal
from gateway.services.tokens import claim, named

log = logging.getLogger("fairgate.admin")

LOGIN_SECONDS: Final = 600  # for the way from the console to the provider and back
AT_ONCE: Final = 4  # concurrent requests to the provider
CONSOLE: Final = "x-fairgate-console"
"""A session counts only with this header field: other sites' pages cannot send it without permission, and none has
it."""


class Provider(Protocol):
    """Implemented by `oidc.OpenId`."""

    async def address(self, attempt: Attempt) -> str: ...

    async def claims(self, attempt: Attempt, code: str) -> dict[str, Any]: ...


class Refused(Exception):
    """A login that failed: status, and a sentence for the browser."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Login:
    """The login routes. `check_host` raises for a request with a host name that is not ours."""

    def __init__(
        self, section: Oidc, provider: Provider, sessions: Sessions, check_host: Callable[[Request], None]
    ) -> None:
        self._section = section
        self._provider = provider
        self._sessions = sessions
        self._check_host = check_host
        self._places = asyncio.Semaphore(AT_ONCE)
        # Only this very host can set a cookie with this prefix (RFC 6265bis)
        prefix = "__Host-" if section.secure else ""
        self._attempt, self._session = f"{prefix}fairgate-login", f"{prefix}fairgate-session"

    def routes(self) -> list[Route]:
        """The routes for the listener's application."""
        return [
            Route("/admin/login", self._told(self._begin), methods=["GET"]),
            Route("/admin/callback", self._told(self._back), methods=["GET"]),
            Route("/admin/logout", self._told(self._end), methods=["POST"]),
        ]

    def who(self, request: Request) -> Principal | None:
        """The owner of the session that a request of the console belongs to."""
        secret = request.cookies.get(self._session)
        return self._sessions.find(secret) if secret and request.headers.get(CONSOLE) else None

    def _told(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def told(request: Request) -> Response:
            try:
                self._check_host(request)
                return await answer(request)
            except Refused as refused:
                return PlainTextResponse(f"{refused}\n", refused.status)
            except NotBelieved as err:
                log.warning("a login was refused: %s", err)
                return PlainTextResponse(f"{err}\n", 403)
            except ProviderFailed as err:
                log.warning("the identity provider was not asked: %s", err)
                return PlainTextResponse("The identity provider cannot be reached at the moment.\n", 503)
            except GatewayError as err:
                return PlainTextResponse(f"{err.message}\n", err.status)

        return told

    async def _begin(self, request: Request) -> Response:
        attempt = Attempt.begin()
        async with self._place():
            answer = _to(await self._provider.address(attempt))
        self._keep(answer, self._attempt, str(attempt), LOGIN_SECONDS, "lax")
        return answer

    async def _back(self, request: Request) -> Response:
        """The return from the provider (OpenID Connect Core, 3.1.2.5 and 3.1.2.6; RFC 9207)."""
        said = request.query_params
        attempt = Attempt.kept(request.cookies.get(self._attempt, ""))
        if attempt is None or not hmac.compare_digest(said.get("state", "").encode(), attempt.state.encode()):
            raise Refused(
                400, "This login was not started in this browser, or it has expired. Start again at the console."
            )
        if said.get("iss", self._section.issuer) != self._section.issuer or not said.get("code"):
            raise Refused(403, "The identity provider did not let you in.")
        async with self._place():
            who = self._person(await self._provider.claims(attempt, said["code"]))
        log.info("an admin logged in", extra={"key": who.key})
        answer = _to("./")
        self._keep(answer, self._session, self._sessions.begin(who), int(self._section.session), "strict")
        self._drop(answer, self._attempt, "lax")
        return answer

    async def _end(self, request: Request) -> Response:
        if not request.headers.get(CONSOLE):
            raise Refused(403, "The console logs out.")
        self._sessions.end(request.cookies.get(self._session, ""))
        answer = Response(status_code=204)
        self._drop(answer, self._session, "strict")
        return answer

    def _person(self, said: dict[str, Any]) -> Principal:
        """The person, with the scopes that its roles give. Raises Refused."""
        section, given = self._section, claim(said, self._section.role_claim)
        listed = given if isinstance(given, list) else [given]
        roles = {role for role in listed if isinstance(role, str)}
        opens = zip(ADMIN_SCOPES, (section.read, section.write), strict=True)
        scopes = frozenset(scope for scope, some in opens if roles.intersection(some))
        name = named(said, section.name_claim)
        if not scopes:
            log.warning("a login without a role that is taken here")
            raise Refused(403, "You are known to the identity provider, but have no role at this gateway.")
        if not name:
            log.warning("a login without a name that can be recorded: admin.oidc.name_claim names another claim")
            raise Refused(403, "The identity provider gives you no name that this gateway can record.")
        return Principal(tenant="", user=name, key=PERSON + name, scopes=scopes)

    def _place(self) -> asyncio.Semaphore:
        if self._places.locked():
            raise Refused(503, "Too many logins are in progress. Try again.")
        return self._places

    def _keep(self, answer: Response, name: str, value: str, seconds: int, site: Literal["lax", "strict"]) -> None:
        answer.set_cookie(name, value, seconds, path="/", secure=self._section.secure, httponly=True, samesite=site)

    def _drop(self, answer: Response, name: str, site: Literal["lax", "strict"]) -> None:
        self._keep(answer, name, "", 0, site)


def _to(address: str) -> Response:
    return Response(status_code=303, headers={"location": address})
