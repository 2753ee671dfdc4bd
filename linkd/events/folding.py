"""Repeats of a line, folded: the first is written, the rest counted and summed up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from linkd.events.table import KINDS

Fields = Mapping[str, object]
WINDOW = 120.0
MOST_KEYS = 1024


class _Repeats(msgspec.Struct):
    """How often a line came again since it was last written, and what it said last."""

    event: str
    written: float
    count: int = 0
    last: Fields = {}
    at: float = 0.0


class Folding:
    """Decide which lines are written.

    Args:
        window: Seconds after a written line in which its repeats are only counted.
    """

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._known: OrderedDict[tuple[object, ...], _Repeats] = OrderedDict()

    def take(self, event: str, fields: Fields, now: float) -> list[tuple[str, Fields]]:
        """Return the lines to write for this one: none, itself, or summaries and itself.

        A summary has `repeats`, how many lines it stands for, and `within_seconds`. A line that is
        never folded first settles what was counted for its peer, so that the order stays readable.
        """
        kind = KINDS.get(event)
        if kind is None or not kind.folds:
            lines = self._settle(fields.get("peer"), now)
            lines.append((event, fields))
            return lines
        key = (event, *(fields.get(name) for name in kind.folds))
        known = self._known.get(key)
        if known is None:
            self._known[key] = _Repeats(event, now)
            return [*self._overflow(now), (event, fields)]
        known.count += 1
        known.last = fields
        known.at = now
        return [self._summary(known, now)] if now - known.written >= self._window else []

    def flush(self, now: float, all: bool = False) -> list[tuple[str, Fields]]:
        """Return the summaries that are due at `now`, or all; forget what has long been quiet."""
        lines = []
        for key, known in list(self._known.items()):
            if now - known.written < self._window and not all:
                continue
            if known.count:
                lines.append(self._summary(known, now))
            else:
                del self._known[key]
        return lines

    def _settle(self, peer: object, now: float) -> list[tuple[str, Fields]]:
        """Sum up and forget what was counted for `peer`."""
        if peer is None:
            return []
        lines = []
        for key, known in list(self._known.items()):
            if peer in key[1:]:
                if known.count:
                    lines.append(self._summary(known, now))
                del self._known[key]
        return lines

    def _overflow(self, now: float) -> list[tuple[str, Fields]]:
        """Keep what is remembered bounded."""
        if len(self._known) <= MOST_KEYS:
            return []
        _, oldest = self._known.popitem(last=False)
        return [self._summary(oldest, now)] if oldest.count else []

    def _summary(self, known: _Repeats, now: float) -> tuple[str, Fields]:
        """Return the line that stands for what was counted, and count anew."""
        fields = {
            **known.last,
            "repeats": known.count,
            "within_seconds": round(known.at - known.written, 3),
        }
        known.written, known.count = now, 0
        return known.event, fields
