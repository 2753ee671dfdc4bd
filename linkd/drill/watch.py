"""Watches one end while a fault lasts: the state of its link over time, and what it recorded."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Final

import msgspec

from linkd.client.errors import ClientError
from linkd.drill.asking import Daemon
from linkd.status import LinkStatus, Outage

EVERY_SECONDS: Final = 0.1
GONE: Final = "gone"
"""The state of a link whose daemon does not answer."""


class Span(msgspec.Struct):
    """A link's state for a while; monotonic seconds."""

    state: str
    began: float
    ended: float


class Watch:
    """Asks a daemon ten times a second for the state of one link, in a thread of its own.

    Attributes:
        name: The end's, for people.
        role: `dialer` or `listener`; None as long as the daemon was never reached.
        spans: The states so far, oldest first.
        reasons: Every reason that was given while the link was down.
        link: What was said last; None while nobody answers.
    """

    def __init__(self, name: str, daemon: Daemon, peer: str) -> None:
        self.name = name
        self.role: str | None = None
        self.spans: list[Span] = []
        self.reasons: set[str] = set()
        self.link: LinkStatus | None = None
        self._daemon = daemon
        self._peer = peer
        self._ended = threading.Event()
        self._known = self._recorded() or []
        self._first = self._last_event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"watch {name}")

    def start(self) -> None:
        """Begin."""
        self._look()
        self._thread.start()

    def end(self) -> None:
        """Stop."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(10.0)

    @property
    def up(self) -> bool:
        """Whether the link was up when last asked."""
        return self.link is not None and self.link.state == "up"

    def up_since(self) -> float | None:
        """Return since when the link is up, monotonic seconds; None if it isn't."""
        spans = self.spans
        return spans[-1].began if spans and spans[-1].state == "up" else None

    def outages(self) -> list[Outage]:
        """Return the outages that began since this watch was made, oldest first."""
        known = {one.began for one in self._known}
        return [one for one in self._recorded() or [] if one.began not in known]

    def falls(self) -> int:
        """Return how often the link has left `up` since this watch was made, as the events say."""
        try:
            events = self._daemon.events()
        except ClientError:
            return 0
        since = 0 if self._restarted else self._first
        return sum(
            event.peer == self._peer and event.old == "up" and event.number > since
            for event in events
        )

    @property
    def _restarted(self) -> bool:
        return any(span.state == GONE for span in self.spans)

    def _recorded(self) -> list[Outage] | None:
        with contextlib.suppress(ClientError):
            return self._daemon.outages(self._peer)
        return None

    def _last_event(self) -> int:
        with contextlib.suppress(ClientError):
            events = self._daemon.events()
            return events[-1].number if events else 0
        return 0

    def _run(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            self._look()

    def _look(self) -> None:
        """Ask once."""
        asked = time.monotonic()
        try:
            link = self._daemon.link(self._peer)
        except ClientError:
            link = None
        self.link = link
        now = time.monotonic()
        if link is None:
            self._note(GONE, asked, now)
            return
        self.role = link.role
        if link.state != "up":
            self.reasons.update(filter(None, (link.reason, link.attempt_reason)))
        began = asked - link.since_seconds if link.state == "up" else asked
        self._note(link.state, max(began, self._from(asked)), now)

    def _from(self, asked: float) -> float:
        """Return the earliest time at which a state that is new now can have begun."""
        return self.spans[-1].began if self.spans else asked

    def _note(self, state: str, began: float, now: float) -> None:
        """Lengthen the last span, or begin another at the time when the state began."""
        last = self.spans[-1] if self.spans else None
        if last is not None and last.state == state:
            last.ended = now
            return
        if last is not None:
            last.ended = began
        self.spans.append(Span(state, began, now))
