"""What befalls the log and what lies in it: told as it happens, and kept for status and events."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Protocol

from linkd.log import MemoryCursors
from linkd.log.engine import Log, Told
from linkd.node.book import Book
from linkd.node.driver import LinkDriver

Fields = Mapping[str, str | int | float | None]

_LOST = frozenset(
    (
        "consumer.gap",
        "consumer.orphaned",
        "consumer.passed-over",
        "consumer.removed",
        "link.gap",
        "link.records-lost",
        "log.damaged",
        "log.dropped",
        "link.forgotten",
    )
)
"""Records are gone, or somebody hears of them no more."""

_KEPT = _LOST | {
    "drill.ended",
    "drill.started",
    "link.new-log",
    "link.withheld",
    "log.clock-doubtful",
    "log.disk-failed",
    "log.full",
    "log.gone",
    "log.moving",
    "log.rebuilt",
    "log.repaired",
    "log.room",
    "log.stalled",
    "log.trimmed",
    "link.absent",
    "link.returned",
}
"""What `linkd events` shows beside the changes of links."""

_MOST = 20
_MOST_OF_OWNER = 4
"""Sentences about the consumers of one owner: they leave room for all else."""

_LOOKS = 2
"""After so many looks with room it is said: a log at its bound flaps.

After so many at a stalled disk, too: a process that was frozen finds what it waited for first.
"""


class Losses:
    """The newest losses of this run; what is worth it goes into the book too.

    Args:
        book: The remembered changes.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._sentences: deque[tuple[str | None, str]] = deque(maxlen=_MOST)

    def take(self, event: str, fields: Fields) -> None:
        """Take what is said in the log."""
        if event not in _KEPT:
            return
        peer, detail = _text(fields.get("peer")), _text(fields.get("detail"))
        owner = _text(fields.get("owner"))
        self._book.add(event, peer=peer, detail=detail, owner=owner)
        if event in _LOST and detail is not None:
            mine = [one for one in self._sentences if one[0] == owner]
            if owner is not None and len(mine) >= _MOST_OF_OWNER:
                self._sentences.remove(mine[0])
            self._sentences.append((owner, f"{event}: {detail}"))

    def sentences(self, owner: str | None = None) -> list[str]:
        """Return a sentence for each, oldest first; with an owner not those of other owners."""
        return [said for whose, said in self._sentences if owner is None or whose in (None, owner)]


def _text(value: str | int | float | None) -> str | None:
    return None if value is None else str(value)


class Around(Protocol):
    """What the watch needs of its node."""

    def links(self) -> list[LinkDriver]:
        """Return all links."""

    def tell(self, level: str, event: str, **fields: str | int | float | None) -> None:
        """Say something in the log."""


class LogWatch:
    """Says what a log and its cursors tell, and that there is no room, or no answer of the disk.

    Args:
        around: The node.
        log: Its log.
        cursors: What lies beside it.
    """

    def __init__(self, around: Around, log: Log, cursors: MemoryCursors) -> None:
        self._around = around
        self._log = log
        self._full = False
        self._looks_with_room = 0
        self._looks_stalled = 0
        self._waited: dict[str, int] = {}
        self._withheld: set[str] = set()
        for told in (*log.told, *cursors.told):
            self._told(told)
        log.on_told.append(self._told)
        cursors.on_told.append(self._told)

    def look(self) -> None:
        """Compare with the last look; called about once a second."""
        why, size, bound = self._log.full, self._log.size_bytes, self._log.max_bytes
        self._looks_with_room = 0 if why is not None else self._looks_with_room + 1
        if why is not None and not self._full:
            self._full = True
            self._around.tell("error", "log.full", bytes=size, max_bytes=bound, detail=why)
        elif self._full and self._looks_with_room == _LOOKS:
            self._full = False
            self._around.tell("info", "log.room", bytes=size, max_bytes=bound)
        self._look_at_disk()
        waiting = self._waiting() if self._full else {}
        for peer in sorted(waiting.keys() - self._withheld):
            if waiting[peer] == self._waited.get(peer):
                self._withheld.add(peer)
                said = f"what {peer} sent from offset {waiting[peer]} of its log on waits for room"
                self._around.tell("warn", "link.withheld", peer=peer, detail=said)
        self._withheld &= waiting.keys()
        self._waited = waiting

    def _look_at_disk(self) -> None:
        """Say once that the disk answers nothing, and once that it does again."""
        seconds = self._log.stalled()
        if seconds is None and self._looks_stalled >= _LOOKS:
            self._around.tell("info", "log.moving", detail="the disk finishes commits again")
        self._looks_stalled = 0 if seconds is None else self._looks_stalled + 1
        if self._looks_stalled == _LOOKS:
            said = "the disk has not finished a commit; nothing is acknowledged until it does"
            self._around.tell("error", "log.stalled", seconds=seconds, detail=said)

    def _waiting(self) -> dict[str, int]:
        """Return the peers of whose records some wait for the disk, and where they begin."""
        waiting = {}
        for link in self._around.links():
            inbound = link.carrier.session.inbound
            if inbound.received is not None and inbound.committed < inbound.received:
                waiting[link.peer] = inbound.committed
        return waiting

    def _told(self, told: Told) -> None:
        """Pass on what the log or its cursors say."""
        self._around.tell(told.level, told.event, detail=told.detail)
