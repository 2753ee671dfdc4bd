"""Which volatile messages of others are new here."""

from __future__ import annotations

import time

import pytest

from linkd.node import dispatcher
from linkd.node.dispatcher import WINDOW, VolatileSequence, as_batch
from linkd.protocol.peer import Volatile
from linkd.protocol.records import Draft


def message(sequence: int, channel: str = "t", node: str = "far", run: str = "r") -> Volatile:
    """Return another node's message."""
    return Volatile(channel, 1, b"\xc0", 1.0, None, node, run, sequence)


def test_own_messages_are_numbered_and_never_come_back() -> None:
    one = VolatileSequence("here", "run")
    made = [one.make(Draft("t", 1, b"\xc0", 1.0)) for _ in range(3)]
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
