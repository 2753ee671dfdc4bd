"""scripts/install: again, taken back, removed, purged."""

from __future__ import annotations

import json
import re
import shutil
import time
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.service.conftest import (
    EDGE,
    HUB,
    SOURCE,
    SYSTEM_PYTHON,
    Pair,
    install,
    link,
    wait_link,
)
from tests.support import figures
from tests.support.machine import Machine

pytestmark = [pytest.mark.service, pytest.mark.slow]

INSTALL = f"{SOURCE}/scripts/install"


def release(machine: Machine) -> str:
    """Return which environment is in use."""
    return machine.sh("readlink -f /opt/linkd").strip()


def edited(wheels: Path, directory: Path, edits: Mapping[str, tuple[bytes, bytes]]) -> Path:
    """Return wheels like these, with edits of linkd's files: what is replaced, and by what."""
    copy = directory / "edited"
    shutil.copytree(wheels, copy)
    wheel = next(copy.glob("linkd_daemon-*.whl"))
    whole = wheel.rename(directory / "whole.whl")
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(wheel, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            if name in edits:
                before, after = edits[name]
                assert before in text
                text = text.replace(before, after)
            new.writestr(name, text)
    return copy


BROKEN = {"linkd/daemon.py": (b"from __future__", b"raise SystemExit('broken on purpose')\n#")}
BEGUN_AND_OVER = b"            import os; self._reactor.callLater(1, os._exit, 1); return"
"""The reactor has had its time to begin a segment by then."""

NEWER_FORMAT = {
    "linkd/log/cursor_store.py": (b"\nFORMAT = 2\n", b"\nFORMAT = 3\n"),
    "linkd/log/segment.py": (b"\nFORMAT = 2\n", b"\nFORMAT = 3\n"),
    "linkd/daemon.py": (b"            parts.listen()", BEGUN_AND_OVER),
}
"""It opens the state, writes it in its own formats, and then does not become ready."""


def test_again_it_upgrades_and_leaves_the_configuration_alone(pair: Pair, wheels: Path) -> None:
    before = release(pair.edge)
    modes = "stat -c '%n %U %G %a' /etc/linkd /etc/linkd/* /usr/local/bin/linkd"
    listed = pair.edge.sh(modes)
    said = install(pair.edge, wheels)
    assert "is running" in said
    assert release(pair.edge) != before
    assert pair.edge.sh(modes) == listed
    assert "/etc/linkd root linkd 750" in listed
    manual = "/usr/local/share/man"
    assert ".TH LINKD\\-STATUS 1" in pair.edge.sh(f"cat {manual}/man1/linkd-status.1")
    assert "ping_interval" in pair.edge.sh(f"cat {manual}/man5/linkd.toml.5")
    assert pair.edge.sh("cat /etc/linkd/linkd.toml") == EDGE
    wait_link(pair.edge, "hub", "up", 15.0)
    assert len(pair.edge.sh("ls /opt/linkd.releases").split()) == 2


UNIX = """
import http.client, json, os, socket, sys, time
class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect("/run/linkd/linkd.sock")
"""
READ = (
    UNIX
    + """
at, found, unix = 1, [], Unix("localhost")
while True:
    unix.request("GET", f"/v1/channels/{sys.argv[1]}?from={at}&limit=10000")
    page = json.loads(unix.getresponse().read())
    found += [record["data"]["n"] for record in page["records"]]
    if page["next"] == at:
        break
    at = page["next"]
print(json.dumps(found))
"""
)
LOAD = (
    UNIX
    + """
count, channel = 0, sys.argv[1]
while not os.path.exists("/run/load-ends"):
    try:
        unix = Unix("localhost")
        headers = {"Linkd-Id": f"{channel}-{count}", "Content-Type": "application/json"}
        unix.request("POST", f"/v1/channels/{channel}", b'{"n": %d}' % count, headers)
        count += unix.getresponse().status in (200, 201)
        unix.close()
    except OSError:
        time.sleep(0.02)  # it restarts
print(count)
"""
)


@pytest.fixture
def carrying(pair: Pair) -> Pair:
    """Return the machines, each sending the other everything."""
    for machine, config in ((pair.hub, HUB), (pair.edge, EDGE)):
        machine.write("/etc/linkd/linkd.toml", config + 'send = [">"]\nreceive = [">"]\n')
        machine.run("systemctl", "restart", "linkd.service")
    wait_link(pair.edge, "hub", "up", 20.0)
    return pair


def last_outage(pair: Pair) -> dict[str, Any]:
    """Return the edge's last outage."""
    found = pair.edge.run("linkd", "outages", "hub", "--json").stdout.splitlines()[-1]
    return dict(json.loads(found))


def stored(machine: Machine, channel: str) -> list[int]:
    """Return the numbers of the records of a channel, in the order in which they are stored."""
    found: list[int] = json.loads(machine.run(SYSTEM_PYTHON, "-c", READ, channel).stdout)
    return found


def test_an_upgrade_under_load_loses_and_repeats_nothing(carrying: Pair, wheels: Path) -> None:
    """Of the accepting end: the link is away for little longer than by a plain restart."""
    pair = carrying
    channels = {pair.edge: "up.load", pair.hub: "down.load"}
    for machine in channels:
        machine.write("/opt/load.py", LOAD)
        machine.sh("rm -f /run/load-ends")
    with ThreadPoolExecutor(2) as pool:
        loads = {
            channel: pool.submit(machine.run, SYSTEM_PYTHON, "/opt/load.py", channel, timeout=600)
            for machine, channel in channels.items()
        }
        time.sleep(1.0)
        try:
            pair.hub.run("systemctl", "restart", "linkd.service")
            wait_link(pair.edge, "hub", "up", 20.0)
            plain = last_outage(pair)["down_seconds"]
            said = install(pair.hub, wheels)
        finally:
            wait_link(pair.edge, "hub", "up", 15.0)
            for machine in channels:
                machine.sh("touch /run/load-ends")
    assert "is running" in said
    assert "node.drained" in pair.hub.journal()
    away = last_outage(pair)
    seconds = away["down_seconds"]
    figures.tell(f"upgrade under load: away for {seconds:.2f} s, by a plain restart {plain:.2f} s")
    for channel, load in loads.items():
        count = int(load.result().stdout)
        assert count > 100
        for machine in pair:
            end = time.monotonic() + 20
            while len(found := stored(machine, channel)) < count:
                assert time.monotonic() < end
            assert found == list(range(count))
    assert away["reason"] == "stopped"
    assert seconds <= max(1.5, 2 * plain)


def test_an_upgrade_that_is_not_ready_is_taken_back(
    pair: Pair, wheels: Path, tmp_path: Path
) -> None:
    before, kept = release(pair.edge), pair.edge.sh("ls /opt/linkd.releases")
    with pytest.raises(RuntimeError, match="went back to the version"):
        install(pair.edge, edited(wheels, tmp_path, BROKEN))
    assert release(pair.edge) == before
    pair.edge.wait_active()
    wait_link(pair.edge, "hub", "up", 15.0)
    assert pair.edge.sh("ls /opt/linkd.releases") == kept


def test_an_upgrade_that_has_written_newer_formats_is_taken_back(
    carrying: Pair, wheels: Path, tmp_path: Path
) -> None:
    pair = carrying
    pair.edge.run("linkd", "publish", "orders", '{"n": 1}', "--wait", "hub")
    with pytest.raises(RuntimeError, match="went back to the version") as failure:
        install(pair.edge, edited(wheels, tmp_path, NEWER_FORMAT))
    said = str(failure.value)
    assert "put back /var/lib/linkd/cursors.db as it was before" in said
    assert "the newer version began it, and it holds no message" in said
    assert re.search("went back to the version .* is running", said)
    pair.edge.wait_active()
    wait_link(pair.edge, "hub", "up", 15.0)
    assert 1 in stored(pair.edge, "orders")
    pair.edge.run("linkd", "publish", "orders", '{"n": 2}', "--wait", "hub")
    assert stored(pair.hub, "orders")[-2:] == [1, 2]


def test_uninstall_keeps_what_is_yours_and_purge_does_not(pair: Pair, wheels: Path) -> None:
    pair.edge.run(INSTALL, "--uninstall")
    left = pair.edge.sh(
        "ls -d /etc/linkd/linkd.toml /var/lib/linkd /opt/linkd* 2>/dev/null || true"
    )
    assert left.split() == ["/etc/linkd/linkd.toml", "/var/lib/linkd"]
    assert pair.edge.sh("find /usr/local/bin /usr/local/share/man -name 'linkd*'") == ""
    assert pair.edge.show("linkd.service", "LoadState") == "not-found"

    assert "is running" in install(pair.edge, wheels)
    wait_link(pair.edge, "hub", "up", 15.0)
    refused = pair.edge.run(INSTALL, "--purge", check=False)
    assert refused.returncode == 1
    assert "use --yes" in refused.stderr
    assert "hub" in refused.stdout
    assert link(pair.edge, "hub")["state"] == "up"
    pair.edge.run(INSTALL, "--purge", "--yes")
    left = pair.edge.sh(
        "ls -d /etc/linkd /var/lib/linkd /opt/linkd* 2>/dev/null || true; id linkd 2>&1 || true"
    )
    assert "no such user" in left
    assert "/linkd" not in left
    assert "Next: write" in install(pair.edge, wheels)


def test_wrong_usage_and_no_privilege(bare: Pair) -> None:
    assert bare.edge.run(INSTALL, "--fast", check=False).returncode == 2
    assert bare.edge.run(INSTALL, "--wheels", "/nowhere", check=False).returncode == 2
    plain = ["setpriv", "--reuid", "65534", "--clear-groups", INSTALL]
    done = bare.edge.run(*plain, check=False)
    assert done.returncode == 1
    assert "needs root" in done.stderr
