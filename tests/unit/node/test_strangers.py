"""Refused connections, as status shows them: the newest, bounded, second hosts kept."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from linkd.cli.output import Colours
from linkd.cli.status import check_line, node_text
from linkd.node.history import KEPT_SECONDS, MOST_STRANGERS, Strangers
from tests.support.fake_net import FakeNet
from tests.unit.node.test_narrow_path import EDGE, HUB


def test_one_entry_for_each_address_and_reason() -> None:
    strangers = Strangers()
    strangers.refused("edge", "192.0.2.7:1", "rejected", "no peer named 'edge'", 0.0)
    strangers.refused("edge", "192.0.2.7:2", "rejected", "no peer named 'edge'", 60.0)
    strangers.refused(None, "[2001:db8::1]:9", "tls", "no certificate", 61.0)
    strangers.refused(None, "[2001:db8::2]:9", "tls", "no certificate", 62.0)
    found = strangers.recent(70.0)
    assert [(one.address, one.count, one.seconds_ago) for one in found] == [
        ("[2001:db8::2]:9", 2, 8.0),
        ("192.0.2.7:2", 2, 10.0),
    ]


def test_they_are_forgotten_after_an_hour() -> None:
    strangers = Strangers()
    strangers.refused("edge", "192.0.2.7:1", "rejected", "why", 0.0)
    assert strangers.recent(KEPT_SECONDS)
    assert strangers.recent(KEPT_SECONDS + 1.0) == []
    strangers.refused("edge", "192.0.2.7:1", "rejected", "why", KEPT_SECONDS + 2.0)
    assert strangers.recent(KEPT_SECONDS + 2.0)[0].count == 1


def test_strangers_do_not_push_out_a_second_host_with_a_peer_s_name() -> None:
    strangers = Strangers()
    strangers.refused("edge-1", "192.0.2.1:1", "duplicate", "two hosts", 0.0)
    for number in range(2 * MOST_STRANGERS):
        strangers.refused(None, f"198.51.100.{number}:1", "protocol", "malformed", 1.0)
    found = strangers.recent(2.0)
    assert len(found) == MOST_STRANGERS
    assert found[-1].reason == "duplicate"
    for number in range(2 * MOST_STRANGERS):
        strangers.refused("edge-1", f"203.0.113.{number}:1", "duplicate", "two hosts", 3.0)
    assert len(strangers.recent(4.0)) == MOST_STRANGERS


@pytest.fixture
def net() -> FakeNet:
    return FakeNet.linked(EDGE, HUB)


def test_status_and_check_name_a_second_host(net: FakeNet) -> None:
    hub = net.nodes["hub"]
    hub.refused("edge", "192.0.2.9:4", "rejected", "edge does not know the secret")
    assert check_line(hub.status())[0] == 0
    hub.refused("edge", "192.0.2.9:5", "duplicate", "two hosts use the name edge")
    code, line = check_line(hub.status())
    assert code == 1
    assert "a second host at 192.0.2.9:5 uses the name of edge" in line
    text = node_text(hub.status(), Colours(False))
    assert "refused 'edge' from 192.0.2.9:5" in text
    assert "duplicate: two hosts use the name edge" in text
    assert hub.status(owner="app").refused == []


@pytest.mark.parametrize("seconds", [181_000.0, -181_000.0])
def test_the_hellos_show_a_clock_that_is_wrong(
    net: FakeNet, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    hub, edge = net.nodes["hub"], net.nodes["edge"]
    for node in (hub, edge):
        assert abs(node.status().links[0].clock_skew_seconds or 9.0) < 1.0
    lines: list[dict[str, Any]] = []
    tell = hub.log_event
    monkeypatch.setattr(
        hub, "log_event", lambda level, event, **fields: (
            lines.append({"event": event, **fields}), tell(level, event, **fields)
        ),
    )  # fmt: skip
    there = edge.link("hub")
    assert there is not None
    hello = there.hello

    def skewed(generation: Any) -> Any:
        said = hello(generation)
        return msgspec.structs.replace(said, time=said.time + seconds)

    monkeypatch.setattr(there, "hello", skewed)
    there.rejoin("to say hello again")
    net.run(5.0)
    [line] = [each for each in lines if each["event"] == "link.clock-skew"]
    assert line["skew_seconds"] == pytest.approx(seconds, abs=1.0)
    assert hub.status().links[0].state == "up"
    found = hub.status().links[0].clock_skew_seconds
    assert found == pytest.approx(seconds, abs=10.0)
    words = "2d02h ahead of" if seconds > 0 else "2d02h behind"
    code, text = check_line(hub.status())
    assert code == 1
    assert f"clock of edge is {words} this host's" in text
    assert f"its clock is {words} this host's" in node_text(hub.status(), Colours(False))


def test_a_hello_that_was_long_on_its_way_proves_no_wrong_clock(
    net: FakeNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came six seconds after the connection began: a clock six seconds behind is not proved."""
    driver = net.nodes["hub"].link("edge")
    assert driver is not None
    now, wall = net.clock.seconds(), 1e9
    monkeypatch.setattr("linkd.node.link_driver.wall", lambda: wall)
    for stamp, skew in (
        (wall - 6.0, 0.0),
        (wall - 3.0, 0.0),
        (wall - 20.0, -14.0),
        (wall + 8.0, 8.0),
    ):
        driver._note_clock(stamp, now - 6.0)
        assert driver._clock_skew() == pytest.approx(skew)
    driver._note_clock(0.0, now)
    assert driver._clock_skew() is None
