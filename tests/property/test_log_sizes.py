"""What a log says it occupies is the sum of its segments, after any course of events."""

from __future__ import annotations

import errno
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import CAMPAIGN
from tests.support.disk import RecordingFiles
from tests.support.logs import SegmentBench, append, draft, everything, received, store

STEPS = st.one_of(
    st.tuples(st.just("append"), st.sampled_from([10, 40_000, 400_000, 1_200_000])),
    st.tuples(st.just("store"), st.sampled_from([10, 300_000])),
    st.tuples(st.sampled_from(["trim", "release"]), st.floats(0, 1)),
    st.tuples(st.sampled_from(["refuse", "refuse_sync"]), st.booleans()),
    st.tuples(st.just("restart"), st.sampled_from(["edge", "other"])),
    st.tuples(st.sampled_from(["crash", "damage", "mend", "wait"]), st.floats(0, 1)),
)


class _Course:
    """A log and what befalls it."""

    def __init__(self, path: Path, when_full: str) -> None:
        self.bench = SegmentBench(
            path, files=RecordingFiles(), max_bytes=16 << 20, when_full=when_full
        )
        self._stored = 1

    def check(self) -> None:
        """Compare the running sum with the sum, and both with what the log says."""
        log = self.bench.log
        # What a commit adds counts once it is written: on a busy machine one may be under way.
        self.bench.until(lambda: log._under_way_bytes == 0)
        size = sum(segment.size for segment in log._segment_set.segments)
        assert log._segment_set.size == size
        beside = log._roller.held_bytes + log._snapshots.size + log._segment_set.beside_bytes
        assert log.size_bytes == size + beside

    def append(self, size: int) -> None:
        append(self.bench, *[draft(bytes(size)) for _ in range(3)])

    def store(self, size: int) -> None:
        store(self.bench, received(self._stored, self._stored + 1, bytes(size)))
        self._stored += 1

    def trim(self, where: float) -> None:
        log = self.bench.log
        log.trim(log.first + int(where * (log.next - log.first)))

    def release(self, where: float) -> None:
        log = self.bench.log
        log.release(log.first + int(where * (log.next - log.first)))
        self.bench.now[0] += self.bench.settings.max_age * where

    def refuse(self, torn: bool) -> None:
        """Let the disk refuse a write, and then take one again."""
        self.bench.files.tear = 700 if torn else 0
        self._refused("refuse")

    def refuse_sync(self, cut: bool) -> None:
        """Let the disk refuse a sync, and perhaps to cut the file."""
        self.bench.files.refuse_truncate = 0 if cut else errno.EIO
        self._refused("refuse_sync")

    def _refused(self, what: str) -> None:
        files, got = self.bench.files, list[Any]()
        setattr(files, what, errno.EIO)
        self.bench.log.append(draft(bytes(5000)), got.append)
        self.bench.until(partial(len, got))
        self.check()
        files.refuse = files.refuse_sync = files.refuse_truncate = files.tear = 0
        self.bench.until(lambda: not self.bench.log._failure)

    def restart(self, node: str) -> None:
        self.bench.restart(node)

    def crash(self, where: float) -> None:
        """End it, and let a write that broke off stand behind the last one."""
        self.bench.close()
        with max(self.bench.path.glob("*.log")).open("ab") as file:
            file.write(b"LkF\x01" + bytes(int(where * 9000)))
        self.bench.open()

    def damage(self, where: float) -> None:
        """Spoil a byte of any segment, and start on it."""
        self.bench.close()
        self._spoil(sorted(self.bench.path.glob("*.log")), where)
        self.bench.open()

    def mend(self, where: float) -> None:
        """Spoil a byte of a finished segment, and meet it while reading."""
        self._spoil(sorted(self.bench.path.glob("*.log"))[:-1], where)
        everything(self.bench)

    def wait(self, where: float) -> None:
        """Let time go by until the log has looked about once more."""
        self.bench.now[0] += 1.0 + self.bench.settings.max_age * where
        looked = self.bench.log._looked
        self.bench.until(lambda: self.bench.log._looked > looked)

    @staticmethod
    def _spoil(paths: list[Path], where: float) -> None:
        if paths:
            path = paths[int(where * 997) % len(paths)]
            content = bytearray(path.read_bytes())
            content[int(where * (len(content) - 1))] ^= 1
            path.write_bytes(bytes(content))


@settings(max_examples=2000 if CAMPAIGN else 40, deadline=None)
@example(when_full="reject", steps=[("append", 400_000), ("append", 10), ("mend", 0.4)])
@given(when_full=st.sampled_from(["reject", "drop-oldest"]), steps=st.lists(STEPS, max_size=12))
def test_the_running_sum_of_sizes_is_the_sum(when_full: str, steps: list[tuple[str, Any]]) -> None:
    root = Path(tempfile.mkdtemp(prefix="linkd-sizes-"))
    try:
        course = _Course(root / "log", when_full)
        for name, how in steps:
            getattr(course, name)(how)
            course.check()
        course.bench.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)
