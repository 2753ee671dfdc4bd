"""What connections need of the links above them.

The node provides it. All in the reactor's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from linkd.config import PeerSettings
from linkd.core.wire import Generation, Goodbye, Hello, Message
from linkd.errors import AttemptFailed, Reason


class Connection(Protocol):
    """One WebSocket between two nodes, dialed or accepted, once its hello has come.

    Attributes:
        key: A small number, unique in this process; never reused.
        dialed: We dialed it.
        generation: As chosen by the dialer.
        address: The other end, for people: `192.0.2.7:9443`, `[2001:db8::7]:9443`.
        writable: There is room for another message without delaying a ping or an ack.
        began: When it was established, monotonic seconds.
        silence_limit: Seconds of silence at which it is given up.
        rtt_seconds: The last measured round trip, or None.
        on_round_trip: Called with each measured round trip in seconds, where it is set.
        certificate_expires: Unix seconds, or None where the other showed no certificate.
    """

    key: int
    dialed: bool
    generation: Generation
    address: str
    writable: bool
    began: float
    silence_limit: float
    rtt_seconds: float | None
    on_round_trip: Callable[[float], None] | None
    certificate_expires: float | None

    def send(self, payload: bytes) -> None:
        """Send one binary message (`wire.encode`).

        Nothing happens once the connection has ended.
        """

    def answer(self, hello: Hello) -> None:
        """Listening end: send our own hello, `proof` filled in.

        The connection counts from now on.
        """

    def silence_seconds(self) -> float:
        """Return how long nothing has been heard."""

    def abort(self, reason: Reason, detail: str) -> None:
        """End it now; `lost` follows with this reason."""

    def fail(self, reason: Reason, detail: str, close_code: int) -> None:
        """End it and tell the other why; nothing is received any more.

        `lost` follows with this reason, 3 s later where the other does not answer.
        """

    def goodbye(self, message: Goodbye) -> None:
        """Send a goodbye, close, and abort after 3 s.

        `lost` follows with reason `stopped` or as the goodbye says.
        """


class LinkPort(Protocol):
    """One link, as its connections see it."""

    peer: str

    def hello(self, generation: Generation) -> Hello:
        """Return what we say first on a connection (`proof` empty: the connection fills it in)."""

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """The peer has proved who it is and said hello. The link takes the connection over.

        Or refuses it.

        On the listening end our own hello has not been sent yet: the link sends it
        (with `Connection.answer`) if it takes the connection.
        """

    def received(self, connection: Connection, message: Message) -> None:
        """A message after the hello."""

    def writable(self, connection: Connection) -> None:
        """`writable` has become true."""

    def lost(
        self, connection: Connection, reason: Reason, detail: str, goodbye: Goodbye | None
    ) -> None:
        """A greeted connection has ended.

        Always told once. `goodbye` is what the peer said last, if it did.
        """

    def attempting(self, url: str, address: str | None) -> None:
        """Dialer: an attempt has begun (address None), or has got as far as dialing `address`."""

    def opening(self) -> None:
        """Dialer: TCP stands; TLS, upgrade and hello are under way."""

    def failed(self, failure: AttemptFailed) -> None:
        """Dialer: the attempt has failed; nothing more happens until `Dialer.dial`."""

    def turned_away(self, reason: Reason, detail: str) -> None:
        """Listener: someone who may be the peer was refused before a hello; for status and log.

        Nothing was proved: it may change what is told of a link that is down, and nothing else.
        """


class Dialer(Protocol):
    """The dialing end of one link: a ReconnectingClientFactory underneath.

    Attributes:
        attempts: Attempts since the last connection was up.
        deadline: Monotonic seconds by which the attempt under way must have ended, or None.
        next_attempt: Monotonic seconds of the next attempt, or None.
        segment_bytes: The largest TCP segments of the attempts to come; 0 for the path's own.
    """

    attempts: int
    deadline: float | None
    next_attempt: float | None
    segment_bytes: int

    def dial(self, after: float) -> None:
        """Begin an attempt after so many seconds, 0 for at once.

        Replaces what was scheduled before.
        """

    def stop(self) -> None:
        """Dial no more, and end the attempt under way."""


class Nodes(Protocol):
    """What a listener needs of the node."""

    name: str

    def peer(self, name: str) -> PeerSettings | None:
        """Return the configured peer of that name."""

    def link(self, name: str) -> LinkPort | None:
        """Return the link to the peer of that name."""

    def busy(self) -> float | None:
        """Return after how many seconds newcomers should come back, or None: welcome."""

    def refused(self, claimed: str | None, address: str, reason: Reason, detail: str) -> None:
        """Take note of a connection that was refused, for status.

        Args:
            claimed: The name that it gave, proved or not; None where it gave none.
            address: Where it came from.
            reason: One word.
            detail: One sentence.
        """
