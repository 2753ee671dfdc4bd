"""A log's folder whose files were changed, cut, swapped and deleted: found again or LinkdError.

Found twice, the second time finds no less than the first, and gives out no offset anew. The files
lie in memory (`tests.fuzz.folder`): what a crash does to a disk is held up by tests/property.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random
from typing import Any

import linkd.log.reader
import linkd.log.segment
from linkd.errors import LinkdError
from linkd.log.disk_log import DiskLog
from linkd.log.files import DiskFiles, Environment
from linkd.log.recovery import Found, recover
from linkd.log.writer import Writer
from tests.fuzz import folder
from tests.fuzz.reading import Input
from tests.support.logs import SegmentBench, append, draft, numbered, received

_WALL = 1_790_000_000.0
_READ = (".log", ".idx", ".state")
"""What is looked into when a log is found; ids are read when it runs."""


class Bench(SegmentBench):
    """A log that is the same each time."""

    def open(self, node: str = "edge") -> DiskLog:
        """Open it, and wait for its epoch."""
        self.wall[0] = _WALL - 1000.0
        edges = Environment(DiskFiles(), Random(7), lambda: self.now[0], lambda: self.wall[0])
        self.log = DiskLog(self.path, node, self.settings, self.turns.post, edges)
        self.turns.until(lambda: not self.log._under_way)
        return self.log


def _template(where: Path) -> dict[str, bytes]:
    """Return the files of a log of three small segments, with cursors, ids and producers."""
    tick = Writer.tick
    bench = Bench(where, segment_bytes=300, memory_bytes=4096)
    try:
        rng, position = Random(5), 1
        for number in range(6):
            body = b"%03d" % number + rng.randbytes(rng.choice((0, 30)))
            if number % 3 == 0:
                done: list[Any] = []
                bench.log.store(received(position, position + 2, body), done.append)
                position += 2
                bench.until(lambda done=done: len(done))  # type: ignore[misc]
            elif number % 3 == 1:
                append(bench, draft(body, producer=numbered("p", number)))
            else:
                append(bench, draft(body, ids=(f"i{number}",)))
        append(bench, draft(b"last"))
        bench.until(lambda: len(bench.log._snapshots.bases) == 2 and not bench.log._snapshots.busy)
    finally:
        bench.close()
        Writer.tick = tick
    return {
        path.name: path.read_bytes() for path in sorted(where.iterdir()) if path.suffix in _READ
    }


def template() -> dict[str, bytes]:
    """Return the files of a proper log."""
    with tempfile.TemporaryDirectory(prefix="linkd-fuzz-") as scratch:
        where = Path(scratch) / "log"
        files = _template(where)
        return {"identity": (where / "identity").read_bytes(), **files}


TEMPLATE = template()
NAMES = sorted(TEMPLATE)


def damaged(content: bytes) -> dict[str, bytes]:
    """Return the files after what an input says: one or two bad things, more of them seldom."""
    given = Input(content)
    files = dict(TEMPLATE)
    for _ in range(given.choice((1, 1, 1, 1, 2, 2, 3, 8))):
        if not given:
            break
        _damage(files, given)
    return files


def found_in(path: Any, files: Any) -> Found | LinkdError:
    """Find a log.

    Args:
        path: Its folder, of a kind that `files` works on.
        files: The disk.
    """
    try:
        return recover(path, files, lambda: _WALL)
    except LinkdError as error:
        return error


def one(content: bytes) -> None:
    """Damage a copy of the files, and find the log again; where that changed a file, twice."""
    folder.forget()
    linkd.log.segment.os = folder  # type: ignore[attr-defined]
    lies, files = folder.Folder(damaged(content)), folder.MemoryFiles()
    path: Any = lies.path()
    before = dict(lies.content)
    try:
        first = found_in(path, files)
        if isinstance(first, Found) and lies.content != before:
            second = recover(path, files, lambda: _WALL + 1.0)
            assert _next(second) >= _next(first), (_next(first), _next(second))
            assert {one.number for one in first.segments} <= {one.number for one in second.segments}
    finally:
        linkd.log.segment.os = folder.os  # type: ignore[attr-defined]


def _next(found: Found) -> int:
    state = found.state.next if found.state is not None else 1
    return max(state, found.identity.next if found.identity is not None else 1)


def _damage(files: dict[str, bytes], given: Input) -> None:
    """Do one bad thing to one file."""
    name = given.choice(NAMES)
    content = files.get(name, b"")
    at = min(given.number(65_535), len(content))
    what = given.byte() % 8
    if what == 0:
        files.pop(name, None)
    elif what == 1:
        files[name] = content[:at]
    elif what == 2:
        files[given.choice(NAMES)] = content
    elif what == 3:
        files[name] = content[:at] + bytes(given.byte()) + content[at:]
    elif what == 4:
        files[name] = content[:at] + content[at + given.byte() :]
    elif what == 5:
        files[f"copy-{name}"] = files.pop(name, b"")
    else:
        fresh = given.piece()
        files[name] = content[:at] + fresh + content[at + len(fresh) :]
