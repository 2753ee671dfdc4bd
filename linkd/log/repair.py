"""Repair damaged segments: quarantine them, keep intact frames, report losses.

A loss is noted on disk before the repair removes its traces, so that the next start reports it if a
crash comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from linkd.errors import LogDamaged
from linkd.log.files import DiskFiles, room
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
    """A loss to report.

    Args:
        detail: One sentence.
        aside: The name of the quarantined file, if any. If that file does not exist, a crash came
            before the quarantine: the damage is still in place, and is found and reported again.
    """

    detail: str
    aside: str = ""


_losses = msgspec.msgpack.Decoder(list[LossReport])


class PendingLossReports:
    """Loss reports in a log's folder that may not have reached the operator yet.

    If the disk refuses to store them, only this run reports the losses.

    Args:
        files: The disk.
        folder: The folder of the segments.
    """

    def __init__(self, files: DiskFiles, folder: Path) -> None:
        self._files = files
        self._folder = folder

    def notices(self) -> list[OperatorNotice]:
        """Return the pending reports, oldest first."""
        return [_as_notice(loss) for loss in self._losses()]

    def note(self, detail: str, aside: str = "") -> None:
        """Store a report durably; `aside` is the name that the damaged file is about to get."""
        losses, new = self._losses(), LossReport(detail, aside)
        if new not in losses and len(losses) < _MOST:
            self._save([*losses, new])

    def forget(self, reported: Sequence[OperatorNotice]) -> None:
        """Remove reports that have reached the operator."""
        losses = self._losses()
        left = [loss for loss in losses if _as_notice(loss) not in reported]
        if left:
            self._save(left)
        else:
            with suppress(OSError):
                self._files.unlink(self._path)

    @property
    def _path(self) -> Path:
        return self._folder / _NAME

    def _losses(self) -> list[LossReport]:
        """Return the stored reports whose loss has really happened."""
        raw = read_small(self._path)
        try:
            losses = [] if raw is None else _losses.decode(raw)
        except msgspec.DecodeError:
            return []
        return [one for one in losses if not one.aside or (self._folder / one.aside).exists()]

    def _save(self, losses: list[LossReport]) -> None:
        """Store the reports, unless the disk refuses."""
        with suppress(OSError):
            write_small(self._files, self._path, msgspec.msgpack.encode(losses), 0.0)
            self._files.sync_dir(self._folder)


def _as_notice(loss: LossReport) -> OperatorNotice:
    return OperatorNotice("error", "log.damaged", loss.detail)


OFFSET_SKIP = 1 << 24
"""How far above all known offsets the next epoch begins if the log's end was lost.

