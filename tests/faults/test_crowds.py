"""Many dialers at once, and slow lines: nobody is trampled, nobody is dropped by mistake."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from linkd.drill.testbed import Relay
from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.daemon import Daemon, listen, peer
from tests.support.lab import Lab
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


def test_twelve_dialers_are_back_soon_after_their_hub_listens(lab: Lab, daemons: Start) -> None:
    """Killed or stopped, away for long or short: median 1.2 s at most, the last within 3 s."""
    count = 12
    hub_host, crowd_host = lab.host("hub"), lab.host("crowd")
    names = "".join(peer(f"edge-{number + 1}") for number in range(count))
    hub = daemons("hub", listen() + names, hub_host)
    url = f"ws://{hub_host.address}:9443/link"
    with Swarm(url, count, str(hub.directory / "secret"), crowd_host) as swarm:
        swarm.wait_up(count, 20.0)
        for away, end in ((8.0, hub.kill), (2.0, hub.stop)):
            time.sleep(5.2)  # the links are stable
            ended = time.monotonic()
            end()
            time.sleep(max(0.0, ended + away - time.monotonic()))
            seen = len(hub.lines)
            hub.start()
            swarm.wait_up(count, 20.0)
            listens = hub.wait_line(5.0, ended, event="listener.started").at
            ups = [line.at for line in hub.lines[seen:] if line.fields.get("new") == "up"]
            back = sorted(each - listens for each in ups)
            figures.tell(
                f"hub away for {away:g} s by {end.__name__}: {count} dialers back after "
                f"{back[count // 2]:.2f} s (median), the last after {back[-1]:.2f} s"
            )
            assert len(back) == count
            assert back[count // 2] <= 1.2
            assert back[-1] <= 3.0


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
