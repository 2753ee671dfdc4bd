"""Peers whose `[[peer]]` entry is missing: their cursors stay for a day, in case it comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from linkd.config import PeerSettings
from linkd.log.engine import CursorStore, Log, PeerCursor
from linkd.status import AbsentPeer

KEPT_SECONDS = 86_400.0
"""Running time for which the cursor of a peer without an entry is kept."""

NOTED_EVERY = 60.0
"""How long a peer has been absent is on disk about so exactly, so that restarts add up."""


class Tell(Protocol):
    """Logs a line."""

    def __call__(self, level: str, event: str, **fields: str | int | float | None) -> None:
        """Log it."""


class _Absent(msgspec.Struct):
    """One absent peer.

    Attributes:
        cursor: What it has of our log.
        owes: Whether it gets a channel, as far as that is known.
        drops: Its entry said `when_full = "drop-oldest"`.
        seconds: Running time since its entry went.
        records: What it is owed, as counted last.
        bytes: Bytes of these.
    """

    cursor: PeerCursor
    owes: Callable[[str], bool]
    drops: bool
    seconds: float
    records: int = 0
    bytes: int = 0


class AbsentPeers:
    """The peers that have a cursor in our log and no entry in the configuration.

    Args:
        log: The node's log.
        cursors: Where the peers' cursors are.
        tell: Logs a line.
        forgotten: Called with a peer whose cursor has gone.
    """

    def __init__(
        self, log: Log, cursors: CursorStore, tell: Tell, forgotten: Callable[[str], None]
    ) -> None:
        self._log = log
        self._cursors = cursors
        self._tell = tell
        self._forgotten = forgotten
        self._absent: dict[str, _Absent] = {}
        self._ticked: float | None = None
        self._noted = 0.0

    def start(self, configured: set[str]) -> None:
        """Find the peers whose entries went while the daemon did not run, or before."""
        counted: dict[int, tuple[int, int]] = {}  # by position: many stand at the log's end
        for name, cursor in self._cursors.peers().items():
            if name in configured:
                if cursor.absent_seconds is not None:  # its entry came back while we did not run
                    self._cursors.set_peer(msgspec.structs.replace(cursor, absent_seconds=None))
                continue
            absent = _Absent(cursor, lambda _: True, False, cursor.absent_seconds or 0.0)
            if cursor.acked not in counted:
                self._count(absent)
                counted[cursor.acked] = absent.records, absent.bytes
            absent.records, absent.bytes = counted[cursor.acked]
            self._add(absent)

    def leave(
        self, settings: PeerSettings, owes: Callable[[str], bool], records: int, size: int
    ) -> None:
        """Keep the cursor of a peer whose entry has gone, and log what it is owed.

        Args:
            settings: What its entry said.
            owes: Whether it gets a channel.
            records: What it is owed.
            size: Bytes of these.
        """
        cursor = self._cursors.peer(settings.name)
        if cursor is not None:
            drops = settings.when_full == "drop-oldest"
            self._add(_Absent(cursor, owes, drops, 0.0, records, size))

    def _add(self, absent: _Absent) -> None:
        name = absent.cursor.peer
        self._absent[name] = absent
        self._note(absent)
        left = (KEPT_SECONDS - absent.seconds) / 3600
        self._tell(
            "error" if absent.records else "info",
            "link.absent",
            peer=name,
            records=absent.records,
            bytes=absent.bytes,
            detail=f"{name} is not configured any more and is owed {_owed(absent)}; its cursor is"
            f" kept for {left:.1f} h of running time: put its [[peer]] back, or run `linkd peers"
            f" --forget {name}`",
        )

    def back(self, name: str) -> None:
        """Let a peer go on where it was: its entry is there again."""
        absent = self._absent.pop(name, None)
        if absent is not None:
            self._cursors.set_peer(msgspec.structs.replace(absent.cursor, absent_seconds=None))
            self._tell(
                "info",
                "link.returned",
                peer=name,
                detail=f"{name} is configured again; the link goes on at offset"
                f" {absent.cursor.acked}",
            )

    def forget(self, name: str, confirmed: bool) -> tuple[int, int]:
        """Return (records, bytes) that an absent peer is owed; where confirmed it is forgotten.

        Raises:
            KeyError: No absent peer has that name.
        """
        absent = self._absent[name]
        self._count(absent)
        if confirmed:
            self._end(absent, "warn", "an operator has it forgotten")
        return absent.records, absent.bytes

    def tick(self, now: float) -> None:
        """Let running time pass, once a second or so; forget those whose day is over."""
        since = now if self._ticked is None else self._ticked
        self._ticked = now
        due = now - self._noted >= NOTED_EVERY
        if due:
            self._noted = now
        for absent in tuple(self._absent.values()):
            absent.seconds += now - since
            if absent.seconds >= KEPT_SECONDS:
                self._count(absent)
                self._end(absent, "error", "it was not configured for 24 h of running time")
            elif due:
                self._note(absent)
        if self._absent:  # one a second: counting is not for free
            name = next(iter(self._absent))
            absent = self._absent[name] = self._absent.pop(name)
            self._count(absent)

    def _end(self, absent: _Absent, level: str, why: str) -> None:
        """Forget a peer, and log what it is not sent any more."""
        name = absent.cursor.peer
        del self._absent[name]
        self._cursors.remove_peer(name)
        self._tell(
            level,
            "link.forgotten",
            peer=name,
            records=absent.records,
            bytes=absent.bytes,
            detail=f"{why}: {name}, which was owed {_owed(absent)} from offset"
            f" {absent.cursor.acked} on, has no cursor any more",
        )
        self._forgotten(name)

    def _note(self, absent: _Absent) -> None:
        """Have the disk remember for how long it has been absent."""
        absent.cursor = msgspec.structs.replace(absent.cursor, absent_seconds=absent.seconds)
        self._cursors.set_peer(absent.cursor)

    def _count(self, absent: _Absent) -> None:
        """Count what it is owed; all channels, where its `send` is not known any more."""
        position = max(absent.cursor.acked, self._log.first)
        owed = self._log.owed(position) if position < self._log.next else {}
        mine = [counted for channel, counted in owed.items() if absent.owes(channel)]
        absent.records = sum(records for records, _ in mine)
        absent.bytes = sum(size for _, size in mine)

    def low_water(self, crowded: bool) -> int:
        """Return the offset below which no absent peer is owed anything.

        Args:
            crowded: Peers with `drop-oldest` hold nothing back.
        """
        held = (
            absent.cursor.acked
            for absent in self._absent.values()
            if not (crowded and absent.drops)
        )
        return min(held, default=self._log.next)

    def warnings(self) -> list[str]:
        """Return a sentence for each absent peer that is owed something, of at most ten."""
        return [
            f"{name} is not configured any more and is owed {_owed(absent)}: see `linkd peers`"
            for name, absent in sorted(self._absent.items())
            if absent.records
        ][:10]

    def statuses(self) -> list[AbsentPeer]:
        """Return the absent peers, by name."""
        return [
            AbsentPeer(
                peer=name,
                next=absent.cursor.acked,
                owed_records=absent.records,
                owed_bytes=absent.bytes,
                absent_seconds=absent.seconds,
                forgotten_seconds=max(0.0, KEPT_SECONDS - absent.seconds),
            )
            for name, absent in sorted(self._absent.items())
        ]


def _owed(absent: _Absent) -> str:
    """Return what is owed, for people."""
    noun = "record" if absent.records == 1 else "records"
    return f"{absent.records:,} {noun} ({absent.bytes:,} bytes)"
