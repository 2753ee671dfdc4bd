"""drop.sh and restore.sh: which rules they make and take away, what they refuse, and when."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkd.drill.testbed import Namespace
from tests.support.lab import ROOT, Lab
from tests.support.needs import need, which

pytestmark = pytest.mark.lab

DROP = str(ROOT / "scripts" / "drop.sh")
RESTORE = str(ROOT / "scripts" / "restore.sh")
HOST = "192.0.2.7"
TOKEN = re.compile(r' -m comment --comment "?linkd-drop:(.*):[0-9]+-[0-9]+"? -j DROP')


@pytest.fixture
def box() -> Iterator[Namespace]:
    """Return a namespace of its own."""
    need("iptables in a network namespace")
    namespace = Namespace("box")
    yield namespace
    namespace.close()


def rules(box: Namespace) -> list[str]:
    """Return the rules in force, comments shortened to the host."""
    listed = box.sh("iptables -w 5 -S; ip6tables -w 5 -S").splitlines()
    return [TOKEN.sub(r" # \1", line) for line in listed if not line.startswith("-P")]


def drop(box: Namespace, *arguments: str) -> tuple[int, str]:
    """Run drop.sh; return its exit status and all it said."""
    done = box.run("sh", DROP, *arguments, check=False)
    return done.returncode, done.stdout + done.stderr


def restore(box: Namespace, *arguments: str) -> tuple[int, str]:
    """Run restore.sh; return its exit status and all it said."""
    done = box.run("sh", RESTORE, *arguments, check=False)
    return done.returncode, done.stdout + done.stderr


def until(box: Namespace, wanted: list[str], within: float) -> float:
    """Wait until these are the rules; return how many seconds that took."""
    begun = time.monotonic()
    while rules(box) != wanted:
        assert time.monotonic() - begun < within, rules(box)
        time.sleep(0.05)
    return time.monotonic() - begun


BOTH = [f"-A INPUT -s {HOST}/32 # {HOST}", f"-A OUTPUT -d {HOST}/32 # {HOST}"]


def test_both_directions_again_and_back(box: Namespace) -> None:
    assert drop(box, HOST) == (0, f"Dropping all packets to and from {HOST} ({HOST}).\n")
    assert rules(box) == BOTH
    assert drop(box, HOST)[0] == 0
    assert rules(box) == BOTH
    assert restore(box, HOST) == (0, f"Restored: {HOST}.\n")
    assert rules(box) == []
    assert restore(box, HOST) == (0, f"Nothing is dropped for {HOST}.\n")


@pytest.mark.parametrize(("direction", "rule"), [("in", BOTH[0]), ("out", BOTH[1])])
def test_one_direction(box: Namespace, direction: str, rule: str) -> None:
    assert drop(box, HOST, "--direction", direction)[0] == 0
    assert rules(box) == [rule]


def test_a_port_at_either_end(box: Namespace) -> None:
    assert drop(box, "--port", "9443", HOST)[0] == 0
    found = set(rules(box))
    assert found == {
        f"-A {chain} {end} {HOST}/32 -p {protocol} -m {protocol} --{port} 9443 # {HOST}"
        for chain, end in (("INPUT", "-s"), ("OUTPUT", "-d"))
        for protocol in ("tcp", "udp")
        for port in ("sport", "dport")
    }
    assert drop(box, "--port", "9444", HOST)[0] == 0
    assert len(rules(box)) == 16
    assert drop(box, "--port", "9443", HOST)[0] == 0
    assert len(rules(box)) == 16
    assert restore(box)[0] == 0
    assert rules(box) == []


def test_ipv6_goes_to_ip6tables(box: Namespace) -> None:
    assert drop(box, "2001:DB8::7")[0] == 0
    assert rules(box) == [
        "-A INPUT -s 2001:db8::7/128 # 2001:db8::7",
        "-A OUTPUT -d 2001:db8::7/128 # 2001:db8::7",
    ]
    assert restore(box, "2001:db8::7")[1] == "Restored: 2001:db8::7.\n"
    assert rules(box) == []


def test_a_name_is_looked_up_once_and_restored_when_it_means_nothing_any_more(lab: Lab) -> None:
    host = lab.host("one")
    host.names({"hub.example.net": "192.0.2.9"})
    host.drop("hub.example.net")
    assert rules(host) == [
        "-A INPUT -s 192.0.2.9/32 # hub.example.net",
        "-A OUTPUT -d 192.0.2.9/32 # hub.example.net",
    ]
    host.names({})
    assert drop(host, "hub.example.net")[0] == 1
    assert len(rules(host)) == 2
    host.restore("hub.example.net")
    assert rules(host) == []


def test_our_rules_come_first_and_others_stay(box: Namespace) -> None:
    accept = f"-A INPUT -s {HOST}/32 -j ACCEPT"
    theirs = f"-A INPUT -s {HOST}/32 -m comment --comment mine -j DROP"
    box.sh(f"iptables {accept}; iptables {theirs}")
    drop(box, HOST)
    assert rules(box)[0] == BOTH[0]
    box.sh(f"iptables -I INPUT -s {HOST} -j ACCEPT")
    drop(box, HOST)
    assert rules(box)[0] == BOTH[0]
    assert len(rules(box)) == 5
    restore(box)
    assert rules(box) == [accept, accept, theirs]


def test_rules_that_were_put_above_ours_meanwhile_are_named(box: Namespace) -> None:
    """As a firewall's reload does: what it accepts has passed, although a drop was in force."""
    drop(box, HOST)
    drop(box, "192.0.2.70")
    assert restore(box, HOST)[1] == f"Restored: {HOST}.\n"
    drop(box, HOST)
    box.sh(
        "iptables -N fw; iptables -A fw -m conntrack --ctstate ESTABLISHED -j ACCEPT;"
        " iptables -I INPUT -j fw"
    )
    assert restore(box, HOST) == (
        0,
        f"Restored: {HOST}.\nOther rules had been put above these since (INPUT): packets may have"
        " passed meanwhile.\n",
    )
    drop(box, HOST)  # again: ours come first again
    assert "above" not in restore(box, HOST)[1]


