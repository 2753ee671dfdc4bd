"""Finding a log again: what is read once is not read at every start."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from linkd.log import recovery, segment, verify
from linkd.log.files import DiskFiles
from linkd.log.segment import load_identity, load_index
from linkd.log.snapshot import snapshot_path, write_at_start
from linkd.log.state import Snapshot, State
from tests.support.logs import SegmentBench, append, bodies, draft, everything, numbered

COUNT = 30


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[SegmentBench]:
    one = SegmentBench(tmp_path / "log")
    for number in range(COUNT):
        append(one, draft(b"%02d" % number + bytes(100_000), ids=(f"id{number}",)))
    one.close()
    yield one
    one.close()


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the files that are read whole at a start, as they are."""
    names: list[str] = []
    real = segment.scan_to

    def noting(path: Path, *rest: Any, **more: Any) -> Any:
        names.append(path.name)
        return real(path, *rest, **more)

    monkeypatch.setattr(recovery, "scan_to", noting)
    monkeypatch.setattr(segment, "scan_to", noting)
    return names


def test_an_index_that_is_missing_is_written_once(bench: SegmentBench, scanned: list[str]) -> None:
    """Such a segment was read whole at every start."""
    *finished, last = sorted(path.name for path in bench.path.glob("*.log"))
    written = {path: path.read_bytes() for path in bench.path.glob("*.idx")}
    assert len(written) == len(finished) == 2
    log = bench.log.id
    before = [load_index(bench.path, number, log) for number in (1, 2)]
    for path in written:
        path.unlink()
    bench.open()
    assert scanned == [*finished, last]
    bench.close()
    scanned.clear()
    bench.open()
    assert scanned == [last]
    assert [load_index(bench.path, number, log) for number in (1, 2)] == before
    assert bench.log.notices == []
    assert len(bodies(everything(bench))) == COUNT
    assert append(bench, draft(b"x", ids=("id3",)))[0].duplicate
    assert verify(bench.path).sound


def test_a_segment_that_was_mended_at_a_start_is_read_once_more_only(
    bench: SegmentBench, scanned: list[str]
) -> None:
    first, *_, last = sorted(bench.path.glob("*.log"))
    content = bytearray(first.read_bytes())
    content[60] ^= 4
    first.write_bytes(bytes(content))
    bench.open()
    assert scanned.count(first.name) == 1
    bench.close()
    scanned.clear()
    bench.open()
    assert scanned == [last.name]
    assert len(bodies(everything(bench))) == COUNT


def test_an_index_that_says_another_size_is_not_believed(
    bench: SegmentBench, scanned: list[str]
) -> None:
    first = min(bench.path.glob("*.log"))
    index = load_index(bench.path, 1, bench.log.id)
    assert index is not None
    right, index.size = index.size, index.size - 1
    segment.seal(DiskFiles(), bench.path, index, ())
    bench.open()
    assert scanned[0] == first.name
    found = load_index(bench.path, 1, bench.log.id)
    assert found is not None
    assert found.size == right


class NoIndex(DiskFiles):
    """Files on a disk that takes no index."""

    def open(self, path: Path, *, create: bool = False) -> int:
        """Open, or refuse."""
        if path.name.endswith(".idx.part"):
            raise OSError(errno.ENOSPC, "full", str(path))
        return super().open(path, create=create)


def test_an_index_that_the_disk_refuses_is_made_at_the_next_start(
    bench: SegmentBench, scanned: list[str]
) -> None:
    for path in bench.path.glob("*.idx"):
        path.unlink()
    bench.files = NoIndex()
    for _ in range(2):
        scanned.clear()
        bench.open()
        assert len(scanned) == 3
        assert len(bodies(everything(bench))) == COUNT
        bench.close()
    bench.files = None
    bench.open()
    assert len(list(bench.path.glob("*.idx"))) == 2


@pytest.mark.parametrize(("ahead", "serves"), [(1, True), (2, False)])
def test_a_snapshot_that_knows_of_records_that_are_gone_is_deleted(
    bench: SegmentBench, ahead: int, serves: bool
) -> None:
    """It may be of the next segment to begin, and of no later one."""
    identity, state = load_identity(bench.path), State(bench.log.id)
    assert identity is not None
    state.producers.note(numbered("p", 7), COUNT, (1,), 1.0, [])
    state.next = COUNT + 1
    number = len(list(bench.path.glob("*.log"))) + ahead
    write_at_start(DiskFiles(), bench.path, number, identity.seed, state, Snapshot())
    bench.open()
    assert snapshot_path(bench.path, number).exists() == serves
    assert append(bench, draft(b"x", producer=numbered("p", 7)))[0].duplicate == serves
    assert bench.log.notices == []
