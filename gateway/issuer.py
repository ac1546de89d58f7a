"""The sections about identity providers: `jwt`, whose tokens are taken and what they become (K9), and `admin.oidc`, who
may log in to the console (O8). Pure. Must not know how tokens are verified or keys fetched.
"""

from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from gateway.urls import fetch_fault

_Seconds = Annotated[float, Meta(gt=0, le=86_400)]
_Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Jwt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Signed tokens of an identity provider as another credential (K9). Needs `pip install 'fairgate[jwt]'`."""

    issuer: Annotated[_Name, Meta(description="`iss` of every token, to the letter")]
    audience: Annotated[
        _Name, Meta(description="what `aud` of every token names: this gateway, as the issuer calls it")
    ]
    jwks: Annotated[
        str, Meta(description="the issuer's keys: an https address (http on loopback only), or `file:` of a JWKS")
    ]
    ca: Annotated[str, Meta(description="PEM file to verify the issuer's https; empty: the system's")] = ""
    algorithms: Annotated[
        tuple[Literal["RS256", "ES256"], ...], Meta(min_length=1, description="signatures that are taken: RS256, ES256")
    ] = ("RS256", "ES256")
    tenant: Annotated[str, Meta(description="tenant of every token, by name; instead of tenant_claim")] = ""
    tenant_claim: Annotated[
        tuple[_Name, ...], Meta(description="claim that names the tenant; [a, b] is the member b of the claim a")
    ] = ()
    tenants: Annotated[tuple[_Name, ...], Meta(description="tenants that a token may name; empty: every one")] = ()
    user_claim: Annotated[
        tuple[_Name, ...],
        Meta(min_length=1, description="claim that names the user within the tenant, as tenant_claim"),
    ] = ("sub",)
    create_users: Annotated[
        bool, Meta(description="make a user when its first token comes; a tenant is never made")
    ] = False
    scopes: Annotated[
        tuple[Literal["chat", "completions", "embeddings", "responses", "rerank", "messages", "ollama"], ...],
        Meta(min_length=1, description="what tokens open, as the scopes of a key"),
    ] = ("chat", "completions", "embeddings", "responses", "rerank", "messages", "ollama")
    clock_skew: Annotated[float, Meta(ge=0, le=60, description="how far the issuer's clock may be off, in seconds")] = (
        30.0
    )
    longest: Annotated[
        float, Meta(gt=0, le=31_536_000, description="a token that is good for longer than this is refused, in seconds")
    ] = 86_400.0
    refresh: Annotated[_Seconds, Meta(description="between two fetches of the keys")] = 300.0
    retry: Annotated[
        _Seconds, Meta(description="least time between two fetches, whatever keys tokens name; at most refresh")
    ] = 10.0
    keep: Annotated[
        _Seconds,
        Meta(description="life of the keys after the last good fetch, then 503; refresh + timeout or more"),
    ] = 3600.0
    timeout: Annotated[_Seconds, Meta(description="one fetch of the keys")] = 5.0

    @property
    def written_out(self) -> bool:
        """Whether `jwks` is the keys themselves: what `file:` led to."""
        return self.jwks.lstrip().startswith("{")


class Oidc(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Sessions of the console for people whom an OpenID provider knows (O8). Needs `pip install 'fairgate[jwt]'`."""

    issuer: Annotated[
        _Name, Meta(description="the provider, to the letter; asked for ISSUER/.well-known/openid-configuration")
    ]
    client_id: Annotated[_Name, Meta(description="what the provider calls this console")]
    client_secret: Annotated[str, Meta(description="use env: or file:; empty: a public client")] = ""
    url: Annotated[
        str,
        Meta(description="the console as browsers call it, to its last slash; the provider must allow URL/callback"),
    ]
    ca: Annotated[str, Meta(description="PEM file to verify the provider's https; empty: the system's")] = ""
    algorithms: Annotated[
        tuple[Literal["RS256", "ES256"], ...], Meta(min_length=1, description="signatures that are taken: RS256, ES256")
    ] = ("RS256", "ES256")
    scope: Annotated[str, Meta(pattern="^openid( [!#-[\\]-~]+)*$", description="what the provider is asked for")] = (
        "openid"
    )
    name_claim: Annotated[
        tuple[_Name, ...], Meta(min_length=1, description="claim that names the person in records of what admins did")
    ] = ("sub",)
    role_claim: Annotated[
        tuple[_Name, ...],
        Meta(min_length=1, description="claim with the person's roles, a text or a list; [a, b] is the member b of a"),
    ]
    read: Annotated[tuple[_Name, ...], Meta(description="roles that have admin:read")] = ()
    write: Annotated[tuple[_Name, ...], Meta(description="roles that have admin:write")] = ()
    session: Annotated[_Seconds, Meta(description="life of a session; it is not prolonged")] = 28_800.0
    timeout: Annotated[_Seconds, Meta(description="one question to the provider")] = 5.0

    @property
    def secure(self) -> bool:
        """Whether browsers come by https."""
        return self.url.startswith("https:")

    @property
    def tokens(self) -> Jwt:
        """How its ID tokens are checked. They become no users, so there is no tenant."""
        return Jwt(
            issuer=self.issuer,
            audience=self.client_id,
            jwks="",
            ca=self.ca,
            algorithms=self.algorithms,
            timeout=self.timeout,
        )


def oidc_fault(section: Oidc) -> str:
    """As `jwt_fault`."""
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
    """The setting that cannot be meant and why, as `NAME: REASON`; or nothing."""
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
