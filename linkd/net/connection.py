"""One WebSocket between two nodes: framing, silence detection, closing.

`LinkPort` and `Nodes` are the interfaces that the node implements for its connections. Everything
runs in the reactor's thread.

Autobahn handles the handshake, control frames, fragments and closing. linkd only sends binary
messages of one frame each, and this module reads and writes those itself: it takes many of them
from one chunk of bytes without copying the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import count
from typing import Any, ClassVar, Final, Protocol, get_args

from twisted.internet.base import DelayedCall, ReactorBase
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from linkd.config import PeerSettings
from linkd.core.liveness import FLOW_BYTES, PONG_AFTER, Liveness
from linkd.errors import AttemptFailed, Reason, RemoteProtocolError
from linkd.net.http_head import printable
from linkd.net.linux import ended, format_address, peer_of, reset_at_exit, tune
from linkd.net.timers import Silence, cancel
from linkd.net.websocket import (
    MESSAGE,
    PING,
    PONG,
    SMALL_BYTES,
    STATE_CLOSED,
    STATE_OPEN,
    AdaptiveBuffer,
    FrameHeader,
    FrameReader,
    SilentLogger,
    put,
)
from linkd.protocol.peer import (
    MAX_HELLO_BYTES,
    MAX_MESSAGE_BYTES,
    Generation,
    Goodbye,
    Hello,
    Message,
    decode,
    encode,
)


class LinkPort(Protocol):
    """One link, as its connections see it."""

    peer: str

    def hello(self, generation: Generation) -> Hello:
        """Return our hello for a connection; `proof` is empty, the connection fills it in."""

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """Take over, or refuse, a connection whose peer has proved its identity and sent its hello.

        On the listening end our own hello has not been sent yet: the link sends it with
        `Connection.answer` if it accepts the connection.
        """

    def received(self, connection: Connection, message: Message) -> None:
        """Handle a message after the hello."""

    def writable(self, connection: Connection) -> None:
        """Send more: the connection's `writable` has become true."""

    def lost(
        self, connection: Connection, reason: Reason, detail: str, goodbye: Goodbye | None
    ) -> None:
        """Handle the end of a connection that had been passed to `greeted`; called exactly once.

        `goodbye` is the peer's last message, if it sent one.
        """

    def attempting(self, url: str, address: str | None) -> None:
        """Dialer: an attempt has begun (address None), or has started to dial `address`."""

    def opening(self) -> None:
        """Dialer: TCP is established; TLS, upgrade and hello follow."""

    def failed(self, failure: AttemptFailed) -> None:
        """Dialer: the attempt has failed; nothing more happens until `LinkDialer.dial`."""

    def turned_away(self, reason: Reason, detail: str) -> None:
        """Listener: a connection that claims to be the peer was refused before its hello.

        The claim is unproven, so it may only change what status and log report about a link that is
        down.
        """


class Nodes(Protocol):
    """The node, as its listener sees it."""

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


class FrameWriter(ABC):
    """The sending half of a `Connection`, and the transport's producer."""

    dialed: ClassVar[bool]
    transport: Any
    state: int
    life: Liveness
    clock: ReactorBase
    pace: AdaptiveBuffer | None

    writable = True
    port: LinkPort | None = None

    def send(self, payload: bytes) -> None:
        """Send one binary message."""
        if self.state == STATE_OPEN:
            self._frame(MESSAGE, payload)

    def sendFrame(self, opcode: int, payload: bytes = b"", **_: Any) -> None:
        """Send a frame for Autobahn: pings, pongs and closes, which are never fragmented."""
        self._frame(0x80 | opcode, payload)

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Send the bytes of Autobahn's opening handshake."""
        self.life.sent_at = self.clock.seconds()
        self.transport.write(data)

    def _frame(self, first: int, payload: bytes) -> None:
        head, body = put(first, payload, 0x80 if self.dialed else 0)
        self.life.sent_at = self.clock.seconds()
        if len(body) < SMALL_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.writeSequence((head, body))

    def pauseProducing(self) -> None:
        """Stop sending: the transport's buffer is full."""
        if self.writable and self.pace is not None:  # the transport repeats it with each write
            self.pace.paused(self.clock.seconds())
        self.writable = False

    def resumeProducing(self) -> None:
        """Send again: the transport's buffer has drained."""
        self.writable = True
        if self.pace is not None:
            self.pace.resumed(self.clock.seconds())
        if self.port is not None and self.state == STATE_OPEN:
            try:
                self.port.writable(self)  # type: ignore[arg-type]
            except Exception:  # noqa: BLE001 - as above
                self._bug("no more could be sent")

    def stopProducing(self) -> None:
        """Stop sending: the transport is closed."""
        self.writable = False

    @abstractmethod
    def _bug(self, what: str) -> None:
        """Log a bug, and end the connection."""


