"""The audit trail from `put` to the store (U), on each database."""

import asyncio
import errno
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast, get_args

import msgspec
import pytest

from gateway.config import Audit
from gateway.services import audit as audit_module
from gateway.services.audit import CLOSE_SECONDS, AuditService
from gateway.services.record import AuditRecord, Opening
from gateway.services.spool import Spool
from gateway.services.trail import read_anchors
from gateway.store import Store, StoreError
from gateway.store.base import AUDIT_COLUMNS, AuditRow, Head
from tests.services.keyring import Clock, connection

FULL = AuditRecord(
    id="r-1", started_at=1_800_000_000_000_000, tenant="t", user="u", key="k", ip="2001:db8::1", dialect="openai",
    route="/v1/chat/completions", method="POST", model_asked="ünï", model_served="m", backend="b", status=200,
    outcome="done", error="", prompt_tokens=1, completion_tokens=2, cached_tokens=3, usage_estimated=True, queue_us=4,
    first_byte_us=5, total_us=6, bytes_in=7, bytes_out=8, rank=9, queue_len=10, usage_before=0.1, slot_us=12,
)  # fmt: skip


class Faulty:
    """The real store, whose audit writes fail before or after they happened, as the test says. `meanwhile` happens
    during each."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.before = self.after = False
        self.meanwhile: Callable[[], object] = lambda: None

    async def add_audit(self, before: Head, after: Head, rows: list[AuditRow]) -> bool:
        self.meanwhile()
        if self.before:
            raise StoreError("down on purpose")
        moved = await self._store.add_audit(before, after, rows)
        if self.after:
            raise StoreError("the acknowledgement was lost on purpose")
        return moved

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def config(tmp_path: Path, **settings: Any) -> Audit:
    return Audit(spool=str(tmp_path / "spool"), batch_seconds=0.01, **settings)


@asynccontextmanager
async def running(store: Any, settings: Audit) -> AsyncIterator[AuditService]:
    """A service that delivers."""
    service = AuditService(store, settings)
    task = asyncio.ensure_future(service.run())
    try:
        yield service
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await service.close()


def killed(service: AuditService) -> None:
    """What kill -9 leaves of a service that delivers nothing at the moment."""
    spool = service._spool
    for file in (*spool._retired, spool._file, spool._directory, spool._lock):
        os.close(file)
    service._shipper.shutdown()


async def until(true: Any, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


async def stored(store: Store) -> list[AuditRecord]:
    return [AuditRecord.of(row) for row in await store.audit_tail(100_000)]


def record(name: str, error: str = "") -> AuditRecord:
    return AuditRecord(id=name, started_at=1, error=error)


def opening(of: AuditRecord) -> Opening:
    """What is known of it when it begins."""
    return cast(Opening, msgspec.structs.astuple(of)[: len(get_args(Opening))])


def test_a_row_arrives_with_every_field(store_url: str, tmp_path: Path) -> None:
    """U1"""
    assert all(value or value == "" for value in msgspec.structs.astuple(FULL))

    async def body() -> None:
        async with connection(store_url) as store:
            async with running(store, config(tmp_path)) as service:
                service.put(FULL)
                await until(lambda: service.stats().written == 1)
            assert await stored(store) == [FULL]

    asyncio.run(body())


def test_closing_delivers_everything_in_order(store_url: str, tmp_path: Path) -> None:
    """U2, H13"""

    async def body() -> None:
        async with connection(store_url) as store:
            async with running(store, config(tmp_path, batch_rows=7)) as service:
                for number in range(50):
                    service.put(record(f"r{number}"))
            assert [row.id for row in await stored(store)] == [f"r{number}" for number in range(50)]
            assert service.stats().pending == 0

    asyncio.run(body())


def test_while_the_store_is_down_rows_wait_and_then_arrive_once(store_url: str, tmp_path: Path) -> None:
    """U3"""

    async def body() -> None:
        async with connection(store_url) as store:
            faulty = Faulty(store)
            async with running(faulty, config(tmp_path, batch_rows=10)) as service:
                faulty.before = True
                for number in range(25):
                    service.put(record(f"r{number}"))
                await until(lambda: service.stats().failures > 0)
                assert service.stats().pending == 25
                assert await stored(store) == []
                faulty.before = False
                await until(lambda: service.stats().pending == 0)
            assert [row.id for row in await stored(store)] == [f"r{number}" for number in range(25)]

    asyncio.run(body())


def test_rows_that_come_during_a_delivery_wait_for_the_next_one(store_url: str, tmp_path: Path) -> None:
    """U2: or steady traffic would have the writer sync the disk and commit without a pause, for a row or two each."""

    class Busy(Faulty):
        batches = 0

        async def add_audit(self, before: Head, after: Head, rows: list[AuditRow]) -> bool:
            self.batches += 1
            if self.batches < 20:
                service.begin(opening(FULL))
                service.put(record(f"during {self.batches}"))
            return await super().add_audit(before, after, rows)

    async def body() -> None:
        nonlocal service
        async with connection(store_url) as store:
            busy = Busy(store)
            service = AuditService(busy, config(tmp_path, batch_rows=3))
            for number in range(4):
                service.put(record(f"r{number}"))
            await service._ship_all()
            assert busy.batches == 2, "a full batch, and the one after it"
            assert [row.id for row in await stored(store)] == ["r0", "r1", "r2", "r3", "during 1"]
            await service.close()

    service: AuditService
    asyncio.run(body())


def test_an_error_nobody_foresaw_does_not_end_delivery(tmp_path: Path) -> None:
    """U3: a driver may raise anything when its server dies in mid-statement."""

    class Odd(Faulty):
        odd = True

        async def add_audit(self, before: Head, after: Head, rows: list[AuditRow]) -> bool:
            if self.odd:
                self.odd = False
                raise RuntimeError("odd on purpose")
            return await super().add_audit(before, after, rows)

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            async with running(Odd(store), config(tmp_path)) as service:
                service.put(FULL)
                await until(lambda: service.stats().written == 1)
            assert await stored(store) == [FULL]

    asyncio.run(body())


def test_a_lost_acknowledgement_adds_nothing_twice(store_url: str, tmp_path: Path) -> None:
    """U3: exactly once."""

    async def body() -> None:
        async with connection(store_url) as store:
            faulty = Faulty(store)
            async with running(faulty, config(tmp_path, batch_rows=10)) as service:
                faulty.after = True
                for number in range(25):
                    service.put(record(f"r{number}"))
                await until(lambda: service.stats().failures > 1)
                faulty.after = False
                await until(lambda: service.stats().pending == 0)
            assert [row.id for row in await stored(store)] == [f"r{number}" for number in range(25)]

    asyncio.run(body())


def test_a_killed_process_loses_nothing_and_leaves_interrupted_rows(store_url: str, tmp_path: Path) -> None:
    """U3: finished ones as they were, running ones as interrupted, each once; whether delivered before or not."""

    async def body() -> None:
        async with connection(store_url) as store:
            old = AuditService(store, config(tmp_path))
            old.put(record("refused"))
            await old._ship_all()
            done = old.begin(opening(record("done")))
            old.begin(opening(FULL))
            old.put(msgspec.structs.replace(record("done"), status=200), done)
            await asyncio.sleep(0)  # the end of the loop turn
            killed(old)
            async with running(store, config(tmp_path)) as new:
                assert new.stats().interrupted == 1
                new.put(record("later"))
            known = AuditRecord(*opening(FULL))
            interrupted = msgspec.structs.replace(known, outcome="interrupted", error="interrupted")
            expected = [record("refused"), msgspec.structs.replace(record("done"), status=200), interrupted]
            assert await stored(store) == [*expected, record("later")]

    asyncio.run(body())


def test_a_row_that_never_ran_is_on_the_disk_when_put_returns(tmp_path: Path) -> None:
    """U3: its client may see the refusal in this very turn."""

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            service = AuditService(store, config(tmp_path))
            service.put(record("refused"))
            killed(service)
            spool = Spool(tmp_path / "spool", 1 << 20)
            spool.sync()
            assert len(spool.read(spool.start, 10)[0]) == 1
            spool.close()

    asyncio.run(body())


def test_a_beginning_is_on_the_disk_when_begin_returns(tmp_path: Path) -> None:
    """U3: the engine may have the request in this very turn."""

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            service = AuditService(store, config(tmp_path))
            service.begin(opening(FULL))
            killed(service)
            async with running(store, config(tmp_path)) as new:
                assert new.stats().interrupted == 1

    asyncio.run(body())


def test_a_full_spool_denies_and_what_runs_is_still_recorded(tmp_path: Path) -> None:
    """U3: `deny` is the default; the gate opens again after delivery."""

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            faulty = Faulty(store)
            faulty.before = True
            async with running(faulty, config(tmp_path, spool_bytes=1 << 20)) as service:
                begun = service.begin(opening(record("long")))
                count = 0
                while not service.full:
                    service.put(FULL)
                    count += 1
                for _ in range(1000):
                    service.put(record("refusal"))
                assert service.stats().dropped == 0
                for _ in range(20_000):
                    service.put(record("flood"))
                dropped = service.stats().dropped
                assert dropped > 0
                service.put(record("long"), begun)
                assert service.stats().dropped == dropped, "however many refusals there were"
                assert service.stats().spool_bytes < (1 << 20) * 1.2
                faulty.before = False
                await until(lambda: service.stats().pending == 0)
                await until(lambda: not service.full)
            names = [row.id for row in await stored(store)]
            assert names.count("r-1") == count
            assert names.count("long") == 1
            assert names.count("refusal") == 1000

    asyncio.run(body())


def test_drop_by_choice_counts_and_goes_on(tmp_path: Path) -> None:
    """U3"""

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            settings = config(tmp_path, spool_bytes=1 << 20, when_full="drop")
            service = AuditService(store, settings)
            for _ in range(10_000):
                service.put(FULL)
            stats = service.stats()
            assert not service.full
            assert stats.dropped > 0
            assert stats.pending + stats.dropped == 10_000
            await service.close()
            assert len(await stored(store)) == 10_000 - stats.dropped

    asyncio.run(body())


def test_a_request_whose_row_was_dropped_is_not_told_as_interrupted(tmp_path: Path) -> None:
    """U3: it ended, and is counted as dropped; what still ran when the process was killed is told."""
    settings = config(tmp_path, spool_bytes=1 << 20, when_full="drop")

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            service = AuditService(store, settings)
            ended, _ = (service.begin(opening(record(name))) for name in ("ended", "running"))
            while not service.stats().dropped:
                service.put(record("filler"))
            dropped = service.stats().dropped
            service.put(record("ended"), ended)
            await asyncio.sleep(0)  # the loop turn ends
            assert service.stats().dropped == dropped + 1
            killed(service)
            again = AuditService(store, settings)
            await again.close()
            assert [row.id for row in await stored(store) if row.outcome == "interrupted"] == ["running"]

    asyncio.run(body())


def test_a_disk_that_refuses_denies_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """U3: a row that cannot be spooled is a check that cannot be made."""

    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            async with running(store, config(tmp_path)) as service:
                monkeypatch.setattr(os, "pwrite", refuse)
                service.put(FULL)
                assert service.full
                monkeypatch.undo()
                await until(lambda: not service.full)
            assert await stored(store) == [FULL]

    asyncio.run(body())


def test_refusals_while_the_disk_refuses_are_cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """U3: each try joins all that waits, so it is not one for every request; and when the disk takes rows again, the
    next request finds out, whatever `run` waits for."""
    tries = 0

    def refuse(*_: object) -> int:
        nonlocal tries
        tries += 1
        raise OSError(28, "No space left on device")

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            clock = Clock()
            settings = config(tmp_path)
            service = AuditService(store, settings, clock=clock)
            begun = [service.begin(opening(FULL)) for _ in range(100)]
            monkeypatch.setattr(os, "pwrite", refuse)
            for number in begun:
                service.put(FULL, number)
                service.put(FULL)
                service.begin(opening(FULL))
                await asyncio.sleep(0)
            assert (tries, service.full) == (1, True)
            clock.now += settings.batch_seconds
            service.put(FULL)
            service.put(FULL)
            assert (tries, service.full) == (2, True)
            monkeypatch.undo()
            clock.now += settings.batch_seconds
            service.put(FULL)
            assert not service.full
            await service.close()
            assert len(await stored(store)) == 203

    asyncio.run(body())


@pytest.mark.parametrize("when_full", ["drop", "deny"])
def test_what_waits_for_a_disk_that_refuses_has_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when_full: Any
) -> None:
    """U3: beyond it refusals are counted as dropped; ends of what runs are kept, and all that was kept is in order."""
    bound, longest, rows = 16 << 20, 0, 800

    def refuse(_: int, data: bytes, __: int) -> int:
        nonlocal longest
        longest = max(longest, len(data))
        raise OSError(28, "No space left on device")

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            settings = config(tmp_path, when_full=when_full, spool_bytes=64 << 20)
            clock = Clock()
            service = AuditService(store, settings, clock=clock)
            number = service.begin(opening(record("running")))
            monkeypatch.setattr(os, "pwrite", refuse)
            for name in range(rows):
                clock.now += 1.0
                service.put(record(f"r{name}", "m" * 30_000))
            assert service.begin(opening(FULL)) == 0
            service.put(record("running"), number)
            await asyncio.sleep(0)
            dropped = service.stats().dropped
            assert 0 < dropped < rows
            assert service._spool.unwritten < bound + 40_000
            assert longest < 300_000
            monkeypatch.undo()
            clock.now += 1.0
            service.put(record("after"))
            assert service._spool.unwritten == 0
            await service.close()
            kept = [f"r{name}" for name in range(rows - dropped)]
            assert [row.id for row in await stored(store)] == [*kept, "running", "after"]

    asyncio.run(body())


def test_the_age_of_the_oldest_row_does_not_grow_under_steady_load(tmp_path: Path) -> None:
    """O1: rows come during every delivery, so there is never a moment without any that waits."""

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            clock, faulty = Clock(), Faulty(store)
            service = AuditService(faulty, config(tmp_path), clock=clock)

            def meanwhile() -> None:
                clock.now += 1.0
                service.put(FULL)

            faulty.meanwhile = meanwhile
            service.put(FULL)
            for _ in range(10):
                await service._ship_all()
            assert service.stats().pending == 1
            assert service.stats().oldest_seconds <= 1.0
            faulty.before = True
            for _ in range(5):
                with pytest.raises(StoreError):
                    await service._ship_all()
            assert service.stats().oldest_seconds >= 5.0
            faulty.before = False
            faulty.meanwhile = lambda: None
            await service.close()

    asyncio.run(body())


def test_rows_that_the_disk_refuses_get_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O1: nothing of them can be read, which is no sign that nothing waits."""

    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            clock = Clock()
            service = AuditService(store, config(tmp_path), clock=clock)
            monkeypatch.setattr(os, "pwrite", refuse)
            service.put(FULL)
            clock.now += 60.0
            await service._ship_all()
            assert service.stats().oldest_seconds >= 60.0
            monkeypatch.undo()
            await service.close()
            assert await stored(store) == [FULL]

    asyncio.run(body())


