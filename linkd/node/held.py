"""Bound the memory of received records that are not on disk yet, over all peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from linkd.log.base import Log
from linkd.protocol.records import BATCH_OVERHEAD_BYTES

if TYPE_CHECKING:
    from linkd.node.replicator import Replicator

MOST_HELD_BYTES = 96 * 1024 * 1024
"""Bytes that the records of all peers together may take in memory.

Beyond it each peer still has its share of the same amount, so that no peer can shut out others.
"""

WINDOW_BYTES = 8 * 1024 * 1024
"""Bytes that a peer may send at once when it is asked to send again."""


class Held:
    """Admits received batches to memory, and asks refused peers to send again once there is room.

    A node never stops reading a link, since its heartbeat would suffer: records for which there is
    no room are dropped and not acknowledged.

    Args:
        log: The node's log, with its pending writes.
        peers: Returns the number of peers.

    Attributes:
        part_bytes: Bytes of partially received records.
    """

    def __init__(self, log: Log, peers: Callable[[], int]) -> None:
        self.part_bytes = 0
        self._log = log
        self._peers = peers
        self._refused: dict[Replicator, None] = {}

    def admits(self, peer: str, size: int, part_bytes: int = 0) -> bool:
        """Return whether there is room for `size` more bytes of a peer.

        Args:
            peer: Its name.
            size: Bytes of a batch to store, or 0.
            part_bytes: Bytes of a partially received record, which are counted already.
        """
        size += BATCH_OVERHEAD_BYTES
        if self._log.held() + self.part_bytes + size <= MOST_HELD_BYTES:
            return True
        share = MOST_HELD_BYTES // max(1, self._peers())
        return self._log.held(peer) + part_bytes + size <= share

    def refuse(self, sender: Replicator) -> None:
        """Note that a batch of this peer was dropped."""
        self._refused[sender] = None

    def forget(self, sender: Replicator) -> None:
        """Forget a link that rejoins by itself, or has ended."""
        self._refused.pop(sender, None)

    def __contains__(self, sender: Replicator) -> bool:
        """Return whether a batch of this peer was dropped and not requested again yet."""
        return sender in self._refused

    def tick(self) -> None:
        """Ask as many peers to send again as there is room for, in order of waiting."""
        if not self._refused or self._log.withholds():
            return
        room = MOST_HELD_BYTES // 2 - self._log.held() - self.part_bytes
        for sender in tuple(self._refused):
            if room <= 0:
                break
            room -= WINDOW_BYTES
            del self._refused[sender]
            sender.ask_again()
