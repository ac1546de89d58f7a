"""An admitted request of the admin API: who asks, what for, and the services that answer.

Must not know HTTP beyond the bytes of a query and a body.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeVar, get_args, get_type_hints
from urllib.parse import parse_qsl

import msgspec

from gateway.admin.sessions import PERSON
from gateway.admin.state import Gateway, HasStats
from gateway.config import Config
from gateway.errors import BadRequest, Unavailable
from gateway.services.backend_facts import BackendStats, Seen
from gateway.services.keys import KeyService
from gateway.services.moments import moment
from gateway.services.principal import Principal
from gateway.shape import bare, nearest
from gateway.store.base import Page, Store

Asked = TypeVar("Asked", bound=msgspec.Struct)

MOST_PARAMETERS: Final = 32
REPORTS_AT_ONCE: Final = 2
"""Concurrent reports and searches of the trail: each costs the store more than a request does."""
TURN_SECONDS: Final = 5.0
"""How long a change waits for its turn. A store that does not answer holds up the change before it for as long."""


class Watched(HasStats[tuple[BackendStats, ...]], Protocol):
    """The part of the backend service that the API shows."""

    def picture(self) -> tuple[Seen, ...]: ...


class Managed(Gateway, Protocol):
    """The running gateway as the API knows it."""

    @property
    def config(self) -> Config: ...
    @property
    def store(self) -> Store: ...
    @property
    def backends(self) -> Watched: ...


class Office:
    """What all requests share: the gateway, the service for keys, and turns for slow answers and for changes."""

    def __init__(self, gateway: Managed, keys: KeyService) -> None:
        self.gateway = gateway
        self.keys = keys
        self.reports = asyncio.Semaphore(REPORTS_AT_ONCE)
        self._changes = asyncio.Lock()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """For changes that depend on the present state, so that none overwrites another. Revoking and disabling never
        wait for a turn. Raises Unavailable."""
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._changes.acquire()
        except TimeoutError as err:
            raise Unavailable("Other changes are still under way. Try again.", retry_after=1.0) from err
        try:
            yield
        finally:
            self._changes.release()


class Call:
    """One request. `store` records changes under the name of the key or the person that asks."""

    def __init__(self, office: Office, who: Principal, path: dict[str, str], query: bytes, body: bytes) -> None:
        self.office = office
        self.who = who
        self.path = path
        self.store: Store = office.gateway.store.acting(who.key if who.key.startswith(PERSON) else f"key:{who.key}")
        self._query = query
        self._body = body

    @property
    def config(self) -> Config:
        return self.office.gateway.config

    def asked(self, kind: type[Asked]) -> Asked:
        """The decoded body. Raises BadRequest with the path of what is wrong."""
        if rb"\u0000" in self._body:
            raise BadRequest("The body contains a NUL character, which the store cannot hold.")
        try:
            return msgspec.json.decode(self._body or b"{}", type=kind)
        except msgspec.ValidationError as err:
            raise _faulty(err, kind) from err
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise BadRequest("The body is not valid JSON.") from err

    def query(self, kind: type[Asked]) -> Asked:
        """The decoded query. Raises BadRequest, also for a repeated parameter."""
        try:
            pairs = parse_qsl(self._query.decode("ascii"), True, True, errors="strict", max_num_fields=MOST_PARAMETERS)
        except ValueError as err:
            raise BadRequest("The query string is malformed.") from err
        given = dict(pairs)
        if len(given) < len(pairs):
            raise BadRequest("A query parameter appears more than once.")
        if any("\0" in value for value in given.values()):
            raise BadRequest("The query contains a NUL character, which the store cannot hold.")
        try:
            return msgspec.convert(given, kind, strict=False)
        except msgspec.ValidationError as err:
            raise _faulty(err, kind) from err

    def forget(self, row_id: str) -> None:
        """The row was changed: drop at once what this process derived from it."""
        self.office.keys.forget(row_id)


def _faulty(error: msgspec.ValidationError, kind: type[object]) -> BadRequest:
    """A message with the path of the faulty member (an unknown or missing one has its own name in it), and the values
    allowed there."""
    found = re.search(r"^(.*) - at `\$\.?(.*)`$", str(error), re.DOTALL)
    fault, path = (found[1], found[2]) if found else (str(error), "")
    members = get_type_hints(kind)
    if fault.startswith("Invalid enum value"):
        fault = f"none of {', '.join(get_args(bare(members[path])))}"
    named = re.search(r"(unknown|required) field `(.*)`", fault, re.DOTALL)
    if named and not path and named[1] == "unknown":
        fault += nearest(named[2], members)
    return BadRequest(fault, param=(f"{path}.{named[2]}".lstrip(".") if named else path) or None)


def instant(text: str, name: str, absent: int) -> int:
    """A time in a body or query -> Unix microseconds. Raises BadRequest."""
    try:
        return moment(text) if text else absent
    except ValueError as err:
        raise BadRequest(str(err), param=name) from err


def page(limit: int, offset: int) -> Page:
    """A page with one extra row, which tells whether there are more."""
    return Page(limit + 1, offset)


def listed(rows: list[Any], limit: int, offset: int) -> dict[str, Any]:
    """A part of a list, and the offset of the next part."""
    return {"data": rows[:limit], "next_offset": offset + limit if len(rows) > limit else None}
