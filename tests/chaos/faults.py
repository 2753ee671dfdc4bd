"""The faults of the campaign: each begins, lasts, and is mended."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from linkd.drill.testbed import DrillAuthority, SteppedClock
from tests.chaos.links import Links
from tests.chaos.traffic import Audit
from tests.support.daemon import Daemon
from tests.support.lab import Fault, Lab, LabHost

HUB_NAME = "hub.lab"
DISK = "1g"
"""The size of the small disk."""

LEFT_KIB = 256
"""What is left of it when it is full."""

STARVED_KIB = 8
"""What is left of it when nothing at all may be written."""

TURN_OVER = 80
"""Bodies of 256 KiB after which a log of 16 MiB has nothing left of what it had before."""

RATES = ("4kb/s", "8kb/s", "16kb/s", "32kb/s")
FILLING = "filling"
"""A channel that no peer takes."""

AWAITED_SECONDS = 60.0
DAY_SECONDS = 86_400.0
FAR_SECONDS = [sign * days * DAY_SECONDS for sign in (1, -1) for days in (8, 18_263)]
"""Steps of a wall clock beyond what records, consumers and ids are kept."""

RESET_SECONDS = 1.0
RENEWED_SECONDS = 86_400.0


@dataclass
class Edge:
    """One edge of the topology."""

    name: str
    host: LabHost
    daemon: Daemon


@dataclass
class Scene:
    """What faults may touch.

    `small` is the daemon whose log has a disk of its own, `links` changes the configurations,
    `strangers` is a host without a daemon, `authority` who issued the hub's certificate (None: the
    links are not encrypted).
    """

    lab: Lab
    hub_host: LabHost
    hub: Daemon
    edges: list[Edge]
    audit: Audit
    clocks: dict[str, SteppedClock]
    rng: Random
    small: tuple[Daemon, LabHost]
    links: Links
    strangers: LabHost
    authority: DrillAuthority | None = None

    def daemons(self) -> list[Daemon]:
        """Return all daemons, the hub first."""
        return [self.hub, *(edge.daemon for edge in self.edges)]


@dataclass
class Happened:
    """One fault as it happened: times are monotonic seconds."""

    kind: str
    whom: str
    began: float
    ended: float
    disturbed: tuple[str, ...] = ()
    """Daemons that were killed or frozen: their own measurements don't count meanwhile."""

    back: float | None = None
    """Seconds from the start of who came back until its link was up, without those in which it
    waited for a processor."""

    act: int = 0
    changed: float = -1.0
    """When a new path was complete; -1: none was made."""


Run = Callable[[Scene, float], Happened]


def _path(kind: str, make: Callable[[Lab, Edge, LabHost], Fault]) -> Run:
    def run(scene: Scene, seconds: float) -> Happened:
        edge = scene.rng.choice(scene.edges)
        began = time.monotonic()
        with make(scene.lab, edge, scene.hub_host):
            time.sleep(seconds)
        return Happened(kind, edge.name, began, time.monotonic())

    return run


def _drop_script(scene: Scene, seconds: float) -> Happened:
    """Cut by the bundled scripts, on either host."""
    edge = scene.rng.choice(scene.edges)
    at_hub = scene.rng.random() < 0.5
    host, other = (scene.hub_host, edge.host) if at_hub else (edge.host, scene.hub_host)
    way = scene.rng.choice(["both", "in", "out"])
    began = time.monotonic()
    host.drop(other.address, "--direction", way)
    time.sleep(seconds)
    host.restore(other.address)
    return Happened(f"drop.sh {way}", edge.name, began, time.monotonic())


def _reset(scene: Scene, seconds: float) -> Happened:
    """Answer every packet of the connection by a reset."""
    edge = scene.rng.choice(scene.edges)
    began = time.monotonic()
    _reset_edge(scene, edge, min(seconds, 2.0))
    return Happened("reset", edge.name, began, time.monotonic())


def _reset_edge(scene: Scene, edge: Edge, seconds: float) -> None:
    rule = f"INPUT -p tcp -s {scene.hub_host.address} -j REJECT --reject-with tcp-reset"
    edge.host.sh(f"iptables -w 5 -I {rule}")
    try:
        time.sleep(seconds)
    finally:
        edge.host.sh(f"iptables -w 5 -D {rule}")


def _slow(scene: Scene, seconds: float) -> Happened:
    """Let no more than a few kilobytes a second pass each way; the rest is dropped."""
    edge = scene.rng.choice(scene.edges)
    rate, hub = scene.rng.choice(RATES), scene.hub_host
    began = time.monotonic()
    limit = f"-m hashlimit --hashlimit-above {rate} --hashlimit-burst 32kb --hashlimit-name"
    rules = [
        f"-s {one} -d {two} {limit} s{edge.host.number}{way} -j DROP"
        for way, one, two in (
            ("i", hub.address, edge.host.address),
            ("o", edge.host.address, hub.address),
        )
    ]
    with Fault(scene.lab.middle, rules):
        time.sleep(seconds)
    return Happened(f"slow {rate}", edge.name, began, time.monotonic())


