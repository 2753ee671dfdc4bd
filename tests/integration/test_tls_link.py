"""Links over TLS: the real listener and dialer, paired or refused, with the reason on both ends."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.threads import deferToThread
from twisted.protocols import portforward

from linkd.config import Config, PeerSettings, files, load
from linkd.errors import AttemptFailed, ConfigError
from linkd.net.dialer import DialerContext, LinkDialer
from linkd.net.linux import (
    BACKSTOP_SECONDS,
    NOTSENT_BYTES,
    TCP_NOTSENT_LOWAT,
    TCP_USER_TIMEOUT,
)
from linkd.net.listener import Listener
from linkd.net.tls import ServerTls
from linkd.pairing.ca import prepare
from linkd.pairing.client import join
from linkd.pairing.messages import PairingHooks
from linkd.pairing.server import PairingServer
from tests.support import tls_lab
from tests.support.net_lab import SECRET, Link, Nodes, secret_file, settings, threaded_resolver
from tests.support.pairing_lab import edge_config
from tests.support.tls_lab import Pair, at

reactor: Any = global_reactor


class Ends:
    """A hub that listens over TLS and an edge that dials, each with what it was told."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.tls = pair.listen()
        self.at_hub = Link("hub", "edge-1", 5.0)
        self.at_edge = Link("edge-1", "hub")
        self.nodes = Nodes("hub", {"edge-1": (PeerSettings(name="edge-1"), self.at_hub)})
        self.listener = RememberingListener(self.nodes, settings(), reactor, self.tls)
        self.listener.start()
        self.dialers: list[LinkDialer] = []
        self.generations = 0

    def dialer(self, leaf: trustme.LeafCert | None = None, **changes: Any) -> LinkDialer:
        """Return a dialer with its own certificate."""
        certificate, key = self.pair.files.write("edge", leaf or self.pair.edge_leaf)
        fields = {
            "name": "hub",
            "dial": (f"wss://localhost:{self.listener.port_number}/link",),
            "ca": self.pair.ca_file,
            "certificate": certificate,
            "key": key,
        }
        self.generations += 1
        origin = DialerContext(
            "edge-1", f"boot-{self.generations}", reactor, threaded_resolver(reactor)
        )
        peer = PeerSettings(**{**fields, **changes})
        dialer = LinkDialer(self.at_edge, peer, origin, 3.0)
        self.dialers.append(dialer)
        return dialer

    async def up(self, dialer: LinkDialer) -> Any:
        """Dial, and return the connection once greeted."""
        greeted = self.at_edge.until("greeted", reactor)
        dialer.dial(0.0)
        await greeted
        return self.at_edge.connections[-1]

    async def refused(self, dialer: LinkDialer) -> AttemptFailed:
        """Dial, and return why it failed."""
        failed = self.at_edge.until("failed", reactor)
        dialer.dial(0.0)
        await failed
        dialer.stop()
        return self.at_edge.failures[-1]

    async def close(self) -> None:
        """End all of it."""
        for dialer in self.dialers:
            dialer.stop()
        for link in (self.at_hub, self.at_edge):
            end_all(link)
        await self.listener.stop()


def end_all(link: Link) -> None:
    """End the connections that are still there."""
    for connection in link.connections:
        if connection.transport.connected:
            connection.abort("stopped", "the test is over")


class RememberingListener(Listener):
    """A listener that keeps what it says of refusals."""

    def refused(self, connection: Any, reason: Any, detail: str, *rest: Any) -> None:
        """Keep it."""
        said = self.__dict__.setdefault("said", [])
        said.append((reason, detail))
        super().refused(connection, reason, detail, *rest)


@pytest_twisted.async_yield_fixture
async def ends(tmp_path: Path) -> AsyncIterator[Ends]:
    both = Ends(Pair(tmp_path))
    yield both
    await both.close()


