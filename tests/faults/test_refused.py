"""Who is refused hears why, both ends say so, nobody hurries, and it heals once mended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from ssl import TLSVersion
from typing import Any

import pytest
import trustme

from linkd.client.http import call, expect
from linkd.drill.testbed import free_port
from linkd.net.auth import prove
from tests.support import figures
from tests.support.daemon import SECRET, Daemon, listen, peer
from tests.support.flood import Flood, Order, Stranger, upgrade
from tests.support.tls_lab import Files, at, client_hello, revocation_list, self_signed, serial

pytestmark = pytest.mark.slow

Start = Callable[..., Daemon]
WITHIN = 10.0
OTHER_SECRET = "another-secret-0123456789-0123456789-0123"


def wait_link(daemon: Daemon, name: str, state: str) -> dict[str, Any]:
    """Wait until a link is in a state; return its status."""
    end = time.monotonic() + WITHIN
    while (found := daemon.link(name))["state"] != state:
        assert time.monotonic() < end, f"{found}\n{daemon.tail(5)}"
        time.sleep(0.05)
    return found


def refused_slowly(edge: Daemon, hub: Daemon | None, at_edge: str, at_hub: str) -> None:
    """Both ends say why, in status and log, and the next attempt is about a minute away."""
    seen = wait_link(edge, "hub", "rejected")
    assert at_edge in seen["attempt_detail"], seen
    assert 40.0 < seen["next_attempt_seconds"] < 73.0, seen
    line = edge.wait_line(5.0, event="link.rejected")
    assert at_edge in line.fields["detail"]
    if hub is not None:
        refused = hub.wait_line(5.0, event="connection.refused")
        assert at_hub in refused.fields["detail"], refused
        told = wait_link(hub, "edge", "rejected")
        assert at_hub in told["attempt_detail"], told
        assert told["attempt_reason"] in ("rejected", "tls")
    time.sleep(2.0)
    assert edge.link("hub")["attempts"] == 1


def healed(edge: Daemon, hub: Daemon) -> None:
    """A kick brings the link up, without any restart."""
    edge.call("POST", "/v1/peers/hub/kick", b"")
    edge.wait_up("hub")
    assert hub.link("edge")["state"] == "up"


def test_a_wrong_secret(daemons: Start) -> None:
    port = free_port()
    hub = daemons("hub", listen(port, "127.0.0.1") + peer("edge"))
    edge = Daemon("edge", peer("hub", f"ws://127.0.0.1:{port}/link"))
    with contextlib.closing(edge):
        secret = edge.directory / "secret"
        secret.write_text(OTHER_SECRET)
        edge.start()
        words = "does not know the secret"
        refused_slowly(edge, hub, words, words)
        metrics = expect(call(str(hub.socket), "GET", "/metrics")).body.decode()
        assert 'linkd_listener_refused_total{reason="rejected"} 1\n' in metrics
        secret.write_text(SECRET)
        healed(edge, hub)


def test_a_peer_that_is_not_configured(daemons: Start) -> None:
    port = free_port()
    hub = daemons("hub", listen(port, "127.0.0.1") + peer("another"))
    edge = daemons("edge", peer("hub", f"ws://127.0.0.1:{port}/link"))
    refused_slowly(edge, None, "no peer named 'edge' is configured here", "")
    line = hub.wait_line(5.0, event="connection.refused")
    assert (line.fields["claimed"], line.fields["reason"]) == ("edge", "rejected")
    [refused] = hub.status()["refused"]
    assert (refused["claimed"], refused["reason"], refused["count"]) == ("edge", "rejected", 1)
    assert refused["address"].startswith("127.0.0.1:")
    assert refused["seconds_ago"] < 5.0
    hub.configure(listen(port, "127.0.0.1") + peer("another") + peer("edge"))
    hub.signal(signal.SIGHUP)
    hub.wait_line(5.0, event="node.reloaded")
    healed(edge, hub)


def test_a_listener_of_another_name(daemons: Start) -> None:
    port = free_port()
    depot = daemons("depot", listen(port, "127.0.0.1") + peer("edge"))
    edge = daemons("edge", peer("hub", f"ws://127.0.0.1:{port}/link"))
    words = "edge calls this node 'hub', which is not its name: correct `name` in its [[peer]]"
    refused_slowly(edge, depot, words, words)
    edge.configure(peer("depot", f"ws://127.0.0.1:{port}/link"))
    edge.signal(signal.SIGHUP)
    edge.wait_line(5.0, event="node.reloaded")
    edge.wait_up("depot")


def test_tls_to_a_listener_without(daemons: Start) -> None:
    port = free_port()
    hub = daemons("hub", listen(port, "127.0.0.1") + peer("edge"))
    edge = daemons("edge", peer("hub", f"wss://127.0.0.1:{port}/link"))
    seen = wait_link(edge, "hub", "rejected")
    assert seen["attempt_reason"] == "tls"
    assert "answered with something that is not TLS" in seen["attempt_detail"]
    line = hub.wait_line(5.0, event="connection.refused")
    assert line.fields["reason"] == "tls"
    assert "it speaks TLS, and this listener has no certificate" in line.fields["detail"]
    [refused] = hub.status()["refused"]
    assert (refused["claimed"], refused["reason"], refused["count"]) == (None, "tls", 1)


def test_no_tls_to_a_listener_with_it(daemons: Start, tmp_path: Path) -> None:
    certified = Certified(tmp_path)
    hub = daemons("hub", certified.hub())
    edge = daemons("edge", peer("hub", f"ws://127.0.0.1:{certified.port}/link"))
    line = hub.wait_line(5.0, event="connection.refused")
    assert "sent plain HTTP to a port that expects TLS" in line.fields["detail"]
    line = edge.wait_line(5.0, event="link.waiting", reason="closed")
    assert "if it expects TLS, dial wss://" in line.fields["detail"]


class Certified:
    """A hub and an edge that know each other by certificates; `edge` may come with a bad one."""

    def __init__(self, directory: Path) -> None:
        self.files = Files(directory)
        self.ca, self.stranger = trustme.CA(), trustme.CA()
        self.port = free_port()
        self.ca_file = self.files.authority("ca", self.ca)
        self.client_ca = self.files.authority("client-ca", self.ca)
        self.good_hub = self.ca.issue_cert("localhost", "hub")
        self.good_edge = self.ca.issue_cert("edge")

    def hub(self) -> str:
        """Return the hub's configuration."""
        certificate, key = self.files.write("hub", self.good_hub)
        return (
            f'[listen]\naddress = "127.0.0.1:{self.port}"\ncertificate = "{certificate}"\n'
            f'key = "{key}"\nclient_ca = "{self.client_ca}"\n[[peer]]\nname = "edge"\n'
        )

    def edge(self, leaf: trustme.LeafCert, scheme: str = "wss") -> str:
        """Return the edge's configuration."""
        certificate, key = self.files.write("edge", leaf)
        return (
            f'[[peer]]\nname = "hub"\ndial = ["{scheme}://localhost:{self.port}/link"]\n'
            f'ca = "{self.ca_file}"\ncertificate = "{certificate}"\nkey = "{key}"\n'
        )