def test_restore_tells_other_hosts_apart(box: Namespace) -> None:
    drop(box, HOST)
    drop(box, "192.0.2.70")
    code, said = restore(box, "192.0.2.71")
    assert (code, said) == (
        0,
        f"Nothing is dropped for 192.0.2.71; dropped are: {HOST} 192.0.2.70.\n",
    )
    restore(box, HOST)
    assert all("192.0.2.70" in rule for rule in rules(box))
    assert restore(box)[1] == "Restored: 192.0.2.70.\n"


IPV6_PREFIXES = [
    ("fd00::1", "fd00::1:5"),
    ("fd00::1:5", "fd00::1"),
    ("fd00::", "fd00::1"),
    ("2001:db8::", "2001:db8::7"),
    ("fd00:1:2:3:4:5:6:7", "fd00:1:2:3:4:5:6:70"),
]


@pytest.mark.parametrize(("one", "other"), IPV6_PREFIXES)
def test_an_ipv6_address_that_begins_another_keeps_its_own_rules(
    box: Namespace, one: str, other: str
) -> None:
    drop(box, one)
    of_one = rules(box)
    drop(box, other)
    assert len(rules(box)) == 4
    assert restore(box, other)[1] == f"Restored: {other}.\n"
    assert rules(box) == of_one
    assert restore(box, one)[1] == f"Restored: {one}.\n"
    assert rules(box) == []


def test_a_drop_of_a_shorter_ipv6_address_leaves_the_timer_of_a_longer_one(box: Namespace) -> None:
    drop(box, "fd00::1:5", "--for", "1")
    drop(box, "fd00::1")
    until(
        box,
        ["-A INPUT -s fd00::1/128 # fd00::1", "-A OUTPUT -d fd00::1/128 # fd00::1"],
        within=5.0,
    )


