"""Find out whether small messages pass to a peer and large ones do not.

A path that loses large packets (a tunnel whose smaller MTU nobody reports) lets hellos and pings
through: each connection is up, and falls once records are sent. After some that fell so, two
probes on the next one decide, ahead of any record.

On a narrow path each connection begins with the small probe: records that go out with a listener's
hello would share its packet, and the hello that asks for smaller segments would be lost with them.

Pure: inputs and `now` go in, messages come out.
"""

from __future__ import annotations

from typing import Final

from linkd.core.wire import PROBE_VERSION, Probe

SMALL_BYTES: Final = 1_100
"""With all heads about it a packet of less than 1,280 bytes, which any path of IPv6 carries."""

LARGE_BYTES: Final = 16_384
SEGMENT_BYTES: Final = 1_200
"""The TCP segments towards a path that loses large packets: again, packets below 1,280 bytes."""

LEAST_SEGMENT_BYTES: Final = 500
"""No peer can ask for smaller ones."""

PROBE_AFTER: Final = 3
"""So many connections in a row fell with records sent and none of them acknowledged."""

LASTED_SECONDS: Final = 1.0
"""One that ended sooner does not count: it was replaced, or its peer stopped."""

UNANSWERED_SECONDS: Final = 1.0
"""A large probe that got no answer for so long, on a connection that then fell, was lost.

The shortest heartbeat gives a connection up after 2 s without a byte.
"""


class Path:
    """What the connections of one link say about their path; outlives them.

    Attributes:
        probing: Bytes of the probe that waits for its answer, or 0: no record is sent meanwhile.
        narrow: Small messages pass, large ones do not.
    """

    __slots__ = ("_asked_at", "_began", "_fell", "narrow", "probing")

    def __init__(self) -> None:
        self.probing = 0
        self.narrow = False
        self._fell = 0
        self._began = 0.0
        self._asked_at = 0.0

    def began(self, version: int, now: float) -> Probe | None:
        """Return the first probe of a new connection, where it is to be probed.

        Args:
            version: The protocol version that the peer speaks.
            now: Seconds on the injected monotonic clock.
        """
        self._began = now
        self.probing = 0
        if version < PROBE_VERSION or not (self.narrow or self._fell >= PROBE_AFTER):
            return None
        return self._ask(SMALL_BYTES, now)

    def answered(self, size: int, now: float) -> Probe | None:
        """Take an answer; return the next probe. `probing` is 0 once there is none."""
        if size != self.probing:
            return None
        if size == SMALL_BYTES and not self.narrow:
            return self._ask(LARGE_BYTES, now)
        self.probing = self._fell = 0
        return None

    def _ask(self, size: int, now: float) -> Probe:
        self.probing, self._asked_at = size, now
        return Probe(bytes(size))

    def ended(self, unacknowledged: bool, progress: bool, now: float) -> bool:
        """The connection has ended; return whether that shows that the path is narrow.

        Args:
            unacknowledged: Records were sent on it that were not acknowledged.
            progress: The peer acknowledged a record on it.
            now: Seconds on the injected monotonic clock.
        """
        probing, self.probing = self.probing, 0
        if probing:
            lost = probing == LARGE_BYTES and now - self._asked_at >= UNANSWERED_SECONDS
            self.narrow = self.narrow or lost
            return lost
        if progress:
            self._fell = 0
        elif unacknowledged and now - self._began >= LASTED_SECONDS:
            self._fell += 1
        return False
