"""Reading the audit trail: verifying it (U4) and exporting it. Must not know how rows are written or shown."""

import json
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec

from gateway.services.chain import Broken, Checker
from gateway.services.record import AuditRecord
from gateway.store.base import STORED_COLUMNS, AuditRow, Store

_log = logging.getLogger("fairgate.audit")

_PAGE = 1000
_MOST_DROPS = 10_000
"""Maximum dropped partitions to read."""

Anchors = Mapping[str, Mapping[int, bytes]]
"""Writer -> seq -> hash."""


class Verified(msgspec.Struct, frozen=True):
    """The result for one writer's chain. `rows` were checked, up to `last`. `unproven`: its oldest rows are gone
    (retention), and nothing proves the first remaining one. `broken` is the first fault."""

    writer: str
    rows: int
    last: int
    unproven: bool
    broken: Broken | None


class AnchorError(Exception):
    """The file of anchors is unusable; the message says why."""


def read_anchors(path: Path) -> Anchors:
    """The file to which gateways append anchors. An incomplete last line is ignored, since it was being written. A
    fragment elsewhere, which a full disk may leave, is ignored with a log entry. Raises AnchorError."""
    anchors: dict[str, dict[int, bytes]] = {}
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
            if line.endswith("\n"):
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    _log.warning("%s: line %d is torn: what it anchored is not checked", path, number)
                    continue
                anchors.setdefault(entry["writer"], {})[entry["seq"]] = bytes.fromhex(entry["hash"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise AnchorError(f"{path}: {getattr(err, 'strerror', None) or err}") from err
    return anchors


async def verify(store: Store, anchors: Anchors) -> list[Verified]:
    """Check every writer's chain, in order of names; gateways may keep writing."""
    writers = sorted({*await store.audit_writers(), *anchors})
    dropped = await _dropped(store)
    return [await _verify_writer(store, writer, anchors.get(writer, {}), dropped.get(writer, {})) for writer in writers]


async def _dropped(store: Store) -> Anchors:
    """The last rows of each batch that retention dropped; the hash is empty if it was not recorded."""
    last: dict[str, dict[int, bytes]] = {}
    for row in await store.operations_history("audit", _MOST_DROPS):
        note = json.loads(row.body or "{}")
        for writer, seq in note.get("through", {}).items():
            last.setdefault(writer, {})[seq] = bytes.fromhex(note.get("hashes", {}).get(writer, ""))
    return last


async def _verify_writer(
    store: Store, writer: str, anchors: Mapping[int, bytes], dropped: Mapping[int, bytes]
) -> Verified:
    """Check one chain. Starts again if retention dropped rows meanwhile, since those are not missing."""
    while True:
        chain = await _follow(store, writer, Checker(writer, anchors, dropped))
        if chain.broken is None:
            return chain
        now = (await _dropped(store)).get(writer, {})
        if max(now, default=0) < chain.broken.seq or now.keys() == dropped.keys():
            return chain
        dropped = now


async def _follow(store: Store, writer: str, checker: Checker) -> Verified:
    while True:
        page = await store.audit_chain(writer, checker.head.seq - 1, _PAGE)
        before = checker.head.seq
        broken = checker.follow(page, _hashed)
        if broken is None and checker.head.seq > before:
            continue
        if broken is None:
            stored = await store.audit_head(writer)
            if stored.seq > checker.head.seq and len(await store.audit_chain(writer, checker.head.seq, 1)) > 0:
                continue  # the gateway wrote more rows between the two reads
            broken = checker.end(stored)
        return Verified(writer, checker.rows, checker.head.seq, checker.unproven, broken)


_encode = msgspec.msgpack.Encoder().encode


def _hashed(row: AuditRow) -> bytes:
    return _encode(AuditRecord.of(row))


async def export(store: Store, since: int, until: int) -> AsyncIterator[dict[str, object]]:
    """Rows recorded from `since` to before `until` (Unix microseconds), in order, as column -> value; hashes in hex."""
    after = (since, "", 0)  # seq begins at 1
    while True:
        page = await store.audit_page(after, until, _PAGE)
        for row in page:
            named = dict(zip(STORED_COLUMNS, row, strict=True))
            after = (int(str(named["recorded_at"])), str(named["writer"]), int(str(named["seq"])))
            yield named | {"hash": bytes(row[-1]).hex(), "usage_estimated": bool(named["usage_estimated"])}  # type: ignore[arg-type]  # the column's type
        if len(page) < _PAGE:
            return
