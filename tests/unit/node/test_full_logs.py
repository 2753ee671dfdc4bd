"""Two nodes whose logs in memory are full of what they owe each other."""

from __future__ import annotations

from random import Random

import pytest

from linkd.config import LogSettings
from linkd.config.settings import PeerSettings
from linkd.errors import LogFull
from tests.support import fake_net
from tests.support.fake_net import FakeNet, one_publish, publish
from tests.support.memory_log import BoundedMemoryLog

BOUNDS = LogSettings(memory_bytes=1 << 18, max_bytes=1 << 20)


def test_two_full_logs_make_room_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def bounded(name: str, rng: Random, clock: object) -> BoundedMemoryLog:
        return BoundedMemoryLog(name, BOUNDS, rng, clock)  # type: ignore[arg-type] # seconds

    monkeypatch.setattr(fake_net, "MemoryLog", bounded)
    net = FakeNet()
    both = {"send": (">",), "receive": (">",), "secret_file": "/x"}
    one = net.node("one", PeerSettings(name="two", dial=("ws://two:1",), **both))  # type: ignore[arg-type]
    two = net.node("two", PeerSettings(name="one", **both))  # type: ignore[arg-type]
    for node in (one, two):
        node.start()
    net.run(1.0)
    net.cut()
    published = 0
    for node in (one, two):
        while not isinstance(publish(node, "bulk", b"x" * 2_000)[0], LogFull):
            published += 1
    assert published > 500
    net.open = True
    net.run(20.0)
    for node, peer in ((one, "two"), (two, "one")):
        link = node.link(peer)
        assert link is not None
        assert link.replicator.session.outbound.owed_records == 0
        assert link.replicator.session.inbound.received_records == pytest.approx(
            published / 2, abs=1
        )
        assert node.log.full is None
        one_publish(node, "bulk", b"again")
