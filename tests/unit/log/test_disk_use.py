"""What the log asks of the disk beside its writes: what it reads twice, what it lets go of."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from linkd.errors import LogDamaged, LogFull
from linkd.log.segment import load_identity
from linkd.log.writer import (
    FILL_BYTES,
    FILL_FREE_BYTES,
    GATHER_BYTES,
    GATHER_SECONDS,
    SMALL_BYTES,
    UNCACHE_BYTES,
    Idle,
    Writer,
)
from tests.support.disk import RecordingFiles, SmallDisk
from tests.support.logs import SegmentBench, append, draft, everything, fetch, received, store

MIB = 1 << 20


class CachingFiles(RecordingFiles):
    """Notes what of a file the page cache is told to let go of."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go: list[tuple[int, int, int]] = []

    def uncache(self, fd: int, at: int, size: int) -> None:
        """Note it, with the file's size at that time."""
        self.let_go.append((at, size, os.fstat(fd).st_size))
        super().uncache(fd, at, size)


class NamingFiles(RecordingFiles):
    """Notes of which file the page cache is told to let go of what."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go: list[tuple[str, int, int]] = []

    def uncache(self, fd: int, at: int, size: int) -> None:
        """Note it."""
        self.let_go.append((str(Path(f"/proc/self/fd/{fd}").readlink()), at, size))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[SegmentBench]:
    one = SegmentBench(tmp_path / "log", files=CachingFiles(), segment_bytes=32 * MIB)
    yield one
    one.close()


def test_the_page_cache_is_told_to_let_go_of_what_is_written_step_by_step(
    bench: SegmentBench,
) -> None:
    for _ in range(140):
        append(bench, draft(bytes(100_000)))
    bench.close()
    let_go = bench.files.let_go
    assert [at for at, _, _ in let_go[1:]] == [at + size for at, size, _ in let_go[:-1]]
    assert let_go[0][0] == 0
    assert all(size >= UNCACHE_BYTES for _, size, _ in let_go)
    assert all(at + size == there for at, size, there in let_go)
    assert len(let_go) == 140 * 100_000 // UNCACHE_BYTES
    bench.open()
    assert fetch(bench, 1)[0].count == 1


def test_the_page_cache_is_told_to_let_go_of_the_rest_of_a_finished_file(tmp_path: Path) -> None:
    """What was written of it after the last whole step stayed for good."""
    files = NamingFiles()
    bench = SegmentBench(tmp_path / "log", files=files, segment_bytes=6 * MIB)
    for _ in range(140):
        append(bench, draft(bytes(100_000)))
    bench.close()
    *finished, last = sorted(bench.path.glob("*.log"))
    assert len(finished) == 2
    for path in finished:
        let_go = [(at, at + size) for name, at, size in files.let_go if name == str(path)]
        assert [end for _, end in let_go[:-1]] == [at for at, _ in let_go[1:]]
        assert (let_go[0][0], let_go[-1][1]) == (0, path.stat().st_size)
    assert all(size >= UNCACHE_BYTES for name, _, size in files.let_go if name == str(last))


def test_after_a_large_commit_more_is_gathered_for_the_next(
    bench: SegmentBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(Writer, "pause", slept.append)
    append(bench, draft(bytes(50_000)))
    assert slept == []
    append(bench, draft(bytes(GATHER_BYTES)))
    append(bench, draft(b"small again"))
    assert slept == [GATHER_SECONDS]


class FillingFiles(RecordingFiles):
    """Notes how large the file was at each commit and after it; may refuse the zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[tuple[int, int]] = []
        self.fills: list[int] = []
        self.no_zeros = False

    def write(self, fd: int, at: int, buffers: Sequence[bytes]) -> None:
        """Note what it is."""
        before = os.fstat(fd).st_size
        if b"".join(buffers).strip(b"\0"):
            super().write(fd, at, buffers)
            self.commits.append((before, os.fstat(fd).st_size))
            return
        self.fills.append(at)
        if self.no_zeros:
            raise OSError(errno.ENOSPC, "no room for zeros")
        super().write(fd, at, buffers)


@pytest.fixture
def filling(tmp_path: Path) -> Iterator[SegmentBench]:
    one = SegmentBench(tmp_path / "log", files=FillingFiles(), segment_bytes=MIB)
    yield one
    one.close()


