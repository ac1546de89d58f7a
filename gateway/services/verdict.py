"""What becomes of a credential that is verified: a principal, or why not. Pure facts, shared by keys and tokens.

Not compiled (`hatch_build.py`): there is nothing to run here.
"""

import enum
from typing import Protocol

from gateway.services.principal import Principal


class Refusal(enum.Enum):
    """Why a verification did not give a principal. The holder of the right secret is told the reason, and so is the
    holder of what the issuer signed."""

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
"""Nothing was found out: 503, never 401 (K5)."""

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
"""Not held against the address: tokens of many users come from one chat UI. What the issuer signed, since
one browser left open must not lock the others out; and what a key signed that is not known, since an issuer may sign
with a new one before it is fetched. That is no guess: nothing under an unknown name can be right."""

LAPSED = frozenset({Refusal.EXPIRED, Refusal.REVOKED, Refusal.DISABLED})
"""The secret was that of the key: its holder was let in once, or has it from somebody who was."""

PASSING = DENIALS | NO_GUESSES
"""Not remembered with the credential: what was refused may be good a moment later."""

Verdict = Principal | Refusal


class TokenJudge(Protocol):
    """What verifies tokens that are no keys."""

    async def judge(self, token: bytes) -> Verdict:
        """Whose it is, or why it is refused. Raises nothing a token can cause."""
        ...
