"""Stepped wall clocks, a cloned host, and two ends that both dial."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from linkd.drill.testbed import SteppedClock
from tests.support import figures
from tests.support.daemon import Daemon, listen, peer
from tests.support.lab import Lab
from tests.support.needs import need

pytestmark = [pytest.mark.lab, pytest.mark.slow]

Start = Callable[..., Daemon]


def test_stepped_wall_clocks_drop_nothing_and_stall_nothing(
    lab: Lab, daemons: Start, tmp_path: Path
) -> None:
    """Steps of an hour and of 288 s, forth and back, on either side."""
    need("libfaketime")
    hub_host, edge_host = lab.host("hub"), lab.host("edge")
    clocks = []
    for name in ("hub", "edge"):
        (tmp_path / name).mkdir()
        clocks.append(SteppedClock(tmp_path / name))
    hub = daemons("hub", listen() + peer("edge"), hub_host, environment=clocks[0].environment)
    dial = peer("hub", f"ws://{hub_host.address}:9443/link")
    edge = daemons("edge", dial, edge_host, environment=clocks[1].environment)
    edge.wait_up("hub")
    for clock in clocks:
        for step in (3600.0, -3600.0, 288.0, -288.0, 0.0):
            clock.step(step)
            time.sleep(2.5)
    drops = [
        line for daemon in (hub, edge) for line in daemon.lines if line.fields.get("old") == "up"
    ]
    assert drops == []
    # The last step is 0; one more, and a cut within it is noticed as ever.
    clocks[0].step(-3600.0)
    clocks[1].step(3600.0)
    with lab.cut(hub_host, edge_host):
        cut = time.monotonic()
        for daemon, name, bounds in ((hub, "edge", (6.9, 7.1)), (edge, "hub", (9.9, 10.1))):
            line = daemon.wait_line(12.0, cut, peer=name, old="up")
            seconds = float(line.fields["noticed_after_seconds"])
            assert bounds[0] <= seconds <= bounds[1] + line.queued, line
            figures.tell(
                f"wall clock stepped by an hour, then cut: {daemon.name} after {seconds:.2f} s"
            )
    restored = time.monotonic()
    waited = edge.wait_up("hub", 8.0) - restored
    figures.tell(f"wall clocks two hours apart: up {waited:.2f} s after the path is back")


def watch(seconds: float, *daemons: Daemon) -> int:
    """Return how many links came up in so many seconds."""
    begun = time.monotonic()
    time.sleep(seconds)
    return sum(len(list(daemon.matching(begun, event="link.up"))) for daemon in daemons)


def test_a_cloned_host_is_refused_by_name_and_nobody_fights(lab: Lab, daemons: Start) -> None:
    """The same name with another log, then a copy of the state: one link stays."""
    hub_host, one_host, two_host = lab.host("hub"), lab.host("one"), lab.host("two")
    hub = daemons("hub", listen() + peer("edge"), hub_host)
    dial = peer("hub", f"ws://{hub_host.address}:9443/link")
    one = daemons("edge", dial, one_host)
    one.wait_up("hub")
    two = daemons("edge", dial, two_host)
    two.wait_line(10.0, peer="hub", reason="duplicate")
    assert watch(10.0, hub) == 0
    assert one.link("hub")["state"] == "up"
    assert two_host.address in str([line.fields for line in hub.lines[-20:]])
    [refused] = hub.status()["refused"]
    assert (refused["claimed"], refused["reason"]) == ("edge", "duplicate")
    assert refused["address"].startswith(f"{two_host.address}:")
    two.stop()

    # A copy of the disk has the same log id: it takes over, until that is seen to be a fight.
    copy = Daemon("edge", dial, two_host)
    try:
        one.stop()
        shutil.copytree(one.directory / "state", copy.directory / "state")
        one.start()
        one.wait_up("hub")
        copy.start()
        hub.wait_line(30.0, peer="edge", reason="duplicate")
        time.sleep(5.0)
        assert watch(10.0, hub) == 0
        states = [one.link("hub")["state"], copy.link("hub")["state"]]
        assert states.count("up") <= 1
        figures.tell(f"cloned host: the two copies are {' and '.join(states)}")
    finally:
        copy.close()


def test_both_dial_and_one_connection_stays(lab: Lab, daemons: Start) -> None:
    a_host, b_host = lab.host("a"), lab.host("b")
    a = daemons("a", listen() + peer("b", f"ws://{b_host.address}:9443/link"), a_host)
    b = daemons("b", listen() + peer("a", f"ws://{a_host.address}:9443/link"), b_host)
    a.wait_up("b")
    b.wait_up("a")
    time.sleep(3.0)
    assert watch(12.0, a, b) == 0
    assert a.link("b")["state"] == b.link("a")["state"] == "up"
    assert a.link("b")["generation"] == b.link("a")["generation"]
    with lab.cut(a_host, b_host):
        time.sleep(12.0)
    restored = time.monotonic()
    waited = max(a.wait_up("b", 8.0), b.wait_up("a", 8.0)) - restored
    time.sleep(2.0)
    assert watch(8.0, a, b) == 0
    figures.tell(f"both dial: one connection, up {waited:.2f} s after the path is back")


@pytest.mark.parametrize("days", [8, -8, 18_250, -18_250])
def test_a_stepped_clock_removes_no_consumer_and_nothing_owed_to_it(
    daemons: Start, tmp_path: Path, days: int
) -> None:
    """While the daemon runs, and while it is off; its consumer is absent all the time."""
    need("libfaketime")
    clock = SteppedClock(tmp_path)
    edge = daemons("edge", "", environment=clock.environment)
    page = "/v1/channels/orders?consumer=billing"
    edge.call("GET", page)
    for number in range(5):
        edge.call("POST", "/v1/channels/orders", b"%d" % number, "text/plain")
    clock.step(days * 86_400.0)
    time.sleep(2.5)
    edge.stop()
    clock.step(2 * days * 86_400.0)
    edge.start()
    time.sleep(2.5)
    owed = edge.call("GET", page)
    assert [one["text"] for one in owed["records"]] == ["0", "1", "2", "3", "4"]
    assert not [line for line in edge.lines if line.fields.get("event") == "consumer.removed"]
