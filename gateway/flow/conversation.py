"""Which conversation a request belongs to, so that its next turn can go to the engine that has the beginning in its
cache (R3). Used only if the setting `affinity` is on and several backends serve the model.

Owns what identifies a conversation from turn to turn. Must not know backends or slots.
"""

import re
from hashlib import blake2b
from itertools import islice
from typing import Final

import msgspec

from gateway.http1.message import RequestHead
from gateway.services.principal import Principal

PART: Final = 4096  # bytes of each part that count; conversations that differ only after them share a number
TEXT: Final = 256  # bytes of a prompt without turns that count: such a prompt grows at its end
TURNS: Final = 16  # turns to look at for the first one of the user
LONGEST: Final = 256 * 1024  # bytes of all turns to look at
TOKENS: Final = 4096  # brackets and strings to look at in them: a body may hold millions

# A lone quote matches where the string was cut off
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[][{}"]', re.DOTALL)

_NOTHING: Final = msgspec.Raw()


class _Opening(msgspec.Struct):
    """The members in which the APIs put the beginning of a conversation."""

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
    """A number for the conversation, the same in every process; 0 if it cannot be told. Derived from the client's own
    `x-session-id` if sent, else from how the conversation begins, and never the same for two keys or users. `body` has
    been parsed before, so it is JSON."""
    told = head.headers.get(b"x-session-id") or b"\0".join(_beginning_or_nothing(body))
    if not told:
        return 0
    name = b"%b\0%b\0%b" % (principal.key.encode(), principal.user.encode(), told)
    return int.from_bytes(blake2b(name, digest_size=8).digest()) >> 1


def _beginning_or_nothing(body: bytes) -> list[bytes]:
    """The beginning of the conversation. Empty if the body is nested too deeply: it could be parsed before, but the
    stack is deeper here."""
    try:
        return _beginning(body)
    except RecursionError:
        return []


def _beginning(body: bytes) -> list[bytes]:
    """What precedes the first answer: instructions, and the turns up to the user's first one."""
    opening = _opening(body)
    parts = [bytes(memoryview(text)[:PART]) for text in (opening.system, opening.instructions) if len(text)]
    for text in (_front(each) for each in (opening.messages, opening.input, opening.prompt) if len(each)):
        parts += _first_turns(text) or [text[:TEXT]]
    return parts


def _front(raw: msgspec.Raw) -> bytes:
    return bytes(memoryview(raw)[:LONGEST])


def _first_turns(text: bytes) -> list[bytes]:
    """The turns of an array up to the user's first one; none if the array holds something else than turns."""
    parts: list[bytes] = []
    depth = start = 0
    for token in islice(_TOKEN.finditer(text), TOKENS):
        at = token.start()
        mark = text[at : at + 1]
        if mark in b"]}":
            depth -= 1
            if depth == 1:
                turn = text[start : at + 1]
                parts.append(turn[:PART])
                if len(parts) == TURNS or bytes(_turn(turn).role) == b'"user"':
                    return parts
        elif depth < 2 and mark != b"[{"[depth : depth + 1]:
            return parts
        elif mark in b"[{":
            depth += 1
            start = at if depth == 2 else start
        elif token.end() - at == 1:
            break
    return [*parts, text[start : start + PART]] if depth > 1 else parts
