"""The composition root: node, stores, listener, API and pairing of one daemon."""

from __future__ import annotations

import queue
import random
import resource
import secrets
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from cryptography import x509
from twisted.internet import threads
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.internet.threads import blockingCallFromThread
from twisted.python.failure import Failure

from linkd import events
from linkd.api.server import ApiServer
from linkd.clock import boot_word, wall
from linkd.config import Config
from linkd.errors import LinkdError, Unavailable
from linkd.log import Environment, open_cursors, open_log
from linkd.log.base import Log
from linkd.net import admission
from linkd.net.admission import GreetedAddresses
from linkd.net.connect import Resolver, look_up
from linkd.net.connection import Post
from linkd.net.dialer import DialerContext, LinkDialer
from linkd.net.linux import Descriptors, NetworkMonitor
from linkd.net.listener import Listener
from linkd.net.timers import ClockWatch, at_iteration_end
from linkd.net.tls import ServerTls
from linkd.node import Node, Stores
from linkd.node.bus import Bus, Connector, open_connector
from linkd.node.history import LogMonitor
from linkd.node.link_driver import LinkDriver
from linkd.node.outages import Outages
from linkd.pairing.client import Renewal
from linkd.pairing.messages import PairingHooks
from linkd.pairing.server import PairingServer, local_call
from linkd.pairing.shared import AUTHORITY, CERTIFICATE, TERMS, SharedRows
from linkd.preflight import CertificateEnd, certificate_ends, check_files, key_fingerprints

