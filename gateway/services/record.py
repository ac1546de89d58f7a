"""One request as the audit trail keeps it (U1). Plain data; must not know how it is written or shipped.

Not compiled (`hatch_build.py`): a compiled class would lose the record's array form.
"""

import msgspec

from gateway.store.base import AUDIT_COLUMNS, AuditRow


class AuditRecord(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One request (U1). `started_at` is Unix microseconds, `_us` fields are durations in microseconds; 0 = the request
    did not get that far. `rank` is the place in the queue at entry (with several workers, only where it got a slot),
    `usage_before` the fair-use cost units at entry, `slot_us` the time a backend's slot was held. `error` is a code of
    gateway.errors. Never a prompt, key or header.
    New fields go to the end: spools of older versions are read."""

    id: str
    started_at: int
    tenant: str = ""
    user: str = ""
    key: str = ""
    ip: str = ""
    dialect: str = ""
    route: str = ""
    method: str = ""
    model_asked: str = ""
    model_served: str = ""
    backend: str = ""
    status: int = 0
    outcome: str = ""
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    usage_estimated: bool = False
    queue_us: int = 0
    first_byte_us: int = 0
    total_us: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    rank: int = 0
    queue_len: int = 0
    usage_before: float = 0.0
    slot_us: int = 0

    @classmethod
    def of(cls, row: AuditRow) -> "AuditRecord":
        """A record from a row of the store, without the chain's columns at its end."""
        return msgspec.convert(row[: len(AUDIT_COLUMNS)], cls, strict=False)


Opening = tuple[str, int, str, str, str, str, str, str, str, str, str]
"""The first fields of an AuditRecord, up to `model_served`: what is known when a request is sent to an engine."""


class AuditStats(msgspec.Struct, frozen=True):
    """Counters since start. `pending` rows wait now; the oldest of them is at most `oldest_seconds` old."""

    written: int
    pending: int
    failures: int
    dropped: int
    oldest_seconds: float
    interrupted: int = 0
    spool_bytes: int = 0
    spool_limit: int = 0
