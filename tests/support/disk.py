"""A layer over the log's files that records, refuses and forgets."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from linkd.log.files import DiskFiles

Steps = list[tuple[Any, ...]]


class RecordingFiles(DiskFiles):
    """Real files; every change is noted in `steps`, and may be refused.

    Attributes:
        steps: ("write", file, at, bytes), ("sync", file), ("truncate", file, size), ("create",
            path, file),
            ("rename", old, new), ("unlink", path), ("sync_dir",): file is a number that lasts.
        refuse: The errno that the next writes fail with; 0 none.
        refuse_sync: The same for syncs.
        tear: Bytes that a refused write leaves behind all the same.
        free: What `free_bytes` answers; None asks the disk.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[object, ...]] = []
        self.refuse = 0
        self.refuse_sync = 0
        self.refuse_truncate = 0
        self.tear = 0
        self.free: int | None = None
        self._numbers: dict[int, int] = {}
        self._files = 0

    def open(self, path: Path, *, create: bool = False) -> int:
        """Open a file."""
        if create and self.refuse:
            raise OSError(self.refuse, os.strerror(self.refuse))
        fd = super().open(path, create=create)
        self._files += 1
        self._numbers[fd] = self._files
        self.steps.append(("create" if create else "open", path, self._files))
        return fd

    def write(self, fd: int, at: int, buffers: Sequence[bytes]) -> None:
        """Write and sync, or refuse either."""
        if self.refuse:
            if self.tear:
                os.pwrite(fd, b"".join(buffers)[: self.tear], at)
            raise OSError(self.refuse, os.strerror(self.refuse))
        super().write(fd, at, buffers)
        self.steps.append(("write", self._numbers[fd], at, b"".join(buffers)))
        self.sync(fd)

    def sync(self, fd: int) -> None:
        """Sync, or refuse."""
        if self.refuse_sync:
            raise OSError(self.refuse_sync, os.strerror(self.refuse_sync))
        super().sync(fd)
        self.steps.append(("sync", self._numbers[fd]))

    def sync_dir(self, path: Path) -> None:
        """Sync the directory."""
        super().sync_dir(path)
        self.steps.append(("sync_dir",))

    def truncate(self, fd: int, size: int) -> None:
        """Cut."""
        if self.refuse_truncate:
            raise OSError(errno.EIO, "refused")
        super().truncate(fd, size)
        self.steps.append(("truncate", self._numbers[fd], size))

    def rename(self, old: Path, new: Path) -> None:
        """Rename."""
        super().rename(old, new)
        self.steps.append(("rename", old, new))

    def unlink(self, path: Path) -> None:
        """Delete."""
        super().unlink(path)
        self.steps.append(("unlink", path))

    def free_bytes(self, path: Path) -> int:
        """Return what is free, or what the test says."""
        return super().free_bytes(path) if self.free is None else self.free


class Breaking(DiskFiles):
    """Real files; after so many changes the disk is gone."""

    def __init__(self, left: int) -> None:
        self.left = left

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, "gone")

    def open(self, path: Path, *, create: bool = False) -> int:
        """Open a file, if it is still there."""
        self._count()
        return super().open(path, create=create)

    def write(self, fd: int, at: int, buffers: Sequence[bytes]) -> None:
        """Write, if it is still there."""
        self._count()
        super().write(fd, at, buffers)

    def rename(self, old: Path, new: Path) -> None:
        """Rename, if it is still there."""
        self._count()
        super().rename(old, new)

    def sync_dir(self, path: Path) -> None:
        """Sync the directory, if it is still there."""
        self._count()
        super().sync_dir(path)


