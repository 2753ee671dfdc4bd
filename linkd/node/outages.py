"""Every outage of each link, kept over restarts, and the availability that follows.

Pure but for its store: monotonic `now` and Unix `stamp` come from the caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise

import msgspec

from linkd.log import CursorStore
from linkd.protocol.json import rfc3339
from linkd.status import Availability, Outage

MOST = 20_000
"""Maximum number of outages; each link keeps its share of them, at least LEAST."""

LEAST = 100

_ALIVE = 0
"""The number of the row that holds `_Alive`."""

HOUR, DAY, WEEK, MONTH = 3600.0, 86_400.0, 604_800.0, 2_592_000.0

MOST_RUNS = 200
"""Maximum number of recorded runs; beyond it the shortest pauses are merged."""

BRIEF_SECONDS = 10.0
"""A link that comes up within this time after the first start had no outage."""

Span = tuple[float, float]
"""Beginning and end, Unix seconds."""


class _Row(msgspec.Struct):
    """An outage as it is stored.

    Args:
        peer: Whose link.
        began: Unix seconds of the last byte heard.
        reason: Why the link left `up`.
        noticed_after: Seconds from the last byte to the notice.
        down: Seconds from the last byte to the next connection being up; None while it lasts.
        attempts: Connection attempts during the outage.
        replayed: Records owed when it ended.
        drained: Seconds from its end until they were on the peer's disk.
        drill: A drill made it.
        never_up: The link had not been up before.
    """

    peer: str
    began: float
    reason: str
    noticed_after: float | None = None
    down: float | None = None
    attempts: int = 0
    replayed: int = 0
    drained: float | None = None
    drill: bool = False
    never_up: bool = False


class _Alive(msgspec.Struct):
    """State saved every few seconds in row 0, in case the daemon is killed.

    Args:
        stamp: Unix seconds.
        up: Peers whose links were up then.
        runs: When the node ran, oldest first, in the last 30 days; the last one is this run.
        known: Since when each link has been configured, Unix seconds.
    """

    stamp: float
    up: list[str]
    runs: list[Span] = []
    known: dict[str, float] = {}


class _Running(msgspec.Struct):
    """A link's newest outage in this run: its row, and monotonic times."""

    number: int
    began: float
    up: float | None = None
    attempts: int = 0


class Current(msgspec.Struct, frozen=True):
    """A link's current outage.

    Args:
        began: Unix seconds of the last byte heard; of the configuration where it was never up.
        seconds: Its duration so far.
        reason: One word.
        never_up: The link had not been up before.
    """

    began: float
    seconds: float
    reason: str
    never_up: bool


