"""Which of two connections to one peer stays."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from linkd.core.link_types import Greeted
from linkd.errors import Reason

CLONE_TAKEOVERS = 3
CLONE_WINDOW = 60.0
"""Two boots that take over from each other so often within so many seconds run on two hosts."""

CLONE_MEMORY = 600.0
"""A refused clone stays refused for so many seconds after its last try, while the other lives."""


class Refusal(NamedTuple):
    """Why a newcomer does not become the link's connection."""

    reason: Reason
    detail: str


class Takeovers:
    """Judge newcomers against the live connection, and remember who took over from whom.

    Args:
        name: This node's name.
        peer: The peer's name.
    """

    __slots__ = ("_clones", "_name", "_peer", "_recent")

    def __init__(self, name: str, peer: str) -> None:
        self._name = name
        self._peer = peer
        self._recent: deque[tuple[float, str, str]] = deque(maxlen=16)
        self._clones: dict[str, float] = {}

    def judge(self, live: Greeted, new: Greeted, now: float) -> Refusal | None:
        """Return why `new` is refused, or None: it takes over from `live`.

        Args:
            live: The link's connection.
            new: The newcomer.
            now: Seconds on the injected monotonic clock.
        """
        if new.log != live.log:
            return Refusal(
                "duplicate",
                f"another log ({new.log}) under the name of {self._peer} while one ({live.log}) is"
                f" connected: {live.address} is connected, {new.address} was refused",
            )
        if new.dialed != live.dialed:
            return self._both_dial(live)
        if new.generation.boot == live.generation.boot:
            if new.generation.counter > live.generation.counter:
                return None
            return Refusal("replaced", f"a newer connection of {self._peer} is already there")
        return self._other_boot(live, new, now)

    def _both_dial(self, live: Greeted) -> Refusal | None:
        """Keep what the lesser name dialed."""
        if live.dialed == (self._name < self._peer):
            lesser = min(self._name, self._peer)
            return Refusal("replaced", f"both ends dial; the connection dialed by {lesser} stays")
        return None

    def _other_boot(self, live: Greeted, new: Greeted, now: float) -> Refusal | None:
        """Let another boot of the peer take over, unless two of them fight."""
        old_boot, new_boot = live.generation.boot, new.generation.boot
        known = self._clones.get(new_boot)
        pair = {old_boot, new_boot}
        while self._recent and now - self._recent[0][0] >= CLONE_WINDOW:
            self._recent.popleft()
        fights = sum({old, new} == pair for _, old, new in self._recent)
        if (known is not None and now < known) or fights >= CLONE_TAKEOVERS - 1:
            self._clones = {boot: until for boot, until in self._clones.items() if now < until}
            if len(self._clones) < 64:
                self._clones[new_boot] = now + CLONE_MEMORY
            return Refusal(
                "duplicate",
                f"two hosts use the name {self._peer} and take over from each other:"
                f" {live.address} is connected, {new.address} was refused; give one of them another"
                " name and an empty state_dir",
            )
        self._recent.append((now, old_boot, new_boot))
        return None
