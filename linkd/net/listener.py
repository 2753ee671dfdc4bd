"""The listener: server factory, and the accepting end of a connection."""

from __future__ import annotations

import ipaddress
from collections import Counter
from random import Random
from typing import Any, ClassVar, Final

from msgspec import structs
from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from linkd.clock import wall
from linkd.config import Config
from linkd.config.addresses import parse_address, parse_network
from linkd.core.backoff import bounded_spread
from linkd.core.liveness import listener_limit
from linkd.errors import ConfigError, Reason, RemoteProtocolError, Unavailable
from linkd.events import Level, emit
from linkd.host import listen_error
from linkd.net import http_head
from linkd.net.admission import ConnectionLimiter, GreetedAddresses, PendingSlot
from linkd.net.auth import FOREIGN_NONCE, NONCE_LIFETIME, Nonces, SecretCache, prove, verify
from linkd.net.connection import ABORT_AFTER, Connection, Nodes, Post
from linkd.net.linux import every_address, format_address, reset_at_exit
from linkd.net.newcomers import Newcomer, Newcomers, PacedPort
from linkd.net.timers import ExactTimer, PingedSilence, cancel, lateness
from linkd.net.tls import ServerTls, certificate_expires, peer_names
from linkd.net.websocket import STATE_CLOSED, ConnectionDeny, ServerFactory, ServerProtocol
from linkd.protocol.peer import (
    MAX_MESSAGE_BYTES,
    PREVIOUS_VERSION,
    SUBPROTOCOL,
    Goodbye,
    Hello,
    Message,
)

BACKLOG: Final = 4096
"""Connections that the kernel queues; Linux takes no more than net.core.somaxconn."""


MAX_POSTS = 4
MAX_POST_BYTES = 16_384

_TO_PLAIN = "dial ws://, or give [listen] a certificate"


class HandshakeRejected(ConnectionDeny):  # type: ignore[misc]
    """An upgrade is refused.

    Args:
        status: The HTTP status.
        word: The reason in one word.
        detail: One sentence, also for the dialer.
        retry_after: Seconds to stay away, or None.
    """

    def __init__(
        self, status: int, word: Reason, detail: str, retry_after: float | None = None
    ) -> None:
        super().__init__(status, detail)
        self.word = word
        self.detail = detail
        self.retry_after = retry_after


