"""The segments engine: full disks, failed syncs, retention, damage, and who may open it."""

from __future__ import annotations

import errno
import gc
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkd.errors import Gap, LogClosed, LogDamaged, LogFull, PublishError, StateTooNew
from linkd.log import disk_log, stat, verify
from linkd.log.base import GROUP_ITEMS
from linkd.log.disk_log import EAGER_BYTES, Phase
from linkd.log.frame import HEAD, frame_at, frame_prefix
from linkd.log.interface import Appended
from linkd.log.reader import CorruptSegment
from linkd.log.segment import read_head, scan
from linkd.log.snapshot import snapshot_numbers
from linkd.log.state import Snapshot
from linkd.log.writer import MEASURE_BYTES, Idle, Writer, Written
from linkd.protocol.records import BATCH_OVERHEAD_BYTES, NewRecords, Origin
from tests.support.disk import RecordingFiles
from tests.support.logs import (
    SegmentBench,
    append,
    bodies,
    draft,
    everything,
    fetch,
    numbered,
    owed,
    received,
    store,
)

MIB = 1 << 20


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[SegmentBench]:
    one = SegmentBench(tmp_path / "log", files=RecordingFiles())
    yield one
    one.files.refuse = one.files.refuse_sync = one.files.refuse_truncate = 0
    one.close()


def fill(bench: SegmentBench, count: int, size: int = 100_000) -> None:
    """Append so many records of a size."""
    for number in range(count):
        (outcome,) = append(bench, draft(b"%06d" % number + bytes(size)))
        assert isinstance(outcome, Appended)


@pytest.mark.parametrize("tear", [0, 7, 100, 5000])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_refused_write_fails_publishes_and_lets_peers_wait(
    bench: SegmentBench, code: int, tear: int
) -> None:
    append(bench, draft(b"before", producer=numbered("p", 1)))
    bench.files.refuse, bench.files.tear = code, tear
    got: list[Any] = []
    waited: list[Any] = []
    bench.log.append(draft(b"lost" + bytes(9000), producer=numbered("p", 2)), got.append)
    bench.log.store(received(1, 2, b"kept"), waited.append)
    bench.log.append(draft(b"lost too", ids=("x",)), got.append)
    bench.until(lambda: len(got) == 2)
    assert all(isinstance(outcome, LogFull) for outcome in got)
    assert bench.log.full is not None
    assert isinstance(append(bench, draft(b"refused"))[0], LogFull)
    assert waited == []
    cursor = bench.log.cursor("hub")
    assert cursor is not None
    assert (cursor.next, cursor.committed) == (2, 0)
    bench.files.refuse = bench.files.tear = 0
    bench.until(lambda: waited)
    assert waited == [Appended(2, 1)]
    assert bench.log.full is None
    again = append(bench, draft(b"a", producer=numbered("p", 2)), draft(b"b", ids=("x",)))
    assert again == [Appended(3, 1), Appended(4, 1)]
    bench.restart()
    assert bench.log.notices == []
    assert bodies(everything(bench)) == [b"before", b"kept", b"a", b"b"]


def test_after_a_failed_sync_a_new_segment_begins(bench: SegmentBench) -> None:
    append(bench, draft(b"before"))
    bench.files.refuse_sync = bench.files.refuse_truncate = errno.EIO
    assert isinstance(append(bench, draft(b"lost"))[0], LogFull)
    bench.files.refuse_sync = bench.files.refuse_truncate = 0
    bench.until(lambda: bench.log.full is None)
    assert append(bench, draft(b"after")) == [Appended(2, 1)]
    assert len(list(bench.path.glob("*.log"))) == 2
    bench.restart()
    assert bench.log.notices == []
    assert bodies(everything(bench)) == [b"before", b"after"]
    assert verify(bench.path).sound


def test_what_a_failed_write_left_behind_does_not_count(bench: SegmentBench) -> None:
    append(bench, draft(b"before"))
    bench.files.refuse, bench.files.tear = errno.EIO, 90
    bench.files.refuse_truncate = errno.EIO
    assert isinstance(append(bench, draft(b"lost"))[0], LogFull)
    bench.files.refuse = bench.files.refuse_truncate = 0
    bench.until(lambda: bench.log.full is None)
    assert append(bench, draft(b"after")) == [Appended(2, 1)]
    assert verify(bench.path).sound
    bench.restart()
    assert bench.log.notices == []
    assert bodies(everything(bench)) == [b"before", b"after"]


