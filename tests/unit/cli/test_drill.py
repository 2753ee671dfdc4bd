"""`linkd drill` in careless hands: what it refuses before a fault is made, and what it outlives."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkd import cli
from linkd.cli import drill, main
from linkd.drill import deadman, live, runner
from linkd.drill.live import PacketMatch
from linkd.drill.monitor import Span
from linkd.drill.report import EndReport, Report
from tests.support.http_daemon import HttpDaemon

PEER = "192.0.2.7"
FILTERED = f"-A INPUT -s {PEER}/32 -p tcp -m comment --comment"


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Put back what a command does to signals."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, what in zip(numbers, before, strict=True):
        signal.signal(number, what)


class Made:
    """A plan that concerns one address."""

    far = PacketMatch(PEER, 9443, ours=False)
    begin = (["iptables", "-I"],)
    undo = (["iptables", "-D", "one"], ["iptables", "-D", "two"])

    def lines(self, _request: live.Request) -> list[str]:
        return ["every packet"]


class Full(io.StringIO):
    """Takes nothing."""

    def write(self, _text: str) -> int:
        raise OSError(28, "No space left on device")


def report(name: str = "blackhole", verdict: Any = "pass") -> Report:
    return Report(drill=name, about="", began="", where="running", verdict=verdict)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Have plans made and drills run without a daemon; return what was run."""
    ran: list[str] = []

    def run(request: live.Request, *_: object) -> Report:
        ran.append(request.kind)
        return report(request.kind)

    monkeypatch.setattr(live, "plan", lambda *_: Made())
    monkeypatch.setattr(live, "run", run)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(drill, "LOCKS", tmp_path)
    monkeypatch.setattr(deadman, "admin_path", lambda: str(tmp_path))
    monkeypatch.setenv("LINKD_SOCKET", str(tmp_path / "none"))
    return ran


def packet_filter(directory: Path, script: str) -> None:
    """Put an `iptables` there."""
    program = directory / "iptables"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


WORDS = ["drill", "blackhole", "--peer", "hub", "--for", "3", "--yes"]


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        (f"echo '{FILTERED} linkd-drill:ab -j DROP'", 4, "a drill is under way on this host"),
        (f"echo '{FILTERED} linkd-drop:hub:1-2 -j DROP'", 4, "run restore.sh first"),
        (
            "echo Permission denied >&2; echo more >&2; exit 4",
            1,
            "can't be used: Permission denied",
        ),
        ("exit 3", 1, "iptables can't be used: exit 3"),
    ],
)
def test_a_second_fault_on_a_link_is_refused(
    done: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    script: str,
    code: int,
    said: str,
) -> None:
    packet_filter(tmp_path, script)
    assert main(WORDS) == code
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert done == []


