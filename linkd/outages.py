"""What happened to each link: every outage, kept over restarts, and its availability.

Pure but for its store: monotonic `now` and Unix `stamp` come from the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from linkd.core.shown import rfc3339
from linkd.status import Outage

MOST = 20_000
"""Outages kept in all; a link keeps its share of them, at least LEAST."""

LEAST = 100

_ALIVE = 0
"""The number of the row that is no outage."""

WINDOWS: Mapping[str, float] = {
    "hour": 3600.0,
    "day": 86_400.0,
    "week": 604_800.0,
    "30 days": 2_592_000.0,
}


class OutageStore(Protocol):
    """Rows by number, in the file of cursors; soon durable, read once at start."""

    def outages(self) -> list[tuple[int, bytes]]:
        """Return all rows, by number."""

    def set_outage(self, number: int, row: bytes) -> None:
        """Add or replace a row."""

    def remove_outage(self, number: int) -> None:
        """Forget a row, if it is there."""


class _Row(msgspec.Struct):
    """An outage as it is kept.

    Args:
        peer: Whose link.
        began: Unix seconds of the last byte heard.
        reason: Why the link left `up`.
        noticed_after: Seconds from the last byte to the notice.
        down: Seconds from the last byte to the next connection being up; None while it lasts.
        attempts: Made to end it.
        replayed: Records owed when it ended.
        drained: Seconds from its end until they were on the peer's disk.
    """

    peer: str
    began: float
    reason: str
    noticed_after: float | None = None
    down: float | None = None
    attempts: int = 0
    replayed: int = 0
    drained: float | None = None


class _Alive(msgspec.Struct):
    """Which links were up when this was last noted; row 0, for when the daemon is killed."""

    stamp: float
    up: list[str]


class _Running(msgspec.Struct):
    """What this run knows of a link's newest outage: its row, and monotonic times."""

    number: int
    began: float
    up: float | None = None