def test_a_start_on_a_full_disk_waits_for_room(bench: SegmentBench) -> None:
    append(bench, draft(b"before"))
    bench.close()
    bench.files.refuse = errno.ENOSPC
    bench.open()
    assert bench.log.full is not None
    bench.files.refuse = 0
    bench.until(lambda: bench.log.full is None)
    assert append(bench, draft(b"after")) == [Appended(2, 1)]


def test_little_room_on_the_disk_refuses_publishes_only(bench: SegmentBench) -> None:
    bench.files.free = 1000
    append(bench, draft(bytes(MEASURE_BYTES)))  # then the disk is looked at, told with the next
    append(bench, draft(b"b"))  # which is refused, too, where that was slow
    assert isinstance(append(bench, draft(b"c"))[0], LogFull)
    assert store(bench, received(1, 2, b"d")) == [Appended(bench.log.next - 1, 1)]
    bench.files.free = None
    bench.until(lambda: bench.log.full is None)


def test_a_commit_after_a_pause_tells_nothing_older_than_the_pause_about_the_disk(
    bench: SegmentBench,
) -> None:
    bench.files.free = 1000
    append(bench, draft(bytes(MEASURE_BYTES)))
    append(bench, draft(b"b"))
    assert bench.log.full is not None
    bench.files.free = 1 << 40
    bench.until(lambda: bench.log.full is None)
    assert append(bench, draft(b"c"), draft(b"d")) == [Appended(3, 1), Appended(4, 1)]
    assert append(bench, draft(b"e")) == [Appended(5, 1)]
    bench.files.free = 1000
    bench.until(lambda: bench.log.full is not None)
    store(bench, received(1, 2, b"f"))
    assert isinstance(append(bench, draft(b"g"))[0], LogFull)


def test_a_disk_that_is_full_at_the_start_is_known_before_the_first_publish(tmp_path: Path) -> None:
    files = RecordingFiles()
    files.free = 1000
    turn: list[Any] = []
    bench = SegmentBench(tmp_path / "log", files=files, call_at_iteration_end=turn.append)
    assert isinstance(append(bench, draft(b"a"))[0], LogFull)
    turn.pop()()
    bench.close()


def test_reject_keeps_what_is_owed_and_a_reserve_for_peers(tmp_path: Path) -> None:
    bench = SegmentBench(tmp_path / "log", max_bytes=16 * MIB)
    refused = 0
    for _ in range(30):
        (outcome,) = append(bench, draft(bytes(600_000)))
        refused += isinstance(outcome, LogFull)
    assert refused >= 5
    assert bench.log.first == 1
    assert bench.log.size_bytes <= 16 * MIB * 9 // 10
    assert store(bench, received(1, 2, bytes(600_000)))[0].count == 1
    waited: list[Any] = []
    for number in range(2, 6):
        bench.log.store(received(number, number + 1, bytes(600_000)), waited.append)
    bench.until(lambda: bench.log._phase is Phase.PAUSED)
    assert len(waited) < 4
    bench.log.release(bench.log.next)
    bench.until(lambda: len(waited) == 4)
    assert isinstance(append(bench, draft(b"again"))[0], Appended)
    bench.close()


def test_a_record_as_large_as_the_log_makes_room_for_the_next(tmp_path: Path) -> None:
    """A peer's may be: the segment that is written can't be deleted, and none was begun."""
    bench = SegmentBench(tmp_path / "log", max_bytes=16 * MIB)
    body = bytes(16 * MIB)
    for number in (1, 3, 5):
        assert store(bench, received(number, number + 1, body))[0].count == 1
        waited: list[Any] = []
        bench.log.store(received(number + 1, number + 2, b"next"), waited.append)
        bench.until(lambda: bench.log._phase is Phase.PAUSED)
        assert not waited  # it is owed: nothing more fits
        bench.log.release(bench.log.next)
        bench.until(lambda: waited and not bench.log.full)  # noqa: B023  # at once
        assert isinstance(append(bench, draft(b"here"))[0], Appended)
        assert bench.log.size_bytes < MIB
    bench.close()


def test_drop_oldest_makes_room_and_tells(tmp_path: Path) -> None:
    bench = SegmentBench(tmp_path / "log", max_bytes=16 * MIB, when_full="drop-oldest")
    told: list[int] = []
    bench.log.on_trim.append(told.append)
    fill(bench, 60, 600_000)
    assert told
    assert told == sorted(told)
    assert bench.log.first == told[-1]
    assert bench.log.size_bytes <= 16 * MIB
    with pytest.raises(Gap):
        bench.log.read(1, 1)
    bench.close()
    assert len(list((tmp_path / "log").glob("*.log"))) <= 18


