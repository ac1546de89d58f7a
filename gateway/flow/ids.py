"""Request ids: the one shared by client, log and record, and the one that an engine gets."""

import itertools
import os
from typing import Final

from gateway.flow.exchange import Exchange
from gateway.http1.connection import Connection
from gateway.services.keyfmt import PREFIX as KEY_PREFIX

_HARMLESS: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_PREFIX: Final = os.urandom(6).hex() + "-"
_COUNT: Final = itertools.count(1)


def request_id(connection: Connection) -> str:
    """The client's own id if it is harmless (H7), for example if it contains no key; else a new one."""
    head = connection.head
    given = head.headers.get(b"x-request-id") if head is not None else None
    if given and len(given) <= 64 and _HARMLESS.issuperset(given) and not given.startswith(KEY_PREFIX):
        return given.decode()
    return _PREFIX + str(next(_COUNT))


def engine_id(x: Exchange) -> str:
    """The id that the engine gets. It is always unique, while clients choose theirs and can guess those of others: vLLM
    refuses a request whose id is in use, and older versions mix the two requests up."""
    return f"{x.id}.{_PREFIX}{next(_COUNT)}" if b"x-request-id" in x.head.headers else x.id