class ListenerConnection(PingedSilence, Connection, ServerProtocol):
    """The accepting end of a connection."""

    dialed: ClassVar[bool] = False
    masked: ClassVar[int] = 0x80
    silent_reason: ClassVar[Reason] = "ping-timeout"
    factory: Listener
    openHandshakeTimeout = 0

    _claimed: str | None = None
    _secret: bytes | None = None
    _nonce = ""
    _posts = 0
    _answering = False
    _slot: PendingSlot | None = None
    _since = 0.0
    _is_rated = False
    _hello_call: DelayedCall | None = None
    _denied: HandshakeRejected | None = None
    _wait: HandshakeRejected | None = None

    # -- before the upgrade -------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Take a newcomer's slot, unless it has one, and start the hello time-out."""
        super().connectionMade()
        listener, now = self.factory, self.clock.seconds()
        if self._slot is None:
            self.adopt(listener.admission.enter(self.host, self._push_out), now)
        timeout = listener.config.limits.hello_timeout
        self._hello_call = self.clock.callLater(
            max(0.0, self._since + timeout - now), self._late, timeout
        )

    def adopt(self, slot: PendingSlot, since: float) -> None:
        """Take over a slot that was taken for this connection at `since`."""
        slot.push_out = self._push_out
        self._slot, self._since, self._is_rated = slot, since, slot.is_rated

    def _push_out(self, detail: str) -> None:
        """Close the connection: another newcomer gets its slot."""
        self._count("busy", detail)
        self.abort("busy", detail)

    def _rate(self) -> None:
        """Take a rate-limit token with the first request, so that merely connecting costs none."""
        if self._is_rated:
            return
        self._is_rated = True
        listener = self.factory
        wait = listener.admission.ask(self.host, self.clock.seconds(), listener.lateness())
        if wait is not None:
            self._wait = HandshakeRejected(503, "busy", wait.reason, wait.seconds)

    def _late(self, timeout: float) -> None:
        self._hello_call = None
        detail = f"no hello came within {timeout:g} s"
        self._count("protocol", detail)
        self.abort("protocol", detail)

    def processHandshake(self) -> None:
        """Answer POST requests before the upgrade, then let Autobahn upgrade."""
        if self._ending is not None:
            self.data = b""
            return
        limit = self.factory.config.limits.header_bytes
        if self._answering:
            if len(self.data) > limit + MAX_POST_BYTES:
                self._refuse(431, "protocol", "too much came ahead of the answer to a POST")
            return
        if self.data.startswith(http_head.TLS_RECORDS):
            self._refuse(
                400, "tls", "it speaks TLS, and this listener has no certificate: " + _TO_PLAIN
            )
            return
        while True:
            end = self.data.find(http_head.END)
            if end > limit or (end < 0 and len(self.data) > limit):
                self._refuse(431, "protocol", f"a request's head has more than {limit} bytes")
            if end < 0 or end > limit:
                return
            if http_head.has_controls(self.data[:end]):
                self._refuse(400, "protocol", "a request's head has control characters")
                return
            if not self.data.startswith(b"POST "):
                break
            if not self._posted(end):
                return
        upgrade = http_head.usual_upgrade(self.data[:end])
        if upgrade is None:
            # A line ends at 0x85 for Autobahn; it is part of many letters in UTF-8.
            self.data = self.data[:end].replace(b"\x85", b"?") + self.data[end:]
            super().processHandshake()
        else:
            self._upgrade(upgrade, end)

    def _upgrade(self, upgrade: http_head.Upgrade, end: int) -> None:
        """Answer an upgrade such as linkd's dialer sends; Autobahn would parse it for 130 µs."""
        self.data = self.data[end + len(http_head.END) :]
        self.websocket_protocols = upgrade.protocols
        self.websocket_extensions: list[Any] = []
        self.websocket_version, self._wskey = 13, upgrade.headers["sec-websocket-key"]
        try:
            protocol = self.onConnect(upgrade)
        except ConnectionDeny as denied:
            self.failHandshake(denied.reason, denied.code)
        else:
            self.succeedHandshake(protocol)

    def _posted(self, end: int) -> bool:
        """Answer one POST; return whether another request may follow."""
        head = http_head.parse_head(self.data[:end])
        size = None if head is None else head.number("content-length", MAX_POST_BYTES)
        if head is None or size is None or "transfer-encoding" in head.headers:
            self._refuse(400, "protocol", "a malformed POST request")
            return False
        begin = end + len(http_head.END)
        if len(self.data) < begin + size:
            return False
        body, self.data = self.data[begin : begin + size], self.data[begin + size :]
        self._posts += 1
        if self._posts > MAX_POSTS:
            self._refuse(400, "protocol", "too many POST requests on one connection")
            return False
        if self._is_busy():
            return False
        if self._slot is not None:
            self.factory.admission.asked(self._slot)
        path = head.first[1]
        if http_head.is_below(path, http_head.TOKEN_PATH):
            return self._give_nonce(head.is_last)
        special = self.factory.posts.get(path)
        if special is None:
            self._refuse(404, "protocol", "a POST to a path that is not there")
            return False
        self._answering = True
        done = special(body, self.host).addCallback(self._post_answered, head.is_last)
        done.addErrback(self._post_failed)
        return False

    def _post_answered(self, answer: tuple[int, bytes], is_last: bool) -> None:
        """Send the response of a POST, and process bytes received meanwhile."""
        self._answering = False
        if self._ending is not None or self.state == STATE_CLOSED:
            return
        status, content = answer
        kind = "application/json"
        is_last = is_last or status >= 400
        self.sendData(http_head.answer(status, content, kind=kind, close=is_last))
        if is_last:
            self._close_answered()
        else:
            self.processHandshake()

    def _post_failed(self, failure: Failure) -> None:
        if failure.check(Unavailable) is None:
            self._log_bug("a POST could not be answered", failure)
        if self.state != STATE_CLOSED:
            self._refuse(503, "busy", "it could not be answered now", 1.0)

    def _is_busy(self) -> bool:
        """Refuse a newcomer if there are too many."""
        self._rate()
        wait = self._wait
        if wait is None:
            seconds = self.factory.nodes.busy()
            if seconds is not None:
                wait = HandshakeRejected(503, "busy", "this node takes no newcomers now", seconds)
        if wait is not None:
            self._refuse(wait.code, wait.word, wait.detail, wait.retry_after)
        return wait is not None

    def _close_answered(self) -> None:
        """Close behind the last answer; what came behind its request is dropped."""
        self._ending = ("closed", "its last request was answered")
        self.data = b""
        self.dropConnection(abort=False)

    def _give_nonce(self, is_last: bool) -> bool:
        nonce = self.factory.nonces.issue(self.clock.seconds(), self.host)
        if nonce is None:
            self._refuse(503, "busy", "too many tokens were asked for from here", NONCE_LIFETIME)
            return False
        body = f'{{"nonce": "{nonce}", "expires_seconds": {NONCE_LIFETIME}}}'.encode()
        # A proxy sends those of several dialers, but none ahead of the answer to another.
        is_last = is_last or (self._posts == MAX_POSTS and not self.data)
        self.sendData(http_head.answer(200, body, kind="application/json", close=is_last))
        if is_last:
            self._close_answered()
        return not is_last

    def onConnect(self, request: Any) -> str:
        """Accept or refuse an upgrade; synchronous, so that nothing can happen in between."""
        try:
            self._judge_upgrade(request)
        except HandshakeRejected as denied:
            self._denied = denied
            raise
        except Exception:  # noqa: BLE001 - a bug must not reach the dialer as text
            self._denied = HandshakeRejected(500, "protocol", "an internal error")
            self._log_bug("an upgrade could not be judged")
            raise self._denied from None
        return SUBPROTOCOL

    def _judge_upgrade(self, request: Any) -> None:
        if not http_head.is_below(request.path, http_head.LINK_PATH):
            raise HandshakeRejected(
                404, "protocol", f"the path does not end in {http_head.LINK_PATH}"
            )
        if SUBPROTOCOL not in request.protocols:
            raise HandshakeRejected(
                400, "protocol", f"the subprotocol {SUBPROTOCOL} was not offered"
            )
        self._rate()
        if self._wait is not None:
            raise self._wait
        seconds = self.factory.nodes.busy()
        if seconds is not None:
            raise HandshakeRejected(503, "busy", "this node takes no newcomers now", seconds)
        names = peer_names(self.transport)
        claimed = request.headers.get(http_head.NODE_HEADER.lower(), names[0] if names else "")
        self._claimed = http_head.printable(claimed, 63)
        peer = self.factory.nodes.peer(claimed)
        if peer is None or self.factory.nodes.link(claimed) is None:
            raise HandshakeRejected(
                403, "rejected", f"no peer named {self._claimed!r} is configured here"
            )
        called = request.headers.get(http_head.PEER_HEADER.lower(), self.factory.nodes.name)
        if called != self.factory.nodes.name:
            raise HandshakeRejected(
                403,
                "rejected",
                f"{self._claimed} calls this node {http_head.printable(called, 63)!r}, which is not"
                " its name: correct `name` in its [[peer]]",
            )
        if claimed in names:
            if peer.secret_file is not None and http_head.NONCE_HEADER.lower() in request.headers:
                self._check_proof(request, claimed, peer.secret_file)
            tls = self.factory.tls
            if tls is not None and tls.revoked(self.transport):
                raise HandshakeRejected(403, "rejected", f"the certificate of {claimed} is revoked")
            self.certificate_expires = certificate_expires(self.transport)
        elif peer.secret_file is None:
            raise HandshakeRejected(
                401, "rejected", f"no certificate for the name {claimed} was shown"
            )
        else:
            self._check_proof(request, claimed, peer.secret_file)
        if self._slot is not None:
            self.factory.admission.proved(self._slot)

    def _check_proof(self, request: Any, claimed: str, secret_file: str) -> None:
        nonce = request.headers.get(http_head.NONCE_HEADER.lower(), "")
        proof = request.headers.get(http_head.PROOF_HEADER.lower(), "")
        listener = self.factory
        complaint = listener.nonces.refusal(nonce, self.clock.seconds())
        if complaint == FOREIGN_NONCE:  # soon over, unless a balancer always does so
            raise HandshakeRejected(503, "rejected", complaint, 1.0)
        if complaint is not None:
            raise HandshakeRejected(401, "rejected", complaint)
        try:
            secret = listener.secrets.load(secret_file)
        except ConfigError as error:
            listener.log_event("error", "connection.refused", peer=claimed, detail=str(error))
            raise HandshakeRejected(
                403, "rejected", f"the secret for {claimed} can't be read"
            ) from None
        except Unavailable as error:
            listener.log_event("error", "connection.refused", peer=claimed, detail=str(error))
            raise HandshakeRejected(
                500, "closed", f"the secret for {claimed} can't be read now"
            ) from None
        if not verify(secret, "dialer", claimed, listener.nodes.name, nonce, proof):
            raise HandshakeRejected(
                401, "rejected", f"{claimed} does not know the secret that is set here"
            )
        self._secret, self._nonce = secret, nonce

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: object = None) -> None:
        """Refuse an upgrade with a fixed status phrase and the reason as body."""
        denied = self._denied or HandshakeRejected(
            code, "protocol", http_head.printable(str(reason))
        )
        self._refuse(denied.code, denied.word, denied.detail, denied.retry_after)

    def _refuse(
        self, status: int, word: Reason, detail: str, retry_after: float | None = None
    ) -> None:
        """Send an HTTP error response and close."""
        if self._ending is not None:
            return
        self._count(word, detail)
        self._ending = (word, detail)
        self.sendData(http_head.answer(status, detail.encode() + b"\n", retry_after, reason=word))
        self.data = b""
        self.dropConnection(abort=False)

    # -- hello --------------------------------------------------------------------------------

    def first(self, message: Message) -> None:
        """Check the dialer's hello, and pass the connection to the link."""
        if not isinstance(message, Hello):
            kind = type(message).__name__.lower()
            raise RemoteProtocolError(f"expected hello first, got {kind}")
        if message.node != self._claimed:
            raise RemoteProtocolError(
                f"the hello is of {http_head.printable(message.node, 63)},"
                f" proved was {self._claimed}",
                3003,
            )
        if message.version < PREVIOUS_VERSION:
            raise RemoteProtocolError(
                f"expected protocol version {PREVIOUS_VERSION} or newer, got {message.version}"
            )
        link = self.factory.nodes.link(message.node)
        if link is None:
            raise RemoteProtocolError(f"no peer named {message.node} is configured here", 3003)
        self._settle()
        reset_at_exit(self.transport)
        self.factory.admission.greeted.greeted(message.node, self.host, self.clock.seconds())
        self.generation = message.generation
        self.port = link
        link.greeted(self, message)

    def answer(self, hello: Hello) -> None:
        """Send our hello, with the proof that we know the secret."""
        if self._secret is not None:
            name, nonce = self.factory.nodes.name, self._nonce
            proof = prove(self._secret, "listener", hello_dialer(self), name, nonce)
            hello = structs.replace(hello, proof=proof)
            self._secret = None
        self.return_spread = self.factory.return_spread
        super().answer(structs.replace(hello, return_spread=self.return_spread))

    def goodbye(self, message: Goodbye) -> None:
        """Send a goodbye, with the seconds over which dialers should come back as of now."""
        super().goodbye(structs.replace(message, return_spread=self.factory.return_spread))

    def _settle(self) -> None:
        """Free the newcomer's slot and cancel its time-out."""
        cancel(self._hello_call)
        self._hello_call = None
        slot, self._slot = self._slot, None
        if slot is not None:
            self.factory.admission.leave(slot)

    def fail(self, reason: Reason, detail: str, close_code: int) -> None:
        """Send a close frame with the reason; count a refusal before the hello."""
        if self.port is None and self._ending is None:
            self._count(reason, detail, close_code)
        super().fail(reason, detail, close_code)

    def ended_early(self, reason: Failure) -> None:
        """Count and log why a connection ended before its hello, unless that is done."""
        self._settle()
        if self._ending is None:
            tls = self.factory.tls
            explained = None if tls is None else tls.explain(self.transport, reason)
            if explained is not None:
                self._claimed = self._known(tls.claimed(self.transport)) if tls else None
                self._count("tls", explained)
            elif self._claimed is not None or self.data:
                self._count("closed", "it closed before its hello")

    def _known(self, names: list[str]) -> str | None:
        """Return the first name of a refused certificate that belongs to a peer."""
        known = (http_head.printable(name, 63) for name in names[:8])
        return next((name for name in known if self.factory.nodes.link(name) is not None), None)

    def _count(self, word: Reason, detail: str, close_code: int | None = None) -> None:
        self.factory.refused(self, word, detail, self._claimed, close_code)

    def _log_bug(self, what: str, failure: Failure | None = None) -> None:
        self.log._log.failure("{what}", failure, what=what)

    # -- silence ------------------------------------------------------------------------------

    def onOpen(self) -> None:
        """Start pinging; first pings are spread over half an interval."""
        self.ping_after(self.autoPingInterval * (0.5 + 0.5 * self.factory.random.random()))


