"""What can be done to the path of a throw-away pair: by packet filter, or by the relay."""

from __future__ import annotations

from typing import Literal, Protocol

from linkd.drill.place import Ground
from linkd.drill.relay import Relay

Way = Literal["both", "up", "down"]
"""`up` is from the dialer to the listener."""


class Path(Protocol):
    """A path that can be spoiled; each call replaces what the one before did."""

    def block(self, way: Way) -> None:
        """Let nothing pass that goes this way, and close no connection."""

    def reject(self) -> None:
        """Reset every connection and refuse new ones."""

    def heal(self) -> None:
        """Let everything pass again; again is harmless."""


class FilteredPath:
    """A path with a packet filter at either end; both are the pair's own.

    What is dropped is dropped where it arrives: its sender can't know, as on a real path.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def block(self, way: Way) -> None:
        """Drop what arrives."""
        self._rules("-j DROP", way)

    def reject(self) -> None:
        """Answer all TCP by a reset; the resets themselves must pass."""
        self._rules("-p tcp ! --tcp-flags RST RST -j REJECT --reject-with tcp-reset", "both")

    def lose(self, share: float) -> None:
        """Drop packets at random, 0 to 1, as they arrive, each way."""
        self._rules(f"-m statistic --mode random --probability {share:.3f} -j DROP", "both")

    def heal(self) -> None:
        """Remove all rules: nobody else has any here."""
        for place in (self._ground.hub, self._ground.edge):
            place.sh("iptables -w 5 -F INPUT")

    def _rules(self, rest: str, way: Way) -> None:
        self.heal()
        hub, edge = self._ground.hub, self._ground.edge
        if way in ("both", "up"):
            hub.sh(f"iptables -w 5 -A INPUT -s {edge.address} {rest}")
        if way in ("both", "down"):
            edge.sh(f"iptables -w 5 -A INPUT -s {hub.address} {rest}")


class RelayedPath:
    """A path through the relay, which stands at the dialer's end."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def block(self, way: Way) -> None:
        """Hold back what goes this way."""
        self._relay.tell(**{"pass": {"up": way == "down", "down": way == "up"}})

    def reject(self) -> None:
        """Reset what is open, refuse what is new."""
        self._relay.tell(listening=False, reset=True)

    def slow(self, rate: float) -> None:
        """Let about so many bytes a second pass each way."""
        self._relay.tell(rate=rate)

    def heal(self) -> None:
        """Forward again."""
        self._relay.tell(**{"pass": {"up": True, "down": True}, "rate": None, "listening": True})