def test_what_a_drill_has_left_is_said_and_removed_only_when_asked(box: Namespace) -> None:
    mark = "-m comment --comment linkd-drill:abc -j DROP"
    box.sh(f"iptables -I INPUT -p tcp -s {HOST} --sport 9443 {mark}")
    box.sh(f"ip6tables -I OUTPUT -p tcp -d fd00::7 --dport 9443 {mark}")
    box.sh(f"iptables -A INPUT -s {HOST} -m comment --comment mine -j DROP")
    drop(box, HOST)
    for words in ((HOST,), ()):
        code, said = restore(box, *words)
        assert code == 0
        assert said.splitlines()[-1].endswith("restore.sh --drills removes them now.")
    assert len(rules(box)) == 3
    drop(box, HOST)
    assert restore(box, "--drills") == (0, "Restored: linkd-drill:abc.\n")
    assert rules(box) == [
        *BOTH[:1],
        f"-A INPUT -s {HOST}/32 -m comment --comment mine -j DROP",
        BOTH[1],
    ]
    assert restore(box, "--drills") == (0, "No drill has left rules here.\n")
    assert restore(box) == (0, f"Restored: {HOST}.\n")


def test_for_restores_by_itself(box: Namespace) -> None:
    code, said = drop(box, HOST, "--for", "1.5")
    assert code == 0
    assert said == f"Dropping all packets to and from {HOST} ({HOST}), for 1.5 s.\n"
    assert rules(box) == BOTH
    assert until(box, [], 4.0) > 0.5


