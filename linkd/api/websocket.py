"""The API's WebSockets: upgrade, bounds, silence and closing; whole binary messages."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from autobahn.twisted.resource import WebSocketResource
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from linkd.api.access import (
    STREAM_PATH,
    TEXT_PATH,
    TEXT_SUBPROTOCOL,
    AuthorizedRequest,
    answers_by_close,
    check_upgrade,
    close_of,
    is_from_browser,
    offered,
    unauthorized,
)
from linkd.api.auth import Caller
from linkd.api.call import Call, seconds_between
from linkd.api.errors import ApiError
from linkd.api.http import SMALL_BYTES, ApiRequest, CallerBudget, internal_error
from linkd.api.session import ClientSession
from linkd.core.liveness import FLOW_BYTES, ClientLiveness
from linkd.net.linux import keep_unsent_small, path_of
from linkd.net.rate_limit import drop_buffers
from linkd.net.timers import ExactTimer, PingedSilence, cancel
from linkd.net.websocket import (
    MESSAGE,
    STATE_OPEN,
    TEXT,
    AdaptiveBuffer,
    ConnectionDeny,
    FrameReader,
    ServerFactory,
    ServerProtocol,
    SilentLogger,
    frame_head,
)
from linkd.net.websocket import (
    SMALL_BYTES as SMALL_FRAME_BYTES,
)
from linkd.protocol.client import MAX_MESSAGE_BYTES, SUBPROTOCOL

if TYPE_CHECKING:
    from linkd.api.server import ApiServer


BUSY_CLIENT_SECONDS = 30.0
"""Beyond the interval of pings a browser, a client of linkd's own, or a program that was sent
something may be busy for so long; then a connection that answers no ping is cut."""

MAX_TIMEOUT_SECONDS = 60.0
"""`?timeout=` asks for no more."""

MESSAGE_SECONDS = 30.0
LEAST_BYTES_PER_SECOND = 2184
"""A large message must be complete so soon, at this rate: 64 KiB in 30 s, as of a request."""

LIFE_SECONDS = 1.0
"""Seconds between pongs while a message comes in: the other end's pings wait behind it."""

CLOSE_SECONDS = 3.0
ENVELOPE_BYTES = 65_536
"""A text frame may be so much larger than the body in it."""

MAX_FRAMES = 1024
"""Frames in which one message may come: each costs as much as a whole message."""

STUCK_BYTES = 1 << 20
"""Where more waits for the other end to read it, nothing more is taken of it."""

OVERTAKING_BYTES = 49_152
"""As much may be sent ahead of the next part of a large message, while that waits for room."""

MAX_WAITING_BYTES = 32 << 20
"""A client with more unsent bytes is cut, even if they are presence or link events."""

MOST_UNWANTED_BYTES = 65_536
"""Bytes read from a client whose upgrade was refused, while its close is awaited."""

RETURNS_PER_SECOND = 300.0
MAX_SPREAD_SECONDS = 30.0
"""Pages a second that are to come back when the node goes away; the longest spread."""

MAX_PINGS = 16
"""Pings remembered, whose pongs show what was received."""

NORMAL = 1000
GOING_AWAY = 1001
REFUSED = 1008
BUG = 1011
TRY_AGAIN = 1013


MakeSession = Callable[[Call, str, "ApiWebSocket"], ClientSession]
"""Creates a session: the request that was upgraded, its path, and the WebSocket."""


class RefusedSession(ClientSession):
    """The session of a WebSocket that opens only to report why it is refused."""

    def __init__(
        self, api: ApiServer, caller: Caller, socket: ApiWebSocket, refusal: ApiError
    ) -> None:
        super().__init__(api, caller, socket)
        self._refusal = refusal

    def opened(self) -> None:
        """Close the WebSocket with the reason."""
        self.socket.close(*close_of(self._refusal))