@pytest_twisted.ensureDeferred
async def test_a_certificate_is_enough(ends: Ends) -> None:
    connection = await ends.up(ends.dialer())
    assert ends.at_hub.told == ["greeted"]
    accepted = ends.at_hub.connections[0]
    assert connection.certificate_expires > time.time()
    assert accepted.certificate_expires > time.time()


class _Behind(portforward.ProxyClient):
    """The balancer's connection to the hub, which begins with a PROXY header."""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 9443\r\n")
        super().connectionMade()


class Balancer(portforward.ProxyFactory):
    """Passes connections on to the hub."""

    noisy = False

    def buildProtocol(self, addr: Any) -> Any:
        """Return the dialer's side."""
        made: Any = super().buildProtocol(addr)
        made.reactor = reactor
        clients = type("Clients", (portforward.ProxyClientFactory,), {"protocol": _Behind})
        made.clientProtocolFactory = clients
        return made


@pytest_twisted.ensureDeferred
async def test_behind_a_balancer_nothing_is_left_between_socket_and_tls(ends: Ends) -> None:
    ends.listener.configure(settings(listed=("127.0.0.1",)))
    balancer = Balancer("127.0.0.1", ends.listener.port_number)
    port = reactor.listenTCP(0, balancer, interface="127.0.0.1")
    try:
        url = f"wss://localhost:{port.getHost().port}/link"
        await ends.up(ends.dialer(dial=(url,)))
        accepted = ends.at_hub.connections[0]
        assert accepted.address == "203.0.113.7:40000"
        assert ends.listener.admission.greeted.peers_at("203.0.113.7") == 1
        tls = accepted.transport
        assert tls.transport.protocol is tls
        below = tls.transport.getHandle()
        limit = int((accepted.life.limit + BACKSTOP_SECONDS) * 1000)
        for option, value in (
            (TCP_USER_TIMEOUT, limit),
            (TCP_NOTSENT_LOWAT, NOTSENT_BYTES),
            (socket.TCP_NODELAY, 1),
        ):
            assert below.getsockopt(socket.IPPROTO_TCP, option) == value
    finally:
        for dialer in ends.dialers:
            dialer.stop()
        await port.stopListening()


@pytest.mark.parametrize(
    ("spoil", "hub_says", "edge_says"),
    [
        (
            lambda p: p.ca.issue_cert("edge-1", not_before=at(-9), not_after=at(-1)),
            "has expired",
            "has expired: renew it",
        ),
        (lambda p: p.stranger.issue_cert("edge-1"), "not trusted here", "does not know"),
        (lambda p: tls_lab.self_signed("edge-1"), "is self-signed", "does not know"),
        (lambda p: p.ca.issue_cert("edge-2"), "no certificate for the name edge-1", "answered 401"),
    ],
    ids=["expired", "foreign-ca", "self-signed", "another-name"],
)
@pytest_twisted.ensureDeferred
async def test_a_dialer_s_bad_certificate_and_its_healing(
    ends: Ends, spoil: Callable[[Pair], trustme.LeafCert], hub_says: str, edge_says: str
) -> None:
    failure = await ends.refused(ends.dialer(spoil(ends.pair)))
    assert failure.kind == "rejected"
    assert edge_says in failure.detail
    said = ends.listener.__dict__["said"]
    assert len(said) == 1
    assert hub_says in said[0][1]
    assert ends.at_hub.told == []
    ((reason, detail),) = ends.at_hub.refusals
    assert reason == said[0][0]
    assert hub_says in detail
    assert detail.endswith("(from 127.0.0.1)")
    await ends.up(ends.dialer())


