"""Any instance shows the whole node, and never as up what it cannot know."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock

from linkd.config import Config, NodeSettings, PeerSettings
from linkd.config.settings import ApiSettings, ClusterSettings
from linkd.errors import LinkdError
from linkd.log.interface import PeerCursor
from linkd.log.state import PeerHeld
from linkd.node import LinkDriver, Node, Stores
from linkd.node.instances import (
    INSTANCE,
    SILENT_SECONDS,
    decode_note,
    differences,
    peers_checksum,
)
from linkd.node.links import KEPT_SECONDS
from linkd.node.outages import Outages
from linkd.node.subscriptions import READER
from linkd.status import LinkStatus
from tests.support.fake_net import FakeDialer, FakeNet, Kept, publish
from tests.support.memory_log import MemoryLog
from tests.support.shared_store import SharedStores

EDGE = PeerSettings(name="edge", send=("commands",), receive=("orders",), required=True)
HUB = PeerSettings(name="hub", dial=("ws://hub/link",), send=("orders",), receive=("commands",))
SAT = PeerSettings(name="sat", dial=("ws://sat/link",), send=("commands",), receive=("orders",))
FAR = PeerSettings(name="sat", send=("commands",), receive=("orders",))


class Cluster:
    """Instances of the node `hub` on one test clock, and an edge that a test moves between them."""

    def __init__(self) -> None:
        self.net = FakeNet()
        self.clock: Clock = self.net.clock
        self.shared = SharedStores()
        self.hubs: dict[str, Node] = {}
        self.edge = self.net.node("edge", HUB)
        self.counter = 0
        self.edge.start()
        self.edge.links.drivers["hub"].stop("the test")

    def start(self, name: str, *peers: PeerSettings, keeper: bool = False, **api: Any) -> Node:
        """Start an instance."""
        config = Config(
            node=NodeSettings(name="hub"),
            cluster=ClusterSettings(instance=name),
            peers=peers or (EDGE,),
            api=ApiSettings(**api),
        )
        store = self.shared.open()
        log = MemoryLog("hub", Random(5), clock=self.clock.seconds)
        log.is_keeper = keeper

        def dialer(node: Node, driver: LinkDriver) -> FakeDialer:
            self.net.boots[driver] = f"boot-{name}"
            return FakeDialer(self.net, driver)

        made = Node(config, Stores(log, store, Outages(store)), self.clock, dialer, Random(2))
        self.hubs[name] = made
        made.start()
        return made

    def connect(self, name: str) -> None:
        """Let the edge connect to an instance: all know that by the log."""
        self.counter += 1
        hub, driver = self.hubs[name], self.edge.links.drivers["hub"]
        for other in self.hubs.values():
            link = other.links.drivers["edge"]
            if other is not hub and link.connection is not None:
                link.connection.abort("replaced", "another instance has it")
            other.log.state.holders["edge"] = PeerHeld("edge", f"{name}/run", "b", self.counter)
        self.net.nodes["hub"] = hub
        self.net.boots[driver] = "boot-edge"
        driver.start()
        self.net.run(3.5)
        assert hub.links.drivers["edge"].link.state == "up"

    def kill(self, name: str) -> None:
        """Let an instance write nothing any more, with what it wrote as it is."""
        hub = self.hubs[name]
        hub._tick.stop()
        self.net.cut()
        self.edge.links.drivers["hub"].stop("the test")

    def link(self, name: str, peer: str = "edge") -> LinkStatus:
        """Return a link as an instance shows it."""
        found = self.hubs[name].link_status(peer)
        assert found is not None
        return found

    def states(self, name: str) -> dict[str, str]:
        """Return the states of all instances as one of them shows them."""
        instances = self.hubs[name].instances
        assert instances is not None
        return {one.instance: one.state for one in instances.statuses()}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_a_link_that_is_up_elsewhere_is_shown_up_there(cluster: Cluster) -> None:
    for name in "abc":
        cluster.start(name)
    assert cluster.hubs["a"].links.summary() == (0, ["edge"])
    cluster.connect("b")
    assert cluster.hubs["a"].links.summary() == (1, [])
    here = cluster.link("b")
    for name in "ac":
        there = cluster.link(name)
        assert (there.state, there.instance, there.address) == ("up", "b", "192.0.2.1:9443")
        assert (there.generation, there.rtt_seconds) == (here.generation, here.rtt_seconds)
        assert there.down_since is None
        assert abs(there.since_seconds - here.since_seconds) < 0.01
    assert here.instance == "b"
    assert cluster.hubs["a"].status().instance == "a"
    cluster.net.run(10.0)
    assert abs(cluster.link("a").since_seconds - cluster.link("b").since_seconds) < 0.01


def test_a_link_that_moves_is_shown_where_it_is_now(cluster: Cluster) -> None:
    for name in "abc":
        cluster.start(name)
    cluster.connect("a")
    cluster.edge.links.drivers["hub"].stop("the test")
    cluster.connect("b")
    cluster.net.run(1.0)
    assert [cluster.link(name).instance for name in "abc"] == ["b", "b", "b"]
    assert {cluster.link(name).state for name in "abc"} == {"up"}


def test_links_of_a_silent_instance_are_unknown_and_never_up(cluster: Cluster) -> None:
    for name in "abc":
        cluster.start(name)
    cluster.connect("b")
    cluster.net.run(1.0)
    wrote = cluster.clock.seconds()
    cluster.kill("b")
    while cluster.clock.seconds() - wrote < SILENT_SECONDS - 5.5:
        assert cluster.link("a").state == "up"
        cluster.net.run(0.5)
    cluster.net.run(SILENT_SECONDS)
    link = cluster.link("a")
    assert (link.state, link.instance, link.address) == ("unknown", "b", None)
    assert "the instance b has written nothing since" in (link.detail or "")
    assert link.since_seconds > SILENT_SECONDS
    assert cluster.states("a") == {"a": "up", "b": "silent", "c": "up"}
    (warning,) = cluster.hubs["a"].status().warnings
    assert warning.startswith("the instance b is silent since ")
    assert [each.event for each in cluster.hubs["a"].events.after(0)].count("instance.silent") == 1
    cluster.net.open = True
    cluster.connect("c")
    assert [cluster.link(name).instance for name in "ac"] == ["c", "c"]
    assert {cluster.link(name).state for name in "ac"} == {"up"}


def test_an_instance_that_is_back_is_shown_as_before(cluster: Cluster) -> None:
    cluster.start("a")
    b = cluster.start("b")
    b._tick.stop()
    cluster.net.run(SILENT_SECONDS + 1.0)
    assert cluster.states("a")["b"] == "silent"
    b._tick.start(0.25, now=False)
    cluster.net.run(1.5)
    assert cluster.states("a")["b"] == "up"
    assert cluster.hubs["a"].status().warnings == []
    found = [each.event for each in cluster.hubs["a"].events.after(0)]
    names = [event for event in found if event.startswith("instance.")]
    assert names == ["instance.seen", "instance.silent", "instance.seen"]
    assert {each.instance for each in cluster.hubs["a"].events.after(0)} == {"a"}


def test_what_was_written_before_the_start_counts_only_once_it_is_written_again(
    cluster: Cluster,
) -> None:
    cluster.start("a")
    cluster.connect("a")
    cluster.net.run(1.0)
    (store,) = cluster.shared.stores
    cluster.shared.away.add(store)
    late = cluster.start("c")
    assert cluster.link("c").state == "unknown"
    assert late.instances is not None
    assert [one.seen_seconds for one in late.instances.statuses()] == [None, 0.0]
    cluster.shared.away.clear()
    cluster.net.run(5.0)
    assert (cluster.link("c").state, cluster.link("c").instance) == ("up", "a")
    # One that is there answers at once.
    cluster.start("d")
    assert (cluster.link("d").state, cluster.link("d").instance) == ("up", "a")


def test_a_stopped_instance_has_no_links_and_no_warning(cluster: Cluster) -> None:
    for name in "ab":
        cluster.start(name)
    cluster.connect("b")
    cluster.edge.links.drivers["hub"].stop("the test")
    cluster.hubs["b"].stop("the test")
    cluster.net.run(SILENT_SECONDS + 6.0)
    assert cluster.states("a") == {"a": "up", "b": "stopped"}
    assert (cluster.link("a").state, cluster.link("a").instance) == ("waiting", None)
    assert cluster.hubs["a"].status().warnings == []
    assert cluster.hubs["a"].events.after(0)[-1].event == "instance.stopped"
    cluster.start("b")
    assert cluster.hubs["a"].events.after(0)[-1].event == "instance.seen"


def test_a_link_that_is_down_is_shown_as_the_instance_sees_it_that_had_it(
    cluster: Cluster,
) -> None:
    for name in "ab":
        cluster.start(name)
    cluster.connect("b")
    cluster.edge.links.drivers["hub"].stop("the edge rests")
    cluster.net.run(3.0)
    here, there = cluster.link("b"), cluster.link("a")
    assert (there.state, there.instance, there.reason) == ("waiting", "b", here.reason)
    assert there.down_since == here.down_since is not None
    assert abs(there.since_seconds - here.since_seconds) < 0.01
    assert there.down_seconds == there.since_seconds
    assert abs((there.last_heard_seconds or 0.0) - (here.last_heard_seconds or 9.0)) < 0.01


def test_a_dialed_link_is_shown_as_the_instance_sees_it_that_dials(cluster: Cluster) -> None:
    cluster.net.open = False
    cluster.start("a", SAT, keeper=True)
    b = cluster.start("b", SAT)
    b.links.drivers["sat"].stop("the other one dials")
    cluster.net.run(3.0)
    assert cluster.link("b", "sat").instance == "a"
    assert cluster.link("b", "sat").state != "stopped"
    assert cluster.link("b", "sat").attempts > 0
    assert cluster.link("b", "sat").attempt_reason == "unreachable"


def test_of_two_claims_the_newer_one_counts(cluster: Cluster) -> None:
    for name in "abc":
        cluster.start(name)
    cluster.connect("a")
    old = cluster.hubs["a"]
    cluster.net.run(6.0)
    note = decode_note(cluster.shared.stores[0].shared(INSTANCE)["a"])
    assert note.notes[0].state == "up"
    old._tick.stop()
    cluster.edge.links.drivers["hub"].stop("the test")
    cluster.connect("b")
    assert cluster.link("c").instance == "b"


def test_an_instance_without_a_known_holder_is_believed_by_what_it_wrote(cluster: Cluster) -> None:
    for name in "ab":
        cluster.start(name)
    cluster.connect("b")
    cluster.net.run(1.0)
    cluster.kill("b")
    cluster.hubs["a"].log.state.holders.clear()
    cluster.net.run(SILENT_SECONDS + 1.0)
    assert (cluster.link("a").state, cluster.link("a").instance) == ("unknown", "b")


def test_a_change_of_a_link_is_written_within_about_a_second(cluster: Cluster) -> None:
    a = cluster.start("a")
    cluster.start("b")
    cluster.net.run(7.0)
    before = a.clock.seconds()
    cluster.connect("a")
    while cluster.link("b").state != "up":
        cluster.net.run(0.1)
    assert a.clock.seconds() - before < 5.0


def outages_of(node: Node) -> list[tuple[str, bool, float]]:
    return [(one.reason, one.ongoing, one.down_seconds or 0.0) for one in node.outages("edge")]


def test_any_instance_has_the_outages_of_links_that_are_elsewhere(cluster: Cluster) -> None:
    for name in "ab":
        cluster.start(name)
    cluster.connect("b")
    a, b = cluster.hubs["a"], cluster.hubs["b"]
    assert outages_of(a) == []  # it came up within ten seconds of the first start
    cluster.net.run(5.0)
    cluster.edge.links.drivers["hub"].stop("the edge rests")
    cluster.net.run(20.0)
    (here,), (there,) = outages_of(b), outages_of(a)
    assert (there[0], there[1]) == ("stopped", True) == (here[0], here[1])
    assert abs(there[2] - here[2]) < 0.01
    cluster.connect("b")
    cluster.net.run(1.0)
    (here,), (there,) = outages_of(b), outages_of(a)
    assert not there[1]
    assert abs(there[2] - here[2]) < 0.01


def test_a_start_beside_a_link_that_is_up_elsewhere_is_no_outage(cluster: Cluster) -> None:
    cluster.start("a")
    cluster.connect("a")
    late = cluster.start("c")
    assert outages_of(late) == []
    cluster.net.run(60.0)
    assert outages_of(late) == []


def test_a_silent_instances_link_is_an_outage_since_it_wrote_last(cluster: Cluster) -> None:
    for name in "ab":
        cluster.start(name)
    cluster.connect("b")
    cluster.net.run(1.0)
    cluster.kill("b")
    cluster.net.run(SILENT_SECONDS + 6.0)
    ((reason, ongoing, down),) = outages_of(cluster.hubs["a"])
    assert (reason, ongoing) == ("silence", True)
    assert down > SILENT_SECONDS


def test_followers_get_the_links_that_change_elsewhere(cluster: Cluster) -> None:
    for name in "abc":
        cluster.start(name)
    instances = cluster.hubs["a"].instances
    assert instances is not None
    seen: list[tuple[str, str]] = []
    end = instances.follow(lambda peer, event: seen.append((peer, event)))
    cluster.connect("b")
    assert ("edge", "link.up") in seen
    seen.clear()
    cluster.kill("b")
    cluster.net.run(SILENT_SECONDS + 6.0)
    assert seen == [("edge", "link.unknown")]
    end()
    cluster.net.open = True
    cluster.connect("c")
    assert len(seen) == 1


def test_a_draining_instance_is_shown_so_and_another_one_dials(cluster: Cluster) -> None:
    cluster.net.open = False
    keeper = cluster.start("a", SAT, keeper=True)
    b, c = cluster.start("b", SAT), cluster.start("c", SAT)

    def dial() -> list[bool]:
        return [
            node.instances is not None and node.instances.should_dial() for node in (keeper, b, c)
        ]

    def dialing() -> list[bool]:
        return [each.links.drivers["sat"].link.state != "stopped" for each in (keeper, b, c)]

    cluster.net.run(2.0)
    assert dial() == dialing() == [True, False, False]
    keeper.drain.begin(1.0, 1.0)
    assert dial() == [False, False, False]
    cluster.net.run(2.0)
    assert cluster.states("c") == {"a": "draining", "b": "up", "c": "up"}
    assert dial() == dialing() == [False, True, False]
    b.drain.begin(1.0, 1.0)
    cluster.net.run(2.0)
    assert dial() == dialing() == [False, False, True]
    keeper.drain.undo()
    cluster.net.run(2.0)
    assert dial() == dialing() == [True, False, False]


def test_differing_peers_and_keys_are_warned_of_by_name(cluster: Cluster) -> None:
    cluster.net.open = False
    a, b = cluster.start("a"), cluster.start("b", EDGE, SAT)
    for node in (a, b):
        assert node.instances is not None
        node.instances.keys = {"listen.certificate": "1234"}
    cluster.net.run(6.0)
    assert a.status().warnings == ["the instance b differs: its [[peer]] tables are not those here"]
    assert a.instances is not None
    assert [one.differs for one in a.instances.statuses()][1] == [
        "its [[peer]] tables are not those here"
    ]
    b.reload(a.config)
    assert b.instances is not None
    b.instances.keys = {"listen.certificate": "5678"}
    cluster.net.run(6.0)
    (warning,) = a.status().warnings
    assert warning == (
        "the instance b differs: its listen.certificate has another private key than the one here"
    )
    b.instances.keys = {"listen.certificate": "1234"}
    cluster.net.run(6.0)
    assert a.status().warnings == []


def test_differences_name_what_only_one_has() -> None:
    assert differences("x", {"a": "1"}, "x", {"b": "2"}) == [
        "it has no a",
        "it has a b, which is not set here",
    ]


def test_the_checksum_is_of_what_is_set_without_order_and_paths() -> None:
    def of(*peers: PeerSettings) -> str:
        return peers_checksum(Config(node=NodeSettings(name="hub"), peers=peers))

    assert of(EDGE, SAT) == of(SAT, EDGE) != of(EDGE)
    assert of(EDGE) == of(msgspec.structs.replace(EDGE, secret_file="/elsewhere"))
    assert of(EDGE) != of(msgspec.structs.replace(EDGE, send=()))
    assert len(of()) == 16


def test_the_keeper_forgets_what_ended_a_day_ago(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.start("a", keeper=True)
    b = cluster.start("b")
    b.stop("for good")
    cluster.net.run(2.0)
    assert cluster.states("a") == {"a": "up", "b": "stopped"}
    monkeypatch.setattr("linkd.node.instances.FORGET_SECONDS", 5.0)
    cluster.net.run(6.0)
    assert cluster.states("a") == {"a": "up"}
    assert "b" not in cluster.shared.stores[0].shared(INSTANCE)


def test_what_another_instance_deletes_or_cannot_be_read_changes_nothing_else(
    cluster: Cluster,
) -> None:
    cluster.start("a")
    cluster.start("b")
    cluster.net.run(1.0)
    store = cluster.shared.stores[0]
    store.seen(INSTANCE, "b", b"\xc1 of a newer linkd")
    assert cluster.states("a") == {"a": "up", "b": "up"}
    store.seen(INSTANCE, "b", None)
    store.seen(INSTANCE, "a", None)
    assert cluster.states("a") == {"a": "up"}


def test_fields_of_a_newer_version_are_ignored(cluster: Cluster) -> None:
    cluster.start("a")
    cluster.start("b")
    rows = cluster.shared.stores[0].shared(INSTANCE)
    newer = msgspec.msgpack.decode(rows["b"]) | {"sings": True}
    assert decode_note(msgspec.msgpack.encode(newer)).instance == "b"


def test_without_a_cluster_there_are_no_instances() -> None:
    node = FakeNet().node("hub", EDGE)
    node.start()
    assert node.instances is None
    assert (node.status().instance, node.status().links[0].instance) == (None, None)


def seconds_absent(hub: Node) -> list[float]:
    """Return for how long peers are absent, as an instance shows it."""
    return [one.absent_seconds for one in hub.status().absent]


def test_the_keeper_alone_counts_the_absence_of_a_peer_that_no_instance_has(
    cluster: Cluster,
) -> None:
    a, b = cluster.start("a", EDGE, FAR, keeper=True), cluster.start("b", EDGE, FAR)
    cluster.net.run(2.0)
    b.reload(msgspec.structs.replace(b.config, peers=(EDGE,)))
    cluster.net.run(70.0)
    assert a.status().absent == []
    assert seconds_absent(b) == [0.0]  # another instance has it
    a.reload(msgspec.structs.replace(a.config, peers=(EDGE,)))
    cluster.net.run(130.0)
    assert 120.0 <= seconds_absent(a)[0] <= 130.0
    assert 60.0 <= seconds_absent(b)[0] <= seconds_absent(a)[0]
    a.links.absent._absent["sat"].seconds = KEPT_SECONDS
    cluster.net.run(1.5)
    assert seconds_absent(a) == seconds_absent(b) == []
    assert {*a._cursors.peers} == {*b._cursors.peers} == {"edge"}


def test_a_peer_that_only_another_instance_had_becomes_absent(cluster: Cluster) -> None:
    a, b = cluster.start("a", keeper=True), cluster.start("b", EDGE, FAR)
    b.reload(msgspec.structs.replace(b.config, peers=(EDGE,)))
    cluster.net.run(10.0)
    assert [one.peer for one in a.status().absent] == ["sat"]
    assert a.forget_peer("sat", confirmed=True) == (0, 0)
    assert a.status().absent == b.status().absent == []


def test_a_peer_that_another_instance_may_have_is_not_forgotten(cluster: Cluster) -> None:
    a, b = cluster.start("a", keeper=True), cluster.start("b", EDGE, FAR)
    cluster.net.run(10.0)
    assert a.forget_peer("sat", confirmed=False) == (0, 0)
    with pytest.raises(LinkdError, match="another instance has other"):
        a.forget_peer("sat", confirmed=True)
    a._cursors.remove_peer("sat")  # as if that had crossed
    assert b._cursors.peers["sat"] == a._cursors.peers["sat"]
    a.reload(msgspec.structs.replace(a.config, peers=(EDGE, FAR)))
    assert a.status().absent == []


def test_records_are_kept_for_a_peer_that_another_instance_has(cluster: Cluster) -> None:
    a, b = cluster.start("a", keeper=True), cluster.start("b", EDGE, FAR)
    publish(a, "commands", b"x")
    b._cursors.set_peer(PeerCursor("sat", 1, 1))
    a._cursors.set_peer(PeerCursor("edge", 1, 2))
    a.links.drivers["edge"].replicator.follow(2)
    assert a.links.low_water() == 1
    b._cursors.set_peer(PeerCursor("sat", 1, 2))
    assert a.links.low_water() == 2


def test_who_read_more_at_another_instance_waits_for_the_log(cluster: Cluster) -> None:
    a, done = cluster.start("a"), list[object]()
    ensureDeferred(a.reached(a.log.next + 1)).addCallback(done.append)
    cluster.net.run(0.5)
    assert done == []
    publish(a, "commands", b"x")
    cluster.net.run(0.1)
    assert done == [None]
    ensureDeferred(a.reached(99)).addCallback(done.append)  # there is no such record
    cluster.net.run(0.9)
    assert done == [None]
    cluster.net.run(0.2)
    assert done == [None, None]


def test_a_consumer_taken_at_another_instance_goes_on_behind_its_acks(cluster: Cluster) -> None:
    a, b = cluster.start("a"), cluster.start("b")
    billing, first, second = ("socket", "billing"), Kept(), Kept()
    held = a.subscriptions.subscribe(("commands",), "earliest", first, billing)
    publish(a, "commands", b"1", b"2")
    cluster.net.run(0.1)
    assert first.bodies == [b"1", b"2"]
    held.ack(2, lambda _: None)
    taken = b.subscriptions.subscribe(("commands",), "earliest", second, billing)
    assert first.ended == "replaced"
    assert taken.next == 2  # its log has nothing of that yet
    publish(b, "commands", b"1", b"2", b"3")
    cluster.net.run(0.1)
    assert second.bodies == [b"2", b"3"]
    assert a.subscriptions.forget(billing, lambda _: None)
    assert second.ended == "deleted"
    assert not b._cursors.shared(READER)
    a._cursors.share(READER, "socket/unknown", b"x")  # nobody here reads as that
