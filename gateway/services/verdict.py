"""The result of verifying a credential: a principal, or why not. Plain data, shared by keys and tokens.

Not compiled (`hatch_build.py`): there is nothing to run here.
"""

import enum
from typing import Protocol

from gateway.services.principal import Principal


class Refusal(enum.Enum):
    """Why a verification did not give a principal. Only holders of the right secret, or of a token the issuer signed,
    are told the reason."""

    INVALID = "Incorrect API key provided."
    EXPIRED = "This API key has expired."
    REVOKED = "This API key has been revoked."
    DISABLED = "This API key or its owner is disabled."
    UNAVAILABLE = "Keys cannot be verified at the moment."
    BUSY = "Too many keys are being verified at the moment."
    FORGED = "This token was not issued by this gateway's identity provider."
    FOREIGN = "This token is not meant for this gateway."
    UNKNOWN_SIGNER = "This token is signed with a key that its issuer does not publish."
    ENDED = "This token has expired."
    TOO_EARLY = "This token is not valid yet."
    TOO_LONG = "This token is valid for longer than this gateway accepts."
    STRANGER = "This token names no tenant and user of this gateway."
    OWNER_DISABLED = "The tenant or user of this token is disabled."
    NO_SIGNERS = "The keys of the token's issuer cannot be fetched at the moment."


DENIALS = frozenset({Refusal.UNAVAILABLE, Refusal.BUSY, Refusal.NO_SIGNERS})
"""The verification could not be made: 503, never 401 (K5)."""

NO_GUESSES = frozenset(
    {
        Refusal.FOREIGN,
        Refusal.ENDED,
        Refusal.TOO_EARLY,
        Refusal.TOO_LONG,
        Refusal.STRANGER,
        Refusal.OWNER_DISABLED,
        Refusal.UNKNOWN_SIGNER,
    }
)
"""Failures that are not held against the address, because a chat UI sends the tokens of many users. A token signed by
the issuer but refused: one browser left open must not lock the others out. A token with an unknown key: the issuer may
use a new key before it is fetched. This is no guess, because nothing under an unknown name can be right."""

LAPSED = frozenset({Refusal.EXPIRED, Refusal.REVOKED, Refusal.DISABLED})
"""The secret was right: its holder once had access, or got the secret from somebody who had."""

PASSING = DENIALS | NO_GUESSES
"""Verdicts that are not cached, since they may change at any moment."""

Verdict = Principal | Refusal


class TokenJudge(Protocol):
    """Verifies credentials that are not keys."""

    async def judge(self, token: bytes) -> Verdict:
        """The token's user, or why the token is refused. No token can make it raise."""
        ...
