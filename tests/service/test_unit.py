"""The unit under a real systemd: ready, killed, stuck, wrong, reloaded, stopped; and cut."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator

import pytest

from linkd.events.sink import MESSAGE_IDS
from tests.service.conftest import EDGE, HUB, SOURCE, Pair, link, wait_link
from tests.support import figures
from tests.support.machine import Machine

pytestmark = [pytest.mark.service, pytest.mark.slow]

DROP_INS = "/etc/systemd/system/linkd.service.d"


def restarts(machine: Machine) -> int:
    """Return how often systemd has started the service again."""
    return int(machine.show("linkd.service", "NRestarts"))


def test_it_is_hardened(bare: Pair) -> None:
    said = bare.hub.run("systemd-analyze", "security", "--no-pager", "linkd.service").stdout
    found = re.search(r"Overall exposure level for linkd.service: ([0-9.]+)", said)
    assert found is not None, said
    figures.tell(f"systemd-analyze security: {found[1]}")
    assert float(found[1]) <= 2.0


def test_what_can_be_written_cannot_be_executed_and_what_is_installed_cannot_be_written(
    pair: Pair,
) -> None:
    """As the kernel has the mounts of the running daemon, whoever owns the files."""
    mounts = pair.edge.sh(f"cut -d' ' -f5,6 /proc/{pair.edge.main_pid()}/mountinfo").splitlines()
    flags = {place: set(words.split(",")) for place, words in map(str.split, mounts)}
    writable = {place for place, words in flags.items() if "rw" in words}
    of_the_kernel = {place for place in writable if place.startswith(("/proc", "/sys", "/dev/"))}
    assert {place for place in writable - of_the_kernel if "noexec" not in flags[place]} == set()
    assert {"/var/lib/linkd", "/tmp", "/run/linkd", "/dev/shm"} <= {
        place for place, words in flags.items() if "noexec" in words
    }
    assert "ro" in flags["/"]
    assert not [place for place in writable if place.startswith(("/usr", "/opt"))]


def test_it_is_ready_when_it_listens_and_does_not_wait_for_peers(pair: Pair) -> None:
    pair.edge.run("systemctl", "stop", "linkd.service")
    pair.hub.run("systemctl", "restart", "linkd.service")
    listening = pair.hub.sh("ss -Hltn")
    assert "0.0.0.0:443" in listening
    assert pair.hub.run("test", "-S", "/run/linkd/linkd.sock").returncode == 0
    assert "1 down (edge)" in pair.hub.show("linkd.service", "StatusText")
    process = pair.hub.main_pid()
    owner = pair.hub.sh(f"stat -c %U /proc/{process}; stat -c '%U %a' /var/lib/linkd /etc/linkd")
    assert owner.split("\n") == ["linkd", "linkd 700", "root 750", ""]


def test_a_port_that_is_taken_is_not_ready(pair: Pair) -> None:
    pair.hub.run("systemctl", "stop", "linkd.service")
    holder = "import socket, time; s = socket.create_server(('0.0.0.0', 443)); time.sleep(60)"
    pair.hub.run("systemd-run", "--unit=holder", "/usr/bin/python3", "-c", holder)
    try:
        end = time.monotonic() + 10
        while "0.0.0.0:443" not in pair.hub.sh("ss -Hltn"):
            assert time.monotonic() < end
        done = pair.hub.run("systemctl", "start", "linkd.service", check=False)
        assert done.returncode != 0
        assert pair.hub.show("linkd.service", "ActiveState") != "active"
        assert "443" in pair.hub.journal()
    finally:
        pair.hub.run("systemctl", "stop", "holder.service", check=False)
    pair.hub.wait_active(within=10.0)


def test_killed_ten_times_it_is_back_ten_times(pair: Pair) -> None:
    before, back = restarts(pair.edge), []
    for _ in range(10):
        old = pair.edge.main_pid()
        pair.edge.run("kill", "-9", str(old))
        killed = time.monotonic()
        while pair.edge.main_pid() in (0, old):
            assert time.monotonic() - killed < 15, pair.edge.journal()[-3000:]
            time.sleep(0.05)
        pair.edge.wait_active(within=15.0)
        back.append(time.monotonic() - killed)
    assert restarts(pair.edge) == before + 10
    waited = wait_link(pair.edge, "hub", "up", 10.0)
    figures.tell(f"kill -9: ready again {figures.spread(back)}; link up {waited:.2f} s later")


def test_a_wrong_configuration_stops_it_and_does_not_loop(pair: Pair) -> None:
    pair.edge.run("systemctl", "stop", "linkd.service")
    pair.edge.write("/etc/linkd/linkd.toml", EDGE.replace("dial", "dail"))
    assert pair.edge.run("systemctl", "start", "linkd.service", check=False).returncode != 0
    time.sleep(4.0)
    assert pair.edge.show("linkd.service", "ActiveState") == "failed"
    assert pair.edge.show("linkd.service", "ExecMainStatus") == "2"
    assert restarts(pair.edge) == 0
    journal = pair.edge.journal()
    assert "dail" in journal
    assert "Traceback" not in journal


def entries(machine: Machine, *matches: str) -> list[dict[str, str]]:
    """Return the entries of the journal that match, with their fields."""
    said = machine.run("journalctl", "--no-pager", "--output=json", *matches).stdout
    return [json.loads(line) for line in said.splitlines()]


def test_the_journal_has_the_fields_of_each_line_and_no_line_twice(pair: Pair) -> None:
    (up,) = entries(pair.edge, "LINKD_PEER=hub", "LINKD_EVENT=link.up")[-1:]
    assert up["MESSAGE"].startswith("link.up peer=hub ")
    assert up["MESSAGE_ID"] == MESSAGE_IDS["link.up"]
    assert (up["PRIORITY"], up["SYSLOG_IDENTIFIER"]) == ("6", "linkd")
    assert (up["_SYSTEMD_UNIT"], up["_TRANSPORT"]) == ("linkd.service", "journal")
    pid = f"_PID={pair.edge.main_pid()}"
    assert {one["_TRANSPORT"] for one in entries(pair.edge, pid)} == {"journal"}
    messages = [one["MESSAGE"] for one in entries(pair.edge, pid)]
    assert len([one for one in messages if one.startswith("node.ready ")]) == 1

    # The journal restarts: lines go on, each once, and after a while with their fields.
    pair.edge.run("systemctl", "restart", "systemd-journald.service")
    end = time.monotonic() + 15
    while not entries(pair.edge, pid, "LINKD_EVENT=node.kicked"):
        assert time.monotonic() < end
        pair.edge.run("kill", "-USR1", str(pair.edge.main_pid()))
        time.sleep(0.5)


def test_a_journal_that_stops_reading_stops_nothing(pair: Pair) -> None:
    process, before = pair.edge.main_pid(), restarts(pair.edge)
    pair.edge.run("systemctl", "kill", "-s", "STOP", "systemd-journald.service")
    try:
        # Far more lines than the journal's socket takes: some 280.
        pair.edge.sh(f"for _ in $(seq 800); do kill -USR1 {process}; sleep 0.015; done")
        begun = time.monotonic()
        assert link(pair.edge, "hub")["state"] == "up"
        assert time.monotonic() - begun < 5.0
        time.sleep(max(0.0, begun + 12.0 - time.monotonic()))  # longer than its watchdog allows
        assert pair.edge.main_pid() == process
        assert link(pair.edge, "hub")["state"] == "up"
    finally:
        pair.edge.run("systemctl", "kill", "-s", "CONT", "systemd-journald.service")
    assert restarts(pair.edge) == before


def test_the_unit_lets_it_ask_whether_the_clock_is_synchronised(pair: Pair) -> None:
    ask = "import ctypes; raise SystemExit(ctypes.CDLL(None).adjtimex(bytes(512)) not in range(6))"
    pair.edge.write(
        "/etc/systemd/system/linkd.service.d/ask.conf",
        f"[Service]\nExecStartPre=/opt/linkd/bin/python -c '{ask}'\n",
    )
    try:
        pair.edge.run("systemctl", "daemon-reload")
        pair.edge.run("systemctl", "restart", "linkd.service")
        pair.edge.run("test", "-d", "/run/linkd")
        pair.edge.run("systemctl", "stop", "linkd.service")
        pair.edge.run("test", "-d", "/run/linkd")
    finally:
        pair.edge.run("rm", "-r", "/etc/systemd/system/linkd.service.d")
        pair.edge.run("systemctl", "daemon-reload")
        pair.edge.run("systemctl", "start", "linkd.service")


@pytest.fixture
def drop_in(pair: Pair) -> Iterator[Callable[[str], None]]:
    """Return what puts settings into the unit of the edge and starts it again."""

    def put(text: str) -> None:
        pair.edge.write(f"{DROP_INS}/test.conf", f"[Service]\n{text}\n")
        pair.edge.run("systemctl", "daemon-reload")
        pair.edge.run("systemctl", "restart", "linkd.service")

    yield put
    pair.edge.run("rm", "-r", DROP_INS)
    pair.edge.run("systemctl", "daemon-reload")


def test_a_process_that_does_not_run_is_restarted(
    pair: Pair, drop_in: Callable[[str], None]
) -> None:
    drop_in("WatchdogSec=5")
    before, old = restarts(pair.edge), pair.edge.main_pid()
    pair.edge.run("kill", "-STOP", str(old))
    stopped = time.monotonic()
    while pair.edge.main_pid() in (0, old):
        assert time.monotonic() - stopped < 20, pair.edge.journal()[-3000:]
        time.sleep(0.2)
    pair.edge.wait_active(within=15.0)
    waited = time.monotonic() - stopped
    assert restarts(pair.edge) == before + 1
    wait_link(pair.edge, "hub", "up", 10.0)
    figures.tell(f"stopped process, WatchdogSec=5: ready again after {waited:.1f} s")


def test_a_freeze_of_12_s_restarts_nothing(pair: Pair) -> None:
    before, process = restarts(pair.edge), pair.edge.main_pid()
    pair.edge.run("kill", "-STOP", str(process))
    time.sleep(12.0)
    pair.edge.run("kill", "-CONT", str(process))
    wait_link(pair.edge, "hub", "up", 10.0)
    assert (restarts(pair.edge), pair.edge.main_pid()) == (before, process)


def test_a_missing_directory_of_credentials_does_not_matter(pair: Pair) -> None:
    pair.edge.sh("rm -rf /etc/linkd/credentials")
    pair.edge.run("systemctl", "restart", "linkd.service")
    wait_link(pair.edge, "hub", "up", 10.0)


def test_a_python_that_is_gone_stops_it_and_does_not_loop(pair: Pair) -> None:
    pair.edge.sh("cd /opt/linkd/bin; for each in python3.*; do mv $each away-$each; done")
    try:
        done = pair.edge.run("systemctl", "restart", "linkd.service", check=False)
        assert done.returncode != 0
        time.sleep(3.0)
        assert pair.edge.show("linkd.service", "ActiveState") == "failed"
        assert pair.edge.show("linkd.service", "ExecMainStatus") == "2"
        assert "this host has no longer" in pair.edge.journal()
    finally:
        pair.edge.sh("cd /opt/linkd/bin; for each in away-*; do mv $each ${each#away-}; done")


def test_a_reload_keeps_links_and_a_bad_file_makes_it_fail(pair: Pair) -> None:
    process, generation = pair.hub.main_pid(), link(pair.hub, "edge")["generation"]
    more = HUB + (
        '[[peer]]\nname = "third"\nsecret_file = "/run/credentials/linkd.service/secret_edge"\n'
    )
    pair.hub.write("/etc/linkd/linkd.toml", more)
    done = pair.hub.run("systemctl", "reload", "linkd.service", check=False)
    assert done.returncode == 0, pair.hub.journal()[-3000:]
    end = time.monotonic() + 5
    while link(pair.hub, "third")["state"] == "absent":
        assert time.monotonic() < end, pair.hub.journal()[-3000:]
        time.sleep(0.1)
    pair.hub.write("/etc/linkd/linkd.toml", more.replace("insecure", "in_secure"))
    done = pair.hub.run("systemctl", "reload", "linkd.service", check=False)
    assert done.returncode != 0
    assert "in_secure" in pair.hub.journal()
    time.sleep(1.0)
    assert link(pair.hub, "third")["state"] != "absent"
    assert link(pair.hub, "edge")["state"] == "up"
    assert link(pair.hub, "edge")["generation"] == generation
    assert pair.hub.main_pid() == process


def test_it_stops_clean_and_soon(pair: Pair) -> None:
    begun = time.monotonic()
    pair.hub.run("systemctl", "stop", "linkd.service")
    waited = time.monotonic() - begun
    assert waited < 5.0
    assert pair.hub.show("linkd.service", "Result") == "success"
    assert pair.hub.show("linkd.service", "ExecMainStatus") == "0"
    end = time.monotonic() + 5
    while (found := link(pair.edge, "hub"))["state"] == "up":
        assert time.monotonic() < end
    assert found["reason"] in ("stopped", "refused")
    assert "reason=stopped" in pair.edge.journal()
    figures.tell(f"clean stop: {waited:.2f} s")


def test_two_hosts_cut_by_the_scripts(pair: Pair) -> None:
    """By the scripts as installed, restored by their own timer."""
    restored = "iptables -S | grep -c linkd-drop || true"
    for machine, other in ((pair.hub, "10.98.0.2"), (pair.edge, "10.98.0.1")):
        pair.hub.run("journalctl", "--rotate")
        machine.run("sh", "/opt/linkd/share/drop.sh", other, "--for", "12")
        begun = time.monotonic()
        wait_link(pair.edge, "hub", "down", 12.0)
        while machine.sh(restored).strip() != "0":
            assert time.monotonic() - begun < 20
            time.sleep(0.05)
        waited = wait_link(pair.edge, "hub", "up", 5.0)
        figures.tell(f"cut for 12 s by the script on {machine.name}: up {waited:.2f} s after it")
    for machine, bounds in ((pair.hub, (6.9, 7.1)), (pair.edge, (9.9, 10.1))):
        lines = [line for line in machine.journal().splitlines() if "old=up" in line]
        noticed = [
            float(found[1])
            for line in lines
            if re.search(r"reason=(silence|ping-timeout)", line)
            and (found := re.search(r"noticed_after_seconds=([0-9.]+)", line))
        ]
        assert len(noticed) >= 2, lines
        assert all(bounds[0] <= seconds <= bounds[1] for seconds in noticed[-2:]), noticed


def test_the_timer_of_drop_is_a_service_of_its_own(pair: Pair) -> None:
    """Where systemd runs, --for outlives the session that asked for it."""
    pair.edge.run("sh", f"{SOURCE}/scripts/drop.sh", "192.0.2.7", "--for", "2")
    units = pair.edge.sh("systemctl list-units --plain --no-legend 'linkd-restore-*'")
    assert "linkd-restore-" in units
    end = time.monotonic() + 6
    while "linkd-drop" in pair.edge.sh("iptables -S"):
        assert time.monotonic() < end
        time.sleep(0.1)
