"""A layer over the log's files that records, refuses and forgets."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from linkd.log.files import RealFiles


class RecordingFiles(RealFiles):
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


class Breaking(RealFiles):
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
