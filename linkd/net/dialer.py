"""The dialer: reconnecting client factory, and the dialing end of a connection."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, Final

from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ReconnectingClientFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from linkd.config import PeerSettings
from linkd.config.addresses import Url, parse_url
from linkd.core.backoff import DEFAULT_SPREAD, tcp_timeout
from linkd.core.liveness import dialer_limit
from linkd.errors import (
    AttemptFailed,
    ConfigError,
    FailureKind,
    Reason,
    RemoteProtocolError,
    Unavailable,
)
from linkd.net import http_head
from linkd.net.auth import MAX_NONCE_CHARACTERS, load_secret, prove, verify
from linkd.net.connect import Attempt, Budget, Candidate, Inner, Resolver
from linkd.net.connection import ABORT_AFTER, Connection, LinkPort
from linkd.net.linux import ended, format_address, tune
from linkd.net.proxy import load_credentials
from linkd.net.timers import ExactTimer, cancel
from linkd.net.tls import certificate_expires, client_context
from linkd.net.websocket import ClientFactory, ClientProtocol, ConnectingRequest
from linkd.protocol.peer import (
    MAX_MESSAGE_BYTES,
    PREVIOUS_VERSION,
    SUBPROTOCOL,
    Generation,
    Goodbye,
    Hello,
    Message,
    encode,
)

MAX_ANSWER_BYTES: Final = 16_384
MAX_CLOSES: Final = 3
"""Resets and closes within the handshake, in a row, that count as a listener that restarts."""

PROBE_PART: Final = 0.3
"""Fraction of the silence limit after which the kernel probes the listener's host.

