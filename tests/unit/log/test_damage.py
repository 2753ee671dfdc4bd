"""Damaged heads, lost identities and files that are not ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from linkd.errors import LogDamaged
from linkd.log.lock import not_ours
from tests.support.logs import SegmentBench, append, bodies, draft, everything, received, store


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


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_damaged_head_costs_no_record(bench: SegmentBench, which: int) -> None:
    fill(bench)
    bench.close()
    flip(sorted(bench.path.glob("*.log"))[which], 60)
    bench.open()
    assert len(bodies(everything(bench))) == 31
    assert any("set aside" in told.detail for told in bench.log.told)
    cursor = bench.log.cursor("hub")
    assert cursor is not None
    assert cursor.next == 5
    bench.restart()
    assert bench.log.told == []
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
    assert sum("set aside" in told.detail for told in bench.log.told) == 2
    bench.restart()
    assert bench.log.told == []


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
        "set aside" in told.detail and "lost: none" not in told.detail for told in bench.log.told
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
    assert bench.log.told == []
    again = append(bench, draft(b"x", ids=("id3",)), draft(b"y", ids=("id29",)))
    assert [(one.offset, one.duplicate) for one in again] == [(4, True), (30, True)]
    bench.restart()
    assert append(bench, draft(b"x", ids=("id3",)))[0].duplicate


def test_a_file_of_another_owner_is_named_with_what_to_do() -> None:
    said = not_ours(PermissionError(13, "denied", "/x/1.log"), Path("/x"))
    assert "/x/1.log" in said
    assert "chown" in said
    assert "check the disk" in not_ours(OSError(5, "I/O error", "/x/1.log"), Path("/x"))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LogDamaged, match="check the disk"):
        SegmentBench(tmp_path / "file" / "log")
