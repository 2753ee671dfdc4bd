"""WebSockets of the API: taken over from HTTP, guarded, counted, ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from autobahn.twisted.resource import WebSocketResource
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from linkd import events
from linkd.api.call import Call
from linkd.api.callers import Caller
from linkd.api.refusals import Refusal
from linkd.api.service import Service
from linkd.api.whole import WholeMessages
from linkd.core.stream import MAX_MESSAGE_BYTES, SUBPROTOCOL
from linkd.net.pace import Pace
from linkd.net.timers import ExactTimer
from linkd.net.websocket import ServerFactory

PONG_SECONDS = 30
"""An application may be busy for so long; then a connection that answers no ping is cut."""

CLOSE_SECONDS = 3.0
ENVELOPE_BYTES = 65_536
"""A text frame may be so much larger than the body in it."""

MAX_FRAMES = 1024
"""Frames in which one message may come: each costs as much as a whole message."""

NORMAL = 1000
GOING_AWAY = 1001
REFUSED = 1008
BUG = 1011


class Session(Protocol):
    """What is spoken on one WebSocket.

    Attributes:
        caller: Who is at the other end.
    """

    caller: Caller

    def allow(self, caller: Caller) -> None:
        """The caller's rights have changed: end what they no longer cover."""

    def opened(self) -> None:
        """It is open."""

    def message(self, payload: bytes, binary: bool) -> None:
        """A message came."""

    def turned(self) -> None:
        """All messages that came together have been told."""

    def room(self) -> None:
        """There is room again for what is to be sent."""

    def closed(self) -> None:
        """It has ended."""


class Socket(Protocol):
    """One WebSocket, as its session sees it.

    Attributes:
        paused: The other end reads too slowly just now.
        open: Something can be sent.
    """

    paused: bool
    open: bool

    def send(self, payload: bytes, binary: bool) -> None:
        """Send one message; nothing happens once it has ended."""

    def close(self, code: int, reason: str) -> None:
        """Say goodbye; cut it 3 s later."""


Speak = Callable[[Call, str, Socket], Session]
"""Begins what is spoken on a WebSocket: the request that became it, its path, and itself."""


class ApiSocket(WholeMessages):
    """One WebSocket: Autobahn's callbacks, none of which may raise."""

    upgrades: Upgrades
    session: Session
    subprotocol: str | None = None
    released: Callable[[], None] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.paused = False
        self.open = False
        self._late: Any = None
        self._frames = 0

    # Autobahn's callbacks

    def onConnect(self, request: Any) -> str | None:
        """Accept; the gate has judged the request already."""
        return self.subprotocol

    def onOpen(self) -> None:
        """The handshake is over."""
        self.open = True
        self.most_whole = self.maxFramePayloadSize
        self.pace = Pace(
            self.transport
        )  # of what is read: what waits for a slow reader stays little
        self.transport.registerProducer(_Room(self), True)
        self._guarded(self.session.opened)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A message came."""
        self._frames = 0
        if self.open:
            self._guarded(lambda: self.session.message(payload, isBinary))

    def onPing(self, payload: bytes) -> None:
        """Answer a ping, unless the other end does not read what we have sent already."""
        if not self.paused:
            super().onPing(payload)

    def onFrameBegin(self) -> None:
        """The head of a frame has come: count it, if it is of a message or within one."""
        if self.of_message():
            self._frames += 1
        super().onFrameBegin()

    def processData(self) -> bool:
        """Take the next frame, or a part; tell whether there may be another."""
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
        """Bytes came: tell the messages in them, then that these were all."""
        self.gather(data)  # Autobahn's own makes a line for its log first, at 25 µs
        if self.open:
            self._guarded(self.session.turned)

    def connectionLost(self, reason: Failure) -> None:
        """The connection has ended, whatever the state of the handshake."""
        was_open, self.open = self.open, False
        if self._late is not None and self._late.active():
            self._late.cancel()
        self.upgrades.gone(self)
        super().connectionLost(reason)
        if was_open or self.session is not None:
            self._guarded(self.session.closed)
        if self.released is not None:
            self.released()
            self.released = None

    # for the API

    @property
    def caller(self) -> Caller:
        """Who is at the other end."""
        return self.session.caller

    def allow(self, caller: Caller) -> None:
        """The caller's rights have changed."""
        self._guarded(lambda: self.session.allow(caller))

    def disallow(self) -> None:
        """The caller's key is gone, or another."""
        self.close(REFUSED, "the key is not in force any more")

    # for the session

    def send(self, payload: bytes, binary: bool) -> None:
        """Send one message."""
        if not self.open:
            return
        if binary:
            self.send_binary(payload)
        else:
            self.sendMessage(payload, False)

    def close(self, code: int, reason: str) -> None:
        """Say goodbye; cut it 3 s later."""
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
            self._late = self.upgrades.api.reactor.callLater(CLOSE_SECONDS, self.cut)

    def cut(self) -> None:
        """End it now."""
        self.open = False
        if self.transport is not None:
            self.transport.abortConnection()

    def roomy(self) -> None:
        """The other end reads again."""
        self.paused = False
        if self.open:
            self._guarded(self.session.room)

    def _guarded(self, call: Callable[[], None]) -> None:
        """Call; a mistake of ours is logged, and ends this connection only."""
        try:
            call()
        except Exception:  # noqa: BLE001 - Autobahn would swallow it, or leave the connection half open
            events.emit("node.bug", where="api websocket", detail=Failure().getTraceback()[-2000:])
            self.close(BUG, "linkd made a mistake; its log has the details")