A host that has restarted meanwhile then resets the connection. Otherwise that was only noticed at
the limit: the dialer of an idle link sends nothing but answers. Probes are no WebSocket data, so
the listener does not take them for a sign of life.
"""

PING_EVERY: Final = 6
"""The dialer pings once in this many intervals, to measure the round trip."""

_NO_LINKD: Final = "so no linkd is there: another service, or a login page in its way"
_NO_HTTP: Final = f"it answered with something that is not HTTP, {_NO_LINKD}"


class DialerConnection(Connection, ClientProtocol):
    """The dialing end of a connection."""

    dialed: ClassVar[bool] = True
    masked: ClassVar[int] = 0
    silent_reason: ClassVar[Reason] = "silence"
    factory: LinkDialer
    openHandshakeTimeout = 0

    candidate: Candidate
    secret: bytes | None = None
    failure: AttemptFailed | None = None
    _nonce = ""
    _token: Deferred[Any] | None = None
    _watch_call: DelayedCall | None = None
    _ping_every = 0.0

    # -- token and upgrade --------------------------------------------------------------------

    def onConnecting(self, transport_details: object) -> Deferred[Any]:
        """Request a nonce on this connection, then upgrade with the proof."""
        dialer, target = self.factory, self.candidate.target
        dialer.port.opening()
        if self.secret is None:
            return succeed(self._request({}))
        host = format_address(target.host, target.port)
        self.sendData(http_head.post(http_head.token_path(target.path), host, dialer.node))
        self._token = Deferred()
        return self._token

    def _request(self, headers: dict[str, str]) -> Any:
        target = self.candidate.target
        host = f"[{target.host}]" if ":" in target.host else target.host
        return ConnectingRequest(
            host,
            target.port,
            target.path,
            headers={
                http_head.NODE_HEADER: self.factory.node,
                http_head.PEER_HEADER: self.factory.port.peer,
                **headers,
            },
            useragent="",
            protocols=[SUBPROTOCOL],
        )

    def processHandshake(self) -> None:
        """Process the listener's responses: first the nonce, then the upgrade."""
        end = self.data.find(http_head.END)
        if self.data.startswith(http_head.TLS_RECORDS):
            self._give_up("rejected", "tls", "it speaks TLS: dial wss:// in place of ws://")
        elif not (self.data.startswith(b"HTTP/") or b"HTTP/".startswith(self.data)):
            self._give_up("rejected", "protocol", _NO_HTTP)
        elif end > MAX_ANSWER_BYTES or (end < 0 and len(self.data) > MAX_ANSWER_BYTES):
            self._give_up("broken", "protocol", "the answer's head is too long")
        if end < 0 or self.failure is not None:
            return
        if self._token is None:
            self._upgraded(end)
        else:
            self._take_nonce(end)

    def _upgraded(self, end: int) -> None:
        """Process the response to the upgrade; Autobahn checks a 101."""
        head = http_head.parse_head(self.data[:end])
        if head is None:
            self._give_up("rejected", "protocol", _NO_HTTP)
        elif head.first[1] == "101":
            if head.headers.get("sec-websocket-protocol") != SUBPROTOCOL:
                detail = f"it did not take the subprotocol {SUBPROTOCOL}"
                self._give_up("rejected", "protocol", detail)
            else:
                super().processHandshake()
        else:
            asked = f"GET {self.candidate.target.path}"
            self._refused(asked, head, self._body(head, end) or b"")

    def _take_nonce(self, end: int) -> None:
        head = http_head.parse_head(self.data[:end])
        body = None if head is None else self._body(head, end)
        if head is None:
            self._give_up("rejected", "protocol", _NO_HTTP)
            return
        if body is None:
            return
        if head.first[1] != "200":
            self._refused(f"POST {http_head.token_path(self.candidate.target.path)}", head, body)
            return
        try:
            nonce = json.loads(body)["nonce"]
        except (ValueError, TypeError, KeyError):
            nonce = None
        if not isinstance(nonce, str) or not 0 < len(nonce) <= MAX_NONCE_CHARACTERS:
            self._give_up("broken", "protocol", f"it gave no nonce, {_NO_LINKD}")
            return
        if not all(each.isalnum() or each in "-_" for each in nonce) or not nonce.isascii():
            self._give_up("broken", "protocol", "it gave a malformed nonce")
            return
        size = head.number("content-length", MAX_ANSWER_BYTES) or 0
        self.data = self.data[end + len(http_head.END) + size :]
        assert self.secret is not None
        assert self._token is not None
        self._nonce = nonce
        proof = prove(self.secret, "dialer", self.factory.node, self.factory.port.peer, nonce)
        token, self._token = self._token, None
        request = self._request({http_head.NONCE_HEADER: nonce, http_head.PROOF_HEADER: proof})
        token.callback(request)

    def _body(self, head: http_head.HttpHead, end: int) -> bytes | None:
        """Return the body of a response, or None while it is incomplete."""
        size = head.number("content-length", MAX_ANSWER_BYTES)
        begin = end + len(http_head.END)
        if size is None or len(self.data) < begin + size:
            return None
        return self.data[begin : begin + size]

    def _refused(self, asked: str, head: http_head.HttpHead, body: bytes) -> None:
        """Fail the attempt: the listener refused the request."""
        status = head.first[1]
        words = http_head.printable(body.decode("utf-8", "replace").strip())
        detail = f"it answered {status} to {asked}" + (f": {words}" if words else "")
        retry = head.number("retry-after", 86_400)
        if status == "503":
            self._give_up("busy", "busy", detail, float(retry) if retry else None)
        elif status.startswith("5") or status in ("408", "429") or self._is_foreign(head):
            self._give_up("broken", "closed", detail)
        else:
            self._give_up("rejected", "rejected", detail)

    def _is_foreign(self, head: http_head.HttpHead) -> bool:
        """Return whether a proxy answers at a URL behind which linkd has answered in this run."""
        has_worked = self.factory.has_worked(self.candidate.target)
        return has_worked and http_head.REASON_HEADER.lower() not in head.headers

    def failHandshake(self, reason: str) -> None:
        """Fail the attempt: Autobahn rejects the response to the upgrade."""
        self._give_up("rejected", "protocol", http_head.printable(str(reason)))

    def _give_up(
        self, kind: Any, reason: Reason, detail: str, retry_after: float | None = None
    ) -> None:
        """Fail the attempt; only the first reason counts."""
        if self.failure is None:
            self.failure = AttemptFailed(kind, reason, detail, retry_after)
        self.abort(reason, detail)

    # -- hello --------------------------------------------------------------------------------

    def onOpen(self) -> None:
        """Send our hello, unless another address of the attempt was faster."""
        dialer = self.factory
        if not self.candidate.attempt.opened(self.candidate):
            self.abort("replaced", "another address was quicker")
            return
        self.generation = dialer.next_generation()
        self.send(encode(dialer.port.hello(self.generation)))

    def first(self, message: Message) -> None:
        """Check the listener's hello, and pass the connection to the link."""
        if isinstance(message, Goodbye):
            self._refused_by_goodbye(message)
            return
        if not isinstance(message, Hello):
            kind = type(message).__name__.lower()
            raise RemoteProtocolError(f"expected hello first, got {kind}")
        dialer = self.factory
        limit = dialer_limit(message.ping_interval)
        complaint = self._complaint(message)
        if complaint is not None:
            self._give_up("rejected", "rejected", complaint)
            return
        if limit is None:
            raise RemoteProtocolError(
                f"expected a ping_interval of 1 to 60 s, got {message.ping_interval:g}"
            )
        self.life.limit = limit
        tune(self.transport, limit, PROBE_PART * limit)
        self.certificate_expires = certificate_expires(self.transport)
        self.secret = None
        self.candidate.attempt.greeted()
        self.watch()
        self._ping_every = PING_EVERY * message.ping_interval
        self._sendAutoPing()
        self.port = dialer.port
        dialer.greeted(self, message)

    def _complaint(self, hello: Hello) -> str | None:
        """Return why the listener's hello is not acceptable, or None."""
        dialer = self.factory
        peer = dialer.port.peer
        if hello.node != peer:
            return f"it is {http_head.printable(hello.node, 63)}, expected {peer}"
        if hello.version < PREVIOUS_VERSION:
            return (
                f"it speaks protocol version {hello.version}, expected {PREVIOUS_VERSION} or newer"
            )
        if hello.generation != self.generation:
            return "its hello answers another connection"
        if self.secret is None:
            return None
        if verify(self.secret, "listener", dialer.node, peer, self._nonce, hello.proof):
            return None
        return f"{peer} does not know the secret that is set here"

    def _refused_by_goodbye(self, message: Goodbye) -> None:
        """Fail the attempt: the listener sent a goodbye instead of a hello."""
        detail = message.detail or message.reason
        if message.reason in ("rejected", "duplicate", "tls"):
            self._give_up("rejected", message.reason, detail)  # type: ignore[arg-type]
        elif message.reason == "busy" or message.retry_after is not None:
            self._give_up("busy", "busy", detail, message.retry_after)
        else:
            self._give_up("broken", "closed", detail)

    def fail(self, reason: Reason, detail: str, close_code: int) -> None:
        """Send a close frame with the reason; before the hello the attempt fails with it."""
        if self.port is None and self.failure is None:
            self.failure = AttemptFailed("rejected", reason, detail)
        super().fail(reason, detail, close_code)

    def ended_early(self, reason: Failure) -> None:
        """Fail the attempt: the connection ended before the hello."""
        token, self._token = self._token, None
        if token is not None:
            token.addErrback(lambda _: None)
            token.cancel()
            if self.failure is None and not (self.candidate.target.secure or self.data):
                detail = f"{ended(reason)} without an answer; if it expects TLS, dial wss://"
                kind = self.candidate.attempt.closed_kind
                self.failure = AttemptFailed(kind, "closed", detail)
        self.factory.ended_early(self, reason)

    def connectionLost(self, reason: Failure) -> None:
        """Report the end, and remember over how long to come back if a goodbye has changed that."""
        cancel(self._watch_call)
        self._watch_call = None
        spreads, target = self.factory.spreads, self.candidate.target
        if target in spreads and self.return_spread is not None:
            spreads[target] = self.return_spread
        super().connectionLost(reason)

    # -- silence ------------------------------------------------------------------------------

    def onPing(self, payload: bytes) -> None:
        """Answer a ping; every few intervals send a ping in the same packet."""
        super().onPing(payload)
        since = self._pinged_at
        if since is not None and 0 < self._ping_every <= self.clock.seconds() - since:
            self._sendAutoPing()

    def watch(self) -> None:
        """Schedule the next check for when silence may reach its limit."""
        after = self.life.deadline - self.clock.seconds()
        self._watch_call = self.clock.callLater(max(0.0, after), self._check)

    def _check(self) -> None:
        """Judge the connection where silence has reached twice the interval."""
        self._watch_call = None
        if self.life.silent(self.clock.seconds()):
            self.judge()
        else:
            self.watch()