def test_small_commits_find_room_made_ready_and_the_file_does_not_grow_with_each(
    filling: SegmentBench,
) -> None:
    for _ in range(300):
        append(filling, draft(bytes(1000)))
    filling.close()
    files = filling.files
    grown = [after - before for before, after in files.commits if after > before]
    assert len(files.commits) >= 300
    assert len(grown) <= 10  # the small files, and the first of all, before there is room
    assert 300_000 // FILL_BYTES < len(files.fills) <= 300_000 // (FILL_BYTES // 2) + 1
    (path,) = filling.path.glob("*.log")
    assert path.stat().st_size < 350_000
    filling.open()
    assert filling.log.notices == []
    assert sum(batch.count for batch in everything(filling)) == 300


def test_large_commits_make_no_room_ready(filling: SegmentBench) -> None:
    append(filling, draft(b"small"))
    filling.files.fills.clear()
    for _ in range(40):
        append(filling, draft(bytes(SMALL_BYTES)))
    assert filling.files.fills == []


def test_a_finished_file_ends_with_what_it_holds(filling: SegmentBench) -> None:
    for _ in range(5):
        append(filling, draft(b"small"))
    filling.log.trim(filling.log.next - 1)
    for _ in range(300):
        append(filling, draft(bytes(4000)))
    *finished, last = sorted(filling.path.glob("*.log"))
    assert finished
    sizes = {segment.number: segment.size for segment in filling.log._segment_set.segments}
    for path in finished:
        assert path.stat().st_size == sizes[int(path.stem)]
    assert last.stat().st_size > sizes[int(last.stem)]


def test_where_the_disk_has_no_room_for_zeros_commits_append(filling: SegmentBench) -> None:
    filling.files.no_zeros = True
    for _ in range(200):
        append(filling, draft(bytes(1000)))
    assert 1 <= len(filling.files.fills) <= 4  # asked again now and then, not each time
    assert len(filling.files.commits) >= 200
    assert filling.log.full is None


def test_a_disk_that_has_little_left_is_not_filled_with_zeros(filling: SegmentBench) -> None:
    append(filling, draft(b"a"))
    filling.files.free = FILL_FREE_BYTES - 1
    filling.restart()
    filling.files.fills.clear()
    append(filling, draft(b"b"))
    assert filling.files.fills == []


