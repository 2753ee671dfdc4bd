"""Which volatile messages of others are new here. What is handed out while the loop is busy:
later, more at once, and nothing else is different.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from linkd.config import PeerSettings
from linkd.log.commit import ignore
from linkd.log.repair import OFFSET_SKIP
from linkd.log.state import EpochOpened
from linkd.node import Node, dispatcher
from linkd.node.dispatcher import WINDOW, VolatileSequence, as_batch
from linkd.protocol.peer import BatchMessage, Volatile, decode
from linkd.protocol.records import Batch, NewRecords
from tests.support.fake_net import FakeNet, Kept, bodies, publish
from tests.support.memory_log import MemoryLog


def message(sequence: int, channel: str = "t", node: str = "far", run: str = "r") -> Volatile:
    """Return another node's message."""
    return Volatile(channel, 1, b"\xc0", 1.0, None, node, run, sequence)


def test_own_messages_are_numbered_and_never_come_back() -> None:
    one = VolatileSequence("here", "run")
    made = [one.make(NewRecords("t", 1, b"\xc0", 1.0)) for _ in range(3)]
    assert [each.sequence for each in made] == [1, 2, 3]
    assert (made[0].node, made[0].run) == ("here", "run")
    assert one.judge(made[0]) == "repeated"
    assert as_batch(made[0], 5.0).origin.node == "here"


def test_each_channel_of_each_run_is_judged_alone() -> None:
    one = VolatileSequence("here", "run")
    assert one.judge(message(2**62, "forged")) == "fresh"
    assert one.judge(message(2**62, node="other")) == "fresh"
    assert one.judge(message(500, "fast")) == "fresh"
    assert one.judge(message(499, "slow")) == "fresh"
    assert one.judge(message(1, "fast", run="s")) == "fresh"


def test_a_message_is_taken_once_and_also_behind_later_ones() -> None:
    one = VolatileSequence("here", "run")
    fates = [one.judge(message(number)) for number in (5, 5, 9, 7, 7, 5, 8, 9, 6)]
    expected = "fresh repeated fresh fresh repeated repeated fresh repeated fresh"
    assert fates == expected.split()
    assert one.judge(message(9 + WINDOW - 1)) == "fresh"
    assert one.judge(message(9)) == "repeated"
    assert one.judge(message(8)) == "stale"
    assert one.judge(message(10**9)) == "fresh"
    assert one.judge(message(10**9 - 1)) == "fresh"
    assert one.judge(message(9 + WINDOW - 1)) == "stale"


def test_a_node_with_many_channels_pushes_out_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "MAX_KEYS", 10)
    one = VolatileSequence("here", "run")
    assert one.judge(message(5, node="quiet")) == "fresh"
    for number in range(50):
        assert one.judge(message(5, f"c{number}", node="flood")) == "fresh"
    assert one.judge(message(5, node="quiet")) == "repeated"
    assert one.judge(message(5, "c49", node="flood")) == "repeated"
    assert one.judge(message(5, "c0", node="flood")) == "fresh"
    assert one._usage.total == 10
    for number in range(50):
        assert one.judge(message(5, node=f"n{number}")) == "fresh"
    assert one._usage.total == sum(map(len, one._nodes.values())) == 10
    assert len(one._nodes) <= 10


def test_room_is_made_at_little_cost_among_many_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "MAX_KEYS", 20_000)
    one = VolatileSequence("here", "run")

    def seconds(first: int) -> float:
        began = time.process_time()
        for number in range(first, first + 1000):
            assert one.judge(message(5, node=f"n{number}")) == "fresh"
        return time.process_time() - began

    for first in range(0, 20_000, 1000):
        seconds(first)
    beyond = min(seconds(first) for first in (20_000, 21_000, 22_000))
    assert beyond < 0.5, "a look at each node took 6 s"
    assert len(one._nodes) == 20_000


LARGE = bytes(60_000)
NAMES = ("one", "two", "three", "four")
EDGES = tuple(PeerSettings(name=name, send=(f"{name}.>", "all")) for name in NAMES)
HUB = PeerSettings(name="hub", dial=("ws://hub/link",), receive=(">",))


