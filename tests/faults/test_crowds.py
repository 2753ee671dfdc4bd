"""Many dialers at once, and slow lines: nobody is trampled, nobody is dropped by mistake."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from linkd.drill.testbed import Relay
from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.daemon import Daemon, listen, peer
from tests.support.lab import Lab, LabHost
from tests.support.swarm import Swarm

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timing]

Start = Callable[..., Daemon]


class Asking(threading.Thread):
    """Asks a daemon for its status, twice a second; keeps how long each answer took."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon=True)
        self.took: list[float] = []
        self.failed = 0
        self._daemon = daemon
        self._over = threading.Event()

    def run(self) -> None:
        """Ask until `stop`."""
        while not self._over.wait(0.5):
            begun = time.monotonic()
            try:
                self._daemon.status()
                self.took.append(time.monotonic() - begun)
            except OSError:
                self.failed += 1

    def stop(self) -> None:
        """Ask no more."""
        self._over.set()
        self.join(10)


def test_500_dialers_and_a_listener_that_restarts(lab: Lab, daemons: Start) -> None:
    """All back within 15 s of READY, no dialer over 8 attempts, status answered throughout."""
    count = 500
    hub_host, crowd_host = lab.host("hub"), lab.host("crowd")
    names = "".join(peer(f"edge-{number + 1}") for number in range(count))
    # All come from one address here; the bound on all addresses together is as it is.
    limits = "[limits]\npending_per_address = 1000\nhandshakes_per_second_per_address = 1000.0\n"
    hub = daemons("hub", limits + listen() + names, hub_host)
    url = f"ws://{hub_host.address}:9443/link"
    with Swarm(url, count, str(hub.directory / "secret"), crowd_host) as swarm:
        begun = time.monotonic()
        first = swarm.wait_up(count, 60.0) - begun
        time.sleep(6.0)
        assert swarm.report()["up"] == count
        hub.kill()
        time.sleep(2.0)
        hub.start()
        ready = time.monotonic()
        asking = Asking(hub)
        asking.start()
        back = swarm.wait_up(count, 40.0) - ready
        asking.stop()
        report = swarm.report()
    figures.tell(
        f"{count} dialers: all up {first:.1f} s after their start; listener restarted: all back "
        f"{back:.1f} s after READY, at most {max(report['attempts'])} attempts, status answered in "
        f"at most {max(asking.took):.2f} s ({len(asking.took)} times)"
    )
    assert len(report["attempts"]) == count
    assert back <= 15.0
    assert max(report["attempts"]) <= 16  # a host that refuses is tried each half second
    assert asking.failed == 0
    assert max(asking.took) < 2.0


COUNT = 12
AWAY = [
    pytest.param(seconds, how, id=f"{how}-{seconds:g}")
    for seconds in (2.0, 8.0, 20.0)
    for how in ("killed", "stopped")
    if CAMPAIGN or (seconds, how) in ((2.0, "stopped"), (8.0, "killed"), (20.0, "killed"))
]