def test_a_fetch_reads_little_more_than_was_asked_for(
    bench: SegmentBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(60):
        append(bench, draft(bytes(50_000)))
    read: list[int] = []
    pread: Any = os.pread

    def counting(fd: int, size: int, at: int) -> bytes:
        found: bytes = pread(fd, size, at)
        read.append(len(found))
        return found

    monkeypatch.setattr(os, "pread", counting)
    position = 1
    while position <= 40:
        batches = fetch(bench, position, 250_000)
        assert batches[0].offset == position
        position = batches[-1].next
    assert position == 41
    assert sum(read) < 40 * 50_000 * 1.5


def test_what_nobody_thought_of_fails_one_fetch_and_not_those_behind_it(
    bench: SegmentBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        append(bench, draft(bytes(50_000)))

    def wrong(*_: object) -> None:
        raise ValueError("what is this?")

    with monkeypatch.context() as patched:
        patched.setattr("linkd.log.reader.batch_of", wrong)
        told = fetch(bench, 1)
    assert isinstance(told, LogDamaged)
    assert "ValueError: what is this?" in str(told)
    assert fetch(bench, 1)[0].offset == 1


@pytest.fixture
def small(tmp_path: Path) -> Iterator[SegmentBench]:
    """A log on a disk of 24 MiB, far below its `max_bytes`."""
    folder = tmp_path / "log"
    folder.mkdir()
    one = SegmentBench(folder, files=SmallDisk(folder, 24 * MIB), min_free_bytes=4 * MIB)
    yield one
    one.close()


def fill(bench: SegmentBench, size: int, number: int) -> list[Any]:
    """Append records, more slowly than the disk is measured."""
    got: list[Any] = []
    for _ in range(number):
        got += append(bench, draft(bytes(size)))
        bench.now[0] += 0.3
        bench.turns.now()
    return got


def test_a_small_disk_does_not_stall_a_log_that_owes_nothing(small: SegmentBench) -> None:
    """Publishes were refused for ever: only `max_bytes` made old segments go."""
    for _ in range(50):
        got = fill(small, 400_000, 3)
        assert [one for one in got if isinstance(one, Exception)] == []
        small.log.release(small.log.next)
        settle(small)
    assert small.log.first > 1
    assert small.log.next == 151


def settle(bench: SegmentBench) -> None:
    """Wait until the files are gone that no snapshot needs."""
    log = bench.log
    bench.until(lambda: not log._retention.freed_bytes and not log._roller.held_bytes > 4096)


def test_deleted_segments_go_before_other_work_on_files(small: SegmentBench) -> None:
    """Publishes were refused while the reader thread wrote indexes ahead of each deletion."""
    log, go, order, oldest = small.log, threading.Event(), list[str](), list[bool]()
    fill(small, 400_000, 12)
    small.until(lambda: not log._snapshots.busy)
    log._reader.work(lambda: bool(go.wait(10.0)))
    for number in range(20):
        log._reader.work(lambda number=number: order.append(f"work {number}"))
    unlink = small.files.unlink

    def noting(path: Path) -> None:
        identity = load_identity(small.path)
        if path.suffix == ".log" and path.exists():
            oldest.append(identity is not None and identity.oldest > int(path.stem))
        unlink(path)
        order.append(path.suffix)

    small.files.unlink = noting
    log.trim(log.next)
    small.until(lambda: log._retention.freed_bytes)
    go.set()
    settle(small)
    small.until(lambda: "work 19" in order)
    assert order.index(".log") < order.index("work 0")
    assert all(oldest)  # or a start would miss them


def test_a_segment_deleted_before_its_index_was_written_gets_none(small: SegmentBench) -> None:
    log, go = small.log, threading.Event()
    log._reader.work(lambda: bool(go.wait(10.0)))
    fill(small, 400_000, 12)
    log.trim(log.next)
    small.until(lambda: log._retention.freed_bytes)
    go.set()
    settle(small)
    done: list[bool] = []
    log._reader.work(lambda: done.append(True))
    small.until(lambda: done)
    small.turns.now()
    segments = {path.stem for path in small.path.glob("*.log")}
    assert {path.stem for path in small.path.glob("*.idx")} <= segments
    assert log._segment_set.beside_bytes == sum(
        path.stat().st_size for path in small.path.glob("*.idx")
    )


def test_free_space_measured_before_a_deletion_does_not_count(small: SegmentBench) -> None:
    """A report that the deletion overtook refused publishes until the next one, a second later."""
    log = small.log
    fill(small, 400_000, 12)
    before = time.monotonic()
    log.trim(log.next)
    settle(small)
    small.until(lambda: log._deleted_at > before)
    log._report(Idle(1, before))
    assert log.full is None
    log._report(Idle(1, time.monotonic()))
    assert "the disk has 1 bytes left" in log.full


def test_what_is_owed_stays_on_a_small_disk(small: SegmentBench) -> None:
    got = fill(small, 400_000, 80)
    refused = [one for one in got if isinstance(one, Exception)]
    assert "the disk has" in str(refused[0])
    kept = 80 - len(refused)
    assert (small.log.first, small.log.next) == (1, kept + 1)
    for number in range(1, 4):  # what a peer sends is stored all the same
        assert store(small, received(number, number + 1, bytes(400_000)))[0].count == 1
    small.log.release(small.log.next)
    small.until(lambda: small.log.full is None and small.log._free_bytes > 8 * MIB)
    assert not [one for one in fill(small, 400_000, 5) if isinstance(one, Exception)]


def test_a_disk_that_others_filled_costs_what_nobody_is_owed_and_no_more(
    small: SegmentBench,
) -> None:
    fill(small, 400_000, 20)
    small.log.release(11)
    small.files.others = 12 * MIB
    small.until(lambda: small.log.first > 1)
    settle(small)
    assert 2 < small.log.first <= 11
    assert small.log.next == 21


def test_a_segment_that_fills_a_small_disk_alone_goes_once_nobody_is_owed(
    small: SegmentBench,
) -> None:
    append(small, draft(bytes(5 * MIB)))
    small.files.others = 16 * MIB
    small.until(lambda: small.log.full is not None)
    small.log.release(2)
    small.until(lambda: small.log.full is None)
    assert small.log.first == 2
    assert append(small, draft(b"x"))[0].offset == 2


def test_segments_are_small_on_a_small_disk(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    disk = SmallDisk(folder, 160 * MIB)
    one = SegmentBench(folder, files=disk, segment_bytes=64 * MIB)
    assert one.log._segment_bytes <= 10 * MIB
    one.close()


def test_a_commit_to_a_file_that_was_deleted_is_refused(bench: SegmentBench) -> None:
    """Also where the publish came before the log had noticed."""
    assert append(bench, draft(b"1"))[0].offset == 1
    max(bench.path.glob("*.log")).unlink()
    writer, end = bench.log._writer, time.monotonic() + 10.0
    while not writer._gone:  # the writer has noticed, and its report is not taken yet
        assert time.monotonic() < end
        time.sleep(0.01)
    assert isinstance(append(bench, draft(b"2"))[0], LogFull)
    assert [notice.event for notice in bench.log.notices][-1:] == ["log.gone"]