class _Loop:
    """A reactor's clock that is busy until it is said to rest."""

    def __init__(self, net: FakeNet) -> None:
        self.put_off: list[Callable[[], None]] = []
        net.clock.call_when_idle = self._when_idle  # type: ignore[attr-defined]

    def _when_idle(self, call: Callable[[], None], within: float) -> None:
        assert 0.0 < within <= 0.05
        self.put_off.append(call)

    def rest(self) -> None:
        calls, self.put_off = self.put_off, []
        for call in calls:
            call()


@pytest.fixture
def net() -> Iterator[FakeNet]:
    net = FakeNet()
    yield net
    for node in net.nodes.values():
        node.stop("the test is over")


@pytest.fixture
def loop(net: FakeNet) -> _Loop:
    return _Loop(net)


@pytest.fixture
def hub(net: FakeNet, loop: _Loop) -> Node:
    hub = net.node("hub", *EDGES)
    hub.start()
    for name in NAMES:
        net.node(name, HUB).start()
    net.run(0.5)
    assert all(link.state == "up" for link in hub.status().links)
    return hub


def _flow(hub: Node) -> None:
    """Commit much, of which each of many gets little: what comes behind it may be put off."""
    publish(hub, "all", LARGE, LARGE, LARGE)


def _commit(net: FakeNet) -> None:
    net.clock.advance(0)


def _steps(net: FakeNet, name: str) -> list[BatchMessage]:
    """Return what the hub has sent to an edge."""
    end = next(end for end in net.ends if not end.dialed and end.driver.peer == name)
    found = [decode(payload) for payload in end.sent]
    return [step for step in found if isinstance(step, BatchMessage) and step.count]


def test_little_is_handed_out_at_once_and_what_follows_much_once_the_loop_rests(
    net: FakeNet, loop: _Loop, hub: Node
) -> None:
    publish(hub, "one.a", b"little")
    _commit(net)
    assert len(_steps(net, "one")) == 1
    _flow(hub)
    _commit(net)
    assert [len(_steps(net, name)) for name in NAMES] == [4, 3, 3, 3]
    assert loop.put_off == []
    for _ in range(3):
        publish(hub, "four.a", b"put off")
        _commit(net)
    assert len(_steps(net, "four")) == 3
    assert len(loop.put_off) == 1
    loop.rest()
    assert len(_steps(net, "four")) == 6
    publish(hub, "four.a", b"little again")
    _commit(net)
    assert len(_steps(net, "four")) == 7


def test_what_one_peer_alone_gets_is_never_put_off(net: FakeNet, loop: _Loop, hub: Node) -> None:
    for number in range(6):
        publish(hub, "one.a", LARGE, LARGE, LARGE)
        _commit(net)
        assert loop.put_off == [], number
    assert sum(step.count for step in _steps(net, "one")) == 18


def test_the_backlog_counts_what_was_put_off(net: FakeNet, loop: _Loop, hub: Node) -> None:
    publish(hub, "one.a", b"at once")
    _flow(hub)
    _commit(net)
    publish(hub, "one.a", b"put off", b"too")
    net.run(0.06)  # what went at once is acknowledged, up to what was the log's end then
    assert len(loop.put_off) == 1
    assert [link.backlog_records for link in hub.status().links] == [2, 0, 0, 0]
    loop.rest()
    publish(hub, "one.a", b"more")
    net.run(0.2)
    assert [link.backlog_records for link in hub.status().links] == [0, 0, 0, 0]


def test_a_tick_passes_nothing_that_was_put_off(net: FakeNet, loop: _Loop, hub: Node) -> None:
    kept = Kept()
    hub.subscriptions.subscribe(("four.>",), "earliest", kept)
    net.run(0.01)
    _flow(hub)
    _commit(net)
    publish(hub, "four.a", b"put off")
    _commit(net)
    assert kept.bodies == []
    assert len(loop.put_off) == 1
    net.run(1.0)
    assert kept.bodies == [b"put off"]
    assert net.nodes["four"].status().links[0].received_records == 4
    loop.rest()
    net.run(1.0)
    assert kept.bodies == [b"put off"]