DIALERS: dict[str, tuple[Callable[[Certified], trustme.LeafCert], str, str]] = {
    "expired": (
        lambda c: c.ca.issue_cert("edge", not_before=at(-9), not_after=at(-1)),
        "has expired",
        "has expired",
    ),
    "not-yet-valid": (
        lambda c: c.ca.issue_cert("edge", not_before=at(1)),
        "certificate",
        "is not valid yet",
    ),
    "another-name": (
        lambda c: c.ca.issue_cert("edge-2"),
        "no certificate for the name edge",
        "no certificate for the name edge",
    ),
    "self-signed": (lambda c: self_signed("edge"), "does not know", "self-signed"),
    "foreign-ca": (lambda c: c.stranger.issue_cert("edge"), "does not know", "not trusted here"),
}


@pytest.mark.parametrize("kind", DIALERS)
def test_a_dialer_s_bad_certificate(daemons: Start, tmp_path: Path, kind: str) -> None:
    both, (spoil, at_edge, at_hub) = Certified(tmp_path), DIALERS[kind]
    hub = daemons("hub", both.hub())
    edge = daemons("edge", both.edge(spoil(both)))
    refused_slowly(edge, hub, at_edge, at_hub)
    both.files.write("edge", both.good_edge)
    healed(edge, hub)


def test_a_revoked_certificate(daemons: Start, tmp_path: Path) -> None:
    both = Certified(tmp_path)
    lists = revocation_list(both.ca, serial(both.good_edge))
    both.files.authority("client-ca", both.ca, lists=lists)
    hub = daemons("hub", both.hub())
    edge = daemons("edge", both.edge(both.good_edge))
    refused_slowly(edge, hub, "has been revoked", "has been revoked")
    both.files.write("edge", both.ca.issue_cert("edge"))
    healed(edge, hub)