@implementer(IPushProducer)
class ApiWebSocket(PingedSilence, FrameReader, ServerProtocol):
    """One WebSocket: Autobahn's callbacks, none of which may raise.

    Attributes:
        open: Messages may be sent and are delivered.
    """

    masked: ClassVar[int] = 0x80
    most_whole: int = 0
    """The longest message that is accepted; set once the handshake is over."""

    log: Any = SilentLogger()
    life: ClientLiveness

    websockets: WebSockets
    session: ClientSession
    subprotocol: str | None = None
    released: Callable[[], None] | None = None
    is_text = False
    """A page may be at the other end: it has one connection for large messages and small ones."""

    token: str | None = None
    """Used up once the upgrade succeeds."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = False
        self._unwanted = 0
        self.open = False
        self.waiting = 0
        self._incoming = 0  # bytes of a message that has come in part
        self._whole_by: Any = None  # when it must be complete
        self._late: Any = None
        self._frames = 0
        self._life_at: float | None = None  # when a sign of life is due; a message is coming in
        self._goes_on: Callable[[], None] | None = None  # once the other end reads
        self._budget: CallerBudget | None = None
        self._confirmed: Callable[[], None] | None = None
        self._confirms: deque[bytes] = deque(maxlen=MAX_PINGS)  # pings, any of whose pongs confirms
        self._acked = 0  # bytes that the other end's kernel had when the silence was last judged

    # Autobahn's callbacks

    def onConnect(self, request: Any) -> str | None:
        """Accept; the gate has judged the request already, in the same turn."""
        if self.token is not None and self.websockets.api.keyring.spend(self.token) is None:
            raise ConnectionDeny(401, "the token is used")
        return self.subprotocol

    def onOpen(self) -> None:
        """The handshake is over."""
        self.open = True
        self._budget = self.websockets.api.budget.for_caller(self.session.caller.name)
        self.most_whole = self.maxFramePayloadSize
        keep_unsent_small(self.transport)
        self.pace = AdaptiveBuffer(self.transport, self.is_text)
        self.transport.registerProducer(self, True)
        self.look_closer(self.clock.seconds())  # is there a path to judge?
        self._guarded(self.session.opened)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A message came."""
        self._frames = 0
        if self.open:
            self._guarded(lambda: self.session.message(payload, isBinary))
            self.busy = self.session.busy or self.is_stuck

    def whole(self, first: int, payload: bytes) -> bool:
        """Take a message that came in one frame."""
        if first != MESSAGE or not self.open:
            return False
        self.onMessage(payload, True)
        return True

    def send_message(self, payload: bytes, binary: bool, more: tuple[bytes, ...] = ()) -> None:
        """Send one message, `payload` and then `more`; nothing if the other end began to close.

        Autobahn would refuse one that is larger than those that are taken here.
        """
        if self.state != STATE_OPEN:
            return
        size = len(payload) + sum(map(len, more)) if more else len(payload)
        head = frame_head(MESSAGE if binary else TEXT, size)
        if size < SMALL_FRAME_BYTES:
            self.transport.write(head + payload)
        else:
            self.transport.writeSequence((head, payload, *more))

    # silence

    @property
    def is_ending(self) -> bool:
        """Whether it has ended, or is about to."""
        return not self.open

    def fell_silent(self, silence: float) -> None:
        """Cut it: nothing was received for so many seconds."""
        self.cut()

    def _sendAutoPing(self) -> None:
        """Ping, and see how far the client has read by then."""
        self.look_closer(self.clock.seconds())
        super()._sendAutoPing()

    def sendPing(self, payload: bytes | None = None) -> None:
        """Send a ping; while a large message comes in, a pong, which asks for no answer.

        The answers would wait behind it, and the package `ws` gives up with 60 of them waiting.
        Without a byte from us the other host's kernel would have nothing to acknowledge: a client
        that pauses, or that waits for memory of ours, would count as gone.
        """
        confirms = payload in self._confirms
        if self.awaited() > SMALL_BYTES and not confirms:
            self._life_at = self.clock.seconds() + LIFE_SECONDS
            self.sendPong()
            return
        super().sendPing(payload)
        if self._confirms and payload and not confirms:
            self._confirms.append(payload)

    def look_closer(self, now: float) -> None:
        """Update what is known of the program and of its path, before its silence is judged.

        A program lives while it reads what was sent, or while we do not read from it. Whether the
        path lives only the kernel knows.
        """
        life = self.life
        if (self._resting or self.busy) and self.waiting <= STUCK_BYTES:
            life.taken_at = now
        path = path_of(self.transport)
        # A host whose window is full has acknowledged all, and the kernel asks it ever more seldom
        # for room: its silence proves nothing about the path.
        life.reports_path = path is not None and (path[2] > 0 or not self.paused)
        if path is not None:
            life.acked_at = now - path[0]
            if path[1] - self._acked > FLOW_BYTES:
                life.taken_at = now
            self._acked = path[1]

    def onPing(self, payload: bytes) -> None:
        """Answer a ping, unless the other end does not read what we have sent already."""
        if not self.paused:
            super().onPing(payload)

    def onFrameBegin(self) -> None:
        """Count a received frame head, if the frame is part of a message."""
        if self.of_message():
            self._frames += 1
        super().onFrameBegin()

    def processData(self) -> bool:
        """Process the next frame, or a part of it; return whether there may be another."""
        going_on: bool = super().processData()
        if self._frames <= MAX_FRAMES:
            return going_on
        self.close(REFUSED, f"a message came in more than {MAX_FRAMES} frames")
        if self._frames <= 2 * MAX_FRAMES:
            return going_on
        self.data = b""
        self.cut()
        return False

    def dataReceived(self, data: bytes) -> None:
        """Deliver the messages in the received bytes, then call `on_read_end`."""
        self.life.heard_at = self.clock.seconds()
        if isinstance(self.session, RefusedSession):
            self._unwanted += len(data)
            if self._unwanted > MOST_UNWANTED_BYTES:
                return  # it is cut soon; until then a stranger's bytes go nowhere
        self.gather(data)  # Autobahn's own makes a line for its log first, at 25 µs
        if self.open:
            self._guarded(self.session.on_read_end)
            self._show_life()
            if not self._hold_incoming() or self.session.busy or self.is_stuck:
                self.busy = True
                self._rest()

    def _show_life(self) -> None:
        """Send a pong once a second while a message comes in.

        A browser's page sees no part of what it sends pass, and its pings wait behind that: without
        a sign of life it would take a slow path for a dead one.
        """
        now = self.clock.seconds()
        if not self.awaited():
            self._life_at = None
        elif self._life_at is None:
            self._life_at = now + LIFE_SECONDS
        elif now >= self._life_at and not self.paused:
            self._life_at = now + LIFE_SECONDS
            self.sendPong()
            self._guarded(self.session.receiving)

    def _hold_incoming(self) -> bool:
        """Count a large message that has come in part as a whole; return whether there is room.

        So a message that was begun can always be completed, and it counts until it is worked off.
        The length of fragments is known bit by bit: it is refused where there is no room for the
        next.
        """
        if self.session.busy:
            cancel(self._whole_by)
            return True
        awaited = self.awaited()
        if awaited <= SMALL_BYTES:
            awaited = 0
        more = awaited - self._incoming
        budget = self._budget
        if more == 0 or budget is None:
            return True
        if more < 0:
            budget.release(-more)
        elif not budget.reserve(more):
            if self._incoming:
                self.close(TRY_AGAIN, "too many bytes of this caller are on their way")
                return True
            return False
        self._incoming = awaited
        cancel(self._whole_by)
        self._whole_by = None
        if awaited:
            seconds = MESSAGE_SECONDS + awaited / LEAST_BYTES_PER_SECOND
            self._whole_by = self.websockets.api.reactor.callLater(seconds, self.cut)
        return True

    def turn_left(self) -> float:
        """Return for how many seconds it may be worked on: a slice of what all clients share."""
        return 0.0 if self.busy or self.is_stuck else self.websockets.api.share.left()

    def go_on_later(self, call: Callable[[], None]) -> None:
        """Go on in its next turn; where it is stuck, in the one behind `unstick`."""
        if self.is_stuck:
            self._goes_on = call
        else:
            self.websockets.api.share.queue(call, self.caller.name)

    def _go_on(self) -> None:
        """Work on: first on the message that came, then on those behind it."""
        if self.session.busy and self.open:
            self._guarded(self.session.go_on)
        no_room = not self._hold_incoming()
        self.busy = self.open and (self.session.busy or self.is_stuck or no_room)
        if no_room:
            self.websockets.api.budget.when_freed(self._on_freed)
        elif self.busy:
            self.go_on_later(self._go_on)
        else:
            super()._go_on()

    def connectionLost(self, reason: Failure) -> None:
        """Release everything, whatever the state of the handshake."""
        was_open, self.open = self.open, False
        self._goes_on = None
        self._forget_all()
        cancel(self._late)
        self.websockets.gone(self)
        drop_buffers(self.transport)
        super().connectionLost(reason)
        self.forget_data()
        if was_open or self.session is not None:
            self._guarded(self.session.closed)
        if self.released is not None:
            self.released()
            self.released = None

    # for the API

    @property
    def caller(self) -> Caller:
        """The caller at the other end."""
        return self.session.caller

    def allow(self, caller: Caller) -> None:
        """The caller's rights have changed."""
        self._guarded(lambda: self.session.allow(caller))

    def disallow(self) -> None:
        """The caller's key is gone, or another."""
        self.close(REFUSED, "the key is not in force any more")

    # for the session

    def send(self, payload: bytes, binary: bool, more: tuple[bytes, ...] = ()) -> None:
        """Send one message, `payload` and then `more`, unless the connection has ended."""
        if not self.open:
            return
        if self.waiting > MAX_WAITING_BYTES:
            self.cut()
            return
        self.send_message(payload, binary, more)
        self.life.sent_at = self.clock.seconds()
        if self.paused and self._budget is not None:
            size = len(payload) + sum(map(len, more))
            self.waiting += size
            self._budget.add(size)

    def confirm(self, call: Callable[[], None]) -> None:
        """Send a ping behind all that was sent; make a call once its pong comes, or a later one's.

        The other end may answer only the newest of several pings.
        """
        if self.open:
            self._confirmed = call
            payload = secrets.token_bytes(8)
            self._confirms.clear()
            self._confirms.append(payload)
            self.sendPing(payload)

    def onPong(self, payload: bytes) -> None:
        """A pong came: it may be the one that `confirm` waits for."""
        if payload in self._confirms:
            self._confirms.clear()
            confirmed, self._confirmed = self._confirmed, None
            if confirmed is not None and self.open:
                self._guarded(confirmed)

    @property
    def is_stuck(self) -> bool:
        """Whether so much waits for the other end to read it that nothing of it is taken.

        Of a client that floods a stalled disk and reads none of the refusals, nothing at all: it
        would block, and be cut for what it has not read.
        """
        return self.waiting > STUCK_BYTES or (self.paused and self.session.is_full)

    def has_room(self, size: int, overtakes: bool = False) -> bool:
        """Return whether records of `size` bytes may be sent now; else `on_writable` follows."""
        most = OVERTAKING_BYTES - self.waiting if overtakes else 0
        if self._budget is None or (self.paused and size >= most):
            return False
        if size <= SMALL_BYTES or self._budget.has_room(size):
            return True
        self.websockets.api.budget.when_freed(self._on_room)
        return False

    def _on_freed(self) -> None:
        """Continue reading if the bytes returned to the budget suffice."""
        self.websockets.api.share.queue(self._go_on, self.caller.name)

    def _on_room(self) -> None:
        """Continue sending: bytes were returned to the budget."""
        if self.open and not self.paused:
            share = self.websockets.api.share
            share.queue(lambda: self._guarded(self.session.on_writable), self.caller.name)

    def _forget_all(self) -> None:
        """Return all bytes held for this connection to the budget."""
        self._forget_waiting()
        incoming, self._incoming = self._incoming, 0
        if self._budget is not None:
            self._budget.release(incoming)
        cancel(self._whole_by)
        self.websockets.api.budget.forget(self._on_freed)
        self.websockets.api.budget.forget(self._on_room)

    def _forget_waiting(self) -> None:
        """Return the bytes of unsent messages to the budget."""
        waiting, self.waiting = self.waiting, 0
        if self._budget is not None and waiting:
            self._budget.release(waiting)

    def close(self, code: int, reason: str) -> None:
        """Send a close frame; cut the connection 3 s later."""
        if self.open:
            self.open = False
            # sendClose would refuse the codes that RFC 6455 has for a server that stops or refuses.
            self.sendCloseFrame(code, reason.encode()[:120].decode("utf-8", "ignore").encode())
            self._cut_soon()

    def dropConnection(self, abort: bool = False) -> None:
        """End the connection; one that lingers, since the other end doesn't read, is cut."""
        super().dropConnection(abort)
        if not abort:
            self._cut_soon()

    def _cut_soon(self) -> None:
        if self._late is None and self.transport is not None:
            self._late = self.websockets.api.reactor.callLater(CLOSE_SECONDS, self.cut)

    def cut(self) -> None:
        """End it now."""
        self.open = False
        if self.transport is not None:
            self.transport.abortConnection()

    # called by the transport

    def pauseProducing(self) -> None:
        """Send no more records: the other end reads too slowly."""
        if not self.paused and self.is_text and self.pace is not None:
            self.pace.paused(self.clock.seconds())
        self.paused = True

    def resumeProducing(self) -> None:
        """Continue: the other end reads again."""
        self.paused = False
        if self.is_text and self.pace is not None:
            self.pace.resumed(self.clock.seconds())
        self.life.taken_at = self.clock.seconds()
        self._forget_waiting()
        if self.open:
            self._guarded(self.session.on_writable)
        self.unstick()

    def unstick(self) -> None:
        """Go on, unless something else still waits."""
        goes_on, self._goes_on = self._goes_on, None
        if goes_on is not None:
            self.go_on_later(goes_on)

    def stopProducing(self) -> None:
        """Send no more records: the connection is closing."""
        self.pauseProducing()

    def _guarded(self, call: Callable[[], None]) -> None:
        """Call; a mistake of ours is logged, and ends this connection only."""
        try:
            call()
        except Exception:  # noqa: BLE001 - Autobahn would swallow it, or leave the connection half open
            self.close(BUG, internal_error("websocket").message)


