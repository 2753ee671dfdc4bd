"""A client that leaks connections to the API takes no descriptor from links and log."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from linkd.drill.testbed import free_port
from tests.support import figures
from tests.support.daemon import Daemon, listen, peer

pytestmark = pytest.mark.slow

Start = Callable[..., Daemon]
LIMIT = 64
LIMITED = (
    f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT}))\n"
    "from linkd.cli import main; raise SystemExit(main())"
)
CHANNELS = 'send = [">"]\nreceive = [">"]\n'


def test_a_leak_of_api_connections(daemons: Start) -> None:
    port, http = free_port(), free_port()
    hub = daemons("hub", listen(port, "127.0.0.1") + peer("edge", extra=CHANNELS))
    edge = Daemon(
        "edge",
        f'http = "127.0.0.1:{http}"\nrequire_key = false\n[log]\nmax_body_bytes = 1048576\n'
        "segment_bytes = 1048576\nmax_bytes = 268435456\n"
        + peer("hub", f"ws://127.0.0.1:{port}/link", extra=CHANNELS),
    )
    edge.program = ("-c", LIMITED)
    with contextlib.ExitStack() as leak, edge:
        edge.wait_up("hub")
        held = edge.wait_line(5.0, event="node.limits-held")
        assert held.fields["limit"] == LIMIT
        assert held.fields["api_connections"] < LIMIT / 2
        for _ in range(60):
            with contextlib.suppress(OSError):
                leak.enter_context(socket.create_connection(("127.0.0.1", http), 1.0))
        edge.wait_line(5.0, event="api.busy")
        open_files = sum(1 for _ in (Path("/proc") / str(edge.pid) / "fd").iterdir())
        assert open_files < LIMIT - 8
        assert 'linkd_api_refused_total{reason="connections"}' in edge.call("GET", "/metrics")
        for _ in range(6):  # each needs a new segment
            edge.call("POST", "/v1/channels/a", os.urandom(700_000), "application/octet-stream")
        hub.kill()
        hub.start()
        ready = time.monotonic()
        edge.call("POST", "/v1/peers/hub/kick")  # its delay may have grown meanwhile
        edge.wait_up("hub", 10.0)
        back = time.monotonic() - ready
        end = time.monotonic() + 10.0
        while edge.link("hub")["backlog_records"]:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert edge.status()["warnings"] == []
        reasons = {line.fields.get("new") for line in edge.matching(peer="hub")}
        assert "rejected" not in reasons
    figures.tell(
        f"60 leaked API connections at {LIMIT} descriptors: {json.dumps(open_files)} in use,"
        f" link back {back:.1f} s after the hub"
    )
