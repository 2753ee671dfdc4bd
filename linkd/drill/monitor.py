"""Measure during a drill: a daemon's status, its link's states, numbered messages."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterable
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import msgspec

from linkd.client.errors import ClientError, NoDaemon, Refused
from linkd.client.http import call, expect
from linkd.status import LinkStatus, NodeStatus, Outage

ANSWER_SECONDS: Final = 2.0

T = TypeVar("T")


class _Outages(msgspec.Struct, frozen=True):
    outages: list[Outage]


class DaemonClient:
    """A running daemon.

    Args:
        socket: Path of its unix socket.
    """

    def __init__(self, socket: str) -> None:
        self.socket = socket

    def status(self) -> NodeStatus:
        """Return its status; raise ClientError if it does not answer within 2 s."""
        return self._get("/v1/status", NodeStatus)

    def link(self, peer: str) -> LinkStatus | None:
        """Return the status of its link to a peer, if it has one; raise ClientError."""
        return next((link for link in self.status().links if link.peer == peer), None)

    def outages(self, peer: str) -> list[Outage]:
        """Return the outages of its link to a peer, oldest first; raise ClientError."""
        return self._get(f"/v1/outages?{urlencode({'peer': peer})}", _Outages).outages

    def kick(self, peer: str) -> None:
        """Make the link to a peer retry at once; raise ClientError."""
        expect(call(self.socket, "POST", f"/v1/peers/{peer}/kick"))

    def drill_began(self, peer: str, drill: str, seconds: float) -> None:
        """Log that a fault is injected into the link to a peer; raise ClientError."""
        self._post_drill(peer, {"drill": drill, "state": "started", "seconds": seconds})

    def drill_ended(self, peer: str, drill: str, verdict: str | None) -> None:
        """Log that the fault is over, and the verdict; raise ClientError."""
        self._post_drill(peer, {"drill": drill, "state": "ended", "verdict": verdict})

    def _post_drill(self, peer: str, body_fields: dict[str, str | float | None]) -> None:
        body, headers = msgspec.json.encode(body_fields), {"Content-Type": "application/json"}
        target = f"/v1/peers/{peer}/drill"
        expect(call(self.socket, "POST", target, body, headers, timeout=ANSWER_SECONDS))

    def _get(self, target: str, kind: type[T]) -> T:
        answer = expect(call(self.socket, "GET", target, timeout=ANSWER_SECONDS))
        return answer.decode(kind, target)


BATCH: Final = 10
EVERY_SECONDS: Final = 0.1
_RETRY_SECONDS: Final = 0.2
_PAGE: Final = 5000
_SENT_SECONDS: Final = 30.0


class Tally(msgspec.Struct, frozen=True):
    """The fate of one publisher's messages.

    Args:
        published: Those that the daemon has confirmed on disk.
        refused: Those that it refused.
        doubtful: Those of calls without an answer.
        lost, twice, out_of_order: Of those published, at the other end.
        slowest_seconds: The longest duration of an answered call.
    """

    published: int
    refused: int
    doubtful: int
    lost: int
    twice: int
    out_of_order: int
    slowest_seconds: float


class Publisher(threading.Thread):
    """Publishes numbered messages, ten every tenth of a second, until stopped.

    The messages of a call without an answer may be stored or not; they are not retried, so that
    every duplicate was made on the way.

    Attributes:
        refused: How many messages the daemon refused.
        channel: The channel.
        mark: Distinguishes these messages from others on the channel.

    Args:
        socket: The daemon's.
        channel: The channel.
        mark: Distinguishes these messages from others on the channel.
    """

    def __init__(self, socket: str, channel: str, mark: str) -> None:
        super().__init__(daemon=True, name=f"probe {channel}")
        self.refused = 0
        self._slowest = 0.0
        self._socket = socket
        self.channel = channel
        self.mark = mark
        self._next = 0
        self._acked: list[tuple[int, int]] = []
        self._doubtful: list[tuple[int, int]] = []
        self._ended = threading.Event()

    @property
    def published(self) -> int:
        """How many messages were acknowledged by the daemon."""
        return sum(last - first for first, last in tuple(self._acked))

    def run(self) -> None:
        """Publish until stopped."""
        while not self._ended.is_set():
            began = time.monotonic()
            wait = EVERY_SECONDS if self._publish() else _RETRY_SECONDS
            self._ended.wait(max(0.0, wait - (time.monotonic() - began)))

    def end(self) -> None:
        """Stop, and wait for the pending call."""
        self._ended.set()
        if self.is_alive():
            self.join(_SENT_SECONDS + 5.0)

    def _publish(self) -> bool:
        """Publish once; return whether it was stored."""
        span = self._next, self._next + BATCH
        self._next = span[1]
        body = b"\n".join(
            msgspec.json.encode({"drill": self.mark, "n": number}) for number in range(*span)
        )
        headers = {"Content-Type": "application/x-ndjson"}
        target = f"/v1/channels/{self.channel}"
        began = time.monotonic()
        try:
            expect(call(self._socket, "POST", target, body, headers, timeout=_SENT_SECONDS))
        except Refused:
            self.refused += BATCH
            return False
        except NoDaemon as error:
            if "did not answer" in str(error) or "closed" in str(error) or "away" in str(error):
                self._doubtful.append(span)
            else:
                self.refused += BATCH
            return False
        self._slowest = max(self._slowest, time.monotonic() - began)
        self._acked.append(span)
        return True

    def judge(self, numbers: Iterable[int]) -> Tally:
        """Compare the arrived messages, in order, with the published ones."""
        arrived = list(numbers)
        there = set(arrived)
        return Tally(
            published=self.published,
            refused=self.refused,
            doubtful=sum(last - first for first, last in self._doubtful),
            lost=sum(
                number not in there for first, last in self._acked for number in range(first, last)
            ),
            twice=len(arrived) - len(there),
            out_of_order=sum(b <= a for a, b in itertools.pairwise(arrived)),
            slowest_seconds=round(self._slowest, 3),
        )


def received_numbers(socket: str, channel: str, mark: str) -> list[int]:
    """Return the numbers of a publisher's messages in a daemon's log, in log order.

    Raises:
        ClientError: The daemon does not answer, or not as expected.
    """
    numbers: list[int] = []
    position = 1
    while True:
        target = f"/v1/channels/{channel}?from={position}&limit={_PAGE}"
        page: dict[str, Any] = expect(call(socket, "GET", target, timeout=_SENT_SECONDS)).json()
        for record in page["records"]:
            content = record.get("data")
            if isinstance(content, dict) and content.get("drill") == mark and "n" in content:
                numbers.append(int(content["n"]))
        if not page["records"] and page["next"] <= position:
            return numbers
        position = page["next"]


GONE: Final = "gone"
"""The state of a link whose daemon does not answer."""


class Span(msgspec.Struct):
    """A link's state for a while, in seconds."""

    state: str
    began: float
    ended: float


