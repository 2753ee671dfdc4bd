"""What two nodes agree on about their logs.

Who has what, what is sent next, what may be acknowledged.

Pure: inputs and `now` go in, effects come out. One session outlives all connections of its link. It
    has two
halves that share nothing but the connection: `Outbound` takes the peer through our log, `Inbound`
takes us through the peer's.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from linkd.core.inbound import Inbound
from linkd.core.known_ends import KnownEnds
from linkd.core.outbound import Outbound
from linkd.core.resume import agree, lost_at_sender, truncate
from linkd.core.session_types import (
    Diverged,
    Effect,
    Rewind,
    SessionSettings,
    Tell,
)
from linkd.core.wire import Ack, Cursor, GapTold, Hello, Message, Part, Resend, Step, Volatile
from linkd.errors import RemoteProtocolError


class Greeting(msgspec.Struct, frozen=True):
    """Both hellos of a connection, and what we know of the peer.

    Args:
        ours: What we said; its cursor is where we stand in the peer's log.
        theirs: What the peer said.
        acked: Our own note of what the peer has of our log, where it has no cursor itself.
        writable: The connection has room.
    """

    ours: Hello
    theirs: Hello
    acked: int
    writable: bool


class Session:
    """The session with one peer.

    Args:
        settings: Names, patterns and bounds.
        epoch_below: Tells the epoch of our log just below an offset.
        pack: Compresses a batch, or None.
        unpack: Decompresses one of at most so many bytes, or None where that can't be done here.
        ends: How far the logs of this node's peers can reach; one for all its sessions.
    """

    __slots__ = ("_ends", "inbound", "outbound", "settings")

    def __init__(
        self,
        settings: SessionSettings,
        epoch_below: Callable[[int], str],
        pack: Callable[[bytes], bytes] | None = None,
        unpack: Callable[[bytes, int], bytes] | None = None,
        ends: KnownEnds | None = None,
    ) -> None:
        self.settings = settings
        self._ends = ends or KnownEnds()
        self.outbound = Outbound(settings, epoch_below, pack)
        self.inbound = Inbound(settings, unpack, self._ends)

    @property
    def deadline(self) -> float | None:
        """When `wake` must be called, seconds on the injected clock, or None."""
        return self.outbound.deadline

    def greeted(self, greeting: Greeting, now: float) -> list[Effect]:
        """Begin on a new connection.

        What was under way on an older one is sent again or forgotten.
        """
        ours, theirs = greeting.ours, greeting.theirs
        self._ends.greeted(theirs, now)
        effects: list[Effect] = []
        mine = theirs.cursor
        if mine is not None and mine.log != ours.log:
            effects.append(
                Tell(
                    "warn",
                    "link.new-log",
                    f"{theirs.node} knows another log of this node ({mine.log}); it starts anew"
                    " with this one",
                )
            )
            mine = None
        if mine is None:
            start = greeting.acked
        else:
            agreed = agree(ours.epochs, ours.next, mine)
            if agreed is None:
                return [*effects, Diverged(_no_common_epoch(theirs.node, "this node's log"))]
            start = agreed.next
            lost = lost_at_sender(mine, agreed)
            if lost:
                effects.append(
                    Tell(
                        "error",
                        "link.records-lost",
                        f"this node's log was put back to an older copy: offsets {lost[0]} to"
                        f" {lost[1] - 1}, which {theirs.node} has, are unknown here; sending goes"
                        f" on at {start}",
                    )
                )
        received = self._take_up(ours, theirs)
        if received is None:
            return [*effects, Diverged(_no_common_epoch(theirs.node, "its log"))]
        effects += received
        # A receiver that has nothing on disk yet says 0: our own note stands.
        committed = start if mine is None else min(start, mine.committed or greeting.acked)
        return effects + self.outbound.greeted(theirs, start, committed, greeting.writable)

    def _take_up(self, ours: Hello, theirs: Hello) -> list[Effect] | None:
        """Set where we stand in the peer's log; None if we have no epoch in common."""
        cursor = ours.cursor
        effects: list[Effect] = []
        if cursor is not None and cursor.log != theirs.log:
            effects = [
                Rewind(None),
                Tell(
                    "warn",
                    "link.new-log",
                    f"{theirs.node} has a new log ({theirs.log}, before {cursor.log}); what was"
                    " still to come from the old one is gone with it",
                ),
            ]
            cursor = None
        if cursor is not None:
            agreed = agree(theirs.epochs, theirs.next, cursor)
            if agreed is None:
                return None
            kept = truncate(cursor, agreed)
            if kept != cursor:
                lost = lost_at_sender(cursor, agreed)
                effects = [Rewind(kept)]
                if lost:
                    effects.append(_put_back(theirs.node, lost))
                cursor = kept
        self.inbound.greeted(theirs, cursor)
        return effects

    def received(self, message: Message, now: float) -> list[Effect]:
        """Take a message of the live connection.

        Raises:
            RemoteProtocolError: It does not fit what was agreed; the connection must be aborted.
        """
        kind = type(message)
        if kind is Step:
            return self.inbound.step(message, now)  # type: ignore[arg-type]
        if kind is Ack:
            return self.outbound.acknowledged(message.next)  # type: ignore[union-attr]
        if kind is Resend:
            return self.outbound.resend(message.next)  # type: ignore[union-attr]
        if kind is Part:
            return self.inbound.part(message, now)  # type: ignore[arg-type]
        if kind is Volatile:
            return self.inbound.volatile(message, now)  # type: ignore[arg-type]
        if kind is GapTold:
            return self.inbound.gap(message)  # type: ignore[arg-type]
        raise RemoteProtocolError(f"a second {kind.__name__.lower()} on one connection")

    def disconnected(self) -> None:
        """The connection has gone; what is on its way to our disk still gets there."""
        self.outbound.disconnected()
        self.inbound.disconnected()

    def wake(self, now: float) -> list[Effect]:
        """The deadline has come."""
        return self.outbound.wake(now)


def _no_common_epoch(peer: str, whose: str) -> str:
    """Say why nothing can be sent."""
    return (
        f"no epoch of {whose} is known to both this node and {peer}, though its id is the same:"
        f" nothing is sent until `linkd resync {peer}` says from where"
    )


def _put_back(peer: str, lost: tuple[int, int]) -> Tell:
    """Say what the peer's restored disk no longer knows."""
    return Tell(
        "error",
        "link.records-lost",
        f"{peer} was put back to an older copy of its log: offsets {lost[0]} to {lost[1] - 1},"
        " which this node has, are unknown there; this node keeps them",
    )


__all__ = ["Cursor", "Greeting", "Session"]
