"""Volatile messages: no offset, no disk; sent where the link is up, else dropped and counted."""

from __future__ import annotations

from typing import Literal

import msgspec

from linkd.core.batch import MAX_BATCH_BYTES, Batch, Draft, Origin, runs_of
from linkd.core.wire import MAX_VOLATILE_BYTES, Volatile, sendable
from linkd.errors import BodyTooLarge

MAX_KEYS = 100_000
"""Channels of runs whose volatile sequence is remembered, of all nodes."""

WINDOW = 1024
"""How far below the highest sequence of a channel it is still known which ones came."""

_Key = tuple[str, str]

Fate = Literal["fresh", "repeated", "stale"]
"""`repeated`: it is here already. `stale`: too far below newer ones to know; it is dropped."""


class VolatileSequence:
    """Numbers our own volatile messages and recognises others' that came before.

    Each channel of each run is judged alone: what comes faster over another path, or what another
    peer forges there, says nothing about it. Keys are bounded; a node that has more than its
    share of them pushes out its own.

    Args:
        node: Our name.
        run: Random, new at every start, so that the numbers may begin anew.
    """

    def __init__(self, node: str, run: str) -> None:
        self._node = node
        self._run = run
        self._sequence = 0
        self._nodes: dict[str, dict[_Key, tuple[int, int]]] = {}  # (run, channel): highest, mask
        self._keys = 0

    def make(self, draft: Draft, presence: bool = False) -> Volatile:
        """Return a publish, or what this node announces of its clients, as a message."""
        self._sequence += 1
        return Volatile(
            draft.channel,
            draft.count,
            draft.records,
            sendable(draft.time),
            draft.ttl,
            self._node,
            self._run,
            self._sequence,
            presence,
        )

    def judge(self, message: Volatile) -> Fate:
        """Return whether a message is new here, and remember it."""
        if message.node == self._node:
            return "repeated"
        known = self._nodes.get(message.node)
        if known is None:
            known = self._nodes[message.node] = {}
        key = (message.run, message.channel)
        found, sequence = known.get(key), message.sequence
        if found is None:
            self._make_room(known)
            self._keys += 1
            known[key] = (sequence, 1)
            return "fresh"
        highest, mask = found
        if sequence > highest:
            shift = min(sequence - highest, WINDOW)
            known[key] = (sequence, (mask << shift | 1) & _ALL)
            return "fresh"
        if highest - sequence >= WINDOW:
            return "stale"
        bit = 1 << (highest - sequence)
        if mask & bit:
            return "repeated"
        known[key] = (highest, mask | bit)
        return "fresh"

    def _make_room(self, known: dict[_Key, tuple[int, int]]) -> None:
        """Forget the oldest key of the node that has more than its share of them."""
        if self._keys < MAX_KEYS:
            return
        if len(known) <= MAX_KEYS // len(self._nodes):
            name = max(self._nodes, key=lambda node: len(self._nodes[node]))
            known = self._nodes[name]
            if len(known) == 1:
                del self._nodes[name]
        del known[next(iter(known))]
        self._keys -= 1


_ALL = (1 << WINDOW) - 1


def messages_of(draft: Draft) -> list[Draft]:
    """Return a publish as drafts that are one message each.

    Raises:
        BodyTooLarge: A record is larger than a message may be.
    """
    runs = runs_of(draft.records, draft.count, MAX_BATCH_BYTES)
    largest = max([len(records) for _, records in runs])
    if largest > MAX_VOLATILE_BYTES:
        raise BodyTooLarge(
            f"expected a message of at most {MAX_VOLATILE_BYTES} bytes on a volatile channel, got"
            f" {largest}"
        )
    if len(runs) == 1:
        return [draft]
    return [msgspec.structs.replace(draft, count=count, records=records) for count, records in runs]


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
