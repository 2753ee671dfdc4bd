"""The dead man's switch: whatever happens, what it made is taken back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from linkd.drill.deadman import MARK, DrillFailed, Switch

OWNER = """
import sys, time
from linkd.drill.deadman import Switch
switch = Switch()
switch.fault([["touch", sys.argv[1]]], [["rm", sys.argv[1]]], 60.0)
print("made", flush=True)
time.sleep(60)
"""


def gone(path: Path, within: float = 5.0) -> bool:
    return until(lambda: not path.exists(), within)


def until(check: Callable[[], bool], within: float = 5.0) -> bool:
    end = time.monotonic() + within
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_time_ends_a_fault(tmp_path: Path) -> None:
    mark = tmp_path / "fault"
    with Switch() as switch:
        began = switch.fault([["touch", str(mark)]], [["rm", str(mark)]], 0.5)
        assert mark.exists()
        assert switch.over(0.1) is None
        ended = switch.over(5.0)
        assert ended is not None
        assert 0.45 < ended - began < 2.0
        assert not mark.exists()


def test_a_word_ends_a_fault(tmp_path: Path) -> None:
    mark = tmp_path / "fault"
    with Switch() as switch:
        switch.fault([["touch", str(mark)]], [["rm", str(mark)]], 60.0)
        switch.end()
        assert not mark.exists()


def test_leaving_ends_a_fault(tmp_path: Path) -> None:
    mark = tmp_path / "fault"
    with Switch() as switch:
        switch.fault([["touch", str(mark)]], [["rm", str(mark)]], 60.0)
    assert not mark.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_the_death_of_its_owner_ends_a_fault(tmp_path: Path, number: signal.Signals) -> None:
    mark = tmp_path / "fault"
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(mark)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"made\n"
        assert mark.exists()
        owner.send_signal(number)
        assert gone(mark)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_it_outlives_what_a_closing_terminal_sends(tmp_path: Path, number: int) -> None:
    mark = tmp_path / "fault"
    with Switch() as switch:
        switch.fault([["touch", str(mark)]], [["rm", str(mark)]], 60.0)
        os.kill(switch.pid, number)
        assert switch.over(0.3) is None
        assert mark.exists()
        assert os.getsid(switch.pid) == switch.pid


def test_sigterm_makes_it_take_back_first(tmp_path: Path) -> None:
    mark = tmp_path / "fault"
    with Switch() as switch:
        switch.fault([["touch", str(mark)]], [["rm", str(mark)]], 60.0)
        os.kill(switch.pid, signal.SIGTERM)
        assert gone(mark)


def test_a_fault_that_fails_half_way_is_taken_back(tmp_path: Path) -> None:
    mark = tmp_path / "fault"
    with Switch() as switch:
        with pytest.raises(DrillFailed, match="ls /nowhere"):
            switch.fault(
                [["touch", str(mark)], ["ls", "/nowhere"]], [["rm", "-f", str(mark)]], 60.0
            )
        assert not mark.exists()


def test_a_fault_that_cannot_be_taken_back_is_said(tmp_path: Path) -> None:
    with Switch() as switch:
        switch.fault([["true"]], [["ls", "/nowhere"]], 60.0)
        with pytest.raises(DrillFailed, match="ls /nowhere"):
            switch.end()


@pytest.mark.parametrize("there", [False, True])
def test_a_rule_that_somebody_else_removed_is_no_failure(tmp_path: Path, there: bool) -> None:
    tool = tmp_path / "iptables"
    absent = "echo 'iptables: Bad rule (does a matching rule exist in that chain?).' >&2; exit 1"
    tool.write_text(f"#!/bin/sh\n[ $1 = -C ] && {(there and 'exit 0') or absent}\n{absent}\n")
    tool.chmod(0o755)
    with Switch() as switch:
        switch.fault([["true"]], [[str(tool), "-D", "INPUT"]], 60.0)
        if there:
            with pytest.raises(DrillFailed, match="Bad rule"):
                switch.end()
        else:
            switch.end()
        assert switch.was_gone == (not there)


def test_what_is_tried_again_may_work_then(tmp_path: Path) -> None:
    count = tmp_path / "count"
    script = f"echo x >> {count}; test $(wc -l < {count}) -ge 3"
    with Switch() as switch:
        switch.fault([["true"]], [["sh", "-c", script]], 60.0)
        switch.end()
    assert len(count.read_text().split()) == 3


def has_ended(pid: int) -> bool:
    """Return whether a process has ended, whoever waits for it; nobody does in a container."""
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def test_marked_processes_and_directories_go_with_it() -> None:
    directory = Path(tempfile.mkdtemp(prefix="linkd-drill-"))
    other = Path(tempfile.mkdtemp(prefix="another-"))
    with Switch() as switch, subprocess.Popen(["sleep", "60"]) as left:
        marked = {**os.environ, MARK: switch.mark}
        with subprocess.Popen(
            ["sh", "-c", "sleep 60 & echo $!; wait"], env=marked, stdout=-1
        ) as own:
            assert own.stdout is not None
            child = int(own.stdout.readline())
            switch.remove(str(directory))
            switch.remove(str(other))
            switch.close()
            assert own.wait(5) == -signal.SIGKILL
        assert until(lambda: has_ended(child), 5.0)
        assert left.poll() is None
        left.kill()
    assert not directory.exists()
    assert other.exists(), "only what is ours by its name is removed"
    other.rmdir()


def test_a_switch_is_not_marked_by_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else the faults of a drill would outlive it where a test that is killed has started it."""
    mark = tmp_path / "fault"
    with Switch() as outer:
        monkeypatch.setenv(MARK, outer.mark)
        with Switch() as inner:
            inner.fault([["touch", str(mark)]], [["rm", str(mark)]], 60.0)
            outer.close()
            assert inner.over(0.1) is None
            inner.end()
            assert not mark.exists()
