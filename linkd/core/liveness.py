"""Whether the other end is still there: any byte is life, silence is judged exactly."""

from __future__ import annotations

PONG_AFTER = 1.0
"""An end into which bytes flow says something once it has said nothing for so many seconds."""

FLOW_BYTES = 256
"""So much at once is a flow; less may be a ping or a pong, which ask for no pong of ours."""

MIN_INTERVAL = 1.0
MAX_INTERVAL = 60.0
"""Bounds in seconds of the interval that a listener may announce."""


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


def listener_limit(ping_interval: float, ping_timeout: float) -> float:
    """Return the seconds of silence at which a listener gives its dialer up."""
    return ping_interval + ping_timeout


def dialer_limit(announced: float) -> float | None:
    """Return the seconds of silence at which a dialer gives its listener up; None if out of bounds.

    Args:
        announced: The interval in the listener's hello, 1 to 60 s.
    """
    return 2 * announced if MIN_INTERVAL <= announced <= MAX_INTERVAL else None
