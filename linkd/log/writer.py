"""The one thread that writes.

Takes all waiting jobs, writes them in one call, syncs, and reports to the reactor's thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import ENOENT
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec

from linkd.log.commit import CommitGroup, Post
from linkd.log.files import DiskFiles
from linkd.log.frame import HEAD, NewFrame, frame_prefix
from linkd.log.segment import Index

UNCACHE_BYTES = 4 << 20
"""The page cache is asked to drop written bytes in steps of this size.

The newest batches are in our own memory anyway, and a page used again costs less than a new one, on
virtual machines by far (measured: commits of 1 MiB at 390 MB/s without, 1,600 MB/s with it).
"""


FILL_BYTES = 1 << 17
"""Zeros preallocated ahead of small commits, again when half of them are used up.

Overwriting them changes neither the file's size nor its block map, so that the disk has one thing
to write instead of several (measured: a commit of 400 B 180 µs instead of 275, and 80 µs of
processor time instead of 125, on ext4 without a journal; one with a journal has to write that too).
"""

SMALL_BYTES = 1 << 12
"""Larger commits gain less from preallocated zeros than these cost."""

FILL_FREE_BYTES = 1 << 26
"""No zeros are preallocated on a disk with less free space."""

_ZEROS = bytes(FILL_BYTES)

MEASURE_BYTES = 1 << 20
MEASURE_SECONDS = 0.1
"""Free space is measured after this many bytes or seconds, whichever comes first."""

GATHER_BYTES = 1 << 17
GATHER_SECONDS = 0.001
"""After a commit of this size a pause of GATHER_SECONDS lets the next commit take more at once.

