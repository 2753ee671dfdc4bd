"""The handshake of two nodes, and where each log resumes.

By epochs, so that a disk put back to an older copy is noticed.

Who has what, what is sent next, what may be acknowledged.

Pure: inputs and `now` go in, effects come out. One session outlives all connections of its link. It
    has two
halves that share nothing but the connection: `Outbound` takes the peer through our log, `Inbound`
takes us through the peer's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from linkd.core.inbound import Inbound, KnownEnds
from linkd.core.outbound import Outbound
from linkd.core.session_effects import Diverged, Effect, Rewind, SessionSettings, Tell
from linkd.errors import RemoteProtocolError
from linkd.protocol.peer import (
    Ack,
    Cursor,
    EpochEnd,
    EpochStart,
    GapTold,
    Hello,
    Message,
    Part,
    Resend,
    Step,
    Volatile,
)

__all__ = [
    "Cursor",
    "Handshake",
    "Session",
    "agree",
    "lost_at_sender",
    "outdated",
    "repeats",
    "truncate",
]


def agree(epochs: Sequence[EpochStart], next: int, cursor: Cursor) -> EpochEnd | None:
    """Return where sending goes on: the end of the newest epoch that both ends know.

    Both ends compute it from the same two hellos and so come to the same place. A receiver that
    knows a later epoch has passed all of this one, wherever its own note of it ends: what was not
    for it at the end of an epoch may have been skipped in one step with the beginning of the next.

    Args:
        epochs: The sender's epochs, oldest first.
        next: The next offset of the sender's log.
        cursor: How far the receiver has that log; its log id is the sender's.

    Returns:
        The epoch and the offset, or None where no epoch is common.
    """
    ends = {
        start.epoch: epochs[i + 1].first if i + 1 < len(epochs) else next
        for i, start in enumerate(epochs)
    }
    passed = cursor.epochs[-1].next
    for known in reversed(cursor.epochs):
        end = ends.get(known.epoch)
        if end is not None:
            return EpochEnd(known.epoch, min(end, passed))
    return None


def truncate(cursor: Cursor, agreed: EpochEnd) -> Cursor:
    """Return the cursor put back to `agreed`, of whose epoch it knows.

    Itself where it stands there already.
    """
    if cursor.epochs[-1] == agreed:
        return cursor
    place = [known.epoch for known in cursor.epochs].index(agreed.epoch)
    kept = (*cursor.epochs[:place], agreed)
    return Cursor(cursor.log, kept, min(cursor.committed, agreed.next))


def lost_at_sender(cursor: Cursor, agreed: EpochEnd) -> tuple[int, int] | None:
    """Return the offsets [first, next) that only the receiver still has; None if there are none."""
    return (agreed.next, cursor.next) if cursor.next > agreed.next else None


def outdated(said: Hello, cursor: Cursor | None) -> bool:
    """Tell whether the sender of `said` has sent more since, on another connection.

    Both ends of a connection compute it from the same two hellos. Within one epoch, which is one
    run of the sender, its log never gets shorter: a cursor in the newest epoch of `said` that is
    beyond its `next` came from a connection that outlived the moment at which the hello was made.

    Args:
        said: A dialer's hello.
        cursor: The listener's cursor in the dialer's log.
    """
    return (
        cursor is not None
        and cursor.log == said.log
        and cursor.epochs[-1].epoch == said.epochs[-1].epoch
        and cursor.next > said.next
    )


def repeats(said: Hello, true: Hello, theirs: Hello) -> bool:
    """Tell whether a dialer says hello again: what it said is not true any more, or looks so.

    Args:
        said: The dialer's hello on this connection.
        true: The hello that it would say now.
        theirs: The listener's answer.
    """
    return (
        _place(said.cursor) != _place(true.cursor)
        or said.epochs != true.epochs
        or outdated(said, theirs.cursor)
    )


def _place(cursor: Cursor | None) -> tuple[str, tuple[EpochEnd, ...]] | None:
    """Return where a cursor is, without what is known of its durability."""
    return None if cursor is None else (cursor.log, cursor.epochs)


class Handshake(msgspec.Struct, frozen=True):
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

    def greeted(self, greeting: Handshake, now: float) -> list[Effect]:
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
