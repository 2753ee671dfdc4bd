"""Detect a silent peer, and a path that drops large messages.

A path that loses large packets (a tunnel whose smaller MTU nobody reports) lets hellos and pings
through: each connection comes up, and breaks once records are sent. After a few such connections
two probes on the next one decide, ahead of any record.

On a narrow path each connection begins with the small probe: records sent with a listener's hello
would share its packet, and the hello that asks for smaller segments would be lost with them.

Pure: inputs and `now` go in, messages come out.
"""

from __future__ import annotations

from typing import Final

from linkd.protocol.peer import PROBE_VERSION, Probe

PONG_AFTER = 1.0
"""An end that only receives sends an unsolicited pong after this many seconds without sending.

A sender whose TCP buffers are full could not send a ping to find out whether its peer is alive.
"""

FLOW_BYTES = 256
"""Reading this much at once means that data flows; less may be a ping, which needs none."""

MIN_INTERVAL = 1.0
MAX_INTERVAL = 60.0
"""Shortest and longest ping interval in seconds that a listener may announce."""


BUSY_SECONDS = 5.0
"""A client that got a message up to this long before its last byte may still be working on it."""


class Liveness:
    """The silence of one connection.

    Attributes:
        heard_at: When a byte last came, seconds on the injected monotonic clock. The connection
            sets it directly, for it does so for every chunk of bytes.
        sent_at: When we last wrote something.
        limit: Seconds of silence at which the other end counts as gone.
    """

    __slots__ = ("heard_at", "limit", "sent_at")

    def __init__(self, now: float, limit: float) -> None:
        self.heard_at = now
        self.sent_at = now
        self.limit = limit

    def silence(self, now: float) -> float:
        """Return for how many seconds nothing has been received, never negative."""
        return max(0.0, now - self.heard_at)

    @property
    def deadline(self) -> float:
        """When silence reaches the limit, unless something is received before."""
        return self.heard_at + self.limit

    def silent(self, now: float) -> bool:
        """Return whether silence has reached the limit.

        A timer may fire a rounding error before its deadline: a microsecond less counts as well,
        or the driver would arm it again for the rest.
        """
        return now - self.heard_at >= self.limit - 1e-6


class ClientLiveness(Liveness):
    """The silence of a client of the API: the path and the program at its end count separately.

    A dead path is noticed as soon as on a link: `limit` seconds without a byte or an
    acknowledgement of the other host's kernel. A program that answers no ping on a working path
    gets more time while it may be working on what it was sent.

    Args:
        now: Seconds on the injected monotonic clock.
        limit: Seconds of silence at which the path counts as dead.
        idle: Seconds of silence that an idle program may show.
        busy: Seconds of silence that a program may show after it was sent something.

    Attributes:
        acked_at: When the other host's kernel last acknowledged anything, if known.
        taken_at: When the program was last seen to read what was sent to it, or its bytes could not
            be received.
        sent_at: When a message was last sent.
        reports_path: Whether our kernel reports the path's state; if not, only the program counts.
    """

    __slots__ = ("_busy", "_idle", "acked_at", "reports_path", "taken_at")

    def __init__(self, now: float, limit: float, idle: float, busy: float) -> None:
        super().__init__(now, limit)
        self.acked_at = self.taken_at = now
        self.sent_at = -BUSY_SECONDS
        self.reports_path = False
        self._idle = idle
        self._busy = busy

    @property
    def patience(self) -> float:
        """Seconds of silence that the program may show at present."""
        is_busy = self.sent_at >= self.heard_at - BUSY_SECONDS
        return self._busy if is_busy else self._idle

    @property
    def deadline(self) -> float:
        """When silence reaches the first of the limits, unless something is received before."""
        program = max(self.heard_at, self.taken_at) + self.patience
        if not self.reports_path:
            return program
        return min(program, max(self.heard_at, self.acked_at) + self.limit)

    def silent(self, now: float) -> bool:
        """Return whether silence has reached the first of the limits."""
        return now >= self.deadline - 1e-6


def listener_limit(ping_interval: float, ping_timeout: float) -> float:
    """Return the seconds of silence after which a listener ends the connection."""
    return ping_interval + ping_timeout


def dialer_limit(announced: float) -> float | None:
    """Return the seconds of silence after which a dialer ends the connection; None: out of bounds.

    Args:
        announced: The interval in the listener's hello, 1 to 60 s.
    """
    return 2 * announced if MIN_INTERVAL <= announced <= MAX_INTERVAL else None


SMALL_BYTES: Final = 1_100
"""With all headers a packet below 1,280 bytes, which every IPv6 path carries (RFC 8200)."""

LARGE_BYTES: Final = 16_384
SEGMENT_BYTES: Final = 1_200
"""TCP segments on a path that loses large packets: again, packets below 1,280 bytes."""

LEAST_SEGMENT_BYTES: Final = 500
"""The smallest segments that a peer may ask for."""

PROBE_AFTER: Final = 3
"""Probe after this many connections in a row that broke with no record acknowledged."""

LASTED_SECONDS: Final = 1.0
"""A connection that ended sooner does not count: it was replaced, or its peer stopped."""

UNANSWERED_SECONDS: Final = 1.0
"""A large probe unanswered for this long, on a connection that then broke, was lost.

The shortest heartbeat ends a connection after 2 s without a byte, so 1 s never exceeds it.
"""


class Path:
    """What the connections of one link have shown about their path; outlives them.

    Attributes:
        probing: Bytes of the unanswered probe, or 0; no record is sent meanwhile.
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
        """Return the first probe of a new connection, or None if it needs none.

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
        """Take an answer; return the next probe, or None. `probing` is 0 after the last one."""
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
        """Take the end of the connection; return whether it shows that the path is narrow.

        Args:
            unacknowledged: Records that were sent on it were not acknowledged.
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
