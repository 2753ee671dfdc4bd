"""Floods as faults: callers of the local API, and strangers at the listener."""

from __future__ import annotations

import json
import subprocess
import time

from tests.chaos.callers import KINDS
from tests.chaos.faults import Happened, Run, Scene
from tests.support.lab import Lab, LabHost, python

ADDRESSES = [f"10.98.{net}.{host}" for net in (1, 2) for host in range(1, 101)]
"""Of the strangers."""

STRANGERS = 600
"""Connections that they hold at once."""

ENDS_SECONDS = 20.0


def route_strangers(lab: Lab) -> LabHost:
    """Return a host that has all of the strangers' addresses."""
    host = lab.host("strangers")
    lab.middle.sh(f"ip route add 10.98.0.0/16 via {host.address}")
    host.sh("ip route add local 10.98.0.0/16 dev lo")
    return host


def _run(host: LabHost, command: list[str]) -> None:
    """Run a flood to its end."""
    process = host.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(ENDS_SECONDS)
    finally:
        process.kill()
        process.wait()


def _callers(kind: str) -> Run:
    def run(scene: Scene, seconds: float) -> Happened:
        daemon = scene.rng.choice(scene.daemons())
        hosts = {"hub": scene.hub_host, **{edge.name: edge.host for edge in scene.edges}}
        order = (kind, str(daemon.socket), f"{min(seconds, 10.0):.3f}")
        began = time.monotonic()
        _run(hosts[daemon.name], python("-m", "tests.chaos.callers", *order))
        return Happened(kind, daemon.name, began, time.monotonic())

    return run


def _strangers(scene: Scene, seconds: float) -> Happened:
    """Hold the hub's listener from many addresses while an edge has to come in again."""
    edge = scene.rng.choice(scene.edges)
    order = {
        "kind": "idle",
        "host": scene.hub_host.address,
        "port": 9443,
        "seconds": min(seconds, 10.0) + 2.0,
        "rate": STRANGERS,
        "sources": ADDRESSES,
    }
    began = time.monotonic()
    process = scene.strangers.popen(
        python("-m", "tests.support.strangers", json.dumps(order)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(min(seconds, 2.0))
        rule = f"INPUT -p tcp -s {scene.hub_host.address} -j REJECT --reject-with tcp-reset"
        edge.host.sh(f"iptables -w 5 -I {rule}\nsleep 1\niptables -w 5 -D {rule}")
        process.wait(ENDS_SECONDS)
    finally:
        process.kill()
        process.wait()
    return Happened("strangers", edge.name, began, time.monotonic())


CROWDS: dict[str, Run] = {**{kind: _callers(kind) for kind in KINDS}, "strangers": _strangers}
