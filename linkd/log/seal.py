"""The files beside a sealed segment: its index, and the ids in it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from linkd.core.batch import decode_records
from linkd.errors import BadRecord
from linkd.log.files import Files
from linkd.log.frame import BATCH, HAS_IDS, SMALL, batch_of, frame_at, frame_prefix
from linkd.log.ids import Ids, digest
from linkd.log.index import Index, index_path, segment_path
from linkd.log.reader import Damage, walk

_DEFLATED = b"\x78"
"""What a deflated index begins with; those of segments of format 1 are not."""

_index = msgspec.msgpack.Decoder(Index)
_ids = msgspec.msgpack.Decoder(dict[str, list[tuple[bytes, int]]] | list[tuple[bytes, int]])


def ids_path(folder: Path, number: int) -> Path:
    """Return the file of the ids of a sealed segment."""
    return folder / f"{number:012d}.ids"


def seal(files: Files, folder: Path, index: Index, ids: Sequence[tuple[str, bytes, int]]) -> None:
    """Write a segment's index and ids; where that fails the next start makes them again."""
    encode = msgspec.msgpack.encode
    with suppress(OSError):
        if ids:
            mine: dict[str, list[tuple[bytes, int]]] = {}
            for owner, key, offset in ids:
                mine.setdefault(owner, []).append((key, offset))
            write_small(files, ids_path(folder, index.number), encode(mine), index.stamp)
        content = zlib.compress(encode(index), 1)  # mostly names of channels, again and again
        write_small(files, index_path(folder, index.number), content, index.stamp)


def bytes_beside(folder: Path, number: int) -> int:
    """Return what the files beside a sealed segment occupy."""
    size = 0
    for path in (index_path(folder, number), ids_path(folder, number)):
        with suppress(OSError):
            size += path.stat().st_size
    return size


def load_index(folder: Path, number: int, log: str) -> Index | None:
    """Return the index of a sealed segment, or None where there is none that can be read."""
    head = read_small(index_path(folder, number))
    try:
        if head is not None and head[:1] == _DEFLATED:
            head = zlib.decompress(head)
        index = None if head is None else _index.decode(head)
    except (msgspec.DecodeError, zlib.error):
        return None
    return index if index is not None and (index.number, index.log) == (number, log) else None


def load_ids(folder: Path, index: Index, seed: int, ids: Ids) -> None:
    """Remember the ids of a segment."""
    head = read_small(ids_path(folder, index.number))
    if head is not None:
        found = _ids.decode(head)
        for owner, mine in (found if isinstance(found, dict) else {"": found}).items():
            for key, offset in mine:
                ids.add(owner, key, offset, index.stamp)
        return
    try:
        for frame in walk(segment_path(folder, index.number), 0, index.size, seed):
            if frame.kind == BATCH and frame.flags & HAS_IDS:
                batch, opened = batch_of(frame, index.node, index.log)
                for place, record in enumerate(decode_records(batch.records, batch.count)):
                    if record.id:
                        key = digest(batch.channel, record.id)
                        ids.add(opened.owner, key, batch.offset + place, batch.stamp)
    except (Damage, OSError, BadRecord):
        return


def write_small(files: Files, path: Path, content: bytes, stamp: float) -> None:
    """Write a small file whole, or not at all.

    Raises:
        OSError: The disk refuses.
    """
    part = path.with_name(path.name + ".part")
    prefix = frame_prefix((SMALL, 0, content, b""), 0, stamp, 0.0)
    with suppress(FileNotFoundError):
        files.unlink(part)
    fd = files.open(part, create=True)
    try:
        files.write(fd, 0, [prefix, content])
    finally:
        files.close(fd)
    files.rename(part, path)


def read_small(path: Path) -> bytes | None:
    """Return what a small file holds, or None where it is missing or damaged."""
    try:
        frame = frame_at(path.read_bytes(), 0)
    except OSError:
        return None
    return None if frame is None else frame.head
