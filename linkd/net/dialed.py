"""The dialing end of one connection: token, upgrade, hello, the listener's proof, silence."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Final

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from linkd.core.liveness import dialer_limit
from linkd.core.wire import PREVIOUS_VERSION, SUBPROTOCOL, Goodbye, Hello, Message, encode
from linkd.errors import AttemptFailed, Reason, RemoteProtocolError
from linkd.net import heads
from linkd.net.attempt import Candidate
from linkd.net.connection import Connection
from linkd.net.factories import DialerPort
from linkd.net.identity import MAX_NONCE_CHARACTERS, prove, verify
from linkd.net.sockets import ended, show, tune
from linkd.net.timers import Call, cancel
from linkd.net.tls import certificate_expires
from linkd.net.websocket import ClientProtocol, ConnectingRequest

MAX_ANSWER_BYTES: Final = 16_384
PING_EVERY: Final = 6
"""It pings so many intervals apart, for the round trip; the listener's pings are its life."""


class DialedConnection(Connection, ClientProtocol):
    """A connection that we dialed."""

    dialed: ClassVar[bool] = True
    masked: ClassVar[int] = 0
    silent_reason: ClassVar[Reason] = "silence"
    factory: DialerPort[DialedConnection]
    openHandshakeTimeout = 0

    candidate: Candidate
    secret: bytes | None = None
    failure: AttemptFailed | None = None
    _nonce = ""
    _token: Deferred[Any] | None = None
    _watch_call: Call | None = None
    _ping_every = 0.0

    # -- token and upgrade --------------------------------------------------------------------

    def onConnecting(self, transport_details: object) -> Deferred[Any]:
        """Get a nonce on this very connection, then upgrade with the proof."""
        dialer, target = self.factory, self.candidate.target
        dialer.port.opening()
        if self.secret is None:
            return succeed(self._request({}))
        host = show(target.host, target.port)
        self.sendData(heads.post(heads.TOKEN_PATH, host, dialer.node))
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
                heads.NODE_HEADER: self.factory.node,
                heads.PEER_HEADER: self.factory.port.peer,
                **headers,
            },
            useragent="",
            protocols=[SUBPROTOCOL],
        )

    def processHandshake(self) -> None:
        """Take the listener's answers: first the nonce, then the upgrade's."""
        end = self.data.find(heads.END)
        if self.data.startswith(heads.TLS_RECORDS):
            self._give_up("rejected", "tls", "it speaks TLS: dial wss:// in place of ws://")
        elif end > MAX_ANSWER_BYTES or (end < 0 and len(self.data) > MAX_ANSWER_BYTES):
            self._give_up("broken", "protocol", "the answer's head is too long")
        if end < 0 or self.failure is not None:
            return
        if self._token is None:
            self._upgraded(end)
        else:
            self._take_nonce(end)

    def _upgraded(self, end: int) -> None:
        """Judge the answer to the upgrade; Autobahn checks a 101."""
        head = heads.parse_head(self.data[:end])
        if head is None or not head.first[0].startswith("HTTP/"):
            self._give_up("rejected", "protocol", "it answered with something that is not HTTP")
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
        head = heads.parse_head(self.data[:end])
        body = None if head is None else self._body(head, end)
        if head is None or not head.first[0].startswith("HTTP/"):
            self._give_up("rejected", "protocol", "it answered with something that is not HTTP")
            return
        if body is None:
            return
        if head.first[1] != "200":
            self._refused(f"POST {heads.TOKEN_PATH}", head, body)
            return
        try:
            nonce = json.loads(body)["nonce"]
        except (ValueError, TypeError, KeyError):
            nonce = None
        if not isinstance(nonce, str) or not 0 < len(nonce) <= MAX_NONCE_CHARACTERS:
            self._give_up("broken", "protocol", "it gave no nonce")
            return
        if not all(each.isalnum() or each in "-_" for each in nonce) or not nonce.isascii():
            self._give_up("broken", "protocol", "it gave a malformed nonce")
            return
        size = head.number("content-length", MAX_ANSWER_BYTES) or 0
        self.data = self.data[end + len(heads.END) + size :]
        assert self.secret is not None
        assert self._token is not None
        self._nonce = nonce
        proof = prove(self.secret, "dialer", self.factory.node, self.factory.port.peer, nonce)
        token, self._token = self._token, None
        request = self._request({heads.NONCE_HEADER: nonce, heads.PROOF_HEADER: proof})
        token.callback(request)

    def _body(self, head: heads.Head, end: int) -> bytes | None:
        """Return an answer's body, None while it has not come whole."""
        size = head.number("content-length", MAX_ANSWER_BYTES)
        begin = end + len(heads.END)
        if size is None or len(self.data) < begin + size:
            return None
        return self.data[begin : begin + size]

    def _refused(self, asked: str, head: heads.Head, body: bytes) -> None:
        """The listener answered with another status than the good one."""
        status = head.first[1]
        words = heads.printable(body.decode("utf-8", "replace").strip())
        detail = f"it answered {status} to {asked}" + (f": {words}" if words else "")
        retry = head.number("retry-after", 86_400)
        if status == "503":
            self._give_up("busy", "busy", detail, float(retry) if retry else None)
        elif status.startswith("5") or status in ("408", "429"):
            self._give_up("broken", "closed", detail)
        else:
            self._give_up("rejected", "rejected", detail)

    def failHandshake(self, reason: str) -> None:
        """Autobahn found the answer to the upgrade wrong."""
        self._give_up("rejected", "protocol", heads.printable(str(reason)))

    def _give_up(
        self, kind: Any, reason: Reason, detail: str, retry_after: float | None = None
    ) -> None:
        """End the attempt; the first reason counts."""
        if self.failure is None:
            self.failure = AttemptFailed(kind, reason, detail, retry_after)
        self.abort(reason, detail)

    # -- hello --------------------------------------------------------------------------------

    def onOpen(self) -> None:
        """Say hello first, unless another address of the attempt was quicker."""
        dialer = self.factory
        if not self.candidate.attempt.opened(self.candidate):
            self.abort("replaced", "another address was quicker")
            return
        self.generation = dialer.next_generation()
        self.send(encode(dialer.port.hello(self.generation)))

    def first(self, message: Message) -> None:
        """Take the listener's hello, and give the link this connection."""
        if isinstance(message, Goodbye):
            self._sent_away(message)
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
        tune(self.transport, limit)
        self.certificate_expires = certificate_expires(self.transport)
        self.secret = None
        self.candidate.attempt.greeted()
        self.watch()
        self._ping_every = PING_EVERY * message.ping_interval
        self._sendAutoPing()
        self.port = dialer.port
        dialer.greeted(self, message)

    def _complaint(self, hello: Hello) -> str | None:
        """Return why the listener's hello is not to be had, or None."""
        dialer = self.factory
        peer = dialer.port.peer
        if hello.node != peer:
            return f"it is {heads.printable(hello.node, 63)}, expected {peer}"
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

    def _sent_away(self, message: Goodbye) -> None:
        """The listener says goodbye in place of hello."""
        detail = message.detail or message.reason
        if message.reason in ("rejected", "duplicate", "tls"):
            self._give_up("rejected", message.reason, detail)  # type: ignore[arg-type]
        elif message.reason == "busy" or message.retry_after is not None:
            self._give_up("busy", "busy", detail, message.retry_after)
        else:
            self._give_up("broken", "closed", detail)

    def fail(self, reason: Reason, detail: str, close_code: int) -> None:
        """End it and tell the other why; before the hello that is why the attempt failed."""
        if self.port is None and self.failure is None:
            self.failure = AttemptFailed("rejected", reason, detail)
        super().fail(reason, detail, close_code)

    def ended_early(self, reason: Failure) -> None:
        """It ended before the hello: the attempt says why."""
        token, self._token = self._token, None
        if token is not None:
            token.addErrback(lambda _: None)
            token.cancel()
            if self.failure is None and not (self.candidate.target.secure or self.data):
                detail = f"{ended(reason)} without an answer; if it expects TLS, dial wss://"
                self.failure = AttemptFailed("broken", "closed", detail)
        self.factory.ended_early(self, reason)

    def connectionLost(self, reason: Failure) -> None:
        """The end."""
        cancel(self._watch_call)
        self._watch_call = None
        super().connectionLost(reason)

    # -- silence ------------------------------------------------------------------------------

    def onPing(self, payload: bytes) -> None:
        """Answer a ping; now and then ping as well, in the same packet."""
        super().onPing(payload)
        since = self._pinged_at
        if since is not None and 0 < self._ping_every <= self.clock.seconds() - since:
            self._sendAutoPing()

    def watch(self) -> None:
        """Be called when silence may reach its limit."""
        after = self.life.deadline - self.clock.seconds()
        self._watch_call = self.clock.callLater(max(0.0, after), self._check)

    def _check(self) -> None:
        """The keepalive check: drop it at the moment when silence reaches twice the interval."""
        self._watch_call = None
        if self.life.silent(self.clock.seconds()):
            self.judge()
        else:
            self.watch()
