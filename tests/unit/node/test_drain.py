"""A node that drains ends its links in good order, takes none, and returns to them when asked."""

from __future__ import annotations

import msgspec
import pytest

from linkd.config import PeerSettings
from linkd.node.node import MAX_BUSY_SECONDS
from linkd.protocol import peer as wire
from tests.support.fake_net import FakeNet, Kept, one_publish

EDGE = PeerSettings(name="edge", send=("commands",), receive=("orders",))
HUB = PeerSettings(name="hub", dial=("ws://hub/link",), send=("orders",), receive=("commands",))


@pytest.fixture
def net() -> FakeNet:
    """An edge and its hub, linked."""
    net = FakeNet.linked(EDGE, HUB)
    assert net.nodes["hub"].links.summary() == (1, [])
    return net


def goodbyes(net: FakeNet) -> list[wire.Goodbye]:
    messages = [wire.decode(payload) for end in net.ends for payload in end.sent]
    return [message for message in messages if isinstance(message, wire.Goodbye)]


def test_idle_links_end_at_once_with_a_time_to_come_back(net: FakeNet) -> None:
    hub, edge = net.nodes["hub"], net.nodes["edge"]
    assert (hub.drain.status().draining, hub.busy()) == (False, None)
    hub.drain.begin(timeout=10.0, retry_after=1.5)
    status = hub.drain.status()
    assert (status.draining, status.done, status.links, status.owed_records) == (True, True, 0, 0)
    (goodbye,) = goodbyes(net)
    assert (goodbye.reason, goodbye.retry_after) == ("stopped", 1.5)
    assert edge.links.drivers["hub"].dialer.skipped == 1  # type: ignore[union-attr,attr-defined]
    assert edge.links.drivers["hub"].dialer.next_attempt - net.clock.seconds() >= 1.5  # type: ignore[union-attr,operator]
    assert hub.busy() == 1.5
    assert hub.status().draining
    assert any("linkd drain --undo" in warning for warning in hub.status().warnings)


def test_undone_it_takes_and_dials_links_again(net: FakeNet) -> None:
    hub, edge = net.nodes["hub"], net.nodes["edge"]
    for node in (hub, edge):  # the accepting end, and the dialing one
        node.drain.begin(timeout=10.0, retry_after=1.0)
        net.run(3.0)
        assert node.links.drivers[next(iter(node.peers()))].link.state == "stopped"
        node.drain.undo()
        assert (node.busy(), node.status().warnings, node.drain.status().draining) == (
            None,
            [],
            False,
        )
        net.run(5.0)
        assert [each.links.summary() for each in (hub, edge)] == [(1, []), (1, [])]
        node.drain.undo()  # nothing is left to undo
    reasons = [outage.reason for outage in hub.outages("edge")]
    assert set(reasons) == {"stopped"}


def test_links_end_once_both_ends_have_acknowledged_what_was_owed(net: FakeNet) -> None:
    hub, edge = net.nodes["hub"], net.nodes["edge"]
    kept = Kept()
    edge.subscriptions.subscribe(("commands",), "earliest", kept)
    for end in net.ends:
        end.delay = 0.2
    one_publish(hub, "commands", b"one")
    one_publish(edge, "orders", b"two")
    hub.drain.begin(timeout=10.0, retry_after=1.0)
    net.run(0.1)
    status = hub.drain.status()
    assert (status.done, status.links, status.unacknowledged, status.owed_records) == (
        False,
        1,
        1,
        1,
    )
    one_publish(hub, "commands", b"after it began: it waits for the link's return")
    net.run(1.0)
    status = hub.drain.status()
    assert (status.done, status.links) == (True, 0)
    assert 0.3 < (status.seconds or 0.0) < 0.7
    assert kept.bodies[0] == b"one"
    assert edge.links.drivers["hub"].replicator.session.outbound.owed_records == 0
    hub.drain.undo()
    net.run(5.0)
    assert kept.bodies == [b"one", b"after it began: it waits for the link's return"]


def test_an_acknowledgement_that_waits_for_its_turn_goes_ahead_of_the_goodbye(net: FakeNet) -> None:
    hub, edge = net.nodes["hub"], net.nodes["edge"]
    one_publish(edge, "orders", b"one")
    net.run(0.01)
    one_publish(edge, "orders", b"two")
    net.run(0.002)  # it is on the hub's disk; acknowledgements are 20 ms apart
    outbound = edge.links.drivers["hub"].replicator.session.outbound
    assert outbound.owed_records == 1
    hub.drain.begin(timeout=0.0, retry_after=1.0)
    sent = [wire.decode(payload) for end in net.ends for payload in end.sent if not end.dialed]
    assert sent[-2] == wire.Ack(3)
    assert isinstance(sent[-1], wire.Goodbye)


