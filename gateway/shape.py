"""Checks plain data against types: unknown keys, and error messages that a person can act on.

Must not know any setting. No message contains a value: it may be a secret.
"""

import difflib
import re
from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from gateway.source import ConfigError


def fitting(raw: object, kind: Any, path: str = "") -> Any:
    """`raw` converted to `kind`. Raises ConfigError that begins with the path; msgspec's own message is `Expected ... -
    at `$.a.b``."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as err:
        found = re.search(r"^(.*) - at `\$(.*)`$", str(err), re.DOTALL)
        says, at = (found[1], found[2]) if found else (str(err), "")
        raise ConfigError(f"{path}{at}: {says}".lstrip(".: ")) from err


def refuse_unknown(raw: object, kind: Any, path: str) -> None:
    """Walk the data along its types; an unknown key or word is an error with its path and the nearest known one."""
    kind = bare(kind)
    if isinstance(raw, list) and get_origin(kind) in (list, tuple):
        for index, item in enumerate(raw):
            refuse_unknown(item, get_args(kind)[0], f"{path}[{index}]")
    elif isinstance(raw, dict) and get_origin(kind) is dict:
        member = get_args(kind)[1]
        for key, item in raw.items():
            if not isinstance(key, str):
                raise ConfigError(f"{path}: {key!r} is not text; put it in quotes")
            refuse_unknown(item, member, f"{path}.{key}")
            # `NAME:TEXT` without a blank is a key without a value; TEXT may be a secret, so no path may contain it.
            if bare(member) is not str:
                fitting(item, member, f"{path}.{key}")  # converted one by one: msgspec would report the path as `[...]`
    elif isinstance(raw, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind, include_extras=True)
        for key, item in raw.items():
            at = f"{path}.{key}" if path else str(key)
            if key not in hints:
                raise ConfigError(_unknown(str(key), path, hints))
            refuse_unknown(item, hints[key], at)
    elif isinstance(raw, str) and get_origin(kind) is Literal and raw not in get_args(kind):
        known = [str(word) for word in get_args(kind)]
        raise ConfigError(f"{path}: none of {', '.join(known)}{nearest(raw, known)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: what was probably meant, or nothing."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _unknown(key: str, path: str, known: Collection[str]) -> str:
    """The message for an unknown key. If it cannot be a name, it is a name and a value without a blank between
    (`key:sk-...`), and only the name is shown."""
    if not re.fullmatch(r"\w{1,40}", key) and key.replace("-", "_") not in known:
        name = key.partition(":")[0]
        at = f"{path}.{name}".lstrip(".") if name in known else path
        return f"{at or 'the file'}: a setting is NAME, a colon, a space and its value"
    at = f"{path}.{key}" if path else key
    return f"{at}: unknown setting{nearest(key, known)}"


def bare(kind: Any) -> Any:
    """Strip Annotated and `| None` from a type."""
    if get_origin(kind) is Annotated:
        return bare(get_args(kind)[0])
    options = [arg for arg in get_args(kind) if arg is not type(None)]
    if type(None) in get_args(kind) and len(options) == 1:
        return bare(options[0])
    return kind
