"""Volatile messages: no offset, no disk; sent where the link is up, else dropped and counted."""

from __future__ import annotations

from linkd.core.batch import Batch, Draft, Origin
from linkd.core.wire import Volatile

_ORIGINS_KNOWN = 10_000


class VolatileSequence:
    """Numbers our own volatile messages, knows which of others' came before: no loops, no doubles.

    Args:
        node: Our name.
        run: Random, new at every start, so that the numbers may begin anew.
    """

    def __init__(self, node: str, run: str) -> None:
        self._node = node
        self._run = run
        self._sequence = 0
        self._highest: dict[tuple[str, str], int] = {}

    def make(self, draft: Draft) -> Volatile:
        """Return a publish as a message."""
        self._sequence += 1
        return Volatile(
            draft.channel,
            draft.count,
            draft.records,
            draft.time,
            draft.ttl,
            self._node,
            self._run,
            self._sequence,
        )

    def fresh(self, message: Volatile) -> bool:
        """Tell whether a message is new here, and remember it."""
        if message.node == self._node:
            return False
        key = (message.node, message.run)
        if message.sequence <= self._highest.get(key, 0):
            return False
        if key not in self._highest and len(self._highest) >= _ORIGINS_KNOWN:
            self._highest.pop(next(iter(self._highest)))
        self._highest[key] = message.sequence
        return True


def as_batch(message: Volatile, stamp: float) -> Batch:
    """Return a volatile message as a batch without an offset, for local readers."""
    origin = Origin(message.node, message.run, "", 0)
    return Batch(
        0,
        message.channel,
        message.count,
        message.records,
        message.time,
        origin,
        ttl=message.ttl,
        stamp=stamp,
    )