def _dns(scene: Scene, seconds: float) -> Happened:
    """Take the hub's name away from an edge, and cut what is open, so that it is looked up."""
    edge = scene.rng.choice(scene.edges)
    began = time.monotonic()
    edge.host.names({})
    try:
        _reset_edge(scene, edge, min(seconds, RESET_SECONDS))
        time.sleep(max(0.0, seconds - RESET_SECONDS))
    finally:
        edge.host.names({HUB_NAME: scene.hub_host.address})
    return Happened("dns", edge.name, began, time.monotonic())


def _flap(scene: Scene, seconds: float) -> Happened:
    """Cut and restore in quick turns."""
    edge = scene.rng.choice(scene.edges)
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        with scene.lab.cut(edge.host, scene.hub_host):
            time.sleep(scene.rng.uniform(0.1, 1.0))
        time.sleep(scene.rng.uniform(0.1, 1.0))
    return Happened("flap", edge.name, began, time.monotonic())


def _kill(scene: Scene, seconds: float) -> Happened:
    """Kill -9 one daemon, and start it after a while."""
    daemon = scene.rng.choice(scene.daemons())
    began = time.monotonic()
    daemon.kill()
    time.sleep(min(seconds, scene.rng.uniform(0.0, 3.0)))
    daemon.start(60.0)
    return Happened("kill -9", daemon.name, began, time.monotonic(), (daemon.name,))


def _absent(scene: Scene, seconds: float) -> Happened:
    """Stop one daemon cleanly, and start it only when the time is over."""
    daemon = scene.rng.choice(scene.daemons())
    began = time.monotonic()
    daemon.stop(20.0)
    time.sleep(seconds)
    daemon.start(60.0)
    return Happened("absent", daemon.name, began, time.monotonic(), (daemon.name,))


def _restart_both(scene: Scene, seconds: float) -> Happened:
    """Stop the hub and an edge cleanly, and start both."""
    edge = scene.rng.choice(scene.edges)
    began = time.monotonic()
    for daemon in (scene.hub, edge.daemon):
        daemon.stop(20.0)
    for daemon in (scene.hub, edge.daemon):
        daemon.start(60.0)
    return Happened("restart", f"hub {edge.name}", began, time.monotonic(), ("hub", edge.name))


def _freeze(scene: Scene, seconds: float) -> Happened:
    """Stop one process, whose kernel goes on answering."""
    daemon = scene.rng.choice(scene.daemons())
    began = time.monotonic()
    daemon.freeze()
    time.sleep(seconds)
    daemon.thaw()
    return Happened("freeze", daemon.name, began, time.monotonic(), (daemon.name,))


def _consumer(scene: Scene, seconds: float) -> Happened:
    """Kill the named consumer, and start it after a while."""
    began = time.monotonic()
    scene.audit.kill()
    time.sleep(min(seconds, 1.0))
    scene.audit.start()
    return Happened("kill -9 consumer", "audit", began, time.monotonic())


def _clock(scene: Scene, seconds: float) -> Happened:
    """Step the wall clock of one daemon, and back."""
    name = scene.rng.choice(sorted(scene.clocks))
    began = time.monotonic()
    scene.clocks[name].step(scene.rng.choice([3600.0, -3600.0, 288.0, -288.0]))
    time.sleep(min(seconds, 3.0))
    scene.clocks[name].step(0.0)
    return Happened("clock step", name, began, time.monotonic())


def _clock_away(scene: Scene, seconds: float) -> Happened:
    """Step the hub's wall clock by days or decades while the named consumer is away.

    Half the time the hub is killed too, and starts by the wrong clock.
    """
    began = time.monotonic()
    scene.audit.kill()
    scene.clocks["hub"].step(scene.rng.choice(FAR_SECONDS))
    disturbed: tuple[str, ...] = ()
    try:
        if scene.rng.random() < 0.5:
            disturbed = ("hub",)
            scene.hub.kill()
            scene.hub.start(60.0)
        time.sleep(min(seconds, 5.0))
    finally:
        scene.clocks["hub"].step(0.0)
    scene.audit.start()
    return Happened("clock away", "hub", began, time.monotonic(), disturbed)


@contextlib.contextmanager
def _full(daemon: Daemon, host: LabHost, left_kib: int) -> Iterator[None]:
    """Leave so much room on a daemon's small disk."""
    state = daemon.directory / "state"
    for trial in range(10):
        used = int(host.sh(f"df -k --output=used '{state}' | tail -n 1"))
        try:
            host.sh(f"mount -o remount,size={used + left_kib}k '{state}'")
            break
        except RuntimeError:  # more than that was written in between
            if trial == 9:
                raise
    try:
        yield
    finally:
        host.sh(f"mount -o remount,size={DISK} '{state}'")


