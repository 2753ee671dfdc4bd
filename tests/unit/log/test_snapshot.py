"""Snapshots of the state: files of their own, made of what is on disk, two of them kept."""

from __future__ import annotations

import errno
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from linkd.errors import StateTooNew
from linkd.log import open_cursors, snapshot, verify
from linkd.log.commit import ignore
from linkd.log.files import DiskFiles
from linkd.log.frame import BATCH, CHANGES, STATE, frame_prefix
from linkd.log.frame import HEAD as FRAME_HEAD
from linkd.log.interface import UNOWNED, Appended, PeerCursor
from linkd.log.origins import KnownEpoch, KnownLog, OriginsSnapshot
from linkd.log.reader import CorruptSegment, walk_changes
from linkd.log.recovery import Found, recover
from linkd.log.segment import CARRYING, FORMAT, SegmentHead, read_head, segment_path
from linkd.log.snapshot import (
    Base,
    SnapshotHead,
    Snapshots,
    Stopped,
    dissolve,
    read_snapshot,
    read_state,
    snapshot_numbers,
    snapshot_path,
    write_snapshot,
)
from linkd.log.state import Snapshot, State
from linkd.log.writer import FILL_BYTES
from linkd.protocol.peer import EpochEnd
from linkd.protocol.records import Origin, Producer
from tests.support.disk import RecordingFiles, rebuild
from tests.support.logs import (
    SegmentBench,
    append,
    bodies,
    draft,
    everything,
    numbered,
    received,
    store,
    unpack,
)

DATA = Path(__file__).with_name("data")
SMALL = 2048


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[SegmentBench]:
    one = SegmentBench(tmp_path / "log", segment_bytes=SMALL)
    yield one
    one.close()


def quiet(bench: SegmentBench) -> None:
    """Wait until no snapshot is made and no file waits for one."""
    snapshots, succession = bench.log._snapshots, bench.log._roller
    bench.until(
        lambda: not snapshots.busy and not [one for one in succession.held if one.first < one.next]
    )


def found_in(folder: Path) -> Found:
    """Return what a start finds."""
    return recover(folder, DiskFiles(), lambda: 1_700_000_000.0)


def shown(state: State) -> list[Snapshot]:
    """Return all of a state, whatever the order in which it came."""
    whole = list(state.slices())
    return sorted(whole, key=repr)


def test_the_state_is_the_same_by_each_snapshot_and_by_all_frames(bench: SegmentBench) -> None:
    for number in range(1, 60):
        append(bench, draft(bytes(40), producer=numbered("p", number)))
        store(bench, received(number, number + 1, b"x", channel=f"c{number % 7}"))
    quiet(bench)
    bench.close()
    folder, log = bench.path, bench.log.id
    numbers = snapshot_numbers(folder)
    assert len(numbers) == 2
    found = found_in(folder)
    assert [base.number for base in found.bases] == numbers
    assert found.state is not None
    snapshot_path(folder, numbers[1]).unlink()
    older = found_in(folder)
    assert [told.event for told in older.notices] == []
    assert older.state is not None
    assert shown(older.state) == shown(found.state)
    snapshot_path(folder, numbers[0]).unlink()
    none = found_in(folder)
    assert none.state is not None
    assert none.state.cursors.get("hub") == (log and "hublog", (EpochEnd("e1", 60),))
    assert shown(none.state) == shown(found.state)
    bench.open()


