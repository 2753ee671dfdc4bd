"""Pairing in a real daemon: on the unix socket alone, and from nothing."""

from __future__ import annotations

import contextlib
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from linkd.drill.testbed import free_port
from tests.support import figures
from tests.support.daemon import Daemon
from tests.support.pairing_hosts import HUB, command, invite
from tests.support.pairs import fetch

STALLS = """
import os, sys, time
def slow(taken):
    def call(*arguments, **more):
        while os.path.exists({flag!r}):
            time.sleep(0.02)
        return taken(*arguments, **more)
    return call
def slow_open(taken):
    def call(path, flags, *rest, **more):
        while flags & (os.O_CREAT | os.O_TRUNC) and os.path.exists({flag!r}):
            time.sleep(0.02)
        return taken(path, flags, *rest, **more)
    return call
for name in ("fsync", "fdatasync", "pwritev", "replace", "rename", "unlink", "mkdir", "chmod"):
    setattr(os, name, slow(getattr(os, name)))
os.open = slow_open(os.open)
from linkd.cli import main
raise SystemExit(main())
"""
"""A daemon whose disk takes no change, from whichever thread, while a file is there."""

STALLED_SECONDS = 12.0
"""Longer than the watchdog allows, and than a dialer bears silence."""

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


def test_a_stalled_disk_under_pairing_harms_no_link() -> None:
    """Pairing, renewal and revocation write in a thread: the reactor never waits for the disk."""
    port = free_port()
    hub = Daemon("hub", HUB.replace("9443", str(port)))
    flag = hub.directory / "stalled"
    hub.program = ("-c", STALLS.format(flag=str(flag)))
    edge, other, gone = Daemon("edge", ""), Daemon("other", ""), Daemon("gone", "")
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
        for daemon in (hub, edge, other, gone):
            stack.enter_context(contextlib.closing(daemon))
            daemon.start()
        for daemon in (edge, gone):
            code = invite(hub, daemon.name, "--address", f"127.0.0.1:{port}")
            assert command(daemon, "join", code).returncode == 0
        ends = {(each["role"], each["peer"]) for each in edge.status()["certificates"]}
        assert {("own", "hub"), ("authority", "hub")} <= ends
        code = invite(hub, "other", "--address", f"127.0.0.1:{port}")
        generation = hub.link("edge")["generation"]
        flag.touch()
        began = time.monotonic()
        joined = pool.submit(command, other, "join", code)
        revoked = pool.submit(command, hub, "revoke", "gone")
        hub.signal(signal.SIGHUP)
        slowest = 0.0
        while time.monotonic() - began < STALLED_SECONDS:
            asked = time.monotonic()
            assert hub.call("GET", "/healthz") is not None
            slowest = max(slowest, time.monotonic() - asked)
            time.sleep(0.1)
        assert not revoked.done()
        flag.unlink()
        figures.tell(f"a stalled disk under pairing: the API answers within {slowest:.2f} s")
        assert slowest < 3.0
        assert hub.link("edge")["generation"] == generation, hub.tail()
        assert edge.link("hub")["state"] == "up"
        assert revoked.result(timeout=30).returncode == 0
        done = joined.result(timeout=60)
        if done.returncode != 0:  # the hub's answer came too late for its patience
            again = invite(hub, "other", "--address", f"127.0.0.1:{port}")
            done = command(other, "join", again)
        assert done.returncode == 0, done.stderr