def test_a_disk_that_keeps_nothing_is_a_failure_like_that_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O1: rows that are written but not durable wait, and the counter of failures says that somebody must look."""

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            async with running(store, config(tmp_path)) as service:
                monkeypatch.setattr(os, "fsync", refuse)
                service.put(FULL)
                await until(lambda: service.stats().failures > 0)
                assert service.stats().pending == 1
                monkeypatch.undo()
            assert await stored(store) == [FULL]

    asyncio.run(body())


def test_text_that_no_database_takes_does_not_stop_the_trail(store_url: str, tmp_path: Path) -> None:
    """U3: one client's odd model name must not hold up everybody's rows."""

    async def body() -> None:
        async with connection(store_url) as store:
            async with running(store, config(tmp_path)) as service:
                service.put(AuditRecord(id="nul", started_at=1, model_asked="a\0b"))
                service.put(AuditRecord(id="surrogate", started_at=1, model_asked="a\ud800b", ip="x\udcff"))
                service.put(FULL)
            nul, surrogate, _ = await stored(store)
            assert (nul.model_asked, surrogate.model_asked) == ("a\ufffdb", "a?b")

    asyncio.run(body())


def test_rows_are_prepared_off_the_loops_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """U2"""
    ran_in = set()
    real = audit_module.digest

    def recorded(*args: Any) -> bytes:
        ran_in.add(threading.current_thread())
        return real(*args)

    monkeypatch.setattr(audit_module, "digest", recorded)

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store, running(store, config(tmp_path)) as service:
            service.put(FULL)

    asyncio.run(body())
    assert ran_in
    assert threading.main_thread() not in ran_in


def test_anchors_are_written_outside_of_the_database(tmp_path: Path) -> None:
    """U4: periodically, and at the end."""

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            settings = config(tmp_path, anchors=str(tmp_path / "anchors"), anchor_seconds=0.001)
            async with running(store, settings) as service:
                service.put(FULL)
                await until((tmp_path / "anchors").exists)
                service.put(FULL)
            (writer,) = await store.audit_writers()
            head = await store.audit_head(writer)
            lines = [json.loads(line) for line in (tmp_path / "anchors").read_text().splitlines()]
            assert lines[-1] == {
                "writer": head.writer,
                "seq": head.seq,
                "recorded_at": head.recorded_at,
                "hash": head.hash.hex(),
            }
            assert head.seq == 2

    asyncio.run(body())


def test_no_row_waits_for_an_anchor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """U3: neither while the gateway runs nor at its end, if the folder of the anchors is gone."""
    slow: list[float] = []

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            settings = config(tmp_path, anchors=str(tmp_path / "none" / "anchors"), anchor_seconds=0.001)
            async with running(store, settings) as service:
                for count in range(1, 6):
                    service.put(FULL)
                    await until(lambda count=count: service.stats().written == count)  # type: ignore[misc]
                began = time.monotonic()
            slow.append(time.monotonic() - began)

    asyncio.run(body())
    assert "an anchor of the audit trail could not be written" in caplog.text
    assert "rows wait" not in caplog.text
    assert slow[0] < CLOSE_SECONDS / 2


@pytest.mark.parametrize("cut", [0, 1])
def test_an_anchor_that_the_disk_takes_in_part_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """U4: and one that a killed process left torn stands alone."""
    anchors, real, tries = tmp_path / "anchors", os.write, 0
    before = '{"writer": "w", "seq": 1, "hash": "00"}\n'
    anchors.write_text(before + '{"writ' * cut)

    def part(file: int, data: bytes) -> int:
        nonlocal tries
        tries += data.find(b'"seq"') > 0
        return real(file, data[:20] if tries == 1 else data)

    async def body() -> None:
        async with connection(tmp_path / "x.db") as store:
            monkeypatch.setattr(os, "write", part)
            service = AuditService(store, config(tmp_path, anchors=str(anchors)))
            service.put(FULL)
            await service.close()
            monkeypatch.undo()
            head = await store.audit_head((await store.audit_writers())[0])
            assert read_anchors(anchors) == {"w": {1: b"\0"}, head.writer: {1: head.hash}}
        assert (tries, anchors.read_text().count("\n")) == (2, 2 + cut)

    asyncio.run(body())


def test_two_writers_share_one_store(store_url: str, tmp_path: Path) -> None:
    """D: each gateway has a chain of its own."""

    async def body() -> None:
        async with connection(store_url) as store, connection(store_url) as other:
            async with running(store, config(tmp_path / "1")) as one, running(other, config(tmp_path / "2")) as two:
                for number in range(20):
                    (one, two)[number % 2].put(record(f"r{number}"))
            heads = [await store.audit_head(writer) for writer in await store.audit_writers()]
            assert sorted(head.seq for head in heads) == [10, 10]
            assert len({row.id for row in await stored(store)}) == 20

    asyncio.run(body())


def test_a_large_batch_is_in_the_store_as_a_whole_or_not_at_all(store_url: str) -> None:
    """U3: PostgreSQL takes it in several COPYs, of which a later one may fail."""

    async def body() -> None:
        async with connection(store_url) as store:
            columns = msgspec.structs.astuple(FULL)
            rows: list[AuditRow] = [(*columns, "w", seq, 7, b"h") for seq in range(1, 501)]
            last = Head("w", 500, 7, b"h")
            with pytest.raises(Exception, match=r"(?i)null"):
                await store.add_audit(Head("w"), last, [*rows[:-1], (*columns, "w", None, 7, b"h")])
            assert await store.audit_head("w") == Head("w")
            assert await store.audit_chain("w", 0, 1000) == []
            assert await store.add_audit(Head("w"), last, rows)
            assert await store.audit_chain("w", 0, 1000) == rows

    asyncio.run(body())


def test_the_head_moves_only_from_where_it_stands(store_url: str) -> None:
    """U3: the store's half of exactly once."""

    async def body() -> None:
        async with connection(store_url) as store:
            row: AuditRow = (*msgspec.structs.astuple(FULL), "w", 1, 7, b"h")
            first = Head("w", 1, 7, b"h")
            assert await store.audit_head("w") == Head("w")
            assert await store.add_audit(Head("w"), first, [row])
            assert not await store.add_audit(Head("w"), first, [row])
            assert await store.audit_head("w") == first
            assert await store.audit_chain("w", 0, 10) == await store.audit_tail(10) == [row]
            assert await store.audit_chain("w", 1, 10) == []
            assert await store.audit_page((0, "", 0), 8, 10) == [row]
            assert await store.audit_page((7, "w", 1), 8, 10) == await store.audit_page((0, "", 0), 7, 10) == []

    asyncio.run(body())


def test_put_is_cheap(tmp_path: Path) -> None:
    """performance.md 7: a bound far above what was measured (1 to 2 us each), against blunders."""

    async def body() -> float:
        async with connection(tmp_path / "x.db") as store:
            service = AuditService(store, config(tmp_path, batch_rows=500))
            began = time.process_time()
            for _ in range(2000):
                service.put(FULL, service.begin(opening(FULL)))
            spent = time.process_time() - began
            await service.close()
            return spent / 2000

    assert asyncio.run(body()) < 50e-6


def test_the_records_columns_are_the_stores() -> None:
    assert AuditRecord.__struct_fields__ == AUDIT_COLUMNS
