"""What a daemon says of itself, asked over its socket."""

from __future__ import annotations

from typing import Final, TypeVar
from urllib.parse import urlencode

import msgspec

from linkd.client.errors import ClientError
from linkd.client.http import call, expect
from linkd.status import Event, LinkStatus, NodeStatus, Outage

ANSWER_SECONDS: Final = 2.0

T = TypeVar("T")


class _Events(msgspec.Struct, frozen=True):
    events: list[Event]


class _Outages(msgspec.Struct, frozen=True):
    outages: list[Outage]


class Daemon:
    """A running daemon.

    Args:
        socket: Path of its unix socket.
    """

    def __init__(self, socket: str) -> None:
        self.socket = socket

    def status(self) -> NodeStatus:
        """Return its status; raise ClientError if it can't be had within 2 s."""
        return self._get("/v1/status", NodeStatus)

    def link(self, peer: str) -> LinkStatus | None:
        """Return the status of its link to a peer, if it has one; raise ClientError."""
        return next((link for link in self.status().links if link.peer == peer), None)

    def events(self) -> list[Event]:
        """Return the changes that it remembers of this run, oldest first; raise ClientError."""
        return self._get("/v1/events", _Events).events

    def outages(self, peer: str) -> list[Outage]:
        """Return the outages of its link to a peer, oldest first; raise ClientError."""
        return self._get(f"/v1/outages?{urlencode({'peer': peer})}", _Outages).outages

    def kick(self, peer: str) -> None:
        """Have the link to a peer try again at once; raise ClientError."""
        expect(call(self.socket, "POST", f"/v1/peers/{peer}/kick"))

    def drill_began(self, peer: str, drill: str, seconds: float) -> None:
        """Have it say that a fault is made on the link to a peer; raise ClientError."""
        self._tell_drill(peer, {"drill": drill, "state": "started", "seconds": seconds})

    def drill_ended(self, peer: str, drill: str, verdict: str | None) -> None:
        """Have it say that the fault is over, and what came of it; raise ClientError."""
        self._tell_drill(peer, {"drill": drill, "state": "ended", "verdict": verdict})

    def _tell_drill(self, peer: str, told: dict[str, str | float | None]) -> None:
        body, headers = msgspec.json.encode(told), {"Content-Type": "application/json"}
        target = f"/v1/peers/{peer}/drill"
        expect(call(self.socket, "POST", target, body, headers, timeout=ANSWER_SECONDS))

    def _get(self, target: str, kind: type[T]) -> T:
        answer = expect(call(self.socket, "GET", target, timeout=ANSWER_SECONDS))
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except msgspec.DecodeError as error:
            raise ClientError(f"expected {target} from the daemon: {error}") from None