More than one segment holds, so that no lost offset is used again.
"""

_BESIDE = (".idx", ".ids", ".state", ".idx.part", ".ids.part", ".state.part")
_OTHERS = ("identity", "identity.part", "lock", "untold", "untold.part", "clock", "clock.part")

SPARE_BYTES = 1 << 20
"""Bytes that must stay free on the disk after a repaired file is written."""


class SegmentRepairer:
    """Repairs a log's folder, one file at a time.

    Args:
        folder: The folder of the segments.
        files: The disk.
        identity: The log's identity.
        wall: Unix seconds.
        repaired: Names of the files that were repaired since the log was opened.

    Attributes:
        notices: For the operator.
        jump: The log's end was lost: the next epoch must begin OFFSET_SKIP above known offsets.
    """

    def __init__(
        self,
        folder: Path,
        files: DiskFiles,
        identity: Identity,
        wall: Callable[[], float],
        repaired: set[str] | None = None,
    ) -> None:
        self.identity = identity
        self.notices: list[OperatorNotice] = []
        self.jump = False
        self._folder = folder
        self._files = files
        self._wall = wall
        self._pending = PendingLossReports(files, folder)
        self._repaired = set[str]() if repaired is None else repaired

    def repair(self, damage: CorruptSegment) -> None:
        """Quarantine a damaged file and put its intact frames in its place.

        Those are written to a new file, and read back, before the damaged one is renamed: a crash
        at any point leaves one of the two complete. A file that is damaged again after its repair
        is left alone: the memory or the disk is bad, and each repetition would lose a little more.

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
            aside = self._quarantine_name(path)
            sentence = (
                f"{path} belongs to another log, or has another's name; set aside as {aside.name}"
            )
            self._report(sentence, aside=aside.name)
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
            holes.append(f"all from {end} on that were there")
        else:
            after = self._first_after(number)
            if after is not None and after > end:
                holes.append(f"{end} to {after - 1}")
        lost, aside = ", ".join(holes) or "none", self._quarantine_name(path)
        self._report(
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
        """Make the next epoch begin far above, even if a crash comes before the start ends."""
        self.jump = True
        floor = msgspec.structs.replace(
            self.identity, next=max(self.identity.next, known) + OFFSET_SKIP
        )
        save_identity(self._files, self._folder, floor)

    def missing(self, before: int, after: int, next: int, first: int | None) -> None:
        """Report that the segments between two numbers are gone, with offsets `next` to `first`."""
        names = ", ".join(segment_path(self._folder, n).name for n in range(before + 1, after)[:3])
        if first is None:
            self.jump = True
            lost = f"all from {next} on that were there"
        else:
            lost = f"{next} to {first - 1}" if first > next else "none"
        self._report(
            f"{self._folder}: segments are missing ({names}); offsets lost: {lost}."
            " Put the files back while linkd is stopped, if there is a copy"
        )

    def unreadable(self, path: Path) -> None:
        """Report that a file's copy of the state is unreadable; delete it if it is a snapshot."""
        if path.suffix == ".log":
            self._report(f"{path} carries no readable state; an older segment is used", "warn")
            return
        self._report(f"{path} is damaged and was deleted; an older snapshot is used", "warn")
        self._files.unlink(path)

    def state_lost(self) -> None:
        """Report that no copy of the state at the oldest segment is left."""
        self._report(
            f"{self._folder}: no snapshot of the state can be read; how far peers' logs are here,"
            " which records of other nodes and which publishes are stored is known only as far as"
            " the segments show: some may be stored a second time"
        )

    def take_back_renamed(self) -> None:
        """Give renamed segment files of this log their names back."""
        present = set(numbers(self._folder))
        for path in sorted(self._folder.iterdir()):
            name = path.name
            if ".damaged-" in name or name.endswith(_BESIDE) or name in _OTHERS:
                continue
            head = self._head_of(path) if path.is_file() else None
            if head is None or head.number in present or head.number < self.identity.oldest:
                continue  # one below `oldest` was deleted on purpose: this is a copy
            right = segment_path(self._folder, head.number)
            self._files.rename(path, right)
            present.add(head.number)
            if name.endswith(".part"):
                self._report(
                    f"{right} is damaged and was being repaired when linkd ended; what is readable"
                    f" is kept, what is not is still in {right.name}.damaged-*"
                )
            else:
                self._report(f"{path} is {right.name}, and was given its name again", "warn")

    def _head_of(self, path: Path) -> SegmentHead | None:
        """Return the head if the file is a segment of this log, else None."""
        try:
            head, _ = read_head(path)
        except CorruptSegment:
            return None
        return head if head.log == self.identity.log else None

    def _quarantine_name(self, path: Path) -> Path:
        """Return an unused name that marks a file as damaged."""
        aside = path.with_name(f"{path.name}.damaged-{int(self._wall())}")
        while aside.exists():
            aside = aside.with_name(aside.name + "x")
        return aside

    def _set_aside(self, path: Path, aside: Path) -> None:
        """Rename a damaged file, and delete its index and ids, which no longer match."""
        self._files.rename(path, aside)
        for beside in (index_path, ids_path):
            beside(self._folder, int(path.stem)).unlink(missing_ok=True)

    def _first_after(self, number: int) -> int | None:
        """Return the first offset of the next segment, or None if that is unreadable too.

        Then the loss is reported when that one is repaired, or found missing.
        """
        after = min(other for other in numbers(self._folder) if other > number)
        try:
            return read_head(segment_path(self._folder, after))[0].first
        except CorruptSegment:
            return None

    def _head(self, number: int, frames: list[Frame]) -> tuple[SegmentHead, bytes]:
        """Return the head of a repaired segment, and the state that a head of format 1 carries.

        It is the segment's own head or, if that is damaged, one made from its neighbours.
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

        Its intact frames count even if it is damaged too.
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
        """Write a segment of intact frames to a new file, read it back, and return its path.

        Raises:
            LogDamaged: There is no room for it, or it can't be read back.
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
            LogDamaged: It can't be read, and was deleted.
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

    def _report(self, detail: str, level: str = "error", aside: str = "") -> None:
        """Report to the operator once; store a loss first, in case a crash comes before that.

        Call it before the file is renamed to `aside`.
        """
        notice = OperatorNotice(level, "log.damaged", detail)
        if notice not in self.notices:
            self.notices.append(notice)
            if level == "error":
                self._pending.note(detail, aside)


def _complete(frames: list[Frame]) -> list[Frame]:
    """Return frames without an incomplete publish at their end."""
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
