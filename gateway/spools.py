"""Where each process keeps its audit spool, and what happens to spools without a process.

Every serving process writes its own chain of the audit trail, so each has its own directory: the first one the
configured path, the others the same path with `-1`, `-2` and so on appended. With fewer workers than before,
directories are left over; their content is delivered at the start.
"""

import logging
from pathlib import Path

import msgspec

from gateway.config import Config
from gateway.services.audit import AuditService, spool_path
from gateway.services.spool import SpoolError
from gateway.store import Store

log = logging.getLogger("fairgate.audit")


def spool_of(config: Config, store: Store, worker: int) -> str:
    """The spool directory of a worker, counted from 0."""
    base = spool_path(config.audit, store)
    return f"{base}-{worker}" if worker else str(base)


def spools(config: Config, store: Store) -> list[Path]:
    """The spool directory of the first worker, and the existing ones of other present and former workers."""
    base = Path(spool_of(config, store, 0))
    others = (path for path in base.parent.glob(f"{base.name}-*") if path.name.removeprefix(f"{base.name}-").isdigit())
    return [base, *sorted(others)]


async def deliver_left_over(config: Config, store: Store) -> None:
    """Write the rows of former workers to the store. Rows that a failing store does not take stay in their spool."""
    for path in spools(config, store)[1:]:
        if int(path.name.rpartition("-")[2]) < config.workers or not (path / "writer").exists():
            continue
        try:
            audit = AuditService(store, msgspec.structs.replace(config.audit, spool=str(path)))
            await audit.close()
        except SpoolError as err:
            log.warning("a spool of an earlier worker is not delivered: %s", err)
            continue
        stats = audit.stats()
        if stats.written:
            log.info("rows of an earlier worker delivered", extra={"spool": str(path), "rows": stats.written})
