"""Ids of requests: the one that client, log and record share, and the one that an engine is told."""

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
    """The client's own id if it is harmless (H7: no key, for one), else a new one."""
    head = connection.head
    given = head.headers.get(b"x-request-id") if head is not None else None
    if given and len(given) <= 64 and _HARMLESS.issuperset(given) and not given.startswith(KEY_PREFIX):
        return given.decode()
    return _PREFIX + str(next(_COUNT))


def engine_id(x: Exchange) -> str:
    """The request's id as its engine is told: nobody else's ever, while clients choose theirs and can guess others'.
    vLLM refuses a request whose id runs already, older ones mix the two up."""
    return f"{x.id}.{_PREFIX}{next(_COUNT)}" if b"x-request-id" in x.head.headers else x.id
