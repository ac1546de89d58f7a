"""The write-ahead spool: what was written is read, after any end of the process (U2, U3)."""

import errno
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.services.spool import Entry, Position, Spool, SpoolError


def opened(directory: Path, segment_bytes: int = 1 << 20) -> Spool:
    return Spool(directory, segment_bytes, now=lambda: 5_000)


def abandon(spool: Spool) -> None:
    """What kill -9 leaves: files and no lock; nothing is flushed."""
    for file in (*spool._retired, spool._file, spool._directory, spool._lock):
        os.close(file)


def on_disk(directory: Path) -> int:
    """Bytes of all segments."""
    return sum(path.stat().st_size for path in directory.glob("*.log"))


def entries(spool: Spool, start: Position | None = None) -> list[Entry]:
    spool.sync()
    found, position = [], start or spool.start
    while True:
        some, position = spool.read(position, 7)
        if not some:
            return found
        found += some


def test_entries_are_read_in_order_with_seq_and_time(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    for text in (b"a", b"b"):
        assert spool.end(0, text)
    assert entries(spool) == []
    spool.flush()
    assert entries(spool) == [(1, 5, b"a"), (2, 5, b"b")]
    spool.close()


def test_a_reader_sees_only_what_survives_the_machine(tmp_path: Path) -> None:
    """U2: a row is not delivered before it is durable here, so the store is never ahead of the spool."""
    spool = opened(tmp_path)
    spool.end(0, b"a")
    spool.flush()
    assert spool.read(spool.start, 10)[0] == []
    assert len(entries(spool)) == 1
    spool.close()


def test_a_new_process_goes_on_where_the_old_one_was_killed(tmp_path: Path) -> None:
    """U3: what was flushed is there, what ran is named, numbers go on."""
    old = opened(tmp_path)
    finished, running = old.begin(b"one"), old.begin(b"two")
    old.end(finished, b"one done")
    old.flush()
    old.end(running, b"lost: never flushed")
    abandon(old)
    new = opened(tmp_path)
    assert new.writer == old.writer
    assert new.interrupted == [(running, b"two")]
    another = new.begin(b"three")
    assert another > running, "else the end of one would be that of the other"
    assert (new.end(running, b"two interrupted"), new.end(another, b"three done")) == (2, 3)
    new.flush()
    assert new.size == on_disk(tmp_path)
    assert [payload for _, _, payload in entries(new)] == [b"one done", b"two interrupted", b"three done"]
    new.close()
    last = opened(tmp_path)
    assert last.interrupted == []
    assert [seq for seq, _, _ in entries(last)] == [1, 2, 3]
    last.close()


def test_being_killed_during_recovery_interrupts_nobody_twice(tmp_path: Path) -> None:
    """U3: exactly one row, whatever the number of crashes."""
    spool = opened(tmp_path)
    spool.begin(b"x")
    spool.begin(b"y")
    spool.flush()
    for _ in range(3):
        abandon(spool)
        spool = opened(tmp_path)
        assert len(spool.interrupted) == 2
    spool.end(spool.interrupted[0][0], b"x interrupted")
    spool.flush()
    abandon(spool)
    spool = opened(tmp_path)
    assert [payload for _, payload in spool.interrupted] == [b"y"]
    spool.close()


def test_an_entry_that_is_given_up_leaves_no_gap_and_no_running_request(tmp_path: Path) -> None:
    """U3: the request has ended, so no later process tells of it, whichever segment its start is in."""
    spool = opened(tmp_path, segment_bytes=200)
    given_up, running = spool.begin(b"given up"), spool.begin(b"runs")
    spool.flush()
    spool.end(0, b"a" * 200)
    spool.flush()
    assert len(list(tmp_path.glob("*.log"))) == 2, "the second one repeats both starts"
    spool.forget(given_up)
    spool.forget(0)
    assert spool.end(0, b"b") == 2
    spool.flush()
    assert spool.size == on_disk(tmp_path)
    assert [seq for seq, _, _ in entries(spool)] == [1, 2]
    abandon(spool)
    again = opened(tmp_path)
    assert again.interrupted == [(running, b"runs")]
    assert (again.damaged, again.seq, [seq for seq, _, _ in entries(again)]) == ([], 2, [1, 2])
    again.close()


def test_delivered_segments_go_and_running_requests_stay_known(tmp_path: Path) -> None:
    """U3: a long request does not hold old segments on the disk."""
    spool = opened(tmp_path, segment_bytes=200)
    running = spool.begin(b"long")
    for number in range(50):
        spool.end(0, b"%d" % number)
        spool.flush()
    assert len(list(tmp_path.glob("*.log"))) > 5
    before = spool.size
    found = entries(spool)
    assert [seq for seq, _, _ in found] == list(range(1, 51))
    spool.release(49)
    spool.end(0, b"last")
    spool.flush()
    spool.sync()
    assert len(list(tmp_path.glob("*.log"))) <= 2
    assert spool.size < before
    assert spool.size == sum(file.stat().st_size for file in tmp_path.glob("*.log"))
    abandon(spool)
    again = opened(tmp_path)
    assert again.interrupted == [(running, b"long")]
    assert again.seq == 51
    again.close()


def test_the_number_goes_on_when_all_rows_are_delivered(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.end(0, b"a")
    spool.flush()
    spool.close()
    spool = opened(tmp_path)
    spool.release(1)
    spool.sync()
    spool.close()
    spool = opened(tmp_path)
    assert spool.end(0, b"b") == 2
    spool.close()


@pytest.mark.parametrize("cut", [1, 5, 12, 40])
def test_a_torn_end_is_cut_off(tmp_path: Path, cut: int) -> None:
    """U3: kill -9 in the middle of a write."""
    spool = opened(tmp_path)
    spool.end(0, b"whole")
    spool.end(0, b"torn" * 10)
    spool.flush()
    abandon(spool)
    path = max(tmp_path.glob("*.log"))
    os.truncate(path, path.stat().st_size - cut)
    spool = opened(tmp_path)
    assert spool.damaged == []
    assert [payload for _, _, payload in entries(spool)] == [b"whole"]
    assert spool.size == on_disk(tmp_path)
    assert spool.end(0, b"next") == 2
    spool.close()


def test_a_changed_byte_is_found_and_kept_aside(tmp_path: Path) -> None:
    """U2: a checksum per record; a damaged segment is reported, the others are read."""
    spool = opened(tmp_path, segment_bytes=100)
    for text in (b"a" * 100, b"b" * 100, b"c" * 100):
        spool.end(0, text)
        spool.flush()
    abandon(spool)
    first = min(tmp_path.glob("*.log"))
    data = bytearray(first.read_bytes())
    data[-10] ^= 1
    first.write_bytes(data)
    spool = opened(tmp_path)
    assert len(spool.damaged) == 1
    assert first.with_suffix(".damaged").exists()
    assert [seq for seq, _, _ in entries(spool)] == [2, 3]
    spool.close()


def test_a_directory_belongs_to_one_process(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    with pytest.raises(SpoolError, match="another fairgate with this configuration seems to run"):
        opened(tmp_path)
    spool.close()
    opened(tmp_path).close()


def test_a_place_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError):
        opened(tmp_path / "file" / "spool")


def test_a_disk_without_room_for_the_first_segment_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """U3: a start says which disk is full, and may be tried again in the same process."""
    opened(tmp_path).close()

    def full(file: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(SpoolError, match=f"{tmp_path}: No space"):
        opened(tmp_path)
    monkeypatch.undo()
    opened(tmp_path).close()


def test_a_disk_that_refuses_at_the_end_is_named_and_the_directory_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U3: who reads that a gateway ended badly must know which disk it was; the next process finds what is there."""
    spool = opened(tmp_path)
    spool.end(0, b"a")

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(SpoolError, match=f"{tmp_path}: Input/output error"):
        spool.close()
    monkeypatch.undo()
    again = opened(tmp_path)
    assert [payload for _, _, payload in entries(again)] == [b"a"]
    again.close()


def test_rows_that_a_full_disk_does_not_take_at_the_end_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U3: what is lost is said; of the request that runs there is an entry on the disk."""
    spool = opened(tmp_path)
    running = spool.begin(b"a")
    spool.flush()

    def full(file: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for number in (running, 0, 0):
        spool.end(number, b"b")
    spool.begin(b"c")
    with pytest.raises(SpoolError, match=f"{tmp_path}: No space left on device; 3 rows that waited for room are lost"):
        spool.close()
    monkeypatch.undo()
    again = opened(tmp_path)
    assert [payload for _, payload in again.interrupted] == [b"a"]
    again.close()


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    spool = opened(tmp_path / "spool")
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in (tmp_path / "spool").glob("*.log"))
    spool.close()


def test_a_segment_that_could_not_be_synced_is_synced_again_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U2: an fsync that fails once must not let the rows of a complete segment pass for durable, nor leak its file."""
    spool = opened(tmp_path, segment_bytes=64)
    complete = spool._file
    spool.end(0, b"x" * 64)
    spool.flush()
    assert complete != spool._file
    synced: list[int] = []
    fsync = os.fsync

    def failing(file: int) -> None:
        synced.append(file)
        if synced.count(complete) == 1 and file == complete:
            raise OSError(errno.EIO, "input/output error")
        fsync(file)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="input/output"):
        spool.sync()
    assert spool.read(spool.start, 10)[0] == []
    spool.sync()
    assert synced.count(complete) == 2
    assert [seq for seq, _, _ in spool.read(spool.start, 10)[0]] == [1]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(complete)
    monkeypatch.undo()
    spool.close()


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """U3: half a batch is written, then the disk is full, then it is not."""
    spool = opened(tmp_path)
    real = os.pwrite
    calls = iter([3, None])

    def failing(file: int, data: bytes, offset: int) -> int:
        part = next(calls)
        if part is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[:part], offset)

    for text in (b"a", b"b"):
        spool.end(0, text)
    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(OSError, match="No space"):
        spool.flush()
    monkeypatch.undo()
    spool.end(0, b"c")
    spool.flush()
    assert [payload for _, _, payload in entries(spool)] == [b"a", b"b", b"c"]
    spool.close()


def test_of_many_frames_what_the_disk_took_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U3: whole writes stay, the one that tore is taken back."""
    spool = opened(tmp_path)
    real, writes = os.pwrite, 0

    def failing(file: int, data: bytes, offset: int) -> int:
        nonlocal writes
        writes += 1
        if writes > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data if writes < 3 else data[:5], offset)

    texts = [b"%d" % number * 50_000 for number in range(30)]
    for text in texts:
        spool.end(0, text)
    monkeypatch.setattr(os, "pwrite", failing)
    waiting = spool.unwritten
    with pytest.raises(OSError, match="No space"):
        spool.flush()
    monkeypatch.undo()
    assert 0 < spool.unwritten < waiting
    first = entries(spool)
    assert [payload for _, _, payload in first] == texts[: len(first)]
    spool.flush()
    assert [payload for _, _, payload in entries(spool)] == texts
    assert (spool.unwritten, spool.size) == (0, on_disk(tmp_path))
    spool.close()


@pytest.mark.parametrize("room", [0, 30])
def test_a_segment_whose_head_finds_no_room_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """U3: a full disk takes a part of a write, then refuses. The rows go on in the segment before, and all are there
    after the next start, as is what runs."""
    spool = opened(tmp_path, segment_bytes=300)
    running = [spool.begin(b"runs") for _ in range(3)]
    spool.flush()
    real = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        if file == spool._file:
            return real(file, data, offset)
        if offset:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[:room], offset)

    monkeypatch.setattr(os, "pwrite", full)
    for text in (b"a" * 300, b"b" * 300):
        spool.end(0, text)
        with pytest.raises(OSError, match="No space"):
            spool.flush()
    assert len(list(tmp_path.glob("*.log"))) == 1
    monkeypatch.undo()
    spool.end(0, b"c" * 300)
    spool.flush()
    assert len(list(tmp_path.glob("*.log"))) == 2
    abandon(spool)
    again = opened(tmp_path)
    assert (again.damaged, again.interrupted) == ([], [(number, b"runs") for number in running])
    assert [payload[:1] for _, _, payload in entries(again)] == [b"a", b"b", b"c"]
    again.close()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_history_of_kills_leaves_one_entry_for_each_request(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """U3: begins, ends, flushes, deliveries and kills at random; every flushed begin ends exactly once, or not at all
    if its entry was given up."""
    chance = random.Random(seed)
    directory = tmp_path_factory.mktemp("spool")
    spool = opened(directory, segment_bytes=chance.choice((150, 1000)))
    running: dict[int, bytes] = {}
    delivered: list[Entry] = []
    durable: set[bytes] = set()  # begun and flushed: must end exactly once
    fresh: set[bytes] = set()
    given_up: set[bytes] = set()
    gone: set[bytes] = set()  # given up and flushed: must never end
    position = spool.start
    for step in range(chance.randrange(150)):
        act = chance.random()
        if act < 0.35:
            name = b"r%d" % step
            running[spool.begin(name)] = name
            fresh.add(name)
        elif act < 0.6 and running:
            number = chance.choice(list(running))
            if chance.random() < 0.8:
                spool.end(number, running.pop(number))
            else:
                spool.forget(number)
                given_up.add(running.pop(number))
        elif act < 0.8:
            spool.flush()
            durable |= fresh
            gone |= given_up
            fresh.clear()
            given_up.clear()
        elif act < 0.93:
            spool.sync()
            some, position = spool.read(position, chance.randrange(1, 9))
            delivered += some
            if some:
                spool.release(some[-1][0])
        else:
            abandon(spool)
            spool = opened(directory, segment_bytes=chance.choice((150, 1000)))
            running, position = {}, spool.start
            fresh.clear()
            given_up.clear()
            for number, payload in spool.interrupted:
                spool.end(number, payload)
            spool.flush()
    for number, name in running.items():
        spool.end(number, name)
    spool.flush()
    durable |= fresh
    seen = {seq: payload for seq, _, payload in delivered}
    for seq, _, payload in entries(spool, position):
        assert seen.setdefault(seq, payload) == payload
    assert sorted(seen) == list(range(1, len(seen) + 1))
    assert len(set(seen.values())) == len(seen)
    assert durable - gone - given_up <= set(seen.values())
    assert (gone | given_up).isdisjoint(seen.values())
    spool.close()
