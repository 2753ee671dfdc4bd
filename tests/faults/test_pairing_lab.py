"""Two hosts that know nothing of each other become a pair by two commands, and only rightly."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from linkd.drill.testbed import SteppedClock
from tests.support import figures
from tests.support.daemon import Daemon
from tests.support.lab import Lab
from tests.support.needs import need
from tests.support.pairing_hosts import HUB, command, invite, man_in_the_middle, newcomer

pytestmark = pytest.mark.lab

Start = Callable[..., Daemon]


def test_two_hosts_from_nothing_by_two_commands(lab: Lab, daemons: Start) -> None:
    """Daemons start without any certificate; then one command on each, and messages flow."""
    hub_host, edge_host = lab.host("hub"), lab.host("edge")
    begun = time.monotonic()
    hub = daemons("hub", HUB, hub_host)
    edge = newcomer(daemons, "edge-1", edge_host)
    started = time.monotonic()
    code = invite(hub, "edge-1")
    joined = command(edge, "join", code)
    paired = time.monotonic()
    assert joined.returncode == 0, joined.stderr
    assert "hub is up at wss://10.99.1.2:9443/link" in joined.stderr
    hub.call("POST", "/v1/channels/edge-1.commands", b'"go"')
    edge.call("POST", "/v1/channels/orders", b'"one"')
    there = edge.call("GET", "/v1/channels/edge-1.commands?from=earliest&wait=10", timeout=15)
    here = hub.call("GET", "/v1/channels/orders?from=earliest&wait=10", timeout=15)
    assert [each["data"] for each in there["records"]] == ["go"]
    assert [each["data"] for each in here["records"]] == ["one"]
    whole = time.monotonic() - begun
    figures.tell(
        f"paired from nothing: two commands {paired - started:.1f} s; with both daemons' starts "
        f"and a message each way {whole:.1f} s"
    )
    assert whole < 60.0
    rows = command(hub, "peers").stdout.splitlines()
    assert rows[1].split() == ["edge-1", "paired", "364d", "yes"]
    assert command(edge, "peers").stdout.splitlines()[1].split() == ["hub", "joined", "364d", "yes"]
    written = [p.name for p in edge.directory.glob("linkd.d/*")]
    assert written == ["hub.toml"]
    assert 0 < hub.link("edge-1")["certificate_expires_seconds"] <= 366 * 86_400

    used = command(edge, "join", code)
    assert used.returncode == 4
    assert "the code was used before" in used.stderr

    # Taken back: at once, on a link that is up; both ends say so, and a new code mends it.
    assert command(hub, "revoke", "edge-1").returncode == 0
    taken = time.monotonic()
    while (found := edge.link("hub"))["state"] != "rejected":
        assert time.monotonic() - taken < 15.0, found
        time.sleep(0.05)
    while "revoked" not in str((found := edge.link("hub"))["attempt_detail"]):
        assert time.monotonic() - taken < 15.0, found
        time.sleep(0.05)
    seen = hub.link("edge-1")
    assert seen["state"] == "rejected"
    assert seen["reason"] in ("rejected", "tls")
    assert "revoked" in seen["detail"]
    figures.tell(f"revoked: seen on both ends after {time.monotonic() - taken:.1f} s")
    again = command(edge, "join", "-", stdin=invite(hub, "edge-1") + "\n")
    assert again.returncode == 0, again.stderr


def test_a_restart_keeps_the_pair(lab: Lab, daemons: Start) -> None:
    """Certificates and peers are on disk; codes are not."""
    hub_host, edge_host = lab.host("hub"), lab.host("edge")
    hub = daemons("hub", HUB, hub_host)
    edge = newcomer(daemons, "edge-1", edge_host)
    assert command(edge, "join", invite(hub, "edge-1")).returncode == 0
    forgotten = invite(hub, "edge-2")
    for daemon in (hub, edge):
        daemon.kill()
        daemon.start()
    edge.wait_up("hub")
    other = newcomer(daemons, "edge-2", edge_host)
    refused = command(other, "join", forgotten)
    assert refused.returncode == 4
    assert "the hub has restarted" in refused.stderr


def test_wrong_and_expired_codes(lab: Lab, daemons: Start, tmp_path: Path) -> None:
    """Each is refused with its own words, and writes nothing."""
    need("libfaketime")
    hub_host, edge_host = lab.host("hub"), lab.host("edge")
    clock = SteppedClock(tmp_path)
    ahead = {"FAKETIME_DONT_FAKE_MONOTONIC": "0", "DONT_FAKE_MONOTONIC": "0"}
    hub = daemons("hub", HUB, hub_host, environment={**clock.environment, **ahead})
    edge = newcomer(daemons, "edge-1", edge_host)
    other = invite(hub, "edge-2")
    stale = invite(hub, "edge-1")
    mistyped = command(edge, "join", stale[:-1] + ("A" if stale[-1] != "A" else "B"))
    assert mistyped.returncode == 2
    assert "copy it again" in mistyped.stderr
    foreign = command(edge, "join", other)
    assert foreign.returncode == 2
    assert "the code is for the node 'edge-2'" in foreign.stderr
    clock.step(601.0)
    expired = command(edge, "join", stale)
    assert expired.returncode == 4
    assert "the code has expired" in expired.stderr
    assert not list(edge.directory.glob("linkd.d/*"))
    assert not list((edge.directory / "state" / "pairing").glob("*"))
    assert not list(hub.directory.glob("linkd.d/*"))
    refused = hub.wait_line(5.0, event="pairing.refused")
    assert "expired" in refused.fields["detail"]
    assert command(edge, "join", invite(hub, "edge-1")).returncode == 0


def test_a_man_in_the_middle(lab: Lab, daemons: Start, tmp_path: Path) -> None:
    """Who stands in between with a certificate of his own gets nothing, not even the code."""
    hub_host, edge_host, between = lab.host("hub"), lab.host("edge"), lab.host("between")
    hub = daemons("hub", HUB, hub_host)
    edge = newcomer(daemons, "edge-1", edge_host)
    code = invite(hub, "edge-1", "--address", "hub.lab")
    edge_host.names({"hub.lab": between.address})
    with man_in_the_middle(between, hub_host.address, "hub.lab", tmp_path):
        refused = command(edge, "join", code)
    assert refused.returncode == 4
    assert "someone may intercept the connection" in refused.stderr
    assert not list(edge.directory.glob("linkd.d/*"))
    assert [row.split()[1] for row in command(hub, "peers").stdout.splitlines()[1:]] == ["invited"]
    # Another hub that answers in its place is known by its fingerprint.
    posing = daemons("hub", HUB, between)
    assert invite(posing, "edge-1", "--address", "hub.lab") != code
    posed = command(edge, "join", code)
    assert posed.returncode == 4
    assert "is not the node that made the code" in posed.stderr
    edge_host.names({"hub.lab": hub_host.address})
    joined = command(edge, "join", code)
    assert joined.returncode == 0, joined.stderr
