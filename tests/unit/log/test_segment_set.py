"""How segments follow one another: each names the one before, and what is noted only grows."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import msgspec

from linkd.log.files import DiskFiles
from linkd.log.frame import HEAD
from linkd.log.reader import Reader
from linkd.log.segment import (
    Identity,
    Index,
    SegmentHead,
    ids_path,
    load_identity,
    load_index,
    read_small,
    segment_path,
)
from linkd.log.segment_set import SegmentRoller, SegmentSet


def succession(
    folder: Path, files: DiskFiles | None = None
) -> tuple[SegmentRoller, SegmentSet, Reader]:
    """Return one of a log without segments."""
    segment_set, reader = SegmentSet(folder, 7, []), Reader(7, lambda call: call())
    identity = Identity("log", 7, 0, 40)
    return (
        SegmentRoller(folder, files or DiskFiles(), segment_set, reader, identity),
        segment_set,
        reader,
    )


def done(reader: Reader) -> None:
    """Let the reader do what it has."""
    reader.thread.start()
    reader.stop()


def test_each_segment_names_the_one_before_and_how_much_of_it_counts(tmp_path: Path) -> None:
    order, _, _ = succession(tmp_path)
    part, first = order.begin("edge", 1, None, 0, 5.0)
    head = msgspec.msgpack.decode(part[2], type=SegmentHead)
    assert (part[0], head.number, head.previous, head.previous_size) == (HEAD, 1, 0, 0)
    assert (head.log, head.seed, head.node, head.first, head.salvaged) == (
        "log",
        7,
        "edge",
        1,
        False,
    )
    assert part[3] == b""
    assert first == Index(1, "log", "edge", 1, 1, 0, 5.0, False, [])
    part, second = order.begin("edge", 9, first, 777, 6.0)
    head = msgspec.msgpack.decode(part[2], type=SegmentHead)
    assert (head.number, head.previous, head.previous_size, head.first) == (2, 1, 777, 9)
    assert (second.number, second.first, second.next) == (2, 9, 9)


def test_a_beginning_seals_the_one_before_and_is_noted(tmp_path: Path) -> None:
    order, segment_set, reader = succession(tmp_path)
    order.begun(Index(1, "log", "edge", 1, 9, 500, 5.0, True, []), ())
    order.begun(Index(2, "log", "edge", 9, 60, 300, 6.0, False, []), [("shop", b"key", 3)])
    done(reader)
    assert [segment.number for segment in segment_set.segments] == [1, 2]
    assert load_index(tmp_path, 1, "log") == segment_set.segments[0]
    assert load_index(tmp_path, 2, "log") is None
    assert msgspec.msgpack.decode(read_small(ids_path(tmp_path, 1)) or b"") == {
        "shop": [[b"key", 3]]
    }
    assert (
        segment_set.beside_bytes
        == sum(path.stat().st_size for path in tmp_path.glob("*.id[xs]"))
        > 0
    )
    # The next offset that was promised before lies above: it stays.
    assert load_identity(tmp_path) == order.identity == Identity("log", 7, 2, 40, 1, 1)
    order.drop(1)
    order.free(2, lambda: None)
    assert segment_set.beside_bytes == 0


def test_an_index_written_before_its_segment_went_does_not_count(tmp_path: Path) -> None:
    calls: list[Callable[[], None]] = []
    segment_set, reader = SegmentSet(tmp_path, 7, []), Reader(7, calls.append)
    order = SegmentRoller(tmp_path, DiskFiles(), segment_set, reader, Identity("log", 7, 0, 40))
    order.begun(Index(1, "log", "edge", 1, 9, 500, 5.0, False, []), ())
    order.begun(Index(2, "log", "edge", 9, 60, 300, 6.0, False, []), ())
    order.drop(1)
    while reader._first:  # the index is written, and its size is on the way to the reactor
        reader._first.popleft()()
    order.free(2, lambda: None)
    for call in calls:
        call()
    assert (len(calls), segment_set.beside_bytes) == (1, 0)


def test_what_goes_is_noted_before_it_is_deleted(tmp_path: Path) -> None:
    order, segment_set, reader = succession(tmp_path)
    for number in (1, 2, 3):
        segment_path(tmp_path, number).write_bytes(b"x")
        order.begun(
            Index(number, "log", "edge", 10 * number, 10 * number + 10, 1, 5.0, False, []), ()
        )
    order.drop(2)
    assert [segment.number for segment in segment_set.segments] == [3]
    assert ([segment.number for segment in order.held], order.held_bytes) == ([1, 2], 2)
    order.free(1, lambda: None)
    order.free(3, lambda: None)
    assert (order.held, order.held_bytes) == ([], 0)
    done(reader)
    assert [path.name for path in sorted(tmp_path.glob("*.log"))] == ["000000000003.log"]
    assert list(tmp_path.glob("*.idx")) == []
    assert load_identity(tmp_path) == Identity("log", 7, 3, 40, 3, 30)


def test_what_a_full_disk_could_not_note_is_noted_once_it_has_room(tmp_path: Path) -> None:
    """A start after a kill took the deleted segments for missing ones, and reported a loss."""

    class Full(DiskFiles):
        """Takes something once a segment is deleted."""

        def open(self, path: Path, *, create: bool = False) -> int:
            if create and segment_path(tmp_path, 1).exists():
                raise OSError(errno.ENOSPC, "full")
            return super().open(path, create=create)

    order, _, reader = succession(tmp_path, Full())
    for number in (1, 2):
        segment_path(tmp_path, number).write_bytes(b"x")
        order.begun(
            Index(number, "log", "edge", 10 * number, 10 * number + 10, 1, 5.0, False, []), ()
        )
    order.drop(1)
    order.free(2, lambda: None)
    done(reader)
    assert not segment_path(tmp_path, 1).exists()
    assert load_identity(tmp_path) == order.identity == Identity("log", 7, 2, 40, 2, 20)


class Refusing(DiskFiles):
    """Files on a disk that takes nothing."""

    def open(self, path: Path, *, create: bool = False) -> int:
        """Refuse."""
        raise OSError(errno.ENOSPC, "full", str(path))


def test_a_note_that_the_disk_refuses_ends_nothing(tmp_path: Path) -> None:
    order, _, reader = succession(tmp_path, Refusing())
    order.begun(Index(1, "log", "edge", 1, 9, 500, 5.0, False, []), ())
    order.begun(Index(2, "log", "edge", 9, 9, 0, 5.0, False, []), ())
    went_on: list[bool] = []
    reader.work(lambda: went_on.append(True))
    done(reader)
    assert went_on
    assert list(tmp_path.iterdir()) == []
    assert order.identity.number == 2