@pytest.mark.parametrize(
    ("spoil", "edge_says"),
    [
        (lambda p: p.ca.issue_cert("localhost", not_before=at(-9), not_after=at(-1)), "expired"),
        (lambda p: p.ca.issue_cert("localhost", not_before=at(1)), "not valid yet"),
        (lambda p: p.ca.issue_cert("elsewhere"), "not for the name"),
        (lambda p: p.stranger.issue_cert("localhost"), "not trusted here"),
    ],
    ids=["expired", "not-yet-valid", "wrong-name", "foreign-ca"],
)
@pytest_twisted.ensureDeferred
async def test_a_listener_s_bad_certificate_and_its_healing(
    ends: Ends, spoil: Callable[[Pair], trustme.LeafCert], edge_says: str
) -> None:
    ends.pair.files.write("hub", spoil(ends.pair))
    assert ends.tls.reload() is None
    dialer = ends.dialer()
    failure = await ends.refused(dialer)
    assert (failure.kind, failure.reason) == ("rejected", "tls")
    assert edge_says in failure.detail
    ends.pair.files.write("hub", ends.pair.hub_leaf)
    ends.tls.check()
    await ends.up(dialer)


@pytest_twisted.ensureDeferred
async def test_plain_websocket_at_a_tls_port(ends: Ends, tmp_path: Path) -> None:
    url = f"ws://localhost:{ends.listener.port_number}/link"
    changes = {"dial": (url,), "secret_file": secret_file(tmp_path, SECRET)}
    failure = await ends.refused(ends.dialer(**changes))
    assert failure.kind in ("broken", "rejected")
    said = ends.listener.__dict__["said"]
    assert said[0][0] == "tls"
    assert "plain HTTP" in said[0][1]


@pytest_twisted.ensureDeferred
async def test_a_missing_file_is_rejected_and_heals(ends: Ends) -> None:
    dialer = ends.dialer()
    key = ends.pair.files.directory / "edge.key"
    kept = key.read_bytes()
    key.unlink()
    failure = await ends.refused(dialer)
    assert (failure.kind, failure.reason) == ("rejected", "tls")
    assert str(key) in failure.detail
    key.write_bytes(kept)
    await ends.up(dialer)


@pytest_twisted.ensureDeferred
async def test_renewed_20_times_without_a_drop(ends: Ends) -> None:
    connection = await ends.up(ends.dialer())
    for _ in range(20):
        ends.pair.files.write("hub", ends.pair.ca.issue_cert("localhost"))
        ends.tls.check()
        received = ends.at_hub.until("received", reactor)
        connection.send(b"\x92\xa3ack\x01")
        await received
    assert len(ends.at_hub.messages) == 20
    assert ends.at_hub.losses == []
    assert ends.at_edge.losses == []


@pytest_twisted.ensureDeferred
async def test_revoked_between_two_connections(ends: Ends) -> None:
    dialer = ends.dialer()
    connection = await ends.up(dialer)
    accepted = ends.at_hub.connections[0]
    lists = tls_lab.revocation_list(ends.pair.ca, tls_lab.serial(ends.pair.edge_leaf))
    ends.pair.files.authority("ca-with-list", ends.pair.ca, lists=lists)
    ends.pair.files.authority("ca", ends.pair.ca, lists=lists)
    ends.tls.check()
    assert ends.tls.revoked(accepted.transport)
    lost = ends.at_edge.until("lost", reactor)
    accepted.abort("rejected", "its certificate was revoked")
    await lost
    assert connection is ends.at_edge.connections[0]
    failure = await ends.refused(dialer)
    assert "revoked" in failure.detail
    assert "revoked" in ends.listener.__dict__["said"][-1][1]


