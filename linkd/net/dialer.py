"""The dialing end of a link: a factory that comes back for ever, when the link says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ReconnectingClientFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from linkd.config import PeerSettings, Url, parse_url
from linkd.core.backoff import tcp_timeout
from linkd.core.wire import MAX_MESSAGE_BYTES, SUBPROTOCOL, Generation, Hello
from linkd.errors import AttemptFailed, ConfigError, Unavailable
from linkd.net.attempt import Attempt, Budget, Candidate, Inner
from linkd.net.connection import ABORT_AFTER
from linkd.net.dialed import DialedConnection
from linkd.net.factories import DialerPort
from linkd.net.identity import load_secret
from linkd.net.ports import LinkPort
from linkd.net.resolve import Resolver
from linkd.net.sockets import ended
from linkd.net.timers import ExactTimer, cancel
from linkd.net.tls import client_context
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
        segment_bytes: The largest TCP segments of the attempts to come; 0 for the path's own.
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
        self.segment_bytes = 0
        self.connector: Attempt | None = None
        self._origin = origin
        self._counter = 0
        self._url = 0
        self._good: dict[Url, str] = {}
        self._bad: dict[Url, str] = {}
        self._stopped = True
        self.configure(peer, connect_timeout)

    def configure(self, peer: PeerSettings, connect_timeout: float) -> None:
        """Use these settings from the next attempt on.

        Raises:
            ConfigError: A URL is malformed.
        """
        try:
            self.targets: list[Url] = [parse_url(url) for url in peer.dial]
        except ValueError as error:
            raise ConfigError(f"peer {peer.name}: dial: {error}") from None
        if not self.targets:
            raise ConfigError(f"peer {peer.name}: expected a URL to dial")
        self.settings = peer
        for known in (self._good, self._bad):
            for gone in known.keys() - set(self.targets):
                del known[gone]
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
        attempt = Attempt(self, target, Budget(self.connect_timeout, tcp), self._origin.reactor)
        self.connector = attempt
        self.port.attempting(str(target), None)
        if self.connector is attempt:
            attempt.connect()

    # -- what the attempt tells ---------------------------------------------------------------

    def startedConnecting(self, connector: Attempt) -> None:
        """Look-up and TCP are under way."""

    def dialing(self, attempt: Attempt, address: str) -> None:
        """TCP to an address begins."""
        if self.connector is attempt:
            self.port.attempting(str(attempt.target), address)

    def in_turn(self, target: Url, addresses: list[str]) -> list[str]:
        """Return a host's addresses in the order in which an attempt tries them.

        First the one that was good last, else the one behind that which failed last; the rest
        in the order of the look-up.
        """
        good, bad = self._good.get(target), self._bad.get(target)
        begin = 0
        if good in addresses:
            begin = addresses.index(good)
        elif bad in addresses:
            begin = (addresses.index(bad) + 1) % len(addresses)
        return addresses[begin:] + addresses[:begin]

    def secure(self, candidate: Candidate) -> Any:
        """Return what builds the protocol, TLS around it where the URL says so.

        Raises:
            AttemptFailed: Certificates or secret can't be used.
        """
        inner: Any = Inner(candidate)
        try:
            if self.settings.secret_file is not None:
                candidate.secret = load_secret(self.settings.secret_file)
            if not candidate.target.secure:
                return inner
            creator: Any = client_context(self.settings, candidate.target.host)
        except ConfigError as error:
            raise AttemptFailed("rejected", "rejected", str(error)) from None
        except Unavailable as error:
            raise AttemptFailed("unreachable", "unreachable", str(error)) from None
        candidate.tls = creator
        return TLSMemoryBIOFactory(creator, True, inner)

    def begin(self, candidate: Candidate, addr: IAddress) -> DialedConnection | None:
        """Build the protocol of an address whose TCP connection is established."""
        if self.connector is not candidate.attempt:
            return None
        connection: Any = self.buildProtocol(addr)
        connection.candidate = candidate
        connection.secret, candidate.secret = candidate.secret, None
        built: DialedConnection = connection
        return built

    def next_generation(self) -> Generation:
        """Return the generation of a new connection."""
        self._counter += 1
        return Generation(self._origin.boot, self._counter)

    def greeted(self, connection: DialedConnection, hello: Hello) -> None:
        """The peer has said hello: the attempt is over, the URL and the address are good ones."""
        candidate = connection.candidate
        if self.connector is not candidate.attempt:
            connection.abort("replaced", "nobody wants this connection any more")
            return
        self.connector = None
        self.attempts = 0
        self._url = self.targets.index(candidate.target)
        self._good[candidate.target] = candidate.address
        self.port.greeted(connection, hello)

    def ended_early(self, connection: DialedConnection, reason: Failure) -> None:
        """Find out why a connection ended before its hello."""
        candidate = connection.candidate
        failure = connection.failure
        if failure is None and candidate.tls is not None:
            failure = candidate.tls.explain(reason)
        if failure is None:
            detail = f"{ended(reason)} before its hello"
            failure = AttemptFailed("broken", "closed", detail)
        candidate.failure = failure

    def clientConnectionFailed(self, connector: Attempt, reason: Failure) -> None:
        """The attempt has failed; the link says when to dial again."""
        if self.connector is not connector:
            return
        self.connector = None
        target, failed = connector.target, connector.failed_address
        if failed is not None:
            self._good.pop(target, None)
            self._bad[target] = failed
        assert connector.failure is not None
        self.port.failed(connector.failure)


class _Next:
    """What ReconnectingClientFactory connects: every attempt is a new one."""

    def __init__(self, dialer: LinkDialer) -> None:
        self._dialer = dialer

    def connect(self) -> None:
        """Begin the attempt."""
        self._dialer.begin_attempt()
