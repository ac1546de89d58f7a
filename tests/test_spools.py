"""Spools that workers left of whom there are no more."""

import errno
import logging
import os
from pathlib import Path

import pytest
import uvloop

from gateway import config as cfg
from gateway.services import audit
from gateway.services.spool import Spool
from gateway.spools import deliver_left_over, spool_of
from gateway.store import open_store


def test_a_left_over_spool_whose_disk_fails_stops_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """U3: it is named, and what is in it stays for the next start."""
    config = cfg.Config(store=str(tmp_path / "s.db"))
    monkeypatch.setattr(audit, "CLOSE_SECONDS", 0.0)

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async def main() -> None:
        store = await open_store(config.store)
        left = Path(spool_of(config, store, 1))
        spool = Spool(left, 1 << 20)
        spool.end(0, b"row")
        spool.close()
        monkeypatch.setattr(os, "fsync", refuse)
        await deliver_left_over(config, store)
        monkeypatch.undo()
        again = Spool(left, 1 << 20)
        again.sync()
        assert [payload for _, _, payload in again.read(again.start, 9)[0]] == [b"row"]
        again.close()
        await store.close()

    with caplog.at_level(logging.WARNING, "fairgate.audit"):
        uvloop.run(main())
    (said,) = [record.getMessage() for record in caplog.records if "earlier worker" in record.message]
    assert str(tmp_path) in said
    assert "Input/output error" in said
