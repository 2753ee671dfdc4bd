"""Whatever strangers throw at a node, its links stay up and its messages arrive as fast as ever."""

from __future__ import annotations

import http.client
import json
import socket
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from linkd.api.site import HEAD_SECONDS
from linkd.config import LimitSettings
from tests.support import figures
from tests.support.daemon import SECRET, Daemon, listen, peer
from tests.support.lab import Lab, LabHost, python
from tests.support.needs import need
from tests.support.pairs import memory

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timing]

CHANNELS = 'send = [">"]\nreceive = [">"]\n'
KEY = "a-key-of-the-api-0123456789-0123456789"
SOURCES = 50
SECONDS = 5.0
QUIET_SECONDS = 1.5
"""For as long it is measured what a message takes before a flood: 37 of them."""
MAX_GROWTH = 64 * 2**20
"""Bytes that a flood may make a daemon grow by."""
MAX_LINES = 2 * SOURCES + 40
"""Lines that a flood may make a daemon write."""


class Probe(threading.Thread):
    """Publishes at one end and waits until the other has it on disk, 25 times a second."""

    def __init__(self, daemon: Daemon, peer_name: str) -> None:
        super().__init__(daemon=True)
        self.took: list[tuple[float, float]] = []
        self.failures: list[str] = []
        self._daemon = daemon
        self._target = f"/v1/channels/probe?wait={peer_name}&timeout=20"
        self._over = threading.Event()

    def run(self) -> None:
        """Measure until `stop`."""
        line = http.client.HTTPConnection("localhost", timeout=25)
        line.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        line.sock.connect(str(self._daemon.socket))
        while not self._over.wait(0.04):
            begun = time.monotonic()
            line.request("POST", self._target, b"1", {"Content-Type": "application/json"})
            answer = line.getresponse()
            said = answer.read()
            self.took.append((begun, time.monotonic() - begun))
            if answer.status != 201:
                self.failures.append(f"{answer.status} {said!r}")
        line.close()

    def between(self, begin: float, end: float) -> list[float]:
        """Return the seconds that messages took which were published in that time."""
        return [took for at, took in self.took if begin <= at < end]

    def stop(self) -> None:
        """Measure no more."""
        self._over.set()
        self.join(30)


class Scene(NamedTuple):
    """A hub, an edge that is linked to it, and a crowd of strangers."""

    hub: Daemon
    edge: Daemon
    crowd: LabHost
    address: str
    probe: Probe


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Return all three, the link up and messages on their way."""
    need("iptables in a network namespace")
    with Lab(tmp_path_factory.mktemp("lab")) as lab:
        hub_host, edge_host, crowd = lab.host("hub"), lab.host("edge"), lab.host("crowd")
        crowd.sh("\n".join(f"ip addr add {a}/24 dev eth0" for a in sources(crowd)[1:]))
        key = tmp_path_factory.mktemp("key") / "api.key"
        key.touch(0o600)
        key.write_text(KEY)
        config = (
            f'http = "0.0.0.0:9480"\ninsecure = true\n[[api.key]]\nname = "app"\n'
            f'secret_file = "{key}"\nsubscribe = [">"]\n'
            + listen()
            + peer("edge", extra=CHANNELS)
            + peer("mallory", extra=CHANNELS)
        )
        hub, edge = Daemon("hub", config, hub_host), Daemon("edge", "", edge_host)
        edge.configure(peer("hub", f"ws://{hub_host.address}:9443/link", extra=CHANNELS))
        with hub, edge:
            edge.wait_up("hub")
            probe = Probe(edge, "hub")
            probe.start()
            time.sleep(QUIET_SECONDS)
            yield Scene(hub, edge, crowd, hub_host.address, probe)
            probe.stop()


def sources(crowd: LabHost) -> list[str]:
    """Return the crowd's addresses."""
    return [f"10.99.{crowd.number}.{last}" for last in range(2, 2 + SOURCES)]


def flood(scene: Scene, kind: str, rate: int, port: int, seconds: float) -> dict[str, int]:
    """Flood the hub for some seconds; return what happened to the strangers."""
    order = {
        "kind": kind,
        "host": scene.address,
        "port": port,
        "seconds": seconds,
        "rate": rate,
        "sources": sources(scene.crowd),
        "secret": KEY if port == 9480 else SECRET,
    }
    command = python("-m", "tests.support.strangers", json.dumps(order))
    process = scene.crowd.popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        told: dict[str, int] = json.loads(process.communicate(timeout=seconds + 60)[0])
        return told
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def lines(daemon: Daemon, after: float) -> Counter[str]:
    """Return how many lines of each kind a daemon has written since."""
    return Counter(str(each.fields.get("event", "?")) for each in daemon.matching(after))


