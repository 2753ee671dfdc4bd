"""A hub and its edges over a hundred years: real certificates and OpenSSL, a clock of ours."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from linkd import events
from linkd.config import Config, PeerSettings, files, load
from linkd.config.addresses import Url
from linkd.errors import LinkdError
from linkd.net.certificates import load_certificates
from linkd.net.tls import ServerTls, client_context
from linkd.pairing import client as joining
from linkd.pairing.ca import DIRECTORY, prepare
from linkd.pairing.client import HubUnreachable, join, renew_if_due
from linkd.pairing.messages import PairingHooks
from linkd.pairing.server import PairingServer

DAY = 86_400.0
START = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
STEP_DAYS = 100
YEARS = 100


class Transport:
    """What TLS asks of a connection."""

    factory = SimpleNamespace(wrappedFactory=None)


class Host:
    """A node with a configuration, a state directory and a wall clock of the test's."""

    def __init__(self, directory: Path, name: str, world: World, more: str = "") -> None:
        directory.mkdir()
        self.name = name
        self.world = world
        self.main = directory / "linkd.toml"
        self.state = directory / "state"
        self.state.mkdir()
        self.main.write_text(f'[node]\nname = "{name}"\nstate_dir = "{self.state}"\n{more}')
        self.config = self.load()

    def load(self) -> Config:
        """Read the configuration, as a start or a reload does."""
        self.config = load(files(self.main))
        return self.config


class Hub(Host):
    """The hub: its daemon's pairing and the listener's side of TLS."""

    def __init__(self, directory: Path, world: World) -> None:
        place = directory / "state" / DIRECTORY
        super().__init__(
            directory,
            "hub",
            world,
            f'[listen]\naddress = "127.0.0.1:9443"\ncertificate = "{place / "hub.crt"}"\n'
            f'key = "{place / "hub.key"}"\nclient_ca = "{place / "ca.crt"}"\n',
        )
        self.place = place
        self.start()

    def start(self) -> None:
        """Start the daemon."""
        wall = self.world.wall
        prepare(self.load(), wall)
        hooks = PairingHooks(lambda: self.config, lambda: self.tls.leaf, self.load, lambda _: None)
        folder = self.main.parent / "linkd.d"
        self.pairing = PairingServer(hooks, folder, lambda: self.world.now, wall)
        self.pairing.open()
        assert self.config.listen is not None
        self.tls = ServerTls(self.config.listen, self.place, wall, lambda: self.pairing.revoked)
        self.hourly()

    def hourly(self) -> None:
        """Do what the daemon does each hour, and what it does within seconds after that."""
        self.pairing.renew_own()
        self.tls.check()
        assert self.pairing.warning() is None

    def handshake(self, tls: Any) -> str | None:
        """Shake hands with a dialer; return why that fails."""
        at = datetime.fromtimestamp(self.world.now, UTC)
        assert self.tls.reload() is None  # a new store: OpenSSL sets the time of one only once
        transport, mine = Transport(), Transport()
        for options in (self.tls._options, tls._options):
            store = options.getContext().get_cert_store()
            assert store is not None
            store.set_time(at)
        server = self.tls.serverConnectionForTLS(transport)  # type: ignore[arg-type]
        client = tls.clientConnectionForTLS(mine)
        server.set_accept_state()
        client.set_connect_state()
        waiting = {client, server}
        while waiting:
            for end, other in ((client, server), (server, client)):
                try:
                    end.do_handshake()
                    waiting.discard(end)
                except SSL.WantReadError:
                    pass
                except SSL.Error as error:
                    if end is server:
                        return self._alerted(client, server, tls)
                    return str(tls.explain(error))
                with suppress(SSL.WantReadError):
                    other.bio_write(end.bio_read(65_536))
        return None

    def _alerted(self, client: SSL.Connection, server: SSL.Connection, tls: Any) -> str:
        """Return what the dialer makes of the listener's alert."""
        client.bio_write(server.bio_read(65_536))
        try:
            client.recv(1)
        except SSL.Error as error:
            return str(tls.explain(error))
        raise AssertionError("no alert came")


