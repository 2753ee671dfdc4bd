"""The session of two nodes: the handshake, where each log resumes, and its two halves.

Both ends compare the epochs that they know, so that a disk that was put back to an older copy is
noticed.

Pure: inputs and `now` go in, effects come out. One session outlives all connections of its link.
Its halves share nothing but the connection: `Outbound` sends our log, `Inbound` receives the
peer's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from linkd.core.inbound import Inbound, KnownEnds
from linkd.core.outbound import Outbound
from linkd.core.session_effects import Effect, EpochsDiverged, LogEvent, Rewind, SessionSettings
from linkd.errors import RemoteProtocolError
from linkd.protocol.peer import (
    Ack,
    BatchMessage,
    Cursor,
    EpochEnd,
    EpochStart,
    GapNotice,
    Hello,
    Message,
    Part,
    Resend,
    Volatile,
)

__all__ = [
    "Cursor",
    "Handshake",
    "Session",
    "find_resume_point",
    "lost_at_sender",
    "outdated",
    "repeats",
    "truncate",
]


def find_resume_point(epochs: Sequence[EpochStart], next: int, cursor: Cursor) -> EpochEnd | None:
    """Return where sending resumes: the end of the newest epoch that both ends know.

    Both ends compute it from the same two hellos and so agree. A receiver that knows a later epoch
    has passed all of this one, wherever its cursor left it: records at the end of an epoch that
    are not for the receiver may be skipped in one step with the beginning of the next epoch.

    Args:
        epochs: The sender's epochs, oldest first.
        next: The next offset of the sender's log.
        cursor: How far the receiver has that log; its log id is the sender's.

    Returns:
        The epoch and the offset, or None if no epoch is common.
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
    """Return the cursor moved back to `agreed`, an epoch that it knows; itself if it is there."""
    if cursor.epochs[-1] == agreed:
        return cursor
    place = [known.epoch for known in cursor.epochs].index(agreed.epoch)
    kept = (*cursor.epochs[:place], agreed)
    return Cursor(cursor.log, kept, min(cursor.committed, agreed.next))


def lost_at_sender(cursor: Cursor, agreed: EpochEnd) -> tuple[int, int] | None:
    """Return the offsets [first, next) that only the receiver still has; None if there are none."""
    return (agreed.next, cursor.next) if cursor.next > agreed.next else None


def outdated(hello: Hello, cursor: Cursor | None) -> bool:
    """Return whether the sender of `hello` has sent more since, on another connection.

    Both ends of a connection compute it from the same two hellos. Within one epoch, which is one
    run of the sender, its log never gets shorter: a cursor in the newest epoch of `hello` that is
    beyond its `next` came from a connection that was still alive after the hello was made.

    Args:
        hello: A dialer's hello.
        cursor: The listener's cursor in the dialer's log.
    """
    return (
        cursor is not None
        and cursor.log == hello.log
        and cursor.epochs[-1].epoch == hello.epochs[-1].epoch
        and cursor.next > hello.next
    )


def repeats(sent: Hello, current: Hello, theirs: Hello) -> bool:
    """Return whether a dialer must send its hello again: the first is outdated, or looks so.

    An older connection may store records between the hello and its answer. Both ends must judge by
    the same two hellos, so the dialer sends a fresh one rather than correct its own view alone.

    Args:
        sent: The dialer's hello on this connection.
        current: The hello that it would send now.
        theirs: The listener's answer.
    """
    return (
        _place(sent.cursor) != _place(current.cursor)
        or sent.epochs != current.epochs
        or outdated(sent, theirs.cursor)
    )


def _place(cursor: Cursor | None) -> tuple[str, tuple[EpochEnd, ...]] | None:
    """Return a cursor's position, without how much of it is on disk."""
    return None if cursor is None else (cursor.log, cursor.epochs)


