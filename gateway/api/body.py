"""JSON request bodies: the top-level members as raw bytes, checks on them, and edits that splice.

Ensures that every engine reads a body in the same way. Engines differ in letter case, in which of two equal keys wins
and in how they read escapes. So a *guarded* key must be spelled plainly and occur once, or the body is refused. Edits
replace exact spans and keep every other byte. Must not know dialects, engines or transport.
"""

import re
import struct
from collections.abc import Mapping
from typing import Final

import msgspec

from gateway.errors import BadRequest

Members = dict[str, msgspec.Raw]

MODEL_CHARS: Final = 512
"""Maximum length of a model name. Long enough for file paths."""

MEMBERS: Final = 1000
"""Maximum members of an object that is read here: APIs define about fifty, and each costs a microsecond or more."""
REPEATED_BYTES: Final = 64 * 1024
"""Maximum bytes of arrays and objects that belong to repeated keys. Their ends are found bracket by bracket, except for
the last value of each key, which the decoder has returned."""

_BYTE: Final = struct.Struct("B")
_OBJECT: Final = msgspec.json.Decoder(Members)
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_TEXT: Final = msgspec.json.Decoder(str | None)
_FLAG: Final = msgspec.json.Decoder(bool | None)
_NUMBER: Final = msgspec.json.Decoder(int | float | None)

# Possessive repeats: a valid body never needs backtracking, and ten million escapes must not pile up a stack.
_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_KEY: Final = re.compile(rb"[ \t\r\n]*+,?[ \t\r\n]*+(%b)[ \t\r\n]*+:[ \t\r\n]*+" % _STRING, re.DOTALL)
_STRING_VALUE: Final = re.compile(_STRING, re.DOTALL)
_SCALAR: Final = re.compile(rb"[^,}\] \t\r\n]++")
_BRACKET: Final = re.compile(rb"%b|[][{}]" % _STRING, re.DOTALL)
_AFTER_SCALAR: Final = frozenset(b",} \t\r\n")
_PROMPTS: Final = re.compile(rb'\[[ \t\r\n]*+["[{]')
"""An array of prompts. An array that begins with a number is one prompt, given as tokens (llama.cpp: mixed with
texts)."""

