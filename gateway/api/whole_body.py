"""Request bodies that must be translated as a whole: decoded within bounds, with the types that a translation relies
on.

Owns the complaints about wrong types. Must not know any API.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from gateway.errors import BadRequest

MOST: Final = 100_000
"""Maximum arrays and objects in a body, and maximum items of an array: each costs the loop a microsecond or more.
Brackets in texts count too; a prompt of a million tokens of code has a tenth as many."""

Object = Mapping[str, Any]


def decoded(body: bytes) -> Object:
    """The decoded body; it was parsed before, so it is valid JSON. Raises BadRequest if it has too many parts."""
    if body.count(b"{") + body.count(b"[") > MOST:
        raise BadRequest(
            f"This request is translated for the model's engine, which is possible for at most {MOST} parts of a body"
        )
    try:
        return an_object(msgspec.json.decode(body), "body")
    except RecursionError:
        raise BadRequest("The body is nested too deeply") from None
    except msgspec.DecodeError as err:  # parsed as raw text before: a number that no float can hold
        raise BadRequest(f"The body cannot be translated: {err}") from None


def encoded(made: Any) -> bytes:
    """The JSON of a translated body. Raises BadRequest if it is nested too deeply to be written."""
    try:
        return msgspec.json.encode(made)
    except RecursionError:
        raise BadRequest("The body is nested too deeply") from None


def an_object(value: Any, name: str) -> Object:
    """`value` if it is an object. Raises BadRequest otherwise."""
    if not isinstance(value, dict):
        raise BadRequest(f"`{name}` must be an object", param=name)
    return value


def an_array(value: Any, name: str) -> Sequence[Any]:
    """`value` if it is an array of at most MOST items. Raises BadRequest otherwise."""
    if not isinstance(value, list):
        raise BadRequest(f"`{name}` must be an array", param=name)
    if len(value) > MOST:
        raise BadRequest(f"`{name}` has more than {MOST} items", param=name)
    return value


def a_string(value: Any, name: str) -> str:
    """`value` if it is a string. Raises BadRequest otherwise."""
    if not isinstance(value, str):
        raise BadRequest(f"`{name}` must be a string", param=name)
    return value
