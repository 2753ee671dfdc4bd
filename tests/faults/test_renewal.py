"""Certificates change under two linked daemons that carry messages: no drop, nothing lost."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from linkd.drill.testbed import SteppedClock, free_port
from tests.support import figures
from tests.support.daemon import Daemon
from tests.support.needs import need
from tests.support.pairing_hosts import HUB, command, invite
from tests.support.tls_lab import Files

pytestmark = pytest.mark.slow

Start = Callable[..., Daemon]
CHANNELS = 'send = [">"]\nreceive = [">"]\n'
RENEWALS = 20


class Traffic(threading.Thread):
    """Publishes numbers at one daemon, some hundred a second, until `stop`."""

    def __init__(self, daemon: Daemon, channel: str) -> None:
        super().__init__(daemon=True)
        self.count = 0
        self.channel = channel
        self._daemon = daemon
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        """Publish."""
        line = http.client.HTTPConnection("localhost", timeout=10)
        line.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        line.sock.connect(str(self._daemon.socket))
        kind = {"Content-Type": "application/json"}
        while not self._over.wait(0.005):
            line.request("POST", f"/v1/channels/{self.channel}", str(self.count), kind)
            answer = line.getresponse()
            answer.read()
            assert answer.status == 201
            self.count += 1
        line.close()

    def stop(self) -> None:
        """Publish no more."""
        self._over.set()
        self.join(10)


def arrived(daemon: Daemon, channel: str, count: int) -> list[int]:
    """Return the numbers that are there, once `count` are or nothing more comes."""
    numbers: list[int] = []
    at: int | str = "earliest"
    while len(numbers) < count:
        page = daemon.call(
            "GET", f"/v1/channels/{channel}?from={at}&limit=10000&wait=5", timeout=20
        )
        if not page["records"]:
            break
        numbers += [record["data"] for record in page["records"]]
        at = page["next"]
    return numbers


def settled(hub: Daemon, edge: Daemon, flows: list[Traffic]) -> str:
    """End the traffic; all of it is there once and in order, and no link was ever down."""
    for flow in flows:
        flow.stop()
    for flow, there in zip(flows, (edge, hub), strict=True):
        assert arrived(there, flow.channel, flow.count) == list(range(flow.count))
    for daemon in (hub, edge):
        assert not list(daemon.matching(old="up")), daemon.tail(5)
    return " and ".join(str(flow.count) for flow in flows)


def shown(port: int, ca: str) -> int:
    """Return the serial number of the certificate that a listener shows."""
    wrap = ssl.create_default_context(cafile=ca)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
        wrap.wrap_socket(raw, server_hostname="localhost") as secured,
    ):
        der = secured.getpeercert(True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def test_20_renewals_on_both_ends(daemons: Start, tmp_path: Path) -> None:
    """By files and reload, as certbot's hook does; the last ones are those that count then."""
    files, ca, port = Files(tmp_path), trustme.CA(), free_port()
    ca_file = files.authority("ca", ca)
    files.write("hub", ca.issue_cert("localhost", "hub"))
    files.write("edge", ca.issue_cert("edge"))
    hub = daemons(
        "hub",
        f'[listen]\naddress = "127.0.0.1:{port}"\ncertificate = "{tmp_path}/hub.crt"\n'
        f'key = "{tmp_path}/hub.key"\nclient_ca = "{ca_file}"\n'
        f'[[peer]]\nname = "edge"\n{CHANNELS}',
    )
    edge = daemons(
        "edge",
        f'[[peer]]\nname = "hub"\ndial = ["wss://localhost:{port}/link"]\nca = "{ca_file}"\n'
        f'certificate = "{tmp_path}/edge.crt"\nkey = "{tmp_path}/edge.key"\n{CHANNELS}',
    )
    edge.wait_up("hub")
    flows = [Traffic(hub, "down"), Traffic(edge, "up")]
    seen = {shown(port, ca_file)}
    for _ in range(RENEWALS):
        begun = time.monotonic()
        files.write("hub", ca.issue_cert("localhost", "hub"))
        files.write("edge", ca.issue_cert("edge"))
        for daemon in (hub, edge):
            daemon.signal(signal.SIGHUP)
            daemon.wait_line(10.0, after=begun, event="node.reloaded")
        seen.add(shown(port, ca_file))
        time.sleep(0.1)
    assert len(seen) == RENEWALS + 1
    carried = settled(hub, edge, flows)
    figures.tell(f"{RENEWALS} certificates on each end under traffic: {carried} messages, no drop")
    # With the newest ones the link comes up again.
    hub.kill()
    hub.start()
    edge.call("POST", "/v1/peers/hub/kick", b"")
    edge.wait_up("hub")


