"""A body that must be translated as a whole: decoded, within bounds, and of the types that a translation goes by.

Owns the complaints about what is none. Must not know any API.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from gateway.errors import BadRequest

MOST: Final = 100_000
"""Most arrays and objects of a body, and most items of an array: each costs the loop a microsecond or more. Brackets in
texts count too; a prompt of a million tokens of code has a tenth as many."""

Object = Mapping[str, Any]


def decoded(body: bytes) -> Object:
    """The body, which was read before: it is valid JSON. Raises BadRequest for too much of it."""
    if body.count(b"{") + body.count(b"[") > MOST:
        raise BadRequest(
            f"This request is translated for the model's engine, which is possible for at most {MOST} parts of a body"
        )
    try:
        return an_object(msgspec.json.decode(body), "body")
    except RecursionError:
        raise BadRequest("The body is nested too deeply") from None
    except msgspec.DecodeError as err:  # what was read before as raw text: a number that no float can hold
        raise BadRequest(f"The body cannot be translated: {err}") from None


def encoded(made: Any) -> bytes:
    """JSON of what was made of a body. Raises BadRequest for what is deeper than can be written."""
    try:
        return msgspec.json.encode(made)
    except RecursionError:
        raise BadRequest("The body is nested too deeply") from None


def an_object(value: Any, name: str) -> Object:
    """Raises BadRequest unless it is one."""
    if not isinstance(value, dict):
        raise BadRequest(f"`{name}` must be an object", param=name)
    return value


def an_array(value: Any, name: str) -> Sequence[Any]:
    """Raises BadRequest unless it is one of at most MOST items."""
    if not isinstance(value, list):
        raise BadRequest(f"`{name}` must be an array", param=name)
    if len(value) > MOST:
        raise BadRequest(f"`{name}` has more than {MOST} items", param=name)
    return value
