"""`linkd drain` on real daemons: ahead of a restart under load, undone, and with two URLs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from linkd.drill.testbed import free_port
from tests.support import figures
from tests.support.daemon import Daemon, listen, peer
from tests.support.duo import ALL, Duo, numbers, run, until
from tests.support.unix_http import UnixConnection

AWAY_SECONDS = 1.5
START_SECONDS = 0.5
"""What a start takes on a calm machine; a busy one's counts separately."""


@pytest.fixture
def duo() -> Iterator[Duo]:
    with Duo() as made:
        made.start()
        yield made


class Load(threading.Thread):
    """Publishes numbers to a daemon until it is ended; repeats one until it is acknowledged."""

    def __init__(self, daemon: Daemon, channel: str) -> None:
        super().__init__(daemon=True)
        self._daemon = daemon
        self._channel = channel
        self._ended = threading.Event()
        self.count = 0

    def run(self) -> None:
        while not self._ended.is_set():
            while not self._publish():
                time.sleep(0.02)
            self.count += 1

    def _publish(self) -> bool:
        connection = UnixConnection(str(self._daemon.socket), 5.0)
        try:
            headers = {
                "Content-Type": "application/json",
                "Linkd-Id": f"{self._channel}-{self.count}",
            }
            body = f'{{"n": {self.count}}}'.encode()
            connection.request("POST", f"/v1/channels/{self._channel}", body, headers)
            return connection.getresponse().status in (200, 201)
        except OSError:
            return False  # it restarts
        finally:
            connection.close()

    def end(self) -> int:
        """End; return how many numbers were published."""
        self._ended.set()
        self.join(20.0)
        return self.count


def last_outage(daemon: Daemon, peer: str) -> dict[str, object]:
    found: dict[str, object] = daemon.call("GET", f"/v1/outages?peer={peer}")["outages"][-1]
    return found


@pytest.mark.timing
def test_a_restart_under_load_loses_and_repeats_nothing(duo: Duo) -> None:
    loads = {
        "orders": Load(duo.edge, "orders"),
        "commands": Load(duo.hub, "commands"),
    }
    for load in loads.values():
        load.start()
    time.sleep(0.5)
    done = run(duo.hub, "drain", "--retry-after", "0.5")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("drained in ")
    duo.hub.stop()
    stopped = time.monotonic()
    duo.hub.start()
    starting = duo.hub.wait_line(5.0, stopped, event="node.ready").at - stopped
    duo.joined()
    away = last_outage(duo.edge, "hub")
    counts = {channel: load.end() for channel, load in loads.items()}
    duo.settled()
    for channel, count in counts.items():
        assert count > 20
        for daemon in (duo.edge, duo.hub):
            assert numbers(daemon, channel) == list(range(count))
    assert away["reason"] == "stopped"
    seconds = float(str(away["down_seconds"]))
    figures.tell(f"restart after a drain: away for {seconds:.2f} s, the start took {starting:.2f}")
    assert seconds - starting <= AWAY_SECONDS - START_SECONDS


def test_drained_it_answers_so_and_takes_links_again_when_asked(duo: Duo) -> None:
    assert duo.hub.call("GET", "/readyz") == {"ready": True, "waiting_for": []}
    assert run(duo.hub, "drain", "--undo").stdout == "the node was not draining\n"
    done = run(duo.hub, "drain")
    assert done.returncode == 0
    assert done.stdout.endswith("all links have ended\n")
    assert duo.hub.call("GET", "/readyz")["draining"] is True
    assert duo.hub.call("GET", "/healthz")["ok"] is True
    assert duo.hub.link("edge")["state"] == "stopped"
    checked = run(duo.hub, "status", "--check")
    assert checked.returncode == 1
    assert "this node is draining and takes no links" in checked.stdout
    assert "linkd_draining 1.0" in duo.hub.call("GET", "/metrics")
    until(lambda: duo.edge.link("hub")["attempt_reason"] == "busy", 10.0)
    assert duo.edge.link("hub")["reason"] == "stopped"
    assert run(duo.hub, "drain").returncode == 0  # again: it is drained
    assert run(duo.hub, "drain", "--undo").stdout == "links are taken again\n"
    duo.joined()
    assert duo.hub.call("GET", "/readyz")["ready"] is True
    events = [line.fields["event"] for line in duo.hub.lines if "event" in line.fields]
    named = [event for event in events if "drain" in str(event)]
    assert named == ["node.drain-started", "node.drained", "node.drain-undone"]


def test_the_dialing_end_drains_too(duo: Duo) -> None:
    assert run(duo.edge, "drain").returncode == 0
    assert duo.hub.link("edge")["reason"] == "stopped"
    time.sleep(1.0)
    assert duo.edge.link("hub")["state"] == "stopped"
    assert run(duo.edge, "drain", "--undo").returncode == 0
    duo.joined(5.0)


def test_a_restart_ends_a_drain(duo: Duo) -> None:
    assert run(duo.hub, "drain").returncode == 0
    duo.hub.stop()
    duo.hub.start()
    duo.joined()


@pytest.mark.timing
def test_a_dialer_with_a_second_url_moves_there_at_once() -> None:
    ports = free_port(), free_port()
    hubs = [Daemon("hub", listen(port, "127.0.0.1") + peer("edge", extra=ALL)) for port in ports]
    urls = [f"ws://127.0.0.1:{port}/link" for port in ports]
    edge = Daemon("edge", peer("hub", *urls, extra=ALL))
    try:
        for daemon in (*hubs, edge):
            daemon.start()
        edge.wait_up("hub")
        first, second = sorted(hubs, key=lambda hub: hub.link("edge")["state"] != "up")
        assert second.link("edge")["state"] != "up"
        assert run(first, "drain", "--retry-after", "30").returncode == 0
        second.wait_up("edge", 5.0)
        edge.wait_up("hub", 5.0)
        assert float(str(last_outage(edge, "hub")["down_seconds"])) < 1.0
    finally:
        for daemon in (*hubs, edge):
            daemon.close()
