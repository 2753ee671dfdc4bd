"""Where two nodes go on after a break.

By epochs, so that a disk put back to an older copy is noticed.
"""

from __future__ import annotations

from collections.abc import Sequence

from linkd.core.wire import Cursor, EpochEnd, EpochStart, Hello


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