def test_what_is_owed_to_nobody_goes_by_age(bench: SegmentBench) -> None:
    fill(bench, 30)
    bench.now[0] += 10.0
    first = bench.log.first
    bench.log.release(bench.log.next)
    assert bench.log.first == first
    bench.now[0] += bench.settings.max_age
    bench.until(lambda: bench.log.first == bench.log.next)
    assert append(bench, draft(b"x")) == [Appended(31, 1)]


def test_what_is_trimmed_stays_gone(bench: SegmentBench) -> None:
    fill(bench, 30)
    before = bench.log.first
    count = bench.log.trim(15)
    assert 0 < count < 15
    assert bench.log.first == before + count
    bench.restart()
    assert (bench.log.first, bench.log.notices) == (before + count, [])
    assert isinstance(fetch(bench, 1), Gap)


def test_only_one_opens_it(bench: SegmentBench) -> None:
    with pytest.raises(LogDamaged, match="in use"):
        SegmentBench(bench.path)


def test_a_newer_format_is_left_alone(bench: SegmentBench) -> None:
    bench.close()
    (path,) = bench.path.glob("*.log")
    frame = frame_at(path.read_bytes(), 0)
    assert frame is not None
    head = msgspec.msgpack.decode(frame.head)
    head[0], head[1] = 99, "7.5"
    encoded = msgspec.msgpack.encode(head)
    rest = path.read_bytes()[frame.end :]
    prefix = frame_prefix((HEAD, 0, encoded, frame.records), 0, frame.stamp, frame.wall)
    content = prefix + encoded + frame.records + rest
    path.write_bytes(content)
    with pytest.raises(StateTooNew, match=r"^/\S+ was written by a newer linkd .*7\.5"):
        bench.open()
    assert path.read_bytes() == content
    path.unlink()
    bench.open()


def test_another_node_name_begins_a_segment(bench: SegmentBench) -> None:
    append(bench, draft(b"a"))
    bench.restart("cloud")
    append(bench, draft(b"b"))
    bench.restart("cloud")
    assert [batch.origin.node for batch in everything(bench)] == ["edge", "cloud"]


def test_ttl_counts_on_over_a_restart(bench: SegmentBench) -> None:
    append(bench, draft(b"a", ttl=50.0))
    bench.close()
    bench.now[0], bench.wall[0] = 5.0, bench.wall[0] + 30.0
    bench.open()
    (batch,) = everything(bench)
    assert batch.ttl_left(bench.log.clock()) == pytest.approx(20.0)
    bench.close()
    bench.wall[0] -= 1000.0
    bench.open()
    assert batch.ttl_left(bench.log.clock()) == pytest.approx(20.0)


