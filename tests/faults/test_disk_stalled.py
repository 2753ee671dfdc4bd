"""A disk that answers nothing for a while: links stay, publishers wait, nothing is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.daemon import Daemon
from tests.support.duo import Duo, numbers, publish, run

STALLS = """
import os, time
from linkd.log.files import RealFiles
taken = RealFiles.write
def write(self, fd, at, buffers):
    while os.path.exists({flag!r}):
        time.sleep(0.02)
    taken(self, fd, at, buffers)
RealFiles.write = write
from linkd.cli import main
raise SystemExit(main())
"""
SECONDS = 60.0 if CAMPAIGN else 9.0


class Stalling:
    """Makes the disk of a daemon answer nothing, again and again; before its start."""

    def __init__(self, daemon: Daemon) -> None:
        self._flag = daemon.directory / "stalled"
        daemon.program = ("-c", STALLS.format(flag=str(self._flag)))

    def stall(self) -> float:
        """Answer nothing from now on."""
        self._flag.touch()
        return time.monotonic()

    def go_on(self) -> None:
        """Answer again."""
        self._flag.unlink(missing_ok=True)


@pytest.fixture
def duo() -> Iterator[Duo]:
    with Duo() as both:
        yield both


def fell(duo: Duo, since: float) -> list[object]:
    """Return the lines of links that fell since."""
    both = (duo.hub, duo.edge)
    return [at.fields for d in both for at in d.matching(since, event="link.waiting")]


def test_a_receiver_whose_disk_stalls_keeps_its_links(duo: Duo) -> None:
    disk = Stalling(duo.hub)
    duo.start()
    publish(duo.edge, "a", range(10))
    duo.settled()
    began = disk.stall()
    answered = time.monotonic()
    publish(duo.edge, "a", range(10, 20))
    answered = time.monotonic() - answered
    assert answered < 2.0, "the edge's own disk is well"
    told = duo.hub.wait_line(12.0, began, event="log.stalled")
    figures.tell(f"a stalled disk is said after {told.at - began:.1f} s")
    assert 5.0 <= told.at - began - told.queued <= 8.0
    assert told.fields["level"] == "error"
    assert duo.edge.link("hub")["backlog_records"] == 10
    status = duo.hub.status()["log"]
    assert status["stalled_seconds"] >= 5.0
    assert status["full"] is None
    assert "linkd_log_stalled_seconds 0.0" not in duo.hub.call("GET", "/metrics")
    checked = run(duo.hub, "status", "--check")
    assert checked.returncode == 1
    assert "the disk has not finished a commit for " in checked.stdout
    assert "the disk has not finished a commit for " in run(duo.hub, "status").stdout
    time.sleep(max(0.0, began + SECONDS - time.monotonic()))
    assert fell(duo, began) == []
    disk.go_on()
    duo.settled()
    duo.hub.wait_line(5.0, began, event="log.slow")
    assert numbers(duo.hub, "a") == list(range(20))
    assert duo.hub.status()["log"]["stalled_seconds"] is None
    assert len(list(duo.hub.matching(began, event="log.stalled"))) == 1
    assert "log.stalled" in json.dumps(duo.hub.call("GET", "/v1/events"))
    assert run(duo.hub, "status", "--check").returncode == 0


def test_a_publisher_waits_for_its_disk_and_a_cut_meanwhile_heals(duo: Duo) -> None:
    disk = Stalling(duo.edge)
    duo.start()
    publish(duo.edge, "a", range(10))
    duo.settled()
    began = disk.stall()
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(publish, duo.edge, "a", range(10, 20))
        try:
            duo.edge.wait_line(12.0, began, event="log.stalled")
            duo.hub.kill()
            duo.hub.start()
            duo.joined()
            publish(duo.hub, "b", range(5))
            time.sleep(1.0)
            assert not waits.done(), "answered before it was on disk"
            assert numbers(duo.hub, "a") == list(range(10)), "sent before it was on disk"
        finally:
            disk.go_on()
        waits.result(10.0)
    duo.settled()
    for daemon in (duo.hub, duo.edge):
        assert numbers(daemon, "a") == list(range(20))
        assert numbers(daemon, "b") == list(range(5))