@dataclass(frozen=True, slots=True)
class DialerContext:
    """The parts that all dialers of a node share.

    Attributes:
        node: This node's name.
        boot: A random word, different at every start.
        reactor: Clock and sockets.
        resolver: Looks names up.
    """

    node: str
    boot: str
    reactor: Any
    resolver: Resolver


class LinkDialer(ClientFactory, ReconnectingClientFactory):  # type: ignore[misc]
    """Dials one peer.

    The link decides the delays: it learns of each failed attempt and calls `dial`. The delays that
    ReconnectingClientFactory would choose are not used.

    Args:
        port: The link.
        peer: The peer's settings: URLs and secret.
        origin: What this node's dialers share.
        connect_timeout: Seconds for one attempt, from look-up to hello.

    Attributes:
        attempts: Attempts since the last connection was up.
        deadline: Monotonic seconds by which the current attempt must have ended, or None.
        next_attempt: Monotonic seconds of the next attempt, or None.
        segment_bytes: The largest TCP segments of the attempts to come; 0 for the path's own.
        spreads: Seconds over which to come back, by URL; of those that have worked.
    """

    protocol = DialerConnection
    noisy = False
    jitter = 0.0
    factor = 1.0
    maxDelay = 1_000_000_000
    initialDelay = delay = 0.0
    clock: Any

    def __init__(
        self, port: LinkPort, peer: PeerSettings, origin: DialerContext, connect_timeout: float
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
        self.spreads: dict[Url, float] = {}
        self._closes: dict[Url, int] = {}
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
        tables: tuple[dict[Url, Any], ...] = (self._good, self._bad, self.spreads, self._closes)
        for known in tables:
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

    # -- called by the link -------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """When the current attempt must have ended, or the scheduled one must have begun."""
        if self.connector is not None:
            return float(self.connector.began + self.connector.budget.whole)
        return self.next_attempt

    def dial(self, after: float) -> None:
        """Begin an attempt after `after` seconds; replaces a scheduled or current attempt."""
        self._drop()
        self._stopped = False
        self.continueTrying = 1
        self.delay = after
        self.next_attempt = self.clock.seconds() + after
        self.retry(SimpleNamespace(connect=self.begin_attempt))  # type: ignore[no-untyped-call]

    def skip_url(self) -> None:
        """Dial the next URL first: the node at the last one asked for some time."""
        self._url = (self._url + 1) % len(self.targets)

    def stop(self) -> None:
        """Stop dialing, and end the current attempt."""
        self._stopped = True
        self.continueTrying = 0
        self._drop()

    def _drop(self) -> None:
        """Cancel the scheduled or current attempt."""
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

    # -- called by the attempt ----------------------------------------------------------------

    def startedConnecting(self, connector: Attempt) -> None:
        """Do nothing: look-up and TCP have started."""

    def dialing(self, attempt: Attempt, address: str) -> None:
        """Report to the link that TCP to an address begins."""
        if self.connector is attempt:
            self.port.attempting(str(attempt.target), address)

    def in_turn(self, target: Url, addresses: list[str]) -> list[str]:
        """Return a host's addresses in the order in which an attempt tries them.

        The last address that worked comes first, or else the one after the last that failed; the
        others follow in the order of the look-up.
        """
        good, bad = self._good.get(target), self._bad.get(target)
        begin = 0
        if good in addresses:
            begin = addresses.index(good)
        elif bad in addresses:
            begin = (addresses.index(bad) + 1) % len(addresses)
        return addresses[begin:] + addresses[:begin]

    def secure(self, candidate: Candidate) -> Any:
        """Return the factory for the protocol, wrapped in TLS where the URL asks for it.

        Raises:
            AttemptFailed: Certificates or secret are unusable.
        """
        inner: Any = Inner(candidate)
        try:
            if self.settings.secret_file is not None:
                candidate.secret = load_secret(self.settings.secret_file)
            if self.settings.proxy_secret_file is not None:
                candidate.credentials = load_credentials(self.settings.proxy_secret_file)
            if not candidate.target.secure:
                return inner
            creator: Any = client_context(self.settings, candidate.target.host)
        except ConfigError as error:
            raise AttemptFailed("rejected", "rejected", str(error)) from None
        except Unavailable as error:
            raise AttemptFailed("unreachable", "unreachable", str(error)) from None
        candidate.tls = creator
        return TLSMemoryBIOFactory(creator, True, inner)

    def begin(self, candidate: Candidate, addr: IAddress) -> DialerConnection | None:
        """Build the protocol of an address whose TCP connection is established."""
        if self.connector is not candidate.attempt:
            return None
        connection: Any = self.buildProtocol(addr)
        connection.candidate = candidate
        connection.secret, candidate.secret = candidate.secret, None
        built: DialerConnection = connection
        return built

    def next_generation(self) -> Generation:
        """Return the generation of a new connection."""
        self._counter += 1
        return Generation(self._origin.boot, self._counter)

    def greeted(self, connection: DialerConnection, hello: Hello) -> None:
        """End the attempt with success: the peer's hello has arrived; remember URL and address."""
        candidate = connection.candidate
        if self.connector is not candidate.attempt:
            connection.abort("replaced", "nobody wants this connection any more")
            return
        self.connector = None
        self.attempts = 0
        self._url = self.targets.index(candidate.target)
        self._good[candidate.target] = candidate.address
        self._closes.pop(candidate.target, None)
        self.spreads[candidate.target] = hello.return_spread or DEFAULT_SPREAD
        connection.return_spread = hello.return_spread or None
        self.port.greeted(connection, hello)

    def has_worked(self, target: Url) -> bool:
        """Return whether the peer has answered at this URL in this run."""
        return target in self.spreads

    def closed_kind(self, target: Url) -> FailureKind:
        """Return what a reset or close within the handshake means.

        A listener that is about to stop or has just started does that; but one that does so again
        and again does not work.
        """
        known = target in self.spreads and self._closes.get(target, 0) < MAX_CLOSES
        return "refused" if known else "broken"

    def ended_early(self, connection: DialerConnection, reason: Failure) -> None:
        """Set the failure of a connection that ended before its hello."""
        candidate = connection.candidate
        failure = connection.failure
        if failure is None and candidate.tls is not None:
            failure = candidate.tls.explain(reason)
        if failure is None:
            detail = f"{ended(reason)} before its hello"
            failure = AttemptFailed(candidate.attempt.closed_kind, "closed", detail)
        candidate.failure = failure

    def clientConnectionFailed(self, connector: Attempt, reason: Failure) -> None:
        """Report the failure of the attempt; the link decides when to dial again."""
        if self.connector is not connector:
            return
        self.connector = None
        target, failed = connector.target, connector.failed_address
        if failed is not None:
            self._good.pop(target, None)
            self._bad[target] = failed
        failure = connector.failure
        assert failure is not None
        failure.return_spread = self.spreads.get(target)
        self._closes[target] = self._closes.get(target, 0) + 1 if failure.reason == "closed" else 0
        self.port.failed(failure)