def _disk(scene: Scene, seconds: float) -> Happened:
    """Leave no room on the small disk: publishes are refused, and what peers send waits."""
    daemon, host = scene.small
    began = time.monotonic()
    with _full(daemon, host, LEFT_KIB):
        time.sleep(seconds)
    return Happened("disk full", daemon.name, began, time.monotonic())


def _starve(scene: Scene, seconds: float) -> Happened:
    """Let the hub write nothing, let the edges' logs turn over meanwhile, then kill the hub -9.

    What it has acknowledged by then, but not written, is on no disk any more.
    """
    daemon, host = scene.small
    began = time.monotonic()
    with _full(daemon, host, STARVED_KIB):
        time.sleep(1.0 + min(seconds, 5.0))
        for edge in scene.edges:
            _turn_over(edge.daemon)
        daemon.kill()
    daemon.start(60.0)
    return Happened("starve", daemon.name, began, time.monotonic(), (daemon.name,))


def _turn_over(daemon: Daemon) -> None:
    """Publish what stays here until everything older that may be deleted is; or until refused."""
    body = bytes(262_144)
    with contextlib.suppress(RuntimeError, OSError):
        for _ in range(TURN_OVER):
            said = daemon.call("POST", f"/v1/channels/{FILLING}", body, "application/octet-stream")
            if "offset" not in said:
                return


def _power(scene: Scene, seconds: float) -> Happened:
    """Let an edge lose its power, and be back while the hub still holds its old connection."""
    edge, hub = scene.rng.choice(scene.edges), scene.hub_host
    began, port = time.monotonic(), ""
    with contextlib.suppress(OSError):  # too busy to answer
        port = str(scene.hub.link(edge.name)["address"]).rpartition(":")[2]
    rules = [
        f"-p tcp -s {edge.host.address} --sport {port} -d {hub.address} -j DROP",
        f"-p tcp -s {hub.address} --dport {port} -d {edge.host.address} -j DROP",
    ]
    with Fault(scene.lab.middle, rules if port.isdecimal() else []):
        edge.daemon.kill()
        killed = time.monotonic()
        edge.daemon.start(60.0)
        ready = edge.daemon.wait_notice("READY=1", 1.0)
        up = edge.daemon.wait_line(AWAITED_SECONDS, killed, peer="hub", event="link.up")
    back = round(max(0.0, up.at - up.queued - ready), 3)
    return Happened("power", edge.name, began, time.monotonic(), (edge.name,), back)


def _certificate(scene: Scene, seconds: float) -> Happened:
    """Let the hub's certificate end, cut what is open so that it is shown, then renew it."""
    if scene.authority is None:
        raise RuntimeError("the links are not encrypted")
    edge = scene.rng.choice(scene.edges)
    began = time.monotonic()
    try:
        scene.authority.issue(scene.hub_host.address, 1.0)
        scene.hub.signal(signal.SIGHUP)
        time.sleep(2.0)
        _reset_edge(scene, edge, RESET_SECONDS)
        time.sleep(seconds)
    finally:
        scene.authority.issue(scene.hub_host.address, RENEWED_SECONDS)
        scene.hub.signal(signal.SIGHUP)
    time.sleep(1.0)
    for each in scene.edges:  # else who was rejected tries again after a minute
        each.daemon.signal(signal.SIGUSR1)
    return Happened("certificate", edge.name, began, time.monotonic())


def _kick(scene: Scene, seconds: float) -> Happened:
    """Ask all dialers to try again, out of season."""
    edge = scene.rng.choice(scene.edges)
    began = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        edge.daemon.signal(signal.SIGUSR1)
    return Happened("kick", edge.name, began, time.monotonic())


BASIC: dict[str, Run] = {
    "cut": _path("cut", lambda lab, edge, hub: lab.cut(edge.host, hub)),
    "one way in": _path("one way in", lambda lab, edge, hub: lab.cut(edge.host, hub, "in")),
    "one way out": _path("one way out", lambda lab, edge, hub: lab.cut(edge.host, hub, "out")),
    "loss": _path("loss 10 %", lambda lab, edge, hub: lab.loss(edge.host, hub, 0.1)),
    "slow": _slow,
    "large": _path("large packets", lambda lab, edge, hub: lab.drop_large(edge.host, hub)),
    "drop.sh": _drop_script,
    "reset": _reset,
    "flap": _flap,
    "dns": _dns,
    "kill": _kill,
    "absent": _absent,
    "restart": _restart_both,
    "freeze": _freeze,
    "disk": _disk,
    "certificate": _certificate,
    "kick": _kick,
    "starve": _starve,
    "power": _power,
    "consumer": _consumer,
    "clock": _clock,
    "clock away": _clock_away,
}
