"""A disk put back to an older copy, or with nothing in common any more, under real daemons."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.daemon import Daemon
from tests.support.duo import Duo, numbers, publish, run, segments, until

LOG = "[log]\nmin_free_bytes = 1_048_576\n"


def state(daemon: Daemon) -> Path:
    return daemon.directory / "state"


WAYS = [("edge", True), ("hub", False), ("edge", False), ("hub", True)]


@pytest.mark.parametrize(("which", "killed"), WAYS if CAMPAIGN else WAYS[:2])
def test_a_node_put_back_an_hour_goes_on_and_the_lost_range_is_exact(
    which: str, killed: bool
) -> None:
    with Duo(LOG) as duo:
        duo.start()
        back, other = (duo.edge, duo.hub) if which == "edge" else (duo.hub, duo.edge)
        publish(back, "mine", range(100))
        publish(other, "theirs", range(100))
        duo.settled()
        back.stop()
        copy = back.directory / "copy"
        shutil.copytree(state(back), copy)
        back.start()
        duo.joined()
        publish(back, "mine", range(100, 200))
        duo.settled()
        publish(other, "theirs", range(100, 150))
        duo.settled()
        time.sleep(1.2)  # within a second the other has passed what came from itself, too
        last = back.status()["log"]["next"] - 1
        if killed:
            back.kill()
        else:
            back.stop()
        publish(other, "theirs", range(150, 160))
        shutil.rmtree(state(back))
        shutil.copytree(copy, state(back))
        began = time.monotonic()
        back.start()
        publish(back, "mine", range(200, 210))
        duo.joined()
        duo.settled()
        until(lambda: len(numbers(back, "theirs")) == 160)
        assert numbers(other, "mine") == [*range(200), *range(200, 210)]
        assert numbers(back, "mine") == [*range(100), *range(200, 210)]
        assert numbers(other, "theirs") == numbers(back, "theirs") == list(range(160))
        said = []
        for daemon in (back, other):
            line = daemon.wait_line(5.0, began, event="link.records-lost")
            said.append(line.fields["detail"])
            assert any(line.fields["detail"] in s for s in daemon.status()["log"]["losses"])
        assert all(f"offsets 201 to {last}," in detail for detail in said), (last, said)
        assert not list(back.matching(began, event="link.diverged"))
        figures.tell(f"{which} put back ({'killed' if killed else 'stopped'}): {said[0]}")


@pytest.mark.parametrize("which", ["edge", "hub"])
def test_logs_with_nothing_in_common_wait_for_an_operator(which: str) -> None:
    with Duo(LOG) as duo:
        duo.start()
        back, other = (duo.edge, duo.hub) if which == "edge" else (duo.hub, duo.edge)
        publish(back, "mine", range(100))
        publish(other, "theirs", range(100))
        duo.settled()
        back.kill()
        for path in segments(back):
            path.unlink()
        began = time.monotonic()
        back.start()
        lost = back.wait_line(5.0, began, event="log.damaged").fields["detail"]
        for daemon in (back, other):
            daemon.wait_line(10.0, began, event="link.diverged")
            assert daemon.link(name(back, other, daemon))["state"] == "diverged"
        first = publish(back, "mine", range(200, 210))
        publish(other, "theirs", range(100, 110))
        time.sleep(1.0)
        assert numbers(other, "mine") == list(range(100))
        told = run(other, "resync", back.name)
        assert told.returncode == 1
        assert "nothing was changed" in told.stdout
        assert "up to offset" in told.stdout
        assert other.link(back.name)["state"] == "diverged"
        done = run(other, "resync", back.name, "--yes")
        assert done.returncode == 0, done.stderr
        duo.joined(30.0)
        duo.settled()
        until(lambda: numbers(other, "mine") == [*range(100), *range(200, 210)])
        until(lambda: numbers(back, "theirs")[-10:] == list(range(100, 110)))
        assert first > 200
        figures.tell(f"{which} without its segments: {lost}; then: {told.stdout.splitlines()[0]}")


def name(back: Daemon, other: Daemon, daemon: Daemon) -> str:
    """Return the peer of a daemon."""
    return other.name if daemon is back else back.name
