"""A name with several addresses, of which one is good: the link is up in time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from tests.support import figures
from tests.support.daemon import Daemon, listen, peer
from tests.support.lab import Fault, Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]

Start = Callable[..., Daemon]
CONNECT_TIMEOUT = 5.0

SERVE = """
import socket, sys, threading
def serve(address, answer):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 9443), family=family) as server:
        kept = []
        while True:
            one, _ = server.accept()
            kept.append(one)
            if answer:
                one.recv(4096)
                one.sendall(b"HTTP/1.1 502 Bad Gateway\\r\\nContent-Length: 0\\r\\n\\r\\n")
for each in sys.argv[1:]:
    temper, address = each.split("=")
    threading.Thread(target=serve, args=(address, temper == "bad-gateway"), daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""
"""Is mute, or answers 502, at some addresses."""


@pytest.mark.parametrize("seed", range(4))
def test_one_good_address_of_eight(lab: Lab, daemons: Start, seed: int) -> None:
    dice = random.Random(seed)
    hub_host, edge_host = lab.host("hub"), lab.host("edge")
    fours = [f"10.99.{hub_host.number}.{20 + number}" for number in range(4)]
    sixes = [f"fd99:0:0:{hub_host.number:x}::{20 + number}" for number in range(4)]
    for address in fours:
        hub_host.sh(f"ip addr add {address}/24 dev eth0")
    for address in sixes:
        hub_host.sh(f"ip addr add {address}/64 dev eth0 nodad")
    addresses = fours + sixes
    dice.shuffle(addresses)
    tempers = ["silent", "mute", "bad-gateway", "refusing"] * 2
    dice.shuffle(tempers)
    tempers[dice.randrange(8)] = "good"
    by = dict(zip(addresses, tempers, strict=True))
    good = next(address for address, temper in by.items() if temper == "good")
    hub = daemons("hub", listen(9443, good) + peer("edge"), hub_host)
    edge_host.names({"hub.test": addresses})
    served = [f"{temper}={at}" for at, temper in by.items() if temper in ("mute", "bad-gateway")]
    silent = [f"-d {at} -j DROP" for at, temper in by.items() if temper == "silent"]
    with hub_host.serving(SERVE, *served), Fault(lab.middle, silent):
        edge = daemons("edge", peer("hub", "ws://hub.test:9443/link"), edge_host)
        begun = time.monotonic()
        edge.wait_up("hub", CONNECT_TIMEOUT + 2.0)
        took = time.monotonic() - begun
        # Back at once: the good address comes first now.
        hub.kill()
        hub.start()
        ready = time.monotonic()
        edge.wait_up("hub", CONNECT_TIMEOUT + 2.0)
        back = time.monotonic() - ready
    figures.tell(
        f"eight addresses ({', '.join(tempers)}): up after {took:.2f} s,"
        f" {back:.2f} s after the hub's restart"
    )
    assert took <= CONNECT_TIMEOUT + 2.0
