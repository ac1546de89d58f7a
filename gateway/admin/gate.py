"""Access control of the admin API: host, key, scope, and limits of the request. Nothing is read from strangers.

The order of checks: the host name (a foreign page that makes its own name resolve to this listener sends that name),
the key or the session, an admin scope, the route, the route's scope, the body. Browsers never add a key by themselves,
and the cookie of a session counts only together with a header field that no other site's page may send. So no page can
act for a user who opens it.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request

from gateway.config import Config
from gateway.errors import Forbidden, GatewayError, NotJson, RequestTimeout, TooLarge, Unauthenticated
from gateway.flow.peer import forwarded_by
from gateway.services.accounts import ADMIN_SCOPES
from gateway.services.keyfmt import PREFIX
from gateway.services.keys import KeyService
from gateway.services.principal import Principal
from gateway.urls import loopback, parse_listen

log = logging.getLogger("fairgate.admin")

BODY_BYTES: Final = 64 * 1024
BODY_SECONDS: Final = 10.0
_ADMIN: Final = frozenset(ADMIN_SCOPES)


class Gate:
    """The gate of one listener. `config` is called each time, since a reload may change the trusted proxies."""

    def __init__(self, keys: KeyService, config: Callable[[], Config]) -> None:
        self._keys = keys
        self._config = config
        self.session: Callable[[Request], Principal | None] = lambda request: None
        """The logged-in person who sends this request; None if there are only keys."""

    def check_host(self, request: Request) -> None:
        """Raises Forbidden for a host name that is not ours."""
        admin = self._config().admin
        host = _name(request.headers.get("host", ""))
        known = {parse_listen(admin.listen)[0].lower(), *admin.hosts}
        if admin.oidc is not None:
            known.add(urlsplit(admin.oidc.url).hostname or "")
        if host not in known and not loopback(host):
            raise Forbidden("The admin API does not answer to this host name; add it to admin.hosts.")

    async def admit(self, request: Request) -> Principal:
        """The owner of the session, or of the key, which must have an admin scope. Raises Unauthenticated, Forbidden,
        RateLimited, AuthUnavailable."""
        if "authorization" not in request.headers and (person := self.session(request)) is not None:
            return person
        try:
            who = await self._known(request)
        except GatewayError as error:
            failure = error
            log.warning("an admin key was refused", extra={"ip": self._ip(request), "code": error.code})
        else:
            if not who.scopes & _ADMIN:
                log.warning("a key without an admin scope was refused", extra={"ip": self._ip(request), "key": who.key})
                raise Forbidden("This key has no admin scope.")
            return who
        if (turn := self._keys.turn_to_refuse()) is not None:
            await turn
        raise failure

    async def _known(self, request: Request) -> Principal:
        token, ip = _token(request), self._ip(request)
        grant = self._keys.lookup(token, ip)
        return grant.principal if grant is not None else await self._keys.verify(token, ip)

    def _ip(self, request: Request) -> str:
        peer = request.client.host if request.client is not None else ""
        lines = request.headers.getlist("x-forwarded-for")
        forwarded = ",".join(lines).encode("latin-1") if lines else None
        return forwarded_by(self._config().trusted_proxies)(peer, forwarded)


def _name(host: str) -> str:
    """The Host field without its port, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _token(request: Request) -> bytes:
    """The key, only in the form of RFC 6750 section 2.1. Raises Unauthenticated."""
    fields = request.headers.getlist("authorization")
    if not fields:
        raise Unauthenticated("Missing admin key. Send it as 'Authorization: Bearer fg_...'.")
    scheme, _, token = fields[0].partition(" ")
    given = token.strip().encode("latin-1")
    if len(fields) > 1 or scheme.lower() != "bearer" or not given.startswith(PREFIX):
        raise Unauthenticated("The Authorization header must be 'Bearer' followed by an admin key.")
    return given


def check_scope(who: Principal, scope: str) -> None:
    """Raises Forbidden."""
    if scope not in who.scopes:
        log.warning("an admin lacks the scope for what was asked", extra={"key": who.key, "scope": scope})
        raise Forbidden(f"This takes the scope {scope!r}, which is not among yours.")


async def body_of(request: Request) -> bytes:
    """The complete body. Raises NotJson, TooLarge, RequestTimeout."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise NotJson("Send changes with 'Content-Type: application/json'.")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > BODY_BYTES:
                    raise TooLarge(f"The body is larger than {BODY_BYTES} bytes.")
    except TimeoutError as err:
        raise RequestTimeout("The body did not arrive in time.") from err
    return bytes(body)
