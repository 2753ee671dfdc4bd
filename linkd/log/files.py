"""The few file operations of the log, in one place so that tests can record.

Tear and refuse them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

_MOST_BUFFERS = 1000


class Files(Protocol):
    """What the log asks of the disk. All raise OSError."""

    def open(self, path: Path, *, create: bool = False) -> int:
        """Open a file for reading and durable writing; create it where it must not be there yet."""

    def write(self, fd: int, at: int, buffers: Sequence[bytes]) -> None:
        """Write all of `buffers`, one behind the other, at a place; return once all is synced."""

    def sync(self, fd: int) -> None:
        """Return once the file is on the disk, its size too."""

    def uncache(self, fd: int, at: int, size: int) -> None:
        """Let the system's page cache go of bytes that were synced."""

    def sync_dir(self, path: Path) -> None:
        """Return once the directory's entries are on the disk."""

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file."""

    def close(self, fd: int) -> None:
        """Close it."""

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, in place of what has it."""

    def unlink(self, path: Path) -> None:
        """Delete a file."""

    def is_named(self, fd: int, path: Path) -> bool:
        """Return whether an open file is still the one of that name."""

    def free_bytes(self, path: Path) -> int:
        """Return what the disk of `path` has left for us."""


class RealFiles:
    """The operating system's files.

    A write syncs of itself (O_DSYNC): the thread that writes gives up and awaits the interpreter's
    lock once for a commit, not twice.
    """

    def open(self, path: Path, *, create: bool = False) -> int:
        """Open a file for reading and durable writing."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_DSYNC
        return os.open(path, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)

    def write(self, fd: int, at: int, buffers: Sequence[bytes]) -> None:
        """Write all of `buffers`, one behind the other, at a place; return once all is synced."""
        if len(buffers) > _MOST_BUFFERS:
            buffers = [b"".join(buffers)]
        size = sum(map(len, buffers))
        written = os.pwritev(fd, buffers, at)
        if written < size:
            rest = memoryview(b"".join(buffers))
            while written < size:
                written += os.pwrite(fd, rest[written:], at + written)

    def sync(self, fd: int) -> None:
        """Return once the file is on the disk, its size too."""
        os.fdatasync(fd)

    def uncache(self, fd: int, at: int, size: int) -> None:
        """Let the system's page cache go of bytes that were synced, where it listens to that."""
        with suppress(OSError):
            os.posix_fadvise(fd, at, size, os.POSIX_FADV_DONTNEED)

    def sync_dir(self, path: Path) -> None:
        """Return once the directory's entries are on the disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file."""
        os.ftruncate(fd, size)

    def close(self, fd: int) -> None:
        """Close it."""
        os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, in place of what has it."""
        old.replace(new)

    def unlink(self, path: Path) -> None:
        """Delete a file."""
        path.unlink()

    def is_named(self, fd: int, path: Path) -> bool:
        """Return whether an open file is still the one of that name."""
        try:
            return os.path.samestat(os.fstat(fd), path.stat())
        except (FileNotFoundError, NotADirectoryError):
            return False

    def free_bytes(self, path: Path) -> int:
        """Return what the disk of `path` has left for us."""
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize


def room(files: Files, folder: Path) -> int:
    """Return what the disk has left; much, where it does not tell."""
    try:
        return files.free_bytes(folder)
    except OSError:
        return 2**62
