"""An issuer of tokens for tests: its keys, its JWKS on a real server, and tokens of every kind it would never sign."""

import base64
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gateway.issuer import Jwt
from tests.services.engines import Engine

NAME = "https://login.example"
AUDIENCE = "fairgate"
PATH = "/keys"


def part(value: Any) -> str:
    """As a part of a token: base64url without padding."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Signer:
    """One key of an issuer."""

    def __init__(self, kid: str, algorithm: str = "RS256", bits: int = 2048) -> None:
        self.kid = kid
        self.algorithm = algorithm
        self.private: Any = (
            rsa.generate_private_key(public_exponent=65537, key_size=bits)
            if algorithm == "RS256"
            else ec.generate_private_key(ec.SECP256R1())
        )

    def public(self, **more: Any) -> dict[str, Any]:
        """As a JWKS shows it."""
        kind: Any = jwt.algorithms.RSAAlgorithm if self.algorithm == "RS256" else jwt.algorithms.ECAlgorithm
        shown: dict[str, Any] = kind.to_jwk(self.private.public_key(), as_dict=True)
        return {**shown, "kid": self.kid, "alg": self.algorithm, "use": "sig", **more}

    def sign(self, claims: Any, **head: Any) -> bytes:
        """A token; `claims` may be bytes that are no JSON."""
        body = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
        return jwt.PyJWS().encode(body, self.private, self.algorithm, {"kid": self.kid, **head}).encode()

    def sign_raw(self, head: bytes, claims: bytes) -> bytes:
        """A token whose head no library would write."""
        said = f"{part(head)}.{part(claims)}".encode()
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        return said + b"." + part(algorithm.sign(said, self.private)).encode()


RSA = Signer("rsa-1")
EC = Signer("ec-1", "ES256")


def claims(now: float | None = None, **more: Any) -> dict[str, Any]:
    """What a good token says; a claim that is None is left out."""
    at = int(time.time() if now is None else now)
    said = {"iss": NAME, "aud": AUDIENCE, "iat": at, "exp": at + 300, "sub": "ann", "org": "acme", **more}
    return {name: value for name, value in said.items() if value is not None}


def jwks(*signers: Signer) -> dict[str, Any]:
    return {"keys": [signer.public() for signer in signers]}


def shown_at(url: str, **more: Any) -> Jwt:
    """A section for an issuer whose keys are there: an address, or the JWKS itself."""
    settings: dict[str, Any] = {"issuer": NAME, "audience": AUDIENCE, "jwks": url, "tenant_claim": ("org",), **more}
    if "tenant" in more:
        del settings["tenant_claim"]
    return Jwt(**settings)


WRITTEN = json.dumps(jwks(RSA, EC))


class Issuer(Engine):
    """Its JWKS on loopback."""

    def __init__(self, *signers: Signer) -> None:
        super().__init__()
        self.shows(*signers)

    def shows(self, *signers: Signer) -> None:
        self.says(PATH, jwks(*signers))

    @property
    def address(self) -> str:
        return self.url + PATH

    def section(self, **more: Any) -> Jwt:
        return shown_at(self.address, **more)

    @property
    def fetches(self) -> int:
        return self.asked[PATH]
