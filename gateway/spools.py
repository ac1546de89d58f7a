"""Where each process keeps its audit spool, and what becomes of spools that nobody has any more.

Every process that serves is a writer of the audit trail with a chain of its own, so each has its own directory: the
first one the configured one, the others `-1`, `-2` and so on behind its name. Fewer workers than before leave
directories behind; what is in them is delivered at the start.
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
    """The directory of that worker, counted from 0."""
    base = spool_path(config.audit, store)
    return f"{base}-{worker}" if worker else str(base)


def spools(config: Config, store: Store) -> list[Path]:
    """The directories of all workers that there are or were."""
    base = Path(spool_of(config, store, 0))
    others = (path for path in base.parent.glob(f"{base.name}-*") if path.name.removeprefix(f"{base.name}-").isdigit())
    return [base, *sorted(others)]


async def deliver_left_over(config: Config, store: Store) -> None:
    """Write to the store what workers left that there are no more of. What a failing store does not take stays."""
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