def test_damage_met_while_reading_is_mended_and_told(bench: SegmentBench) -> None:
    fill(bench, 30)
    bench.close()
    path = min(bench.path.glob("*.log"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    bench.open()
    told: list[Any] = []
    bench.log.on_notice.append(told.append)
    found = {batch.offset for batch in everything(bench)}
    assert len(found) == 29
    (lost,) = set(range(1, 31)) - found
    assert len(told) == 1
    assert f"offsets lost: {lost} to {lost}" in told[0].detail
    assert isinstance(fetch(bench, lost), Gap)
    assert len(list(bench.path.glob("*.damaged-*"))) == 1
    bench.restart()
    assert {batch.offset for batch in everything(bench)} == found


def test_a_segment_deleted_under_way_is_a_gap(bench: SegmentBench) -> None:
    fill(bench, 30)
    second = sorted(bench.path.glob("*.log"))[1]
    second.unlink()
    found = {batch.offset for batch in everything(bench)}
    assert 0 < len(found) < 30
    assert any("is gone" in told.detail for told in bench.log.notices)


def test_a_foreign_segment_is_set_aside(bench: SegmentBench, tmp_path: Path) -> None:
    append(bench, draft(b"mine"))
    other = SegmentBench(tmp_path / "other")
    append(other, draft(b"theirs"))
    other.close()
    bench.close()
    (path,) = (tmp_path / "other").glob("*.log")
    (bench.path / "000000000007.log").write_bytes(path.read_bytes())
    bench.open()
    assert bodies(everything(bench)) == [b"mine"]
    assert "another log" in bench.log.notices[0].detail


def test_offline_looks_change_nothing(bench: SegmentBench) -> None:
    fill(bench, 30)
    seen = stat(bench.path)
    assert (seen.records, seen.first, seen.next, seen.channels) == (30, 1, 31, {"orders": 30})
    assert verify(bench.path).sound
    path = min(bench.path.glob("*.log"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    found = verify(bench.path)
    assert not found.sound
    assert any("damaged at byte" in one for one in found.damage)
    assert path.read_bytes() == bytes(content)


def test_pipelined_sequences_share_a_batch_and_are_told_apart(bench: SegmentBench) -> None:
    drafts = [draft(b"%d" % n, b"", producer=numbered("p", n)) for n in range(1, 9)]
    got = append(bench, *drafts)
    assert got == [Appended(2 * n - 1, 2) for n in range(1, 9)]
    assert len(everything(bench)) < 8
    bench.restart()
    assert append(bench, drafts[4], drafts[7]) == [Appended(9, 0, True), Appended(15, 0, True)]


def test_many_at_once_share_commits(bench: SegmentBench) -> None:
    written = []
    report = bench.log._report

    def count(outcome: Any) -> None:
        written.append(isinstance(outcome, Written))
        report(outcome)

    bench.log._writer._report = count
    got = append(bench, *[draft(b"%d" % n) for n in range(5000)])
    assert [outcome.offset for outcome in got] == list(range(1, 5001))
    assert sum(written) < 10


def test_a_flood_is_cut_into_commits(bench: SegmentBench) -> None:
    got = append(
        bench, *[NewRecords("c", 1, draft(bytes(60_000)).records, 1.0) for _ in range(400)]
    )
    assert all(isinstance(outcome, Appended) for outcome in got)
    assert len(list(bench.path.glob("*.log"))) >= 3


def test_a_segment_that_begins_at_the_start_counts_as_empty_and_carries_what_was(
    bench: SegmentBench,
) -> None:
    carried = Snapshot(acks=(("hub", 1, 3),), consumers=(("socket", "audit", 3, (">",), 1.0),))
    bench.log.carried = lambda: (carried,)
    fill(bench, 22)
    bench.until(lambda: snapshot_numbers(bench.path))
    assert bench.log._at >= MIB
    log = bench.restart()
    assert len(log._segment_set.segments) == 3
    assert owed(log, 3)["orders"][0] == 20
    assert log.stamp_at(3) is not None
    assert bodies(fetch(bench, 3))[0][:6] == b"000002"
    log = bench.restart()
    assert log.snapshot == carried


def test_a_large_publish_cut_in_a_sealed_segment_keeps_what_is_readable(tmp_path: Path) -> None:
    bench = SegmentBench(tmp_path / "log")
    append(bench, draft(*[b"%06d" % n + bytes(6000) for n in range(50)]))
    fill(bench, 12)
    bench.close()
    first = min((tmp_path / "log").glob("*.log"))
    with first.open("r+b") as file:
        file.truncate(150_000)
    log = bench.open()
    kept = len(bodies(fetch(bench, 1)))
    assert 20 <= kept < 50
    assert (
        f"offsets lost: {kept + 1} to {log._segment_set.segments[1].first - 1}"
        in log.notices[0].detail
    )
    bench.close()


def test_a_large_publish_cut_in_the_last_segment_goes_as_a_whole(tmp_path: Path) -> None:
    bench = SegmentBench(tmp_path / "log")
    append(bench, draft(b"spoilt"))
    append(bench, draft(b"kept"))
    append(bench, draft(*[b"%06d" % n + bytes(6000) for n in range(50)]))
    bench.close()
    last = max((tmp_path / "log").glob("*.log"))
    content = bytearray(last.read_bytes())
    content[content.index(b"spoilt")] ^= 1
    last.write_bytes(content[:200_000])
    log = bench.open()
    assert bodies(everything(bench, 1)) == [b"kept"]
    assert "offsets lost: 1 to 1, all from 3 on that were there" in log.notices[0].detail
    bench.close()


def test_a_publish_that_does_not_fit_near_the_bound_closes_the_log_until_a_segment_has_gone(
    tmp_path: Path,
) -> None:
    bench = SegmentBench(tmp_path / "log", max_bytes=16 * MIB)
    fill(bench, 147)
    assert bench.log.full is None
    (refused,) = append(bench, draft(bytes(500_000)))
    assert isinstance(refused, LogFull)
    assert "did not fit" in (bench.log.full or "")
    (small,) = append(bench, draft(b"small"))
    assert isinstance(small, LogFull)
    bench.log.release(bench.log.next)
    bench.until(lambda: bench.log.full is None)
    (small,) = append(bench, draft(b"small"))
    assert isinstance(small, Appended)
    bench.close()


def test_a_slow_commit_and_a_refused_one_are_told(
    bench: SegmentBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    bench.log.on_notice.append(told.append)
    monkeypatch.setattr("linkd.log.disk_log.SLOW_SECONDS", 0.0)
    append(bench, draft(b"slow"))
    assert told[0].event == "log.slow"
    monkeypatch.undo()
    told.clear()
    bench.files.refuse = errno.EIO
    append(bench, draft(b"refused"))
    append(bench, draft(b"refused"))
    assert [(one.level, one.event) for one in told] == [("error", "log.disk-failed")]
    bench.files.refuse = 0
    bench.until(lambda: bench.log.full is None)
    bench.files.refuse = errno.ENOSPC
    append(bench, draft(b"refused"))
    assert len(told) == 1


def test_a_commit_under_way_for_five_seconds_is_a_stall(bench: SegmentBench) -> None:
    bench.now[0] += 100.0
    assert bench.log.stalled() is None
    got: list[Any] = []
    bench.log.append(draft(b"a"), got.append)
    bench.now[0] += 4.9
    assert bench.log.stalled() is None
    bench.now[0] += 0.6
    assert bench.log.stalled() == pytest.approx(5.5)
    bench.until(lambda: got)
    assert bench.log.stalled() is None


def test_a_slow_disk_that_finishes_commits_is_not_stalled(bench: SegmentBench) -> None:
    got: list[Any] = []
    large = bytes(1 << 20)
    for _ in range(3):
        bench.log.append(draft(large), got.append)
    assert len(bench.log._under_way) == 3
    bench.now[0] += 4.0
    bench.until(lambda: got)
    left = len(bench.log._under_way)
    bench.now[0] += 3.0
    assert bench.log.stalled() is None
    bench.now[0] += 2.0
    assert (bench.log.stalled() is not None) == bool(left)


def test_a_crowd_that_waited_for_the_disk_goes_in_groups_of_a_turn_each(
    bench: SegmentBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one group, 65,000 publishes of a byte held up the reactor for 8 s."""
    made: list[int] = []
    make = bench.log._make_group

    def making() -> Any:
        group = make()
        made.append(len(group.waiting))
        return group

    monkeypatch.setattr(bench.log, "_make_group", making)
    got: list[Any] = []
    for number in range(20_000):
        bench.log.append(draft(b"x", channel="ab"[number % 2]), got.append)
    bench.until(lambda: len(got) == 20_000)
    assert [one.offset for one in got] == list(range(1, 20_001))
    assert sum(made) == 20_000
    assert max(made) == GROUP_ITEMS


def test_what_waits_for_a_disk_that_stands_is_bounded_for_all_publishers_together(
    bench: SegmentBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkd.log.base.MOST_WAITING_BYTES", 10 * BATCH_OVERHEAD_BYTES)
    got: list[Any] = []
    for number in range(20):
        bench.log.append(draft(b"x", channel="ab"[number % 2]), got.append)
    assert [type(one) for one in got] == [PublishError] * 9
    bench.until(lambda: len(got) == 20)
    assert bench.log.next == 12
    append(bench, draft(b"again"))


def test_what_waits_when_a_stuck_log_is_closed_is_answered(bench: SegmentBench) -> None:
    """A look at the disk that was on its way sent it behind the writer's end: never answered."""
    append(bench, draft(b"before"))
    bench.files.refuse = errno.EIO
    append(bench, draft(b"refused"))
    waited: list[Any] = []
    bench.log.store(received(1, 2, b"kept"), waited.append)
    done: list[bool] = []
    log = bench.log
    bench.files.refuse = 0
    log.close(lambda: done.append(True))
    log._report(Idle(1 << 40, time.monotonic()))
    bench.until(lambda: done)
    assert len(waited) == 1
    assert isinstance(waited[0], LogClosed)
    bench.open()
    assert bodies(everything(bench)) == [b"before"]


def test_a_write_that_fails_while_the_log_closes_is_answered(bench: SegmentBench) -> None:
    append(bench, draft(b"before"))
    bench.files.refuse = errno.EIO
    got: list[Any] = []
    bench.log.append(draft(b"refused"), got.append)
    done: list[bool] = []
    bench.log.close(lambda: done.append(True))
    bench.until(lambda: done)
    assert [type(one) for one in got] == [LogFull]
    assert bench.log._phase is Phase.CLOSED
    bench.files.refuse = 0
    bench.open()
    assert bodies(everything(bench)) == [b"before"]


def test_what_waits_is_committed_before_the_log_is_closed(bench: SegmentBench) -> None:
    got: list[Any] = []
    for number in range(50):
        bench.log.append(draft(b"%d" % number), got.append)
    done: list[int] = []
    bench.log.close(lambda: done.append(len(got)))
    bench.until(lambda: done)
    assert done == [50]
    bench.open()
    assert len(bodies(everything(bench))) == 50


def test_a_record_larger_than_what_is_read_at_once_and_a_long_head(bench: SegmentBench) -> None:
    for number in range(400):
        channel = f"{number:03d}." + "x" * 200
        origin = Origin(f"node{number}", f"log{number}", "e" * 60, 1)
        batch = received(1, 2, b"", channel=channel, peer=f"p{number}", origin=origin)
        bench.log.store(batch, lambda outcome: None)
    for number in range(15):
        append(bench, draft(b"%02d" % number + bytes(3_000_000), channel="large"))
    bench.restart()
    assert len(bodies(everything(bench))) == 415
    assert [len(body) for body in bodies(fetch(bench, 401, 1000))] == [3_000_002]
    for number in range(400):
        assert bench.log.cursor(f"p{number}").next == 2


def test_many_readers_are_each_read_from_their_place(
    bench: SegmentBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkd.log.reader._MOST_HINTS", 3)
    for number in range(9):
        append(bench, draft(b"%d" % number, ids=(f"id{number}",)))
    fill(bench, 13)
    for position in (1, 3, 5, 7, 2, 4, 8, 6, 9):
        (batch, *_) = fetch(bench, position, 1)
        assert bodies([batch]) == [b"%d" % (position - 1)]
    assert len(bench.log._reader.hints) == 3


def test_totals_of_what_memory_no_longer_has(
    bench: SegmentBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        append(bench, draft(b"%06d" % number + bytes(100_000), time=1000.0 + number))
    log = bench.restart()
    assert owed(log, 29)["orders"][0] == 2
    assert (owed(log, 31), log.stamp_at(31)) == ({}, None)
    assert log._segment_set.stamp_at(31) is None
    first = min(bench.path.glob("*.log"))
    content = bytearray(first.read_bytes())
    content[250_000] ^= 1
    first.write_bytes(bytes(content))
    # What can't be read is passed over: the next block answers.
    assert 20 < owed(log, 2)["orders"][0] < 29


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "too many"), CorruptSegment(Path("x.log"), 0)]
)
def test_a_block_that_cannot_be_read_counts_as_holding_all_its_channels(
    bench: SegmentBench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It held none: a consumer was moved over the records that it had yet to read."""
    for number in range(30):
        append(bench, draft(b"%06d" % number + bytes(100_000), time=1000.0 + number))
    log = bench.restart()

    def refuse(*_: Any) -> Iterator[Any]:
        raise error
        yield

    with monkeypatch.context() as patched:
        patched.setattr("linkd.log.segment_set.walk", refuse)
        assert "orders" in list(log.channels(2, 3))
        assert owed(log, 2)["orders"][0] < 29
    assert "orders" in list(log.channels(2, 3))


def test_only_a_step_forward_of_what_is_owed_looks_for_room(bench: SegmentBench) -> None:
    fill(bench, 13)
    bench.log.release(5)
    bench.log.release(3)
    assert bench.log._retention.owed_from == 5
    assert bench.log.first == 1


def test_a_publish_that_does_not_fit_by_far_closes_the_log_to_nobody_else(tmp_path: Path) -> None:
    bench = SegmentBench(tmp_path / "log", max_bytes=16 * MIB)
    (refused,) = append(bench, draft(bytes(15 * MIB)))
    assert isinstance(refused, LogFull)
    assert bench.log.full is None
    (taken,) = append(bench, draft(b"small"))
    assert isinstance(taken, Appended)
    bench.close()


def test_a_trim_while_something_is_under_way_takes_what_it_can(bench: SegmentBench) -> None:
    fill(bench, 3)
    got: list[Any] = []
    bench.log.append(draft(b"under way"), got.append)
    assert bench.log.trim(4) == 3
    bench.until(lambda: got)
    assert bodies(everything(bench, 4)) == [b"under way"]


def test_producers_runs_end_at_a_gap_a_channel_and_64_kib(bench: SegmentBench) -> None:
    drafts = [
        draft(b"a", producer=numbered("p", 1)),
        draft(b"b", producer=numbered("p", 2)),
        draft(b"c", producer=numbered("p", 4)),
        draft(b"d", producer=numbered("p", 5), channel="other"),
        draft(b"e", producer=numbered("q", 1), channel="other"),
        draft(bytes(40_000), producer=numbered("q", 2), channel="other"),
        draft(bytes(40_000), producer=numbered("q", 3), channel="other"),
        draft(b"f", producer=numbered("q", 4), channel="other", ids=("x",)),
        draft(b"f", producer=numbered("q", 5), channel="other", ids=("x",)),
        draft(b"g", channel="other"),
    ]
    got = append(bench, *drafts)
    assert got == [
        *[Appended(n, 1) for n in range(1, 9)],
        Appended(8, 0, True),
        Appended(9, 1),
    ]
    bench.restart()
    again = append(bench, *drafts[:8])
    assert again == [Appended(n, 0, True) for n in range(1, 9)]
    assert append(bench, draft(b"z", producer=numbered("p", 3))) == [Appended(10, 1)]


def test_a_flood_of_received_batches_is_cut_into_commits_in_order(bench: SegmentBench) -> None:
    waited: list[Any] = []
    count = 200
    for n in range(1, count + 1):
        bench.log.store(received(n, n + 1, b"%04d" % n + bytes(60_000)), waited.append)
        if n == 100:
            bench.log.set_cursor("other", None, waited.append)
    bench.until(lambda: len(waited) == count + 1)
    assert [int(body[:4]) for body in bodies(everything(bench, 1))] == list(range(1, count + 1))


def test_who_follows_commits_hears_how_long_each_took(bench: SegmentBench) -> None:
    took: list[float] = []
    bench.log.on_written.append(took.append)
    append(bench, draft(b"a"))
    assert took
    assert all(0 <= each < 10 for each in took)


def test_a_scan_of_nothing_is_damage(bench: SegmentBench) -> None:
    append(bench, draft(b"a"))
    (path,) = bench.path.glob("*.log")
    head, _ = read_head(path)
    with pytest.raises(CorruptSegment):
        scan(path, head, 0, None)


def test_an_empty_segment_goes_without_a_word(tmp_path: Path) -> None:
    bench = SegmentBench(tmp_path / "log")
    told: list[int] = []
    log = bench.restart("renamed")
    log.on_trim.append(told.append)
    append(bench, draft(b"a"))
    bench.until(lambda: len(log._segment_set.segments) == 1)
    assert (log.first, told) == (1, [])
    assert bodies(fetch(bench, 1)) == [b"a"]
    bench.close()


def test_what_comes_in_one_turn_is_one_commit(tmp_path: Path) -> None:
    turn: list[Any] = []
    bench = SegmentBench(tmp_path / "log", call_at_iteration_end=turn.append)
    assert len(turn) == 1
    turn.pop()()  # its epoch
    bench.until(lambda: not bench.log._under_way)
    commits: list[float] = []
    bench.log.on_written.append(commits.append)
    outcomes: list[Any] = []
    for body in (b"a", b"b", b"c"):
        bench.log.append(draft(body), outcomes.append)
    assert len(turn) == 1
    assert not bench.log._under_way
    turn.pop()()
    bench.until(lambda: len(outcomes) == 3)
    assert (len(commits), [one.offset for one in outcomes]) == (1, [1, 2, 3])
    for body in (b"d", b"e"):
        bench.log.append(draft(body), outcomes.append)
    bench.close()  # a close does not wait for the end of a turn, nor does what ends then do harm
    turn.pop()()
    assert [one.offset for one in outcomes] == [1, 2, 3, 4, 5]
    assert (len(commits), turn) == (2, [])


def test_much_does_not_wait_for_the_end_of_its_turn(tmp_path: Path) -> None:
    turn: list[Any] = []
    bench = SegmentBench(tmp_path / "log", call_at_iteration_end=turn.append)
    turn.pop()()
    bench.until(lambda: not bench.log._under_way)
    outcomes: list[Any] = []
    bench.log.append(draft(bytes(EAGER_BYTES)), outcomes.append)
    bench.until(lambda: outcomes)
    assert turn == []
    bench.close()


def test_a_disk_that_does_not_tell_what_it_has_left_refuses_nothing(tmp_path: Path) -> None:
    class Silent(RecordingFiles):
        def free_bytes(self, path: Path) -> int:
            raise OSError(errno.EIO, "no answer")

    bench = SegmentBench(tmp_path / "log", files=Silent())
    assert append(bench, draft(b"a")) == [Appended(1, 1)]
    bench.close()


def test_who_raises_keeps_nothing_from_the_others(tmp_path: Path) -> None:
    bench = SegmentBench(tmp_path / "log")
    log, called = bench.log, list[object]()

    def fails(value: object) -> None:
        raise RuntimeError("broken on purpose")

    log.on_commit[:0] = [fails, called.append]
    log.on_written[:0] = [fails, called.append]
    log.append(draft(b"a"), fails)
    with pytest.raises(ExceptionGroup) as raised:
        bench.until(lambda: len(called) > 9)
    assert [str(one) for one in raised.value.exceptions] == ["broken on purpose"] * 3
    assert [type(one) for one in called] == [float, int]
    assert log.next == 2
    log.on_written.clear()
    with pytest.raises(RuntimeError, match="broken on purpose"):
        append(bench, draft(b"b"))
    log.on_commit.clear()
    assert append(bench, draft(b"c"))[0].offset == 3
    bench.close()


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced", "unlinked"])
def test_a_file_that_has_lost_its_name_takes_nothing_more(tmp_path: Path, how: str) -> None:
    """Publishes went on and were acknowledged; all of them were lost at the next start."""
    bench = SegmentBench(tmp_path / "log")
    log, told = bench.log, list[Any]()
    log.on_notice.append(told.append)
    append(bench, draft(b"a"))
    settled = threading.Event()
    log._reader.work(settled.set)
    settled.wait(5.0)
    aside = tmp_path / "aside"
    if how == "unlinked":
        (bench.path / "000000000001.log").unlink()
    else:
        bench.path.rename(aside)
    if how == "deleted":
        shutil.rmtree(aside)
    elif how == "replaced":
        bench.path.mkdir()
    bench.until(lambda: log.full)
    assert "000000000001.log is gone" in (log.full or "")
    (refused,) = append(bench, draft(b"b"))
    assert isinstance(refused, LogFull)
    stored: list[Any] = []
    log.store(received(1, 2, b"waits"), stored.append)
    bench.until(lambda: [one.event for one in told] == ["log.gone"])
    bench.now[0] += 100.0
    done: list[bool] = []
    log._reader.work(lambda: done.append(True))
    bench.until(lambda: done)
    assert not stored
    assert how != "replaced" or not list(bench.path.iterdir())
    if how in ("moved", "replaced"):
        shutil.rmtree(bench.path, ignore_errors=True)
        aside.rename(bench.path)
        bench.until(lambda: stored)
        assert append(bench, draft(b"c"))[0].count == 1
        bench.restart()
        assert bodies(everything(bench)) == [b"a", b"waits", b"c"]
    assert [one.event for one in told] == ["log.gone"]
    bench.close()


def test_a_segment_of_many_frames_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start reads the last one frame by frame: 64 MiB of small ones took it many seconds."""
    monkeypatch.setattr(disk_log, "SEGMENT_FRAMES", 10)
    bench = SegmentBench(tmp_path / "log")
    for number in range(35):
        append(bench, draft(b"%d" % number))
    assert len(bench.log._segment_set.segments) == 4
    assert len(bodies(everything(bench))) == 35
    bench.close()


def test_commits_slow_down_while_a_snapshot_is_far_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under load the newest snapshot was 7 segments behind: a start took 7 s of the processor."""
    waited: list[float] = []
    monkeypatch.setattr(Writer, "pause", waited.append)
    monkeypatch.setattr(disk_log, "SEGMENT_FRAMES", 2)
    bench = SegmentBench(tmp_path / "log")
    snapshots = bench.log._snapshots
    bench.until(lambda: not snapshots.busy)
    snapshots.busy = True  # as if one took long
    while snapshots.behind < disk_log.MOST_BEHIND:
        append(bench, draft(b"x"))
    assert waited == []
    append(bench, draft(b"x"))
    append(bench, draft(b"x"))
    bench.until(lambda: len(waited) == 2)
    assert sorted(waited) == [disk_log.FRAME_PAUSE, 2 * disk_log.FRAME_PAUSE]
    snapshots.busy = False
    append(bench, draft(b"x"), draft(b"y"))
    bench.close()
    assert len(waited) == 2


def test_an_open_log_leaves_the_collector_of_garbage_as_it_was(tmp_path: Path) -> None:
    try:
        for collects in (False, True):
            (gc.enable if collects else gc.disable)()
            bench = SegmentBench(tmp_path / str(collects))
            assert gc.isenabled() is collects
            bench.close()
    finally:
        gc.enable()
