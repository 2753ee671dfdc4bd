"""Fetching what memory no longer has.

A sealed segment found bad on the way is mended and fetching goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from linkd.core.batch import Batch
from linkd.errors import Gap, LinkdError, LogDamaged
from linkd.log.damage import Ward
from linkd.log.engine import Told
from linkd.log.files import Files
from linkd.log.group import ignore
from linkd.log.index import Index
from linkd.log.lock import not_ours
from linkd.log.reader import Damage, Reader
from linkd.log.scan import read_head, scan, scan_sealed
from linkd.log.seal import seal
from linkd.log.shelf import Shelf
from linkd.log.untold import Untold

Fetched = Callable[[list[Batch] | LinkdError], None]


class Bounds(Protocol):
    """How far the log reaches now."""

    first: int
    next: int

    def make_room(self) -> None:
        """A segment takes less of the disk now."""


class Retrieval:
    """Reads from segments.

    Args:
        shelf: The segments.
        reader: The thread that reads.
        files: The disk.
        bounds: The log.
        ward: Makes what mends a folder.
        tell: Called with what the operator must hear of.
    """

    def __init__(
        self,
        shelf: Shelf,
        reader: Reader,
        files: Files,
        bounds: Bounds,
        ward: Callable[[], Ward],
        tell: Callable[[Told], None],
    ) -> None:
        self._shelf = shelf
        self._reader = reader
        self._files = files
        self._bounds = bounds
        self._ward = ward
        self._tell = tell
        self._said = ""

    def fetch(self, position: int, max_bytes: int, done: Fetched, for_link: bool = False) -> None:
        """Read about `max_bytes` of batches from `position` on; for a link before all clients.

        `done` gets them, or Gap or LogDamaged.
        """
        bounds = self._bounds
        if position < bounds.first:
            done(Gap(position, bounds.first))
            return
        place = self._shelf.place(position)
        if place is None:
            done(Gap(position, bounds.next) if position < bounds.next else [])
            return

        def again() -> None:
            self.fetch(position, max_bytes, done, for_link)

        def found(batches: list[Batch] | OSError | Damage) -> None:
            if position < bounds.first:
                done(Gap(position, bounds.first))
            elif isinstance(batches, FileNotFoundError):
                self._mend(Damage(place.path, 0), again, done)
            elif isinstance(batches, OSError):
                done(LogDamaged(not_ours(batches, place.path)))
            elif isinstance(batches, Damage):
                last = self._shelf.last
                if last is not None and self._shelf.path(last) == batches.path:
                    done(LogDamaged(f"{batches}; restart linkd to have it mended"))
                else:
                    self._mend(batches, again, done)
            elif batches and batches[0].offset > position:
                done(Gap(position, batches[0].offset))
            else:
                done(batches)

        self._reader.fetch(place, position, max_bytes, found, for_link)

    def repair(self, damage: Damage) -> bool:
        """Repair a sealed segment that was found bad while nobody waits for its records.

        Returns:
            False where the bad file is no such segment.
        """
        segments = self._shelf.segments[:-1]
        if all(self._shelf.path(segment) != damage.path for segment in segments):
            return False
        self._mend(damage, _nobody_waits, ignore)
        return True

    def _mend(self, damage: Damage, again: Callable[[], None], done: Fetched) -> None:
        """Mend a sealed segment in the background, then go on.

        Where the disk refuses that, who reads is told so, and not that all of it is gone: what is
        readable there is read once it can be mended.
        """
        number, bounds = int(damage.path.stem), self._bounds
        before = next(segment for segment in self._shelf.segments if segment.number == number)

        def job() -> None:
            told: list[Told] = []
            index: Index | LogDamaged
            try:
                index = self._mended(damage, before, told)
            except LogDamaged as error:
                index = error
            except (OSError, Damage) as error:
                index = LogDamaged(f"{damage.path} could not be mended: {error}")
            self._reader.forget()
            self._reader.post(lambda: mended(index, told))

        def mended(index: Index | LogDamaged, told: list[Told]) -> None:
            for one in told:
                self._tell(one)
            if told:
                self._reader.work(lambda: Untold(self._files, damage.path.parent).forget(told))
            if isinstance(index, LogDamaged):
                if str(index) != self._said:
                    self._said = str(index)
                    self._tell(Told("error", "log.damaged", self._said))
                done(index)
                return
            self._shelf.replace(index)
            bounds.make_room()
            again()

        self._reader.work(job)

    def _mended(self, damage: Damage, before: Index, told: list[Told]) -> Index:
        """Return the index of a segment once it is mended; an empty one where it is gone.

        Raises:
            OSError: The disk refuses.
            Damage: It could not be read all the same.
        """
        path, ward = damage.path, self._ward()
        if not path.exists():
            ward.take_back_renamed()
            told += ward.told
        if not path.exists():
            lost = f"offsets lost: {before.first} to {before.next - 1}"
            told.append(Told("error", "log.damaged", f"{path} is gone; {lost}"))
            return msgspec.structs.replace(before, next=before.first, blocks=[])
        try:
            head, _ = read_head(path)
            size = path.stat().st_size if head.salvaged else before.size
            return scan_sealed(path, head, size, not head.salvaged)[0]
        except Damage as worse:
            damage = worse
        ward.mend(damage)
        told[:] = ward.told
        head, _ = read_head(path)
        index, _ = scan(path, head, path.stat().st_size, None, sealed=True)
        seal(self._files, path.parent, index, ())
        return index


def _nobody_waits() -> None:
    """Nobody waits for it."""
