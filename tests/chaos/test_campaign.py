"""A short campaign: what `scripts/campaign` does for hours."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.chaos.acts import Flavour, Plan
from tests.chaos.run import Campaign
from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.lab import ROOT, python
from tests.support.needs import need

pytestmark = [pytest.mark.lab, pytest.mark.slow]

GONE_SECONDS = 5.0
"""In which nothing is left of what a killed runner had started."""


@pytest.mark.parametrize(("seed", "flavour", "longest"), [(11, "plain", 11.0), (20, "paths", 5.0)])
def test_random_faults_under_traffic_lose_nothing(
    seed: int, flavour: Flavour, longest: float
) -> None:
    need("iptables in a network namespace")
    plan = Plan(seed, 2, 200 if CAMPAIGN else 10, rate=500.0, longest=longest, flavour=flavour)
    with Campaign(plan) as campaign:
        report = campaign.run()
    for line in report.lines():
        figures.tell(f"campaign: {line}")
    assert report.published() >= 5_000
    assert report.good, "\n".join(report.lines())


def stat(pid: int) -> tuple[str, int, int] | None:
    """Return a process's state, parent and time of start; None where it is gone."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if words[0] != "Z":  # it has ended, and nobody has asked for its status
            return words[0], int(words[1]), int(words[19])
    return None


def everyone() -> dict[int, tuple[str, int, int]]:
    """Return all processes of this machine."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return {pid: told for pid in pids if (told := stat(pid)) is not None}


def offspring(pid: int) -> dict[int, int]:
    """Return what a process has started, and what that has started: pid and time of start."""
    found: dict[int, int] = {}
    around = everyone()
    new = {pid}
    while new:
        new = {each for each, (_, parent, _) in around.items() if parent in new}
        found |= {each: around[each][2] for each in new}
    return found


def namespaces(pids: Iterable[int]) -> set[str]:
    """Return the network namespaces of processes, without our own."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found.add(str(Path(f"/proc/{pid}/ns/net").readlink()))
    return found - {str(Path("/proc/self/ns/net").readlink())}


def test_nothing_is_left_of_a_campaign_whose_runner_is_killed() -> None:
    need("iptables in a network namespace")
    command = python("-m", "tests.chaos", "--seed", "5", "--edges", "1", "--faults", "50")
    with tempfile.TemporaryDirectory() as folder:
        runner = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert runner.stderr is not None
        with runner, runner.stderr:
            acts = (line for line in runner.stderr if line.startswith("1/50 "))
            assert next(acts, "") != "", "no act was made"
            started = offspring(runner.pid)
            spaces = namespaces(started)
            folders = len(list(Path(folder).iterdir()))
            runner.kill()
        killed = time.monotonic()

        def left() -> tuple[int, int, int]:
            alive = [pid for pid, began in started.items() if (stat(pid) or ("", 0, 0))[2] == began]
            inhabited = namespaces(everyone()) & spaces
            return len(alive), len(inhabited), len(list(Path(folder).iterdir()))

        while any(left()) and time.monotonic() < killed + GONE_SECONDS:
            time.sleep(0.02)
        figures.tell(
            f"runner killed -9: of {len(started)} processes, {len(spaces)} network namespaces and"
            f" {folders} folders {left()} are left after {time.monotonic() - killed:.2f} s"
        )
        assert len(started) >= 6  # three namespaces, two daemons, the watchdog
        assert len(spaces) >= 3
        assert left() == (0, 0, 0)