Post = Callable[[bytes, str], Deferred[tuple[int, bytes]]]
"""Handles a POST before any upgrade: takes body and address, returns status and JSON."""


ABORT_AFTER: Final = 3.0
"""Seconds from sending a close frame to aborting."""

MAX_FRAMES: Final = 256
"""Maximum number of frames of one message: each costs as much as a whole message."""

_OPEN: Final = STATE_OPEN
_CLOSED: Final = STATE_CLOSED
_CLOSED_WELL: Final = (1000, 1001)
_REASONS: Final = frozenset(get_args(Reason))
_PONG_HEADER: Final = FrameHeader(10, True, 0, 0, None)
_PONG_UNMASKED: Final = b"\x8a\x00"
_PONG_MASKED: Final = b"\x8a\x80\x00\x00\x00\x00"
_keys = count(1)
_no_generation: Final = Generation("-", 0)


class Connection(Silence, FrameReader, FrameWriter):
    """One WebSocket between two nodes; both ends mix it into Autobahn's protocol.

    Attributes:
        key: A small number, unique in this process; never reused.
        dialed: We dialed it.
        generation: As chosen by the dialer.
        writable: There is room for another message without delaying a ping or an ack.
        began: When TCP was established, monotonic seconds.
        life: When bytes were last received and sent.
        port: The link, once the peer's hello has been accepted.
        rtt_seconds: The last measured round trip, or None.
        on_round_trip: Called with each measured round trip in seconds, where it is set.
        certificate_expires: Unix seconds, or None where the peer showed no certificate.
        return_spread: Seconds over which dialers should come back, as the listening end announced;
            None: it announced nothing.
    """

    log: Any = SilentLogger()
    most_whole: int = MAX_MESSAGE_BYTES
    silent_reason: ClassVar[Reason]
    factory: Any
    remoteCloseCode: int | None
    remoteCloseReason: str | None

    key = 0
    began: float
    generation = _no_generation
    rtt_seconds: float | None = None
    certificate_expires: float | None = None
    return_spread: float | None = None
    on_round_trip: Callable[[float], None] | None = None
    host = ""
    port_number = 0
    _ending: tuple[Reason, str] | None = None
    _goodbye: Goodbye | None = None
    _abort_call: DelayedCall | None = None
    _pinged_at: float | None = None
    _gone = False
    _frames = 0

    # -- beginning ----------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Set up the state of a new TCP connection."""
        self.key = next(_keys)
        self.clock = self.factory.clock
        self.began = self.clock.seconds()
        self.life = Liveness(self.began, self.factory.first_limit)
        self.host, self.port_number = peer_of(self.transport)
        tune(self.transport, self.life.limit)
        self.pace = AdaptiveBuffer(self.transport)
        super().connectionMade()  # type: ignore[misc]

    @property
    def address(self) -> str:
        """The peer's address and port, for display."""
        return format_address(self.host, self.port_number)

    def _onOpen(self) -> None:
        """Free what only the handshake needed, and register with the transport for flow control."""
        self._transport_details = None
        for name in _HANDSHAKE_LEFTOVERS:
            self.__dict__.pop(name, None)
        self.transport.registerProducer(self, True)
        try:
            self.onOpen()
        except Exception:  # noqa: BLE001 - as in dataReceived
            self._bug("an open connection could not begin")

    def onOpen(self) -> None:
        """Begin: the WebSocket is open. The dialer sends its hello here."""

    # -- receiving ----------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Process received bytes; any of them count as a sign of life."""
        now = self.clock.seconds()
        life = self.life
        life.heard_at = now
        if len(data) >= FLOW_BYTES and now - life.sent_at >= PONG_AFTER and self.state == _OPEN:
            life.sent_at = now
            self.transport.write(_PONG_MASKED if self.dialed else _PONG_UNMASKED)
        try:
            self.gather(data)
        except Exception:  # noqa: BLE001 - the one place: log and abort
            if self._ending is None:
                self._bug("what was received could not be worked on")
            else:
                self.transport.abortConnection()

    def processData(self) -> bool:
        """Let Autobahn parse the next frame, or part of it; return whether more may follow."""
        return super().processData() and not self._too_many()  # type: ignore[misc]

    def onFrameBegin(self) -> None:
        """Count the frame whose header Autobahn has parsed, if it belongs to a message."""
        if self.of_message():
            self._frames += 1
        super().onFrameBegin()  # type: ignore[misc]

    def _too_many(self) -> bool:
        """Fail where a message has too many frames; return whether reading must stop entirely."""
        if self._frames > MAX_FRAMES:
            self.fail("protocol", f"a message came in more than {MAX_FRAMES} frames", 3002)
        if self._frames <= 2 * MAX_FRAMES:
            return False
        self.data = b""
        self.transport.abortConnection()
        return True

    def whole(self, first: int, payload: bytes) -> bool:
        """Process a message, ping or pong that arrived in one frame."""
        if first == MESSAGE:
            self._message(payload)
        elif first == PING:
            self.onPing(payload)
        else:
            self._pong(payload)
        return True

    def _pong(self, payload: bytes) -> None:
        """Pass a pong to Autobahn as if it had parsed it itself."""
        self.current_frame = _PONG_HEADER
        self.control_frame_data = [payload]
        self.processControlFrame()  # type: ignore[attr-defined]
        self.current_frame = None

    def onPong(self, payload: bytes) -> None:
        """Ignore it: `dataReceived` has counted it as a sign of life."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Process a message that arrived in several frames, or as text."""
        self._frames = 0
        if isBinary:
            self._message(payload)
        else:
            self.fail("protocol", "expected binary messages, got text", 1003)

    def _message(self, payload: bytes) -> None:
        if self._ending is not None:
            return
        try:
            if self.port is None and len(payload) > MAX_HELLO_BYTES:
                raise RemoteProtocolError(
                    f"expected a hello of at most {MAX_HELLO_BYTES} bytes, got {len(payload)}", 1009
                )
            message = decode(payload)
            if self.port is None:
                self.first(message)
            elif type(message) is Goodbye:
                self._goodbye = message
                self.return_spread = message.return_spread or self.return_spread
            else:
                self.port.received(self, message)
        except RemoteProtocolError as error:
            self.fail("protocol", str(error), error.close_code)

    @abstractmethod
    def first(self, message: Message) -> None:
        """Process the peer's first message.

        Raises:
            RemoteProtocolError: It is not a hello, or not an acceptable one.
        """

    def answer(self, hello: Hello) -> None:
        """Reply to the dialer's hello with our own."""
        self.send(encode(hello))

    def onPing(self, payload: bytes) -> None:
        """Answer a ping, unless the peer does not read what has been sent already."""
        if self.state == _OPEN and self.writable:
            self._frame(PONG, payload)

    # -- silence ------------------------------------------------------------------------------

    @property
    def silence_limit(self) -> float:
        """Seconds of silence after which the connection is aborted."""
        return self.life.limit

    def silence_seconds(self) -> float:
        """Return how long nothing has been received."""
        return self.life.silence(self.clock.seconds())

    def _sendAutoPing(self) -> None:
        """Send a ping, and note the time to measure the round trip."""
        self._pinged_at = self.clock.seconds()
        super()._sendAutoPing()  # type: ignore[misc]

    def onAutoPong(self, *_: object) -> None:
        """Measure the round trip: the pong to our last ping has arrived."""
        if self._pinged_at is not None:
            self.rtt_seconds = self.clock.seconds() - self._pinged_at
            if self.on_round_trip is not None:
                self.on_round_trip(self.rtt_seconds)

    @property
    def is_ending(self) -> bool:
        """Whether it has ended, or is about to."""
        return self.state == _CLOSED or self._ending is not None

    def fell_silent(self, silence: float) -> None:
        """Abort the connection after `silence` seconds without a byte."""
        self.abort(self.silent_reason, f"nothing was heard for {silence:.1f} s")

    # -- ending -------------------------------------------------------------------------------

    def abort(self, reason: Reason, detail: str) -> None:
        """End the connection now; `lost` follows with this reason."""
        if self._ending is None:
            self._ending = (reason, detail)
        if self._gone:
            return
        if self.state == _CLOSED:
            self.transport.abortConnection()
        else:
            self.dropConnection(abort=True)  # type: ignore[attr-defined]

    def fail(self, reason: Reason, detail: str, close_code: int) -> None:
        """Send a close frame with the reason, and abort after 3 s; nothing more is received."""
        if self._ending is not None:
            return
        self._ending = (reason, detail)
        self.failedByMe = True
        if self.state == _OPEN:
            self.sendCloseFrame(
                close_code, detail.encode()[:120].decode("utf-8", "ignore").encode()
            )
        else:
            self.abort(reason, detail)

    def _fail_connection(self, code: int = 1002, reason: str = "") -> None:
        """Fail where Autobahn found a protocol violation."""
        self.fail("protocol", reason, code)

    def goodbye(self, message: Goodbye) -> None:
        """Send a goodbye, close, and abort after 3 s.

        `lost` follows with the reason of the goodbye, or `closed` where that is unknown.
        """
        if self._ending is not None:
            return
        reason: Reason = message.reason if message.reason in _REASONS else "closed"  # type: ignore[assignment]
        self._ending = (reason, message.detail)
        if self.state == _OPEN:
            self.send(encode(message))
            self.sendCloseFrame(1000)
        else:
            self.abort(reason, message.detail)

    def sendCloseFrame(
        self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False
    ) -> None:
        """Send a close frame; whichever end closes first, abort after 3 s."""
        super().sendCloseFrame(code, reasonUtf8, isReply)  # type: ignore[misc]
        self._abort_later()

    def _closeConnection(self, abort: bool = False) -> None:
        if abort:
            self.transport.abortConnection()
        else:
            self.transport.loseConnection()
            self._abort_later()

    def _abort_later(self) -> None:
        if self._abort_call is None:
            reset_at_exit(self.transport, False)
            self._abort_call = self.clock.callLater(ABORT_AFTER, self._abort_now)

    def _abort_now(self) -> None:
        self._abort_call = None
        self.transport.abortConnection()

    def _bug(self, what: str) -> None:
        """Log a bug with its traceback, and end the connection: the only place that does."""
        SilentLogger._log.failure("{what}; the connection is aborted", what=what)
        self.abort("protocol", f"internal error: {what}")

    def connectionLost(self, reason: Failure) -> None:
        """Report the end of the connection, once."""
        self._gone = True
        super().connectionLost(reason)  # type: ignore[misc]
        for name in ("_abort_call", "closeHandshakeTimeoutCall"):
            cancel(self.__dict__.pop(name, None))
        port, self.port = self.port, None
        if port is None:
            self.ended_early(reason)
            return
        goodbye = self._goodbye
        why, detail = self._ending or self._why(goodbye, reason)
        port.lost(self, why, detail, goodbye)

    def _why(self, goodbye: Goodbye | None, reason: Failure) -> tuple[Reason, str]:
        """Return why a connection ended that this node did not end."""
        if goodbye is not None:
            word: Reason = goodbye.reason if goodbye.reason in _REASONS else "closed"  # type: ignore[assignment]
            return word, f"the peer said goodbye: {goodbye.detail or goodbye.reason}"
        code = self.remoteCloseCode
        if code is not None and code not in _CLOSED_WELL:
            text = printable(self.remoteCloseReason or "") or "no reason given"
            return "protocol", f"the peer closed the connection ({code}): {text}"
        return "closed", f"{ended(reason)} without a goodbye"

    @abstractmethod
    def ended_early(self, reason: Failure) -> None:
        """Handle the end of a connection before its peer's hello."""

    def onClose(self, *_: object) -> None:
        """Do nothing: `connectionLost` follows."""


_HANDSHAKE_LEFTOVERS: Final = [
    "http_request_data",
    "http_response_data",
    "http_headers",
    "http_status_line",
    "http_request_uri",
    "http_request_path",
    "http_request_params",
    "http_request_host",
    "websocket_protocols",
    "websocket_origin",
    "websocket_extensions",
    "websocket_extensions_in_use",
    "websocket_key",
    "_wskey",
]
