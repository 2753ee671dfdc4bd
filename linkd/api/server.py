"""The API server: listen on the unix socket and on `http`, dispatch, reload, stop."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec
from twisted.internet import tcp, unix
from twisted.internet.defer import (
    Deferred,
    DeferredList,
    DeferredSemaphore,
    ensureDeferred,
    maybeDeferred,
)
from twisted.internet.error import CannotListenError
from twisted.internet.task import LoopingCall

from linkd import events
from linkd.api.access import (
    STREAM_PATH,
    TEXT_PATH,
    AccessControl,
    AuthorizedRequest,
    answers_by_close,
)
from linkd.api.auth import STRANGER, TOKEN_SECONDS, Caller, FailedKeyLimiter, Keyring
from linkd.api.call import Call, check_consumer
from linkd.api.errors import ApiError, refusal_of
from linkd.api.http import ApiRequest, ConnectionSlots, MemoryBudget, Response, refused
from linkd.api.metrics import Metrics
from linkd.api.operations import StaticFiles
from linkd.api.presence import Presence
from linkd.api.routes import describe, find
from linkd.api.session import ClientSession
from linkd.api.shared_auth import SharedAuth
from linkd.api.sinks import EventStream
from linkd.api.site import ApiSite
from linkd.api.stream import StreamSession
from linkd.api.stream_publisher import ActiveProducers
from linkd.api.text import TextSession
from linkd.api.websocket import ApiWebSocket, WebSockets
from linkd.clock import wall
from linkd.config import Config, ListenSettings
from linkd.config.addresses import parse_address
from linkd.errors import LinkdError, PublishError
from linkd.host import listen_error, remove_stale_socket
from linkd.log.interface import UNOWNED, Consumer, Owned
from linkd.net.rate_limit import FairShare
from linkd.net.timers import cancel
from linkd.net.tls import ServerTls, TlsFactory
from linkd.node.node import Node
from linkd.node.subscriptions import Follower, Sink, Start
from linkd.status import LinkStatus

MODE = 0o660
_BACKLOG = 1024
"""Connections that wait to be accepted. A further one fails with EAGAIN on the unix socket, also
that of an operator, and on TCP it comes a second later.
"""

_PROBE_SECONDS = 0.1
"""The event loop waits so long at most for another daemon that has taken the path."""

_Base: Any = unix.Port  # it has no types

Identity = tuple[int, int]

_Item = TypeVar("_Item")

LocalCall = Callable[[str, str, bytes], Deferred[tuple[int, bytes]]]
"""Answers a call of the socket alone: method, path and body in, status and JSON out."""


class _Port(_Base):  # type: ignore[misc]
    """A listening socket that removes its file at its end only where the file is its own."""

    def __init__(self, path: Path, factory: Any, reactor: Any) -> None:
        super().__init__(str(path), factory, _BACKLOG, MODE, reactor)
        self._path = path
        self._identity: Identity | None = None

    def startListening(self) -> None:
        """Bind and listen; raises CannotListenError."""
        super().startListening()
        self._identity = _identity(self._path)

    def has_its_file(self) -> bool:
        """Return whether callers who open the path reach this socket."""
        return _identity(self._path) == self._identity

    def connectionLost(self, reason: Any) -> None:
        """End; the file of another one stays."""
        if self.has_its_file():
            super().connectionLost(reason)
        else:
            tcp.Port.connectionLost(self, reason)


class SocketFile:
    """Listens at a path, and makes the file again where a cleaner has removed it.

    Args:
        reactor: Twisted's.
        path: Of the socket.
        factory: Of the connections.
    """

    def __init__(self, reactor: Any, path: Path, factory: Any) -> None:
        self._reactor = reactor
        self._path = path
        self._factory = factory
        self._port = self._listen()
        self._complaint: str | None = None

    def check(self) -> None:
        """Listen again if the file is missing or another one; connections stay.

        A failure is logged once; the next call tries again.
        """
        if self._port.has_its_file():
            self._complaint = None
            return
        try:
            fresh = self._listen()
        except (LinkdError, CannotListenError) as error:
            complaint = str(getattr(error, "socketError", error))
            if complaint != self._complaint:
                self._complaint = complaint
                where = str(self._path)
                events.emit("api.socket-lost", "error", address=where, detail=complaint)
            return
        self._complaint = None
        old, self._port = self._port, fresh
        old.stopListening()
        events.emit("api.socket-lost", address=str(self._path), detail="it was made again")

    def stopListening(self) -> Deferred[Any]:
        """Listen no more, and remove the file."""
        return maybeDeferred(self._port.stopListening)

    def _listen(self) -> _Port:
        """Listen, mode 0660; what a daemon that is gone has left there is replaced."""
        remove_stale_socket(str(self._path), _PROBE_SECONDS)
        port = _Port(self._path, self._factory, self._reactor)
        port.startListening()
        return port


def _identity(path: Path) -> Identity | None:
    """Return the identity of a file; None if there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