def test_links_and_readers_that_change_meanwhile_miss_nothing_and_get_nothing_twice(
    net: FakeNet, loop: _Loop, hub: Node
) -> None:
    early, late = Kept(), Kept()
    gone = hub.subscriptions.subscribe(("two.>",), "earliest", early)
    net.run(0.01)
    _flow(hub)
    _commit(net)
    for name in NAMES:
        publish(hub, f"{name}.a", name.encode())
    _commit(net)
    assert len(loop.put_off) == 1
    gone.close()
    hub.subscriptions.subscribe(("two.>",), "earliest", late)
    for end in list(net.ends):
        if end.driver.peer in ("one", "hub"):
            end.end("closed", "cut by the test")
    net.run(0.01)
    loop.rest()
    net.run(3.0)
    loop.rest()
    net.run(1.0)
    assert early.bodies == []
    assert late.bodies == [b"two"]
    for name in NAMES:
        got = net.nodes[name].log.read(1, 1 << 30) or []
        assert [batch.channel for batch in got] == ["all", "all", "all", f"{name}.a"]
        assert hub.link(name).replicator.session.outbound.owed_records == 0  # type: ignore[union-attr]


def test_a_mistake_at_one_costs_the_others_nothing_and_it_no_record(
    net: FakeNet, hub: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, kept = Kept(), Kept()
    hub.subscriptions.subscribe(("all",), "earliest", broken)
    hub.subscriptions.subscribe(("all",), "earliest", kept)
    net.run(0.01)

    def fail(*_: object) -> bool:
        raise RuntimeError("made by the test")

    def ends(reason: str) -> None:
        broken.ended = reason
        raise RuntimeError("made by the test, once more")

    with monkeypatch.context() as patch:
        patch.setattr(broken, "batch", fail)
        patch.setattr(broken, "end", ends)
        patch.setattr(hub.link("one").replicator, "offer", fail)  # type: ignore[union-attr]
        publish(hub, "all", b"1")
        _commit(net)
    aborted = [end for end in net.ends if end.ended]
    assert [end.driver.peer for end in aborted] == ["one"]
    for end in aborted:
        assert end.other is not None
        end.other.end("closed", "as a network tells it")
    publish(hub, "all", b"2")
    net.run(3.0)
    assert kept.bodies == [b"1", b"2"]
    assert broken.ended == "linkd made a mistake; its log has the details"
    for name in NAMES:
        got = net.nodes[name].log.read(1, 1 << 30) or []
        assert [body for batch in got for body in bodies(batch)] == [b"1", b"2"]


def test_who_publishes_while_records_are_handed_out_is_answered_behind_them(
    net: FakeNet, loop: _Loop, hub: Node
) -> None:
    class Answering(Kept):
        """Answers in place."""

        def batch(self, batch: Batch) -> bool:
            if bodies(batch) == [b"question"]:
                publish(hub, "all", b"answer")
            return super().batch(batch)

    readers = [Answering(), Kept()]
    for reader in readers:
        hub.subscriptions.subscribe(("all",), "latest", reader)
    net.run(0.01)
    _flow(hub)
    _commit(net)
    publish(hub, "all", b"question")
    _commit(net)
    loop.rest()
    net.run(1.0)
    for reader in readers:
        assert reader.bodies[-2:] == [b"question", b"answer"]
    for name in NAMES:
        got = net.nodes[name].log.read(1, 1 << 30) or []
        assert [body for batch in got for body in bodies(batch)][-2:] == [b"question", b"answer"]


def test_what_was_put_off_goes_before_a_trim_is_told(net: FakeNet, loop: _Loop, hub: Node) -> None:
    _flow(hub)
    _commit(net)
    publish(hub, "one.a", b"put off")
    _commit(net)
    assert len(_steps(net, "one")) == 3
    for told in hub.log.on_trim:
        told(hub.log.first)
    assert len(_steps(net, "one")) == 4


def test_an_epoch_that_opens_far_above_is_a_gap_that_nobody_reads_into(
    net: FakeNet, hub: Node
) -> None:
    """The first commit after damage at the log's end raised Gap out of its listener."""
    publish(hub, "one.a", b"before")
    _commit(net)
    log = hub.log
    assert isinstance(log, MemoryLog)
    log._waiting.append((EpochOpened("far", log.next + OFFSET_SKIP), ignore))
    publish(hub, "one.a", b"behind it")
    _commit(net)
    assert [step.count for step in _steps(net, "one")] == [1, 1]
    assert hub.log.next > OFFSET_SKIP
