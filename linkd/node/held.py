"""What is held in memory of what peers sent and is not on disk: one account over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from linkd.log.interface import Log
from linkd.protocol.records import BATCH_OVERHEAD_BYTES

if TYPE_CHECKING:
    from linkd.node.replicator import Replicator

MOST_HELD_BYTES = 96 * 1024 * 1024
"""What all peers together may have in memory.

Beyond it each still has its part of as much again, so that nobody who waits can shut others out.
"""

WINDOW_BYTES = 8 * 1024 * 1024
"""What a peer that is asked to send again may bring at once."""


class Held:
    """Say who may have more in memory; ask those who were refused again, once there is room.

    A node never stops reading a link, or its heartbeat would suffer: what finds no room is left
    out, and is not acknowledged.

    Args:
        log: The node's log, with what waits in it.
        peers: How many peers there are.

    Attributes:
        part_bytes: Bytes of records that have come in part.
    """

    def __init__(self, log: Log, peers: Callable[[], int]) -> None:
        self.part_bytes = 0
        self._log = log
        self._peers = peers
        self._refused: dict[Replicator, None] = {}

    def admits(self, peer: str, size: int, part_bytes: int = 0) -> bool:
        """Tell whether so many bytes more of a peer may be held.

        Args:
            peer: Its name.
            size: Bytes of a batch that is to be stored, or 0.
            part_bytes: Bytes of a record that it has sent in part, counted already.
        """
        size += BATCH_OVERHEAD_BYTES
        if self._log.held() + self.part_bytes + size <= MOST_HELD_BYTES:
            return True
        share = MOST_HELD_BYTES // max(1, self._peers())
        return self._log.held(peer) + part_bytes + size <= share

    def refuse(self, sender: Replicator) -> None:
        """Note that something of a peer was left out."""
        self._refused[sender] = None

    def forget(self, sender: Replicator) -> None:
        """Forget a link that is to begin again by itself, or has ended."""
        self._refused.pop(sender, None)

    def __contains__(self, sender: Replicator) -> bool:
        """Tell whether something of it was left out and not asked for again."""
        return sender in self._refused

    def tick(self) -> None:
        """Ask as many to send again as there is room for, the longest waiting first."""
        if not self._refused or self._log.withholds():
            return
        room = MOST_HELD_BYTES // 2 - self._log.held() - self.part_bytes
        for sender in tuple(self._refused):
            if room <= 0:
                break
            room -= WINDOW_BYTES
            del self._refused[sender]
            sender.ask_again()