class PairedHub:
    """A hub whose listener answers `POST /pair`, from nothing but its configuration."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.main = directory / "linkd.toml"
        place = directory / "state" / "pairing"
        self.main.write_text(
            f'[node]\nname = "hub"\nstate_dir = "{directory / "state"}"\n'
            f'[listen]\naddress = "127.0.0.1:0"\ncertificate = "{place / "hub.crt"}"\n'
            f'key = "{place / "hub.key"}"\nclient_ca = "{place / "ca.crt"}"\n'
        )
        self.config = load(files(self.main))
        assert prepare(self.config, time.time)
        assert self.config.listen is not None
        self.tls = ServerTls(self.config.listen, place)
        self.link = Link("hub", "edge-1", 5.0)
        self.nodes = Nodes("hub", {})
        hooks = PairingHooks(lambda: self.config, lambda: self.tls.leaf, self.reload, self.drop)
        self.pairing = PairingServer(hooks, directory / "linkd.d", time.monotonic, time.time)
        posts = {
            path: partial(maybeDeferred, answer) for path, answer in self.pairing.posts.items()
        }
        self.listener = Listener(self.nodes, self.config, reactor, self.tls, posts)
        self.listener.start()

    def reload(self) -> None:
        """As SIGHUP does."""
        self.config = load(files(self.main))
        assert self.config.listen is not None
        assert self.tls.configure(self.config.listen) is None
        self.nodes.peers = {peer.name: (peer, self.link) for peer in self.config.peers}

    def drop(self, name: str) -> None:
        """End that peer's connection."""
        assert name == "edge-1"
        assert self.tls.reload() is None
        self.link.connections[-1].abort("rejected", "its certificate was revoked")


@pytest_twisted.ensureDeferred
async def test_from_nothing_to_up_by_one_code_and_revoked_while_up(tmp_path: Path) -> None:
    began = time.monotonic()
    hub = PairedHub(tmp_path / "hub")
    edge: Config = edge_config(tmp_path / "edge", "edge-1")
    folder = tmp_path / "edge" / "linkd.d"
    code = hub.pairing.invite("edge-1", f"127.0.0.1:{hub.listener.port_number}")
    await deferToThread(join, code, edge, folder).addTimeout(15, reactor)
    peer = load(files(tmp_path / "edge" / "linkd.toml")).peers[0]
    at_edge = Link("edge-1", "hub")
    origin = DialerContext("edge-1", "boot", reactor, threaded_resolver(reactor))
    dialer = LinkDialer(at_edge, peer, origin, 3.0)
    try:
        greeted = at_edge.until("greeted", reactor)
        dialer.dial(0.0)
        await greeted
        assert time.monotonic() - began < 30
        assert hub.link.told == ["greeted"]
        lost = at_edge.until("lost", reactor)
        assert hub.pairing.revoke("edge-1") == 1
        await lost
        failed = at_edge.until("failed", reactor)
        dialer.dial(0.0)
        await failed
        assert at_edge.failures[-1].kind == "rejected"
        assert "revoked" in at_edge.failures[-1].detail
        again = hub.pairing.invite("edge-1", f"127.0.0.1:{hub.listener.port_number}")
        fresh = load(files(tmp_path / "edge" / "linkd.toml"))
        await deferToThread(join, again, fresh, folder).addTimeout(15, reactor)
        greeted = at_edge.until("greeted", reactor)
        dialer.dial(0.0)
        await greeted
    finally:
        dialer.stop()
        end_all(at_edge)
        end_all(hub.link)
        await hub.listener.stop()


@pytest_twisted.ensureDeferred
async def test_another_certificate_of_the_authority_does_not_open_the_door(
    ends: Ends,
) -> None:
    """A peer that is known by its own name can't claim another's."""
    ends.nodes.peers["edge-2"] = (PeerSettings(name="edge-2"), Link("hub", "edge-2", 5.0))
    failure = await ends.refused(ends.dialer(ends.pair.ca.issue_cert("edge-2")))
    assert "no certificate for the name edge-1" in failure.detail


def test_the_settings_are_checked(tmp_path: Path) -> None:
    config = edge_config(tmp_path / "edge", "edge-1")
    with pytest.raises(ConfigError, match="code"):
        join("ABCDE", config, tmp_path / "edge" / "linkd.d")
    assert msgspec.structs.asdict(config.node)["name"] == "edge-1"
