"""The lab does what it says: hosts, faults, clocks, relays and daemons that end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from linkd.drill.testbed import SteppedClock
from tests.support.daemon import Daemon
from tests.support.lab import Lab, LabHost, Way, python
from tests.support.needs import need

pytestmark = pytest.mark.lab

WAYS: tuple[Way, ...] = ("both", "in", "out")
ECHO = """
import socket, threading, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listener = socket.create_server((sys.argv[1], 9000), family=family)
print("ready", flush=True)
def serve(connection):
    while data := connection.recv(65536):
        connection.sendall(data)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
ASK = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 9000), 1.0)
connection.settimeout(1.0)
want = int(sys.argv[2])
connection.sendall(b"x" * want)
while want:
    want -= len(connection.recv(65536))
"""
FAKE = """
import json, os, socket, sys, time
path = os.environ["NOTIFY_SOCKET"]
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1\\nSTATUS=well", path)
print(json.dumps({"event": "node.ready", "at": 1}))
print("plain")
time.sleep(60)
"""


def echo(host: LabHost, address: str) -> AbstractContextManager[None]:
    """Run an echo server on port 9000 of a host."""
    return host.serving(ECHO, address)


def reaches(host: LabHost, address: str, size: int = 10) -> bool:
    """Return whether so many bytes go from a host to an echo server and back within about 1 s."""
    return host.run(sys.executable, "-c", ASK, address, str(size), check=False).returncode == 0


def test_hosts_reach_each_other_over_both_families(lab: Lab) -> None:
    one, two = lab.host("one"), lab.host("two")
    with echo(two, two.address):
        assert reaches(one, two.address)
    with echo(two, two.address6):
        assert reaches(one, two.address6)
        one.names({"two": two.address6})
        assert reaches(one, "two")
        one.names({})
        assert not reaches(one, "two")
    assert not Path("/etc/hosts").read_text().startswith("127.0.0.1 localhost\n::1 localhost\nfd99")


def test_faults_in_the_middle_end_with_their_context(lab: Lab) -> None:
    one, two = lab.host("one"), lab.host("two")
    with echo(two, two.address):
        for way in WAYS:
            with lab.cut(one, two, way):
                assert not reaches(one, two.address)
            assert reaches(one, two.address)
        with lab.loss(one, two, 1.0):
            assert not reaches(one, two.address)
        with lab.drop_large(one, two, 1000):
            assert reaches(one, two.address, 800)
            assert not reaches(one, two.address, 3000)
        assert reaches(one, two.address, 3000)
    rules = lab.middle.sh("iptables -S FORWARD; ip6tables -S FORWARD").splitlines()
    assert rules == ["-P FORWARD ACCEPT"] * 2


def test_the_scripts_cut_and_restore_a_host(lab: Lab) -> None:
    one, two = lab.host("one"), lab.host("two")
    with echo(two, two.address):
        one.drop(two.address)
        assert not reaches(one, two.address)
        one.restore(two.address)
        assert reaches(one, two.address)


def test_nothing_is_left_when_its_process_is_killed(tmp_path: Path) -> None:
    need("network namespaces")
    code = (
        "import sys, time, pathlib\nfrom tests.support.lab import Lab\n"
        "lab = Lab(pathlib.Path(sys.argv[1])); host = lab.host('one')\n"
        "print(host.pid, lab.middle.pid, flush=True); time.sleep(60)"
    )
    maker = subprocess.Popen(python("-c", code, str(tmp_path)), stdout=subprocess.PIPE)
    assert maker.stdout is not None
    pids = [int(word) for word in maker.stdout.readline().split()]
    maker.kill()
    maker.wait()
    maker.stdout.close()
    assert len(pids) == 2
    end = time.monotonic() + 5
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}/ns/net").exists() for pid in pids)


def test_a_stepped_wall_clock_leaves_the_monotonic_one_alone(tmp_path: Path) -> None:
    need("libfaketime")
    clock = SteppedClock(tmp_path)
    code = (
        "import time, sys\n"
        "for line in sys.stdin:\n    print(time.time(), time.monotonic(), flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **clock.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def differences() -> tuple[float, float]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        wall, monotonic = process.stdout.readline().split()
        return float(wall) - time.time(), float(monotonic) - time.monotonic()

    try:
        for step in (0.0, 3600.0, -3600.0, 288.0):
            clock.step(step)
            wall, monotonic = differences()
            assert wall == pytest.approx(step, abs=0.5)
            assert monotonic == pytest.approx(0.0, abs=0.5)
    finally:
        process.kill()
        process.communicate()


def state(pid: int) -> str:
    """Return the letter of a process's state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_daemon_is_started_read_frozen_and_ended() -> None:
    with Daemon("fake", "", command=[sys.executable, "-c", FAKE]) as daemon:
        assert daemon.wait_notice("STATUS=well", 2.0) <= time.monotonic()
        assert daemon.wait_line(5.0, event="node.ready").fields["at"] == 1
        assert daemon.wait_line(5.0, text="plain").at <= time.monotonic()
        daemon.freeze()
        end = time.monotonic() + 2.0
        while state(daemon.pid) not in "Tt":  # the signal is delivered when the kernel gets to it
            assert time.monotonic() < end
            time.sleep(0.01)
        with pytest.raises(RuntimeError, match=r"runs\): no .*nothing"):
            daemon.wait_line(0.2, event="nothing")
    assert not daemon.running
    assert not daemon.directory.exists()


def test_a_daemon_that_ends_at_once_says_why() -> None:
    daemon = Daemon("fake", "", command=[sys.executable, "-c", "print('no such thing')"])
    try:
        with pytest.raises(RuntimeError, match="no such thing"):
            daemon.start()
    finally:
        daemon.close()
