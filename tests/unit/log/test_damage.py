"""Damaged heads, lost identities and files that are not ours."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from linkd.errors import Gap, LogDamaged
from linkd.log import frame, inspect, repair, verify
from linkd.log.files import DiskFiles, explain_os_error
from linkd.log.frame import HEAD, SMALL, frame_prefix
from linkd.log.reader import CorruptSegment
from linkd.log.repair import OFFSET_SKIP
from linkd.log.segment import load_identity
from linkd.log.snapshot import snapshot_numbers
from linkd.log.writer import FILL_BYTES
from tests.support.disk import Breaking, RecordingFiles
from tests.support.logs import (
    SegmentBench,
    append,
    bodies,
    draft,
    everything,
    fetch,
    owed,
    received,
    store,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[SegmentBench]:
    one = SegmentBench(tmp_path / "log")
    yield one
    one.close()


def flip(path: Path, at: int) -> None:
    """Flip a bit."""
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(bytes(content))


def fill(bench: SegmentBench) -> None:
    """Fill three segments, with ids, cursors and producers."""
    for number in range(30):
        append(bench, draft(b"%02d" % number + bytes(100_000), ids=(f"id{number}",)))
    store(bench, received(1, 5, b"from the hub"))


def forged(kind: int, inside: bytes) -> bytes:
    """Return a frame as anybody can make it who knows the format, and not the log's seed."""
    return frame_prefix((kind, 0, b"", inside), 1 << 31, 1.0, 1.0) + inside


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_damaged_head_costs_no_record(bench: SegmentBench, which: int) -> None:
    fill(bench)
    bench.close()
    flip(sorted(bench.path.glob("*.log"))[which], 60)
    bench.open()
    assert len(bodies(everything(bench))) == 31
    assert any("set aside" in told.detail for told in bench.log.notices)
    cursor = bench.log.cursor("hub")
    assert cursor is not None
    assert cursor.next == 5
    bench.restart()
    assert bench.log.notices == []
    assert len(bodies(everything(bench))) == 31


@pytest.mark.parametrize("first", [0, 1])
def test_damaged_heads_of_neighbours_cost_no_record(bench: SegmentBench, first: int) -> None:
    """Found by fuzzing: the first one's mending asked the second one's head."""
    fill(bench)
    bench.close()
    for path in sorted(bench.path.glob("*.log"))[first : first + 2]:
        flip(path, 60)
    bench.open()
    assert len(bodies(everything(bench))) == 31
    assert sum("set aside" in told.detail for told in bench.log.notices) == 2
    bench.restart()
    assert bench.log.notices == []


def test_a_neighbour_that_is_empty_is_told_as_lost(bench: SegmentBench) -> None:
    fill(bench)
    bench.close()
    paths = sorted(bench.path.glob("*.log"))
    flip(paths[0], 60)
    paths[1].write_bytes(b"")
    bench.open()
    kept = len(bodies(everything(bench)))
    assert 0 < kept < 31
    assert any(
        "set aside" in told.detail and "lost: none" not in told.detail for told in bench.log.notices
    )


def test_a_damaged_head_of_the_only_segment_costs_no_record(bench: SegmentBench) -> None:
    append(bench, draft(b"a"), draft(b"b"))
    store(bench, received(1, 5, b"c"))
    bench.close()
    flip(next(bench.path.glob("*.log")), 60)
    bench.open()
    assert bodies(everything(bench)) == [b"a", b"b", b"c"]
    assert bench.log.next > 1_000_000


def test_a_lost_identity_is_made_anew(bench: SegmentBench) -> None:
    fill(bench)
    was = bench.log.id
    bench.close()
    (bench.path / "identity").unlink()
    bench.open()
    assert bench.log.id == was
    assert append(bench, draft(b"x"))[0].offset == 32


def test_lost_indexes_and_ids_are_made_anew(bench: SegmentBench) -> None:
    fill(bench)
    bench.close()
    for path in [*bench.path.glob("*.idx"), *bench.path.glob("*.ids")]:
        path.write_bytes(b"rubbish")
    bench.open()
    assert bench.log.notices == []
    again = append(bench, draft(b"x", ids=("id3",)), draft(b"y", ids=("id29",)))
    assert [(one.offset, one.duplicate) for one in again] == [(4, True), (30, True)]
    bench.restart()
    assert append(bench, draft(b"x", ids=("id3",)))[0].duplicate