MAX_WAITING: Final = 256

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Makes calls one after another in a thread of its own.

    State that only such calls use needs no lock. The thread starts with the first call, and ends
    with the process, whatever hangs in it.

    Args:
        reactor: Twisted's; results are delivered in its thread.
        name: Of the thread.
    """

    def __init__(self, reactor: Any, name: str) -> None:
        self._reactor = reactor
        self._name = name
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting = 0
        self._started = False

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Make a call in the worker's thread; call this in the reactor's thread only.

        Returns:
            Fires with its result or exception; with `Unavailable` where `MAX_WAITING` calls wait.
        """
        if self._waiting >= MAX_WAITING:
            return fail(Unavailable(f"{self._name}: {MAX_WAITING} calls wait already"))
        self._waiting += 1
        done: Deferred[T] = Deferred(lambda _: None)

        def run() -> None:
            try:
                result: T | Failure = function(*args, **kwargs)
            except Exception:  # noqa: BLE001 - passed to the caller
                result = Failure()
            self._reactor.callFromThread(self._over, done, result)

        self._calls.put(run)
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        return done

    def in_reactor(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call in the reactor's thread and return its result; for calls in the worker."""
        call: Any = partial(function, *args, **kwargs)
        result: T = blockingCallFromThread(self._reactor, call)
        return result

    def _over(self, done: Deferred[Any], result: object) -> None:
        self._waiting -= 1
        if not done.called:
            done.callback(result)

    def _run(self) -> None:
        while True:
            self._calls.get()()


NOTE_SECONDS = 10.0
"""Interval of noting which links are up: the error in the start of an outage after a kill."""

FILES_SECONDS = 300.0
"""Interval of checking secrets and certificates, to warn before a restart or redial needs them."""

_WATCHED = ("listen.certificate: ", "api.certificate: ")

_LOOKUP_THREADS = 32
"""Dead name servers and many peers must not starve the reactor's threads."""


class Application:
    """All parts of one daemon, built but not started.

    Args:
        config: What is in force.
        folder: The directory of further configuration files, where pairing writes.
        reactor: Twisted's.
        reload: Reloads the configuration, as SIGHUP does.

    Raises:
        LinkdError: The log can't be opened, or a certificate can't be used.
    """

    def __init__(
        self, config: Config, folder: Path, reactor: Any, reload: Callable[[], None]
    ) -> None:
        self.config = config
        self._reactor = reactor
        reactor.suggestThreadPoolSize(_LOOKUP_THREADS)
        state = Path(config.node.state_dir)
        post, began = reactor.callFromThread, reactor.seconds()
        edges = Environment(
            wall=wall,
            call_at_iteration_end=at_iteration_end(reactor),
            boot=boot_word(Path(config.api.socket).parent),
        )
        log = open_log(config.log, state, config.node.name, post, edges, config.cluster)
        self._cursors = open_cursors(log, state, post, wall=wall)
        opened = reactor.seconds() - began
        self._outages = Outages(self._cursors)
        peers = [peer.name for peer in config.peers]
        self._outages.resume(peers, reactor.seconds(), wall())
        stores = Stores(log, self._cursors, self._outages)
        self._origin = DialerContext(
            config.node.name,
            secrets.token_hex(8),
            reactor,
            Resolver(reactor, lambda host: threads.deferToThread(look_up, host)),
        )
        self.node = Node(config, stores, reactor, self._make_dialer, random.Random())
        self._connector = self._join_bus(log)
        self._watch = LogMonitor(self.node, log, self._cursors)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._greeted = GreetedAddresses(state / admission.FILE, reactor.seconds())
        self._descriptors = Descriptors(limit, self.node.warnings)
        _log_opened(log, opened)
        self._worker = Worker(reactor, "linkd-pairing")
        self._learns = False  # what other instances have paired is due
        self.pairing = self._open_pairing(folder, reload)
        self._tls = self._server_tls(state / "pairing")
        self._renewal = Renewal(
            lambda: self.config, wall, threads.deferToThread, self._renew_own, self.node.kick
        )
        self._loops = (
            (LoopingCall(self._note), NOTE_SECONDS),
            (LoopingCall(self._watch.look), 1.0),
            (LoopingCall(self._warn_of_certificates), 1.0),
            (LoopingCall(self._look_at_files), FILES_SECONDS),
            (LoopingCall(self._descriptors.look), 1.0),
            (LoopingCall(self._keep_greeted), 1.0),
            (LoopingCall(ClockWatch(reactor, wall, self._clock_set).look), 1.0),
        )
        self._network = NetworkMonitor(reactor, self._network_changed)
        self._listener = (
            None
            if config.listen is None
            else Listener(self.node, config, reactor, self._tls, self._posts(), self._greeted)
        )
        self._api = ApiServer(self.node, config, reactor, self._pair)
        if self._listener is not None:
            self._api.metrics.refused = self._listener.refusals
        self._api.metrics.shortages = lambda: self._descriptors.shortages

    def _join_bus(self, log: Log) -> Connector | None:
        """Let the node use the bus, where there is one; return what carries it."""
        cluster, reactor = self.config.cluster, self._reactor
        if cluster is None or cluster.bus is None:
            return None
        post = reactor.callFromThread
        bus = Bus(self.node.name, log.id, self._cursors, reactor, post)
        self.node.take_bus(bus)
        return open_connector(
            cluster, log.id, bus.seal, bus.arrived, lambda text: post(bus.failed, text)
        )

    def _open_pairing(self, folder: Path, reload: Callable[[], None]) -> PairingServer:
        """Open pairing's state, which belongs to the worker's thread from now on.

        The hooks run in the reactor's thread.
        """
        in_reactor = self._worker.in_reactor
        hooks = PairingHooks(
            lambda: self.config,
            self._leaf,
            lambda: in_reactor(reload),
            lambda name: in_reactor(self._revoked, name),
            lambda: None if self._tls is None else self._tls.leaf_before,
        )
        rows = None
        if self.config.cluster is not None:
            instance = self.config.cluster.instance
            rows = SharedRows(self._cursors, self._reactor.callFromThread, instance)
            for kind in (CERTIFICATE, TERMS, AUTHORITY):
                self._cursors.watch(kind, self._paired_elsewhere)
        pairing = PairingServer(hooks, folder, self._reactor.seconds, wall, rows)
        pairing.open()
        return pairing

    def _paired_elsewhere(self, *_: object) -> None:
        """Apply what another instance has paired or revoked: once for all that came together."""
        if not self._learns:
            self._learns = True
            self._worker.call(self._learn).addErrback(self._not_learned)

    def _not_learned(self, _: Failure) -> None:
        self._learns = False  # it is tried again

    def _learn(self) -> None:
        self._learns = False
        self.pairing.learn()

    def _make_dialer(self, node: Node, driver: LinkDriver) -> LinkDialer:
        """Create the dialer of one link."""
        timeout = node.config.reconnect.connect_timeout
        return LinkDialer(driver, driver.settings, self._origin, timeout)

    def _server_tls(self, pairing: Path) -> ServerTls | None:
        """Return the listener's TLS settings, or None without a certificate."""
        listen = self.config.listen
        if listen is None or listen.certificate is None:
            return None
        return ServerTls(listen, pairing, wall, lambda: self.pairing.revoked)

    def _leaf(self) -> x509.Certificate | None:
        """Return the certificate that the listener presents now."""
        return None if self._tls is None else self._tls.leaf

    def _revoked(self, name: str) -> None:
        """Apply the revocation of a peer's certificates, and abort its live connection."""
        if self._tls is not None:
            self._tls.reload()
        link = self.node.link(name)
        if link is not None and link.connection is not None:
            link.connection.abort("rejected", "its certificate was revoked")
        self.node.links.command(name, "revoke")

    def _posts(self) -> dict[str, Post]:
        """Return handlers for pairing's paths on the listener; they run in the worker."""

        def answered_by(answer: Callable[[bytes, str], tuple[int, bytes]]) -> Post:
            return lambda body, address: self._worker.call(answer, body, address)

        return {path: answered_by(answer) for path, answer in self.pairing.posts.items()}

    def _pair(self, method: str, path: str, body: bytes) -> Deferred[tuple[int, bytes]]:
        """Answer a call of the API below `/v1/pairing`."""
        return self._worker.call(local_call, self.pairing, method, path, body)

    def _renew_own(self) -> Deferred[None]:
        """Renew this node's own certificate where it expires soon, and use it immediately."""
        renewed = self._worker.call(self.pairing.renew_own)
        return renewed.addCallback(lambda _: None if self._tls is None else self._tls.check())

    def _network_changed(self) -> None:
        """Make dialers try again: addresses or routes of this host have changed."""
        events.emit("node.network-changed")
        self.node.links.network_changed()

    def _clock_set(self, seconds: float) -> None:
        """Check certificates again: the wall clock was set, so some may be valid now, or expire."""
        events.emit("node.clock-set", step_seconds=seconds)
        self._renewal.check()
        self.node.links.clock_set()

    def _keep_greeted(self) -> None:
        """Save the addresses from which peers were greeted, for the next start."""
        content = self._greeted.to_write(self._reactor.seconds())
        if content is not None:
            written = self._worker.call(self._greeted.write, content)
            written.addErrback(lambda failure: self._greeted.not_written(failure.value))

    def _note(self) -> None:
        """Save which links are up, for the run after a kill."""
        up = [link.peer for link in self.node.links.drivers.values() if link.link.state == "up"]
        self._outages.alive(up, self._reactor.seconds(), wall())

    def _warn_of_certificates(self) -> None:
        """Keep a warning in status while files of TLS or pairing need an operator."""
        found = {
            "listen.certificate": None if self._tls is None else self._tls.complaint,
            "api.certificate": self._api.tls_complaint,
            "pairing": self.pairing.warning(),
        }
        for setting, complaint in found.items():
            if complaint is None:
                self.node.warnings.pop(setting, None)
            else:
                self.node.warnings[setting] = f"{setting}: {complaint}"

    def _look_at_files(self) -> Deferred[None]:
        """Keep a warning in status while a file that the configuration names cannot be used."""
        self._worker.call(self._certificate_ends).addCallbacks(
            self._keep_certificate_ends, lambda _: None
        )
        if self.node.instances is not None:
            self._paired_elsewhere()
            fingerprints = self._worker.call(key_fingerprints, self.config)
            fingerprints.addCallbacks(self.node.instances.set_keys, lambda _: None)
        return self._worker.call(check_files, self.config).addCallbacks(
            self._warn_of_files, lambda _: None
        )

    def _certificate_ends(self) -> list[CertificateEnd]:
        """Return when certificates expire, including those of paired peers; runs in the worker."""
        names = {peer.name for peer in self.config.peers}
        paired = [
            CertificateEnd("peer", *each)
            for each in self.pairing.certificate_ends()
            if each[0] in names
        ]
        return certificate_ends(self.config) + paired

    def _keep_certificate_ends(self, found: list[CertificateEnd]) -> None:
        self.node.certificates = found

    def _warn_of_files(self, troubles: Sequence[LinkdError]) -> None:
        about = "files of the configuration"
        # The listeners check their own files every few seconds.
        texts = [str(each) for each in troubles if not str(each).startswith(_WATCHED)]
        if texts:
            more = f", and {len(texts) - 3} more" if len(texts) > 3 else ""
            self.node.warnings[about] = "; ".join(texts[:3]) + more
        else:
            self.node.warnings.pop(about, None)

    def listen(self) -> None:
        """Open all sockets.

        Raises:
            LinkdError: One of them cannot be opened.
        """
        self._api.listen()
        if self._listener is not None:
            self._listener.start()
        self._descriptors.started()
        self._divide()

    def _divide(self) -> None:
        """Divide the file descriptors between links, which come first, newcomers and the API."""
        shares = self._descriptors.divide(len(self.config.peers))
        self._api.slots.share = shares.api
        if self._listener is not None:
            self._listener.admission.share = shares.newcomers
        limits = self.config.limits
        newcomers = self._listener is not None and shares.newcomers < limits.pending
        if shares.api < limits.api_connections or newcomers:
            events.emit(
                "node.limits-held",
                limit=self._descriptors.limit,
                api_connections=min(shares.api, limits.api_connections),
                pending=min(shares.newcomers, limits.pending) if self._listener else None,
            )

    def start(self) -> None:
        """Start all links and periodic checks."""
        self.node.start()
        if self.node.bus is not None and self._connector is not None:
            self.node.bus.start(self._connector)
        if self._tls is not None:
            self._tls.watch(self._reactor)
        self._renewal.start(self._reactor)
        self._network.start()
        self._look_at_files()
        for loop, interval in self._loops:
            loop.clock = self._reactor
            loop.start(interval, now=False)

    def reload(self, config: Config) -> None:
        """Apply a new configuration and check certificates; unchanged links stay up."""
        self.config = config
        if self._listener is not None and config.listen is not None:
            self._listener.configure(config)
            if self._tls is not None:
                self._tls.configure(config.listen)
        self.node.reload(config)
        self._api.reload(config)
        self._divide()
        self._renewal.check()
        self._look_at_files()

    def stop(self, detail: str) -> Deferred[None]:
        """Send goodbyes, stop all parts, commit pending writes; fires once they are on disk."""
        if self.node.bus is not None:
            self.node.bus.stop()
        self._renewal.stop()
        self._network.stop()
        for loop, _ in self._loops:
            if loop.running:
                loop.stop()
        if self._tls is not None:
            self._tls.stop()
        if self._listener is not None:
            self._listener.stop()
        stopped = maybeDeferred(self.node.stop, detail)
        stopped.addBoth(lambda _: maybeDeferred(self._api.stop))
        return stopped


def _log_opened(log: Log, seconds: float) -> None:
    """Log that the log is open."""
    events.emit(
        "log.opened",
        id=log.id,
        epoch=log.epoch,
        first=log.first,
        next=log.next,
        bytes=log.size_bytes,
        open_seconds=seconds,
    )
