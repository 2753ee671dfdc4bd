"""The dialing end of a link: a factory that comes back for ever, when the link says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ReconnectingClientFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from linkd.config import PeerSettings
from linkd.core.backoff import tcp_timeout
from linkd.core.wire import MAX_MESSAGE_BYTES, SUBPROTOCOL, Generation, Hello
from linkd.errors import AttemptFailed, ConfigError
from linkd.net.attempt import Attempt, Budget, Target, parse_url
from linkd.net.connection import ABORT_AFTER
from linkd.net.dialed import DialedConnection
from linkd.net.factories import DialerPort
from linkd.net.identity import load_secret
from linkd.net.ports import LinkPort
from linkd.net.resolve import Resolver
from linkd.net.timers import ExactTimer, cancel
from linkd.net.tls import ClientTls, client_context
from linkd.net.websocket import ClientFactory


@dataclass(frozen=True, slots=True)
class Origin:
    """What all dialers of a node share.

    Attributes:
        node: This node's name.
        boot: A random word, new at every start.
        reactor: Clock and sockets.
        resolver: Looks names up.
    """

    node: str
    boot: str
    reactor: Any
    resolver: Resolver


class LinkDialer(
    ClientFactory,  # type: ignore[misc]
    ReconnectingClientFactory,
    DialerPort[DialedConnection],
):
    """Dials one peer; `linkd.net.ports.Dialer`.

    The delays are the link's: a failed attempt is told to it, and it says `dial`. What
    ReconnectingClientFactory would choose by itself never counts.

    Args:
        port: The link.
        peer: Where to and with what proof.
        origin: Who dials.
        connect_timeout: Seconds for one attempt, from look-up to hello.

    Attributes:
        attempts: Attempts since the last connection was up.
        deadline: When the attempt under way must have ended, or None.
        next_attempt: When the next one begins, or None.
    """

    protocol = DialedConnection
    noisy = False
    jitter = 0.0
    factor = 1.0
    maxDelay = 1_000_000_000
    initialDelay = delay = 0.0
    clock: Any

    def __init__(
        self, port: LinkPort, peer: PeerSettings, origin: Origin, connect_timeout: float
    ) -> None:
        super().__init__(protocols=[SUBPROTOCOL], useragent="", reactor=origin.reactor)
        self._batched_timer = ExactTimer(origin.reactor)
        self.clock = origin.reactor
        self.port: LinkPort = port
        self.node = origin.node
        self.resolver = origin.resolver
        self.attempts = 0
        self.next_attempt: float | None = None
        self.connector: Attempt | None = None
        self._origin = origin
        self._counter = 0
        self._url = 0
        self._tls: ClientTls | None = None
        self._secret: bytes | None = None
        self._stopped = True
        self.configure(peer, connect_timeout)

    def configure(self, peer: PeerSettings, connect_timeout: float) -> None:
        """Use these settings from the next attempt on.

        Raises:
            ConfigError: A URL is malformed.
        """
        self.settings = peer
        self.targets: list[Target] = [parse_url(url) for url in peer.dial]
        if not self.targets:
            raise ConfigError(f"peer {peer.name}: expected a URL to dial")
        self.first_limit = self.connect_timeout = connect_timeout
        self._url %= len(self.targets)
        self.setProtocolOptions(
            version=18,
            maxFramePayloadSize=MAX_MESSAGE_BYTES,
            maxMessagePayloadSize=MAX_MESSAGE_BYTES,
            failByDrop=False,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=ABORT_AFTER,
            serverConnectionDropTimeout=0,
            tcpNoDelay=True,
            autoPingInterval=0,
            autoPingTimeout=0,
            autoPingSize=12,
            autoPingRestartOnAnyTraffic=False,
        )

    # -- what the link asks for ---------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """When the attempt under way must have ended, or the one that is due must have begun."""
        if self.connector is not None:
            return float(self.connector.began + self.connector.budget.whole)
        return self.next_attempt

    def dial(self, after: float) -> None:
        """Begin an attempt after so many seconds; replaces what was scheduled or is under way."""
        self._drop()
        self._stopped = False
        self.continueTrying = 1
        self.delay = after
        self.next_attempt = self.clock.seconds() + after
        self.retry(_Next(self))  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Dial no more, and end the attempt under way."""
        self._stopped = True
        self.continueTrying = 0
        self._drop()

    def _drop(self) -> None:
        """Forget what is scheduled or under way."""
        call, self._callID = self._callID, None
        cancel(call)
        self.next_attempt = None
        attempt, self.connector = self.connector, None
        if attempt is not None:
            attempt.abandon()

    def begin_attempt(self) -> None:
        """Try the next URL."""
        self.next_attempt = None
        if self._stopped:
            return
        target = self.targets[self._url]
        self._url = (self._url + 1) % len(self.targets)
        tcp = tcp_timeout(self.attempts, len(self.targets), self.connect_timeout)
        self.attempts += 1
        self._tls = None
        attempt = Attempt(
            self, target, Budget(self.connect_timeout, tcp), self._wrap, self._origin.reactor
        )
        self.connector = attempt
        self.port.attempting(target.url, None)
        if self.connector is attempt:
            attempt.connect()

    # -- what the attempt tells ---------------------------------------------------------------

    def startedConnecting(self, connector: Attempt) -> None:
        """Look-up and TCP are under way."""

    def dialing(self, attempt: Attempt, address: str) -> None:
        """TCP to an address begins."""
        if self.connector is attempt:
            self.port.attempting(attempt.target.url, address)

    def _wrap(self, inner: Any) -> Any:
        """Put TLS around what builds the protocol, where the URL says so.

        Raises:
            AttemptFailed: Certificates or secret can't be used.
        """
        attempt = self.connector
        assert attempt is not None
        self._secret = None
        if self.settings.secret_file is not None:
            try:
                self._secret = load_secret(self.settings.secret_file)
            except ConfigError as error:
                raise AttemptFailed("rejected", "rejected", str(error)) from None
        if not attempt.target.secure:
            return inner
        creator: Any = client_context(self.settings, attempt.target.host)
        self._tls = creator
        return TLSMemoryBIOFactory(creator, True, inner)

    def begin(self, attempt: Attempt, addr: IAddress) -> DialedConnection | None:
        """Build the protocol of an attempt whose TCP connection stands."""
        if self.connector is not attempt:
            return None
        connection: Any = self.buildProtocol(addr)
        connection.attempt = attempt
        connection.secret, self._secret = self._secret, None
        built: DialedConnection = connection
        return built

    def next_generation(self) -> Generation:
        """Return the generation of a new connection."""
        self._counter += 1
        return Generation(self._origin.boot, self._counter)

    def greeted(self, connection: DialedConnection, hello: Hello) -> None:
        """The peer has said hello: the attempt is over, the URL is a good one."""
        if self.connector is not connection.attempt:
            connection.abort("replaced", "nobody wants this connection any more")
            return
        self.connector = None
        self.attempts = 0
        self._url = self.targets.index(connection.attempt.target)
        self.port.greeted(connection, hello)

    def ended_early(self, connection: DialedConnection, reason: Failure) -> None:
        """A connection ended before its hello: find out why for the attempt."""
        attempt = connection.attempt
        if attempt.failure is not None:
            return
        failure = connection.failure
        if failure is None and self._tls is not None:
            failure = self._tls.explain(reason)
        if failure is None:
            detail = f"{attempt.target.url}: closed before its hello: {reason.value}"
            failure = AttemptFailed("broken", "closed", detail)
        attempt.failure = failure

    def clientConnectionFailed(self, connector: Attempt, reason: Failure) -> None:
        """The attempt has failed; the link says when to dial again."""
        self._over(connector, connector.failure)

    def clientConnectionLost(self, connector: Attempt, reason: Failure) -> None:
        """The attempt's connection has ended before its hello."""
        self._over(connector, connector.failure)

    def _over(self, attempt: Attempt, failure: AttemptFailed | None) -> None:
        if self.connector is not attempt:
            return
        self.connector = None
        if failure is None:
            detail = f"{attempt.target.url}: the connection was closed"
            failure = AttemptFailed("broken", "closed", detail)
        self.port.failed(failure)


class _Next:
    """What ReconnectingClientFactory connects: every attempt is a new one."""

    def __init__(self, dialer: LinkDialer) -> None:
        self._dialer = dialer

    def connect(self) -> None:
        """Begin the attempt."""
        self._dialer.begin_attempt()
