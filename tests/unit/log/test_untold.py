"""A loss is told until somebody has heard of it: by the start that found it, or by the next."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from linkd.errors import LogDamaged
from linkd.log.files import DiskFiles
from linkd.log.interface import OperatorNotice
from linkd.log.recovery import recover
from linkd.log.repair import PendingLossReports
from linkd.log.segment import write_small
from tests.support.disk import Breaking
from tests.support.logs import SegmentBench, append, bodies, draft, everything

COUNT = 30


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[SegmentBench]:
    """Return a log of three segments that is closed; the test leaves it open."""
    one = SegmentBench(tmp_path / "log")
    for number in range(COUNT):
        append(one, draft(b"%02d" % number + bytes(100_000)))
    one.close()
    yield one
    one.close()


def found(folder: Path, files: DiskFiles | None = None) -> list[OperatorNotice]:
    """Find a log, and end before anybody is told; return what would have been."""
    return recover(folder, files or DiskFiles(), lambda: 1_700_000_000.0).notices


def losses(told: Sequence[OperatorNotice]) -> list[str]:
    """Return the sentences about losses."""
    assert {(one.level, one.event) for one in told} <= {("error", "log.damaged")}
    return [one.detail for one in told]


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_crash_right_behind_a_mending_leaves_the_loss_to_the_next_start(
    bench: SegmentBench, which: int
) -> None:
    """Its file was whole again, and nothing was said."""
    path = sorted(bench.path.glob("*.log"))[which]
    content = bytearray(path.read_bytes())
    content[60] ^= 4
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))
    first = losses(found(bench.path))
    assert len(first) == 1
    for _ in range(3):
        assert losses(found(bench.path)) == first
    bench.open()
    assert losses(bench.log.notices) == first
    assert len(bodies(everything(bench))) == COUNT - 1
    bench.restart()
    assert losses(bench.log.notices) == []
    assert not (bench.path / "untold").exists()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_crash_behind_a_start_without_a_file_leaves_that_to_the_next(
    bench: SegmentBench, which: int
) -> None:
    """The identity had forgotten the file, and nobody was told."""
    sorted(bench.path.glob("*.log"))[which].unlink()
    (first,) = losses(found(bench.path))
    assert "segments are missing" in first
    assert losses(found(bench.path)) == [first]
    bench.open()
    assert losses(bench.log.notices) == [first]


def test_a_foreign_file_is_told_after_a_crash_too(bench: SegmentBench, tmp_path: Path) -> None:
    other = SegmentBench(tmp_path / "other")
    other.close()
    (theirs,) = (tmp_path / "other").glob("*.log")
    shutil.copy(theirs, bench.path / "000000000009.log")
    (first,) = losses(found(bench.path))
    assert "belongs to another log" in first
    bench.open()
    assert losses(bench.log.notices) == [first]


@pytest.mark.parametrize("which", [0, -1])
def test_wherever_a_mending_is_cut_off_the_offsets_lost_are_told_and_no_others(
    bench: SegmentBench, tmp_path: Path, which: int
) -> None:
    path = sorted(bench.path.glob("*.log"))[which]
    content = bytearray(path.read_bytes())
    content[60] ^= 4
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))
    good = tmp_path / "good"
    shutil.copytree(bench.path, good)
    (whole,) = losses(found(bench.path))
    lost = whole.partition("offsets lost: ")[2]
    for left in range(60):
        shutil.rmtree(bench.path)
        shutil.copytree(good, bench.path)
        disk = Breaking(left)
        with suppress(LogDamaged):
            found(bench.path, disk)
        bench.open()
        told = losses(bench.log.notices)
        exact = [one for one in told if "offsets lost: " in one]
        assert [one.partition("offsets lost: ")[2] for one in exact] == [lost], left
        aside = exact[0].partition("set aside as ")[2].partition(";")[0]
        assert [one.name for one in bench.path.glob("*.damaged-*")] == [aside], left
        bench.restart()
        assert losses(bench.log.notices) == []
        bench.close()
        if disk.left >= 0:
            break
    else:
        raise AssertionError("no end")
    bench.open()


def test_what_is_mended_while_it_is_read_is_noted_until_it_was_told(bench: SegmentBench) -> None:
    bench.open()
    first = min(bench.path.glob("*.log"))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 4
    first.write_bytes(bytes(content))
    noted: list[list[OperatorNotice]] = []
    bench.log.on_notice.append(
        lambda told: noted.append(PendingLossReports(DiskFiles(), bench.path).notices())
    )
    assert len(bodies(everything(bench))) == COUNT - 1
    assert noted == [list(bench.log.notices)]
    assert len(losses(noted[0])) == 1
    bench.restart()
    assert bench.log.notices == []


class Full(DiskFiles):
    """A disk on which there is no room for the note."""

    def open(self, path: Path, *, create: bool = False) -> int:
        """Open, or refuse."""
        if path.name.startswith("untold"):
            raise OSError(errno.ENOSPC, "full", str(path))
        return super().open(path, create=create)


def test_a_note_that_the_disk_refuses_hinders_no_mending(bench: SegmentBench) -> None:
    first = min(bench.path.glob("*.log"))
    content = bytearray(first.read_bytes())
    content[60] ^= 4
    first.write_bytes(bytes(content))
    bench.files = Full()
    bench.open()
    assert len(losses(bench.log.notices)) == 1
    assert len(bodies(everything(bench))) == COUNT
    bench.restart()
    assert bench.log.notices == []


def test_a_note_is_kept_until_each_of_it_was_told(tmp_path: Path) -> None:
    note = PendingLossReports(DiskFiles(), tmp_path)
    (tmp_path / "1.log.damaged-5").write_bytes(b"")
    note.note("one", "1.log.damaged-5")
    note.note("two")
    note.note("two")
    note.note("that was never set aside", "2.log.damaged-5")
    one, two = note.notices()
    assert (one.detail, two.detail) == ("one", "two")
    note.forget([one])
    assert note.notices() == [two]
    note.forget([two])
    note.forget([two])
    assert list(tmp_path.iterdir()) == [tmp_path / "1.log.damaged-5"]


def test_a_note_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    note = PendingLossReports(DiskFiles(), tmp_path)
    note.note("one")
    (tmp_path / "untold").write_bytes(b"rubbish")
    assert note.notices() == []
    write_small(DiskFiles(), tmp_path / "untold", b"\x05", 0.0)
    assert note.notices() == []


def test_a_note_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("linkd.log.repair._MOST", 3)
    note = PendingLossReports(DiskFiles(), tmp_path)
    for number in range(9):
        note.note(str(number))
    assert [told.detail for told in note.notices()] == ["0", "1", "2"]
