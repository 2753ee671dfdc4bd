"""The log's clock: suspend counts, steps of the wall clock don't, and a boot counts with care."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import linkd.log
from linkd.clock import PROGRAM_DATE
from linkd.log.disk_log import DiskLog
from linkd.log.files import DiskFiles
from linkd.log.interface import Appended
from linkd.log.logclock import Doubt, LogClock, Note, load_note, save_note
from linkd.log.segment import write_small
from tests.support.disk import Breaking
from tests.support.logs import SegmentBench, append, bodies, draft, everything, numbered

HOUR, DAY, YEAR = 3600.0, 86_400.0, 365.25 * 86_400.0
NOW = PROGRAM_DATE + 30 * DAY


class Host:
    """A host: what its clocks show."""

    def __init__(self) -> None:
        self.up = 100.0
        self.wall = NOW
        self.synchronised = True
        self.boot = "first"

    def pass_(self, seconds: float) -> None:
        """Let time pass."""
        self.up += seconds
        self.wall += seconds

    def reboot(self, off: float, *, synchronised: bool = True) -> None:
        """Switch it off for a while."""
        self.boot += "+"
        self.up = 5.0
        self.wall += off
        self.synchronised = synchronised

    def clock(
        self, note: Note | None = None, stamp: float = 0.0, wall: float | None = None
    ) -> LogClock:
        """Return the clock of a log that is opened now."""
        one = LogClock(lambda: self.up, lambda: self.wall, lambda: self.synchronised, self.boot)
        one.resume(stamp, wall, note)
        return one


@pytest.fixture
def host() -> Host:
    return Host()


STEPS = [sign * size for size in (8 * DAY, 50 * YEAR) for sign in (1, -1)]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_the_wall_clock_is_no_time(host: Host, step: float) -> None:
    clock = host.clock()
    assert clock.now() == 0.0
    host.wall += step
    assert clock.now() == 0.0
    note = clock.note()
    host.wall -= 2 * step
    host.pass_(10.0)
    again = host.clock(note, 3.0, NOW)
    assert again.now() == clock.now() == 10.0
    assert again.notices is None


def test_suspend_counts_also_over_a_restart_in_the_same_boot(host: Host) -> None:
    clock = host.clock()
    host.up += 8 * HOUR  # the wall clock was not set yet
    assert clock.now() == 8 * HOUR
    note = clock.note()
    host.up += 8 * HOUR
    assert host.clock(note).now() == 16 * HOUR
    assert host.clock(note).ago(16 * HOUR, HOUR) == 15 * HOUR


def test_the_clock_never_goes_back(host: Host) -> None:
    note = host.clock().note()
    assert host.clock(note, 50.0, NOW).now() == 50.0
    host.up -= 60.0  # a container moved to another host, with what lies in its /run
    assert host.clock(note, 50.0, NOW).now() == 50.0


def test_time_in_which_the_host_was_off_counts(host: Host) -> None:
    clock = host.clock()
    host.pass_(HOUR)
    note = clock.note()
    host.reboot(8 * DAY)
    again = host.clock(note, 10.0, NOW)
    assert again.now() == HOUR + 8 * DAY
    assert again.ago(again.now(), DAY) == again.now() - DAY
    assert again.notices is None


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_only_ttl_counts_what_a_clock_that_nobody_kept_right_shows(
    host: Host, before: bool, after: bool
) -> None:
    host.synchronised = before
    clock = host.clock()
    host.pass_(HOUR)
    note = clock.note()
    host.reboot(8 * DAY, synchronised=after)
    again = host.clock(note)
    assert again.now() == HOUR + 8 * DAY
    host.pass_(HOUR)
    # Two hours are certain: what was stored at the beginning is older than that, and no more.
    kept = again.ago(again.now(), 2 * HOUR)
    assert kept == (again.now() - 2 * HOUR if before and after else 0.0)
    assert again.ago(HOUR, HOUR) == 0.0
    assert again.ago(again.now(), HOUR) == again.now() - HOUR


def test_a_clock_that_is_set_right_later_is_believed_where_it_agrees(host: Host) -> None:
    note = host.clock().note()
    host.reboot(8 * DAY, synchronised=False)
    clock = host.clock(note)
    host.pass_(HOUR)
    assert clock.note().doubts != ()
    host.synchronised = True
    host.wall += 30.0
    assert clock.note().doubts == ()
    assert clock.ago(clock.now(), DAY) == clock.now() - DAY


def test_a_clock_that_is_set_right_later_and_does_not_agree_leaves_the_doubt(host: Host) -> None:
    note = host.clock().note()
    host.reboot(8 * DAY, synchronised=False)
    clock = host.clock(note)
    host.synchronised, host.wall = True, host.wall + DAY
    assert len(clock.note().doubts) == 1


@pytest.mark.parametrize(
    ("before", "after"), [(NOW, NOW - DAY), (NOW, DAY), (DAY, NOW), (DAY, 9 * DAY)]
)
def test_a_wrong_clock_counts_as_no_time_and_is_said(
    host: Host, before: float, after: float
) -> None:
    host.wall = before
    clock = host.clock()
    host.pass_(10.0)
    note = clock.note()
    host.reboot(0.0)
    host.wall = after
    again = host.clock(note)
    assert again.now() == 10.0
    assert again.notices is not None
    assert again.notices.event == "log.clock-doubtful"


def test_without_a_place_for_the_word_each_start_counts_as_a_boot(host: Host) -> None:
    host.boot = ""
    note = host.clock().note()
    host.pass_(10.0)
    assert host.clock(note).now() == 10.0
    host.wall += 8 * DAY
    assert host.clock(note).now() == 10.0 + 8 * DAY


def test_a_newer_frame_counts_more_than_an_older_note(host: Host) -> None:
    host.boot = ""
    note = host.clock().note()
    host.pass_(100.0)
    assert host.clock(note, 90.0, host.wall - 5.0).now() == 95.0
    assert host.clock(None, 90.0, host.wall - 5.0).now() == 95.0
    assert host.clock(note, 0.0, None).now() == 100.0


def test_doubts_of_many_boots_become_one_that_spans_them(host: Host) -> None:
    host.synchronised = False
    clock = host.clock()
    for _ in range(100):
        host.pass_(HOUR)
        note = clock.note()
        host.reboot(DAY, synchronised=False)
        clock = host.clock(note)
    assert len(clock.note().doubts) == 64
    assert clock.ago(clock.now(), 2 * HOUR) == clock.now() - 2 * DAY - 2 * HOUR
    assert clock.ago(clock.now(), 1000 * HOUR) < 0.0


def test_the_note_is_read_back_or_is_none(tmp_path: Path) -> None:
    note = Note("word", 1.0, 2.0, 3.0, True, (Doubt(1.0, 2.0, None),))
    save_note(Breaking(0), tmp_path, note)
    assert load_note(tmp_path) is None
    save_note(DiskFiles(), tmp_path, note)
    assert load_note(tmp_path) == note
    (tmp_path / "clock").write_bytes((tmp_path / "clock").read_bytes()[:-1])
    assert load_note(tmp_path) is None
    write_small(DiskFiles(), tmp_path / "clock", b"\xc1", 0.0)
    assert load_note(tmp_path) is None


# in the log


def log_with(tmp_path: Path, **settings: float) -> SegmentBench:
    """Return a log with an id, a producer and a record with a ttl."""
    bench = SegmentBench(tmp_path / "log", **settings)
    bench.boot = "first"
    bench.restart()
    append(bench, draft(b"id", ids=("one",)))
    append(bench, draft(b"number", producer=numbered("p", 1)))
    append(bench, draft(b"short", ttl=60.0))
    return bench


def fates(bench: SegmentBench) -> tuple[bool, bool, bool, int]:
    """Return whether the id and the number are known, the ttl has passed, and what is there."""
    log: DiskLog = bench.log
    log.release(log.next)
    batches = everything(bench)
    expired = all(batch.expired(log.clock()) for batch in batches if batch.ttl is not None)
    (again,) = append(bench, draft(b"id", ids=("one",)))
    (number,) = append(bench, draft(b"number", producer=numbered("p", 1)))
    assert isinstance(again, Appended)
    assert isinstance(number, Appended)
    return again.duplicate, number.duplicate, expired, len(bodies(batches))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("restart", [False, True])
def test_nothing_in_the_log_ends_because_the_wall_clock_stepped(
    tmp_path: Path, step: float, restart: bool
) -> None:
    bench = log_with(tmp_path)
    bench.wall[0] += step
    if restart:
        bench.restart()
    bench.now[0] += 2.0
    assert fates(bench) == (True, True, False, 3)
    bench.now[0] += 60.0
    assert all(batch.expired(bench.log.clock()) for batch in everything(bench) if batch.ttl)
    bench.close()


def test_after_days_without_power_and_a_clock_that_nobody_kept_only_the_ttl_has_passed(
    tmp_path: Path,
) -> None:
    bench = log_with(tmp_path)
    bench.synchronised = False
    bench.close()
    bench.boot, bench.now[0] = "second", 3.0
    bench.wall[0] += 8 * DAY
    bench.open()
    assert fates(bench) == (True, True, True, 3)
    bench.close()


def test_after_days_without_power_and_a_right_clock_all_of_it_counts(tmp_path: Path) -> None:
    bench = log_with(tmp_path)
    bench.close()
    bench.boot, bench.now[0] = "second", 3.0
    bench.wall[0] += 8 * DAY
    bench.open()
    known, _, expired, count = fates(bench)
    assert (known, expired, count) == (False, True, 3)
    append(bench, draft(bytes(1 << 20)))
    append(bench, draft(b"a segment begins"))
    (number,) = append(bench, draft(b"number", producer=numbered("p", 1)))
    assert not number.duplicate
    bench.close()


def test_eight_hours_of_suspend_end_a_ttl_of_a_minute(tmp_path: Path) -> None:
    bench = log_with(tmp_path)
    bench.now[0] += 8 * HOUR
    assert fates(bench) == (True, True, True, 3)
    bench.close()


def test_a_host_that_boots_in_1970_says_so_and_forgets_nothing(tmp_path: Path) -> None:
    bench = log_with(tmp_path)
    bench.close()
    bench.boot, bench.now[0], bench.wall[0] = "second", 3.0, 70 * DAY
    bench.open()
    assert [told.event for told in bench.log.notices] == ["log.clock-doubtful"]
    assert fates(bench) == (True, True, False, 3)
    bench.close()


def test_the_note_is_renewed_each_minute(tmp_path: Path) -> None:
    bench = log_with(tmp_path)
    bench.now[0] += 100.0
    bench.until(lambda: (found := load_note(bench.path)) and found.stamp == bench.log.clock())
    bench.close()


ALLOWED = {
    "log/logclock.py": "counts the time between two boots, and says where it can't",
    "api/auth.py": "a cookie that outlives the daemon carries the date of its end",
    "api/shared_auth.py": "so does a session that was ended at another instance",
}


def test_no_wall_clock_is_compared_with_anything() -> None:
    """Deadlines are monotonic: the wall clock only stamps. Certificates have dates."""
    package = Path(linkd.log.__file__).parents[1]
    paths = [
        path for name in ("core", "log", "node", "api") for path in (package / name).rglob("*.py")
    ]
    found = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in paths
        if str(path.relative_to(package)) not in ALLOWED
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare) and _asks_wall(node)
    ]
    assert len(paths) > 50
    assert found == []


def _asks_wall(node: ast.AST) -> bool:
    """Whether a wall clock is called in there."""
    calls = (one.func for one in ast.walk(node) if isinstance(one, ast.Call))
    return any(
        getattr(func, "id", getattr(func, "attr", "")) in ("wall", "_wall", "time")
        for func in calls
    )
