"""A disk without room, or one that refuses: publishers are told, links stay, nothing is lost."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from linkd.drill.testbed import Namespace
from tests.chaos.checker import judge, read_log
from tests.chaos.traffic import Publisher
from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.daemon import Daemon
from tests.support.duo import Duo, Watched, publish, run, until
from tests.support.needs import need

LOG = "[log]\nmin_free_bytes = 1_048_576\nsegment_bytes = 1_048_576\n"
SIZE = 32 << 20


@pytest.fixture
def small() -> Iterator[Duo]:
    """Return a pair of which the hub's state lies on a small disk of its own."""
    need("network namespaces")
    host = Namespace("small-disk")
    duo = Duo(LOG, host)
    try:
        host.sh(
            f"mkdir {state(duo.hub)}\n"
            f"mount -t tmpfs -o mode=0700,size={SIZE} tmpfs {state(duo.hub)}"
        )
        yield duo
    finally:
        duo.close()
        host.close()


def state(daemon: Daemon) -> Path:
    return daemon.directory / "state"


def fill(daemon: Daemon, leave: int = 0) -> None:
    """Fill the daemon's disk with something else, but for so many bytes."""
    assert daemon.host is not None
    path = state(daemon) / "filling"
    free = int(daemon.host.sh(f"stat -f -c '%a %S' {state(daemon)}").split()[0]) * 4096
    count = free // 4096 + 100 if leave == 0 else max(0, free - leave) // 4096
    daemon.host.run("dd", "if=/dev/zero", f"of={path}", "bs=4096", f"count={count}", check=False)


def free_up(daemon: Daemon) -> None:
    """Take the filling away."""
    assert daemon.host is not None
    daemon.host.run("rm", "-f", str(state(daemon) / "filling"))


def refused(daemon: Daemon) -> str:
    """Return what a publisher is told that is refused for want of room.

    Raises:
        AssertionError: It is not refused.
    """
    said: list[str] = []

    def tried() -> bool:
        try:
            publish(daemon, "tried", [0])
        except RuntimeError as error:
            said.append(str(error))
        return bool(said)

    until(tried)
    return said[0]


def published(daemon: Daemon) -> bool:
    """Tell whether a publish is taken."""
    try:
        publish(daemon, "tried", [2])
    except RuntimeError:
        return False
    return True


def traffic(duo: Duo) -> list[Publisher]:
    """Begin a publisher at each end."""
    rng = Random(5)
    return [
        Publisher(duo.hub, "at-hub", "from.hub", rng, 500.0),
        Publisher(duo.edge, "at-edge", "from.edge", rng, 500.0),
    ]


def check(duo: Duo, publishers: list[Publisher]) -> None:
    """Hold both logs against what was acknowledged, once their daemons have stopped."""
    for daemon in (duo.hub, duo.edge):
        if daemon.running:
            assert daemon.stop() == 0
    for daemon in (duo.hub, duo.edge):
        found = read_log_of(daemon)
        for publisher in publishers:
            verdict = judge(publisher.ledger, found[publisher.ledger.name], daemon.name)
            assert verdict.good, verdict
            figures.tell(
                f"  {verdict.publisher} in {daemon.name}'s log: acknowledged {verdict.acked}, there"
                f" {verdict.there}, lost {len(verdict.lost)}, twice {len(verdict.twice)}, out of"
                f" order {verdict.out_of_order}; refused {publisher.ledger.refused}"
            )


def read_log_of(daemon: Daemon) -> dict[str, list[int]]:
    """Return the numbers in a stopped daemon's log, also where it lies on a disk of its own."""
    if daemon.host is None:
        return read_log(state(daemon), daemon.name)
    copy = daemon.directory / "copy"
    daemon.host.run("cp", "-a", str(state(daemon)), str(copy))
    return read_log(copy, daemon.name)


