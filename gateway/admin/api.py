"""The admin API over HTTP: passes a request through the gate to its row of the table, and returns the result as
JSON."""

import logging
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.admin.asks import Ask
from gateway.admin.call import Call, Managed, Office
from gateway.admin.console import page
from gateway.admin.gate import Gate, body_of, check_scope
from gateway.admin.sessions import Sessions
from gateway.admin.table import BASE, READ, find
from gateway.config import ConfigError
from gateway.errors import BadRequest, Bug, ClientError, Conflict, GatewayError, MethodNotAllowed, NotFound, Unavailable
from gateway.issuer import Oidc
from gateway.services.accounts import AccountError, NoSuch, Taken
from gateway.services.keys import KeyService
from gateway.services.tokens import EXTRA
from gateway.store.base import StoreError

if TYPE_CHECKING:
    from gateway.admin.login import Login

log = logging.getLogger("fairgate.admin")

METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class AdminApi:
    """The routes below /admin. Raises ConfigError if logins are configured but cannot work."""

    def __init__(self, gateway: Managed, keys: KeyService) -> None:
        self._office = Office(gateway, keys)
        self._gate = Gate(keys, lambda: gateway.config)
        self._login = _login(gateway.config.admin.oidc, self._gate)

    def routes(self) -> list[Route]:
        """The routes for the listener's application."""
        return [
            Route("/admin", _to_console, methods=["GET"]),
            Route("/admin/", self._console, methods=["GET"]),
            *(self._login.routes() if self._login is not None else ()),
            Route(f"{BASE}/{{path:path}}", self._answer, methods=METHODS),
        ]

    async def _console(self, request: Request) -> Response:
        """The page contains no secrets; without a key it shows nothing."""
        try:
            self._gate.check_host(request)
        except GatewayError as error:
            return _refusal(error)
        html, policy = page(login=self._login is not None)
        return Response(html, media_type="text/html", headers={"content-security-policy": policy})

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._served(request)
        except GatewayError as error:
            return _refusal(error)
        except ClientDisconnect:
            return _refusal(BadRequest("The body ended early."))
        except AccountError as err:
            return _refusal(_account_error(err))
        except StoreError as err:
            log.error("the store did not do what an admin asked: %s", err)
            return _refusal(
                Unavailable(
                    "The store did not answer. Check whether the change was made before you repeat it.", retry_after=1.0
                )
            )
        except Exception:
            log.exception("an admin's request broke")
            return _refusal(Bug("An internal error; the gateway's log has the cause."))

    async def _served(self, request: Request) -> Response:
        self._gate.check_host(request)
        who = await self._gate.admit(request)
        row, named = find(request.method, request.scope["path"].removeprefix(BASE))
        check_scope(who, row.scope)
        body = b"" if row.scope == READ else await body_of(request)
        call = Call(self._office, who, named, request.scope["query_string"], body)
        if not row.asks:
            call.query(Ask)
        answer = await row.answer(call)
        if row.scope != READ:
            told = {"method": row.method, "route": BASE + row.path, "key": who.key, "status": row.status}
            log.info("an admin changed something", extra=told)
        return _json(answer, row.status)


def _login(section: Oidc | None, gate: Gate) -> "Login | None":
    """None if the console can be opened with keys only."""
    if section is None:
        return None
    try:
        from gateway.admin.login import Login
        from gateway.admin.oidc import OpenId
    except ImportError as error:
        raise ConfigError(f"admin.oidc: PyJWT is not installed ({error.name}): {EXTRA}") from error
    try:
        login = Login(section, OpenId(section), Sessions(section.session, time.monotonic), gate.check_host)
    except OSError as error:
        raise ConfigError(f"admin.oidc.ca: {error}") from error
    gate.session = login.who
    return login


async def _to_console(request: Request) -> Response:
    """Redirect to the console. The location is relative, so it cannot lead to another site."""
    return Response(status_code=307, headers={"location": "admin/"})


def _account_error(error: AccountError) -> ClientError:
    """The API's error for one raised by a rule of the services."""
    kind = NotFound if isinstance(error, NoSuch) else Conflict if isinstance(error, Taken) else BadRequest
    return kind(str(error))


def _json(body: object, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def _refusal(error: GatewayError) -> Response:
    told: dict[str, Any] = {"code": error.code, "message": error.message, "param": error.param}
    headers = {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after + 0.5)))
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = error.allow
    return _json({"error": told}, error.status, headers)