def hello_dialer(connection: ListenerConnection) -> str:
    """Return the name of the dialer of an accepted connection."""
    return connection._claimed or ""


class Listener(ServerFactory):  # type: ignore[misc]
    """The listening end of all links.

    Args:
        nodes: The node whose peers dial.
        config: The configuration in force; `configure` replaces it.
        reactor: Clock and sockets.
        tls: Its TLS settings, or None.
        posts: Handlers for POST requests to other paths, as for pairing.
        greeted: Addresses from which peers were greeted.

    Attributes:
        refusals: How many connections were refused, by reason.
    """

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
        self.lateness = lateness(reactor)
        self.nodes = nodes
        self.tls = tls
        creator: Any = tls
        self._tls_wrapper = None if tls is None else TLSMemoryBIOFactory(creator, False, self)
        self.posts = posts or {}
        self.nonces = Nonces()
        self.secrets = SecretCache(wall)
        self.random = Random()
        self.refusals: Counter[str] = Counter()
        self.admission = ConnectionLimiter(config.limits, greeted)
        self._port: Any = None
        self._busy_at = float("-inf")
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Use these settings for new connections."""
        self.config = config
        self.admission.limits = config.limits
        self.admission.greeted.retain({peer.name for peer in config.peers})
        self._dialers = sum(not peer.dial for peer in config.peers)
        listed = () if config.listen is None else config.listen.proxy_protocol
        self._balancers = [parse_network(each) for each in listed]
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
        self.protocol = ListenerConnection.with_options(self)

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: There is no `[listen]`, or its address is not available.
        """
        listen = self.config.listen
        if listen is None:
            raise ConfigError("listen: expected an address to listen on")
        try:
            host, port = parse_address(listen.address)
        except ValueError as error:
            raise ConfigError(f"listen.address: {error}, got {listen.address!r}") from None
        try:
            interface = host or every_address()
            newcomers = Newcomers(self)
            self._port = PacedPort(
                self.admission, port, newcomers, BACKLOG, interface, self.reactor
            )
            self._port.startListening()
        except CannotListenError as error:
            raise listen_error("listen.address", listen.address, error) from None
        emit("listener.started", address=self.address, tls=self.tls is not None)

    @property
    def return_spread(self) -> float:
        """Seconds over which the peers should come back if this node goes away."""
        return bounded_spread(self._dialers / self.admission.rate)

    @property
    def address(self) -> str:
        """The address on which it listens, for display; empty if it does not listen."""
        if self._port is None:
            return ""
        host: Any = self._port.getHost()
        return format_address(host.host, host.port)

    @property
    def port_number(self) -> int:
        """The TCP port on which it listens; 0 if it does not listen."""
        if self._port is None:
            return 0
        host: Any = self._port.getHost()
        return int(host.port)

    def stop(self) -> Deferred[None]:
        """Stop listening; connections stay open."""
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        emit("listener.stopped")
        stopped: Deferred[None] = maybeDeferred(port.stopListening)
        return stopped

    def made(self, addr: IAddress) -> tuple[ListenerConnection, Any]:
        """Return the WebSocket protocol of a new connection, and the same or TLS around it."""
        connection: ListenerConnection = self.buildProtocol(addr)
        wrapper = self._tls_wrapper
        return connection, connection if wrapper is None else wrapper.protocol(wrapper, connection)

    def is_balancer(self, address: str) -> bool:
        """Return whether connections from an address begin with a PROXY header."""
        if not self._balancers:
            return False
        found = ipaddress.ip_address(address.removeprefix("::ffff:"))
        return any(found in network for network in self._balancers)

    def sheds(self, host: str, slot: PendingSlot | None = None) -> bool:
        """Return whether a newcomer is dropped without an answer, and count it if so."""
        if not self.admission.is_shed(host, self.clock.seconds(), self.lateness(), slot):
            return False
        self.turned_away(
            "strangers are dropped: too many came, peers return, or the event loop is late"
        )
        return True

    def turned_away(self, detail: str) -> None:
        """Count a connection that had no slot, and log at most one a second."""
        self.refusals["busy"] += 1
        now = self.clock.seconds()
        if now - self._busy_at >= 1.0:
            self._busy_at = now
            emit(
                "listener.rate-limited",
                reason="busy",
                detail=detail,
                pending=self.admission.pending,
            )

    def refused(
        self,
        connection: ListenerConnection | Newcomer,
        reason: Reason,
        detail: str,
        claimed: str | None,
        close_code: int | None,
        balancer: str | None = None,
    ) -> None:
        """Count and log a connection that was refused before its hello.

        Lines of a listed balancer are repeats only of its own: no stranger's line hides them.
        """
        if reason == "busy":
            self.turned_away(detail)
            return
        self.refusals[reason] += 1
        link = self.nodes.link(claimed) if claimed and reason in ("rejected", "tls") else None
        if link is not None:
            link.turned_away(reason, f"{http_head.printable(detail, 300)} (from {connection.host})")
        self.nodes.refused(claimed, connection.address, reason, http_head.printable(detail, 300))
        self.log_event(
            "warn",
            "connection.refused",
            address=connection.address,
            reason=reason,
            detail=http_head.printable(detail, 300),
            claimed=claimed,
            close_code=close_code,
            balancer=balancer,
        )

    def log_event(self, level: Level, event: str, **fields: str | int | float | None) -> None:
        """Log an event."""
        emit(event, level, **fields)