def test_the_time_limit_ends_links_that_acknowledge_nothing(net: FakeNet) -> None:
    hub, edge = net.nodes["hub"], net.nodes["edge"]
    for end in net.ends:
        end.stuck = True
    one_publish(hub, "commands", b"one")
    hub.drain.begin(timeout=10.0, retry_after=1.0)
    net.run(0.5)
    assert not hub.drain.status().done
    hub.drain.begin(timeout=0.5, retry_after=1.0)  # an operator who can't wait
    net.run(0.4)
    assert not hub.drain.status().done
    net.run(0.2)
    status = hub.drain.status()
    assert (status.done, status.owed_records, status.unacknowledged) == (True, 1, 0)
    kept = Kept()
    edge.subscriptions.subscribe(("commands",), "earliest", kept)
    hub.drain.undo()
    net.run(5.0)
    assert kept.bodies == [b"one"]


def test_a_link_that_is_not_up_is_not_waited_for(net: FakeNet) -> None:
    hub = net.nodes["hub"]
    for end in net.ends:
        end.stuck = True
    one_publish(hub, "commands", b"one")
    hub.links.drivers["edge"].diverged("the logs have nothing in common")
    hub.drain.begin(timeout=10.0, retry_after=1.0)
    net.run(0.1)
    assert hub.drain.status().done


def test_undone_before_the_links_have_ended_they_stay_up(net: FakeNet) -> None:
    hub = net.nodes["hub"]
    for end in net.ends:
        end.delay = 0.2
    one_publish(hub, "commands", b"one")
    hub.drain.begin(timeout=10.0, retry_after=1.0)
    hub.drain.undo()
    net.run(3.0)
    assert hub.links.summary() == (1, [])
    assert goodbyes(net) == []


def test_the_longer_it_lasts_the_later_dialers_come(net: FakeNet) -> None:
    hub = net.nodes["hub"]
    hub.drain.begin(timeout=10.0, retry_after=0.5)
    assert hub.busy() == 0.5
    net.clock.rightNow += 20.0
    assert hub.busy() == pytest.approx(5.0)
    net.clock.rightNow += 1000.0
    assert hub.busy() == MAX_BUSY_SECONDS


def test_a_dialer_that_was_upgraded_before_is_refused_with_a_time(net: FakeNet) -> None:
    hub, edge = net.nodes["hub"], net.nodes["edge"]
    hub.drain.begin(timeout=10.0, retry_after=1.5)
    edge.kick("hub")
    net.run(0.1)
    assert goodbyes(net)[-1].reason == "stopped"
    assert goodbyes(net)[-1].retry_after == pytest.approx(1.5)


def test_a_reload_starts_no_link_meanwhile(net: FakeNet) -> None:
    edge = net.nodes["edge"]
    edge.drain.begin(timeout=10.0, retry_after=1.0)
    wider = msgspec.structs.replace(HUB, receive=("commands", "more"))
    edge.reload(msgspec.structs.replace(edge.config, peers=(wider,)))
    net.run(2.0)
    assert edge.links.drivers["hub"].link.state == "stopped"
    edge.drain.undo()
    net.run(2.0)
    assert edge.links.summary() == (1, [])


def test_a_peer_that_a_reload_removes_is_not_waited_for(net: FakeNet) -> None:
    hub = net.nodes["hub"]
    for end in net.ends:
        end.stuck = True
    one_publish(hub, "commands", b"one")
    hub.drain.begin(timeout=10.0, retry_after=1.0)
    hub.reload(msgspec.structs.replace(hub.config, peers=()))
    net.run(0.1)
    assert hub.drain.status().done


def test_a_node_that_stops_polls_no_more(net: FakeNet) -> None:
    hub = net.nodes["hub"]
    for end in net.ends:
        end.stuck = True
    one_publish(hub, "commands", b"one")
    hub.drain.begin(timeout=10.0, retry_after=1.0)
    net.nodes["edge"].stop("the test is over")
    hub.stop("the test is over")
    net.run(1.0)
    assert not hub.drain.status().done


def test_a_peer_that_a_reload_adds_while_links_still_end_is_dialed_after_the_undo(
    net: FakeNet,
) -> None:
    """It stayed stopped for good, and no kick helped."""
    edge = net.nodes["edge"]
    net.node("other", EDGE).start()
    for end in net.ends:
        end.stuck = True
    one_publish(edge, "orders", b"one")
    edge.drain.begin(timeout=30.0, retry_after=1.0)
    other = msgspec.structs.replace(HUB, name="other")
    edge.reload(msgspec.structs.replace(edge.config, peers=(HUB, other)))
    net.run(1.0)
    assert edge.links.drivers["other"].link.state == "stopped"
    edge.drain.undo()
    net.run(0.1)
    assert edge.links.drivers["other"].link.state != "stopped"
    assert edge.links.drivers["hub"].link.state == "up"