class Outages:
    """All recorded outages.

    Args:
        store: Where they are kept; rows that cannot be decoded are removed.
        most: How many are kept.
    """

    def __init__(self, store: CursorStore, most: int = MOST) -> None:
        self._store = store
        self._most = most
        self._rows: dict[int, _Row] = {}
        self._of: dict[str, list[int]] = {}
        self._running: dict[str, _Running] = {}
        self._drilled: dict[str, float] = {}  # until when, monotonic seconds
        self._left: _Alive | None = None
        self._began: tuple[float, float] | None = None  # this run, monotonic and Unix seconds
        self._runs: list[Span] = []
        self._known: dict[str, float] = {}
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

    def alive(self, up: list[str], now: float, stamp: float) -> None:
        """Save which links are up, so that the run after a kill knows when it ended.

        Args:
            up: Peers whose links are up; none after a clean end.
            now: Monotonic seconds.
            stamp: Unix seconds.
        """
        runs = self._all_runs(now, stamp)
        self._store.set_outage(_ALIVE, msgspec.json.encode(_Alive(stamp, up, runs, self._known)))

    def resume(self, peers: Iterable[str], now: float, stamp: float) -> None:
        """Start this run: links that were up when the last run was killed are down since then.

        Args:
            peers: Who is configured now.
            now: Monotonic seconds.
            stamp: Unix seconds.
        """
        left, self._left = self._left, None
        self._began = (now, stamp)
        peers = [*peers]
        if left is not None:
            self._runs = left.runs
            self._known = {peer: since for peer, since in left.known.items() if peer in peers}
            for peer in sorted({*left.up} & {*peers}):
                if self._open_row(peer) is None:
                    gone = max(0.0, stamp - left.stamp)
                    self.fell(peer, "closed", None, now - gone, stamp - gone)
        for peer in peers:
            self.configured(peer, now, stamp)
        self.alive([], now, stamp)

    def configured(self, peer: str, now: float, stamp: float) -> None:
        """Note that a link is configured and not up: where it never was, its outage begins."""
        first = peer not in self._known and not self._of.get(peer)
        self._known.setdefault(peer, stamp)
        row = self._open_row(peer)
        if row is None:
            reason = "unreachable" if first else "closed"
            self._add(_Row(peer, stamp, reason, never_up=first), now)
        elif peer not in self._running:
            gone = max(0.0, stamp - row.began)
            self._running[peer] = _Running(self._of[peer][-1], now - gone)

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
        drill = now - quiet <= self._drilled.get(peer, -math.inf)
        self._add(_Row(peer, stamp - quiet, reason, silence, drill=drill), now - quiet)

    def _add(self, row: _Row, began: float) -> None:
        """Add an outage that began at `began`, monotonic seconds."""
        number, self._next = self._next, self._next + 1
        self._rows[number] = row
        self._of.setdefault(row.peer, []).append(number)
        self._running[row.peer] = _Running(number, began)
        self._save(number)
        self._bound(row.peer)

    def drilled(self, peer: str, until: float) -> None:
        """Note until when a drill disturbs a link: outages that begin before are marked.

        Args:
            peer: Whose link.
            until: Monotonic seconds.
        """
        self._drilled[peer] = until

    def tried(self, peer: str, attempts: int) -> None:
        """Note how many attempts were made to end a link's outage so far."""
        running = self._running.get(peer)
        if running is not None:
            running.attempts = attempts

    def failed(self, peer: str, reason: str) -> None:
        """Note why an attempt failed, which is the outage's reason of a link that was never up."""
        row = self._open_row(peer)
        if row is not None and row.never_up and row.reason != reason:
            row.reason = reason
            self._save(self._of[peer][-1])

    def current(self, peer: str, now: float) -> Current | None:
        """Return a link's current outage, or None while it is up."""
        row, running = self._open_row(peer), self._running.get(peer)
        if row is None or running is None:
            return None
        return Current(row.began, max(0.0, now - running.began), row.reason, row.never_up)

    def last_reason(self, peer: str) -> str | None:
        """Return why a link's newest outage began, or None where none is recorded."""
        mine = self._of.get(peer)
        return self._rows[mine[-1]].reason if mine else None

    def rose(self, peer: str, attempts: int, owed: int, now: float) -> float | None:
        """Note that a link is up, and return the outage's seconds, or None without an outage.

        Args:
            peer: Whose link.
            attempts: Made since the link fell.
            owed: Records owed to the peer now.
            now: Monotonic seconds.
        """
        running = self._running.get(peer)
        if running is None or running.up is not None:
            return None
        row = self._rows[running.number]
        row.down = max(0.0, now - running.began)
        if row.never_up and row.down < BRIEF_SECONDS:
            self._forget(self._of[peer].pop())
            del self._running[peer]
            return None
        row.attempts = attempts
        row.replayed = owed
        row.drained = 0.0 if owed == 0 else None
        running.up = now
        self._save(running.number)
        return row.down

    def is_up_elsewhere(self, peer: str, since: float) -> None:
        """Note that another instance of the node has a link up: what began later is no outage.

        Args:
            peer: Whose link.
            since: When it came up, monotonic seconds of this host.
        """
        running = self._running.get(peer)
        if running is None or running.up is not None:
            return
        if since > running.began:
            self.rose(peer, 0, 0, since)
        else:
            self._forget(self._of[peer].pop())
            del self._running[peer]

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
        self._known.pop(peer, None)

    def recorded(
        self,
        now: float,
        peer: str | None = None,
        since: float | None = None,
        drills: bool = True,
    ) -> Iterator[Outage]:
        """Yield outages, oldest first.

        Args:
            now: Monotonic seconds.
            peer: Of one link only.
            since: Only those that had not ended at this time, Unix seconds.
            drills: Whether those that drills made, too.
        """
        numbers = sorted(self._rows) if peer is None else self._of.get(peer, [])
        for row in [self._rows[number] for number in numbers]:
            if (since is None or _end(row) > since) and (drills or not row.drill):
                yield self._shown(row, now)

    def _shown(self, row: _Row, now: float) -> Outage:
        """Return an outage in the form of the API."""
        running = self._running.get(row.peer)
        down, ongoing = row.down, row.down is None
        if down is None and running is not None:
            down = max(0.0, now - running.began)
        return Outage(
            peer=row.peer,
            began=rfc3339(row.began),
            reason=row.reason,
            noticed_after_seconds=_rounded(row.noticed_after),
            down_seconds=_rounded(down),
            attempts=running.attempts if ongoing and running is not None else row.attempts,
            replayed_records=row.replayed,
            drained_seconds=_rounded(row.drained),
            ongoing=ongoing,
            drill=row.drill,
            never_up=row.never_up,
        )

    def availability(
        self, peer: str, now: float, stamp: float, drills: bool = True
    ) -> Availability:
        """Return the share of the time that was measured in which a link was up.

        Args:
            peer: Whose link.
            now: Monotonic seconds.
            stamp: Unix seconds.
            drills: Whether outages that drills made count.
        """
        known = self._known.get(peer, stamp)
        runs = self._all_runs(now, stamp)
        measured = [(max(began, known), ended) for began, ended in runs if ended > known]
        rows = [self._rows[number] for number in self._of.get(peer, [])]
        down = [(row.began, min(_end(row), stamp)) for row in rows if drills or not row.drill]
        hour, day, week, month = (
            share_up(measured, down, (stamp - window, stamp)) for window in (HOUR, DAY, WEEK, MONTH)
        )
        return Availability(
            peer,
            rfc3339(max(measured[0][0], stamp - MONTH)) if measured else None,
            hour,
            day,
            week,
            month,
            [
                (rfc3339(began), rfc3339(ended))
                for began, ended in common([(stamp - DAY, stamp)], measured)
            ],
        )

    def _all_runs(self, now: float, stamp: float) -> list[Span]:
        """Return when the node ran in the last 30 days, this run included, oldest first."""
        runs = self._runs
        if self._began is not None:
            # The clock may have been set since: extend by the monotonic running time.
            runs = [*runs, (stamp - max(0.0, now - self._began[0]), stamp)]
        runs = merged((max(began, stamp - MONTH), ended) for began, ended in runs)
        while len(runs) > MOST_RUNS:
            pauses = [later[0] - earlier[1] for earlier, later in pairwise(runs)]
            at = pauses.index(min(pauses))
            runs[at : at + 2] = [(runs[at][0], runs[at + 1][1])]
        return runs

    def _open_row(self, peer: str) -> _Row | None:
        """Return a link's outage that has not ended."""
        mine = self._of.get(peer)
        row = self._rows[mine[-1]] if mine else None
        return row if row is not None and row.down is None else None

    def _save(self, number: int) -> None:
        """Store a row."""
        self._store.set_outage(number, msgspec.json.encode(self._rows[number]))

    def _bound(self, peer: str) -> None:
        """Remove a link's oldest outages beyond its share."""
        share = max(LEAST, self._most // len(self._of))
        mine = self._of[peer]
        while len(mine) > share:
            self._forget(mine.pop(0))

    def _forget(self, number: int) -> None:
        """Remove a row."""
        del self._rows[number]
        self._store.remove_outage(number)


def merged(spans: Iterable[Span]) -> list[Span]:
    """Return the union of spans as ordered, separate, non-empty spans."""
    found: list[Span] = []
    for began, ended in sorted(spans):
        if ended <= began:
            continue
        if found and began <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], ended))
        else:
            found.append((began, ended))
    return found


def common(some: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """Return the intersection of two lists of spans, in order."""
    return merged(
        (max(began, first), min(ended, last))
        for began, ended in some
        for first, last in others
        if max(began, first) < min(ended, last)
    )


def share_up(measured: Iterable[Span], down: Iterable[Span], window: Span) -> float | None:
    """Return which share of the measured part of a window was not down, 0 to 1.

    Args:
        measured: When it was measured; spans may overlap.
        down: Outages; they may overlap, and lie where nothing was measured.
        window: The window.

    Returns:
        None where nothing of the window was measured.
    """
    known = common([window], measured)
    total = sum(ended - began for began, ended in known)
    if not total:
        return None
    return 1.0 - sum(ended - began for began, ended in common(known, down)) / total


def _end(row: _Row) -> float:
    """Return when an outage ended, in Unix seconds; infinite while it lasts."""
    return math.inf if row.down is None else row.began + row.down


def _rounded(seconds: float | None) -> float | None:
    """Return seconds to a millisecond."""
    return None if seconds is None else round(seconds, 3)
