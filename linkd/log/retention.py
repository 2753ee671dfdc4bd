"""Which segments may go: trimmed, or owed to nobody and too old or too much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from linkd.log.files import Files
from linkd.log.index import Index, index_path, segment_path
from linkd.log.seal import ids_path
from linkd.log.settings import SegmentSettings

SPARE_SEGMENTS = 4
"""A disk is kept free for so many more, so that room is made before publishes are refused."""


class Retention:
    """How far a log's segments are needed.

    Args:
        settings: The log's bounds.
        segment_bytes: About the bytes of a segment.
        ago: Returns what the log's clock was so many seconds before a stamp.

    Attributes:
        owed_from: Nothing below it is owed to anybody.
        trim_to: What lies below it was trimmed.
        freed_bytes: Bytes of files that are being deleted: the disk does not show their room yet.
    """

    def __init__(
        self, settings: SegmentSettings, segment_bytes: int, ago: Callable[[float, float], float]
    ) -> None:
        self._ago = ago
        self._settings = settings
        self._most = settings.max_bytes * 9 // 10 - segment_bytes
        self._wanted = settings.min_free_bytes + SPARE_SEGMENTS * segment_bytes
        self.freed_bytes = 0
        self.owed_from = 1
        self.trim_to = 1

    def is_over(self, size: int, free: int) -> bool:
        """Return whether old segments go that nobody is owed.

        Args:
            size: Bytes of all segments.
            free: Bytes that the disk has left, or soon will have.
        """
        return size > self._most or free < self._wanted

    def count(self, segments: Sequence[Index], size: int, free: int, clock: float) -> int:
        """Return how many of the oldest segments may go; the last one never does.

        A disk with less room than `max_bytes` counts only for what nobody is owed.

        Args:
            segments: All of them, oldest first.
            size: Bytes of all, and of what is under way.
            free: Bytes that the disk has left, or soon will have.
            clock: The log's own time, in seconds.
        """
        oldest = self._ago(clock, self._settings.max_age)
        count = 0
        for segment in segments[:-1]:
            over = self.is_over(size, free)
            unowed = segment.next <= self.owed_from and (over or segment.stamp < oldest)
            dropped = size > self._most and self._settings.when_full == "drop-oldest"
            if not (unowed or dropped or segment.next <= self.trim_to):
                break
            size -= segment.size
            free += segment.size
            count += 1
        return count

    def outlived(self, segment: Index, clock: float) -> bool:
        """Whether a segment has records, all of which are owed to nobody and too old."""
        oldest = self._ago(clock, self._settings.max_age)
        return segment.first < segment.next <= self.owed_from and segment.stamp < oldest


def remove(files: Files, folder: Path, numbers: Sequence[int]) -> None:
    """Delete segments and what lies beside them, as far as the disk lets us."""
    for number in numbers:
        for path in (index_path, ids_path, segment_path):
            with suppress(OSError):
                files.unlink(path(folder, number))