def endure(
    scene: Scene, kind: str, rate: int, port: int = 9443, seconds: float = SECONDS
) -> dict[str, int]:
    """Flood, measure, and judge; a machine that others use too gets three tries for the latency."""
    for _ in range(3):
        quiet = time.monotonic()
        time.sleep(QUIET_SECONDS)
        begun, before = time.monotonic(), memory(scene.hub)
        highest = Highest(scene.hub)
        told = flood(scene, kind, rate, port, seconds)
        ended, grown = time.monotonic(), highest.stop() - before
        usual = statistics.median(scene.probe.between(quiet, begun))
        meanwhile = scene.probe.between(begun, ended)
        median, worst = statistics.median(meanwhile), max(meanwhile)
        written = lines(scene.hub, begun)
        figures.tell(
            f"{kind}, {rate}: {told}; a message took {1000 * usual:.1f} ms before, "
            f"{1000 * median:.1f} ms meanwhile (worst {1000 * worst:.0f}); memory "
            f"{grown / 2**20:+.1f} MiB of {before / 2**20:.0f}; lines {dict(written)}"
        )
        assert scene.probe.failures == []
        assert not list(scene.hub.matching(begun, old="up", peer="edge"))
        assert not list(scene.edge.matching(begun, old="up"))
        assert grown < MAX_GROWTH
        assert written.total() <= MAX_LINES, scene.hub.tail(5)
        assert not written["node.internal-error"]
        assert not written["?"], scene.hub.tail(20)
        if median <= 2 * usual:
            return told
    raise AssertionError(f"{kind}: messages took {median / usual:.1f} times as long")


class Highest(threading.Thread):
    """Looks ten times a second how much memory a daemon has in use; keeps the most."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._daemon = daemon
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        """Look until `stop`."""
        while not self._over.wait(0.1):
            self.most = max(self.most, memory(self._daemon))

    def stop(self) -> int:
        """Look no more; return the most bytes."""
        self._over.set()
        self.join(5)
        return self.most


def test_5000_idle_connections(scene: Scene) -> None:
    told = endure(scene, "idle", 5000)
    assert sum(told.values()) >= 5000
    # A reset may come before the stranger's own connect has returned: "no connection".
    pushed = sum(told.get(how, 0) for how in ("was closed", "closed", "no connection"))
    assert pushed >= 4000


def test_heads_that_never_end(scene: Scene) -> None:
    # The last of them begins after two seconds.
    told = endure(scene, "slow", 500, seconds=LimitSettings().hello_timeout + 2.5)
    assert told.get("cut", 0) + told.get("closed", 0) >= 500


def test_heads_that_never_end_at_the_api(scene: Scene) -> None:
    told = endure(scene, "slow", 500, 9480, HEAD_SECONDS + 2.5)
    assert told.get("cut", 0) + told.get("closed", 0) >= 500


def test_heads_of_1_megabyte(scene: Scene) -> None:
    told = endure(scene, "large-head", 20)
    assert set(told) <= {"431", "503", "closed"}
    assert told.get("431", 0) > 0


def test_heads_of_1_megabyte_at_the_api(scene: Scene) -> None:
    assert set(endure(scene, "large-head", 20, 9480)) <= {"400", "closed"}


def test_10_000_wrong_proofs_a_minute(scene: Scene) -> None:
    told = endure(scene, "wrong-proof", 170)
    assert set(told) <= {"401", "503", "no nonce", "closed"}
    assert told["401"] > 0


def test_15_000_wrong_keys_a_minute(scene: Scene) -> None:
    """More than the burst that is answered to each address."""
    told = endure(scene, "wrong-key", 260, 9480)
    assert set(told) == {"401", "429"}
    assert told["401"] <= SOURCES * 23


def test_garbage(scene: Scene) -> None:
    assert set(endure(scene, "garbage", 150)) <= {"400", "405", "431", "503", "closed"}


@pytest.mark.parametrize("kind", ["fragments", "empty-fragments"])
def test_a_peer_that_sends_fragments_without_end(scene: Scene, kind: str) -> None:
    told = endure(scene, kind, 5)
    assert told.get("never cut", 0) == 0
    assert told["cut"] >= 5


def test_a_caller_that_sends_fragments_without_end(scene: Scene) -> None:
    told = endure(scene, "api-fragments", 5, 9480)
    assert told.get("never cut", 0) == 0
    assert told["cut"] >= 5


def test_a_peer_that_sends_pings_and_reads_nothing(scene: Scene) -> None:
    endure(scene, "pings", 1)


@pytest.mark.parametrize(
    ("kind", "code"), [("huge-length", 1002), ("deflated", 1002), ("bomb", 1007)]
)
def test_a_peer_gone_bad(scene: Scene, kind: str, code: int) -> None:
    told = endure(scene, kind, 3)
    assert told.pop(f"close code {code}") > 0
    assert set(told) <= {"close code None", "closed", "503"}, told
