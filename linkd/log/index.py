"""What is known of a segment without opening it.

Where records lie, about every half MiB, and their totals.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from linkd.core.batch import Batch

if TYPE_CHECKING:
    from linkd.log.frame import Head

BLOCK_BYTES = 512 * 1024
FORMAT = 2
NEEDS = "0.2"
"""The linkd version that reads this format."""

CARRYING = 1
"""The newest format whose heads carry the state, as format 2 has it in files of its own."""


class Block(msgspec.Struct, array_like=True, gc=False):
    """A run of frames.

    Attributes:
        offset: The first record's offset in it.
        at: Where it begins in the file.
        stamp: The log's clock at its first frame.
        time: The newest publishing time in it, Unix seconds.
        totals: (records, bytes of records) by channel.
    """

    offset: int
    at: int
    stamp: float
    time: float
    totals: dict[str, tuple[int, int]]


class SegmentHead(msgspec.Struct, array_like=True, frozen=True):
    """What opens a segment.

    Args:
        format: The format's version.
        needs: The linkd version that reads it.
        number: Its place among the segments; its file is named after it.
        log: The log's id.
        node: The node's name.
        first: The offset that its first record gets at least.
        previous: The number of the segment before, 0 if none.
        previous_size: How much of that one counts.
        seed: The log's secret start of CRCs.
        salvaged: It was put together from what was readable; all of it counts.
    """

    format: int
    needs: str
    number: int
    log: str
    node: str
    first: int
    previous: int
    previous_size: int
    seed: int
    salvaged: bool = False


class Index(msgspec.Struct, array_like=True):
    """A segment as far as it is committed.

    Attributes:
        number: As in its head; so are `log`, `node` and `first`.
        next: The offset behind its last record; `first` if it has none.
        size: Bytes that count.
        stamp: The log's clock at its last frame.
        has_ids: It has records whose ids count for repeats.
        blocks: In order.
    """

    number: int
    log: str
    node: str
    first: int
    next: int
    size: int
    stamp: float
    has_ids: bool
    blocks: list[Block]

    def add(self, batch: Batch | Head, size: int, stamp: float, at: int, has_ids: bool) -> None:
        """Count in a batch behind all others.

        Args:
            batch: The batch, or the head of its frame.
            size: Bytes of its records.
            stamp: The log's clock.
            at: Where its frame begins.
            has_ids: Its records' ids count for repeats.
        """
        blocks = self.blocks
        if not blocks or at - blocks[-1].at >= BLOCK_BYTES:
            totals = {batch.channel: (batch.count, size)}
            blocks.append(Block(batch.offset, at, stamp, batch.time, totals))
        else:
            block = blocks[-1]
            old = block.totals.get(batch.channel)
            block.totals[batch.channel] = (
                (batch.count, size) if old is None else (old[0] + batch.count, old[1] + size)
            )
            block.time = max(block.time, batch.time)
        self.next = batch.offset + batch.count
        self.stamp = stamp
        if has_ids:
            self.has_ids = True

    def block_of(self, position: int) -> int:
        """Return which block holds `position`, or the first where all lie behind it."""
        return max(0, bisect_right(self.blocks, position, key=_offset) - 1)


def _offset(block: Block) -> int:
    return block.offset


def segment_path(folder: Path, number: int) -> Path:
    """Return the file of a segment."""
    return folder / f"{number:012d}.log"


def index_path(folder: Path, number: int) -> Path:
    """Return the file of a sealed segment's index."""
    return folder / f"{number:012d}.idx"