STOP_SECONDS = 3.0
"""Callers whose connection is not over by then are cut."""

PAGE_READS = 4
"""Pages of one caller that read at once: what was read is in memory until the caller's turn."""

MAX_ASKED_HEADERS = 64
"""Maximum number of header names that a page may ask to send."""

_BEAT_SECONDS = 1.0
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,80}")


class ApiServer:
    """The API of one node.

    Args:
        node: The node that it serves.
        config: Where it listens, and who may call.
        reactor: The reactor.
        pairing: Answers below `/v1/pairing`; None: there is none.

    Raises:
        ConfigError: A key's file cannot be read.
    """

    def __init__(
        self,
        node: Node,
        config: Config,
        reactor: Any,
        pairing: LocalCall | None = None,
    ) -> None:
        self.node = node
        self.reactor = reactor
        self.config = config
        self.pairing = pairing
        shared = None
        if node.shared is not None:
            shared = SharedAuth(node.shared, reactor, wall, node.log.clock, TOKEN_SECONDS)
        self.keyring = Keyring(config, reactor.seconds, wall, shared)
        self.access_control = AccessControl(config, self.keyring, FailedKeyLimiter(reactor.seconds))
        self.slots = ConnectionSlots(config.limits)
        self.metrics = Metrics(node, lambda: len(reactor.getDelayedCalls()))
        self.metrics.api_refused = self.slots.refused
        self.description = describe()
        self.share = FairShare(reactor)
        self.budget = MemoryBudget()
        self._page_reads: WeakValueDictionary[str, DeferredSemaphore] = WeakValueDictionary()
        self.streams: set[EventStream] = set()
        self.websockets = WebSockets(self, self._make_session)
        self.producers = ActiveProducers(node.log)
        self.presence = Presence(
            node, reactor, self.share, 0 if node.bus is None else secrets.randbits(41) << 20
        )
        self.late_seconds = 0.0
        self._files = StaticFiles()
        self._running: dict[Deferred[Any], ApiRequest] = {}
        self._sites: list[ApiSite] = []
        self._ports: list[Any] = []
        self._socket: SocketFile | None = None
        self._tls: ServerTls | None = None
        self._due = 0.0
        self._beat = LoopingCall(self._measure_loop_lag)
        self._beat.clock = reactor

    # life

    def listen(self) -> None:
        """Begin to listen.

        Raises:
            ConfigError: An address or the socket's path is unavailable, or TLS files are unfit.
        """
        api = self.config.api
        setting, address = "api.socket", api.socket
        try:
            self._socket = SocketFile(self.reactor, Path(api.socket), self._site())
            self._ports.append(self._socket)
            events.emit("api.started", address=f"unix:{api.socket}", tls=False)
            if api.http is not None:
                setting, address = "api.http", api.http
                self._listen_http(api.http)
        except (OSError, CannotListenError) as error:
            for port in self._ports:
                port.stopListening()
            raise listen_error(setting, address, error) from None
        self._due = self.reactor.seconds() + _BEAT_SECONDS
        self._beat.start(_BEAT_SECONDS, now=False)

    def _listen_http(self, address: str) -> None:
        host, number = parse_address(address)
        self._tls = server_tls(self.config)
        if self._tls is None:
            port = self.reactor.listenTCP(number, self._site(), _BACKLOG, host)
        else:
            self._tls.watch(self.reactor)
            tls: Any = self._tls  # Twisted's interfaces are declared at run time
            site = TlsFactory(tls, False, self._site())
            port = self.reactor.listenTCP(number, site, _BACKLOG, host)
        self._ports.append(port)
        got = port.getHost()
        events.emit("api.started", address=f"{got.host}:{got.port}", tls=self._tls is not None)

    @property
    def tls_complaint(self) -> str | None:
        """Why the files of `api.certificate` can't be used as they are now, or None."""
        return None if self._tls is None else self._tls.complaint

    def stop(self) -> Deferred[None]:
        """Listen no more, end what runs; fires once all connections are closed."""
        if self._beat.running:
            self._beat.stop()
        if self._tls is not None:
            self._tls.stop()
        closed = [maybeDeferred(port.stopListening) for port in self._ports]
        for running in list(self._running):
            running.cancel()
        for stream in list(self.streams):
            stream.end()
        ended = self.websockets.stop()
        ended.addBoth(lambda _: self.presence.stop())
        for site in self._sites:
            for channel in list(site.channels):
                channel.loseConnection()
        late = self.reactor.callLater(STOP_SECONDS, self._abort)
        done: Deferred[None] = Deferred()

        def over(_: object) -> None:
            cancel(late)
            self._abort()
            done.callback(None)

        DeferredList([*closed, ended], consumeErrors=True).addCallback(over)
        return done

    def _abort(self) -> None:
        """Cut what is still open."""
        self.websockets.abort()
        for site in self._sites:
            for channel in list(site.channels):
                channel.forceAbortClient()

    def reload(self, config: Config) -> None:
        """Put another configuration in force: keys, names, origins, certificates.

        Connected callers lose the rights that their key has lost, and all if the key is gone.

        Raises:
            ConfigError: A key's file cannot be read; nothing has changed.
        """
        self.keyring.reload(config)
        self.access_control.reload(config)
        self.config = config
        self.slots.limits = config.limits
        listen = _tls_files(config)
        if self._tls is not None and listen is not None:
            self._tls.configure(listen)
        open_now: list[ApiWebSocket | EventStream] = [*self.websockets.sockets(), *self.streams]
        for held in open_now:
            caller = self.keyring.renewed(held.caller)
            if caller is None:
                held.disallow()
            elif caller is not held.caller:
                held.allow(caller)
        for running, request in list(self._running.items()):
            refusal = self._lost(request)
            if refusal is not None:
                running.cancel()
                request.respond(refused(refusal))

    def _lost(self, request: ApiRequest) -> ApiError | None:
        """Return why a request under way may not go on, if that is so.

        A publish is already on its way to the disk, and its answer reveals nothing.
        """
        admitted: AuthorizedRequest | None = request.admitted
        if admitted is None or request.method != b"GET":
            return None
        if admitted.match.route.access in ("open", "optional"):
            return None
        caller = self.keyring.renewed(admitted.caller)
        if caller is None:
            return ApiError("unauthorized", "the key is not known any more")
        channel = admitted.match.path.get("channel")
        try:
            if channel is not None:
                caller.check_subscribe(channel)
        except ApiError as refusal:
            return refusal
        return None

    def _site(self) -> ApiSite:
        site = ApiSite(self, self.reactor, self.config.limits.header_bytes, self.slots)
        self._sites.append(site)
        return site

    def _measure_loop_lag(self) -> None:
        now = self.reactor.seconds()
        self.late_seconds = max(0.0, now - self._due)
        self._due = now + _BEAT_SECONDS
        if self._socket is not None:
            self._socket.check()

    # called by the sites

    def admit(self, request: ApiRequest) -> None:
        """Judge a request by its head."""
        if request.method == b"OPTIONS" and request.header("Origin") is not None:
            request.admitted = None
            return
        try:
            request.admitted = self._admit(request)
        except ApiError as refusal:
            if not answers_by_close(request):
                raise
            match = find("GET", TEXT_PATH.encode())
            request.admitted = AuthorizedRequest(match, STRANGER, "anyone", refusal=refusal)

    def _admit(self, request: ApiRequest) -> AuthorizedRequest:
        """Return who calls what; raise ApiError."""
        if request.channel.refusal is not None:
            raise request.channel.refusal
        admitted = self.access_control.admit(request)
        node = self.node
        if not admitted.match.route.available_while_starting and (node.starting or node.stopping):
            word = "starting" if node.starting else "stopping"
            raise ApiError("unavailable", f"the node is {word}", {"Retry-After": "1"})
        return admitted

    def serve(self, request: ApiRequest) -> Deferred[Response | None]:
        """Answer a complete request."""
        admitted: AuthorizedRequest | None = request.admitted
        running: Deferred[Response | None] = ensureDeferred(
            self._preflight(request) if admitted is None else self._answer(request, admitted)
        )
        if not running.called:
            self._running[running] = request
            running.addBoth(self._done, running)
        return running

    def _done(self, result: Any, running: Deferred[Any]) -> Any:
        self._running.pop(running, None)
        return result

    async def _answer(self, request: ApiRequest, admitted: AuthorizedRequest) -> Response | None:
        route = admitted.match.route
        if admitted.redeems is not None:
            admitted = request.admitted = await self._redeem(request, admitted)
        if route.socket:
            self.websockets.take(request, admitted)
            return None
        call = Call(request, admitted.caller, admitted.match.path)
        if route.run is None:
            return self._files.answer(
                request.path.decode("ascii", "replace"), request.header("If-None-Match")
            )
        if not route.any_query:
            call.only(*route.query_names)
        return await route.run(self, call)

    async def _redeem(self, request: ApiRequest, admitted: AuthorizedRequest) -> AuthorizedRequest:
        """Use up a token; a WebSocket that is refused is told so by its own means."""
        try:
            return await self.access_control.redeem(request, admitted)
        except ApiError as refusal:
            if not admitted.match.route.socket:
                raise
            return msgspec.structs.replace(admitted, redeems=None, refusal=refusal)

    async def _preflight(self, request: ApiRequest) -> Response:
        """Answer a browser that asks whether a page of another origin may call."""
        origin = self.access_control.preflight(request)
        wanted = (request.header("Access-Control-Request-Headers") or "").split(",")
        names = [name.strip() for name in wanted if _HEADER_NAME.fullmatch(name.strip())]
        return Response(
            204,
            headers={
                "Access-Control-Allow-Origin": origin,
                "Access-Control-Allow-Methods": "GET, POST, DELETE",
                "Access-Control-Allow-Headers": "Authorization, Content-Type, Last-Event-ID,"
                " Linkd-Type, Linkd-Id, Linkd-Ttl"
                + "".join([f", {name}" for name in names[:MAX_ASKED_HEADERS]]),
                "Access-Control-Max-Age": "600",
                "Vary": "Origin",
            },
        )

    def _make_session(self, call: Call, path: str, socket: ApiWebSocket) -> ClientSession:
        """Create the session of a WebSocket."""
        if path == STREAM_PATH:
            return StreamSession(self, call.caller, socket)
        return TextSession(self, call, socket)

    # for the handlers

    def page_reads(self, caller: str) -> DeferredSemaphore:
        """Return what admits a caller's pages to the log, the same as long as one of them is held.

        One for all callers would have them wait for the turns of the one with the most pages.
        """
        reads = self._page_reads.get(caller)
        if reads is None:
            reads = self._page_reads[caller] = DeferredSemaphore(PAGE_READS)
        return reads

    async def gather(self, caller: str, items: Iterable[_Item]) -> list[_Item]:
        """Return all items of an iterator that makes them, in slices of the caller's turns."""
        found: list[_Item] = []
        until = self.share.end()
        for item in items:
            found.append(item)
            if self.reactor.seconds() >= until:
                await self.share.turn(caller)
                until = self.share.end()
        return found

    async def link_statuses(self, caller: str = "") -> list[LinkStatus]:
        """Return the state of all links."""
        looks = map(self.node.link_status, self.node.peers())
        return [link for link in await self.gather(caller, looks) if link is not None]

    def subscribe(
        self,
        caller: Caller,
        patterns: Sequence[str],
        start: Start,
        sink: Sink,
        consumer: str | None = None,
    ) -> Follower:
        """Subscribe at the node, with a name of the caller's; raise ApiError where it refuses."""
        key = None if consumer is None else (caller.name, consumer)
        try:
            if key is not None:
                self._check_taking(caller, key)
            return self.node.subscriptions.subscribe(patterns, start, sink, key)
        except PublishError as error:
            raise refusal_of(error) from None

    def _check_taking(self, caller: Caller, key: Owned) -> None:
        """Raise ApiError where a caller may not hold this name of its own.

        A consumer that has no owner yet goes to the first caller that may read all its patterns.
        """
        known = self.node.subscriptions.consumer(key)
        if known is None:
            unowned = self.node.subscriptions.consumer((UNOWNED, key[1]))
            if unowned is not None and caller.may_read(unowned.patterns):
                self.node.move(unowned.key, key).addErrback(lambda _: None)  # written again soon
        elif not caller.sees(known):
            raise ApiError("forbidden", f"{key[1]} reads more than this token may")

    def find_consumer(self, call: Call) -> Consumer:
        """Return the consumer that a call names; raise ApiError unless the caller may act on it."""
        name = check_consumer(call.path["name"])
        key = call.caller.key(call.text("owner"), name)
        consumer = self.node.subscriptions.consumer(key)
        if consumer is None or not call.caller.sees(consumer):
            raise ApiError("not-found", self._not_there(call.caller, key))
        return consumer

    def _not_there(self, caller: Caller, key: Owned) -> str:
        """Return that there is no such consumer; an operator gets the owners of the same name."""
        message = f"there is no consumer {key[1]}"
        if not caller.operator:
            return message
        others = [one.owner for one in self.node.subscriptions.consumers() if one.name == key[1]]
        same = f"; there is {', '.join(f'{owner}/{key[1]}' for owner in others)}" if others else ""
        return f"there is no consumer {'/'.join(key)}{same}"


def server_tls(config: Config) -> ServerTls | None:
    """Return TLS for `http`, None where no certificate is configured."""
    listen = _tls_files(config)
    return None if listen is None else ServerTls(listen)


def _tls_files(config: Config) -> ListenSettings | None:
    """Return the certificate of `http` in the shape that ServerTls reads; None: no TLS."""
    api = config.api
    if api.http is None or api.certificate is None:
        return None
    return ListenSettings(address=api.http, certificate=api.certificate, key=api.private_key)
