"""An OpenID provider on loopback that asks for what the protocol says; a test spoils one thing of what it answers."""

import base64
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from gateway.admin.app import serve_admin
from gateway.admin.oidc import DOCUMENT
from tests.services.issuer import RSA, Signer, jwks

CLIENT, SECRET = "the console", "a/b c+%"


class Provider:
    """Everybody who comes is let in as the person of `claims`, in no time. `asked`: what token requests said."""

    def __init__(self, secret: str = "") -> None:
        self.secret = secret
        self.methods: list[str] | None = None
        self.claims: dict[str, Any] = {"sub": "ann", "groups": ["ops"]}
        self.spoil: Callable[[dict[str, Any]], dict[str, Any]] = lambda said: said
        self.signer: Signer = RSA
        self.token: Callable[[str], Response] | None = None
        self.document: dict[str, Any] = {}
        self.back: dict[str, str] = {}
        self.asked: list[dict[str, str]] = []
        self._codes: dict[str, dict[str, str]] = {}
        self.port = 0

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}/realm"

    def section(self, **more: Any) -> dict[str, Any]:
        """`admin.oidc` for it."""
        section = {
            "issuer": self.issuer,
            "client_id": CLIENT,
            "role_claim": ["groups"],
            "write": ["ops"],
            "read": ["ops"],
        }
        return section | ({"client_secret": self.secret} if self.secret else {}) | more

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Provider"]:
        routes = [
            Route(f"/realm{DOCUMENT}", self._document),
            Route("/authorize", self._authorize),
            Route("/token", self._token, methods=["POST"]),
            Route("/keys", self._keys),
        ]
        server = await serve_admin("127.0.0.1:0", Starlette(routes=routes))
        self.port = server.port
        try:
            yield self
        finally:
            await server.close()

    async def _document(self, request: Request) -> Response:
        at = f"http://127.0.0.1:{self.port}"
        shown = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{at}/authorize?tenant=x",
            "token_endpoint": f"{at}/token",
            "jwks_uri": f"{at}/keys",
        }
        methods = {} if self.methods is None else {"token_endpoint_auth_methods_supported": self.methods}
        return JSONResponse(shown | methods | self.document)

    async def _keys(self, request: Request) -> Response:
        return JSONResponse(jwks(RSA))

    async def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        assert (asked["response_type"], asked["client_id"], asked["tenant"]) == ("code", CLIENT, "x")
        assert asked["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe()
        self._codes[code] = asked
        back = {"code": code, "state": asked["state"], "iss": self.issuer} | self.back
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(back)}", 303)

    async def _token(self, request: Request) -> Response:
        asked = dict(parse_qsl((await request.body()).decode(), strict_parsing=True))
        self.asked.append(asked | {"authorization": request.headers.get("authorization", "")})
        begun = self._codes.pop(asked["code"], None)
        challenge = base64.urlsafe_b64encode(sha256(asked["code_verifier"].encode()).digest()).rstrip(b"=").decode()
        good = begun is not None and (challenge, asked["redirect_uri"], asked["grant_type"]) == (
            begun["code_challenge"],
            begun["redirect_uri"],
            "authorization_code",
        )
        if begun is None or not good or self._client_of(request, asked) != (CLIENT, self.secret):
            return JSONResponse({"error": "invalid_grant"}, 400)
        now = int(time.time())
        said = {"iss": self.issuer, "aud": CLIENT, "iat": now, "exp": now + 60, "nonce": begun["nonce"], **self.claims}
        token = self.signer.sign(self.spoil(said)).decode()
        return self.token(token) if self.token else JSONResponse({"access_token": "x", "id_token": token})

    def _client_of(self, request: Request, asked: dict[str, str]) -> tuple[str, str]:
        basic = request.headers.get("authorization", "").removeprefix("Basic ")
        if not basic:
            return asked.get("client_id", ""), asked.get("client_secret", "")
        name, _, secret = base64.b64decode(basic).decode().partition(":")
        return unquote_plus(name), unquote_plus(secret)
