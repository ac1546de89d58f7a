"""The format of a key, the shape of a token, and where a request carries it (K2). Pure: no store, no hashing of
secrets.

    fg_ + public id (12) + _ + secret (28) + checksum (6), all base62

The secret has 28 * log2(62) = 166 random bits. The checksum (CRC-32 of everything before it) is no protection: it
allows refusing a typing error or a scanner's guess without asking the store.
"""

import re
import secrets
import zlib
from collections.abc import Mapping

import msgspec

from gateway.errors import Unauthenticated

PREFIX = b"fg_"
ID_LENGTH = 12
SECRET_LENGTH = 28
CHECK_LENGTH = 6
LENGTH = len(PREFIX) + ID_LENGTH + 1 + SECRET_LENGTH + CHECK_LENGTH

_ALPHABET = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


MAX_TOKEN = 8 * 1024
_TOKEN = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_TOKEN_IN_TEXT = re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?")
_KEY = re.compile(r"fg_([0-9A-Za-z]{12})_[0-9A-Za-z]{8,}")


def without_keys(text: str) -> str:
    """`text` with keys reduced to their public id, and without tokens. Clients put credentials in the wrong places
    too."""
    return _TOKEN_IN_TEXT.sub("eyJ[redacted]", _KEY.sub(r"fg_\1_[redacted]", text))


def shaped(token: bytes) -> bool:
    """Whether it looks like a signed token (JWS compact serialization, RFC 7515 section 7.1) of acceptable length."""
    return len(token) <= MAX_TOKEN and _TOKEN.fullmatch(token) is not None


class Minted(msgspec.Struct, frozen=True):
    """A new key. `token` is shown once; only the hash of `secret` is stored. The repr hides both."""

    id: str
    secret: bytes
    token: str

    def __repr__(self) -> str:
        return f"Minted(id={self.id!r})"


def random_text(length: int) -> str:
    """Base62 text from the system's randomness."""
    return "".join(chr(secrets.choice(_ALPHABET)) for _ in range(length))


def checksum(text: bytes) -> bytes:
    """CRC-32 as six base62 digits, most significant first."""
    rest = zlib.crc32(text)
    digits = bytearray()
    for _ in range(CHECK_LENGTH):
        rest, digit = divmod(rest, 62)
        digits.append(_ALPHABET[digit])
    return bytes(reversed(digits))


def mint() -> Minted:
    """A fresh key."""
    public, secret = random_text(ID_LENGTH), random_text(SECRET_LENGTH).encode()
    body = PREFIX + public.encode() + b"_" + secret
    return Minted(public, secret, (body + checksum(body)).decode())


def parse(token: bytes) -> tuple[str, bytes] | None:
    """(public id, secret) of a well-formed key, else None."""
    if len(token) != LENGTH or not token.startswith(PREFIX) or token[len(PREFIX) + ID_LENGTH] != ord("_"):
        return None
    public = token[len(PREFIX) : len(PREFIX) + ID_LENGTH]
    secret = token[len(PREFIX) + ID_LENGTH + 1 : -CHECK_LENGTH]
    if not (public + secret).isalnum() or checksum(token[:-CHECK_LENGTH]) != token[-CHECK_LENGTH:]:
        return None
    return public.decode(), secret


def credential(headers: Mapping[bytes, bytes]) -> bytes:
    """The credential of a request (field names in lower case): `Authorization: Bearer` (RFC 6750 section 2.1; the
    scheme in any case) or `x-api-key`. Raises Unauthenticated with a sentence that says what is missing."""
    field = headers.get(b"authorization")
    other = headers.get(b"x-api-key")
    if field is None:
        if not other:
            raise Unauthenticated("Missing API key. Send it as 'Authorization: Bearer fg_...' or 'x-api-key: fg_...'.")
        return other.strip()
    token = field[7:].strip()
    if field[:7].lower() != b"bearer " or not token:
        raise Unauthenticated("The Authorization header must be 'Bearer' followed by an API key.")
    if other is not None and other.strip() != token:
        raise Unauthenticated("Authorization and x-api-key carry different API keys. Send one.")
    return token