@implementer(IPushProducer)
class _Room:
    """Hears from the transport whether the other end reads."""

    def __init__(self, socket: ApiSocket) -> None:
        self._socket = socket

    def pauseProducing(self) -> None:
        self._socket.paused = True

    def resumeProducing(self) -> None:
        self._socket.roomy()

    def stopProducing(self) -> None:
        self._socket.paused = True


class _One:
    """A factory for the one protocol that takes a request over."""

    def __init__(self, factory: Any, protocol: ApiSocket) -> None:
        self._factory = factory
        self._protocol = protocol

    def buildProtocol(self, _: object) -> ApiSocket:
        """Return the protocol."""
        self._protocol.factory = self._factory
        return self._protocol


class Upgrades:
    """All WebSockets of the API.

    Args:
        api: The API.
        speak: Begins what is spoken on one of them; raises Refusal where the caller may not.
    """

    def __init__(self, api: Service, speak: Speak) -> None:
        self.api = api
        self._speak = speak
        self._open: set[ApiSocket] = set()
        self._ended: Deferred[None] | None = None
        most = api.config.log.max_body_bytes
        self._factories = {
            "/ws": self._factory(most + ENVELOPE_BYTES),
            "/v1/stream": self._factory(MAX_MESSAGE_BYTES),
        }

    def _factory(self, max_message: int) -> Any:
        """Return an Autobahn factory."""
        reactor = self.api.reactor
        factory = ServerFactory(reactor=reactor, protocols=[SUBPROTOCOL], server="")
        factory._batched_timer = ExactTimer(reactor)
        factory.setProtocolOptions(
            webStatus=False,
            failByDrop=False,
            maxMessagePayloadSize=max_message,
            maxFramePayloadSize=max_message,
            openHandshakeTimeout=5,
            closeHandshakeTimeout=0,  # ours is `_cut_soon`: Autobahn's outlives the connection
            autoPingInterval=self.api.config.heartbeat.ping_interval,
            autoPingTimeout=PONG_SECONDS,
            tcpNoDelay=True,
            utf8validateIncoming=True,
        )
        return factory

    def take(self, call: Call, path: str) -> None:
        """Take a request over; raise Refusal where it asks for no WebSocket, or may not have it."""
        request = call.request
        _check_upgrade(call, path)
        protocol = ApiSocket()
        protocol.upgrades = self
        protocol.clock = self.api.reactor
        protocol.session = self._speak(call, path, protocol)
        protocol.subprotocol = SUBPROTOCOL if path == "/v1/stream" else None
        self._open.add(protocol)
        resource = WebSocketResource(_One(self._factories[path], protocol))
        protocol.released = request.hand_over()
        resource.render(request)

    def sockets(self) -> list[ApiSocket]:
        """Return those that are open."""
        return [socket for socket in self._open if socket.open]

    def gone(self, socket: ApiSocket) -> None:
        """A WebSocket has ended."""
        self._open.discard(socket)
        if self._ended is not None and not self._open:
            ended, self._ended = self._ended, None
            ended.callback(None)

    def stop(self) -> Deferred[None]:
        """Say goodbye to all; fires once they are gone."""
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


def _check_upgrade(call: Call, path: str) -> None:
    """Raise Refusal unless the request asks for the WebSocket that the path has."""
    upgrade = (call.header("Upgrade") or "").lower()
    if upgrade != "websocket" or "upgrade" not in (call.header("Connection") or "").lower():
        raise Refusal("malformed", "expected a WebSocket upgrade", {"Upgrade": "websocket"})
    if call.header("Sec-WebSocket-Version") != "13" or not call.header("Sec-WebSocket-Key"):
        raise Refusal("malformed", "expected WebSocket version 13", {"Sec-WebSocket-Version": "13"})
    offered = [one.strip() for one in (call.header("Sec-WebSocket-Protocol") or "").split(",")]
    if path == "/v1/stream" and SUBPROTOCOL not in offered:
        raise Refusal("malformed", f"expected the WebSocket subprotocol {SUBPROTOCOL}")