LISTENERS: dict[str, tuple[Callable[[Certified], trustme.LeafCert], str]] = {
    "expired": (
        lambda c: c.ca.issue_cert("localhost", not_before=at(-9), not_after=at(-1)),
        "has expired",
    ),
    "not-yet-valid": (lambda c: c.ca.issue_cert("localhost", not_before=at(1)), "not valid yet"),
    "wrong-name": (lambda c: c.ca.issue_cert("elsewhere"), "not for the name"),
    "self-signed": (lambda c: self_signed("localhost"), "self-signed"),
    "foreign-ca": (lambda c: c.stranger.issue_cert("localhost"), "not trusted here"),
}


@pytest.mark.parametrize("kind", LISTENERS)
def test_a_listener_s_bad_certificate(daemons: Start, tmp_path: Path, kind: str) -> None:
    """The dialer does not say who it is to someone unknown: the hub's log has its alert."""
    both, (spoil, at_edge) = Certified(tmp_path), LISTENERS[kind]
    config = both.hub()
    both.files.write("hub", spoil(both))
    hub = daemons("hub", config)
    edge = daemons("edge", both.edge(both.good_edge))
    refused_slowly(edge, None, at_edge, "")
    line = hub.wait_line(5.0, event="connection.refused")
    assert line.fields["reason"] == "tls"
    assert "this node's certificate" in line.fields["detail"]
    both.files.write("hub", both.good_hub)
    hub.wait_line(8.0, after=line.at, event="tls.loaded")
    healed(edge, hub)


def test_plain_bytes_and_old_tls_at_a_tls_port(daemons: Start, tmp_path: Path) -> None:
    both = Certified(tmp_path)
    hub = daemons("hub", both.hub())
    asyncio.run(_send(both.port, b"GET /link HTTP/1.1\r\n\r\n"))
    line = hub.wait_line(5.0, event="connection.refused")
    assert "plain HTTP" in line.fields["detail"]
    asyncio.run(_send(both.port, client_hello(TLSVersion.TLSv1_1)))
    hub.stop()  # the second one is folded into a summary, which is due at the end
    summary = hub.wait_line(5.0, after=line.at, event="connection.refused")
    assert "speaks no version of TLS" in summary.fields["detail"]
    assert summary.fields["repeats"] == 1


async def _send(port: int, payload: bytes) -> None:
    """Send bytes and wait for the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(payload)
    with contextlib.suppress(OSError):
        await asyncio.wait_for(reader.read(), 5.0)
    writer.transport.abort()


def test_a_nonce_replayed_stolen_or_made_up(daemons: Start) -> None:
    """Once, for one name, over real sockets."""
    port = free_port()
    config = listen(port, "127.0.0.1") + peer("mallory") + peer("alice")
    hub = daemons("hub", config)
    told = asyncio.run(_nonces(port))
    figures.tell(f"nonces: {told}")
    assert told["fresh"] == (101, "")
    assert told["replayed"] == (401, "the nonce was used before")
    assert told["replayed elsewhere"] == (401, "the nonce was used before")
    assert told["stolen for another name"][0] == 401
    assert "alice does not know the secret" in told["stolen for another name"][1]
    assert told["made up"][0] == 503
    assert "of another run of this node, or of another hub" in told["made up"][1]
    assert SECRET not in hub.tail(100)
    assert hub.link("alice")["state"] == "rejected"


async def _nonces(port: int) -> dict[str, tuple[int, str]]:
    """Use nonces rightly and wrongly; return status and words of each answer."""
    flood = Flood(Order("", "127.0.0.1", port, 60.0, 1, []))
    told: dict[str, tuple[int, str]] = {}

    async def use(what: str, request: bytes, stranger: Stranger | None = None) -> None:
        at_hub = stranger or await flood.connect()
        status, _, body = await at_hub.ask(request)
        told[what] = (status, body.decode().strip())
        at_hub.writer.transport.abort()

    async def fresh() -> str:
        at_hub = await flood.connect()
        nonce = await at_hub.nonce()
        at_hub.writer.transport.abort()
        assert nonce is not None
        return nonce

    nonce = await fresh()
    await use("fresh", upgrade("mallory", nonce, SECRET))
    await use("replayed", upgrade("mallory", nonce, SECRET))
    await use("replayed elsewhere", upgrade("alice", nonce, SECRET))
    nonce = await fresh()
    proof = prove(SECRET.encode(), "dialer", "mallory", "hub", nonce)
    stolen = upgrade("alice", nonce, os.urandom(16).hex()).split(b"Linkd-Proof: ")[0]
    await use("stolen for another name", stolen + f"Linkd-Proof: {proof}\r\n\r\n".encode())
    await use("made up", upgrade("mallory", "A" * 54, SECRET))
    return told