class Twelve(NamedTuple):
    """A hub and its twelve dialers, on two hosts."""

    hub: Daemon
    hub_host: LabHost
    crowd_host: LabHost
    swarm: Swarm

    def are_back_soon(self, ended: float, healed: float = 0.0, count: int = COUNT) -> None:
        """Judge when the first `count` are back after the hub could be reached again."""
        listens = self.hub.wait_line(5.0, ended, event="listener.started").at
        back: list[float] = []
        for number in range(count):
            name = f"edge-{number + 1}"
            up = self.hub.wait_line(15.0, max(listens, healed), peer=name, new="up")
            back.append(up.at - max(listens, healed))
        back.sort()
        median = back[count // 2]
        figures.tell(f"{count} dialers back after {median:.2f} s (median), all {back[-1]:.2f} s")
        assert median <= 1.2
        assert back[-1] <= 3.0


@pytest.fixture
def twelve(lab: Lab, daemons: Start) -> Iterator[Twelve]:
    """Return them, with stable links."""
    hub_host, crowd_host = lab.host("hub"), lab.host("crowd")
    hub = daemons("hub", listen() + peers(COUNT), hub_host)
    url = f"ws://{hub_host.address}:9443/link"
    with Swarm(url, COUNT, str(hub.directory / "secret"), crowd_host) as swarm:
        swarm.wait_up(COUNT, 20.0)
        time.sleep(5.2)
        yield Twelve(hub, hub_host, crowd_host, swarm)


def peers(count: int) -> str:
    """Return the configuration of so many peers that dial."""
    return "".join(peer(f"edge-{number + 1}") for number in range(count))


@pytest.mark.parametrize(("away", "how"), AWAY)
def test_twelve_dialers_are_back_soon_after_their_hub_listens(
    twelve: Twelve, away: float, how: str
) -> None:
    ended = time.monotonic()
    if how == "killed":
        twelve.hub.kill()
    else:
        twelve.hub.stop()
    time.sleep(max(0.0, ended + away - time.monotonic()))
    twelve.hub.start()
    twelve.are_back_soon(ended)


def test_twelve_dialers_are_back_soon_after_their_hubs_host(lab: Lab, twelve: Twelve) -> None:
    """A host that is off answers nothing: no reset, no goodbye."""
    with lab.cut(twelve.hub_host, twelve.crowd_host):
        ended = time.monotonic()
        twelve.hub.kill()
        time.sleep(12.0)  # all have noticed it
        twelve.hub.start()
    twelve.are_back_soon(ended, time.monotonic())


@pytest.mark.parametrize("count", [10 * COUNT, COUNT // 10])
def test_they_are_back_soon_where_the_hub_has_other_peers(twelve: Twelve, count: int) -> None:
    """Ten times as many as before, or a tenth."""
    ended = time.monotonic()
    twelve.hub.stop()
    twelve.hub.configure(listen() + peers(count))
    time.sleep(2.0)
    twelve.hub.start()
    twelve.are_back_soon(ended, count=min(count, COUNT))


def test_one_that_was_never_connected_comes_as_soon(twelve: Twelve, daemons: Start) -> None:
    """To it nothing was announced."""
    ended = time.monotonic()
    twelve.hub.stop()
    new = peer("hub", f"ws://{twelve.hub_host.address}:9443/link")
    twelve.hub.configure(listen() + peers(COUNT) + peer("new"))
    daemons("new", new, twelve.crowd_host, ready_within=None)
    time.sleep(6.0)
    twelve.hub.start()
    listens = twelve.hub.wait_line(5.0, ended, event="listener.started").at
    assert twelve.hub.wait_line(3.0, listens, peer="new", new="up").at - listens <= 3.0
    twelve.are_back_soon(ended)


@pytest.mark.parametrize("kind", ["two URLs", "both dial"])
def test_one_is_back_soon_over_any_way(lab: Lab, daemons: Start, kind: str) -> None:
    """The first of two URLs refuses; or both ends dial."""
    hub_host, edge_host = lab.host("hub"), lab.host("edge")
    good, bad = (f"ws://{hub_host.address}:{port}/link" for port in (9443, 9444))
    other = [f"ws://{edge_host.address}:9443/link"] if kind == "both dial" else []
    hub = daemons("hub", listen() + peer("edge", *other), hub_host)
    urls = [bad, good] if kind == "two URLs" else [good]
    edge = daemons("edge", listen() + peer("hub", *urls), edge_host)
    edge.wait_up("hub")
    time.sleep(5.2)
    ended = time.monotonic()
    hub.kill()
    time.sleep(8.0)
    hub.start()
    listens = hub.wait_line(5.0, ended, event="listener.started").at
    took = hub.wait_line(5.0, listens, peer="edge", new="up").at - listens
    figures.tell(f"{kind}: back {took:.2f} s after the hub listens")
    assert took <= 1.2


def test_a_slow_line_with_megabytes_queued_drops_nothing(lab: Lab, daemons: Start) -> None:
    """64 KiB/s, more to send each way than passes: the heartbeat is never starved."""
    seconds = 120.0 if CAMPAIGN else 45.0
    host = lab.host("both")
    channels = 'send = ["bulk"]\nreceive = ["bulk"]\n'
    hub = daemons("hub", listen(9443, "127.0.0.1") + peer("edge", extra=channels), host)
    with Relay(("127.0.0.1", 9443), host.prefix) as relay:
        dial = peer("hub", f"ws://127.0.0.1:{relay.port}/link", extra=channels)
        edge = daemons("edge", dial, host)
        edge.wait_up("hub")
        relay.slow(64 * 1024)
        body = b"x" * (256 * 1024)
        for daemon in (hub, edge):
            for _ in range(round(seconds / 3.75)):
                daemon.call("POST", "/v1/channels/bulk", body, "application/octet-stream")
        begun = time.monotonic()
        silences = []
        while time.monotonic() - begun < seconds:
            silences += [hub.link("edge")["silence_seconds"], edge.link("hub")["silence_seconds"]]
            time.sleep(0.5)
        passed = relay.order()["passed"]
        drops = [d for node in (hub, edge) for d in node.lines if d.fields.get("old") == "up"]
        assert drops == []
        backlogs = [hub.link("edge")["backlog_records"], edge.link("hub")["backlog_records"]]
    figures.tell(
        f"64 KiB/s with megabytes queued each way, {seconds:.0f} s: 0 dropped, longest silence "
        f"{max(silences):.1f} s, {passed / 2**20:.1f} MiB passed, backlog then {backlogs}"
    )
    assert passed > seconds * 64 * 1024


def test_large_packets_alone_are_lost(lab: Lab, daemons: Start) -> None:
    """A path that eats packets above 1,000 bytes is dead as soon as such data is sent."""
    hub_host, edge_host = lab.host("hub"), lab.host("edge")
    channels = 'send = ["bulk"]\nreceive = ["bulk"]\n'
    hub = daemons("hub", listen() + peer("edge", extra=channels), hub_host)
    dial = peer("hub", f"ws://{hub_host.address}:9443/link", extra=channels)
    edge = daemons("edge", dial, edge_host)
    edge.wait_up("hub")
    with lab.drop_large(hub_host, edge_host, 1000):
        cut = time.monotonic()
        for _ in range(5):
            for daemon in (hub, edge):
                daemon.call("POST", "/v1/channels/bulk", b"x" * 5000, "application/octet-stream")
            time.sleep(0.2)
        for daemon, name, bounds in ((hub, "edge", (6.9, 7.1)), (edge, "hub", (9.9, 10.1))):
            line = daemon.wait_line(14.0, cut, peer=name, old="up")
            seconds = float(line.fields["noticed_after_seconds"])
            figures.tell(
                f"large packets lost: {daemon.name}: {line.fields['reason']} after {seconds:.2f} s"
            )
            if line.fields["reason"] in ("silence", "ping-timeout"):
                assert bounds[0] <= seconds <= bounds[1] + line.queued, line
            else:
                assert line.fields["reason"] == "closed", line
                assert seconds <= bounds[1] + line.queued
    restored = time.monotonic()
    edge.wait_line(10.0, restored - 0.5, peer="hub", event="link.up")
    end = time.monotonic() + 10.0
    while hub.link("edge")["backlog_records"] or edge.link("hub")["backlog_records"]:
        assert time.monotonic() < end
        time.sleep(0.1)