def test_a_second_drill_is_refused_before_the_first_has_made_its_rules(
    done: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packet_filter(tmp_path, "true")
    with drill._drill_lock():
        assert main(WORDS) == 4
    assert "a drill is under way on this host" in capsys.readouterr().err
    assert done == []
    assert main(WORDS) == 0
    assert list(tmp_path.glob("*.lock")) == []


def test_no_other_user_can_keep_drills_out(done: list[str], tmp_path: Path) -> None:
    """Anyone can bind an abstract socket; the lock is in a directory of root's."""
    packet_filter(tmp_path, "true")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as held:
        held.bind("\0linkd-drill")
        assert main(WORDS) == 0
    with drill._drill_lock():
        (lock,) = tmp_path.glob("*.lock")
        assert lock.stat().st_mode & 0o777 == 0o600


def test_a_lock_that_was_removed_meanwhile_keeps_nobody_out(
    done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packet_filter(tmp_path, "true")
    flock = drill.fcntl.flock

    def late(lock: int, how: int) -> None:
        (held,) = tmp_path.glob("*.lock")
        held.unlink()
        held.touch()
        flock(lock, how)

    monkeypatch.setattr(drill.fcntl, "flock", late)
    assert main(WORDS) == 4
    assert done == []


def test_without_a_place_for_the_lock_nothing_is_done(
    done: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(drill, "LOCKS", tmp_path / "none")
    assert main(WORDS) == 4
    assert "no lock, so no drill" in capsys.readouterr().err
    assert done == []


def test_faults_of_others_are_none_of_its_business(done: list[str], tmp_path: Path) -> None:
    packet_filter(
        tmp_path, "echo '-A INPUT -s 192.0.2.70/32 -m comment --comment linkd-drop:x:1-2'"
    )
    assert main(WORDS) == 0
    assert done == ["blackhole"]


def test_without_a_packet_filter_it_says_what_to_install(
    done: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(WORDS) == 1
    assert "iptables is missing (Debian: apt install iptables)" in capsys.readouterr().err
    assert done == []


@pytest.mark.parametrize(("left", "note"), [(True, "; its rules are removed now"), (False, "")])
def test_what_a_killed_switch_has_left_is_removed(
    done: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    left: bool,
    note: str,
) -> None:
    packet_filter(tmp_path, f'echo "$*" >>{tmp_path}/asked; [ "$1" != -D ] || [ {int(left)} = 1 ]')

    def run(*_: object) -> Report:
        raise deadman.DrillFailed("the dead man's switch has ended")

    monkeypatch.setattr(live, "run", run)
    assert main(WORDS) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == f"linkd: the dead man's switch has ended{note}"
    assert (tmp_path / "asked").read_text().splitlines()[-2:] == ["-D one", "-D two"]


def test_the_far_socket_must_be_the_peers(
    done: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packet_filter(tmp_path, "")
    far = ["--far-socket", str(tmp_path / "far")]
    assert main([*WORDS, *far]) == 3
    assert done == []
    status = {
        "node": "other", "version": "0.1.0", "uptime_seconds": 1.0, "consumers": [], "links": [],
        "log": {"id": "L", "first": 1, "next": 2, "bytes": 1, "max_bytes": 10},
    }  # fmt: skip
    with HttpDaemon(tmp_path / "far") as daemon:
        daemon.answers["GET /v1/status"] = (200, status)
        assert main([*WORDS, *far]) == 2
        assert "expected the socket of hub" in capsys.readouterr().err
        assert done == []
        daemon.answers["GET /v1/status"] = (200, status | {"node": "hub"})
        assert main([*WORDS, *far]) == 0
    assert done == ["blackhole"]


@pytest.mark.parametrize("channel", ["", "a b", "a..b", "orders.>", "x\r\nHost: y"])
def test_a_channel_that_is_none_is_refused_before_the_fault(
    done: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], channel: str
) -> None:
    packet_filter(tmp_path, "")
    assert main([*WORDS, "--channel", channel]) == 2
    assert " is no channel" in capsys.readouterr().err
    assert done == []


def test_a_daemon_that_was_gone_is_said_in_the_report(
    done: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    packet_filter(tmp_path, "")
    for states, note in ((["up", "gone"], True), (["up", "waiting", "up"], False)):
        spans = [Span(state, 0.0, 1.0) for state in states]
        end = EndReport("edge", "dialer", [], None, False, spans)
        seen = msgspec.structs.replace(report(verdict="fail"), ends=[end], why="bounds")
        monkeypatch.setattr(live, "run", lambda *_, seen=seen: seen)
        assert main([*WORDS, "--json"]) == 1
        why = json.loads(capsys.readouterr().out)["why"]
        assert ("the daemon of edge did not answer for a while" in why) is note
        assert why.endswith("bounds")


@pytest.mark.parametrize("given", ["0", "0.5", "121", "nan", "inf", "-3"])
def test_the_time_has_bounds(done: list[str], tmp_path: Path, given: str) -> None:
    packet_filter(tmp_path, "")
    assert main(["drill", "reset", "--peer", "hub", "--yes", f"--for={given}"]) == 2
    assert main(["drill", "--lab", "reset", f"--for={given}"]) == 2
    assert done == []


def test_without_room_for_a_pair_none_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "run_all", lambda *_: iter([report("reset")]))
    monkeypatch.setattr(drill, "LAB_BYTES", 1 << 60)
    assert main(["drill", "--lab", "reset"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "set TMPDIR to another directory" in told.err
    monkeypatch.setattr(drill, "LAB_BYTES", 1)
    assert main(["drill", "--lab", "reset"]) == 0


def test_a_terminal_that_takes_nothing_ends_no_drill(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_all(_drills: object, _bounds: object, say: Any, *_: object) -> Iterator[Report]:
        say("reset", "making the fault")
        yield report("reset")

    monkeypatch.setattr(runner, "run_all", run_all)
    monkeypatch.setattr(sys, "stderr", Full())
    assert main(["drill", "--lab", "reset", "--json"]) == 0
    assert '"drill":"reset"' in capsys.readouterr().out


def test_nobody_is_asked_who_cannot_see_the_question(
    done: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = io.StringIO("y\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert main(WORDS[:-1]) == 2
    assert "pass --yes" in capsys.readouterr().err
    assert done == []


def test_what_nohup_has_others_ignore_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run_all", lambda *_: iter([report("reset")]))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert main(["drill", "--lab", "reset"]) == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert main(["drill", "--lab", "reset"]) == 0
    assert signal.getsignal(signal.SIGHUP) is drill._interrupt


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_impatience_does_not_break_off_the_taking_back(
    monkeypatch: pytest.MonkeyPatch, first: signal.Signals
) -> None:
    restored = []

    def run_all(*_: object) -> Iterator[Report]:
        try:
            yield report("reset")
            os.kill(os.getpid(), first)
            threading.Event().wait(5.0)
        finally:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            restored.append(True)

    monkeypatch.setattr(runner, "run_all", run_all)
    assert main(["drill", "--lab", "reset", "kill", "--json"]) == 130
    assert restored == [True]


def test_drills_end_when_nobody_reads_their_reports_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    restored = []

    def run_all(*_: object) -> Iterator[Report]:
        try:
            yield report("reset")
            threading.Event().wait(20.0)
        finally:
            restored.append(True)

    monkeypatch.setattr(runner, "run_all", run_all)
    began = time.monotonic()
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        threading.Timer(0.2, os.close, [reader]).start()
        assert main(["drill", "--lab", "reset", "kill", "--json"]) == 0
        monkeypatch.undo()
    assert time.monotonic() - began < 10.0
    assert restored == [True]


@pytest.mark.parametrize("words", [["drill", "--list"], ["version"]])
def test_output_that_cannot_be_written_is_exit_2_and_no_traceback(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "linkd", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
        )
    assert done.returncode == 2
    assert done.stderr == "linkd: cannot write the output: No space left on device\n"


@pytest.mark.parametrize(("words", "code"), [(["version"], 0), (["drill", "quake"], 2)])
def test_closed_streams_are_no_mistake(words: list[str], code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "linkd", *words]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "-", *command]
    assert subprocess.run(closed, timeout=20, cwd=tmp_path.parent).returncode == code


def test_the_help_has_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drill", "--help"]) == 0
    said = capsys.readouterr().out
    assert "4 the link is not there, not up or\nbeing drilled already, 130 interrupted." in said


def test_other_mistakes_of_the_system_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(cli.importlib, "import_module", fail)
    with pytest.raises(OSError, match="Too many"):
        main(["version"])