@pytest.mark.parametrize("leave", [0, 600_000], ids=["to-the-last-byte", "below-min-free"])
def test_a_full_disk_refuses_publishers_and_loses_nothing(small: Duo, leave: int) -> None:
    hub, edge = small.hub, small.edge
    small.start()
    watched, publishers = Watched(small), traffic(small)
    for publisher in publishers:
        publisher.start()
    try:
        rounds = 5 if CAMPAIGN else 1
        for _ in range(rounds):
            time.sleep(1.0)
            fill(hub, leave)
            began = time.monotonic()
            said = refused(hub)
            told = hub.wait_line(5.0, began - 5.0, event="log.full")
            assert " 507 " in said
            assert "log-full" in said
            for why in (hub.status()["log"]["full"], told.fields["detail"]):
                assert why.startswith("the disk ")
            publish(edge, "tried", [1])
            if not leave:
                hub.wait_line(10.0, began - 5.0, event="link.acks-paused", peer="edge")
            time.sleep(1.0)
            free_up(hub)
            hub.wait_line(10.0, began, event="log.space-available")
            until(lambda: hub.status()["log"]["full"] is None)
            until(lambda: published(hub))
    finally:
        for publisher in publishers:
            publisher.end()
    small.settled()
    assert watched.fell() == []
    events = run(hub, "events").stdout
    assert "log.full" in events
    assert "log.space-available" in events
    figures.tell(f"disk full {rounds} times under traffic (leaving {leave} bytes): {said!r}")
    check(small, publishers)


def test_a_daemon_starts_on_a_full_disk_or_says_why_not(small: Duo) -> None:
    small.start()
    publish(small.edge, "orders", range(1000), 100)
    small.settled()
    small.hub.kill()
    publish(small.edge, "orders", range(1000, 1100), 100)
    fill(small.hub)
    small.hub.start()
    said = refused(small.hub)
    free_up(small.hub)
    small.joined(30.0)
    small.settled()
    figures.tell(f"start on a full disk: {said}")
    until(lambda: small.hub.status()["log"]["full"] is None)
    assert small.hub.status()["log"]["next"] == 1101


def test_a_read_only_disk_is_named_at_start(small: Duo) -> None:
    small.start()
    publish(small.edge, "orders", range(100))
    small.settled()
    small.hub.stop()
    host, place = small.hub.host, state(small.hub)
    assert host is not None
    host.sh(f"mount -o remount,ro {place}")
    with pytest.raises(RuntimeError) as refusal:
        small.hub.start()
    said = str(refusal.value)
    assert str(place) in said
    assert "Read-only" in said
    figures.tell(f"start on a read-only disk: {said.splitlines()[-1]}")
    host.sh(f"mount -o remount,rw {place}")
    small.hub.start()
    small.joined(30.0)
    assert small.hub.status()["log"]["next"] == 101


def limit_files(daemon: Daemon, size: int) -> None:
    """Let the daemon's writes above an offset in any file fail, as on a disk gone read-only."""
    _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (size, hard))


def test_a_disk_that_refuses_under_way_is_named_and_loses_nothing() -> None:
    with Duo(LOG) as duo:
        duo.start()
        watched, publishers = Watched(duo), traffic(duo)
        for publisher in publishers:
            publisher.start()
        try:
            first = time.monotonic()
            for _ in range(5 if CAMPAIGN else 2):
                time.sleep(0.7)
                began = time.monotonic()
                limit_files(duo.hub, 0)
                said = refused(duo.hub)
                assert " 507 " in said
                line = duo.hub.wait_line(5.0, first, event="log.disk-failed")
                assert str(state(duo.hub)) in line.fields["detail"]
                duo.hub.wait_line(5.0, began, event="log.full")
                time.sleep(0.5)
                limit_files(duo.hub, resource.RLIM_INFINITY)
                duo.hub.wait_line(10.0, began, event="log.space-available")
        finally:
            for publisher in publishers:
                publisher.end()
        duo.settled()
        assert watched.fell() == []
        figures.tell(f"a disk that refuses all writes: {line.fields['detail']}")
        check(duo, publishers)
