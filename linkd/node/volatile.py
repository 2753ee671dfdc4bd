"""Volatile messages: no offset, no disk; sent where the link is up, else dropped and counted."""

from __future__ import annotations

from itertools import islice
from typing import Literal

import msgspec

from linkd.core.batch import MAX_BATCH_BYTES, Batch, Draft, Origin, runs_of
from linkd.core.wire import MAX_VOLATILE_BYTES, Volatile, sendable
from linkd.errors import BodyTooLarge
from linkd.log.usage import Usage

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
        self._usage = Usage(MAX_KEYS)

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
        node, key = message.node, (message.run, message.channel)
        known = self._nodes.get(node, {})
        found, sequence = known.get(key), message.sequence
        if found is None:
            self._make_room()
            self._usage.add(node, 1)
            self._nodes.setdefault(node, {})[key] = (sequence, 1)
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

    def _make_room(self) -> None:
        """Forget the oldest keys of the node that has the most."""
        usage = self._usage
        if usage.total < usage.most:
            return
        name = usage.largest()
        known = self._nodes[name]
        oldest = list(islice(known, max(1, len(known) // 8)))
        for key in oldest:
            del known[key]
        if not known:
            del self._nodes[name]
        usage.add(name, -len(oldest))


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
