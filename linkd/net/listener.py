"""Where peers dial us: the server factory, what it has refused, and its port."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress
from twisted.protocols.tls import TLSMemoryBIOFactory

from linkd.config import Config, parse_address
from linkd.core.liveness import listener_limit
from linkd.core.wire import MAX_MESSAGE_BYTES, SUBPROTOCOL
from linkd.errors import ConfigError, Reason
from linkd.events import Level, emit
from linkd.net import heads
from linkd.net.accepted import AcceptedConnection
from linkd.net.admission import Admission
from linkd.net.connection import ABORT_AFTER
from linkd.net.factories import ListenerPort, Post
from linkd.net.greeted import GreetedAddresses
from linkd.net.identity import Nonces
from linkd.net.newcomer import Newcomers
from linkd.net.ports import Nodes
from linkd.net.sockets import every_address, show
from linkd.net.timers import ExactTimer
from linkd.net.tls import ServerTls
from linkd.net.websocket import ServerFactory
from linkd.premises import unlistenable


class Listener(ServerFactory, ListenerPort[AcceptedConnection]):  # type: ignore[misc]
    """The listening end of all links.

    Args:
        nodes: The node whose peers dial.
        config: What is in force; `configure` replaces it.
        reactor: Clock and sockets.
        tls: Its side of TLS, None without.
        posts: Other paths to which may be posted, as for pairing.
        greeted: Addresses from which peers were greeted.

    Attributes:
        refusals: How many connections were refused, by reason.
    """

    protocol = AcceptedConnection
    noisy = False

    def __init__(
        self,
        nodes: Nodes,
        config: Config,
        reactor: Any,
        tls: ServerTls | None = None,
        posts: dict[str, Post] | None = None,
        greeted: GreetedAddresses | None = None,
    ) -> None:
        super().__init__(protocols=[SUBPROTOCOL], server="", reactor=reactor)
        self._batched_timer = ExactTimer(reactor)
        self.clock = reactor
        self.nodes = nodes
        self.tls = tls
        self.posts = posts or {}
        self.nonces = Nonces()
        self.random = Random()
        self.refusals: Counter[str] = Counter()
        self.admission = Admission(config.limits, greeted)
        self._port: Any = None
        self._busy_at = float("-inf")
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Use these settings for new connections."""
        self.config = config
        self.admission.limits = config.limits
        self.admission.greeted.retain({peer.name for peer in config.peers})
        heartbeat = config.heartbeat
        self.first_limit = listener_limit(heartbeat.ping_interval, heartbeat.ping_timeout)
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            maxFramePayloadSize=MAX_MESSAGE_BYTES,
            maxMessagePayloadSize=MAX_MESSAGE_BYTES,
            failByDrop=False,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=ABORT_AFTER,
            tcpNoDelay=True,
            autoPingInterval=heartbeat.ping_interval,
            autoPingTimeout=heartbeat.ping_timeout,
            autoPingSize=12,
            autoPingRestartOnAnyTraffic=False,
        )

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: There is no `[listen]`, or its address can't be had.
        """
        listen = self.config.listen
        if listen is None:
            raise ConfigError("listen: expected an address to listen on")
        try:
            host, port = parse_address(listen.address)
        except ValueError as error:
            raise ConfigError(f"listen.address: {error}, got {listen.address!r}") from None
        tls: Any = self.tls
        newcomers = Newcomers(self)
        factory = newcomers if tls is None else TLSMemoryBIOFactory(tls, False, newcomers)
        try:
            self._port = self.reactor.listenTCP(
                port, factory, backlog=1024, interface=host or every_address()
            )
        except CannotListenError as error:
            raise unlistenable("listen.address", listen.address, error) from None
        emit("listener.started", address=self.address, tls=self.tls is not None)

    @property
    def address(self) -> str:
        """Where it listens, for people and tests; empty if it does not."""
        if self._port is None:
            return ""
        host: Any = self._port.getHost()
        return show(host.host, host.port)

    @property
    def port_number(self) -> int:
        """The TCP port on which it listens; 0 if it does not."""
        if self._port is None:
            return 0
        host: Any = self._port.getHost()
        return int(host.port)

    def stop(self) -> Deferred[None]:
        """Listen no more; connections stay."""
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        emit("listener.stopped")
        stopped: Deferred[None] = maybeDeferred(port.stopListening)
        return stopped

    def made(self, addr: IAddress) -> AcceptedConnection:
        """Return the WebSocket's side of a new connection."""
        connection: AcceptedConnection = self.buildProtocol(addr)
        return connection

    def turned_away(self, detail: str) -> None:
        """Count a connection that had to make way, and log one a second of them."""
        self.refusals["busy"] += 1
        now = self.clock.seconds()
        if now - self._busy_at >= 1.0:
            self._busy_at = now
            emit("listener.busy", reason="busy", detail=detail, pending=self.admission.pending)

    def refused(
        self,
        connection: AcceptedConnection,
        reason: Reason,
        detail: str,
        claimed: str | None,
        close_code: int | None,
    ) -> None:
        """Count a connection that was closed before it was greeted, and say so."""
        if reason == "busy":
            self.turned_away(detail)
            return
        self.refusals[reason] += 1
        link = self.nodes.link(claimed) if claimed and reason in ("rejected", "tls") else None
        if link is not None:
            link.turned_away(reason, f"{heads.printable(detail, 300)} (from {connection.host})")
        self.nodes.refused(claimed, connection.address, reason, heads.printable(detail, 300))
        self.tell(
            "warn",
            "connection.refused",
            address=connection.address,
            reason=reason,
            detail=heads.printable(detail, 300),
            claimed=claimed,
            close_code=close_code,
        )

    def tell(self, level: Level, event: str, **fields: str | int | float | None) -> None:
        """Say something in the log."""
        emit(event, level, **fields)
