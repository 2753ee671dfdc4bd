"""The faults of the campaign: each begins, lasts, and is mended."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.campaign.traffic import Audit
from tests.support.daemon import Clock, Daemon
from tests.support.lab import Fault, Host, Lab


@dataclass
class Edge:
    """One edge of the topology."""

    name: str
    host: Host
    daemon: Daemon


@dataclass
class Scene:
    """What faults may touch."""

    lab: Lab
    hub_host: Host
    hub: Daemon
    edges: list[Edge]
    audit: Audit
    clocks: dict[str, Clock]
    rng: Random

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


Run = Callable[[Scene, float], Happened]


def _path(kind: str, make: Callable[[Lab, Edge, Host], Fault]) -> Run:
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
    rule = f"INPUT -p tcp -s {scene.hub_host.address} -j REJECT --reject-with tcp-reset"
    edge.host.sh(f"iptables -w 5 -I {rule}")
    time.sleep(min(seconds, 2.0))
    edge.host.sh(f"iptables -w 5 -D {rule}")
    return Happened("reset", edge.name, began, time.monotonic())


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


def _kick(scene: Scene, seconds: float) -> Happened:
    """Ask all dialers to try again, out of season."""
    edge = scene.rng.choice(scene.edges)
    began = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        edge.daemon.signal(signal.SIGUSR1)
    return Happened("kick", edge.name, began, time.monotonic())


FAULTS: dict[str, tuple[int, Run]] = {
    "cut": (4, _path("cut", lambda lab, edge, hub: lab.cut(edge.host, hub))),
    "one way in": (2, _path("one way in", lambda lab, edge, hub: lab.cut(edge.host, hub, "in"))),
    "one way out": (2, _path("one way out", lambda lab, edge, hub: lab.cut(edge.host, hub, "out"))),
    "loss": (2, _path("loss 10 %", lambda lab, edge, hub: lab.loss(edge.host, hub, 0.1))),
    "large": (1, _path("large packets", lambda lab, edge, hub: lab.drop_large(edge.host, hub))),
    "drop.sh": (3, _drop_script),
    "reset": (3, _reset),
    "flap": (2, _flap),
    "kill": (5, _kill),
    "restart": (1, _restart_both),
    "freeze": (3, _freeze),
    "consumer": (3, _consumer),
    "clock": (1, _clock),
    "kick": (1, _kick),
}
"""Each with its weight."""
