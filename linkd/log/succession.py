"""How one segment follows another.

What opens the next, what is written beside the one before, the note of which there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from linkd.log.files import Files
from linkd.log.frame import HEAD, Part
from linkd.log.identity import Identity, save_identity
from linkd.log.index import FORMAT, NEEDS, Index, SegmentHead
from linkd.log.reader import Reader
from linkd.log.retention import remove
from linkd.log.seal import bytes_beside, seal
from linkd.log.shelf import Shelf


class Succession:
    """The coming and going of a log's segments.

    Args:
        folder: Where they lie.
        files: The disk.
        shelf: Those that there are.
        reader: The thread that does slow work.
        identity: Who the log is.

        held: Segments that are dropped, and whose files snapshots still need.

    Attributes:
        identity: The same with the newest note of which segments there are.
        held: The same, oldest first.
        held_bytes: What their files occupy.
    """

    def __init__(
        self,
        folder: Path,
        files: Files,
        shelf: Shelf,
        reader: Reader,
        identity: Identity,
        held: Sequence[Index] = (),
    ) -> None:
        self.held = list(held)
        self.held_bytes = sum(index.size for index in held)
        self._folder = folder
        self._files = files
        self._shelf = shelf
        self._reader = reader
        self.identity = identity

    def begin(
        self, node: str, first: int, last: Index | None, size: int, clock: float
    ) -> tuple[Part, Index]:
        """Return what opens the segment behind `last`, and what is known of it before its commit.

        Args:
            node: This node's name.
            first: The offset that its first record gets at least.
            last: The segment before; it may be under way itself.
            size: How much of that one will count.
            clock: The log's own time, in seconds.
        """
        log, seed = self.identity.log, self.identity.seed
        previous = 0 if last is None else last.number
        number = previous + 1
        head = SegmentHead(FORMAT, NEEDS, number, log, node, first, previous, size, seed)
        part = (HEAD, 0, msgspec.msgpack.encode(head), b"")
        return part, Index(number, log, node, first, first, 0, clock, False, [])

    def begun(self, begins: Index, ids: Sequence[tuple[str, bytes, int]]) -> None:
        """A segment is on disk: write the index and `ids` of the one before, and that it is there.

        Both come behind what the reader has to do.
        """
        last = self._shelf.last
        self._shelf.add(begins)
        if last is not None:
            self._reader.work(lambda: self._seal(last, ids))
        self._note(number=begins.number, next=max(self.identity.next, begins.first))

    def _seal(self, last: Index, ids: Sequence[tuple[str, bytes, int]]) -> None:
        """Write what lies beside a segment; the reader's work."""
        seal(self._files, self._folder, last, ids)
        size = bytes_beside(self._folder, last.number)
        self._reader.post(lambda: self._shelf.note_beside(last.number, size))

    def drop(self, count: int) -> None:
        """Take the oldest segments off, and note that; `free` deletes their files."""
        gone = self._shelf.drop(count)
        self.held += gone
        self.held_bytes += sum(index.size for index in gone)
        self._note()

    def free(self, needed: int) -> int:
        """Delete the files of dropped segments before number `needed`, in the background.

        Returns:
            Their bytes.
        """
        gone = [index for index in self.held if index.number < needed]
        size = sum(index.size for index in gone)
        if gone:
            del self.held[: len(gone)]
            self.held_bytes -= size
            numbers = [index.number for index in gone]
            for number in numbers:
                self._shelf.note_beside(number, 0)
            self._reader.work(lambda: remove(self._files, self._folder, numbers))
        return size

    def _note(self, **changes: int) -> None:
        """Note in the background which segments there are."""
        oldest = self._shelf.segments[0]
        identity = self.identity = msgspec.structs.replace(
            self.identity, oldest=oldest.number, first=oldest.first, **changes
        )

        def job() -> None:
            with suppress(OSError):
                save_identity(self._files, self._folder, identity)

        self._reader.work(job)