def test_a_file_of_another_owner_is_named_with_what_to_do() -> None:
    said = explain_os_error(PermissionError(13, "denied", "/x/1.log"), Path("/x"))
    assert "/x/1.log" in said
    assert "chown" in said
    assert "check the disk" in explain_os_error(OSError(5, "I/O error", "/x/1.log"), Path("/x"))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LogDamaged, match="check the disk"):
        SegmentBench(tmp_path / "file" / "log")


def first_of(bench: SegmentBench, which: int) -> int:
    """Return the first offset of a segment."""
    return int(bench.log._segment_set.segments[which].first)


@pytest.mark.parametrize(
    ("which", "cut", "kept"), [(0, 0, 30), (1, 0, 30), (-1, 0, 30), (-1, 150_000, 27)]
)
def test_a_mending_that_is_cut_off_anywhere_costs_nothing_that_is_readable(
    bench: SegmentBench, tmp_path: Path, which: int, cut: int, kept: int
) -> None:
    """Nor is an offset given out again: what was cut off at the end had been."""
    fill(bench)
    end = bench.log.next
    bench.close()
    path = sorted(bench.path.glob("*.log"))[which]
    flip(path, path.stat().st_size // 2)
    os.truncate(path, path.stat().st_size - cut)
    good = bench.path
    for left in range(40):
        bench.path = tmp_path / str(left)
        shutil.copytree(good, bench.path)
        bench.files = disk = Breaking(left)
        try:
            bench.open()
        except LogDamaged:
            disk.left = 1 << 30
            bench.open()
        refused = fetch(bench, first_of(bench, which))
        while isinstance(refused, LogDamaged):
            assert "could not be repaired" in str(refused)
            assert bench.log.notices[-1].detail == str(refused)
            disk.left = 1 << 30
            refused = fetch(bench, first_of(bench, which))
        assert len(bodies(everything(bench))) == kept, left
        assert list(bench.path.glob("*.damaged-*")), left
        disk.left = max(disk.left, 1 << 20)
        bench.until(lambda: bench.log.full is None)
        (outcome,) = append(bench, draft(b"on it goes"))
        assert outcome.offset >= end, left
        bench.close()
        assert all(one.endswith("are not there") for one in verify(bench.path).damage)
        if disk.left < 1 << 29:
            break
    else:
        raise AssertionError("no end")
    bench.path, bench.files = good, None
    bench.open()


def test_a_copy_of_a_segment_that_was_deleted_on_purpose_stays_a_copy(bench: SegmentBench) -> None:
    """It came back under its name, its records with it, and those between were told as lost."""
    fill(bench)
    first = min(bench.path.glob("*.log"))
    shutil.copy(first, bench.path / "copy of 1")
    bench.log.trim(20)
    bench.until(lambda: bench.log.first > 1)
    begins = bench.log.first
    bench.restart()
    assert (bench.log.first, bench.log.notices) == (begins, [])
    assert (bench.path / "copy of 1").exists()


def test_a_last_segment_of_which_nothing_is_readable_is_set_aside_and_told(
    bench: SegmentBench,
) -> None:
    """It was deleted, as if a crash had broken off its first write."""
    fill(bench)
    end = bench.log.next
    bench.close()
    last = max(bench.path.glob("*.log"))
    spoilt = bytes(last.stat().st_size)
    last.write_bytes(spoilt)
    bench.open()
    (aside,) = bench.path.glob("*.damaged-*")
    assert aside.read_bytes() == spoilt
    assert "all from" in bench.log.notices[0].detail
    assert append(bench, draft(b"x"))[0].offset >= end + OFFSET_SKIP - 30


def test_a_first_write_of_a_segment_that_a_crash_broke_off_goes_without_a_word(
    bench: SegmentBench,
) -> None:
    fill(bench)
    bench.close()
    (bench.path / "000000000004.log").write_bytes(b"LkF\x01" + bytes(100))
    bench.open()
    assert bench.log.notices == []
    assert len(bodies(everything(bench))) == 31


def test_segments_that_are_gone_are_told_with_their_offsets(bench: SegmentBench) -> None:
    fill(bench)
    starts = [segment.first for segment in bench.log._segment_set.segments]
    bench.until(lambda: snapshot_numbers(bench.path))
    bench.close()
    good = bench.path
    for which, lost in (
        (0, f"lost: 1 to {starts[1] - 1}"),
        (1, f"lost: {starts[1]} to {starts[2] - 1}"),
        (2, f"lost: all from {starts[2]} on"),
    ):
        bench.path = good.with_name(f"log{which}")
        shutil.copytree(good, bench.path)
        sorted(bench.path.glob("*.log"))[which].unlink()
        bench.open()
        assert [lost in told.detail for told in bench.log.notices] == [True]
        gone = fetch(bench, starts[which])
        assert which == 2 or isinstance(gone, Gap)
        assert append(bench, draft(b"x"))[0].offset > 31
        bench.close()
    bench.path = good
    bench.open()


def test_a_second_bad_file_in_one_second_takes_no_name_from_the_first(bench: SegmentBench) -> None:
    fill(bench)
    for _ in range(2):
        bench.close()
        flip(min(bench.path.glob("*.log")), 60)
        bench.open()
    assert len(list(bench.path.glob("*.damaged-*"))) == 2


def test_an_index_and_ids_of_another_kind_are_made_anew(bench: SegmentBench) -> None:
    for number in range(13):
        some = draft(b"%d" % number + bytes(100_000), b"", ids=(f"id{number}", ""))
        append(bench, some)
    bench.close()
    (index,) = bench.path.glob("*.idx")
    (ids,) = bench.path.glob("*.ids")
    index.write_bytes(ids.read_bytes())
    ids.unlink()
    bench.open()
    assert bench.log.notices == []
    assert append(bench, draft(b"x", ids=("id3",)))[0].duplicate
    assert len(bodies(everything(bench))) == 26


def test_ids_of_a_segment_that_is_damaged_too_are_known_as_far_as_they_are_readable(
    bench: SegmentBench,
) -> None:
    fill(bench)
    bench.close()
    for path in bench.path.glob("*.ids"):
        path.unlink()
    first = min(bench.path.glob("*.log"))
    flip(first, first.stat().st_size // 2)
    bench.open()
    known, lost = append(bench, draft(b"x", ids=("id1",)), draft(b"y", ids=("id9",)))
    assert (known.duplicate, lost.duplicate) == (True, False)


def test_damage_in_the_last_segment_met_while_reading_waits_for_a_restart(
    tmp_path: Path,
) -> None:
    bench = SegmentBench(tmp_path / "log", memory_bytes=1)
    for number in range(5):
        append(bench, draft(b"%d" % number + bytes(1000)))
    (path,) = bench.path.glob("*.log")
    content = path.read_bytes()
    flip(path, 3000)
    found = fetch(bench, 1)
    assert isinstance(found, LogDamaged)
    assert "restart linkd" in str(found)
    path.write_bytes(content)
    assert len(bodies(fetch(bench, 1))) == 5
    flip(path, 3000)
    bench.restart()
    assert len(bodies(everything(bench, 1))) == 4
    bench.close()


def test_a_file_that_may_not_be_read_is_named_and_no_gap(
    bench: SegmentBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench)

    def refuse(*args: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    with monkeypatch.context() as patched:
        patched.setattr(bench.log._reader, "batches", refuse)
        found = fetch(bench, 1)
    assert isinstance(found, LogDamaged)
    assert "chown" in str(found)
    assert bodies(fetch(bench, 1))


def test_what_is_trimmed_while_it_is_read_is_a_gap(bench: SegmentBench) -> None:
    fill(bench)
    got: list[Any] = []
    bench.log.fetch(1, 1000, got.append)
    bench.log.trim(20)
    first = bench.log.first
    bench.until(lambda: got)
    assert isinstance(got[0], Gap)
    assert got[0].first == first > 1


def test_what_is_trimmed_while_it_is_mended_is_a_gap(bench: SegmentBench) -> None:
    fill(bench)
    flip(min(bench.path.glob("*.log")), 200_000)
    got: list[Any] = []
    mending: list[bool] = []
    mend = bench.log._reads._repair

    def begun(*args: Any) -> None:
        mending.append(True)
        mend(*args)

    bench.log._reads._repair = begun
    bench.log.fetch(1, 1 << 20, got.append)
    bench.until(lambda: mending)
    assert bench.log.trim(20) > 0
    bench.until(lambda: got)
    assert isinstance(got[0], Gap)
    assert got[0].first == bench.log.first > 1


def test_a_mending_that_the_disk_refuses_is_said_once_and_to_each_who_reads(
    bench: SegmentBench,
) -> None:
    """It was told as the loss of the whole segment, and peers were sent on over all of it."""
    fill(bench)
    flip(min(bench.path.glob("*.log")), 200_000)
    disk = Breaking(0)
    bench.log._reads._files = bench.log._files = disk
    for _ in range(3):
        found = fetch(bench, 1)
        assert isinstance(found, LogDamaged)
        assert "could not be repaired" in str(found)
    assert [told.level for told in bench.log.notices] == ["error"]
    disk.left = 1 << 20
    assert len(bodies(everything(bench))) == 30


def test_a_file_that_lost_its_name_is_given_it_again(bench: SegmentBench) -> None:
    fill(bench)
    bench.close()
    for path in bench.path.glob("*.log"):
        path.rename(path.with_name("found" + path.stem[-1]))
    bench.open()
    assert [told.level for told in bench.log.notices] == ["warn"] * 3
    assert len(bodies(everything(bench))) == 31


def test_a_head_that_is_damaged_behind_a_damaged_segment_hides_nothing_of_it(
    bench: SegmentBench,
) -> None:
    """The second was taken to begin at offset 1: nothing of the first was found any more."""
    store(bench, received(1, 9, b"first of all"))
    for step in range(9, 12):
        store(bench, received(step, step + 1))
    fill_from = len(bodies(everything(bench)))
    for number in range(30):
        append(bench, draft(b"%02d" % number + bytes(100_000)))
    bench.close()
    first, second, last = sorted(bench.path.glob("*.log"))
    flip(first, first.stat().st_size // 2)
    flip(second, 60)
    bench.open()
    assert len(bodies(everything(bench))) == fill_from + 29
    assert bench.log.cursor("hub").next == 12
    bench.until(lambda: snapshot_numbers(bench.path))
    bench.close()
    first.unlink()
    flip(second, 60)
    flip(last, 200_000)
    bench.open()
    details = [told.detail for told in bench.log.notices]
    assert len(details) == len(set(details)) == 3
    assert bench.log.cursor("hub").next == 12


def test_a_write_that_a_crash_broke_off_is_cut_and_told(bench: SegmentBench) -> None:
    append(bench, draft(b"a"), draft(b"b"))
    bench.close()
    (path,) = bench.path.glob("*.log")
    with path.open("ab") as file:
        file.write(b"LkF\x01" + bytes(70) + b"the end" + bytes(5000))
    bench.open()
    (told,) = bench.log.notices
    assert (told.level, told.event) == ("warn", "log.repaired")
    assert "the last 81 bytes" in told.detail
    assert "the next offset is 3" in told.detail
    assert append(bench, draft(b"c"))[0].offset == 3
    assert bodies(bench.restart().read(1, 1) or everything(bench)) == [b"a", b"b", b"c"]


def test_room_made_ready_is_no_damage_and_is_given_back(bench: SegmentBench) -> None:
    """A daemon that is killed leaves it behind; one that ends takes it away."""
    append(bench, draft(b"a"))
    (path,) = bench.path.glob("*.log")
    bench.until(lambda: path.stat().st_size > FILL_BYTES)
    killed = path.read_bytes()
    assert killed.endswith(bytes(FILL_BYTES - 1000))
    found = verify(bench.path)
    assert (found.sound, found.records) == (True, 1)
    (note,) = found.notes
    assert "zeros, made ready for more" in note
    assert bench.log.size_bytes < 2000
    bench.close()
    size = path.stat().st_size
    assert killed[:size].rstrip(b"\0") == path.read_bytes().rstrip(b"\0")
    assert size < 2000
    path.write_bytes(killed)
    bench.open()
    (told,) = bench.log.notices
    assert (told.level, told.event) == ("info", "log.unclean-shutdown")
    assert f"the {len(killed) - size} preallocated zeros" in told.detail
    assert "the next offset is 2" in told.detail
    assert append(bench, draft(b"b"))[0].offset == 2
    assert bodies(bench.restart().read(1, 1) or everything(bench)) == [b"a", b"b"]


def test_zeros_left_in_a_mended_file_are_no_new_damage(bench: SegmentBench) -> None:
    """Nobody knows how much of one counts: a truncate that the disk refused leaves zeros there."""
    fill(bench)
    bench.close()
    first = min(bench.path.glob("*.log"))
    flip(first, first.stat().st_size // 2)
    bench.open()
    kept = [batch.offset for batch in everything(bench)]
    assert "log.damaged" in [told.event for told in bench.log.notices]
    bench.close()
    with first.open("ab") as file:
        file.write(bytes(FILL_BYTES))
    for beside in bench.path.glob("*.idx"):
        beside.unlink()
    assert verify(bench.path).damage == []
    bench.open()
    assert bench.log.notices == []
    assert [batch.offset for batch in everything(bench)] == kept


def test_what_is_written_while_a_log_is_verified_is_no_damage(
    bench: SegmentBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(bench, draft(b"a"))
    (path,) = bench.path.glob("*.log")
    real = inspect.scan

    def scan_and_write(*rest: Any, **more: Any) -> Any:
        try:
            return real(*rest, **more)
        finally:
            for number in range(3):
                append(bench, draft(b"meanwhile %d" % number))

    monkeypatch.setattr(inspect, "scan", scan_and_write)
    bench.until(lambda: path.stat().st_size > FILL_BYTES)
    found = verify(bench.path)
    assert (found.damage, found.sound) == ([], True)


def test_a_bad_place_that_stays_bad_is_damage_also_in_the_newest_file(bench: SegmentBench) -> None:
    for number in range(20):
        append(bench, draft(b"%d" % number))
    (path,) = bench.path.glob("*.log")
    flip(path, 500)
    found = verify(bench.path)
    assert not found.sound
    assert "good frames follow" in found.damage[0]


def test_what_is_found_at_a_start_is_synced_before_it_counts(bench: SegmentBench) -> None:
    """Of a write whose sync failed the page cache alone may know."""
    append(bench, draft(b"a"))
    bench.close()
    files = RecordingFiles()
    bench.files = files
    bench.open()
    assert [step[0] for step in files.steps[:2]] == ["open", "sync"]


def test_more_zeros_than_are_ever_made_ready_are_told(bench: SegmentBench) -> None:
    append(bench, draft(b"a"))
    bench.close()
    (path,) = bench.path.glob("*.log")
    with path.open("ab") as file:
        file.write(bytes(2 * FILL_BYTES + 5))
    bench.open()
    (told,) = bench.log.notices
    assert "the last 5 bytes were a write that a crash cut short" in told.detail


def test_a_log_that_no_mending_makes_whole_is_not_opened(
    bench: SegmentBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench)
    bench.close()
    flip(min(bench.path.glob("*.log")), 60)
    with monkeypatch.context() as patched:
        patched.setattr("linkd.log.repair.SegmentRepairer.repair", lambda repairer, damage: None)
        patched.setattr("linkd.log.recovery._MOST_REPAIRS", 20)
        with pytest.raises(LogDamaged, match="could not be repaired: move it away"):
            bench.open()
    bench.open()


def test_a_segment_that_cannot_be_opened_for_writing_is_named(
    bench: SegmentBench,
) -> None:
    append(bench, draft(b"a"))
    bench.close()

    class ReadOnly(DiskFiles):
        def open(self, path: Path, *, create: bool = False) -> int:
            if path.suffix == ".log":
                raise PermissionError(errno.EACCES, "denied", str(path))
            return super().open(path, create=create)

    bench.files = ReadOnly()
    with pytest.raises(LogDamaged, match="chown"):
        bench.open()
    bench.files = Breaking(0)
    (bench.path / "identity").unlink()
    with pytest.raises(LogDamaged, match="check the disk"):
        bench.open()
    for path in bench.path.glob("*.log"):
        path.unlink()
    with pytest.raises(LogDamaged, match="check the disk"):
        bench.open()
    bench.files = None
    bench.open()


def test_heads_that_are_damaged_under_way_hide_nothing_of_their_neighbours(
    bench: SegmentBench,
) -> None:
    fill(bench)
    first, second, _ = sorted(bench.path.glob("*.log"))
    begins = bench.log._segment_set.segments[1].first
    flip(first, 60)
    flip(second, 60)
    flip(second, second.stat().st_size // 2)
    assert isinstance(fetch(bench, begins), list)
    assert len(bodies(everything(bench))) == 30
    bench.restart()
    assert len(bodies(everything(bench))) == 30


def test_a_damaged_head_of_the_oldest_segment_brings_nothing_back(bench: SegmentBench) -> None:
    fill(bench)
    bench.log.trim(20)
    bench.until(lambda: bench.log.first > 1)
    begins = bench.log.first
    bench.close()
    flip(min(bench.path.glob("*.log")), 60)
    bench.open()
    assert bench.log.first == begins
    assert "offsets lost: none" in bench.log.notices[0].detail


def test_a_finished_segment_that_was_cut_is_told_at_the_start(bench: SegmentBench) -> None:
    fill(bench)
    first, *_ = bench.log._segment_set.segments
    bench.close()
    path = min(bench.path.glob("*.log"))
    os.truncate(path, path.stat().st_size - 7)
    bench.open()
    (told,) = bench.log.notices
    assert f"offsets lost: {first.next - 1} to {first.next - 1}" in told.detail
    assert sum(records for records, _ in owed(bench.log, 1).values()) == 30


def test_a_large_publish_that_ends_a_damaged_log_is_kept_whole(bench: SegmentBench) -> None:
    append(bench, draft(b"spoilt"))
    append(bench, draft(b"kept"))
    append(bench, draft(*[b"%06d" % number + bytes(6000) for number in range(50)]))
    bench.close()
    (path,) = bench.path.glob("*.log")
    flip(path, path.read_bytes().index(b"spoilt"))
    bench.open()
    assert len(bodies(everything(bench, 2))) == 51
    assert "offsets lost: 1 to 1, all from 53 on" in bench.log.notices[0].detail


@pytest.mark.parametrize("kind", [HEAD, SMALL])
def test_a_body_passes_for_no_head_where_a_write_broke_off(bench: SegmentBench, kind: int) -> None:
    """Its CRC needs no secret: the broken write was told as damage, and offsets jumped."""
    append(bench, draft(b"kept"))
    append(bench, draft(forged(kind, b"never")))
    bench.close()
    (path,) = bench.path.glob("*.log")
    os.truncate(path, path.stat().st_size - 1)
    bench.open()
    assert [told.event for told in bench.log.notices] == ["log.repaired"]
    assert append(bench, draft(b"x"))[0].offset == 2
    assert bodies(everything(bench)) == [b"kept", b"x"]


@pytest.mark.parametrize("kind", [HEAD, SMALL])
def test_a_body_passes_for_no_head_where_a_segment_is_mended(
    bench: SegmentBench, kind: int
) -> None:
    """It was taken over as a frame that no reader takes: each mending peeled one shell off."""
    body = b"inmost"
    for _ in range(3):
        body = forged(kind, body)
    append(bench, draft(body))
    fill(bench)
    bench.close()
    path = min(bench.path.glob("*.log"))
    at = path.read_bytes().index(body)
    flip(path, at - 1)
    bench.open()
    assert len(bodies(everything(bench))) == 31
    (told,) = bench.log.notices
    assert "offsets lost: 1 to 1." in told.detail
    assert len(list(bench.path.glob("*.damaged-*"))) == 1


def test_a_repair_without_room_leaves_the_file_as_it_is(bench: SegmentBench) -> None:
    """A disk was filled by one repair after the other until nothing started any more."""
    fill(bench)
    bench.close()
    first = min(bench.path.glob("*.log"))
    flip(first, 60)
    before = sorted(path.name for path in bench.path.iterdir())
    bench.files = RecordingFiles()
    bench.files.free = first.stat().st_size
    with pytest.raises(LogDamaged, match=f"the disk has {first.stat().st_size} left; make room"):
        bench.open()
    assert sorted(path.name for path in bench.path.iterdir()) == before
    bench.files.free = None
    bench.open()
    assert len(bodies(everything(bench))) == 31


def test_a_repair_that_can_not_be_read_back_sets_nothing_aside(
    bench: SegmentBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench)
    bench.close()
    first = min(bench.path.glob("*.log"))
    flip(first, 60)
    before = first.read_bytes()

    def unreadable(path: Path, *rest: object, **more: object) -> None:
        raise CorruptSegment(path, 7)

    with monkeypatch.context() as patched:
        patched.setattr(repair, "scan", unreadable)
        with pytest.raises(LogDamaged, match="of the repaired file either"):
            bench.open()
    assert first.read_bytes() == before
    assert not [path for path in bench.path.iterdir() if "damaged" in path.name]
    assert not list(bench.path.glob("*.part"))
    bench.open()
    assert len(bodies(everything(bench))) == 31


def test_a_file_is_repaired_once_a_start(bench: SegmentBench) -> None:
    fill(bench)
    bench.close()
    first = min(bench.path.glob("*.log"))
    flip(first, 60)
    identity = load_identity(bench.path)
    assert identity is not None
    repairer = repair.SegmentRepairer(bench.path, DiskFiles(), identity, lambda: 1.0)
    repairer.repair(CorruptSegment(first, 0))
    with pytest.raises(LogDamaged, match="damaged again at byte 5 after it was repaired"):
        repairer.repair(CorruptSegment(first, 5))
    assert len([path for path in bench.path.iterdir() if "damaged" in path.name]) == 1
    bench.open()


def test_a_repair_under_way_that_has_no_room_is_told_to_who_reads(bench: SegmentBench) -> None:
    files = RecordingFiles()
    bench.files = files
    bench.restart()
    fill(bench)
    flip(min(bench.path.glob("*.log")), 300_000)
    files.free = 1 << 20
    found = fetch(bench, 1)
    while isinstance(found, list):
        found = fetch(bench, found[-1].next)
    assert isinstance(found, LogDamaged)
    assert "make room" in str(found)
    files.free = None


def test_a_frame_that_no_reader_takes_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of a segment grew beyond 1 GiB, was written, and could not be read."""
    monkeypatch.setattr(frame, "MOST_BYTES", 100)
    for head, body in ((101, 0), (0, 101)):
        with pytest.raises(ValueError, match="at most 100 bytes"):
            frame_prefix((HEAD, 0, bytes(head), bytes(body)), 0, 0.0, 0.0)
        monkeypatch.setattr(frame, "MOST_BYTES", 101)
        prefix = frame_prefix((HEAD, 0, bytes(head), bytes(body)), 0, 0.0, 0.0)
        assert frame.frame_size(prefix, 0) == len(prefix) + 101
        monkeypatch.setattr(frame, "MOST_BYTES", 100)
        assert frame.frame_size(prefix, 0) is None


def test_a_segment_that_goes_bad_again_while_it_runs_is_not_repaired_again(
    bench: SegmentBench,
) -> None:
    fill(bench)
    first = min(bench.path.glob("*.log"))
    for expected in (list, LogDamaged):
        flip(first, 300_000)
        found = fetch(bench, 1)
        while isinstance(found, list) and found[-1].next < 9:
            found = fetch(bench, found[-1].next)
        if isinstance(found, Gap):
            found = fetch(bench, found.first)
        assert isinstance(found, expected)
    assert len([path for path in bench.path.iterdir() if "damaged" in path.name]) == 1


def test_a_segment_without_a_readable_state_stays_and_a_snapshot_goes(bench: SegmentBench) -> None:
    bench.close()
    identity = load_identity(bench.path)
    assert identity is not None
    repairer = repair.SegmentRepairer(bench.path, DiskFiles(), identity, lambda: 1.0)
    segment = min(bench.path.glob("*.log"))
    snapshot = bench.path / "000000000001.state"
    snapshot.write_bytes(b"nothing")
    repairer.unreadable(segment)
    repairer.unreadable(snapshot)
    assert segment.exists()
    assert not snapshot.exists()
    assert [told.level for told in repairer.notices] == ["warn", "warn"]
    bench.open()
