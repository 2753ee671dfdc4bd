"""What a resync would do, in words: every number in them is an offset that makes sense. Two nodes
on a test clock: what is published here arrives there, and what is told is true.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from linkd.config import ApiKey, ChannelSettings, PeerSettings
from linkd.errors import AttemptFailed
from linkd.log.interface import Appended
from linkd.node.node import resync
from linkd.protocol.peer import Ack, decode
from tests.support import figures
from tests.support.fake_net import FakeNet, Kept, one_publish, publish


def told(wanted: int | None, acked: int, next: int, owed: int) -> str:
    cursor = None if wanted is None else SimpleNamespace(log="feed", next=wanted)
    log: Any = SimpleNamespace(next=next, cursor=lambda _peer: cursor)
    outbound = SimpleNamespace(acked=acked, owed_records=owed)
    session = SimpleNamespace(outbound=outbound)
    driver: Any = SimpleNamespace(peer="hub", replicator=SimpleNamespace(session=session))
    said: list[str] = []
    resync("edge", log, driver, confirmed=False).addCallback(said.append)
    return said[0]


def test_nothing_owed_reads_as_such() -> None:
    said = told(wanted=7, acked=11, next=11, owed=0)
    assert "this node has hub's log feed up to offset 6; after a resync" in said
    assert (
        "By this node's notes hub has everything below offset 11 of a log whose next offset is 11"
        " (0 records owed)" in said
    )
    assert said.endswith("run `linkd resync edge` on hub too")


def test_what_never_came_is_not_called_offset_0() -> None:
    for wanted in (None, 1):
        said = told(wanted, acked=1, next=1, owed=0)
        assert said.startswith("this node has nothing of hub's log yet. ")


EDGE = PeerSettings(name="edge", send=("commands.>", "both"), receive=("orders", "both", "now"))
HUB = PeerSettings(
    name="hub", dial=("ws://hub/link",), send=("orders", "both", "now"), receive=(">",)
)


@pytest.fixture
def net() -> FakeNet:
    net = FakeNet()
    volatile = (ChannelSettings(name="now", delivery="volatile", ttl=5.0),)
    net.node("hub", EDGE, channels=volatile)
    net.node("edge", HUB, channels=volatile)
    for node in net.nodes.values():
        node.start()
    return net


def subscribed(net: FakeNet, name: str, *patterns: str, **rest: object) -> Kept:
    kept = Kept()
    net.nodes[name].subscriptions.subscribe(patterns, rest.pop("start", "earliest"), kept, **rest)  # type: ignore[arg-type]
    return kept


def test_a_message_crosses_and_status_tells(net: FakeNet) -> None:
    net.run(0.1)
    kept = subscribed(net, "hub", ">")
    assert one_publish(net.nodes["edge"], "orders", b"one") == 1
    assert one_publish(net.nodes["edge"], "private", b"mine") == 2
    net.run(1.0)
    assert kept.bodies == [b"one"]
    link = net.nodes["edge"].status().links[0]
    assert (link.state, link.backlog_records, link.sent_records) == ("up", 0, 1)
    assert net.nodes["hub"].status().links[0].received_records == 1
    assert net.nodes["edge"].link("hub").replicator.session.outbound.acked == 3


def test_a_cut_and_the_return_lose_nothing(net: FakeNet) -> None:
    net.run(0.1)
    kept = subscribed(net, "hub", "orders")
    for number in range(20):
        one_publish(net.nodes["edge"], "orders", b"%d" % number)
        if number == 5:
            net.cut()
            net.run(0.05)
        if number == 12:
            net.open = True
        net.run(0.2)
    net.run(2.0)
    assert kept.bodies == [b"%d" % number for number in range(20)]
    edge = net.nodes["edge"]
    assert edge.status().links[0].state == "up"
    outage = list(edge.outages("hub"))[-1]
    assert outage.reason == "silence"
    assert outage.replayed_records >= 6
    assert outage.drained_seconds is not None
    assert [e.new for e in edge.events.after(0) if e.peer == "hub"][-1] == "up"


def test_backlog_counts_what_is_owed_and_no_more(net: FakeNet) -> None:
    net.run(0.1)
    net.cut()
    edge = net.nodes["edge"]
    for _ in range(7):
        publish(edge, "orders", b"12345", b"67890")
        publish(edge, "private", b"not for the hub")
    net.run(1.0)
    link = edge.status().links[0]
    assert link.backlog_records == 14
    assert link.backlog_bytes >= 14 * 5
    assert link.backlog_age_seconds == pytest.approx(1.0, abs=0.1)
    net.open = True
    net.run(3.0)
    assert edge.status().links[0].backlog_records == 0
    assert edge.status().links[0].backlog_age_seconds is None


def test_volatile_messages_go_now_or_never(net: FakeNet) -> None:
    here, there = subscribed(net, "edge", "now"), subscribed(net, "hub", "now")
    net.run(0.1)
    outcome = publish(net.nodes["edge"], "now", b"tick")
    net.run(0.1)
    assert outcome == [Appended(0, 1)]
    assert here.volatiles == there.volatiles == [b"tick"]
    net.cut()
    publish(net.nodes["edge"], "now", b"lost")
    net.open = True
    net.run(2.0)
    assert there.volatiles == [b"tick"]
    assert net.nodes["edge"].counts["dropped", "hub"] == 1
    assert net.nodes["edge"].log.next == 1


def test_waiting_for_a_peer_ends_with_its_acknowledgement(net: FakeNet) -> None:
    net.run(0.1)
    edge, fired = net.nodes["edge"], []
    offset = one_publish(edge, "orders", b"x")
    edge.links.wait_for("hub", offset + 1).addCallback(fired.append)
    assert not fired
    net.run(0.1)
    assert fired == [None]
    with pytest.raises(KeyError):
        edge.links.wait_for("nobody", 1)
    assert edge.sends("hub", "orders")
    assert not edge.sends("hub", "private")


def test_a_consumer_gets_again_only_what_it_had_not_acknowledged(net: FakeNet) -> None:
    edge = net.nodes["edge"]
    kept = Kept()
    held = edge.subscriptions.subscribe((">",), "earliest", kept, ("socket", "billing"))
    for number in range(5):
        one_publish(edge, "orders", b"%d" % number)
    net.run(0.1)
    done = []
    held.ack(4, done.append)
    assert done == [None]
    held.close()
    again = Kept()
    second = edge.subscriptions.subscribe((">",), "earliest", again, ("socket", "billing"))
    net.run(0.1)
    assert again.bodies == [b"3", b"4"]
    third = Kept()
    edge.subscriptions.subscribe((">",), "latest", third, ("socket", "billing"))
    net.run(0.1)
    assert again.ended == "replaced"
    assert third.bodies == [b"3", b"4"]
    second.ack(6, done.append)
    assert isinstance(done[-1], LookupError)
    assert edge.status().consumers[0].lag_records == 2


def test_the_absence_of_a_consumer_is_stored_once_a_minute_and_at_the_stop(net: FakeNet) -> None:
    edge, key = net.nodes["edge"], ("socket", "billing")
    edge.subscriptions.subscribe((">",), "latest", Kept(), key).close()

    def idle() -> float:
        found = edge.subscriptions.consumer(key)
        assert found is not None
        return found.idle

    net.run(59.0)
    assert idle() == 0.0
    net.run(2.0)
    assert idle() == pytest.approx(60.0, abs=1.0)
    net.run(30.0)
    edge.stop("test")
    assert idle() == pytest.approx(91.0, abs=1.0)


def test_a_key_that_leaves_the_configuration_leaves_its_consumers(net: FakeNet) -> None:
    edge = net.nodes["edge"]
    old, key = edge.config, ApiKey(name="shop", secret_file="unread")
    api = msgspec.structs.replace(old.api, keys=(key,))
    edge.reload(msgspec.structs.replace(old, api=api))
    edge.subscriptions.subscribe((">",), "latest", Kept(), ("shop", "billing")).close()
    one_publish(edge, "orders", b"1")
    net.run(0.1)
    assert not edge.status().log.losses
    edge.reload(old)
    (said,) = edge.status().log.losses
    assert said.startswith("consumer.orphaned: the key shop is not configured any more")
    assert edge.status(owner="till").log.losses == []
    assert edge.status(owner="shop").log.losses == [said]
    assert [
        event.owner for event in edge.events.after(0) if event.event == "consumer.orphaned"
    ] == ["shop"]


def test_one_owners_events_leave_room_for_those_of_others(net: FakeNet) -> None:
    edge = net.nodes["edge"]
    edge.log_event("error", "log.damaged", detail="a file")
    for number in range(500):
        edge.log_event("error", "consumer.gap", owner="mallory", detail=f"gap {number}")
    edge.log_event("error", "consumer.gap", owner="shop", detail="shop's")
    owners = [event.owner for event in edge.events.after(0) if event.event == "consumer.gap"]
    assert owners == ["mallory"] * 20 + ["shop"]
    losses = edge.status().log.losses
    assert len(losses) == 6
    assert (losses[0], losses[-1]) == ("log.damaged: a file", "consumer.gap: shop's")
    net.run(61.0)
    edge.log_event("error", "consumer.gap", owner="mallory", detail="later")
    assert edge.events.after(0)[-1].detail == "later"


def test_a_slow_reader_is_paused_and_misses_nothing(net: FakeNet) -> None:
    edge = net.nodes["edge"]
    slow = Kept(room=2)
    held = edge.subscriptions.subscribe(("orders",), "earliest", slow)
    net.run(0.01)
    for number in range(10):
        one_publish(edge, "orders", b"%d" % number)
    net.run(1.0)
    assert slow.bodies == [b"0", b"1"]
    slow.room = 100
    held.resume()
    one_publish(edge, "orders", b"10")
    assert slow.bodies == [b"%d" % number for number in range(11)]
    assert slow.offsets == sorted(set(slow.offsets))


def test_expired_records_are_skipped_and_counted(net: FakeNet) -> None:
    net.run(0.1)
    net.cut()
    edge = net.nodes["edge"]
    publish(edge, "orders", b"soon", ttl=1.0)
    publish(edge, "orders", b"later", ttl=60.0)
    net.run(2.0)
    net.open = True
    kept = subscribed(net, "hub", "orders")
    net.run(2.0)
    assert kept.bodies == [b"later"]
    assert edge.counts["expired", "hub"] == 1
    assert edge.status().links[0].backlog_records == 0


def test_a_reload_leaves_untouched_links_up(net: FakeNet) -> None:
    from msgspec.structs import replace

    net.run(0.1)
    edge = net.nodes["edge"]
    generation = edge.link("hub").generation
    edge.reload(replace(edge.config, peers=(HUB, PeerSettings(name="other"))))
    assert edge.link("hub").generation == generation
    assert edge.link("other") is not None
    edge.reload(replace(edge.config, peers=(replace(HUB, required=True),)))
    net.run(2.0)
    assert edge.link("other") is None
    assert edge.link("hub").generation != generation
    assert edge.status().links[0].state == "up"


def test_a_kick_dials_at_once(net: FakeNet) -> None:
    net.run(0.1)
    net.cut("closed")
    net.run(0.01)
    net.open = True
    net.nodes["edge"].kick("hub")
    net.run(0.05)
    assert net.nodes["edge"].status().links[0].state == "up"
    with pytest.raises(KeyError):
        net.nodes["edge"].kick("nobody")


def test_a_stop_says_goodbye_and_the_peer_shows_it(net: FakeNet) -> None:
    net.run(0.1)
    stopped = []
    net.nodes["edge"].stop("the daemon stops").addCallback(stopped.append)
    net.run(0.1)
    assert stopped == [None]
    link = net.nodes["hub"].status().links[0]
    assert (link.state, link.reason) == ("waiting", "stopped")


def test_what_is_not_taken_is_left_out_and_counted(net: FakeNet) -> None:
    net.run(0.1)
    edge, hub = net.nodes["edge"], net.nodes["hub"]
    edge.link(
        "hub"
    ).replicator.session.outbound.wants = None  # a peer that sends what it should not
    edge.link("hub").replicator.session.outbound._settings = edge.link(
        "hub"
    ).replicator.session.settings.__class__(
        node="edge",
        peer="hub",
        send=hub.link("edge").replicator.session.settings.receive.__class__((">",)),
        receive=edge.link("hub").replicator.session.settings.receive,
    )
    edge.dispatcher.changed()
    one_publish(edge, "private", b"secret")
    edge.link("hub").replicator.offer(edge.log.read(1, 1 << 20), edge.log.next)
    one_publish(edge, "orders", b"fine")
    kept = subscribed(net, "hub", ">")
    net.run(1.0)
    assert kept.bodies == [b"fine"]
    assert hub.counts["refused", "edge"] == 1


def test_a_broken_step_aborts_the_connection(net: FakeNet) -> None:
    net.run(0.1)
    edge = net.nodes["edge"]
    one_publish(edge, "orders", b"x")
    net.run(0.1)
    hub_link = net.nodes["hub"].link("edge")
    connection = hub_link.connection
    assert connection is not None
    step = next(p for p in connection.other.sent if decode(p).__class__.__name__ == "BatchMessage")
    hub_link.received(connection, decode(step))  # again: not where the cursor stands
    assert connection.ended
    net.run(2.0)
    assert edge.status().links[0].state == "up"


def test_ten_minutes_without_a_path_and_back_within_a_moment(net: FakeNet) -> None:
    net.run(0.1)
    edge = net.nodes["edge"]
    back = []
    for down in (8.0, 30.0, 600.0):
        net.cut()
        for _ in range(int(down * 100)):
            net.clock.advance(0.01)
        one_publish(edge, "orders", b"%d" % int(down))
        net.open = True
        waited = 0.0
        while edge.status().links[0].state != "up":
            net.clock.advance(0.01)
            waited += 0.01
            assert waited < 3.0
        back.append(waited)
        net.run(1.0)
    assert max(back) <= 0.65  # an unreachable peer is dialed every 0.5 s ± 20 %, however long
    attempts = list(edge.outages("hub"))[-1].attempts
    assert 900 <= attempts <= 1600
    figures.tell(
        f"10 min without a path: {attempts} attempts, up {back[-1]:.2f} s after it is back"
    )


def test_a_drill_stands_among_the_events(net: FakeNet) -> None:
    net.run(0.1)
    edge = net.nodes["edge"]
    last = edge.events.after(0)[-1].number
    edge.drill_began("hub", "blackhole", 30.0)
    edge.drill_ended("hub", "blackhole", "pass")
    edge.drill_ended("hub", "reset", None)
    assert [(e.event, e.peer, e.detail) for e in edge.events.after(last)] == [
        ("drill.started", "hub", "blackhole for 30 s, made on purpose"),
        ("drill.ended", "hub", "blackhole: pass"),
        ("drill.ended", "hub", "reset: broken off"),
    ]
    for told in (edge.drill_began, edge.drill_ended):
        with pytest.raises(KeyError):
            told("nobody", "reset", None)
    assert edge.status().log.losses == []


def test_the_first_ack_goes_at_once_and_those_of_a_stream_are_few(
    net: FakeNet,
) -> None:
    net.run(0.1)
    edge, hub = net.nodes["edge"], net.nodes["hub"]
    (listening,) = [end for end in net.ends if end.driver.peer == "edge"]

    def acks() -> list[int]:
        return [message.next for message in map(decode, listening.sent) if type(message) is Ack]

    listening.sent.clear()
    offset = one_publish(edge, "orders", b"alone")
    net.run(0.002)
    assert acks() == [offset + 1]
    for _ in range(100):
        one_publish(edge, "orders", b"of many")
        net.run(0.001)
    net.run(0.03)
    assert 5 <= len(acks()) <= 8  # 100 ms of them, 20 ms apart
    assert acks()[-1] == offset + 101 == hub.log.cursor("edge").committed
    assert edge.link("hub").replicator.session.outbound.acked == offset + 101
    listening.sent.clear()
    publish(edge, "orders", *[bytes(400_000)] * 12)
    net.run(0.015)
    assert len(acks()) >= 3  # much does not wait
    net.run(0.05)
    assert acks()[-1] == offset + 113


def test_standing_warnings_are_in_the_status_while_they_last() -> None:
    node = FakeNet().node("hub")
    assert node.status().warnings == []
    node.warnings["x"] = "something lasts"
    assert node.status().warnings == ["something lasts"]
    del node.warnings["x"]
    assert node.status().warnings == []


def test_a_clock_that_is_set_wakes_those_that_wait_for_a_certificates_date() -> None:
    net = FakeNet()
    dials: list[tuple[str, float]] = []

    def peer(name: str) -> PeerSettings:
        return PeerSettings(name=name, dial=("ws://x/link",), secret_file="s")

    node = net.node("edge", peer("dated"), peer("wrong"), peer("lost"))
    net.open = False
    node.start()
    net.clock.advance(0.01)
    for name, kind, reason in (
        ("dated", "rejected", "tls"),
        ("wrong", "rejected", "rejected"),
        ("lost", "busy", "busy"),
    ):
        driver = node.link(name)
        assert driver is not None
        driver.attempting("ws://x/link", None)
        driver.failed(AttemptFailed(kind, reason, "not valid yet", 50.0))  # type: ignore[arg-type]
        driver.dialer.dial = (  # type: ignore[method-assign,union-attr]
            lambda after, name=name: dials.append((name, after))
        )
    node.links.clock_set()
    assert dials == [("dated", 0.0)]
