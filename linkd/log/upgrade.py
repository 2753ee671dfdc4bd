"""The records of other logs in segments of format 1, taken over exactly.

Format 1 kept the highest offset of each channel, and no batch named the one before it. So only what
lies in its frames proves which offsets are here. An offset belongs to one channel: where records
of other channels of the same epoch fill the hole between two batches, the two follow each other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from linkd.core.batch import Origin
from linkd.log.index import CARRYING, SegmentHead, segment_path
from linkd.log.origins import Origins, Undo, Verdict
from linkd.log.reader import Change
from linkd.log.scan import fold_sealed
from linkd.log.state import State

_Spans = list[tuple[int, int]]
"""First and last offset of runs of records, in any order."""


class OldOrigins(Origins):
    """Stands in for a state's origins while segments of format 1 are folded.

    Args:
        known: The origins that get what was found.
    """

    __slots__ = ("_known", "_nodes", "_spans")

    def __init__(self, known: Origins) -> None:
        super().__init__()
        self._known = known
        self._nodes: dict[str, str] = {}
        self._spans: dict[tuple[str, str], dict[str, _Spans]] = {}

    def admit(
        self, origin: Origin, channel: str, count: int, stamp: float, undo: Undo
    ) -> Verdict | None:
        """Note a batch that is stored."""
        self._nodes.setdefault(origin.log, origin.node)
        spans = self._spans.setdefault((origin.log, origin.epoch), {}).setdefault(channel, [])
        first, last = origin.first, origin.first + count - 1
        if spans and spans[-1][1] + 1 == first:
            first = spans.pop()[0]
        spans.append((first, last))
        return None

    def finish(self) -> Origins:
        """Return the origins with all that was noted."""
        for (log, epoch), channels in self._spans.items():
            runs = _joined(span for spans in channels.values() for span in spans)
            begins = [first for first, _ in runs]
            for channel, spans in channels.items():
                held = list[int]()
                for first, last in _joined(spans):
                    if held and _is_filled(runs, begins, held[-1] + 1, first - 1):
                        held[-1] = last
                    else:
                        held += (first, last)
                origin = Origin(self._nodes[log], log, epoch, held[0])
                self._known.adopt(origin, channel, tuple(held))
        return self._known


def fold_segments(
    folder: Path,
    segments: Iterable[tuple[SegmentHead, int]],
    state: State,
    kept: Mapping[int, Sequence[Change]] | None = None,
) -> Iterator[None]:
    """Fold what changes the state in finished segments, oldest first; yield now and then.

    Args:
        folder: Where they are.
        segments: What opens each, and how many of its bytes count.
        state: Gets what they change. `turn` it to the newest format in the end.
        kept: What some of them change, by number: their files are not read.

    Raises:
        Damage: There is no frame where one should be.
        OSError: A file can't be read.
    """
    for head, size in segments:
        turn(state, head.format)
        path, known = segment_path(folder, head.number), (kept or {}).get(head.number)
        yield from fold_sealed(path, head, size, state, known)


def turn(state: State, version: int) -> None:
    """Prepare a state for the frames of a segment of that format, which follow."""
    origins = state.origins
    if isinstance(origins, OldOrigins):
        if version > CARRYING:
            state.origins = origins.finish()
    elif version <= CARRYING:
        state.origins = OldOrigins(origins)


def _joined(spans: Iterable[tuple[int, int]]) -> _Spans:
    """Return spans in order, those that touch as one."""
    joined: _Spans = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined


def _is_filled(runs: _Spans, begins: list[int], first: int, last: int) -> bool:
    """Return whether `runs` hold all offsets from `first` to `last`; `begins` are their firsts."""
    place = bisect_right(begins, first) - 1
    return place >= 0 and runs[place][1] >= last
