"""Many dialers at once, and slow lines: nobody is trampled, nobody is dropped by mistake."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import pytest

from linkd.drill.testbed import Relay
from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.daemon import Daemon, listen, peer
from tests.support.lab import Lab, LabHost
from tests.support.needs import need
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
SETTLED_SECONDS = 5.2
"""A link that was up for five seconds is stable: its next attempt is the first one again."""


class Scene(NamedTuple):
    """Two hosts for one hub and its dialers, beside those of other cases."""

    name: str
    lab: Lab
    hub_host: LabHost
    other_host: LabHost
    stack: ExitStack
    all_up: threading.Barrier

    def daemon(
        self, name: str, config: str, host: LabHost, ready_within: float | None = 30.0
    ) -> Daemon:
        """Start a daemon that ends with the case."""
        daemon = Daemon(name, config, host)
        self.stack.callback(daemon.close)
        daemon.start(ready_within)
        return daemon

    def settle(self) -> float:
        """Wait until the links of all cases are stable; return when (monotonic)."""
        self.all_up.wait(60.0)
        time.sleep(SETTLED_SECONDS)
        return time.monotonic()

    @property
    def url(self) -> str:
        """The hub's address."""
        return f"ws://{self.hub_host.address}:9443/link"


class Twelve:
    """A hub and its twelve dialers, with stable links."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.hub = scene.daemon("hub", listen() + peers(COUNT), scene.hub_host)
        secret = str(self.hub.directory / "secret")
        swarm = scene.stack.enter_context(Swarm(scene.url, COUNT, secret, scene.other_host))
        swarm.wait_up(COUNT, 30.0)
        self.settled = scene.settle()

    def start_again(self, away: float) -> None:
        """Start the hub so many seconds after it ended."""
        time.sleep(max(0.0, self.settled + away - time.monotonic()))
        self.hub.start()

    def are_back_soon(self, healed: float = 0.0, count: int = COUNT) -> None:
        """Judge when the first `count` are back after the hub could be reached again."""
        listens = self.hub.wait_line(5.0, self.settled, event="listener.started").at
        back: list[float] = []
        for number in range(count):
            name = f"edge-{number + 1}"
            up = self.hub.wait_line(15.0, max(listens, healed), peer=name, new="up")
            back.append(up.at - max(listens, healed))
        back.sort()
        median = back[count // 2]
        figures.tell(
            f"{self.scene.name}: {count} dialers back after {median:.2f} s (median),"
            f" all {back[-1]:.2f} s"
        )
        assert median <= 1.2
        assert back[-1] <= 3.0


def peers(count: int) -> str:
    """Return the configuration of so many peers that dial."""
    return "".join(peer(f"edge-{number + 1}") for number in range(count))


def hub_ends(scene: Scene, away: float, kill: bool) -> None:
    """It is killed, or stops in order."""
    twelve = Twelve(scene)
    if kill:
        twelve.hub.kill()
    else:
        twelve.hub.stop()
    twelve.start_again(away)
    twelve.are_back_soon()


def host_is_off(scene: Scene, away: float) -> None:
    """A host that is off answers nothing: no reset, no goodbye. All notice it.

    When it is on again it knows no connection: the hub's are reset where its process is killed, and
    the cut drops the resets.
    """
    twelve = Twelve(scene)
    with scene.lab.cut(scene.hub_host, scene.other_host):
        twelve.hub.kill()
        twelve.start_again(away)
        heals = time.monotonic()  # a link may be up before the last rule is away
    twelve.are_back_soon(heals)


def hub_has_other_peers(scene: Scene, away: float, count: int) -> None:
    """Ten times as many as before, or a tenth."""
    twelve = Twelve(scene)
    twelve.hub.stop()
    twelve.hub.configure(listen() + peers(count))
    twelve.start_again(away)
    twelve.are_back_soon(count=min(count, COUNT))


def one_was_never_connected(scene: Scene, away: float) -> None:
    """To it nothing was announced."""
    twelve = Twelve(scene)
    twelve.hub.stop()
    twelve.hub.configure(listen() + peers(COUNT) + peer("new"))
    scene.daemon("new", peer("hub", scene.url), scene.other_host, ready_within=None)
    twelve.start_again(away)
    listens = twelve.hub.wait_line(5.0, twelve.settled, event="listener.started").at
    assert twelve.hub.wait_line(3.0, listens, peer="new", new="up").at - listens <= 3.0
    twelve.are_back_soon()


def one_has_another_way(scene: Scene, away: float, both_dial: bool) -> None:
    """The first of two URLs refuses; or both ends dial."""
    other = [f"ws://{scene.other_host.address}:9443/link"] if both_dial else []
    hub = scene.daemon("hub", listen() + peer("edge", *other), scene.hub_host)
    urls = [scene.url] if both_dial else [scene.url.replace("9443", "9444"), scene.url]
    edge = scene.daemon("edge", listen() + peer("hub", *urls), scene.other_host)
    edge.wait_up("hub")
    settled = scene.settle()
    hub.kill()
    time.sleep(max(0.0, settled + away - time.monotonic()))
    hub.start()
    listens = hub.wait_line(5.0, settled, event="listener.started").at
    took = hub.wait_line(5.0, listens, peer="edge", new="up").at - listens
    figures.tell(f"{scene.name}: back {took:.2f} s after the hub listens")
    assert took <= 1.2


CASES: dict[str, Callable[[Scene], None]] = {
    "stopped for 2 s": partial(hub_ends, away=2.0, kill=False),
    "ten times the peers": partial(hub_has_other_peers, away=4.0, count=10 * COUNT),
    "a tenth of the peers": partial(hub_has_other_peers, away=6.0, count=COUNT // 10),
    "killed, away for 8 s": partial(hub_ends, away=8.0, kill=True),
    "one never connected": partial(one_was_never_connected, away=10.0),
    "host off for 12 s": partial(host_is_off, away=12.0),
    "two URLs": partial(one_has_another_way, away=14.0, both_dial=False),
    "both dial": partial(one_has_another_way, away=17.0, both_dial=True),
    "killed, away for 20 s": partial(hub_ends, away=20.0, kill=True),
    "host off for 2 s": partial(host_is_off, away=2.0),
}
"""Ways for a hub to be away. They are seen at once, and each comes back at a time of its own."""
if CAMPAIGN:
    CASES["killed, away for 2 s"] = partial(hub_ends, away=2.0, kill=True)
    CASES["stopped for 8 s"] = partial(hub_ends, away=8.0, kill=False)
    CASES["stopped for 20 s"] = partial(hub_ends, away=20.0, kill=False)
    CASES["host off for 8 s"] = partial(host_is_off, away=8.0)
    CASES["host off for 20 s"] = partial(host_is_off, away=20.0)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[None]]:
    """Return what came of each case."""
    need("iptables in a network namespace")
    all_up = threading.Barrier(len(CASES))

    def see(name: str, hub_host: LabHost, other_host: LabHost) -> None:
        with ExitStack() as stack:
            try:
                CASES[name](Scene(name, lab, hub_host, other_host, stack, all_up))
            except BaseException:
                all_up.abort()  # the others need not wait for its links
                raise

    with Lab(tmp_path_factory.mktemp("lab")) as lab, ThreadPoolExecutor(len(CASES)) as pool:
        hosts = {name: (lab.host("hub"), lab.host("crowd")) for name in CASES}
        futures = {name: pool.submit(see, name, *pair) for name, pair in hosts.items()}
        wait(futures.values())
    return futures


@pytest.mark.parametrize("case", CASES)
def test_dialers_are_back_soon_after_their_hub_listens(
    seen: dict[str, Future[None]], case: str
) -> None:
    seen[case].result()


def test_a_slow_line_with_megabytes_queued_drops_nothing(lab: Lab, daemons: Start) -> None:
    """64 KiB/s, more to send each way than passes: the heartbeat is never starved."""
    seconds = 120.0 if CAMPAIGN else 26.25
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