_NO_JSON: Final = (
    (b"\x1f\x8b", "is compressed by gzip; send it as it is"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; send it as it is"),
    (b"\xef\xbb\xbf", "begins with a byte order mark, which JSON does not allow; send it without"),
    (b"\xff\xfe", "is UTF-16; JSON is UTF-8"),
)
"""How bodies begin that were meant to be JSON, and what the client is told; a complaint about the first odd byte would
not help."""


Member = tuple[str, bool, int, int]
"""One member of an object: its key, whether the key is written without escapes, start and end of its value."""


def read_object(body: bytes, guarded: frozenset[str], parent: str = "") -> Members:
    """The top-level members of `body`. Raises BadRequest if it is not an object, or if a guarded key is not unique.

    `parent` prefixes the keys named in errors, for objects inside the body.
    """
    try:
        if not body.isascii():
            body.decode()
        members = _OBJECT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise BadRequest(_complaint(body, err, parent), param=parent or None) from None
    if len(members) > MEMBERS:
        raise _too_many(parent)
    names = "\n".join(members)
    if names.casefold() != names:
        _refuse_variants(members, guarded, parent)
    compact = len(names) + _around(members)
    if compact != len(body) and not _is_spaced(body, members, compact):
        _refuse_repeats(body, members, guarded, parent)
    return members


def _around(members: Members) -> int:
    """Length of a compact object without its keys joined by one byte each: values, quotes, colons, commas, braces.

    A body of exactly this length has distinct keys without escapes and no white space, since each of those would make
    it longer.
    """
    size = 3 * len(members) + 2
    for raw in members.values():
        size += len(raw)
    return size


def _is_spaced(body: bytes, members: Members, compact: int) -> bool:
    """Whether the body is exactly what Python's `json.dumps` writes: one space after each colon and comma.

    Such a body also has distinct keys without escapes. Rebuilding it for the comparison copies it once, which takes a
    fraction of the time of a scan.
    """
    if len(body) != compact + 2 * len(members) - 1:
        return False
    parts: list[bytes | msgspec.Raw] = []
    for key, raw in members.items():
        parts += (b', "', key.encode(), b'": ', raw)
    parts[0] = b'{"'
    parts.append(b"}")
    return body == b"".join(parts)


def _complaint(body: bytes, err: Exception, parent: str) -> str:
    what = _subject(parent)
    for opening, fault in _NO_JSON:
        if body.startswith(opening):
            return f"{what} {fault}"
    if isinstance(err, UnicodeDecodeError):
        return f"{what} is not valid UTF-8 (byte {err.start})"
    if isinstance(err, RecursionError):
        return f"{what} is nested too deeply"
    if isinstance(err, msgspec.ValidationError):
        return f"{what} must be a JSON object"
    if not body.strip():
        return f"{what} is empty; a JSON object is expected"
    detail = str(err).removeprefix("JSON is malformed: ")
    if detail == "Input data was truncated":
        detail = "it ends too early, or an escaped surrogate stands alone"
    return f"{what} is not valid JSON: {detail}"


def _subject(parent: str) -> str:
    return f"`{parent}`" if parent else "The body"


def _too_many(parent: str) -> BadRequest:
    return BadRequest(f"{_subject(parent)} has more than {MEMBERS} members", param=parent or None)


def _refuse_variants(members: Members, guarded: frozenset[str], parent: str) -> None:
    """Refuse keys that an engine with case-insensitive matching would take for a guarded one."""
    for key in members:
        plain = key.casefold()
        if plain != key and plain in guarded:
            name = _named(plain, parent)
            raise BadRequest(f"`{name}` must be spelled in lower case", param=name)


def _refuse_repeats(body: bytes, members: Members, guarded: frozenset[str], parent: str) -> None:
    """Refuse a guarded key that occurs twice or is written with escapes."""
    seen: set[str] = set()
    for key, plain, _, _ in scan(body, members, parent):
        if key not in guarded:
            continue
        if not plain:
            name = _named(key, parent)
            raise BadRequest(f"`{name}` must be written without escapes", param=name)
        if key in seen:
            name = _named(key, parent)
            raise BadRequest(f"`{name}` appears more than once", param=name)
        seen.add(key)


def _named(key: str, parent: str) -> str:
    return f"{parent}.{key}" if parent else key


def scan(body: bytes, members: Members, parent: str = "") -> list[Member]:
    """Every member of the valid JSON object `body` in order, including repeated ones.

    `members` are its decoded members: a value equal to the decoded one is skipped without parsing it. Raises BadRequest
    for more than MEMBERS members, or more than REPEATED_BYTES of repeated values.
    """
    found: list[Member] = []
    texts = {key: bytes(raw) for key, raw in members.items()}  # converted once: a key may be repeated many times
    room = REPEATED_BYTES
    at = body.index(b"{") + 1
    while match := _KEY.match(body, at):
        if len(found) == MEMBERS:
            raise _too_many(parent)
        raw = match[1]
        plain = b"\\" not in raw
        key = raw[1:-1].decode() if plain else _TEXT.decode(raw) or ""
        start = match.end()
        at = _known_end(body, start, texts.get(key))
        if at < 0:
            at = _value_end(body, start, start + room)
            room -= at - start if body[start] in b"[{" else 0
        found.append((key, plain, start, at))
    return found


def _known_end(body: bytes, start: int, known: bytes | None) -> int:
    """The end of the value at `start` if it equals `known`, else -1."""
    if known is None or not body.startswith(known, start):
        return -1
    at = start + len(known)
    # Strings, arrays and objects mark their own end; a number could continue after the known digits.
    return at if body[start] in b'"[{' or body[at] in _AFTER_SCALAR else -1


def _value_end(body: bytes, start: int, most: int) -> int:
    """The end of the value at `start`; an array or object must end before `most`."""
    first = body[start]
    if first == 0x22:
        string = _STRING_VALUE.match(body, start)
        return string.end() if string else len(body)
    if first in b"[{":
        return _brackets_end(body, start, most)
    scalar = _SCALAR.match(body, start)
    return scalar.end() if scalar else start


def _brackets_end(body: bytes, start: int, most: int) -> int:
    end = brackets_end(body, start, most)
    if end < 0:
        raise BadRequest(f"Repeated keys hold more than {REPEATED_BYTES} bytes")
    return end


def brackets_end(body: bytes, start: int, most: int) -> int:
    """The end of the array or object at `start` of valid JSON, or -1 if it does not end before `most`."""
    depth = 0
    for token in _BRACKET.finditer(body, start):
        if token.end() > most:
            break
        mark = body[token.start()]
        if mark in b"[{":
            depth += 1
        elif mark in b"]}":
            depth -= 1
            if not depth:
                return token.end()
    return -1


def _spans(body: bytes, members: Members, values: Mapping[str, bytes]) -> list[tuple[int, int, bytes]]:
    """The spans of the values that have a new text in `values`, with that text."""
    if len("\n".join(members)) + _around(members) != len(body):
        return [(start, end, values[key]) for key, _, start, end in scan(body, members) if key in values]
    spans = []
    at = 1
    for key, raw in members.items():
        start = at + len(key) + 3
        at = start + len(raw) + 1
        if key in values:
            spans.append((start, at - 1, values[key]))
    return spans


def with_members(body: bytes, values: Mapping[str, bytes]) -> bytes:
    """`body`, a valid JSON object, with each key of `values` set to that JSON text; all other bytes stay unchanged.

    The value of a present key is replaced; an absent key is inserted directly after the opening brace. Keys are plain
    ASCII names that occur at most once (`read_object` has refused others).
    """
    members = _OBJECT.decode(body)
    head = b",".join(b'"%b":%b' % (key.encode(), text) for key, text in values.items() if key not in members)
    at = body.index(b"{") + 1
    parts = [body[:at], head + b"," if head and members else head]
    if not members.keys().isdisjoint(values):
        for start, end, text in _spans(body, members, values):
            parts += (body[at:start], text)
            at = end
    parts.append(body[at:])
    return b"".join(parts)


def insert_members(body: bytes, values: Mapping[str, bytes]) -> bytes:
    """`with_members` for keys known to be absent from a body known not to be empty; nothing is decoded."""
    fresh = [b'"%b":%b' % (key.encode(), text) for key, text in values.items()]
    at = body.index(b"{") + 1
    return b"".join((body[:at], b",".join(fresh), b",", body[at:]))


def edited(body: bytes, keys: frozenset[str], values: Mapping[str, bytes]) -> bytes:
    """`body` with `values` set, in the cheapest way. `keys` are the guarded keys present in the body; the keys of
    `values` are guarded ones."""
    if not values:
        return body
    return insert_members(body, values) if keys.isdisjoint(values) else with_members(body, values)


def read_model(members: Members, key: str = "model") -> str:
    """The requested model. Raises BadRequest if it is missing, not a string, empty or longer than MODEL_CHARS."""
    model = read_text(members, key)
    if not model:
        raise BadRequest("`model` is required: the name of the model to use", param="model")
    if len(model) > MODEL_CHARS:
        raise BadRequest(f"`model` is longer than {MODEL_CHARS} characters", param="model")
    return model


def read_text(members: Members, key: str) -> str:
    """A string member; absent and null give an empty string."""
    raw = members.get(key)
    if raw is None:
        return ""
    try:
        return _TEXT.decode(raw) or ""
    except msgspec.DecodeError:
        raise BadRequest(f"`{key}` must be a string", param=key) from None


def read_flag(members: Members, key: str, *, absent: bool, parent: str = "") -> bool:
    """A boolean member; absent and null give `absent`."""
    raw = members.get(key)
    if raw is None:
        return absent
    try:
        flag = _FLAG.decode(raw)
    except msgspec.DecodeError:
        name = _named(key, parent)
        raise BadRequest(f"`{name}` must be true or false", param=name) from None
    return absent if flag is None else flag


def read_count(members: Members, key: str, parent: str = "") -> int | None:
    """An integer member of any sign; absent and null give None. A float without a fraction is accepted, as by
    engines."""
    raw = members.get(key)
    if raw is None:
        return None
    try:
        number = _NUMBER.decode(raw)
    except msgspec.DecodeError:
        number = 0.5
    if number is None or isinstance(number, int):
        return number
    if not number.is_integer():
        name = _named(key, parent)
        raise BadRequest(f"`{name}` must be a whole number", param=name)
    return int(number)


def read_nested(members: Members, key: str, guarded: frozenset[str]) -> Members:
    """The members of an object member; absent and null give an empty mapping."""
    raw = members.get(key)
    text = b"null" if raw is None else bytes(raw)
    return {} if text == b"null" else read_object(text, guarded, key)


def _first(raw: msgspec.Raw) -> int:
    """The first byte of a value. Nothing is copied: a value may be megabytes long."""
    return int(_BYTE.unpack_from(raw)[0])


def require(members: Members, key: str, opening: bytes, what: str, *, needed: bool = True) -> None:
    """Refuse a body whose `key` is missing (if needed) or whose value does not start with a byte of `opening`."""
    raw = members.get(key)
    if raw is not None and _first(raw) in opening:
        return
    if raw is not None and bytes(raw) != b"null":
        raise BadRequest(f"`{key}` must be {what}", param=key)
    if needed:
        raise BadRequest(f"`{key}` is required: {what}", param=key)


def require_messages(members: Members) -> None:
    """Refuse a body without at least one message."""
    require(members, "messages", b"[", "an array of messages")
    messages = members["messages"]
    if len(messages) < len(b"[{}]") and not bytes(messages)[1:-1].strip():
        raise BadRequest("`messages` must not be empty", param="messages")


def prompts_in(members: Members, key: str) -> int:
    """The number of prompts in the member: the items of an array of texts, token lists or objects, else one."""
    raw = members.get(key)
    if raw is None or _first(raw) != 0x5B:
        return 1
    text = bytes(raw)
    return len(_LIST.decode(text)) if _PROMPTS.match(text) else 1