class WebSockets:
    """All WebSockets of the API.

    Args:
        api: The API.
        make_session: Creates the session of one of them; raises ApiError if the caller may not.
    """

    def __init__(self, api: ApiServer, make_session: MakeSession) -> None:
        self.api = api
        self._make_session = make_session
        self._open: set[ApiWebSocket] = set()
        self._ended: Deferred[None] | None = None
        most = api.config.log.max_body_bytes
        self._factories = {
            TEXT_PATH: self._factory(most + ENVELOPE_BYTES),
            STREAM_PATH: self._factory(MAX_MESSAGE_BYTES),
        }

    def _factory(self, max_message: int) -> Any:
        """Return an Autobahn factory."""
        reactor = self.api.reactor
        factory = ServerFactory(
            reactor=reactor, protocols=[SUBPROTOCOL, TEXT_SUBPROTOCOL], server=""
        )
        factory._batched_timer = ExactTimer(reactor)
        factory.setProtocolOptions(
            webStatus=False,
            failByDrop=False,
            maxMessagePayloadSize=max_message,
            maxFramePayloadSize=max_message,
            openHandshakeTimeout=5,
            closeHandshakeTimeout=0,  # ours is `_cut_soon`: Autobahn's outlives the connection
            autoPingInterval=5.0,  # each connection has its own, as its timeout
            autoPingTimeout=2.0,
            autoPingRestartOnAnyTraffic=False,
            allowNullOrigin=True,  # the gate has judged it
            tcpNoDelay=True,
            utf8validateIncoming=True,
        )
        return factory

    def take(self, request: ApiRequest, admitted: AuthorizedRequest) -> None:
        """Take a request over; raise ApiError where it asks for no WebSocket, or may not have it.

        A page sees nothing of that: its WebSocket is opened, and closed with the reason.
        """
        path = admitted.match.route.path
        protocol = ApiWebSocket()
        protocol.websockets = self
        protocol.is_text = path == TEXT_PATH
        protocol.clock = self.api.reactor
        try:
            if admitted.refusal is not None:
                raise admitted.refusal
            self._prepare(protocol, request, admitted)
        except ApiError as refusal:
            if not answers_by_close(request):
                raise
            request.channel.site.refused(request, refusal)
            protocol.token = None
            protocol.session = RefusedSession(self.api, admitted.caller, protocol, refusal)
            self._set_heartbeat(protocol, BUSY_CLIENT_SECONDS)
        if path == STREAM_PATH:
            protocol.subprotocol = SUBPROTOCOL
        elif TEXT_SUBPROTOCOL in offered(request):
            protocol.subprotocol = TEXT_SUBPROTOCOL
        self._open.add(protocol)
        protocol.factory = self._factories[path]
        resource = WebSocketResource(SimpleNamespace(buildProtocol=lambda _: protocol))
        protocol.released = request.hand_over()
        resource.render(request)

    def _prepare(
        self, protocol: ApiWebSocket, request: ApiRequest, admitted: AuthorizedRequest
    ) -> None:
        """Give a WebSocket its session and its heartbeat; raise ApiError where it may not be."""
        route, token = admitted.match.route, admitted.token
        check_upgrade(request, SUBPROTOCOL if route.path == STREAM_PATH else None)
        call = Call(request, admitted.caller, admitted.match.path, route.query_names)
        if token is not None and self.api.keyring.peek(token) is None:
            raise unauthorized("the token is used or expired")
        protocol.token = token
        self._set_heartbeat(protocol, self._client_timeout(call, route.path))
        protocol.session = self._make_session(call, route.path, protocol)

    def _client_timeout(self, call: Call, path: str) -> float | None:
        """Return how long this client may be busy; None where that depends on what it was sent."""
        set_to = self.api.config.heartbeat.client_timeout
        given = call.text("timeout")
        if given is not None:
            asked = seconds_between(given, "timeout", 1.0, MAX_TIMEOUT_SECONDS)
            return asked if set_to is None else min(asked, set_to)
        if set_to is None and (path == STREAM_PATH or is_from_browser(call.request)):
            return BUSY_CLIENT_SECONDS
        return set_to

    def _set_heartbeat(self, protocol: ApiWebSocket, timeout: float | None) -> None:
        """Set when a connection is pinged, and when its silence ends it."""
        heartbeat = self.api.config.heartbeat
        interval, most = heartbeat.ping_interval, heartbeat.ping_timeout
        idle = most if timeout is None else timeout
        busy = BUSY_CLIENT_SECONDS if timeout is None else timeout
        protocol.autoPingInterval = interval
        protocol.autoPingTimeout = min(most, idle)
        protocol.life = ClientLiveness(
            self.api.reactor.seconds(),
            interval + min(most, idle),
            interval + idle,
            interval + busy,
        )

    def return_spread(self) -> float:
        """Return the seconds over which clients spread their reconnects if the node stops."""
        return min(len(self._open) / RETURNS_PER_SECOND, MAX_SPREAD_SECONDS)

    def sockets(self) -> list[ApiWebSocket]:
        """Return those that are open."""
        return [socket for socket in self._open if socket.open]

    def gone(self, socket: ApiWebSocket) -> None:
        """A WebSocket has ended."""
        self._open.discard(socket)
        if self._ended is not None and not self._open:
            ended, self._ended = self._ended, None
            ended.callback(None)

    def stop(self) -> Deferred[None]:
        """Close all; fires once they are gone."""
        ended: Deferred[None] = Deferred()
        if not self._open:
            ended.callback(None)
            return ended
        self._ended = ended
        for socket in list(self._open):
            if socket.open:
                socket.close(GOING_AWAY, "the node is stopping")
            else:
                socket.cut()
        return ended

    def abort(self) -> None:
        """Cut what is left."""
        for socket in list(self._open):
            socket.cut()
