"""Repair damaged segments: quarantine them, keep intact frames, report losses.

Noted on disk before the folder shows no more of them, so that they are told at the next start if a
crash comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from linkd.errors import LogDamaged
from linkd.log.files import Files, room
from linkd.log.frame import BATCH, CHANGES, HEAD, Frame, frame_prefix, head_of
from linkd.log.interface import OperatorNotice
from linkd.log.reader import CorruptSegment
from linkd.log.segment import (
    FORMAT,
    NEEDS,
    Identity,
    SegmentHead,
    empty_index,
    fold,
    good_frames,
    ids_path,
    index_path,
    numbers,
    read_head,
    read_small,
    save_identity,
    scan,
    segment_path,
    write_small,
)

_NAME = "untold"
_MOST = 1000


class LossReport(msgspec.Struct, array_like=True, frozen=True):
    """A loss.

    Args:
        detail: The sentence about it.
        aside: The name of the file that is set aside with it, empty where none is. Without that
            file a crash came before: the damage is where it was, and is found anew.
    """

    detail: str
    aside: str = ""


_losses = msgspec.msgpack.Decoder(list[LossReport])


class PendingLossReports:
    """The note in a log's folder. Where the disk refuses it, losses are told by this run or never.

    Args:
        files: The disk.
        folder: Where the segments lie.
    """

    def __init__(self, files: Files, folder: Path) -> None:
        self._files = files
        self._folder = folder

    def told(self) -> list[OperatorNotice]:
        """Return what is to be told, oldest first."""
        return [_as_told(loss) for loss in self._losses()]

    def note(self, detail: str, aside: str = "") -> None:
        """Note a loss durably; `aside` is the name that a file is about to get."""
        losses, new = self._losses(), LossReport(detail, aside)
        if new not in losses and len(losses) < _MOST:
            self._save([*losses, new])

    def forget(self, told: Sequence[OperatorNotice]) -> None:
        """The operator was told these."""
        losses = self._losses()
        left = [loss for loss in losses if _as_told(loss) not in told]
        if left:
            self._save(left)
        else:
            with suppress(OSError):
                self._files.unlink(self._path)

    @property
    def _path(self) -> Path:
        return self._folder / _NAME

    def _losses(self) -> list[LossReport]:
        """Return the noted losses that came to pass."""
        raw = read_small(self._path)
        try:
            losses = [] if raw is None else _losses.decode(raw)
        except msgspec.DecodeError:
            return []
        return [one for one in losses if not one.aside or (self._folder / one.aside).exists()]

    def _save(self, losses: list[LossReport]) -> None:
        """Write the note, as far as the disk lets us."""
        with suppress(OSError):
            write_small(self._files, self._path, msgspec.msgpack.encode(losses), 0.0)
            self._files.sync_dir(self._folder)


def _as_told(loss: LossReport) -> OperatorNotice:
    return OperatorNotice("error", "log.damaged", loss.detail)


OFFSET_SKIP = 1 << 24
"""How far above all known offsets an epoch opens where the log's end was lost.

