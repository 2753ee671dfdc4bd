"""A value that changes and can be watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import msgspec

T = TypeVar("T")

State = Literal["stopped", "connecting", "up", "waiting", "rejected"]


class Status(msgspec.Struct, frozen=True):
    """The connection to the daemon, and what the daemon says of its links.

    Args:
        state: `stopped`, `connecting`, `up`, `waiting` to try again, `rejected` by the daemon.
        attempts: Failures in a row.
        retry_seconds: Until the next attempt; None unless waiting or rejected.
        reason: Why it is not up, in one sentence; None while it is.
        links: Peer: the state of the link to it, while up; empty else.
    """

    state: State = "stopped"
    attempts: int = 0
    retry_seconds: float | None = None
    reason: str | None = None
    links: dict[str, str] = {}


class Observable(Generic[T]):
    """A value that changes: whoever subscribes gets the present one at once.

    Attributes:
        value: What it is now.
        call: Calls an observer with a value; what the observer raises must not come out of it.
    """

    def __init__(self, value: T) -> None:
        self.value = value
        self.call: Callable[[Callable[[T], None], T], None] = _call
        self._observers: list[Callable[[T], None]] = []

    def subscribe(self, observer: Callable[[T], None]) -> Callable[[], None]:
        """Call `observer` with the present value and each later one; return how to end that."""
        observer(self.value)
        self._observers.append(observer)

        def unsubscribe() -> None:
            if observer in self._observers:
                self._observers.remove(observer)

        return unsubscribe

    def set(self, value: T) -> None:
        """Change the value and tell the observers, unless it is the same."""
        if value == self.value:
            return
        self.value = value
        for observer in list(self._observers):
            self.call(observer, value)


def _call(observer: Callable[[T], None], value: T) -> None:
    observer(value)