def test_for_restores_though_the_terminal_has_gone(box: Namespace) -> None:
    command = [*box.prefix, "sh", "-c", f"sh {DROP} {HOST} --for 1; kill -HUP 0; sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as terminal:
        assert terminal.stdout is not None
        assert b"for 1 s" in terminal.stdout.readline()
        assert terminal.wait(5) != 0
    assert rules(box) == BOTH
    until(box, [], 4.0)


def test_a_later_drop_takes_over_from_a_timer(box: Namespace) -> None:
    drop(box, HOST, "--for", "1")
    drop(box, HOST)
    time.sleep(1.6)
    assert rules(box) == BOTH
    drop(box, HOST, "--for", "1")
    drop(box, HOST, "--for", "3")
    time.sleep(1.8)
    assert rules(box) == BOTH
    until(box, [], 4.0)


def test_restore_before_the_timer_and_a_new_drop_are_not_undone_by_it(box: Namespace) -> None:
    drop(box, HOST, "--for", "1")
    restore(box, HOST)
    drop(box, HOST)
    time.sleep(1.6)
    assert rules(box) == BOTH


SESSION = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
accepted = listener.accept()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def session(box: Namespace) -> Iterator[None]:
    """Hold a connection with port 22 of 127.0.0.1."""
    process = box.popen(
        [sys.executable, "-c", SESSION, "22"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield
    process.kill()
    process.communicate()


@pytest.mark.usefixtures("session")
def test_a_host_with_an_ssh_session_is_refused(box: Namespace) -> None:
    # With a port, so that it is not refused for being this host itself.
    code, said = drop(box, "127.0.0.1", "--port", "22")
    assert code == 1
    assert "an ssh session with 127.0.0.1 is established" in said
    assert drop(box, "localhost", "--port", "22")[0] == 1
    assert drop(box, "127.0.0.1", "--port", "22", "--for", "600")[0] == 1
    assert rules(box) == []
    assert drop(box, "127.0.0.1", "--port", "9443")[0] == 0
    assert drop(box, HOST)[0] == 0
    assert drop(box, "127.0.0.1", "--force")[0] == 0
    restore(box)
    assert drop(box, "127.0.0.1", "--port", "22", "--for", "1")[0] == 0
    until(box, [], 4.0)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "0::1", "::ffff:127.0.0.1", "192.0.2.1"]
)
def test_this_host_itself_is_refused(box: Namespace, host: str) -> None:
    box.sh("ip addr add 192.0.2.1/24 dev lo")
    for words in ((), ("--for", "1"), ("--direction", "out")):
        code, said = drop(box, host, *words)
        assert code == 1
        assert " is this host itself" in said
        assert "--force" in said
        assert said.count("\n") == 1
    assert rules(box) == []
    assert drop(box, host, "--port", "9443")[0] == 0
    restore(box)
    assert drop(box, host, "--force")[0] == 0
    assert len(rules(box)) in (2, 4)  # localhost may have two addresses


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0:0::0"])
def test_the_address_of_nobody_is_refused_whatever_is_said(box: Namespace, host: str) -> None:
    assert drop(box, host, "--force") == (1, f"drop.sh: '{host}' is no host's address\n")
    assert rules(box) == []


@pytest.mark.parametrize(
    ("come", "host"),
    [(HOST, HOST), (f"::ffff:{HOST}", HOST), (HOST, f"::ffff:{HOST}"), ("fd00::7", "fd00:0::7")],
)
def test_the_host_that_the_operator_has_come_from_is_refused(
    box: Namespace, come: str, host: str
) -> None:
    box.sh(
        "ip link add near type veth peer name far; ip link set near up; ip link set far up\n"
        "ip addr add 192.0.2.1/24 dev near; ip addr add fd00::1/64 dev near nodad"
    )
    session = f"SSH_CONNECTION={come} 50022 192.0.2.1 2222"
    # As sudo has it: the variable is the parent's, no longer the script's own.
    sudo = ["env", session, "sh", "-c", f'env -u SSH_CONNECTION sh {DROP} "$@"; exit $?', "-"]
    for command in (["env", session, "sh", DROP], sudo):
        for words in ([], ["--port", "2222"], ["--for", "86400"]):
            done = box.run(*command, host, *words, check=False)
            assert done.returncode == 1, done.stdout
            assert f"you have come from {host} by ssh" in done.stderr
            assert "--for SECONDS, below 600, or --force" in done.stderr
        assert rules(box) == []
        for words in (["--port", "9443"], ["--for", "30"], ["--force"]):
            assert box.run(*command, host, *words, check=False).returncode == 0
            assert rules(box)
            restore(box)
        assert box.run(*command, "192.0.2.99").returncode == 0
        restore(box)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "HOST is missing"),
        (("a", "b"), "one HOST, got a and b"),
        (("a b",), "HOST must be a name or an address, got 'a b'"),
        (("$(reboot)",), "HOST must be a name or an address"),
        (("10.0.0.0/8",), "HOST must be a name or an address"),
        (("--fast", HOST), "unknown option --fast"),
        (("-x",), "unknown option -x"),
        ((HOST, "--port"), "--port needs a value"),
        ((HOST, "--port", "0"), "--port must be a number from 1 to 65535, got '0'"),
        ((HOST, "--port", "65536"), "--port must be a number from 1 to 65535, got '65536'"),
        ((HOST, "--port", "ssh"), "--port must be a number from 1 to 65535, got 'ssh'"),
        ((HOST, "--direction", "up"), "--direction must be both, in or out, got 'up'"),
        ((HOST, "--for", "soon"), "--for must be a number of seconds, got 'soon'"),
        ((HOST, "--for", "0.0"), "--for must be more than 0 seconds, got '0.0'"),
        ((HOST, "--for", "-1"), "--for must be a number of seconds, got '-1'"),
        (("x" * 201,), "HOST is longer than 200 characters"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], said: str) -> None:
    done = subprocess.run(["sh", DROP, *arguments], capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"drop.sh: {said}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("host", ["300.1.1.1", "1.2.3", "no-such-host.invalid", "1::2::3"])
def test_a_host_that_is_none(box: Namespace, host: str) -> None:
    code, said = drop(box, host)
    assert code == 1
    assert host in said
    assert rules(box) == []


def test_wrong_usage_of_restore() -> None:
    for arguments in (["a", "b"], ["-x"], ["--drills", "a"]):
        done = subprocess.run(["sh", RESTORE, *arguments], capture_output=True, timeout=10)
        assert done.returncode == 2
        assert done.stdout == b""


def test_without_iptables_it_names_the_package(tmp_path: Path) -> None:
    for name in ("sh", "tr", "awk", "sort", "getent", "date", "sed"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    for script in (DROP, RESTORE):
        text = Path(script).read_text().replace("PATH=$PATH:/usr/sbin:/sbin", "")
        copy = tmp_path / Path(script).name
        copy.write_text(text)
        done = subprocess.run(
            ["/bin/sh", str(copy), HOST],
            capture_output=True,
            text=True,
            timeout=10,
            env={"PATH": str(tmp_path)},
        )
        assert done.returncode == 1
        assert "iptables is missing" in done.stderr


def test_without_privilege_it_asks_for_root() -> None:
    need("iptables")
    with tempfile.TemporaryDirectory() as directory:  # that another user may enter
        Path(directory).chmod(0o755)
        for script in (DROP, RESTORE):
            copy = Path(shutil.copy(script, directory))
            copy.chmod(0o755)
            plain = ["sh", str(copy), HOST]
            if os.geteuid() == 0:
                plain = ["setpriv", "--reuid", "65534", "--clear-groups", *plain]
            done = subprocess.run(plain, capture_output=True, text=True, timeout=10)
            assert done.returncode == 1
            assert "it needs root" in done.stderr
            assert done.stderr.count("\n") == 1


def test_help_is_on_standard_output() -> None:
    for script in (DROP, RESTORE):
        done = subprocess.run(["sh", script, "--help"], capture_output=True, text=True, timeout=10)
        assert done.returncode == 0
        assert done.stdout.startswith("Usage: ")
        assert done.stderr == ""


@pytest.mark.parametrize(("made_by", "now"), [("legacy", "nft"), ("nft", "legacy")])
def test_rules_of_the_other_kind_of_iptables_are_found(
    box: Namespace, tmp_path: Path, made_by: str, now: str
) -> None:
    need("iptables-legacy", "iptables-nft")

    def choose(kind: str) -> None:
        for tool in ("iptables", "ip6tables"):
            link = tmp_path / tool
            link.unlink(missing_ok=True)
            link.symlink_to(str(which(f"{tool}-{kind}")))

    def run(script: str, *arguments: str) -> str:
        path = f"PATH={tmp_path}:{os.environ['PATH']}:/usr/sbin:/sbin"
        return box.run("env", path, "sh", script, *arguments).stdout

    choose(made_by)
    run(DROP, HOST)
    run(DROP, "--for", "1", "192.0.2.8")
    choose(now)
    assert run(RESTORE) in (f"Restored: {HOST} 192.0.2.8.\n", f"Restored: {HOST}.\n")
    assert "linkd-drop" not in box.sh("iptables-nft -S; iptables-legacy -S")
    choose(made_by)
    run(DROP, "--for", "1", HOST)
    choose(now)
    end = time.monotonic() + 10
    while "linkd-drop" in box.sh("iptables-nft -S; iptables-legacy -S"):
        assert time.monotonic() < end, "its timer does not find what the other kind has made"
        time.sleep(0.05)


def test_install_uses_no_internals_of_a_release() -> None:
    """It meets releases that are older and newer than itself: only their commands are stable."""
    text = (ROOT / "scripts" / "install").read_text()
    assert not re.search(r"(import|from) linkd\.?\w* ?import|import linkd|-m linkd", text)
