"""Detect a silent peer, and a path that drops large messages.

A path that loses large packets (a tunnel whose smaller MTU nobody reports) lets hellos and pings
through: each connection is up, and falls once records are sent. After some that fell so, two
probes on the next one decide, ahead of any record.

On a narrow path each connection begins with the small probe: records that go out with a listener's
hello would share its packet, and the hello that asks for smaller segments would be lost with them.

Pure: inputs and `now` go in, messages come out.
"""

from __future__ import annotations

from typing import Final

from linkd.protocol.peer import PROBE_VERSION, Probe

PONG_AFTER = 1.0
"""An end into which bytes flow says something once it has said nothing for so many seconds."""

FLOW_BYTES = 256
"""So much at once is a flow; less may be a ping or a pong, which ask for no pong of ours."""

MIN_INTERVAL = 1.0
MAX_INTERVAL = 60.0
"""Bounds in seconds of the interval that a listener may announce."""


BUSY_SECONDS = 5.0
"""A client that was sent a message so shortly before it was last heard may be at work on it."""


class Liveness:
    """The silence of one connection.

    Attributes:
        heard_at: When a byte last came, seconds on the injected monotonic clock. Receiving sets it
            directly: it happens for every chunk of bytes.
        sent_at: When we last wrote something.
        limit: Seconds of silence at which the other end counts as gone.
    """

    __slots__ = ("heard_at", "limit", "sent_at")

    def __init__(self, now: float, limit: float) -> None:
        self.heard_at = now
        self.sent_at = now
        self.limit = limit

    def heard(self, now: float) -> None:
        """A byte came."""
        self.heard_at = now

    def silence(self, now: float) -> float:
        """Return how many seconds nothing has been heard, never negative."""
        return max(0.0, now - self.heard_at)

    @property
    def deadline(self) -> float:
        """When silence reaches the limit, unless something is heard before."""
        return self.heard_at + self.limit

    def silent(self, now: float) -> bool:
        """Tell whether silence has reached the limit.

        A clock counts in steps below a microsecond, so the last one of them is not waited for.
        """
        return now - self.heard_at >= self.limit - 1e-6

    def pong_due(self, now: float, size: int) -> bool:
        """Tell whether `size` bytes that came at once are to be answered by an unsolicited pong."""
        return size >= FLOW_BYTES and now - self.sent_at >= PONG_AFTER


class ClientLiveness(Liveness):
    """The silence of a client of the API: its path is judged apart from the program at its end.

    A dead path is noticed as soon as on a link: `limit` seconds without a byte or an
    acknowledgement of the other host's kernel. A program that answers no ping on a path that lives
    gets more patience while it may be at work on what it was sent.

    Args:
        now: Seconds on the injected monotonic clock.
        limit: Seconds of silence at which the path counts as dead.
        idle: Seconds of silence that an idle program may show.
        busy: Seconds of silence that a program may show which was sent something lately.

    Attributes:
        acked_at: When the other host's kernel last acknowledged anything, as far as is known.
        taken_at: When the program was last seen to read what was sent to it, or could not be heard.
        sent_at: When a message was last sent.
        reports_path: Whether the kernel knows of its path; without that only the program counts.
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
        """Seconds of silence that the program may show now."""
        is_busy = self.sent_at >= self.heard_at - BUSY_SECONDS
        return self._busy if is_busy else self._idle

    @property
    def deadline(self) -> float:
        """When silence reaches the first of the limits, unless something is heard before."""
        program = max(self.heard_at, self.taken_at) + self.patience
        if not self.reports_path:
            return program
        return min(program, max(self.heard_at, self.acked_at) + self.limit)

    def silent(self, now: float) -> bool:
        """Tell whether silence has reached the first of the limits."""
        return now >= self.deadline - 1e-6


def listener_limit(ping_interval: float, ping_timeout: float) -> float:
    """Return the seconds of silence at which a listener gives its dialer up."""
    return ping_interval + ping_timeout


def dialer_limit(announced: float) -> float | None:
    """Return the seconds of silence at which a dialer gives its listener up; None if out of bounds.

    Args:
        announced: The interval in the listener's hello, 1 to 60 s.
    """
    return 2 * announced if MIN_INTERVAL <= announced <= MAX_INTERVAL else None


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