class Outages:
    """All recorded outages.

    Args:
        store: Where they are kept; a row that it can't decode is forgotten.
        most: How many are kept.
    """

    def __init__(self, store: OutageStore, most: int = MOST) -> None:
        self._store = store
        self._most = most
        self._rows: dict[int, _Row] = {}
        self._of: dict[str, list[int]] = {}
        self._running: dict[str, _Running] = {}
        self._left: _Alive | None = None
        for number, encoded in store.outages():
            try:
                if number == _ALIVE:
                    self._left = msgspec.json.decode(encoded, type=_Alive)
                    continue
                row = msgspec.json.decode(encoded, type=_Row)
            except msgspec.DecodeError:
                store.remove_outage(number)
                continue
            self._rows[number] = row
            self._of.setdefault(row.peer, []).append(number)
        self._next = max(self._rows, default=0) + 1

    def alive(self, up: list[str], stamp: float) -> None:
        """Note which links are up, so that a killed daemon knows later since when it was gone.

        Args:
            up: Peers whose links are up; none after a clean end.
            stamp: Unix seconds.
        """
        self._store.set_outage(_ALIVE, msgspec.json.encode(_Alive(stamp, up)))

    def resume(self, peers: Iterable[str], now: float, stamp: float) -> None:
        """Begin an outage for each link that was up when the last run was killed.

        Args:
            peers: Who is configured now.
            now: Monotonic seconds.
            stamp: Unix seconds.
        """
        left, self._left = self._left, None
        if left is None:
            return
        for peer in sorted({*left.up} & {*peers}):
            mine = self._of.get(peer)
            if mine and self._rows[mine[-1]].down is None:
                continue
            gone = max(0.0, stamp - left.stamp)
            self.fell(peer, "closed", None, now - gone, stamp - gone)
        self.alive([], stamp)

    def fell(self, peer: str, reason: str, silence: float | None, now: float, stamp: float) -> None:
        """Note that a link has left `up`.

        Args:
            peer: Whose link.
            reason: One word.
            silence: Seconds since the last byte; None where not known: the outage begins now.
            now: Monotonic seconds.
            stamp: Unix seconds.
        """
        quiet = silence or 0.0
        number, self._next = self._next, self._next + 1
        self._rows[number] = _Row(peer, stamp - quiet, reason, silence)
        self._of.setdefault(peer, []).append(number)
        self._running[peer] = _Running(number, now - quiet)
        self._save(number)
        self._bound(peer)

    def rose(self, peer: str, attempts: int, owed: int, now: float, stamp: float) -> float | None:
        """Note that a link is up, and return the outage's seconds; None where there was none.

        Args:
            peer: Whose link.
            attempts: Made since the link fell.
            owed: Records owed to the peer now.
            now: Monotonic seconds.
            stamp: Unix seconds; counts only where the outage began before this run.
        """
        running = self._running.get(peer)
        if running is None:
            running = self._left_over(peer, now, stamp)
        if running is None or running.up is not None:
            return None
        row = self._rows[running.number]
        row.down = max(0.0, now - running.began)
        row.attempts = attempts
        row.replayed = owed
        row.drained = 0.0 if owed == 0 else None
        running.up = now
        self._save(running.number)
        return row.down

    def drained(self, peer: str, now: float) -> tuple[float, int] | None:
        """Note that the peer has all that was owed when its link came up.

        Returns:
            Seconds since then, and how many records; None where there is nothing to note.
        """
        running = self._running.get(peer)
        if running is None or running.up is None:
            return None
        row = self._rows.get(running.number)
        if row is None or row.drained is not None:
            return None
        row.drained = max(0.0, now - running.up)
        self._save(running.number)
        return row.drained, row.replayed

    def remove(self, peer: str) -> None:
        """Forget a peer that is not configured any more."""
        for number in self._of.pop(peer, []):
            self._forget(number)
        self._running.pop(peer, None)

    def recorded(self, peer: str | None = None, since: float | None = None) -> list[Outage]:
        """Return outages, oldest first.

        Args:
            peer: Of one link only.
            since: Only those that had not ended at this time, Unix seconds.
        """
        numbers = sorted(self._rows) if peer is None else self._of.get(peer, [])
        rows = (self._rows[number] for number in numbers)
        return [_told(row) for row in rows if since is None or _end(row) > since]

    def availability(self, peer: str, stamp: float) -> dict[str, float]:
        """Return the share, 0 to 1, of the last hour, day, week and 30 days that it was up."""
        rows = [self._rows[number] for number in self._of.get(peer, [])]
        return {name: share_up(_spans(rows), span, stamp) for name, span in WINDOWS.items()}

    def _left_over(self, peer: str, now: float, stamp: float) -> _Running | None:
        """Return the outage that was under way when the last run ended."""
        mine = self._of.get(peer)
        if not mine or self._rows[mine[-1]].down is not None:
            return None
        number, row = mine[-1], self._rows[mine[-1]]
        self._running[peer] = _Running(number, now - max(0.0, stamp - row.began))
        return self._running[peer]

    def _save(self, number: int) -> None:
        """Have a row kept."""
        self._store.set_outage(number, msgspec.json.encode(self._rows[number]))

    def _bound(self, peer: str) -> None:
        """Forget a link's oldest outages beyond its share."""
        share = max(LEAST, self._most // len(self._of))
        mine = self._of[peer]
        while len(mine) > share:
            self._forget(mine.pop(0))

    def _forget(self, number: int) -> None:
        """Forget a row."""
        del self._rows[number]
        self._store.remove_outage(number)


def share_up(spans: Iterable[tuple[float, float]], window: float, stamp: float) -> float:
    """Return which share of the `window` seconds before `stamp` lies outside `spans`, from 0 to 1.

    Args:
        spans: Beginning and end of each outage, Unix seconds; they may overlap.
        window: Seconds, above 0.
        stamp: Unix seconds.
    """
    down, covered = 0.0, stamp - window
    for began, ended in sorted(spans):
        first, last = max(began, covered), min(ended, stamp)
        if last > first:
            down += last - first
            covered = last
    return 1.0 - down / window


def _spans(rows: Iterable[_Row]) -> list[tuple[float, float]]:
    """Return when each outage began and ended."""
    return [(row.began, _end(row)) for row in rows]


def _end(row: _Row) -> float:
    """Return when an outage ended, in Unix seconds; infinite while it lasts."""
    return float("inf") if row.down is None else row.began + row.down


def _told(row: _Row) -> Outage:
    """Return an outage as programs get it."""
    return Outage(
        peer=row.peer,
        began=rfc3339(row.began),
        reason=row.reason,
        noticed_after_seconds=_rounded(row.noticed_after),
        down_seconds=_rounded(row.down),
        attempts=row.attempts,
        replayed_records=row.replayed,
        drained_seconds=_rounded(row.drained),
    )


def _rounded(seconds: float | None) -> float | None:
    """Return seconds to a millisecond."""
    return None if seconds is None else round(seconds, 3)
