"""Prompts of keys that opted in (U5): rows and statements for both databases. Must not know who asks, or what a prompt
says. Times are in Unix microseconds; expired prompts are hidden from readers before they are deleted."""

from collections.abc import Sequence
from typing import Any

import msgspec


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One request's body as it was kept. `id` is that of the request, which clients may choose, so it is not unique.
    `size` is that of the whole body in bytes; `body` may be only its first part."""

    id: str
    at: int
    expires_at: int
    tenant: str
    user: str
    key: str
    route: str
    model: str
    size: int
    body: bytes


_FIELDS = Prompt.__struct_fields__
_COLUMNS = ", ".join(f'"{name}"' for name in _FIELDS)
_VALUES = ", ".join(f"${n}" for n in range(1, len(_FIELDS) + 1))
_ADD = f"INSERT INTO prompts ({_COLUMNS}) VALUES ({_VALUES})"  # noqa: S608 -- constants
_READ = f"SELECT {_COLUMNS} FROM prompts WHERE expires_at > $1"  # noqa: S608 -- constants
DELETED_AT_ONCE = 250
"""Prompts deleted by one statement, whose timeout is short: there may be millions, of some KiB each."""


class PromptsSql:
    """The part of `SqlStore` that keeps prompts."""

    async def _fetch(self, sql: str, *values: Any) -> Sequence[Any]:
        raise NotImplementedError

    async def _execute(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        raise NotImplementedError

    async def add_prompts(self, prompts: Sequence[Prompt]) -> None:
        """All or none."""
        await self._execute(_ADD, [msgspec.structs.astuple(prompt) for prompt in prompts])

    async def prompt(self, request: str, now: int) -> list[Prompt]:
        """Of requests with that id, oldest first."""
        return [_prompt(row) for row in await self._fetch(f"{_READ} AND id = $2 ORDER BY seq", now, request)]

    async def prompts(self, key: str, count: int, now: int) -> list[Prompt]:
        """The latest of a key, or ("") of all, oldest first."""
        if key:
            rows = await self._fetch(f'{_READ} AND "key" = $2 ORDER BY seq DESC LIMIT $3', now, key, count)
        else:
            rows = await self._fetch(f"{_READ} ORDER BY seq DESC LIMIT $2", now, count)
        return [_prompt(row) for row in reversed(rows)]

    async def delete_prompts(self, *, request: str = "", key: str = "") -> int:
        """Those of a request, of a key, or of neither: all -> how many."""
        for column, wanted in (("id", request), ('"key"', key)):
            if wanted:
                return await self._delete(f"{column} = $1", wanted)
        return await self._delete("seq >= $1", 0)

    async def expire_prompts(self, now: int) -> int:
        """Delete what has expired -> how many."""
        return await self._delete("expires_at <= $1", now)

    async def _delete(self, where: str, value: str | int) -> int:
        """Delete in steps until none is left; a step that deletes nothing may have collided with another gateway's."""
        some = f"SELECT seq FROM prompts WHERE {where} LIMIT $2"  # noqa: S608 -- constants
        sql, gone = f"DELETE FROM prompts WHERE seq IN ({some})", 0  # noqa: S608 -- constants
        while await self._fetch(some, value, 1):
            gone += await self._execute(sql, [(value, DELETED_AT_ONCE)])
        return gone


def _prompt(row: Any) -> Prompt:
    return Prompt(**{name: row[name] for name in _FIELDS})