class _Disk:
    """The files as they were, what of them was synced, and what was not."""

    def __init__(self) -> None:
        self.paths: dict[Path, int] = {}
        self.loose_names: dict[Path, list[int | None]] = {}
        self.safe: dict[int, bytearray] = {}
        self.loose: dict[int, list[tuple[int, bytes]]] = {}

    def create(self, path: Path, file: int) -> None:
        self._name(path, file)
        self.safe[file], self.loose[file] = bytearray(), []

    def open(self, path: Path, file: int) -> None:
        number = self.paths[path]
        self.safe[file], self.loose[file] = self.safe[number], self.loose[number]
        for names in (self.paths, *self.loose_names.values()):
            _replace(names, number, file)

    def write(self, file: int, at: int, content: bytes) -> None:
        self.loose[file].append((at, content))

    def sync(self, file: int) -> None:
        for at, content in self.loose[file]:
            _put(self.safe[file], at, content)
        self.loose[file].clear()

    def truncate(self, file: int, size: int) -> None:
        del self.safe[file][size:]
        self.loose[file].clear()

    def rename(self, old: Path, new: Path) -> None:
        file = self.paths[old]
        self._name(old, None)
        self._name(new, file)

    def unlink(self, path: Path) -> None:
        self._name(path, None)

    def sync_dir(self) -> None:
        """All names that there are now last."""
        self.loose_names.clear()

    def _name(self, path: Path, file: int | None) -> None:
        """Let a name mean another file, or none: not for sure before the directory is synced."""
        self.loose_names.setdefault(path, [self.paths.get(path)]).append(file)
        if file is None:
            self.paths.pop(path, None)
        else:
            self.paths[path] = file

    def names_left(self, rng: Random) -> dict[Path, int]:
        """Return what each name may mean after power is lost now: any of what it meant lately."""
        found = dict(self.paths)
        for path, meant in self.loose_names.items():
            file = rng.choice(meant)
            found.pop(path, None)
            if file is not None:
                found[path] = file
        return found

    def left(self, file: int, rng: Random) -> bytes:
        """Return a file as power lost now may leave it."""
        safe, loose = self.safe[file], self.loose[file]
        content = bytearray(safe)
        for at, written in loose:
            for begin in range(0, len(written), 512):
                if rng.random() < 0.6:
                    _put(content, at + begin, written[begin : begin + 512])
        if loose and rng.random() < 0.5:
            del content[rng.randrange(len(safe), len(content) + 1) :]
        return bytes(content)


def rebuild(folder: Path, root: Path, steps: Steps, cut: int, rng: Random) -> None:
    """Make the files as power lost after `cut` steps may leave them.

    What was synced is there. Of later writes each 512 bytes are there, or zeros, or the file ends.
    Names given, changed or taken away since the directory was synced are as before, or as then.
    """
    disk = _Disk()
    for step in steps[:cut]:
        getattr(disk, step[0])(*step[1:])
    for path, file in disk.names_left(rng).items():
        (folder / path.relative_to(root)).write_bytes(disk.left(file, rng))


def _replace(names: dict[Path, int] | list[int | None], old: int, new: int) -> None:
    """Call a file by its new number wherever its old one stands."""
    for place, file in list(names.items() if isinstance(names, dict) else enumerate(names)):
        if file == old:
            names[place] = new  # type: ignore[index]


def _put(content: bytearray, at: int, written: bytes) -> None:
    """Write into `content`, with zeros up to there."""
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(written)] = written


class SmallDisk(DiskFiles):
    """Real files in a folder, on a disk of so many bytes.

    Attributes:
        others: Bytes that other programs have on it.
        least: The least that was ever free.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size
        self.others = 0
        self.least = size

    def write(self, fd: int, at: int, buffers: Sequence[bytes]) -> None:
        """Write what there is room for."""
        more = at + sum(map(len, buffers)) - os.fstat(fd).st_size
        left = self.free_bytes(self._folder) - max(0, more)
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.least = min(self.least, left)
        super().write(fd, at, buffers)

    def free_bytes(self, path: Path) -> int:
        """Return what the files in the folder leave."""
        used = self.others
        for file in self._folder.rglob("*"):
            with suppress(FileNotFoundError):
                used += file.stat().st_size if file.is_file() else 0
        return self._size - used