Nobody notices the moment at such a rate (measured: 10 % more records of 1 KiB, 15 % of 64 KiB).
"""


class WriteJob(msgspec.Struct, frozen=True):
    """A group on its way to the disk.

    Args:
        era: Counts failures; a failure leaves all jobs of its era unwritten, for they follow it.
        group: The group.
        parts: Its frames.
        wall: Unix seconds at which it was made.
        at: Where its frames begin in the file.
        creates: The file to begin with it; None goes on in the last one.
        begins: The segment that begins with it.
        continues: The file to go on with, where another instance has written since; or None.
        pause: Seconds that the writer waits behind it, to slow down who fills the log.
    """

    era: int
    group: CommitGroup
    parts: Sequence[NewFrame]
    wall: float
    at: int
    creates: Path | None = None
    begins: Index | None = None
    continues: Path | None = None
    pause: float = 0.0


class Written(msgspec.Struct, frozen=True):
    """Jobs that are on disk.

    Args:
        jobs: They.
        free_bytes: What the disk had left before.
        measured_at: When that was measured, by `time.monotonic`.
        seconds: How long the commit took.
    """

    jobs: Sequence[WriteJob]
    free_bytes: int
    measured_at: float
    seconds: float


class WriteFailed(msgspec.Struct, frozen=True):
    """A job could not be written, nor what came behind it in its era.

    Args:
        error: Why.
        usable: The file was put back to its last good length and can go on.
        gone: Nothing was tried: the file was deleted, or its directory was replaced.
    """

    error: OSError
    usable: bool
    gone: bool = False


class Idle(msgspec.Struct, frozen=True):
    """Nothing came for a while.

    Args:
        free_bytes: What the disk has left now.
        measured_at: When that was measured, by `time.monotonic`.
        gone: The file was deleted, or its directory was replaced: what is written is lost.
    """

    free_bytes: int
    measured_at: float
    gone: bool = False


class Writer:
    """Writes jobs in order.

    Args:
        files: The disk.
        folder: Where the segments lie.
        seed: The log's, for CRCs.
        post: Brings a call into the reactor's thread.
        report: Called there with what became of the jobs, and when nothing came for `tick` seconds.

    Attributes:
        queue: Jobs that wait, in order.
    """

    tick = 1.0

    def __init__(
        self,
        files: DiskFiles,
        folder: Path,
        seed: int,
        post: Post,
        report: Callable[[Written | WriteFailed | Idle], None],
    ) -> None:
        self._files = files
        self._folder = folder
        self._seed = seed
        self._post = post
        self._report = report
        self.queue: SimpleQueue[WriteJob | None] = SimpleQueue()
        self._fd = -1
        self._path = folder
        self._gone = False
        self._size = 0
        self._filled = 0
        self._uncached = 0
        self._bad_era = -1
        self._free = 2**62
        self._measured_at = 0.0
        self._unmeasured = 0
        self._ended: Callable[[], None] = _nothing
        self._thread = threading.Thread(target=self._run, name="linkd-log-writer", daemon=True)

    def start(self, path: Path | None, size: int) -> None:
        """Begin, going on behind the first `size` bytes of `path`."""
        if path is not None:
            self._fd, self._path = self._files.open(path), path
            self._size = self._filled = self._uncached = size
        self._thread.start()

    def stop(self, done: Callable[[], None]) -> None:
        """Write what is there, then end the thread.

        `done` is called in the reactor behind all reports.
        """
        self._ended = done
        self.queue.put(None)

    def _run(self) -> None:
        """Take all that is there, again and again."""
        self._measure()
        running = True
        while running:
            jobs: list[WriteJob] = []
            try:
                item = self.queue.get(timeout=self.tick)
                while True:
                    if item is None:
                        running = False
                        break
                    if item.era > self._bad_era:
                        if jobs and item.creates is not None:
                            self._commit(jobs)
                            jobs = []
                        jobs.append(item)
                    item = self.queue.get_nowait()
            except Empty:
                if not jobs:
                    self._measure()  # the next commit's report must not be older
                    idle = Idle(self._free, self._measured_at, self._gone)
                    self._post(partial(self._report, idle))
            if jobs:
                gathers = self._commit(jobs) >= GATHER_BYTES
                pause = max(GATHER_SECONDS * gathers, *[job.pause for job in jobs])
                if pause and running:
                    self.pause(pause)
        if self._fd >= 0:
            self._finish(self._fd)
        self._post(self._ended)

    @staticmethod
    def pause(seconds: float) -> None:
        """Wait, also where a test has stepped the clock: time.sleep fails there (libfaketime)."""
        threading.Event().wait(seconds)

    def _commit(self, jobs: list[WriteJob]) -> int:
        """Write jobs of one file, or put it back as it was; return how many bytes."""
        if jobs[0].era <= self._bad_era:
            return 0
        began = time.monotonic()
        try:
            if self._gone:
                raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(self._path))
            written = self._write(jobs)
        except OSError as error:
            self._bad_era = jobs[0].era
            usable = not self._gone and self._put_back()
            self._post(partial(self._report, WriteFailed(error, usable, self._gone)))
            return 0
        written_jobs = Written(jobs, self._free, self._measured_at, time.monotonic() - began)
        self._post(partial(self._report, written_jobs))
        # The rest comes after the report, so that no publisher waits for it.
        if self._size - self._uncached >= UNCACHE_BYTES:
            self._files.uncache(self._fd, self._uncached, self._size - self._uncached)
            self._uncached = self._size
        self._unmeasured += written
        is_old = time.monotonic() - self._measured_at >= MEASURE_SECONDS
        if is_old or self._unmeasured >= MEASURE_BYTES:
            self._measure()
        if written <= SMALL_BYTES and self._filled - self._size < FILL_BYTES // 2:
            self._fill()
        return written

    def _write(self, jobs: list[WriteJob]) -> int:
        """Write jobs of one file, which syncs them; return how many bytes."""
        creates = jobs[0].creates
        if creates is not None:
            self._create(creates)
        buffers: list[bytes] = []
        synced = self._size
        for job in jobs:
            stamp, wall = job.group.stamp, job.wall
            for part in job.parts:
                seed = 0 if part[0] == HEAD else self._seed
                prefix = frame_prefix(part, synced, stamp, wall, seed)
                buffers += (prefix, part[2], part[3])
        self._files.write(self._fd, synced, buffers)
        if creates is not None:
            self._files.sync_dir(self._folder)
        written = sum(map(len, buffers))
        self._size = synced + written
        return written

    def _measure(self) -> None:
        """Note what the disk has left, for the next report."""
        self._measured_at, self._unmeasured = time.monotonic(), 0
        with suppress(OSError):
            self._gone = self._fd >= 0 and not self._files.is_named(self._fd, self._path)
            self._free = self._files.free_bytes(self._folder)

    def _create(self, path: Path) -> None:
        """Go on in a new file; the page cache lets go of what is left of the last one."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            if self._size > self._uncached:
                self._files.uncache(fd, self._uncached, self._size - self._uncached)
            self._finish(fd)
        self._size = self._filled = self._uncached = 0
        with suppress(FileNotFoundError):
            self._files.unlink(path)
        self._fd, self._path = self._files.open(path, create=True), path

    def _fill(self) -> None:
        """Make room ready for small commits, where there is enough of it."""
        if self._free >= FILL_FREE_BYTES and self._files.preallocates:
            begin = max(self._filled, self._size)
            self._filled = begin + FILL_BYTES  # also if the disk refuses: it is asked again later
            with suppress(OSError):
                self._files.write(self._fd, begin, [_ZEROS])

    def _finish(self, fd: int) -> None:
        """Close a file, without the zeros behind what it holds."""
        if self._filled > self._size:
            with suppress(OSError):
                self._files.truncate(fd, self._size)
                self._files.sync(fd)
        self._files.close(fd)

    def _put_back(self) -> bool:
        """Cut off what a failed write left; return whether the file is still usable."""
        if self._fd < 0 or self._size == 0:
            return False
        try:
            self._files.truncate(self._fd, self._size)
            self._files.sync(self._fd)
            self._filled = self._size
        except OSError:
            return False
        return True


def why(error: OSError) -> str:
    """Return why the write failed."""
    return f"the disk refuses to write: {error.strerror or os.strerror(error.errno or 0)}"


def _nothing() -> None:
    """Nobody waits for the end."""
