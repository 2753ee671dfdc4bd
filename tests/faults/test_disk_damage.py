"""Damaged, lost and foreign files under real daemons: the loss is stated on both sides, exactly."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.daemon import COMMAND, Daemon
from tests.support.duo import Duo, numbers, publish, run, segments, until
from tests.support.lab import python
from tests.support.needs import need

LOG = "[log]\nsegment_bytes = 1_048_576\nmemory_bytes = 1_048_576\nmin_free_bytes = 1_048_576\n"
COUNT = 5_000
SIZE = 1_000


@pytest.fixture
def owed() -> Iterator[Duo]:
    """Return a pair of which the edge owes the hub 5,000 records, and both have stopped.

    The hub has 100 records before these, and the edge's consumer `audit` wants all.
    """
    duo = Duo(LOG)
    try:
        yield prepared(duo)
    finally:
        duo.close()


def prepared(duo: Duo) -> Duo:
    duo.start()
    publish(duo.edge, "orders", range(100), SIZE)
    duo.edge.call("GET", "/v1/channels/orders?consumer=audit&limit=1")
    duo.settled()
    duo.hub.stop()
    for first in range(100, COUNT, 100):
        publish(duo.edge, "orders", range(first, first + 100), SIZE)
    duo.edge.stop()
    assert len(segments(duo.edge)) >= 5
    return duo


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def rename(path: Path) -> None:
    path.rename(path.with_name("00000099.log"))


def replace(path: Path) -> None:
    """Put the first segment in its place: a file of this log, but of another number."""
    shutil.copy(segments_of(path)[0], path)


def foreign(path: Path) -> None:
    """Put a segment of another log in its place."""
    duo = Duo(LOG)
    try:
        duo.hub.start()
        publish(duo.hub, "orders", range(100))
        duo.hub.stop()
        shutil.copy(segments(duo.hub)[0], path)
    finally:
        duo.close()


def segments_of(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.log"))


DAMAGES: list[Callable[[Path], None]] = [flip, truncate, Path.unlink, foreign]
if CAMPAIGN:
    DAMAGES.append(replace)


@pytest.mark.parametrize("spoil", DAMAGES, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_segment_is_said_to_operator_peer_and_consumer(
    owed: Duo, spoil: Callable[[Path], None]
) -> None:
    edge, hub = owed.edge, owed.hub
    spoil(segments(edge)[2])
    began = time.monotonic()
    owed.start()
    owed.settled(30.0)
    found, there = numbers(edge, "orders"), numbers(hub, "orders")
    assert found == sorted(set(found)) == there
    missing = sorted(set(range(COUNT)) - set(found))
    assert 0 < len(missing) <= 1200
    lost = ranges([number + 1 for number in missing])
    damaged = [line.fields["detail"] for line in edge.matching(began, event="log.damaged")]
    text = " ".join(damaged)
    for first, last in lost:
        assert f"{first} to {last}" in text, (lost, damaged)
    gaps = [*edge.matching(began, event="link.gap"), *hub.matching(began, event="link.gap")]
    assert {(line.fields["first"], line.fields["next"] - 1) for line in gaps} == set(lost)
    assert len(gaps) == 2 * len(lost)
    losses = " ".join(edge.status()["log"]["losses"])
    events = run(edge, "events").stdout + run(edge, "status").stdout
    assert "log.damaged" in losses
    assert "log.damaged" in events
    told, at = [], 1
    while at <= COUNT:
        page = edge.call("GET", f"/v1/channels/orders?from={at}&limit=1000", timeout=20.0)
        if page["gap"]:
            told.append((page["gap"]["first"], page["gap"]["next"] - 1))
        at = page["next"]
    assert told == lost
    assert publish(edge, "orders", [COUNT]) > COUNT
    until(lambda: numbers(hub, "orders")[-1:] == [COUNT])
    figures.tell(
        f"{spoil.__name__}: lost {lost}, said {damaged[0][-160:]!r}, gaps told {len(gaps)}"
    )


def ranges(offsets: list[int]) -> list[tuple[int, int]]:
    """Return the runs in ascending offsets, first and last."""
    runs: list[list[int]] = []
    for offset in offsets:
        if runs and runs[-1][1] == offset - 1:
            runs[-1][1] = offset
        else:
            runs.append([offset, offset])
    return [(first, last) for first, last in runs]


def test_a_renamed_segment_gets_its_name_again(owed: Duo) -> None:
    rename(segments(owed.edge)[2])
    began = time.monotonic()
    owed.start()
    owed.settled(30.0)
    line = owed.edge.wait_line(5.0, began, event="log.damaged", level="warn")
    assert "was given its name again" in line.fields["detail"]
    assert numbers(owed.hub, "orders") == list(range(COUNT))
    figures.tell(f"renamed: lost 0, said {line.fields['detail'][-90:]!r}")


def test_a_segment_that_goes_bad_while_it_is_read_is_said(owed: Duo) -> None:
    edge, hub = owed.edge, owed.hub
    edge.start()
    flip(segments(edge)[2])
    began = time.monotonic()
    hub.start()
    owed.joined()
    owed.settled(30.0)
    line = edge.wait_line(5.0, began, event="log.damaged")
    missing = sorted(set(range(COUNT)) - set(numbers(hub, "orders")))
    lost = ranges([number + 1 for number in missing])
    assert len(lost) == 1
    gap = hub.wait_line(5.0, began, event="link.gap")
    assert (gap.fields["first"], gap.fields["next"] - 1) == lost[0]
    assert f"{lost[0][0]} to {lost[0][1]}" in line.fields["detail"]
    figures.tell(f"bad while it is read: lost {lost}, said {line.fields['detail'][-120:]!r}")


def test_a_lost_or_damaged_cursor_file_costs_nothing(owed: Duo) -> None:
    edge, hub = owed.edge, owed.hub
    path = edge.directory / "state" / "cursors.db"
    owed.start()
    owed.settled()
    for spoil in (Path.unlink, flip_all):
        edge.stop()
        spoil(path)
        began = time.monotonic()
        edge.start()
        told = edge.wait_line(5.0, began, event="cursors.rebuilt").fields["detail"]
        owed.joined()
        publish(edge, "orders", [COUNT])
        owed.settled()
        assert hub.status()["log"]["next"] == edge.status()["log"]["next"]
        figures.tell(f"cursor file {spoil.__name__}: {told}")
    assert [c["name"] for c in edge.status()["consumers"]] == ["audit"]
    assert numbers(hub, "orders") == [*range(COUNT), COUNT, COUNT]


def flip_all(path: Path) -> None:
    """Spoil every page of a file."""
    content = path.read_bytes()
    path.write_bytes(bytes(byte ^ 0x55 for byte in content))


def test_a_cursor_file_that_goes_bad_under_way_is_made_anew(owed: Duo) -> None:
    edge, hub = owed.edge, owed.hub
    owed.start()
    owed.settled()
    began = time.monotonic()
    for path in (edge.directory / "state").glob("cursors.db*"):
        with path.open("r+b") as file:
            file.write(b"\x55" * path.stat().st_size)
    for number in range(200):
        publish(edge, "orders", [COUNT + number])
        if next(edge.matching(began, event="cursors.rebuilt"), None) is not None:
            break
        time.sleep(0.05)
    told = edge.wait_line(5.0, began, event="cursors.rebuilt").fields["detail"]
    owed.settled()
    edge.stop()
    edge.start()
    owed.joined()
    owed.settled()
    assert [c["name"] for c in edge.status()["consumers"]] == ["audit"]
    assert hub.status()["log"]["next"] == edge.status()["log"]["next"]
    figures.tell(f"cursor file bad under way: {told}")


NOBODY = 65_534


OWNED = ["segment", "cursors.db", "state", "identity", "log"]


@pytest.mark.parametrize("what", OWNED if CAMPAIGN else OWNED[:3])
def test_a_file_of_another_user_is_named(what: str) -> None:
    need("root")
    daemon = Daemon("edge", LOG)
    daemon._command = [
        *("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"),
        *python(*COMMAND, "run", "-c", str(daemon.config_file), "--log-format", "json"),
    ]
    state = daemon.directory / "state"
    try:
        daemon.start()
        publish(daemon, "orders", range(100))
        daemon.stop()
        path = {
            "segment": segments(daemon)[0],
            "identity": state / "log" / "identity",
            "cursors.db": state / "cursors.db",
            "log": state / "log",
            "state": state,
        }[what]
        assert path.exists()
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o700 if path.is_dir() else 0o600)
        with pytest.raises(RuntimeError) as refusal:
            daemon.start()
        said = str(refusal.value).splitlines()[-1]
        assert str(state) in said
        assert "chown" in said
        figures.tell(f"{what} of another user: {said}")
        os.chown(path, os.geteuid(), os.getegid())
        daemon.start()
        assert daemon.status()["log"]["next"] == 101
    finally:
        daemon.close()
