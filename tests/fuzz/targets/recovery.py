"""A log's folder whose files were changed, cut, swapped and deleted: found again or LinkdError.

Found twice, the second time finds no less than the first, and gives out no offset anew.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from linkd.errors import LinkdError
from linkd.log.files import RealFiles
from linkd.log.recover import Found, recover
from linkd.log.writer import Writer
from tests.fuzz.reading import Input
from tests.support.logs import SegmentBench, append, draft, numbered, received

_SCRATCH = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
_FOLDER = tempfile.TemporaryDirectory(prefix="linkd-fuzz-", dir=_SCRATCH)


class Quick(RealFiles):
    """Files that are not synced: the machine does not lose its power here."""

    def sync(self, fd: int) -> None:
        """Nothing waits."""

    def sync_dir(self, path: Path) -> None:
        """Nothing waits."""


def _template() -> dict[str, bytes]:
    """Return the files of a log of several small segments, with cursors, ids and producers."""
    tick = Writer.tick
    folder = Path(_FOLDER.name) / "template"
    bench = SegmentBench(folder, segment_bytes=4096, memory_bytes=4096, files=Quick())
    try:
        rng, position = Random(5), 1
        for number in range(12):
            done: list[Any] = []
            body = b"%03d" % number + rng.randbytes(rng.choice((0, 30, 900)))
            if number % 3 == 0:
                bench.log.store(received(position, position + 2, body), done.append)
                position += 2
            elif number % 3 == 1:
                bench.log.append(draft(body, producer=numbered("p", number)), done.append)
            else:
                bench.log.append(draft(body), done.append)
            bench.until(lambda done=done: len(done))  # type: ignore[misc]
        append(bench, draft(b"last"))
    finally:
        bench.close()
        Writer.tick = tick
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}
    shutil.rmtree(folder)
    return found


TEMPLATE = _template()
NAMES = sorted(TEMPLATE)


def one(content: bytes) -> None:
    """Damage a copy of the files, and find the log again, twice."""
    given = Input(content)
    files = dict(TEMPLATE)
    for _ in range(8):
        if not given:
            break
        _damage(files, given)
    folder = Path(_FOLDER.name) / "log"
    folder.mkdir()
    try:
        for name, damaged in files.items():
            (folder / name).write_bytes(damaged)
        try:
            first = recover(folder, Quick(), lambda: 1_790_000_000.0)
        except LinkdError:
            return
        second = recover(folder, Quick(), lambda: 1_790_000_001.0)
        assert _next(second) >= _next(first), (_next(first), _next(second))
        assert {one.number for one in first.segments} <= {one.number for one in second.segments}
    finally:
        shutil.rmtree(folder)


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
