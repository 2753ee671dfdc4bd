"""Strangers from many addresses hold the listener: peers come in all the same."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from linkd.net.admission import FILE, GreetedAddresses
from tests.support import figures
from tests.support.daemon import Daemon, listen, peer
from tests.support.lab import Lab, LabHost

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timing]

Start = Callable[..., Daemon]
WITHIN = 10.0
NET = "10.98"

HOLD = """
import selectors, socket, sys, time
hub, count, most, a_second = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
selector, opened, began = selectors.DefaultSelector(), 0, time.monotonic()
print("ready", flush=True)
while True:
    while len(selector.get_map()) < most and opened < (time.monotonic() - began) * a_second:
        stranger = socket.socket()
        stranger.setblocking(False)
        number = opened % count
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind((f"10.98.{number // 250}.{number % 250 + 1}", 0))
        stranger.connect_ex((hub, 9443))
        selector.register(stranger, selectors.EVENT_READ)
        opened += 1
    for key, _ in selector.select(0.005):
        try:
            over = not key.fileobj.recv(100)
        except OSError:
            over = True
        if over:
            selector.unregister(key.fileobj)
            key.fileobj.close()
"""
"""Idle connections from `count` addresses, `most` at once; each that is closed is made again."""


def around(lab: Lab, host: LabHost) -> None:
    """Give a host the addresses of the strangers, as a router with a whole net behind it."""
    lab.middle.sh(f"ip route add {NET}.0.0/16 via {host.address}")
    gateway = f"10.99.{host.number}.1"
    host.sh(
        f"ip route add local {NET}.0.0/16 dev lo\nip addr add {NET}.0.1/32 dev eth0\n"
        f"ip route change default via {gateway} src {NET}.0.1\n"
        "echo 16384 > /proc/sys/net/ipv4/tcp_max_syn_backlog"
    )


def up_after(edge: Daemon) -> float:
    """Return how long a peer's daemon takes from its start, which takes long here, to its link."""
    ready = edge.wait_line(20.0, event="node.ready").at
    return max(0.0, edge.wait_line(WITHIN, peer="hub", new="up").at - ready)


@pytest.mark.parametrize("strangers", [17, 1000])
def test_peers_come_in_while_strangers_hold_the_listener(
    lab: Lab, daemons: Start, strangers: int
) -> None:
    hub_host, here, elsewhere, behind = (
        lab.host(name) for name in ("hub", "here", "elsewhere", "behind")
    )
    around(lab, behind)
    names = ("known", "never", "moved", "shared")
    hub = daemons("hub", listen() + "".join(peer(name) for name in names), hub_host)
    dial = peer("hub", f"ws://{hub_host.address}:9443/link")

    def edge(name: str, host: LabHost) -> Daemon:
        return daemons(name, dial, host, ready_within=None)

    took: dict[str, float] = {}
    for name in ("known", "moved"):
        daemon = daemons(name, dial, here)
        daemon.wait_up("hub")
        daemon.stop()
    order = (str(strangers), "3000", "500")
    with behind.serving(HOLD, hub_host.address, *order):
        time.sleep(8.0)
        edges = [
            edge(name, host)
            for name, host in (
                ("known", here),
                ("never", elsewhere),
                ("moved", elsewhere),
                ("shared", behind),
            )
        ]
        begun = time.monotonic()
        for daemon in edges:
            daemon.wait_up("hub", WITHIN)
            took[daemon.name] = time.monotonic() - begun
        held = hub.call("GET", "/metrics")
        hub.kill()
        hub.start()
        ready = time.monotonic()
        for daemon in edges:
            daemon.wait_up("hub", WITHIN)
            took[f"{daemon.name}, restart"] = time.monotonic() - ready
        late = [line.fields["late_seconds"] for line in hub.matching(event="node.loop-lag")]
    pushed = [line for line in held.splitlines() if line.startswith("linkd_listener_refused_total")]
    figures.tell(
        f"{strangers} strangers' addresses hold the listener: up after "
        + json.dumps({name: round(seconds, 1) for name, seconds in took.items()})
        + f", late {late}, {pushed}"
    )
    assert max(took.values()) < WITHIN
    assert pushed, "the strangers did not fill the listener"


def test_mute_connections_from_an_address_of_many_peers_lock_nobody_out(
    lab: Lab, daemons: Start
) -> None:
    """600 peers are known behind one address; 3,000 connections from there send nothing."""
    hub_host, elsewhere, behind = (lab.host(name) for name in ("hub", "elsewhere", "behind"))
    around(lab, behind)
    crowd = [f"edge-{number}" for number in range(600)]
    names = "".join(peer(name) for name in (*crowd, "never", "shared"))
    hub = daemons("hub", listen() + names, hub_host)
    hub.stop()
    table = GreetedAddresses(hub.directory / "state" / FILE)
    for name in crowd:
        table.greeted(name, f"{NET}.0.1", 0.0)
    table.write(table.to_write(60.0) or b"")
    hub.start()
    dial = peer("hub", f"ws://{hub_host.address}:9443/link")
    took: dict[str, float] = {}
    with behind.serving(HOLD, hub_host.address, "1", "3000", "1000"):
        time.sleep(6.0)
        for name, host in (("never", elsewhere), ("shared", behind)):
            took[name] = up_after(daemons(name, dial, host, ready_within=None))
        late = [line.fields["late_seconds"] for line in hub.matching(event="node.loop-lag")]
    figures.tell(
        "3,000 mute connections from an address of 600 peers: up after "
        + json.dumps({name: round(seconds, 1) for name, seconds in took.items()})
        + f", late {late}"
    )
    assert took["never"] < 3.0
    assert took["shared"] < WITHIN
