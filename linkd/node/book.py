"""The changes of this run: remembered, and told as they happen."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from linkd import events
from linkd.clock import wall
from linkd.core.shown import rfc3339
from linkd.status import Event

_REMEMBERED = 10_000


class Book:
    """The last 10,000 changes."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._number = 0
        self._followers: list[Callable[[Event], None]] = []

    def add(self, event: str, **fields: str | None) -> None:
        """Remember a change and tell it to all who follow."""
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
        self._events.append(made)
        if len(self._events) > _REMEMBERED * 2:
            del self._events[:_REMEMBERED]
        for follower in list(self._followers):
            try:
                follower(made)
            except Exception as error:  # noqa: BLE001  # a follower's bug is not the link's
                self.end_of(follower)
                events.emit("node.bug", where="follower", detail=f"{type(error).__name__}: {error}")

    def after(self, number: int) -> list[Event]:
        """Return the remembered changes above `number`, oldest first."""
        return self._events[bisect_right(self._events, number, key=lambda e: e.number) :]

    def follow(self, call: Callable[[Event], None]) -> Callable[[], None]:
        """Have each change told; returns how to end that."""
        self._followers.append(call)

        return lambda: self.end_of(call)

    def end_of(self, call: Callable[[Event], None]) -> None:
        """Tell `call` no more."""
        if call in self._followers:
            self._followers.remove(call)
