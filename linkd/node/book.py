"""The changes of links and of the node: kept over restarts, folded, sent to those who follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from linkd import events
from linkd.clock import wall
from linkd.core.shown import rfc3339
from linkd.status import Event

MOST = 10_000
"""Events that are kept."""

UNSURE = 100_000
"""Numbers that each start leaves out: a kill may have cost the disk events that have them.

A follower has seen them, and would never get other events under the same numbers.
"""


class EventStore(Protocol):
    """Rows by number, in the file of cursors; soon durable, read once at start."""

    def events(self) -> list[tuple[int, bytes]]:
        """Return all rows, by number."""

    def set_event(self, number: int, row: bytes) -> None:
        """Add a row."""

    def remove_event(self, number: int) -> None:
        """Forget a row, if it is there."""


class Book:
    """The last 10,000 events.

    The attempts of one outage are folded: one event stands for all that had the same result, with
    their number, the time of the first and of the last. It gets a new number each time, so that
    whoever asks for what is new hears of it again.

    Args:
        store: Where they are kept; a row that it can't decode is forgotten.
        most: How many are kept.
    """

    def __init__(self, store: EventStore, most: int = MOST) -> None:
        self._store = store
        self._most = most
        self._events: dict[int, Event] = {}
        self._rows: dict[int, int] = {}  # an event's number, and that of its row
        self._attempts: dict[str, dict[tuple[str, str | None], int]] = {}
        self._followers: list[Callable[[Event], None]] = []
        found: list[tuple[int, Event]] = []
        for row, encoded in store.events():
            try:
                found.append((row, msgspec.json.decode(encoded, type=Event)))
            except msgspec.DecodeError:
                store.remove_event(row)
        for row, event in sorted(found, key=lambda pair: pair[1].number):
            self._events[event.number] = event
            self._rows[event.number] = row
        self._number = max(self._events) + UNSURE if self._events else 0

    def add(self, event: str, **fields: str | None) -> None:
        """Keep an event and send it to all who follow."""
        self._number += 1
        made = Event(
            number=self._number,
            time=rfc3339(wall()),
            event=event,
            peer=fields.get("peer"),
            generation=fields.get("generation"),
            old=fields.get("old"),
            new=fields.get("new"),
            reason=fields.get("reason"),
            detail=fields.get("detail"),
            owner=fields.get("owner"),
        )
        self._keep(self._folded(made))
        for follower in list(self._followers):
            try:
                follower(made)
            except Exception as error:  # noqa: BLE001  # a follower's bug is not the link's
                self.end_of(follower)
                events.emit("node.bug", where="follower", detail=f"{type(error).__name__}: {error}")

    def _folded(self, made: Event) -> Event:
        """Return an event as it is kept: an attempt with those before it in the same outage."""
        if made.peer is None or made.new is None:
            return made
        if "up" in (made.old, made.new) or "stopped" in (made.old, made.new):
            self._attempts.pop(made.peer, None)
            return made
        attempts = self._attempts.setdefault(made.peer, {})
        before = self._events.get(attempts.get((made.event, made.reason), 0))
        attempts[made.event, made.reason] = made.number
        if before is None:
            return made
        # The same row serves: a link that is down for long does not write and delete two a second.
        del self._events[before.number]
        self._rows[made.number] = self._rows.pop(before.number)
        return msgspec.structs.replace(
            made, time=before.time, count=before.count + 1, until=made.time
        )

    def _keep(self, event: Event) -> None:
        self._events[event.number] = event
        row = self._rows.setdefault(event.number, event.number)
        self._store.set_event(row, msgspec.json.encode(event))
        if len(self._events) > self._most:
            oldest = next(iter(self._events))
            del self._events[oldest]
            self._store.remove_event(self._rows.pop(oldest))

    def after(self, number: int) -> list[Event]:
        """Return the events above `number`, oldest first."""
        found = []
        for event in reversed(self._events.values()):
            if event.number <= number:
                break
            found.append(event)
        return found[::-1]

    def follow(self, call: Callable[[Event], None]) -> Callable[[], None]:
        """Send each event to `call` as it happens; returns how to end that."""
        self._followers.append(call)

        return lambda: self.end_of(call)

    def end_of(self, call: Callable[[Event], None]) -> None:
        """Send `call` no more."""
        if call in self._followers:
            self._followers.remove(call)
