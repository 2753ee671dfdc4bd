"""`linkd drill`: on a running pair in the lab, and on throw-away pairs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from linkd.cli import main
from linkd.drill import report as drill_report
from linkd.drill.deadman import DrillFailed
from tests.support import figures
from tests.support.daemon import COMMAND, Daemon, listen, peer
from tests.support.lab import Lab, LabHost, python
from tests.support.needs import need

QUICK = "[heartbeat]\nping_interval = 1.0\nping_timeout = 1.0\n[reconnect]\nmax_delay = 3.0\n"
CARRIES = 'send = [">"]\nreceive = [">"]\n'


class Running(NamedTuple):
    """A running pair."""

    hub: Daemon
    edge: Daemon
    hub_host: LabHost
    edge_host: LabHost


@pytest.fixture
def running(lab: Lab, daemons: Callable[..., Daemon]) -> Running:
    hub_host, edge_host = lab.host("hub"), lab.host("edge")
    hub = daemons("hub", QUICK + listen() + peer("edge", extra=CARRIES), hub_host)
    dial = peer("hub", f"ws://{hub_host.address}:9443/link", extra=CARRIES)
    edge = daemons("edge", QUICK + dial, edge_host)
    edge.wait_up("hub")
    hub.wait_up("edge")
    return Running(hub, edge, hub_host, edge_host)


def command(daemon: Daemon, *words: str) -> list[str]:
    return python(*COMMAND, "-c", str(daemon.config_file), "drill", *words)


def rules(host: LabHost) -> list[str]:
    said = host.sh("iptables -w 5 -S; ip6tables -w 5 -S")
    return [line for line in said.splitlines() if "linkd-drill" in line]


def until(check: Callable[[], bool], within: float, what: str) -> None:
    end = time.monotonic() + within
    while not check():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@pytest.mark.lab
@pytest.mark.parametrize("kind", ["blackhole", "oneway", "reset"])
@pytest.mark.parametrize("at", ["hub", "edge"])
def test_a_running_pair_is_drilled_and_judged(running: Running, kind: str, at: str) -> None:
    here, there, host = (
        (running.hub, running.edge, running.hub_host)
        if at == "hub"
        else (running.edge, running.hub, running.edge_host)
    )
    words = [kind, "--peer", there.name, "--for", "4", "--yes", "--json"]
    both = ["--far-socket", str(there.socket), "--channel", "probe"]
    done = host.run(*command(here, *words, *both), check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["verdict"] == "pass"
    ends = {end["name"]: end for end in report["ends"]}
    assert set(ends) == {"hub", "edge"}
    for end in ends.values():
        assert end["outages"], end
        assert end["back_seconds"] < 5.0
    counted = report["messages"]["probe"]
    assert counted["published"] > 50
    assert (counted["lost"], counted["twice"], counted["out_of_order"]) == (0, 0, 0)
    assert 3.9 < report["fault_ended"] - report["fault_began"] < 5.0
    assert rules(host) == []
    assert "linkd-drill:" in done.stderr, "the rules are shown before they are made"
    noticed = {name: end["outages"][0] for name, end in ends.items()}
    figures.tell(
        f"drill {kind} on a running pair, by {at}: "
        + ", ".join(
            f"{name} {one['noticed_after_seconds']} s ({one['reason']})"
            for name, one in noticed.items()
        )
    )


def told(daemon: Daemon, since: int) -> list[str]:
    """Return what the daemon's events say of drills, behind number `since`."""
    events = daemon.call("GET", f"/v1/events?after={since}")["events"]
    return [f"{one['peer']}: {one['detail']}" for one in events if "drill." in one["event"]]


def last_event(daemon: Daemon) -> int:
    """Return the number of the newest event."""
    return int(daemon.call("GET", "/v1/events")["next"]) - 1


@pytest.mark.lab
def test_without_the_far_end_only_this_end_is_judged(running: Running) -> None:
    words = command(running.edge, "blackhole", "--peer", "hub", "--for", "3", "--yes")
    since = last_event(running.edge)
    done = running.edge_host.run(*words, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "messages: not compared at both ends" in done.stdout
    assert "this node's configuration" in done.stdout
    assert "\n  hub " not in done.stdout
    assert told(running.edge, since) == [
        "hub: blackhole for 3 s, made on purpose",
        "hub: blackhole: pass",
    ]


@pytest.mark.lab
@pytest.mark.parametrize("dies", ["edge", "hub"])
def test_a_daemon_that_dies_meanwhile_stands_in_the_report(running: Running, dies: str) -> None:
    words = ["blackhole", "--peer", "hub", "--for", "8", "--yes", "--json"]
    both = ["--far-socket", str(running.hub.socket), "--channel", "probe"]
    drill = running.edge_host.popen(
        command(running.edge, *words, *both), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: len(rules(running.edge_host)) == 2, 15.0, "the fault was not made")
        (running.edge if dies == "edge" else running.hub).kill()
        out, _ = drill.communicate(timeout=60)
    finally:
        drill.kill()
        drill.wait()
    assert drill.returncode == 1
    report = json.loads(out)
    assert report["verdict"] == "fail"
    got = {check["got"] for check in report["checks"] if not check["ok"]}
    assert "its daemon does not answer" in got
    assert any(running.hub.name in check["what"] for check in report["checks"] if not check["ok"])
    assert rules(running.edge_host) == []


@pytest.mark.lab
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGHUP, 130)]
)
def test_the_path_is_restored_though_the_command_dies(
    running: Running, number: signal.Signals, code: int
) -> None:
    words = command(running.edge, "blackhole", "--peer", "hub", "--for", "60", "--yes")
    since = last_event(running.edge)
    drill = running.edge_host.popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        until(lambda: len(rules(running.edge_host)) == 2, 15.0, "the fault was not made")
        drill.send_signal(number)
        assert drill.wait(20) == code
        until(lambda: not rules(running.edge_host), 5.0, "the fault is still there")
        said = ["hub: blackhole for 60 s, made on purpose"]
        if number != signal.SIGKILL:
            said.append("hub: blackhole: broken off")
        assert told(running.edge, since) == said
    finally:
        drill.kill()
        drill.wait(5)
        assert drill.stdout is not None
        drill.stdout.close()
    running.edge.wait_up("hub")


