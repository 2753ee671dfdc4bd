"""Addresses from which peers were greeted, so that strangers can't take their places.

Nothing is proved by an address: one in this table only has a place that strangers do not get. It is
kept over restarts, because all peers come back just after one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from linkd.errors import is_passing
from linkd.events import emit
from linkd.log.files import RealFiles
from linkd.log.seal import read_small, write_small
from linkd.net.limits import origin

KEPT_SECONDS: Final = 30 * 86_400.0
"""An address without a greeting for so long is forgotten; only linkd's running time counts."""

PER_PEER: Final = 2
"""So many addresses are kept for each peer, the newest: one that moves keeps both for a while."""

FILE: Final = "greeted"
"""The table's name in the state directory."""

_VERSION: Final = 1
_EVERY: Final = 3600.0
"""Seconds after which the table is written where only times have changed."""

_RETRY: Final = 60.0
_PER_SECOND: Final = 1000
"""Addresses for each of which the next write is put off, so that a crowd costs few writes."""


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    """The file: by peer, addresses and how many seconds ago the peer was greeted from there."""

    version: int
    peers: dict[str, dict[str, float]]


class GreetedAddresses:
    """The addresses of greeted peers; an IPv6 /64 counts as one.

    Args:
        path: The file; None: nothing is kept over a restart.
        now: Seconds on the monotonic clock.
    """

    def __init__(self, path: Path | None = None, now: float = 0.0) -> None:
        self._path = path
        self._seen: dict[str, dict[str, float]] = {}
        self._peers: Counter[str] = Counter()
        self._is_new = False
        self._written = now
        self._retry = 0.0
        for peer, addresses in self._read().items():
            self._seen[peer] = {each: now - age for each, age in addresses.items()}
            self._peers.update(addresses.keys())

    def __bool__(self) -> bool:
        """Return whether any peer was greeted."""
        return bool(self._peers)

    def peers_at(self, address: str) -> int:
        """Return how many peers were greeted from what `address` counts as (`limits.origin`)."""
        return self._peers[address]

    def greeted(self, peer: str, address: str, now: float) -> None:
        """Note that a peer has proved who it is from an address."""
        place = origin(address)
        seen = self._seen.setdefault(peer, {})
        if place not in seen:
            self._is_new = True
            self._peers[place] += 1
        seen[place] = now
        while len(seen) > PER_PEER:
            self._forget(peer, min(seen, key=seen.__getitem__))

    def retain(self, peers: Collection[str]) -> None:
        """Forget all but these peers."""
        for peer in [each for each in self._seen if each not in peers]:
            for place in list(self._seen[peer]):
                self._forget(peer, place)

    def to_write(self, now: float) -> bytes | None:
        """Return what the file is to hold, or None where that can wait; call `write` with it."""
        waited = now - self._written
        if not (self._peers or self._is_new):
            return None
        soon = max(self._retry, len(self._peers) / _PER_SECOND)
        if waited < (soon if self._is_new else _EVERY):
            return None
        for peer, seen in list(self._seen.items()):
            for place in [each for each, at in seen.items() if now - at > KEPT_SECONDS]:
                self._forget(peer, place)
        self._is_new, self._written, self._retry = False, now, 0.0
        peers = {
            peer: {place: round(now - at, 1) for place, at in seen.items()}
            for peer, seen in self._seen.items()
        }
        return msgspec.json.encode(_Table(_VERSION, peers))

    def write(self, content: bytes) -> None:
        """Write the file, whole or not at all; blocks, for a thread.

        Raises:
            OSError: The disk refuses; `not_written` has it tried again.
        """
        if self._path is not None:
            write_small(RealFiles(), self._path, content, 0.0)

    def not_written(self, error: BaseException | None) -> None:
        """Try again a minute later, and log what does not pass by itself."""
        self._is_new, self._retry = True, _RETRY
        if isinstance(error, OSError) and not is_passing(error):
            emit("listener.addresses-lost", detail=f"{self._path}: {error.strerror}")

    def _read(self) -> dict[str, dict[str, float]]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            content = read_small(self._path)
            table = msgspec.json.decode(content or b"", type=_Table)
        except msgspec.DecodeError:
            emit("listener.addresses-lost", detail=f"{self._path}: it is damaged")
            return {}
        return table.peers if table.version == _VERSION else {}

    def _forget(self, peer: str, place: str) -> None:
        del self._seen[peer][place]
        if not self._seen[peer]:
            del self._seen[peer]
        self._peers[place] -= 1
        if not self._peers[place]:
            del self._peers[place]
        self._is_new = True