More than a segment holds.
"""

_BESIDE = (".idx", ".ids", ".state", ".idx.part", ".ids.part", ".state.part")
_OTHERS = ("identity", "identity.part", "lock", "untold", "untold.part", "clock", "clock.part")

SPARE_BYTES = 1 << 20
"""What a disk must have left beside a repaired file."""


class SegmentRepairer:
    """Mends a log's folder, one file at a time.

    Args:
        folder: Where the segments lie.
        files: The disk.
        identity: Who the log is.
        wall: Unix seconds.
        repaired: Names of the files that were repaired since the log was opened.

    Attributes:
        told: What the operator must hear of.
        jump: The log's end was lost: the next epoch must open far above all that is known.
    """

    def __init__(
        self,
        folder: Path,
        files: Files,
        identity: Identity,
        wall: Callable[[], float],
        repaired: set[str] | None = None,
    ) -> None:
        self.identity = identity
        self.told: list[OperatorNotice] = []
        self.jump = False
        self._folder = folder
        self._files = files
        self._wall = wall
        self._untold = PendingLossReports(files, folder)
        self._repaired = set[str]() if repaired is None else repaired

    def repair(self, damage: CorruptSegment) -> None:
        """Set a bad file aside and go on with what is readable of it.

        What is readable is written beside it and read back first; each file once only.

        Raises:
            LogDamaged: That file was repaired already, its repair can't be read, or there is no
                room for it; the file is left as it is.
            OSError: The disk refuses.
        """
        path = damage.path
        if path.name in self._repaired:
            raise LogDamaged(
                f"{path} is damaged again at byte {damage.at} after it was repaired: check the"
                " memory and the disk of this host, then start linkd again"
            )
        number = int(path.stem)
        last = number == numbers(self._folder)[-1]
        if damage.foreign:
            aside = self._aside(path)
            said = (
                f"{path} belongs to another log, or has another's name; set aside as {aside.name}"
            )
            self._say(said, aside=aside.name)
            self._set_aside(path, aside)
            return
        frames = good_frames(path, self.identity.seed)
        if last:
            frames = _complete(frames)
        batches = [frame for frame in frames if frame.kind == BATCH]
        head, carried = self._head(number, frames)
        holes, end = _holes(head.first, batches)
        fresh = self._write(path, head, carried, [frame for frame in frames if frame.kind != HEAD])
        if last:
            self._jump(end)
        if last:
            holes.append(f"all from {end} on that were there")
        else:
            after = self._first_after(number)
            if after is not None and after > end:
                holes.append(f"{end} to {after - 1}")
        lost, aside = ", ".join(holes) or "none", self._aside(path)
        self._say(
            f"{path} is damaged at byte {damage.at} and was set aside as {aside.name}; what is"
            f" readable is kept; offsets lost: {lost}. Keep that file for an examination, check the"
            " disk",
            aside=aside.name,
        )
        self._set_aside(path, aside)
        self._files.rename(fresh, path)
        self._files.sync_dir(self._folder)
        self._repaired.add(path.name)

    def _jump(self, known: int) -> None:
        """Let the next epoch open far above, also if a crash comes before it is noted for good."""
        self.jump = True
        floor = msgspec.structs.replace(
            self.identity, next=max(self.identity.next, known) + OFFSET_SKIP
        )
        save_identity(self._files, self._folder, floor)

    def missing(self, before: int, after: int, next: int, first: int | None) -> None:
        """Note that the segments between two numbers are gone, with offsets `next` to `first`."""
        names = ", ".join(segment_path(self._folder, n).name for n in range(before + 1, after)[:3])
        if first is None:
            self.jump = True
            lost = f"all from {next} on that were there"
        else:
            lost = f"{next} to {first - 1}" if first > next else "none"
        self._say(
            f"{self._folder}: segments are missing ({names}); offsets lost: {lost}."
            " Put the files back while linkd is stopped, if there is a copy"
        )

    def unreadable(self, path: Path) -> None:
        """Report that the state can't be read from a file; a snapshot is deleted."""
        if path.suffix == ".log":
            self._say(f"{path} carries no readable state; an older segment serves", "warn")
            return
        self._say(f"{path} is damaged and was deleted; an older snapshot serves", "warn")
        self._files.unlink(path)

    def state_lost(self) -> None:
        """Report that the state at the oldest segment is known no more."""
        self._say(
            f"{self._folder}: no snapshot of the state can be read; how far peers' logs are here,"
            " which records of other nodes and which publishes are stored is known only as far as"
            " the segments show: some may be stored a second time"
        )

    def take_back_renamed(self) -> None:
        """Give files of this log that were renamed their names again."""
        present = set(numbers(self._folder))
        for path in sorted(self._folder.iterdir()):
            name = path.name
            if ".damaged-" in name or name.endswith(_BESIDE) or name in _OTHERS:
                continue
            head = self._head_of(path) if path.is_file() else None
            if head is None or head.number in present or head.number < self.identity.oldest:
                continue  # one below was deleted on purpose: this is somebody's copy
            right = segment_path(self._folder, head.number)
            self._files.rename(path, right)
            present.add(head.number)
            if name.endswith(".part"):
                self._say(
                    f"{right} is damaged and was being repaired when linkd ended; what is readable"
                    f" is kept, what is not is still in {right.name}.damaged-*"
                )
            else:
                self._say(f"{path} is {right.name}, and was given its name again", "warn")

    def _head_of(self, path: Path) -> SegmentHead | None:
        """Return the head of a segment of this log, or None if the file is none."""
        try:
            head, _ = read_head(path)
        except CorruptSegment:
            return None
        return head if head.log == self.identity.log else None

    def _aside(self, path: Path) -> Path:
        """Return a name for a file that says that it is damaged, and that no other has."""
        aside = path.with_name(f"{path.name}.damaged-{int(self._wall())}")
        while aside.exists():
            aside = aside.with_name(aside.name + "x")
        return aside

    def _set_aside(self, path: Path, aside: Path) -> None:
        """Give a file that name; what lies beside it goes."""
        self._files.rename(path, aside)
        for beside in (index_path, ids_path):
            beside(self._folder, int(path.stem)).unlink(missing_ok=True)

    def _first_after(self, number: int) -> int | None:
        """Return the first offset of the next segment, or None where that can't be read either.

        Then the loss is told when that one is mended, or when it is found to be gone.
        """
        after = min(other for other in numbers(self._folder) if other > number)
        try:
            return read_head(segment_path(self._folder, after))[0].first
        except CorruptSegment:
            return None

    def _head(self, number: int, frames: list[Frame]) -> tuple[SegmentHead, bytes]:
        """Return the head of a repaired segment, and the state that one of format 1 has in it.

        It is the segment's own head or, where that is damaged, what its neighbours imply.
        """
        if frames and frames[0].kind == HEAD and frames[0].at == 0:
            head = msgspec.msgpack.decode(frames[0].head, type=SegmentHead)
            return msgspec.structs.replace(head, salvaged=True), frames[0].records
        first, previous, node = self._end_before(number, frames)
        identity = self.identity
        head = SegmentHead(
            FORMAT, NEEDS, number, identity.log, node, first, previous, 0, identity.seed, True
        )
        return head, b""

    def _end_before(self, number: int, frames: list[Frame]) -> tuple[int, int, str]:
        """Return where the segment before ends, its number, and the node's name then.

        What is readable of that one counts, though it be damaged too.
        """
        earlier = [other for other in numbers(self._folder) if other < number]
        for other in reversed(earlier):
            path = segment_path(self._folder, other)
            try:
                head, _ = read_head(path)
            except CorruptSegment:
                continue
            index = empty_index(head)
            for good in good_frames(path, self.identity.seed):
                fold(good, head_of(good) if good.kind == BATCH else None, index, None)
            return index.next, other, head.node
        offsets = [head_of(frame).offset for frame in frames if frame.kind == BATCH]
        oldest = number == self.identity.oldest or not offsets
        first = self.identity.first if oldest else offsets[0]
        return first, earlier[-1] if earlier else 0, ""

    def _write(self, path: Path, head: SegmentHead, carried: bytes, frames: list[Frame]) -> Path:
        """Write a segment of good frames beside the bad one, and read it back; return the file.

        It is whole before the bad one gets another name: a crash in between costs nothing.

        Raises:
            LogDamaged: There is no room for it, or it can't be read.
        """
        encoded = msgspec.msgpack.encode(head)
        stamp, wall = (frames[0].stamp, frames[0].wall) if frames else (0.0, self._wall())
        buffers = [frame_prefix((HEAD, 0, encoded, carried), 0, stamp, wall, 0), encoded, carried]
        for frame in frames:
            flags = frame.flags | (CHANGES if frame.kind == BATCH else 0)
            part = (frame.kind, flags, frame.head, frame.records)
            prefix = frame_prefix(part, 0, frame.stamp, frame.wall, self.identity.seed)
            buffers += (prefix, frame.head, frame.records)
        size = sum(map(len, buffers))
        free = room(self._files, self._folder)
        if free < size + SPARE_BYTES:
            raise LogDamaged(
                f"{path} is damaged, and its repair takes {size} bytes: the disk has {free} left;"
                f" make room for {SPARE_BYTES} bytes more than that, then start linkd again"
            )
        fresh = path.with_name(path.name + ".part")
        fresh.unlink(missing_ok=True)
        fd = self._files.open(fresh, create=True)
        try:
            self._files.write(fd, 0, buffers)
        finally:
            self._files.close(fd)
        self._check(fresh, head, size)
        return fresh

    def _check(self, fresh: Path, head: SegmentHead, size: int) -> None:
        """Read a repaired file back.

        Raises:
            LogDamaged: It can't be read; it is deleted.
        """
        try:
            read_head(fresh)
            scan(fresh, head, size, None, sealed=True)
        except CorruptSegment as damage:
            self._files.unlink(fresh)
            raise LogDamaged(
                f"{damage} of the repaired file either: check the memory and the disk of this host,"
                " then start linkd again"
            ) from None

    def _say(self, detail: str, level: str = "error", aside: str = "") -> None:
        """Tell the operator, once; a loss also if a crash comes before he heard of it.

        Said of a file that is set aside before that is done.
        """
        told = OperatorNotice(level, "log.damaged", detail)
        if told not in self.told:
            self.told.append(told)
            if level == "error":
                self._untold.note(detail, aside)


def _complete(frames: list[Frame]) -> list[Frame]:
    """Return frames without the publish at the end of which a part is missing."""
    end = len(frames)
    while end and frames[end - 1].kind == BATCH:
        publish = head_of(frames[end - 1]).publish
        if publish is None or publish.last:
            break
        end -= 1
    return frames[:end]


def _holes(first: int, frames: list[Frame]) -> tuple[list[str], int]:
    """Return the ranges of offsets missing between frames of batches, and the next offset."""
    holes, expected = [], first
    for frame in frames:
        head = head_of(frame)
        if head.count:
            if head.offset > expected:
                holes.append(f"{expected} to {head.offset - 1}")
            expected = head.offset + head.count
    return holes, expected
