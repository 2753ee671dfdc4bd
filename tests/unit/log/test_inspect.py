"""Looking into a log's files: what is damaged or gone is said, what is not is not."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from linkd.errors import LogDamaged
from linkd.log import stat, verify, verify_segment
from linkd.log.frame import HEAD, frame_prefix
from linkd.log.segment import FORMAT, SegmentHead, load_identity, read_head, segment_path
from tests.support.logs import SegmentBench, append, draft


@pytest.fixture
def bench(tmp_path: Path) -> SegmentBench:
    """Return a closed log of three segments."""
    one = SegmentBench(tmp_path / "log")
    for number in range(30):
        append(one, draft(b"%02d" % number + bytes(100_000)))
    one.close()
    return one


def files(bench: SegmentBench) -> list[Path]:
    """Return the segments, oldest first."""
    return sorted(bench.path.glob("*.log"))


def flip(path: Path, at: int) -> None:
    """Flip a bit."""
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(bytes(content))


def test_a_folder_without_a_log(tmp_path: Path) -> None:
    found = stat(tmp_path)
    assert (found.id, found.first, found.next, found.records, found.segments) == ("", 1, 1, 0, 0)
    assert verify(tmp_path).damage == [
        f"{tmp_path}/identity is missing or damaged; the segments have the rest"
    ]
    for look in (stat, verify):
        with pytest.raises(LogDamaged, match="check the disk"):
            look(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ([0], "from 1 to 1 are gone"),
        ([0, 1], "from 1 to 2 are gone"),
        ([2], "from 3 to 3 are gone"),
        ([0, 1, 2], "from 1 to 3 are gone"),
    ],
)
def test_segments_that_are_gone_at_either_end_are_said(
    bench: SegmentBench, gone: list[int], said: str
) -> None:
    """With every segment gone it had said that the log was sound."""
    assert verify(bench.path).sound
    paths = files(bench)
    for which in gone:
        paths[which].unlink()
    found = verify(bench.path)
    assert not found.sound
    assert [one.endswith(f"the segments {said}") for one in found.damage] == [True]


def test_what_was_deleted_on_purpose_is_not_missed(bench: SegmentBench) -> None:
    bench.open()
    assert bench.log.trim(bench.log.next) == 30
    bench.until(lambda: bench.log.first == 31)
    bench.until(lambda: len(files(bench)) <= 2)
    bench.close()
    found = verify(bench.path)
    assert (found.sound, found.records) == (True, 0)
    assert stat(bench.path).first == 31


def test_a_segment_that_does_not_open_is_named(bench: SegmentBench) -> None:
    second = files(bench)[1]
    flip(second, 60)
    with pytest.raises(LogDamaged, match="`linkd log verify` tells more"):
        stat(bench.path)
    found = verify(bench.path)
    assert found.damage[0] == f"{second}: it does not open as a segment"
    assert "are not there" in found.damage[1]
    assert (found.segments, found.records) == (3, 19)


def test_a_segment_of_another_log_and_a_copy_in_the_wrong_place(
    bench: SegmentBench, tmp_path: Path
) -> None:
    other = SegmentBench(tmp_path / "other")
    append(other, draft(b"theirs"))
    other.close()
    (path,) = (tmp_path / "other").glob("*.log")
    files(bench)[1].write_bytes(path.read_bytes())
    assert f"{files(bench)[1]} belongs to another log" in verify(bench.path).damage


def test_a_write_under_way_is_a_note_and_a_cut_in_a_finished_segment_is_damage(
    bench: SegmentBench,
) -> None:
    first, _, last = files(bench)
    with last.open("r+b") as file:
        file.truncate(last.stat().st_size - 7)
    found = verify(bench.path)
    assert found.sound
    assert "a write broke off, or is under way" in found.notes[0]
    assert stat(bench.path).records == found.records
    assert stat(bench.path).next == 30
    size = first.stat().st_size
    with first.open("r+b") as file:
        file.truncate(size - 7)
    found = verify(bench.path)
    assert not found.sound
    assert found.damage[0] == f"{first}: damaged at byte {size - 7}; 0 good frames follow"


def test_without_its_identity_a_log_is_told_by_its_segments(bench: SegmentBench) -> None:
    identity = load_identity(bench.path)
    assert identity is not None
    index = next(bench.path.glob("*.idx")).read_bytes()
    for content in (index, b"rubbish"):
        (bench.path / "identity").write_bytes(content)
        assert load_identity(bench.path) is None
        found = stat(bench.path)
        assert (found.id, found.next) == (identity.log, 31)
        (told,) = verify(bench.path).damage
        assert "identity is missing or damaged" in told
    flip(segment_path(bench.path, 1), 60)
    bench.open()
    assert bench.log.id == identity.log
    bench.close()


def test_a_snapshot_that_a_running_daemon_deletes_is_not_damaged(
    bench: SegmentBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("linkd.log.inspect.snapshot_numbers", lambda _: [1])
    monkeypatch.setattr("linkd.log.inspect.read_snapshot", gone)
    assert verify(bench.path).damage == []


def test_a_head_longer_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    """Segments of format 1 carry the whole state in their heads."""
    head = SegmentHead(FORMAT, "0.1", 1, "log", "n" * 100_000, 1, 0, 0, 5)
    part = (HEAD, 0, msgspec.msgpack.encode(head), b"")
    path = tmp_path / "000000000001.log"
    path.write_bytes(frame_prefix(part, 0, 0.0, 0.0) + part[2])
    assert read_head(path)[0] == head


def test_one_segment_is_judged_wherever_it_is(tmp_path: Path) -> None:
    """An upgrade that is taken back asks whether the segment that it began holds a record."""
    bench = SegmentBench(tmp_path / "log")
    file = segment_path(tmp_path / "log", 1)
    elsewhere = tmp_path / "elsewhere"
    for count in (0, 2):
        if count:
            append(bench, draft(b"one", b"two"))
        elsewhere.write_bytes(file.read_bytes())
        found = verify_segment(elsewhere)
        assert (found.sound, found.segments, found.records) == (True, 1, count)
        assert found.bytes == elsewhere.stat().st_size
    bench.close()
    elsewhere.write_bytes(b"x" + file.read_bytes()[1:])
    found = verify_segment(elsewhere)
    assert (found.sound, found.records) == (False, 0)
    assert found.damage == [f"{elsewhere}: it does not open as a segment"]
    with pytest.raises(LogDamaged, match="No such file"):
        verify_segment(tmp_path / "nothing")
