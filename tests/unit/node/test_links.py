"""A peer whose `[[peer]]` is missing keeps what it is owed for a day of running time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from linkd.config import PeerSettings
from linkd.errors import LinkdError
from linkd.node import Stores
from linkd.node.backlog import COUNT_STEP
from linkd.node.links import KEPT_SECONDS
from linkd.node.outages import Outages
from linkd.status import AbsentPeer
from tests.support.fake_net import FakeNet, Kept, publish
from tests.support.logs import owed

EDGE = PeerSettings(name="edge", receive=("orders",))
HUB = PeerSettings(name="hub", dial=("ws://hub/link",), send=("orders",))


@pytest.fixture
def net() -> FakeNet:
    """An edge that owes its hub ten records and one that it does not get."""
    net = FakeNet()
    net.open = False
    net.node("hub", EDGE)
    edge = net.node("edge", HUB)
    for node in net.nodes.values():
        node.start()
    for number in range(10):
        publish(edge, "orders", b"%d" % number)
    publish(edge, "private", b"not for the hub")
    return net


@pytest.fixture
def told(net: FakeNet, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    lines: list[tuple[str, str, str]] = []

    def tell(level: str, event: str, **fields: Any) -> None:
        if event in ("link.absent", "link.returned", "link.forgotten"):
            lines.append((level, event, str(fields["detail"])))

    monkeypatch.setattr(net.nodes["edge"].links.absent, "_log_event", tell)
    return lines


def configure(net: FakeNet, *peers: PeerSettings) -> None:
    edge = net.nodes["edge"]
    edge.reload(msgspec.structs.replace(edge.config, peers=peers))


def pass_time(net: FakeNet, seconds: float) -> None:
    """Let running time pass without the ticks in between."""
    absent, now = net.nodes["edge"].links.absent, net.clock.seconds()
    absent.tick(now)
    net.clock.rightNow += seconds
    absent.tick(now + seconds)


def test_one_that_is_missing_for_one_reload_loses_nothing(
    net: FakeNet, told: list[tuple[str, str, str]]
) -> None:
    edge = net.nodes["edge"]
    configure(net)
    size = owed(edge.log, 1)["orders"][1]
    assert told == [
        (
            "error",
            "link.absent",
            f"hub is not configured any more and is owed 10 records ({size} bytes); its cursor is"
            " kept for 24.0 h of running time: put its [[peer]] back, or run"
            " `linkd peers --forget hub`",
        )
    ]
    assert edge.status().absent == [AbsentPeer("hub", 1, 10, size, 0.0, KEPT_SECONDS)]
    assert edge.status().warnings == [
        f"hub is not configured any more and is owed 10 records ({size} bytes): see `linkd peers`"
    ]
    publish(edge, "orders", b"meanwhile")
    net.run(1.0)
    assert edge.links.low_water() == 1
    configure(net, HUB)
    assert told[-1][:2] == ("info", "link.returned")
    assert edge.status().links[0].backlog_records == 11
    assert edge.status().absent == []
    assert edge.status().warnings == []
    assert edge._cursors.peers.get("hub").absent_seconds is None
    net.open = True
    net.run(3.0)
    kept = Kept()
    net.nodes["hub"].subscriptions.subscribe(("orders",), "earliest", kept)
    net.run(0.01)
    assert kept.bodies == [*(b"%d" % number for number in range(10)), b"meanwhile"]


def test_after_a_day_of_running_time_its_cursor_goes_with_an_error(
    net: FakeNet, told: list[tuple[str, str, str]]
) -> None:
    edge = net.nodes["edge"]
    configure(net)
    pass_time(net, KEPT_SECONDS - 1)
    assert edge._cursors.peers.get("hub").absent_seconds == KEPT_SECONDS - 1
    assert edge.status().absent[0].forgotten_seconds == pytest.approx(1.0)
    publish(edge, "orders", b"one more")
    pass_time(net, 1.0)
    assert told[-1][:2] == ("error", "link.forgotten")
    assert told[-1][2].startswith(
        "it was not configured for 24 h of running time: hub, which was owed 11 records ("
    )
    assert edge._cursors.peers.get("hub") is None
    assert edge.links.low_water() == edge.log.next
    assert edge.status().absent == []
    configure(net, HUB)
    assert edge.status().links[0].backlog_records == 0


def test_restarts_add_up(net: FakeNet) -> None:
    edge = net.nodes["edge"]
    configure(net)
    pass_time(net, 7200.0)
    again = type(edge)(
        edge.config,
        Stores(edge.log, edge._cursors, Outages(edge._cursors)),
        net.clock,
        lambda node, driver: None,
        net.rng,
    )
    again.start()
    (absent,) = again.status().absent
    assert absent.absent_seconds == 7200.0
    assert absent.owed_records == 11  # its `send` is not known any more
    assert again.links.low_water() == 1


def test_one_that_came_back_while_the_daemon_was_off_is_absent_no_more(net: FakeNet) -> None:
    edge = net.nodes["edge"]
    configure(net)
    pass_time(net, KEPT_SECONDS / 2)
    assert edge._cursors.peers["hub"].absent_seconds
    edge.links.absent.start({"hub"})
    assert edge._cursors.peers["hub"].absent_seconds is None


def test_an_operator_may_have_it_forgotten_at_once(
    net: FakeNet, told: list[tuple[str, str, str]]
) -> None:
    edge = net.nodes["edge"]
    with pytest.raises(LinkdError, match="hub is configured"):
        edge.forget_peer("hub", True)
    with pytest.raises(KeyError):
        edge.forget_peer("nobody", True)
    configure(net)
    size = owed(edge.log, 1)["orders"][1]
    assert edge.forget_peer("hub", False) == (10, size)
    assert edge.status().absent
    assert edge.forget_peer("hub", True) == (10, size)
    assert told[-1][:2] == ("warn", "link.forgotten")
    assert edge.status().absent == []
    with pytest.raises(KeyError):
        edge.forget_peer("hub", True)


def test_one_that_is_owed_nothing_is_no_error_and_one_that_drops_holds_nothing_back(
    net: FakeNet, told: list[tuple[str, str, str]]
) -> None:
    drops = msgspec.structs.replace(HUB, name="other", send=("none",), when_full="drop-oldest")
    configure(net, HUB, drops)
    configure(net, HUB)
    assert told[-1][:2] == ("info", "link.absent")
    absent, end = net.nodes["edge"].links.absent, net.nodes["edge"].log.next
    publish(net.nodes["edge"], "orders", b"more")
    assert absent.low_water(crowded=False) == end
    assert absent.low_water(crowded=True) == end + 1


def test_what_it_is_owed_is_counted_for_a_few_ms_at_a_time(
    net: FakeNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge, looked = net.nodes["edge"], 0
    configure(net)

    def totals(_: int) -> Iterator[tuple[str, int, int]]:
        nonlocal looked
        for number in range(4_000):
            looked, net.clock.rightNow = looked + 1, net.clock.rightNow + 0.0001
            yield ("private", "orders")[number % 2], 1, 3

    monkeypatch.setattr(edge.log, "totals", totals)
    for _ in range(100):
        before = looked
        edge.links.absent.tick(net.clock.seconds())
        assert looked - before <= 0.005 / 0.0001 + COUNT_STEP
    (absent,) = edge.status().absent
    assert (absent.owed_records, absent.owed_bytes) == (2_000, 6_000)
    before = looked
    for _ in edge.count_absent("hub"):
        assert looked - before <= COUNT_STEP
        before = looked
    assert edge.forget_peer("hub", True) == (2_000, 6_000)
