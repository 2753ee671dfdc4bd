"""The thread that reads: batches that memory no longer has, and other slow work on files."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from errno import EIO
from pathlib import Path
from queue import SimpleQueue

import msgspec

from linkd.log.commit import Post
from linkd.log.frame import (
    BATCH,
    CHANGES,
    HEAD,
    MAGIC,
    MOST_BYTES,
    PREFIX,
    PREFIX_BYTES,
    SMALL,
    Frame,
    batch_of,
    crc32,
    frame_at,
    frame_size,
    head_of,
)
from linkd.protocol.records import Batch

_CHUNK_BYTES = 1 << 20
_SPARE_BYTES = 1 << 16
_MOST_HINTS = 512
_MAX_FIRST_IN_A_ROW = 3


class CorruptSegment(Exception):
    """A segment has a bad frame.

    Args:
        path: The file.
        at: Where.
        foreign: It is a segment of another log, or another segment.
    """

    def __init__(self, path: Path, at: int, foreign: bool = False) -> None:
        super().__init__(f"{path}: no frame at byte {at}")
        self.path = path
        self.at = at
        self.foreign = foreign


class FilePosition(msgspec.Struct, frozen=True):
    """Where to look for an offset: a file of which `size` bytes count, from `at` on."""

    path: Path
    node: str
    log: str
    at: int
    size: int


class Reader:
    """Does slow work in order, off the reactor's thread.

    Args:
        seed: The log's, for CRCs.
        post: Brings a call into the reactor's thread.

    Attributes:
        thread: To be started by its owner; `stop` ends it.
        hints: Where offsets were found: file and place. Jobs alone use it.
    """

    def __init__(self, seed: int, post: Post) -> None:
        self._seed = seed
        self.post = post
        self._tokens: SimpleQueue[bool] = SimpleQueue()  # one a job; False ends the thread
        self._first: deque[Callable[[], None]] = deque()
        self._others: deque[Callable[[], None]] = deque()
        self.hints: OrderedDict[int, tuple[Path, int]] = OrderedDict()
        self.thread = threading.Thread(target=self._run, name="linkd-log-reader", daemon=True)

    def stop(self) -> None:
        """Finish the queued jobs, then end the thread and wait for it."""
        self._tokens.put(False)
        self.thread.join()

    def work(self, job: Callable[[], None], is_urgent: bool = False) -> None:
        """Queue a job with the reads for links, before those for clients; an urgent one is next."""
        if is_urgent:
            self._first.appendleft(job)
            self._tokens.put(True)
        else:
            self._put(self._first, job)

    def fetch(
        self,
        place: FilePosition,
        position: int,
        max_bytes: int,
        done: Callable[[list[Batch] | OSError | CorruptSegment], None],
        for_link: bool = False,
    ) -> None:
        """Read about `max_bytes` of batches from `position` on, all of one file.

        `done` comes in the reactor. Reads for links come before those for clients.
        """

        def job() -> None:
            found: list[Batch] | OSError | CorruptSegment
            try:
                found = self.batches(place, position, max_bytes)
            except (OSError, CorruptSegment) as error:
                found = error
            except Exception as error:  # noqa: BLE001 - the caller must be answered, and later jobs must run
                found = OSError(EIO, f"{type(error).__name__}: {error}", str(place.path))
            self.post(lambda: done(found))

        self._put(self._first if for_link else self._others, job)

    def _put(self, lane: deque[Callable[[], None]], job: Callable[[], None]) -> None:
        lane.append(job)
        self._tokens.put(True)

    def batches(self, place: FilePosition, position: int, max_bytes: int) -> list[Batch]:
        """Return batches from `position` on, up to a hole.

        Where `position` is in one, the first behind it.

        Raises:
            CorruptSegment: There is a bad frame on the way.
            OSError: The file can't be read.
        """
        at = place.at
        hint = self.hints.pop(position, None)
        if hint is not None and hint[0] == place.path and at <= hint[1] <= place.size:
            at = hint[1]
        taken: list[Batch] = []
        size, expected = 0, position
        chunk = min(_CHUNK_BYTES, max_bytes + _SPARE_BYTES)
        for frame in walk(place.path, at, place.size, self._seed, chunk):
            if frame.kind == BATCH:
                head = head_of(frame)
                if head.count and head.offset + head.count > position:
                    if taken and head.offset != expected:
                        break
                    batch = batch_of(frame, place.node, place.log)[0]
                    taken.append(batch)
                    size += len(batch.records)
                    expected = batch.next
            at = frame.end
            if size >= max_bytes:
                break
        self.hints[expected] = (place.path, at)
        if len(self.hints) > _MOST_HINTS:
            self.hints.popitem(last=False)
        return taken

    def _run(self) -> None:
        """Do one job after the other; what clients wait for has every fourth turn at least."""
        first, others, run = self._first, self._others, 0
        while self._tokens.get():
            if first and (run < _MAX_FIRST_IN_A_ROW or not others):
                run += 1
                first.popleft()()
            else:
                run = 0
                others.popleft()()


def walk(path: Path, at: int, size: int, seed: int, chunk: int = _CHUNK_BYTES) -> Iterator[Frame]:
    """Yield the frames of the first `size` bytes of a file, from `at` on, read by `chunk` bytes.

    Raises:
        CorruptSegment: There is none where one should be.
        OSError: The file can't be read.
    """
    with path.open("rb", buffering=0) as file:
        while at < size:
            wanted = min(chunk, size - at)
            file.seek(at)
            buffer = file.read(wanted)
            head = frame_size(buffer, 0)
            if head is not None and wanted < head <= size - at:
                file.seek(at)
                buffer = file.read(head)
            view, base, inside = memoryview(buffer), at, 0
            while (frame := frame_at(view, inside, base, seed)) is not None:
                yield frame
                inside = frame.end - base
                at = frame.end
            if inside == 0:
                raise CorruptSegment(path, at)


Change = tuple[int, float, memoryview | bytes]
"""Kind, stamp and head of a frame; the head is to be decoded before the next one is asked for."""


def walk_changes(path: Path, size: int, seed: int, every: bool) -> Iterator[Change | None]:
    """Yield what the frames in the first `size` bytes of a file change of the state.

    The others are passed over unread; None comes for each MiB of the file, so that a caller with
    other work can do it.

    Args:
        path: The file.
        size: Bytes that count.
        seed: The log's, for CRCs.
        every: Take each batch's frame: the segment's format does not flag them.

    Raises:
        CorruptSegment: There is no frame where one should be.
        OSError: The file can't be read.
    """
    unpack = PREFIX.unpack_from
    with path.open("rb", buffering=0) as file:
        at, wanted = 0, _CHUNK_BYTES
        while at < size:
            wanted = min(wanted, size - at)
            file.seek(at)
            buffer = file.read(wanted)
            if len(buffer) < wanted:
                raise CorruptSegment(path, at + len(buffer))
            view, inside, wanted = memoryview(buffer), 0, _CHUNK_BYTES
            while inside + PREFIX_BYTES <= len(buffer):
                magic, crc, head, records, _, kind, flags, _, stamp, _ = unpack(view, inside)
                body = inside + PREFIX_BYTES
                end = body + head + records
                if magic != MAGIC or head > MOST_BYTES or records > MOST_BYTES or at + end > size:
                    raise CorruptSegment(path, at + inside)
                if kind != BATCH or every or flags & CHANGES:
                    if end > len(buffer):
                        wanted = max(wanted, end - inside)
                        break
                    start = 0 if kind in (HEAD, SMALL) else seed
                    if crc32(view[inside + 8 : end], start) != crc:
                        raise CorruptSegment(path, at + inside)
                    yield kind, stamp, view[body : body + head]
                inside = end
            if inside == 0 and wanted == _CHUNK_BYTES:
                raise CorruptSegment(path, at)  # what is left is too short for a frame
            at += inside
            yield None