class LinkMonitor:
    """Polls the state of one link ten times a second, in a thread of its own.

    Attributes:
        name: The end's, for people.
        role: `dialer` or `listener`; None as long as the daemon was never reached.
        spans: The states so far, oldest first; monotonic seconds.
        reasons: Every reason reported while the link was down.
        link: The last status; None while the daemon does not answer.
    """

    def __init__(self, name: str, daemon: DaemonClient, peer: str) -> None:
        self.name = name
        self.role: str | None = None
        self.spans: list[Span] = []
        self.reasons: set[str] = set()
        self.link: LinkStatus | None = None
        self._daemon = daemon
        self._peer = peer
        self._ended = threading.Event()
        self._known = self._recorded() or []
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

    def _recorded(self) -> list[Outage] | None:
        with contextlib.suppress(ClientError):
            return self._daemon.outages(self._peer)
        return None

    def _run(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            self._look()

    def _look(self) -> None:
        """Poll once."""
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
        # A newly seen state can't have begun before the last one.
        earliest = self.spans[-1].began if self.spans else asked
        self._note(link.state, max(began, earliest), now)

    def _note(self, state: str, began: float, now: float) -> None:
        """Extend the last span, or start another when the state began."""
        last = self.spans[-1] if self.spans else None
        if last is not None and last.state == state:
            last.ended = now
            return
        if last is not None:
            last.ended = began
        self.spans.append(Span(state, began, now))