def test_a_broken_pair_of_files_changes_nothing(daemons: Start, tmp_path: Path) -> None:
    """A certificate without its key, half a file: said, and what was in force stays."""
    files, ca, port = Files(tmp_path), trustme.CA(), free_port()
    ca_file = files.authority("ca", ca)
    files.write("hub", ca.issue_cert("localhost", "hub"))
    hub = daemons(
        "hub",
        f'[listen]\naddress = "127.0.0.1:{port}"\ncertificate = "{tmp_path}/hub.crt"\n'
        f'key = "{tmp_path}/hub.key"\nclient_ca = "{ca_file}"\n[[peer]]\nname = "edge"\n',
    )
    before = shown(port, ca_file)
    files.write("other", ca.issue_cert("localhost"))
    for broken in ((tmp_path / "other.crt").read_bytes(), b"-----BEGIN CERTIFICATE-----\nMII"):
        begun = time.monotonic()
        (tmp_path / "hub.crt").write_bytes(broken)
        line = hub.wait_line(8.0, after=begun, event="tls.reload-failed")
        assert "the certificate in force stays" in line.fields["detail"]
        assert shown(port, ca_file) == before
    files.write("hub", ca.issue_cert("localhost", "hub"))
    hub.wait_line(8.0, after=line.at, event="tls.loaded")
    assert shown(port, ca_file) != before


def test_paired_nodes_renew_by_themselves(tmp_path: Path) -> None:
    """The calendar runs ahead by eight months at a time, beyond the end of the authority."""
    need("libfaketime")
    clock, port = SteppedClock(tmp_path), free_port()
    config = HUB.replace("9443", str(port))
    hub = Daemon("hub", config, environment=clock.environment)
    edge = Daemon("edge-1", "", environment=clock.environment)
    with contextlib.closing(hub), contextlib.closing(edge):
        hub.start()
        edge.start()
        asked = ("--send", ">", "--receive", ">")
        joined = command(edge, "join", invite(hub, "edge-1", *asked))
        assert joined.returncode == 0, joined.stderr
        flows = [Traffic(hub, "down"), Traffic(edge, "up")]
        for count in range(1, 17):
            time.sleep(0.7)  # an address may ask for one certificate a second, ten at once
            begun = time.monotonic()
            clock.step(count * 245 * 86_400.0)
            for daemon, name in ((hub, None), (edge, "hub")):
                daemon.signal(signal.SIGHUP)
                line = daemon.wait_line(15.0, after=begun, event="tls.loaded", peer=name)
                assert line.fields["days"] > 360.0
        carried = settled(hub, edge, flows)
        issued = json.loads((hub.directory / "state" / "pairing" / "issued.json").read_text())
        assert len(issued["certificates"]) == 2  # the newest, and the one that it renews
        (successor,) = hub.matching(event="pairing.successor")
        assert successor.fields["expires_seconds"] <= 1095 * 86_400
        assert len(list(edge.matching(event="pairing.trusts"))) == 2  # it came, the first ended
        assert not [one.fields["detail"] for one in edge.matching(event="tls.expiring")]
        figures.tell(f"16 renewals, 1 authority in 11 years: {carried} messages, no drop")
        # Only with the newest ones can they meet again: those before have expired by now.
        edge.kill()
        edge.start()
        edge.wait_up("hub")


def test_a_hub_and_an_edge_that_were_off_for_400_days_meet_again(tmp_path: Path) -> None:
    """Both certificates have ended; nobody types a code."""
    need("libfaketime")
    clock, port = SteppedClock(tmp_path), free_port()
    config = HUB.replace("9443", str(port))
    hub = Daemon("hub", config, environment=clock.environment)
    edge = Daemon("edge-1", "", environment=clock.environment)
    with contextlib.closing(hub), contextlib.closing(edge):
        hub.start()
        edge.start()
        joined = command(edge, "join", invite(hub, "edge-1"))
        assert joined.returncode == 0, joined.stderr
        for daemon in (edge, hub):
            daemon.stop()
        clock.step(400 * 86_400.0)
        hub.start()
        edge.start()
        edge.wait_up("hub", 25.0)
        (line,) = edge.matching(event="tls.loaded", peer="hub")
        assert line.fields["days"] > 360.0