class Edge(Host):
    """A node that dials the hub."""

    def dial(self, hub: Hub) -> str | None:
        """Dial the hub as the link does; return why that fails."""
        peer = self.config.peers[0]
        return hub.handshake(client_context(peer, "127.0.0.1"))

    def hourly(self) -> str | None:
        """Renew what ends soon; return why that fails."""
        peer = self.config.peers[0]
        try:
            renew_if_due(peer, self.state, self.world.now, self.world.warned)
        except LinkdError as error:
            return str(error)
        return None

    def pair(self, hub: Hub) -> None:
        """Do what the messages ask for."""
        code = hub.pairing.invite(self.name, "127.0.0.1")
        join(code, self.config, self.main.parent / "linkd.d")
        self.load()

    def leaf_ends(self) -> float:
        """Return when this node's certificate ends."""
        certificate = self.config.peers[0].certificate
        assert certificate is not None
        return load_certificates(certificate)[0].not_valid_after_utc.timestamp()


class World:
    """The clock of all hosts, and the line between them."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, edges: int) -> None:
        self.now = START
        self.warnings = 0
        self.successors = 0
        self.hub_is_on = True
        self.logged: list[tuple[str, str]] = []
        monkeypatch.setattr(os, "fsync", lambda _: None)  # a thousand of them take their time
        monkeypatch.setattr(joining, "wall", self.wall)
        monkeypatch.setattr(joining, "_exchange", self.exchange)
        monkeypatch.setattr(joining, "_client_context", lambda anchor: anchor)
        monkeypatch.setattr(events, "emit", self.emit)
        self.hub = Hub(directory / "hub", self)
        self.edges = [Edge(directory / f"edge-{n}", f"edge-{n}", self) for n in range(edges)]
        for edge in self.edges:
            edge.pair(self.hub)

    def wall(self) -> float:
        """Return the Unix seconds of all clocks."""
        return self.now

    def emit(self, event: str, *_: object, **fields: object) -> None:
        """Count what is logged."""
        self.successors += event == "pairing.successor"
        self.logged.append((event, str(fields.get("detail"))))
        assert event != "pairing.list-not-written", fields

    def warned(self, peer: object, left: float) -> None:
        """Count warnings of an authority that ends."""
        self.warnings += 1

    def exchange(
        self, url: Url, trusting: Any, ask: Callable[[bytes], Any], answer: Any, proxy: Any
    ) -> tuple[Any, bytes]:
        """Post to the hub as `joining` does, over a verified handshake where it verifies."""
        if not self.hub_is_on or trusting is None:
            raise HubUnreachable("hub does not answer")
        leaf = self.hub.tls.leaf.public_bytes(serialization.Encoding.DER)
        if isinstance(trusting, str):
            trusted = self.hub.main.parent / "trusted.pem"
            trusted.write_text(trusting)
            peer = PeerSettings(name="hub", ca=str(trusted))
            failure = self.hub.handshake(client_context(peer, url.host))
            if failure is not None:
                raise joining.PairingRefused(failure)
        body = msgspec.json.encode(ask(leaf))
        self.now += 10.0
        status, content = self.hub.pairing.post(body, "192.0.2.7", self.now)
        return joining._decode_reply(status, content, answer), leaf


REMEDY = "pair again"


def test_a_hundred_years(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One edge is always on, the other is off for up to 400 days, and so is the hub.

    All links come back by themselves: no file is touched by hand, no code is typed.
    """
    world = World(tmp_path, monkeypatch, edges=2)
    chance = random.Random(7)
    often = {"hub": 0.05, "edge-1": 0.15}
    off = dict.fromkeys(often, 0)
    renewed_late = up = 0
    for _ in range(YEARS * 365 // STEP_DAYS):
        world.now += STEP_DAYS * DAY
        for name, left in off.items():
            away = chance.randint(1, 4) if chance.random() < often[name] else 0
            off[name] = left - 1 if left else away
        was_on, world.hub_is_on = world.hub_is_on, not off["hub"]
        if not world.hub_is_on:
            continue
        world.hub.hourly() if was_on else world.hub.start()
        for edge in world.edges:
            if off.get(edge.name):
                continue
            renewed_late += edge.leaf_ends() <= world.now
            assert edge.hourly() is None
            assert edge.dial(world.hub) is None
            up += 1
    assert world.successors >= 12
    assert up > 300
    assert renewed_late > 10


@pytest.mark.parametrize("days", [365 + 731, 2000, 4200])
def test_a_node_that_was_away_for_too_long_reads_the_remedy_on_both_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """After two years in which its certificate was not valid; or the authority has changed."""
    world = World(tmp_path, monkeypatch, edges=1)
    (edge,) = world.edges
    for _ in range(days // STEP_DAYS):
        world.now += STEP_DAYS * DAY
        world.hub.hourly()
    world.now += days % STEP_DAYS * DAY
    refused = world.logged
    refused.clear()
    assert REMEDY in (edge.hourly() or "")
    assert REMEDY in (edge.dial(world.hub) or "")
    if days < 3650 - 365:  # later it does not trust the hub, which therefore hears nothing of it
        (detail,) = [detail for event, detail in refused if event == "pairing.refused"]
        assert REMEDY in detail
    edge.pair(world.hub)
    assert edge.dial(world.hub) is None


def test_an_edge_that_is_in_touch_never_loses_its_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, edges=1)
    (edge,) = world.edges
    for _ in range(50 * 365 // STEP_DAYS):
        world.now += STEP_DAYS * DAY
        world.hub.hourly()
        assert edge.hourly() is None
        assert edge.dial(world.hub) is None
    assert world.warnings == 0
    assert world.successors >= 6


def test_the_hub_changes_over_a_year_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, edges=1)
    (edge,) = world.edges
    place = world.hub.place
    first = load_certificates(place / "ca.crt")[0]
    signed_by, trusted, leaves = [], [], []
    for _ in range(3700 // STEP_DAYS):
        world.now += STEP_DAYS * DAY
        world.hub.hourly()
        assert edge.hourly() is None
        peer = edge.config.peers[0]
        assert peer.ca is not None
        assert peer.certificate is not None
        left = (first.not_valid_after_utc.timestamp() - world.now) / DAY
        if load_certificates(place / "hub.crt")[1] == first:
            signed_by.append(left)
        if load_certificates(peer.ca) == [first]:
            trusted.append(left)
        if load_certificates(peer.certificate)[0].issuer == first.subject:
            leaves.append(left)
    assert 365 <= signed_by[-1] < 365 + STEP_DAYS
    assert 730 < trusted[-1] < 1095, "the edge knows the successor before anybody warns"
    assert 730 < leaves[-1] < 1095
    assert [
        x509.load_pem_x509_certificate(each.encode())
        for each in world.hub.pairing._authorities(world.hub.tls.leaf)
    ] == load_certificates(place / "ca.crt")[1:]


def test_authorities_that_did_not_sign_the_hub_are_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, edges=1)
    (edge,) = world.edges
    peer = edge.config.peers[0]
    assert peer.ca is not None
    before = Path(peer.ca).read_text()
    (tmp_path / "other").mkdir()
    other = Hub(tmp_path / "other" / "hub", world)
    foreign = other.pairing._authorities(other.tls.leaf)
    monkeypatch.setattr(world.hub.pairing, "_authorities", lambda _: foreign)
    world.now += 300 * DAY
    world.hub.hourly()
    assert "no authority that has signed its own certificate" in (edge.hourly() or "")
    assert Path(peer.ca).read_text() == before


def test_a_clock_that_was_years_ahead_for_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hub signed meanwhile begins in eleven years, and replaces nothing until then."""
    world = World(tmp_path, monkeypatch, edges=1)
    (edge,) = world.edges
    right, world.now = world.now, world.now + 11 * 365 * DAY
    world.hub.hourly()
    assert world.successors == 1
    world.now = right + DAY / 24
    world.hub.hourly()
    assert edge.dial(world.hub) is None
    for _ in range(12 * 365 // STEP_DAYS):
        world.now += STEP_DAYS * DAY
        world.hub.hourly()
        assert edge.hourly() is None
        assert edge.dial(world.hub) is None
    assert world.successors == 2