@pytest.mark.lab
def test_rules_that_others_remove_do_not_lose_the_report(running: Running) -> None:
    words = command(running.edge, "oneway", "--peer", "hub", "--for", "3", "--yes", "--json")
    drilled = running.edge_host.popen(words, stdout=subprocess.PIPE)
    until(lambda: bool(rules(running.edge_host)), 10.0, "no rules")
    running.edge_host.sh("iptables -F")
    assert drilled.stdout is not None
    report = json.loads(drilled.stdout.read())
    drilled.wait(30)
    assert report["why"].startswith("somebody else removed rules of this drill")


@pytest.mark.lab
def test_of_two_drills_at_once_one_is_refused(running: Running) -> None:
    words = command(running.edge, "oneway", "--peer", "hub", "--for", "2", "--yes")
    both = [running.edge_host.popen(words, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert sorted(each.wait(40) for each in both)[1] == 4
    assert rules(running.edge_host) == []


def test_a_link_that_is_down_or_unknown_is_not_drilled(running: Running) -> None:
    words = ["blackhole", "--for", "3", "--yes", "--peer"]
    unknown = running.edge_host.run(*command(running.edge, *words, "nobody"), check=False)
    assert unknown.returncode == 4
    assert "there is no peer 'nobody' here; there is hub" in unknown.stderr
    running.hub.kill()
    until(lambda: running.edge.link("hub")["state"] != "up", 5.0, "it stays up")
    down = running.edge_host.run(*command(running.edge, *words, "hub"), check=False)
    assert down.returncode == 4
    assert "a drill needs it up" in down.stderr
    assert rules(running.edge_host) == []


@pytest.mark.lab
def test_nobody_is_asked_where_there_is_no_terminal(running: Running) -> None:
    words = command(running.edge, "blackhole", "--for", "3", "--peer", "hub")
    done = running.edge_host.run(*words, check=False)
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert rules(running.edge_host) == []


# Throw-away pairs


@pytest.fixture
def directory() -> Iterator[Path]:
    """Return where the drills of a test put what they make; it must be empty afterwards."""
    made = Path(tempfile.mkdtemp(prefix="t-"))
    made.chmod(0o777)
    yield made
    try:
        assert list(made.glob("linkd-drill-*")) == []
        assert processes(made) == []
    finally:
        shutil.rmtree(made)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "linkd.toml"
    file.write_text(
        f'[node]\nname = "quick"\nstate_dir = "{tmp_path}"\n[api]\nsocket = "{tmp_path}/s"\n{QUICK}'
    )
    return file


def processes(directory: Path) -> list[str]:
    """Return the command lines of processes that know a directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(directory) in words:
            found.append(words)
    return found


def lab_drill(config: Path, directory: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        python(*COMMAND, "-c", str(config), "drill", "--lab", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(directory)},
        start_new_session=True,
    )


def reports(drill: subprocess.Popen[str], within: float) -> list[dict[str, Any]]:
    out, said = drill.communicate(timeout=within)
    assert drill.returncode == 0, out + said
    return [json.loads(line) for line in out.splitlines()]


def check(report: dict[str, Any]) -> None:
    assert report["verdict"] == "pass", report
    for counted in report["messages"].values():
        assert counted["published"] > 0
        assert (counted["lost"], counted["twice"], counted["out_of_order"]) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.parametrize(
    "names",
    [
        ("blackhole", "oneway", "reset"),
        ("loss", "slow", "flap"),
        ("dns", "nameless", "absent"),
        ("kill", "freeze"),
        ("kill-edge", "freeze-edge"),
        ("disk", "certificate"),
    ],
    ids="-".join,
)
def test_drills_in_namespaces_pass(names: tuple[str, ...], config: Path, directory: Path) -> None:
    need("iptables in a network namespace")
    told = reports(lab_drill(config, directory, *names, "--json"), 150.0)
    assert [report["drill"] for report in told] == list(names)
    for report in told:
        assert report["where"] == "namespaces"
        check(report)


@pytest.mark.slow
def test_a_stepped_clock_passes(config: Path, directory: Path) -> None:
    need("libfaketime")
    (report,) = reports(lab_drill(config, directory, "clock", "--json"), 90.0)
    check(report)
    assert all(not end["outages"] for end in report["ends"])


@pytest.mark.slow
def test_without_namespaces_the_relay_is_used(config: Path, directory: Path) -> None:
    words = ("oneway", "reset", "loss", "--relay", "--json")
    told = reports(lab_drill(config, directory, *words), 120.0)
    assert [report["where"] for report in told] == ["relay"] * 3
    for report in told[:2]:
        check(report)
        assert all(end["outages"] for end in report["ends"])
    assert told[2]["verdict"] == "skipped"
    assert "needs network namespaces" in told[2]["why"]


def test_it_shows_what_the_command_reports_of_both_nodes(config: Path, directory: Path) -> None:
    drill = lab_drill(config, directory, "blackhole", "--relay", "--show")
    out, said = drill.communicate(timeout=90)
    assert drill.returncode == 0, out + said
    shown = re.split(r"^\$ ", out, flags=re.MULTILINE)[1:]
    assert [one.partition("\n")[0] for one in shown] == [
        f"linkd status    # on {end}, {stage}"
        for stage in ("before the fault", "at the end of the fault", "after the fault")
        for end in ("edge", "hub")
    ] + ["linkd outages    # on edge, after the fault"] + [
        f"journalctl -u linkd | grep link    # on {end}" for end in ("edge", "hub")
    ]
    up = [bool(re.search(r"^(hub|edge)\s+up ", one, re.MULTILINE)) for one in shown[:6]]
    assert up == [True, True, False, False, True, True]
    assert re.search(r"^\S+ \S+\s+hub\s+silence ", shown[6], re.MULTILINE)
    assert "link.up peer=hub" in shown[7]


@pytest.mark.parametrize(
    ("words", "number", "code"),
    [
        pytest.param((), signal.SIGINT, 130, id="namespaces-SIGINT"),
        pytest.param((), signal.SIGKILL, -9, id="namespaces-SIGKILL"),
        pytest.param(("--relay",), signal.SIGTERM, 130, id="relay-SIGTERM"),
        pytest.param(("--relay",), signal.SIGKILL, -9, id="relay-SIGKILL"),
    ],
)
def test_everything_ends_with_the_command(
    config: Path, directory: Path, words: tuple[str, ...], number: signal.Signals, code: int
) -> None:
    drill = lab_drill(config, directory, "blackhole", *words)
    assert drill.stderr is not None
    for line in drill.stderr:
        if "fault:" in line:
            break
    assert len(processes(directory)) >= 2
    drill.send_signal(number)
    drill.communicate(timeout=30)
    assert drill.returncode == code
    until(lambda: not processes(directory), 5.0, "processes are left")
    until(lambda: not list(directory.iterdir()), 5.0, "files are left")


def test_a_verdict_that_falls_short_is_exit_1(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bound is moved to where no daemon can keep it."""
    monkeypatch.setattr(drill_report, "LATE_SECONDS", -1.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    words = ["-c", str(config), "drill", "--lab", "blackhole", "--relay", "--json"]
    assert main(words) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "fail"
    failed = [one["what"] for one in report["checks"] if not one["ok"]]
    assert failed == [
        "hub: noticed after 1.8 to 1.0 s of silence",
        "edge: noticed after 1.8 to 1.0 s of silence",
    ]


def test_a_drill_that_cannot_be_carried_out_has_failed(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise DrillFailed("no room")

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("linkd.drill.testbed.Testbed.start_all", refuse)
    assert main(["-c", str(config), "drill", "--lab", "reset", "kill"]) == 1
    said = capsys.readouterr().out
    assert said.count("it could not be carried out: no room") == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--lab", "earthquake"], "there is no drill 'earthquake'; there is blackhole"),
        (["kill", "--peer", "hub"], "other drills need --lab"),
        (["blackhole"], "expected --peer NAME"),
        (["blackhole", "--peer", "hub", "--for", "121"], "from 1 to 120 seconds, got 121"),
        (["--lab", "kill", "--peer", "hub"], "are for a running pair"),
        (["--lab", "kill", "--for", "5"], "are for a running pair"),
        (["--lab", "kill", "--show", "--json"], "choose one"),
        (["blackhole", "--peer", "hub", "--show"], "--show is for --lab"),
        (["blackhole", "--peer", "hub", "--for", "0"], "from 1 to 120 seconds, got 0"),
        (["blackhole", "--peer", "hub", "--relay"], "--relay is for --lab"),
        ([], "expected one of blackhole, oneway, reset"),
    ],
)
def test_wrong_usage_is_exit_2(config: Path, words: list[str], expected: str) -> None:
    done = subprocess.run(
        python(*COMMAND, "-c", str(config), "drill", *words),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr


def test_every_drill_is_listed(config: Path) -> None:
    done = subprocess.run(
        python(*COMMAND, "drill", "--list"), capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 16
    assert "blackhole" in done.stdout
