"""Echoes for a conformance suite: linkd's listener, dialer and `/ws`, whose messages come back.

    python -m tests.conformance.echo listener PORT     ws://127.0.0.1:PORT/link
    python -m tests.conformance.echo ws PORT           ws://127.0.0.1:PORT/ws
    python -m tests.conformance.echo dialer PORT AGENT the suite's server on PORT, all its cases

What is replaced is what a message means and who may connect; the protocol classes, the factories
and their options are those of the daemon, but for the limits on sizes and on frames a message.

`--no-pongs` behind the rest: send no pongs that nobody asked for. linkd does so in the midst of a
message that takes longer than a second, as RFC 6455 section 5.5.3 allows; the suite takes any pong
for its cue to close, and then counts the case as failed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.protocol import ClientFactory as PlainClientFactory
from twisted.internet.threads import deferToThread

from linkd.api import websocket
from linkd.api.server import ApiServer
from linkd.api.session import ClientSession
from linkd.api.websocket import WebSockets
from linkd.config import Config, HeartbeatSettings, ListenSettings, NodeSettings, PeerSettings
from linkd.config.addresses import Url
from linkd.net import connection
from linkd.net.connect import Resolver, look_up
from linkd.net.dialer import DialerConnection, DialerContext, LinkDialer
from linkd.net.listener import Listener, ListenerConnection
from linkd.reactor import install
from tests.support.fake_node import FakeNode, make_config
from tests.support.net_lab import Link

reactor: Any = install()  # the daemon's
UNLIMITED = {"maxFramePayloadSize": 0, "maxMessagePayloadSize": 0}


class Echoing:
    """Mixed into a connection between nodes: what comes goes back."""

    def _message(self, payload: bytes) -> None:
        self._frame(0x82, payload)  # type: ignore[attr-defined]

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A message came in frames, or as text."""
        self._frames = 0
        self._frame(0x82 if isBinary else 0x81, payload)  # type: ignore[attr-defined]


class EchoAccepted(Echoing, ListenerConnection):
    """The listening end."""

    def onConnect(self, request: Any) -> Any:
        """Take anyone, on no subprotocol."""

    def onOpen(self) -> None:
        """It has said enough."""
        self._settle()
        super().onOpen()


class EchoListener(Listener):
    """The listener's factory."""

    protocol = EchoAccepted


class _Nodes:
    """A node that knows nobody."""

    name = "hub"

    def peer(self, name: str) -> None:
        """Nobody."""

    def link(self, name: str) -> None:
        """Nobody."""

    def busy(self) -> None:
        """It is not."""

    def refused(self, *_: object) -> None:
        """Nobody asks who was refused."""


def listener(port: int) -> Any:
    """Listen as a node does; return the factory."""
    listen = ListenSettings(address=f"127.0.0.1:{port}", insecure=True)
    config = Config(
        node=NodeSettings(name="hub", state_dir=tempfile.gettempdir()),
        listen=listen,
        heartbeat=HeartbeatSettings(ping_interval=60.0, ping_timeout=30.0),
    )
    factory = EchoListener(_Nodes(), config, reactor)
    factory.setProtocolOptions(**UNLIMITED)
    factory.start()
    return factory


# /ws


class EchoSession(ClientSession):
    """Returns each message of `/ws`."""

    def message(self, payload: bytes, binary: bool) -> None:
        """Send it back."""
        self.socket.send(payload, binary)


def ws(port: int) -> ApiServer:
    """Serve the API; return it."""
    folder = tempfile.mkdtemp(prefix="linkd-echo-")
    config = make_config(Path(folder), http=f"127.0.0.1:{port}", require_key=False)
    node: Any = FakeNode(config, reactor)
    api = ApiServer(node, config, reactor)
    api.websockets = WebSockets(
        api, lambda call, path, socket: EchoSession(api, call.caller, socket)
    )
    for factory in api.websockets._factories.values():
        factory.setProtocolOptions(**UNLIMITED)
    api.listen()
    return api


# The dialer


class EchoDialed(Echoing, DialerConnection):
    """The dialing end: as soon as it is open, what comes goes back."""

    def onConnecting(self, transport_details: object) -> Any:
        """Ask for no subprotocol, with no proof."""
        self.factory.port.opening()
        request = self._request({})
        request.protocols = []
        return request

    def _upgraded(self, end: int) -> None:
        super(DialerConnection, self).processHandshake()

    def onOpen(self) -> None:
        """No hello: the suite speaks first."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Echo, or read the suite's count."""
        if self.factory.counting:
            self.factory.count = int(payload)
        else:
            super().onMessage(payload, isBinary)

    def ended_early(self, reason: Any) -> None:
        """One case is over."""
        self.factory.over()


class EchoDialer(LinkDialer):
    """Dials the suite's server once for each case."""

    protocol = EchoDialed

    def __init__(self, port: int, agent: str) -> None:
        peer = PeerSettings(name="suite", dial=(f"ws://127.0.0.1:{port}/",), insecure=True)
        resolver = Resolver(reactor, lambda host: deferToThread(look_up, host))
        origin = DialerContext("edge", "boot", reactor, resolver)
        super().__init__(Link("edge", "suite"), peer, origin, 5.0)
        self.setProtocolOptions(**UNLIMITED)
        self.counting = True
        self.count = 0
        self._case = 0
        self._agent = agent
        self._port = port

    def run(self) -> None:
        """Ask how many cases there are, then run them all."""
        self._to("/getCaseCount")

    def _to(self, resource: str) -> None:
        target = Url(False, "127.0.0.1", self._port, resource)
        reactor.connectTCP("127.0.0.1", self._port, _Once(self, target))

    def over(self) -> None:
        """Go on to the next case, the report, the end."""
        self.counting = False
        self._case += 1
        if self._case <= self.count:
            self._to(f"/runCase?case={self._case}&agent={self._agent}")
        elif self._case == self.count + 1:
            self._to(f"/updateReports?agent={self._agent}")
        else:
            reactor.stop()


class _Once(PlainClientFactory):
    """Makes one connection of a dialer."""

    noisy = False

    def __init__(self, dialer: EchoDialer, target: Url) -> None:
        self._dialer = dialer
        self._target = target

    def buildProtocol(self, addr: Any) -> Any:
        """Return it."""
        built: Any = LinkDialer.buildProtocol(self._dialer, addr)
        built.candidate = _Candidate(self._target)
        return built

    def clientConnectionFailed(self, connector: Any, reason: Any) -> None:
        """The suite is not there."""
        print(f"no suite at {self._target}: {reason.value}", file=sys.stderr)
        reactor.stop()


class _Candidate:
    """Where a connection goes; it is its own attempt, with one address."""

    def __init__(self, target: Url) -> None:
        self.target = target
        self.failure: Any = None
        self.tls = None
        self.attempt = self

    def opened(self, candidate: Any) -> bool:
        """Take the connection."""
        return True


def main() -> None:
    """Serve or dial until told to stop."""
    vars(connection)["MAX_FRAMES"] = 1 << 30
    vars(websocket)["MAX_FRAMES"] = 1 << 30
    if sys.argv[-1] == "--no-pongs":
        vars(connection)["PONG_AFTER"] = 1e9
    what, port = sys.argv[1], int(sys.argv[2])
    if what == "dialer":
        reactor.callWhenRunning(EchoDialer(port, sys.argv[3]).run)
    else:
        reactor.callWhenRunning({"listener": listener, "ws": ws}[what], port)
    reactor.run()


if __name__ == "__main__":
    main()