class Handshake(msgspec.Struct, frozen=True):
    """Both hellos of a connection, and what we know of the peer.

    Args:
        ours: Our hello; its cursor is our position in the peer's log.
        theirs: The peer's hello.
        acked: What the peer has of our log by our own notes; counts if it has no cursor itself.
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
        epoch_below: Returns the epoch of our log just below an offset.
        pack: Compresses a batch, or None.
        unpack: Decompresses a batch up to a number of bytes; None if this host can't.
        ends: How far the logs of this node's peers can reach; shared by all its sessions.
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

    def greeted(self, greeting: Handshake, now: float) -> list[Effect]:
        """Begin on a new connection; what an older one left unfinished is sent again or dropped."""
        ours, theirs = greeting.ours, greeting.theirs
        self._ends.greeted(theirs, now)
        effects: list[Effect] = []
        mine = theirs.cursor
        if mine is not None and mine.log != ours.log:
            effects.append(
                LogEvent(
                    "warn",
                    "link.new-log",
                    f"{theirs.node} knows another log of this node ({mine.log}); sending"
                    " starts over with this one",
                )
            )
            mine = None
        if mine is None:
            start = greeting.acked
        else:
            agreed = find_resume_point(ours.epochs, ours.next, mine)
            if agreed is None:
                return [*effects, EpochsDiverged(_no_common_epoch(theirs.node, "this node's log"))]
            start = agreed.next
            lost = lost_at_sender(mine, agreed)
            if lost:
                effects.append(
                    LogEvent(
                        "error",
                        "link.records-lost",
                        f"this node's log was put back to an older copy: offsets {lost[0]} to"
                        f" {lost[1] - 1}, which {theirs.node} has, are unknown here; sending"
                        f" resumes at {start}",
                    )
                )
        received = self._resume_receiving(ours, theirs)
        if received is None:
            return [*effects, EpochsDiverged(_no_common_epoch(theirs.node, "its log"))]
        effects += received
        # A receiver that has nothing on disk yet sends 0; then our own note counts.
        committed = start if mine is None else min(start, mine.committed or greeting.acked)
        return effects + self.outbound.greeted(theirs, start, committed, greeting.writable)

    def _resume_receiving(self, ours: Hello, theirs: Hello) -> list[Effect] | None:
        """Set our position in the peer's log; None if no epoch is common."""
        cursor = ours.cursor
        effects: list[Effect] = []
        if cursor is not None and cursor.log != theirs.log:
            effects = [
                Rewind(None),
                LogEvent(
                    "warn",
                    "link.new-log",
                    f"{theirs.node} has a new log ({theirs.log}, before {cursor.log}); what"
                    " was still missing of the old one is lost with it",
                ),
            ]
            cursor = None
        if cursor is not None:
            agreed = find_resume_point(theirs.epochs, theirs.next, cursor)
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
            RemoteProtocolError: It violates the protocol; the connection must be aborted.
        """
        kind = type(message)
        if kind is BatchMessage:
            return self.inbound.batch(message, now)  # type: ignore[arg-type]
        if kind is Ack:
            return self.outbound.acknowledged(message.next)  # type: ignore[union-attr]
        if kind is Resend:
            return self.outbound.resend(message.next)  # type: ignore[union-attr]
        if kind is Part:
            return self.inbound.part(message, now)  # type: ignore[arg-type]
        if kind is Volatile:
            return self.inbound.volatile(message, now)  # type: ignore[arg-type]
        if kind is GapNotice:
            return self.inbound.gap(message)  # type: ignore[arg-type]
        raise RemoteProtocolError(f"a second {kind.__name__.lower()} on one connection")

    def disconnected(self) -> None:
        """Forget the connection; what is on its way to our disk is still stored."""
        self.outbound.disconnected()
        self.inbound.disconnected()


def _no_common_epoch(peer: str, whose: str) -> str:
    return (
        f"no epoch of {whose} is known to both this node and {peer}, though its id is the same:"
        f" nothing is sent until `linkd resync {peer}` chooses where to resume"
    )


def _put_back(peer: str, lost: tuple[int, int]) -> LogEvent:
    return LogEvent(
        "error",
        "link.records-lost",
        f"{peer} was put back to an older copy of its log: offsets {lost[0]} to {lost[1] - 1},"
        " which this node has, are unknown there; this node keeps them",
    )
