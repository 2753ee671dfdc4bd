"""Builds broken on purpose: each is caught, so that the tests are known to be able to fail."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from linkd.core.inbound import Inbound
from linkd.core.link import Refusal, Takeovers
from linkd.core.liveness import Liveness
from linkd.log.origins import Origins
from tests.property.test_session import two_nodes
from tests.support.fake_net import FakeNet
from tests.support.memory_log import MemoryLog
from tests.unit.net.test_timers import test_each_end_notices_at_its_limit_of_silence as silence
from tests.unit.node.test_node import EDGE, HUB

WINDOW = 1 << 20
ARRIVED = [
    ("connect", 0, 0, 0),
    ("publish", 0, 0, 1),
    ("commit", 0, 0, 0),
    ("pump", 0, 0, 0),
    ("deliver", 1, 0, 4),
]
"""A record has come to the second node, but not to its disk."""

KILLED_BEFORE_COMMIT = [
    *ARRIVED,
    ("pump", 1, 0, 0),
    ("deliver", 0, 0, 4),
    ("trim", 0, 0, 0),
    ("crash", 1, 0, 0),
]
KILLED_BEFORE_ACK = [*ARRIVED, ("commit", 1, 0, 0), ("crash", 1, 0, 0)]


@pytest.mark.parametrize("todo", [KILLED_BEFORE_COMMIT, KILLED_BEFORE_ACK])
def test_the_build_as_it_is_keeps_the_promise(todo: list[tuple[str, int, int, int]]) -> None:
    two_nodes(todo, 1, WINDOW)


def test_ack_before_commit_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Inbound.ack

    def ack(self: Inbound) -> object:
        self.committed = max(self.committed, self.received or 0)
        return whole(self)

    monkeypatch.setattr(Inbound, "ack", ack)
    with pytest.raises(AssertionError):
        two_nodes(KILLED_BEFORE_COMMIT, 1, WINDOW)


def test_a_cursor_saved_apart_from_its_batch_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records are on disk, but after a crash the cursor is an older one: they come again."""
    whole = MemoryLog.crash

    def crash(self: MemoryLog) -> MemoryLog:
        found = whole(self)
        for peer in ("one", "two"):
            found.set_cursor(peer, None, lambda outcome: None)
        found.state.origins = Origins()
        return found

    monkeypatch.setattr(MemoryLog, "crash", crash)
    with pytest.raises(AssertionError, match="doubled"):
        two_nodes(KILLED_BEFORE_ACK, 1, WINDOW)


def test_no_takeover_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(self: Takeovers, live: object, new: object, now: float) -> Refusal:
        return Refusal("replaced", "broken on purpose")

    monkeypatch.setattr(Takeovers, "judge", judge)
    assert comes_back() is False


def test_the_build_as_it_is_takes_over() -> None:
    assert comes_back() is True


def comes_back() -> bool:
    """Tell whether an edge that has lost its connection is back while the hub still holds it."""
    net = FakeNet.linked(EDGE, HUB)
    dead = net.nodes["edge"].link("hub").connection
    dead.other.other = None  # the hub hears nothing of the end
    dead.end("silence", "cut by the test")
    net.run(3.0)
    up = net.nodes["edge"].status().links[0].state == "up"
    return up and net.nodes["hub"].link("edge").connection is not dead.other


def test_a_keepalive_that_polls_is_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It looks every five seconds whether ten have passed: up to fifteen."""

    def poll(self: Liveness) -> float:
        return math.ceil((self.heard_at + self.limit) / 5.0) * 5.0

    monkeypatch.setattr(Liveness, "deadline", property(poll))
    with pytest.raises(AssertionError):
        silence(tmp_path, "edge", 10.0, "silence", 1.3)
