"""A path that loses large packets: the cause is named, and what is owed arrives all the same."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.support import figures
from tests.support.daemon import Daemon, listen, peer
from tests.support.lab import Lab, python

pytestmark = [pytest.mark.lab, pytest.mark.slow]

Start = Callable[..., Daemon]
CHANNELS = 'send = ["bulk"]\nreceive = ["bulk"]\n'
QUICK = "[heartbeat]\nping_interval = 1.0\nping_timeout = 1.0\n"


@pytest.mark.parametrize("who", ["edge", "hub"])
def test_the_cause_is_named_and_the_next_dial_passes(lab: Lab, daemons: Start, who: str) -> None:
    hub_host, edge_host = lab.host("hub"), lab.host("edge")
    for host in (hub_host, edge_host):
        # Else several segments pass the router as one packet, which is longer than any on a wire.
        host.sh("ip link set eth0 gso_max_segs 1")
    hub = daemons("hub", QUICK + listen() + peer("edge", extra=CHANNELS), hub_host)
    dial = peer("hub", f"ws://{hub_host.address}:9443/link", extra=CHANNELS)
    edge = daemons("edge", QUICK + dial, edge_host)
    edge.wait_up("hub")
    owes, other = (edge, "hub") if who == "edge" else (hub, "edge")
    owing_host, far_host = (edge_host, hub_host) if who == "edge" else (hub_host, edge_host)
    with lab.drop_large(owing_host, far_host, 1300, "out"):
        begun = time.monotonic()
        owes.call("POST", "/v1/channels/bulk", os.urandom(20_000), "application/octet-stream")
        line = owes.wait_line(45.0, begun, event="link.large-messages-lost", peer=other)
        named = time.monotonic() - begun
        assert "MTU?" in line.fields["detail"]
        while owes.link(other)["backlog_records"]:
            assert time.monotonic() - begun < 60.0
            time.sleep(0.1)
        drained = time.monotonic() - begun
        assert edge.link("hub")["large_messages_lost"]
        check = subprocess.run(
            python("-m", "linkd", "status", "--check", "--socket", str(owes.socket)),
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert (check.returncode, "large ones do not: MTU?" in check.stdout) == (1, True)
    figures.tell(
        f"packets above 1,300 bytes lost from {who} on: named after {named:.1f} s, all there"
        f" after {drained:.1f} s"
    )
