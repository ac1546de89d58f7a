"""The configuration sections about identity providers: `jwt`, whose tokens are accepted and what they stand for (K9),
and `admin.oidc`, who may log in to the console (O8). Pure. Must not know how tokens are verified or keys fetched."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from gateway.urls import fetch_fault

_Seconds = Annotated[float, Meta(gt=0, le=86_400)]
_Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Jwt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Signed tokens of an identity provider, accepted beside keys (K9). Requires `pip install 'fairgate[jwt]'`."""

    issuer: Annotated[_Name, Meta(description="`iss` of every token, exactly")]
    audience: Annotated[_Name, Meta(description="`aud` of every token: the issuer's name for this gateway")]
    jwks: Annotated[
        str, Meta(description="the issuer's keys: an https address (http on loopback only), or a JWKS by `file:`")
    ]
    ca: Annotated[str, Meta(description="PEM file with the CA of the issuer's https; empty: the system's CAs")] = ""
    algorithms: Annotated[
        tuple[Literal["RS256", "ES256"], ...], Meta(min_length=1, description="accepted signatures: RS256, ES256")
    ] = ("RS256", "ES256")
    tenant: Annotated[str, Meta(description="name of the tenant of every token; use instead of tenant_claim")] = ""
    tenant_claim: Annotated[
        tuple[_Name, ...], Meta(description="claim that names the tenant; [a, b] is the member b of the claim a")
    ] = ()
    tenants: Annotated[tuple[_Name, ...], Meta(description="tenants that a token may name; empty: all")] = ()
    user_claim: Annotated[
        tuple[_Name, ...],
        Meta(min_length=1, description="claim that names the user within the tenant; same form as tenant_claim"),
    ] = ("sub",)
    create_users: Annotated[
        bool, Meta(description="create a user when its first token arrives; tenants are never created")
    ] = False
    scopes: Annotated[
        tuple[Literal["chat", "completions", "embeddings", "responses", "rerank", "messages", "ollama"], ...],
        Meta(min_length=1, description="scopes of tokens, as for keys"),
    ] = ("chat", "completions", "embeddings", "responses", "rerank", "messages", "ollama")
    clock_skew: Annotated[float, Meta(ge=0, le=60, description="tolerance for the issuer's clock, in seconds")] = 30.0
    longest: Annotated[
        float, Meta(gt=0, le=31_536_000, description="a token valid for longer than this is refused, in seconds")
    ] = 86_400.0
    refresh: Annotated[_Seconds, Meta(description="time between two fetches of the keys")] = 300.0
    retry: Annotated[
        _Seconds, Meta(description="minimum time between two fetches, whatever keys tokens name; at most refresh")
    ] = 10.0
    keep: Annotated[
        _Seconds,
        Meta(description="how long keys stay in use after the last good fetch, then 503; at least refresh + timeout"),
    ] = 3600.0
    timeout: Annotated[_Seconds, Meta(description="timeout for one fetch of the keys")] = 5.0

    @property
    def written_out(self) -> bool:
        """Whether `jwks` contains the keys themselves, because it was a `file:` reference."""
        return self.jwks.lstrip().startswith("{")


class Oidc(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Login to the console with an OpenID provider (O8). Requires `pip install 'fairgate[jwt]'`."""

    issuer: Annotated[
        _Name, Meta(description="the provider, exactly; ISSUER/.well-known/openid-configuration is fetched from it")
    ]
    client_id: Annotated[_Name, Meta(description="the provider's id for this console")]
    client_secret: Annotated[
        str, Meta(description="secret of the client; use env: or file:; empty: a public client")
    ] = ""
    url: Annotated[
        str,
        Meta(description="the console's address in browsers, with its last slash; the provider must allow URLcallback"),
    ]
    ca: Annotated[str, Meta(description="PEM file with the CA of the provider's https; empty: the system's CAs")] = ""
    algorithms: Annotated[
        tuple[Literal["RS256", "ES256"], ...], Meta(min_length=1, description="accepted signatures: RS256, ES256")
    ] = ("RS256", "ES256")
    scope: Annotated[str, Meta(pattern="^openid( [!#-[\\]-~]+)*$", description="scope requested from the provider")] = (
        "openid"
    )
    name_claim: Annotated[
        tuple[_Name, ...], Meta(min_length=1, description="claim that names the person in records of admin actions")
    ] = ("sub",)
    role_claim: Annotated[
        tuple[_Name, ...],
        Meta(
            min_length=1, description="claim with the person's roles, a string or a list; [a, b] is the member b of a"
        ),
    ]
    read: Annotated[tuple[_Name, ...], Meta(description="roles that grant admin:read")] = ()
    write: Annotated[tuple[_Name, ...], Meta(description="roles that grant admin:write")] = ()
    session: Annotated[_Seconds, Meta(description="lifetime of a session; use does not extend it")] = 28_800.0
    timeout: Annotated[_Seconds, Meta(description="timeout for one request to the provider")] = 5.0

    @property
    def secure(self) -> bool:
        """Whether browsers use https."""
        return self.url.startswith("https:")

    @property
    def tokens(self) -> Jwt:
        """How its ID tokens are verified. They do not become users, so there is no tenant."""
        return Jwt(
            issuer=self.issuer,
            audience=self.client_id,
            jwks="",
            ca=self.ca,
            algorithms=self.algorithms,
            timeout=self.timeout,
        )


def oidc_fault(section: Oidc) -> str:
    """Like `jwt_fault`, for this section."""
    if fault := fetch_fault(section.issuer):
        return f"issuer: {fault}"
    if fault := fetch_fault(section.url):
        return f"url: {fault}"
    if not urlsplit(section.url).path.endswith("/admin/") or "?" in section.url:
        return "url: it ends in /admin/"
    if not section.read and not section.write:
        return "read: no role may do anything"
    return ""


def jwt_fault(section: Jwt) -> str:
    """The invalid setting and the reason, as `NAME: REASON`; empty if the section is valid."""
    if not section.written_out and (fault := fetch_fault(section.jwks)):
        return f"jwks: {fault}"
    if bool(section.tenant) == bool(section.tenant_claim):
        return "tenant_claim: name either this or tenant"
    if section.tenants and section.tenant:
        return "tenants: only together with tenant_claim"
    if section.retry > section.refresh:
        return "retry: more than refresh"
    if section.keep < section.refresh + section.timeout:
        return "keep: less than refresh and timeout: the keys would be gone between two fetches"
    return ""