def test_cursors_are_the_same_by_all_frames_at_once_as_step_by_step(bench: SegmentBench) -> None:
    at = {"hub": 1, "other": 1}
    for number in range(120):
        peer, epoch = ("hub", "other")[number % 3 // 2], f"e{number // 30}"
        step = received(at[peer], at[peer] + 1, b"x", peer=peer, log=f"{peer}log", epoch=epoch)
        store(bench, step)
        at[peer] += 1
        if number == 50:
            done: list[Any] = []
            bench.log.set_cursor("hub", None, done.append)
            bench.until(lambda done=done: done)
        if number == 80:
            at["other"] = 1
            store(bench, received(1, 2, b"y", peer="other", log="newlog", epoch="n"))
            at["other"] = 2
            store(bench, received(2, 3, b"y", peer="other", log="newlog", epoch="n"))
            place = bench.log.state.cursors.get("other")
            assert place == ("newlog", (EpochEnd("n", 3),))
            bench.log.set_cursor("other", None, ignore)
            at["other"] = 1
    live = {peer: bench.log.state.cursors.get(peer) for peer in at}
    quiet(bench)
    bench.close()
    for path in bench.path.glob("*.state"):
        path.unlink()
    found = found_in(bench.path)
    assert found.state is not None
    assert len(found.segments) > 3
    assert {peer: found.state.cursors.get(peer) for peer in at} == live
    assert not found.state.undo
    bench.open()


def test_nothing_acknowledged_is_lost_by_a_crash_between_any_two_writes(tmp_path: Path) -> None:
    files, rng = RecordingFiles(), Random(3)
    bench = SegmentBench(tmp_path / "log", segment_bytes=SMALL, files=files)
    settled: list[tuple[int, int, int]] = []
    for number in range(1, 90):
        (done,) = append(bench, draft(b"%d" % number, producer=numbered("p", number)))
        store(bench, received(number, number + 1, bytes(100)))
        assert isinstance(done, Appended)
        settled.append((len(files.steps), number, done.offset))
        if number % 15 == 0:
            bench.log.trim(bench.log.next)
        if number % 10 == 0:
            quiet(bench)
    bench.close()
    steps = list(files.steps)
    made = [step for step in steps if step[0] == "rename" and str(step[2]).endswith(".state")]
    assert len(made) > 10
    for cut in range(settled[0][0], len(steps)):
        folder = tmp_path / "found"
        folder.mkdir()
        rebuild(folder, bench.path, steps, cut, rng)
        found = found_in(folder)
        state = found.state
        assert state is not None
        (_, number, offset) = max(one for one in settled if one[0] <= cut)
        assert not [told for told in found.notices if told.level == "error"]
        place = state.cursors.get("hub")
        assert place is not None
        assert place[1][-1].next >= number + 1
        assert state.next > offset
        assert state.producers.stored(Producer("p", number)) == (offset, 1)
        ((low, last),) = [state.origins.intervals("hublog", "e1", "orders")]
        assert (low, last >= number) == (1, True)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_a_large_state_costs_no_segment_for_each_record(bench: SegmentBench) -> None:
    """It lay in the head of each segment, and a segment that began above its bound rolled again."""
    for number in range(1, 200):
        store(bench, received(number, number + 1, b"1", channel=f"x.{'b' * 200}{number:04d}"))
    quiet(bench)
    assert bench.log._snapshots.bases[-1].weight > 10 * SMALL
    before = bench.log._segment_set.segments[-1].number
    for number in range(200, 240):
        store(bench, received(number, number + 1, b"1"))
    assert bench.log._segment_set.segments[-1].number - before <= 6
    heads = [read_head(path) for path in bench.path.glob("*.log")]
    assert all(len(frame.records) == 0 for _, frame in heads)


def test_a_snapshot_is_made_when_the_log_has_grown_by_its_size(tmp_path: Path) -> None:
    files = RecordingFiles()
    bench = SegmentBench(tmp_path / "log", segment_bytes=SMALL, files=files)
    for number in range(1, 400):
        store(bench, received(number, number + 1, b"1", channel=f"x.{'b' * 200}{number:04d}"))
    quiet(bench)
    bench.close()
    written: dict[str, int] = {}
    names: dict[Any, str] = {}
    for step in files.steps:
        if step[0] == "create":
            names[step[2]] = Path(step[1]).suffixes[0]
        elif step[0] == "write" and any(step[3]):
            kind = names[step[1]]
            written[kind] = written.get(kind, 0) + len(step[3])
    assert written[".state"] <= written[".log"] // 2


def test_an_older_snapshot_serves_for_a_damaged_one(bench: SegmentBench) -> None:
    for number in range(1, 60):
        append(bench, draft(bytes(100), producer=numbered("p", number)))
    quiet(bench)
    bench.close()
    older, newest = snapshot_numbers(bench.path)
    path = snapshot_path(bench.path, newest)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"{path}: this snapshot of the state is damaged" in verify(bench.path).damage
    log = bench.open()
    assert [(told.level, path.name in told.detail) for told in log.notices] == [("warn", True)]
    assert append(bench, draft(b"x", producer=numbered("p", 59)))[0].duplicate
    quiet(bench)
    assert verify(bench.path).sound
    append(bench, draft(bytes(SMALL)))
    append(bench, draft(bytes(SMALL)))
    bench.until(lambda: len(snapshot_numbers(bench.path)) == 2)
    assert older in snapshot_numbers(bench.path)


def test_no_snapshot_at_all_is_an_error_only_where_segments_have_gone(bench: SegmentBench) -> None:
    for number in range(1, 60):
        append(bench, draft(bytes(100), producer=numbered("p", number)))
    quiet(bench)
    bench.log.trim(20)
    quiet(bench)
    bench.close()
    for number in snapshot_numbers(bench.path):
        snapshot_path(bench.path, number).write_bytes(b"")
    log = bench.open()
    assert [told.level for told in log.notices] == ["warn", "warn", "error"]
    assert "no snapshot of the state can be read" in log.notices[-1].detail
    assert append(bench, draft(b"x", producer=numbered("p", 59)))[0].duplicate
    assert append(bench, draft(b"x", producer=numbered("p", 61)))[0].count == 1


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's files, while a thread may delete some."""
    size = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def test_files_of_trimmed_segments_go_once_no_snapshot_needs_them(bench: SegmentBench) -> None:
    for _ in range(12):
        append(bench, draft(bytes(1000)))
    assert bench.log.trim(bench.log.next) == 12
    bench.until(lambda: bench.log.first == 13)
    quiet(bench)
    bench.until(lambda: len(list(bench.path.glob("*.log"))) <= 2)
    bench.until(lambda: size_of(bench.path) < FILL_BYTES + 3 * SMALL)


def test_a_segment_that_is_dropped_does_not_come_back(bench: SegmentBench) -> None:
    """Its file may still be there for a snapshot when the host goes down."""
    for _ in range(12):
        append(bench, draft(bytes(1000)))
    bench.log._snapshots.busy = True
    bench.log.trim(9)
    assert bench.log._roller.held_bytes > 0
    bench.log._reader.work(lambda: None)
    bench.close()
    log = bench.open()
    assert log.first == 9 or log.first > 1
    assert log._roller.held
    assert log.size_bytes > log._segment_set.size
    first = log.first
    quiet(bench)
    assert not log._roller.held
    bench.restart()
    assert bench.log.first == first
    assert bench.log.notices == []


def test_a_disk_that_refuses_a_snapshot_is_named_once_and_asked_again(tmp_path: Path) -> None:
    class Refusing(DiskFiles):
        refuses = True

        def open(self, path: Path, *, create: bool = False) -> int:
            if self.refuses and ".state" in path.name:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return super().open(path, create=create)

    files = Refusing()
    bench = SegmentBench(tmp_path / "log", segment_bytes=SMALL, files=files)
    told: list[Any] = []
    bench.log.on_notice.append(told.append)
    for _ in range(3):
        for _ in range(4):
            append(bench, draft(bytes(1000)))
        bench.until(lambda: not bench.log._snapshots.busy)
        bench.now[0] += 10.0
    assert [one.event for one in told] == ["log.disk-failed"]
    assert "No space left" in told[0].detail
    assert snapshot_numbers(bench.path) == []
    files.refuses = False
    bench.now[0] += 10.0
    append(bench, draft(bytes(3000)))
    append(bench, draft(bytes(3000)))
    bench.until(lambda: snapshot_numbers(bench.path))
    bench.close()


def test_a_segment_that_stands_in_the_way_is_repaired(bench: SegmentBench) -> None:
    bench.log._snapshots.busy = True
    for number in range(1, 30):
        append(bench, draft(bytes(100), producer=numbered("p", number)))
    first = min(bench.path.glob("*.log"))
    content = bytearray(first.read_bytes())
    content[400] ^= 1
    first.write_bytes(content)
    told: list[Any] = []
    bench.log.on_notice.append(told.append)
    bench.log._snapshots.changes.forget(99)  # as if another run had written it
    bench.log._snapshots.busy = False
    bench.log._keep_snapshots()
    bench.until(lambda: told)
    assert told[0].event == "log.damaged"
    bench.now[0] += 10.0
    bench.until(lambda: snapshot_numbers(bench.path))


@pytest.mark.parametrize("is_missing", [False, True])
def test_the_next_snapshot_is_made_of_the_older_one_where_the_newest_is_bad(
    bench: SegmentBench, is_missing: bool
) -> None:
    told: list[Any] = []
    bench.log.on_notice.append(told.append)
    for number in range(1, 60):
        append(bench, draft(bytes(100), producer=numbered("p", number)))
    quiet(bench)
    newest = snapshot_numbers(bench.path)[-1]
    if is_missing:
        snapshot_path(bench.path, newest).unlink()
    else:
        snapshot_path(bench.path, newest).write_bytes(b"")
    for number in range(60, 90):
        append(bench, draft(bytes(100), producer=numbered("p", number)))
    bench.until(lambda: told or snapshot_numbers(bench.path)[-1] > newest)
    assert told == []
    quiet(bench)
    made = bench.log._snapshots.bases[-1]
    state, _, _ = read_state(bench.path, made, bench.log.id, bench.log._snapshots._seed, go_on)
    assert state.producers.stored(Producer("p", 59)) == (59, 1)


def test_bases_that_are_all_bad_are_an_error(bench: SegmentBench) -> None:
    told: list[Any] = []
    bench.log.on_notice.append(told.append)
    for number in range(1, 60):
        append(bench, draft(bytes(100), producer=numbered("p", number)))
    quiet(bench)
    for number in snapshot_numbers(bench.path):
        snapshot_path(bench.path, number).write_bytes(b"")
    for number in range(60, 90):
        append(bench, draft(bytes(100), producer=numbered("p", number)))
    bench.until(lambda: told)
    assert told[0].event == "log.disk-failed"
    assert "no frame at byte" in told[0].detail


def test_a_snapshot_that_fails_in_an_unforeseen_way_is_an_error_and_is_tried_again(
    bench: SegmentBench,
) -> None:
    def slices() -> Iterator[Snapshot]:
        raise ValueError("no such slice")
        yield Snapshot()

    told: list[Any] = []
    bench.log.on_notice.append(told.append)
    carried, bench.log.carried = bench.log.carried, slices
    for _ in range(4):
        append(bench, draft(bytes(1000)))
    bench.until(lambda: told)
    assert [one.event for one in told] == ["log.disk-failed"]
    assert "ValueError: no such slice" in told[0].detail
    assert not list(bench.path.glob("*.state*"))
    bench.log.carried = carried
    bench.now[0] += 10.0
    append(bench, draft(bytes(3000)))
    append(bench, draft(bytes(3000)))
    bench.until(lambda: snapshot_numbers(bench.path))


def test_closing_stops_a_snapshot_under_way(bench: SegmentBench) -> None:
    began, go_on = threading.Event(), threading.Event()

    def slices() -> Iterator[Snapshot]:
        began.set()
        go_on.wait(5.0)
        while True:
            yield Snapshot(acks=(("x", 1, 1),))

    bench.log.carried = slices
    for _ in range(4):
        append(bench, draft(bytes(1000)))
    began.wait(5.0)
    threading.Timer(0.05, go_on.set).start()
    bench.close()
    assert snapshot_numbers(bench.path) == []
    assert not list(bench.path.glob("*.part"))
    bench.open()
    bench.until(lambda: snapshot_numbers(bench.path))


@pytest.mark.parametrize("behind", [3, 4])
def test_a_snapshot_behind_which_much_has_come_is_made_without_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    """Nine segments were behind the newest one under load, and a start folded all of them."""
    waited = list[float]()
    monkeypatch.setattr(snapshot, "WORK_SECONDS", -1.0)
    monkeypatch.setattr(snapshot, "HURRY_SECONDS", -1.0)

    class Alone(Snapshots):
        def _make(self, *_: Any) -> Base:
            monkeypatch.setattr(self._stopping, "wait", waited.append)
            self._pause()
            return Base(9, 1)

    ended = threading.Event()
    one = Alone(tmp_path, DiskFiles(), "log", 5, lambda call: (call(), ended.set()), [Base(3, 1)])
    one.changes.begin(3 + behind)  # so long as it is made, what comes behind it counts too
    one.make(9, (), lambda state: None, (), lambda error: None)
    assert ended.wait(5.0)
    assert waited == [0.0 if behind > snapshot.HURRY_SEGMENTS else snapshot.PAUSE_SECONDS]


def test_a_start_that_had_much_to_fold_writes_a_snapshot_itself(bench: SegmentBench) -> None:
    """A daemon that was restarted under load never came to the end of one: starts grew longer."""
    bench.log._snapshots.busy = True
    for number in range(1, 80):
        append(bench, draft(bytes(100), producer=numbered("p", number)))
    assert len(bench.log._segment_set.segments) > 4
    last = bench.log._segment_set.segments[-1].number
    bench.close()
    found_before = found_in(bench.path).state
    assert found_before is not None
    bench.open()
    assert last + 1 in snapshot_numbers(bench.path)
    assert bench.log._segment_set.segments[-1].number == last + 1
    bench.log._snapshots.busy = True
    bench.close()
    found = found_in(bench.path)
    assert found.bases[-1].number == last + 1
    assert found.state is not None
    assert list(found.state.producers.known.items()) == list(found_before.producers.known.items())
    assert not [told for told in found.notices if told.level == "error"]
    bench.open()
    assert append(bench, draft(b"x", producer=numbered("p", 79)))[0].duplicate
    assert append(bench, draft(b"x"))[0].offset == 80


@pytest.mark.parametrize("most_bytes", [snapshot.MOST_BYTES, 400])
def test_a_segment_of_large_records_is_not_read_again_for_a_snapshot(
    bench: SegmentBench, monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    """Reading and checking them took as long again as writing them."""
    walked = list[Path]()

    def walk(path: Path, *arguments: Any) -> Any:
        walked.append(path)
        return walk_changes(path, *arguments)

    monkeypatch.setattr("linkd.log.segment.walk_changes", walk)
    monkeypatch.setattr(snapshot, "MOST_BYTES", most_bytes)
    for number in range(1, 20):
        append(bench, draft(bytes(300), producer=numbered("p", number)))
        store(bench, received(number, number + 1, b"x", channel=f"c{number % 7}"))
    quiet(bench)
    assert bool(walked) == (most_bytes == 400)
    assert len(bench.log._snapshots.changes._kept) <= 2
    bench.close()
    made = found_in(bench.path)
    for path in bench.path.glob("*.state"):
        path.unlink()
    read = found_in(bench.path)
    assert made.state is not None
    assert read.state is not None
    assert shown(made.state) == shown(read.state)
    bench.open()


def test_of_many_segments_only_the_newest_are_kept() -> None:
    changes = snapshot.Changes()
    for number in range(1, 20):
        changes.begin(number)
        changes.note((BATCH, 0, b"plain", b""), 1.0)
        changes.note((BATCH, CHANGES, b"head", b""), 1.0)
    newest = range(20 - snapshot.MOST_SEGMENTS, 19)
    assert changes.before(19) == {number: [(BATCH, 1.0, b"head")] for number in newest}
    changes.forget(19)
    assert changes.before(19) == {}


# the format


def test_the_state_that_format_1_carried_in_its_heads_is_read(tmp_path: Path) -> None:
    unpack(DATA / "format-1.tar.gz", tmp_path)
    folder = tmp_path / "state"
    bench = SegmentBench(folder / "log", segment_bytes=4096)
    log = bench.log
    assert [told.event for told in log.notices] == ["log.clock-doubtful"]  # it is from 2023
    assert (log.id, log.first, log.next) == ("03239fd3d5cd2fbb", 1, 109)
    assert len(log.state.epochs()) == 4
    cursor = log.cursor("hub")
    assert cursor is not None
    assert (cursor.log, cursor.next) == ("hublog", 37)
    assert append(bench, draft(b"x", channel="made", producer=numbered("worker-1", 36)))[
        0
    ].duplicate
    assert append(bench, draft(b"x", ids=("id36",)))[0].duplicate
    assert store(bench, received(36, 37, b"hub-36", channel="commands"))[0].duplicate
    # One highest offset proves nothing of what is below it; all frames prove theirs.
    both = received(1, 3, b"30", b"31", channel="commands", peer="b", log="b", origin=FAR)
    assert store(bench, both) == [Appended(109, 0, True)]
    assert len(bodies(everything(bench))) == 108
    cursors = open_cursors(log, folder, bench.turns.post)
    assert cursors.peers == {"hub": PeerCursor("hub", 1, 7)}
    assert list(cursors.consumers()) == [(UNOWNED, "billing")]
    closed: list[bool] = []
    cursors.close(lambda: closed.append(True))
    bench.until(lambda: closed)
    # What is added lies in a segment of the newest format, which older code refuses by name.
    last = max(bench.path.glob("*.log"))
    assert read_head(last)[0].format == FORMAT == 2
    bench.restart()
    assert (bench.log.next, bench.log.notices) == (109, [])
    quiet(bench)
    bench.close()


def test_the_cursors_that_a_head_of_format_1_carried_serve_for_a_lost_file(tmp_path: Path) -> None:
    unpack(DATA / "format-1.tar.gz", tmp_path)
    folder = tmp_path / "state"
    (folder / "cursors.db").unlink()
    bench = SegmentBench(folder / "log", segment_bytes=4096)
    cursors = open_cursors(bench.log, folder, bench.turns.post)
    assert cursors.peers == {"hub": PeerCursor("hub", 1, 7)}
    assert cursors.consumers()[UNOWNED, "billing"].next == 5
    closed: list[bool] = []
    cursors.close(lambda: closed.append(True))
    bench.until(lambda: closed)
    bench.close()


FAR = Origin("hub", "hublog", "e1", 30)


def go_on() -> None:
    """Make no pause."""


HEAD = SnapshotHead(1, "0.1", "log", 7)


def write(folder: Path, *slices: Snapshot, head: SnapshotHead = HEAD) -> Path:
    """Write a snapshot; return its file."""
    write_snapshot(DiskFiles(), folder, head, 5, slices, go_on)
    return snapshot_path(folder, head.number)


def test_a_snapshot_is_whole_or_damage(tmp_path: Path) -> None:
    parts = [Snapshot(log="log", next=9), Snapshot(acks=(("hub", 1, 5),))]
    path = write(tmp_path, *parts)
    assert [part for part, _ in read_snapshot(tmp_path, 7, "log", 5)] == parts
    whole = path.read_bytes()
    assert path.stat().st_size == len(whole)
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptSegment):
            list(read_snapshot(tmp_path, 7, "log", 5))
    path.write_bytes(whole + whole[-44:])
    with pytest.raises(CorruptSegment):
        list(read_snapshot(tmp_path, 7, "log", 5))
    path.write_bytes(whole)
    for log, number, seed in (("other", 7, 5), ("log", 7, 6)):
        with pytest.raises(CorruptSegment):
            list(read_snapshot(tmp_path, number, log, seed))
    path.rename(snapshot_path(tmp_path, 8))
    with pytest.raises(CorruptSegment):
        list(read_snapshot(tmp_path, 8, "log", 5))


def test_a_snapshot_is_written_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [Snapshot(log="log", next=number) for number in range(1, 100)]
    whole = write(tmp_path, *parts).read_bytes()
    monkeypatch.setattr(snapshot, "WRITE_BYTES", len(whole) // 4)
    files = RecordingFiles()
    base = write_snapshot(files, tmp_path, HEAD, 5, parts, go_on)
    writes = [len(step[3]) for step in files.steps if step[0] == "write"]
    assert len(writes) == 4
    assert sum(writes) == base.size == len(whole)
    assert snapshot_path(tmp_path, 7).read_bytes() == whole
    assert [part for part, _ in read_snapshot(tmp_path, 7, "log", 5)] == parts


def test_a_state_that_a_head_carries_and_that_is_none_is_damage(tmp_path: Path) -> None:
    head = msgspec.msgpack.encode(SegmentHead(CARRYING, "0.1", 7, "log", "edge", 9, 0, 0, 5))
    path = segment_path(tmp_path, 7)
    path.write_bytes(frame_prefix((FRAME_HEAD, 0, head, b"\xc1"), 0, 0.0, 0.0) + head + b"\xc1")
    assert read_head(path)[0].format == CARRYING
    with pytest.raises(CorruptSegment) as caught:
        read_state(tmp_path, Base(7), "log", 5, go_on)
    assert (caught.value.path, caught.value.at) == (path, 0)


def test_a_snapshot_of_a_newer_linkd_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, head=SnapshotHead(2, "0.9", "log", 7))
    with pytest.raises(StateTooNew, match=r"^/\S+ was written by a newer linkd .*0\.9 or later"):
        list(read_snapshot(tmp_path, 7, "log", 5))


def test_a_slice_that_is_none_is_damage(tmp_path: Path) -> None:
    contents = [msgspec.msgpack.encode(HEAD), b"\xc1"]
    frames = [(frame_prefix((STATE, 0, one, b""), 0, 0.0, 0.0, 5), one) for one in contents]
    snapshot_path(tmp_path, 7).write_bytes(b"".join(part for frame in frames for part in frame))
    with pytest.raises(CorruptSegment):
        list(read_snapshot(tmp_path, 7, "log", 5))


def test_a_snapshot_that_the_disk_refuses_leaves_nothing(tmp_path: Path) -> None:
    files = RecordingFiles()
    files.refuse = errno.ENOSPC
    with pytest.raises(OSError, match="No space"):
        write_snapshot(files, tmp_path, HEAD, 5, (), go_on)
    files.refuse = 0

    def stopped() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        write_snapshot(files, tmp_path, HEAD, 5, (Snapshot(),), stopped)
    assert list(tmp_path.iterdir()) == []


def test_origins_are_the_same_from_slices_of_any_size() -> None:
    state = State("log")
    for number in range(1, 300):
        log, epoch = f"log{number % 3}", f"e{number % 2}"
        batch = received(number, number + 1, b"x", channel=f"c{number % 20}", log=log, epoch=epoch)
        state.admit(batch, float(number))
    state.origins._folded.add("far", ("gone", "e"))
    state.origins._logs["log1"].epochs["e0"].floors["c1"] = 4
    state.origins._begin("empty", "far")
    whole = list(state.slices())
    for size in (1, 2, 7, 10_000):
        again = State("log")
        for part in state.origins.slices(size):
            again.origins.add(part)
        assert again.origins.entries == state.origins.entries
        assert again.origins.running == state.origins.running
        assert list(again.slices())[1:] == whole[1:]
    assert isinstance(whole[1].origins, OriginsSnapshot)
    assert isinstance(whole[1].origins.logs["log1"].epochs["e0"], KnownEpoch)


def test_what_is_taken_apart_is_empty_and_goes_in_small_pieces() -> None:
    state, left = State("log"), list[int]()
    for number in range(1, 3000):
        state.producers.note(numbered(f"p{number}", 1), number, (1,), 1.0, [])
    for number in range(1, 100):
        state.admit(received(number, number + 1, b"x", log=f"log{number}"), 1.0)
    state.admit(received(100, 101, b"x"), 1.0)
    state.put("hub", ("hublog", ()))
    tables = list(state.tables())

    def pause() -> None:
        left.append(sum(map(len, tables)))

    pause()
    dissolve(state, pause)
    assert left[-1] == 0
    assert max(before - after for before, after in pairwise(left)) <= 32
    assert len(state.producers) == 0
    assert state.cursors == {}
    assert state.origins.node("hublog") is None
    assert list(state.origins.tables()) == [{}] * 4  # no log is left, nor what was in it


MANY = 1_000_000


@pytest.mark.slow
@pytest.mark.timing
def test_a_large_snapshot_holds_the_interpreter_for_a_moment_only(tmp_path: Path) -> None:
    """The time of the processor between two pauses, while 1,000,000 entries are read and written.

    A busy machine doubles it.
    """
    gc.disable()
    try:
        _hold_the_interpreter(tmp_path)
    finally:
        gc.enable()


def _hold_the_interpreter(tmp_path: Path) -> None:
    before = snapshot_path(tmp_path, 1)
    write_snapshot(
        DiskFiles(),
        tmp_path,
        SnapshotHead(1, "0.1", "log", 1),
        5,
        (
            Snapshot(
                origins=OriginsSnapshot(
                    {"log": KnownLog({"e": KnownEpoch({f"c{n}.{k}": (n, n) for k in range(256)})})}
                )
            )
            for n in range(MANY // 256)
        ),
        go_on,
    )
    size = before.stat().st_size
    live, _, _ = read_state(tmp_path, Base(1, size), "log", 5, go_on)
    assert live.origins.entries > MANY * 0.99
    made, held = threading.Event(), list[float]()

    class Alone(Snapshots):
        def _fold(self, number: int, segments: Any, kept: Any) -> State:
            return read_state(self._folder, self.bases[0], "log", 5, self._pause)[0]

        def _pause(self) -> None:
            held.append(time.thread_time())

    one = Alone(tmp_path, DiskFiles(), "log", 5, lambda call: (call(), made.set()), [Base(1, size)])
    one.make(2, (), lambda state: None, (), lambda error: None)
    assert made.wait(60.0)
    assert snapshot_path(tmp_path, 2).stat().st_size > size // 2
    assert live.origins.entries > MANY * 0.99
    turns = sorted(after - before for before, after in pairwise(held))
    assert turns[len(turns) * 999 // 1000] < 0.005
    assert turns[-1] < 0.02
