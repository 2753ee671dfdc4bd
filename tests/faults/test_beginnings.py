"""Peers that are absent, elsewhere, rude or endless: attempts go on, bounded, and none spins."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from linkd.drill.testbed import Relay
from tests.support import figures
from tests.support.daemon import Daemon, listen, peer
from tests.support.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]

Start = Callable[..., Daemon]


def test_a_peer_that_is_absent_at_boot(lab: Lab, daemons: Start) -> None:
    """The dialer starts first and says READY; the link comes up soon after the hub does."""
    hub_host, edge_host = lab.host("hub"), lab.host("edge")
    edge = daemons("edge", peer("hub", f"ws://{hub_host.address}:9443/link"), edge_host)
    time.sleep(4.0)
    link = edge.link("hub")
    assert link["state"] != "up"
    assert link["reason"] == "refused"
    assert 2 <= link["attempts"] <= 12
    daemons("hub", listen() + peer("edge"), hub_host)
    ready = time.monotonic()
    waited = edge.wait_up("hub", 9.0) - ready
    figures.tell(f"absent at boot for 4 s, refused: up {waited:.2f} s after READY")


def test_a_name_that_is_unknown_then_wrong_then_right(lab: Lab, daemons: Start) -> None:
    """Names are looked up afresh for every attempt; no restart is needed."""
    hub_host, edge_host = lab.host("hub"), lab.host("edge")
    nobody = lab.host("nobody")
    hub = daemons("hub", listen() + peer("edge"), hub_host)
    edge = daemons("edge", peer("hub", "ws://hub.example.net:9443/link"), edge_host)
    edge.wait_line(10.0, peer="hub", reason="dns")
    assert edge.link("hub")["reason"] == "dns"
    edge_host.names({"hub.example.net": nobody.address})
    edge.wait_line(20.0, peer="hub", reason="refused")
    edge_host.names({"hub.example.net": hub_host.address})
    changed = time.monotonic()
    waited = edge.wait_up("hub", 15.0) - changed
    figures.tell(f"name with a new address: up {waited:.2f} s after the change")

    # The hub moves: its old address is silent, the name means another one.
    with lab.cut(hub_host, edge_host):
        edge.wait_line(12.0, changed, peer="hub", old="up")
        hub.stop()
        daemons("hub", listen() + peer("edge"), nobody)
        edge_host.names({"hub.example.net": nobody.address})
        moved = time.monotonic()
        waited = edge.wait_up("hub", 10.0) - moved
    figures.tell(f"hub moved to another address: up {waited:.2f} s after the name changed")


def test_ipv6_alone_and_a_first_url_that_is_dead(lab: Lab, daemons: Start) -> None:
    """All configured URLs are tried in turn, and addresses of both families."""
    hub_host, edge_host, dead = lab.host("hub"), lab.host("edge"), lab.host("dead")
    daemons("hub", listen(address="::") + peer("edge"), hub_host)
    edge_host.names({"hub6.example.net": hub_host.address6})
    dead.drop(edge_host.address)
    begun = time.monotonic()
    urls = [f"ws://{dead.address}:9443/link", "ws://hub6.example.net:9443/link"]
    edge = daemons("edge", peer("hub", *urls), edge_host)
    waited = edge.wait_up("hub", 15.0) - begun
    assert hub_host.address6.replace("0:0:", "") in edge.link("hub")["address"].replace("0:0:", "")
    figures.tell(f"first URL dead, second IPv6 by name: up {waited:.2f} s after the start")


@pytest.fixture
def relayed(lab: Lab, daemons: Start) -> tuple[Relay, Daemon]:
    """Return a relay in front of a hub, and an edge that is up through it."""
    host = lab.host("both")
    daemons("hub", listen(9443, "127.0.0.1") + peer("edge"), host)
    relay = Relay(("127.0.0.1", 9443), host.prefix)
    edge = daemons("edge", peer("hub", f"ws://127.0.0.1:{relay.port}/link"), host)
    edge.wait_up("hub", 15.0)
    return relay, edge


def attempts(relay: Relay, since: float) -> list[float]:
    """Return when the relay was dialed after a time, in seconds since then."""
    return [at - since for at in relay.order()["accepted"] if at > since]


def test_a_reset_connection_is_redialed_soon(relayed: tuple[Relay, Daemon]) -> None:
    relay, edge = relayed
    with relay:
        for _ in range(3):
            time.sleep(5.2)
            reset = time.monotonic()
            relay.order(reset=True)
            line = edge.wait_line(2.0, reset, peer="hub", old="up")
            assert line.fields["reason"] == "closed"
            waited = edge.wait_line(5.0, reset, peer="hub", event="link.up").at - reset
            assert waited <= 1.6
            figures.tell(f"reset: up again after {waited:.2f} s")


@pytest.mark.parametrize(("mode", "least", "most"), [("close", 3, 14), ("refuse", 25, 52)])
def test_a_peer_that_closes_is_tried_ever_more_rarely_and_one_that_refuses_at_a_steady_pace(
    relayed: tuple[Relay, Daemon], mode: str, least: int, most: int
) -> None:
    """A host that refuses is there: its linkd starts again, and takes calls at once."""
    relay, edge = relayed
    with relay:
        time.sleep(5.2)
        begun = time.monotonic()
        if mode == "close":
            relay.order(closing=True, reset=True)
        else:
            relay.reject()
        time.sleep(20.0)
        count = edge.link("hub")["attempts"]
        assert least <= count <= most, count
        if mode == "close":
            times = attempts(relay, begun)
            gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
            assert max(gaps) <= 15.5
            assert abs(len(times) - count) <= 1
        healed = time.monotonic()
        relay.heal()
        waited = edge.wait_up("hub", 17.0 if mode == "close" else 2.0) - healed
        figures.tell(f"{mode}: {count} attempts in 20 s; up {waited:.2f} s after it was mended")


def test_a_peer_that_never_finishes_the_handshake(relayed: tuple[Relay, Daemon]) -> None:
    """No attempt takes longer than `connect_timeout`."""
    relay, edge = relayed
    with relay:
        time.sleep(5.2)
        begun = time.monotonic()
        relay.block("both")
        relay.order(reset=True)
        time.sleep(18.0)
        times = attempts(relay, begun)
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert 3 <= len(times) <= 5, times
        assert max(gaps) <= 5.0 + 2.5, gaps
        assert min(gaps) >= 4.5, gaps
        healed = time.monotonic()
        relay.heal()
        waited = edge.wait_up("hub", 10.0) - healed
        figures.tell(f"endless handshake: {len(times)} attempts in 18 s; up {waited:.2f} s later")


def test_a_dialer_that_fails_twice_at_first(lab: Lab, daemons: Start) -> None:
    host = lab.host("both")
    daemons("hub", listen(9443, "127.0.0.1") + peer("edge"), host)
    with Relay(("127.0.0.1", 9443), host.prefix) as relay:
        relay.order(closing=True)
        edge = daemons("edge", peer("hub", f"ws://127.0.0.1:{relay.port}/link"), host)
        end = time.monotonic() + 10.0
        while len(relay.order()["accepted"]) < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        mended = time.monotonic()
        relay.heal()
        waited = edge.wait_up("hub", 5.0) - mended
    figures.tell(f"twice failing at first: up {waited:.2f} s after it was mended")
