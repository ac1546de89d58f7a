"""Which conversation a request belongs to, so that its next turn can meet the same engine, which has its beginning in
the cache (R3). Only looked at where the setting `affinity` is on and several backends have the model.

Owns what of a request stays the same from turn to turn. Must not know backends or slots.
"""

import re
from hashlib import blake2b
from typing import Final

import msgspec

from gateway.api.body import brackets_end
from gateway.http1.message import RequestHead
from gateway.services.principal import Principal

PART: Final = 4096  # bytes of each part that count: conversations that differ only behind them are taken for one
TEXT: Final = 256  # bytes of a prompt without turns: it grows at its end
TURNS: Final = 16  # the user's first one is among these, or never comes
LONGEST: Final = 256 * 1024  # bytes of a turn whose end is looked for

_NEXT: Final = re.compile(rb"[\[,][ \t\r\n]*+(?=\{)")

_NOTHING: Final = msgspec.Raw()


class _Opening(msgspec.Struct):
    """Where the APIs put what comes first."""

    system: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING


class _Turn(msgspec.Struct):
    role: msgspec.Raw = _NOTHING


_opening = msgspec.json.Decoder(_Opening).decode
_turn = msgspec.json.Decoder(_Turn).decode


def conversation(principal: Principal, head: RequestHead, body: bytes) -> int:
    """A number for the conversation, the same in every process; 0 where nothing tells. The client's own
    `x-session-id`, else how it begins; never the same for two keys or users. `body` was read before: it is JSON."""
    told = head.headers.get(b"x-session-id") or b"\0".join(_told_by(body))
    if not told:
        return 0
    name = b"%b\0%b\0%b" % (principal.key.encode(), principal.user.encode(), told)
    return int.from_bytes(blake2b(name, digest_size=8).digest()) >> 1


def _told_by(body: bytes) -> list[bytes]:
    """How it begins. Nothing where it could only just be read: here the stack is deeper."""
    try:
        return _beginning(body)
    except RecursionError:
        return []


def _beginning(body: bytes) -> list[bytes]:
    """What stands before the first answer: instructions, and turns up to the first one of the user."""
    opening = _opening(body)
    parts = [bytes(text)[:PART] for text in (opening.system, opening.instructions) if len(text)]
    for text in (bytes(each) for each in (opening.messages, opening.input, opening.prompt) if len(each)):
        parts += _first_turns(text) or [text[:TEXT]]
    return parts


def _first_turns(text: bytes) -> list[bytes]:
    """The turns of an array up to the user's first; none where it holds something else."""
    parts: list[bytes] = []
    end = 0
    while len(parts) < TURNS and (begin := _NEXT.match(text, end)) is not None:
        start = begin.end()
        end = brackets_end(text, start, start + LONGEST)
        parts.append(text[start:end][:PART] if end > 0 else text[start : start + PART])
        if end < 0 or bytes(_turn(text[start:end]).role) == b'"user"':
            break
    return parts
