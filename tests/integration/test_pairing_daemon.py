"""Pairing in a real daemon: on the unix socket alone, and from nothing."""

from __future__ import annotations

import contextlib

import pytest

from tests.support.daemon import Daemon
from tests.support.pairing_hosts import HUB, command
from tests.support.pairs import fetch
from tests.support.ports import free_port

PATHS = (
    ("GET", "/v1/pairing/peers"),
    ("POST", "/v1/pairing/invite"),
    ("POST", "/v1/pairing/peers/edge/revoke"),
)


def test_a_hub_from_nothing_is_paired_with_on_its_socket_alone() -> None:
    port, api = free_port(), free_port()
    here = HUB.replace("9443", str(port))
    hub = Daemon("hub", f'http = "127.0.0.1:{api}"\nrequire_key = false\n{here}')
    with contextlib.closing(hub):
        checked = command(hub, "check", "-q")
        assert checked.returncode == 0, checked.stderr
        assert not (hub.directory / "state").exists()
        hub.start()
        made = sorted(each.name for each in (hub.directory / "state" / "pairing").iterdir())
        assert made == ["ca.crt", "ca.key", "hub.crt", "hub.key", "issued.json", "revoked.crl"]
        for method, path in PATHS:
            status, said = fetch(
                api, method, path, b'{"name":"edge"}' if "invite" in path else None
            )
            assert status == 404, (path, said)
        assert hub.call("GET", "/v1/pairing/peers") == {"peers": []}
        code = hub.call("POST", "/v1/pairing/invite", b'{"name":"edge"}')
        assert code["expires_seconds"] == 600.0
        assert hub.call("GET", "/v1/pairing/peers")["peers"][0]["state"] == "invited"
        assert hub.call("POST", "/v1/pairing/peers/edge/revoke", b"") == {"certificates": 0}
        with pytest.raises(RuntimeError, match=r"409 .*pairing-refused"):
            hub.call("POST", "/v1/pairing/peers/nobody/revoke", b"")
        with pytest.raises(RuntimeError, match=r"400 .*malformed"):
            hub.call("POST", "/v1/pairing/invite", b'{"title":"edge"}')


def test_a_node_that_nobody_dials_says_so() -> None:
    node = Daemon("edge", "")
    with contextlib.closing(node):
        node.start()
        refused = command(node, "invite", "another")
        assert refused.returncode == 4
        assert "add [listen]" in refused.stderr
