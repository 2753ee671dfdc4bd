"""A folder of files in memory, for the code that finds a log: paths, descriptors, `DiskFiles`.

Only what that code asks of a folder is there; tests hold it against a real one.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

O_RDONLY, O_CLOEXEC = os.O_RDONLY, os.O_CLOEXEC

_open: dict[int, tuple[Folder, str]] = {}
"""Descriptors: whose file each one is."""
_numbers = count(3)


class Reading(io.BytesIO):
    """A file that is open for reading."""

    def fileno(self) -> int:
        """Return a number that `fstat` knows: how large the file is."""
        return len(self.getbuffer())


class Folder:
    """A folder.

    Args:
        content: Its files by name.
    """

    def __init__(self, content: dict[str, bytes]) -> None:
        self.content = content
        self._paths: dict[str, FilePath] = {}

    def path(self, name: str = "") -> FilePath:
        """Return the path of a file, whether it is there or not; without a name the folder's."""
        found = self._paths.get(name)
        if found is None:
            found = self._paths[name] = FilePath(self, name)
        return found


class FilePath:
    """A path to a folder or, named, to a file in it.

    Args:
        folder: The folder.
        name: The file's name; empty for the folder.
    """

    __slots__ = ("folder", "name", "stem", "suffix")

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder = folder
        self.name = name
        dot = name.rfind(".")
        self.stem, self.suffix = (name[:dot], name[dot:]) if dot > 0 else (name, "")

    def __truediv__(self, name: str) -> FilePath:
        return self.folder.path(name)

    def __str__(self) -> str:
        return f"/log/{self.name}".rstrip("/")

    def __lt__(self, other: FilePath) -> bool:
        return self.name < other.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FilePath) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def iterdir(self) -> Iterator[FilePath]:
        """Yield the files."""
        return iter([self.folder.path(name) for name in self.folder.content])

    def with_name(self, name: str) -> FilePath:
        """Return the file of another name."""
        return self.folder.path(name)

    def exists(self) -> bool:
        """Tell whether there is such a file."""
        return self.name in self.folder.content

    is_file = exists

    def read_bytes(self) -> bytes:
        """Return what is in it."""
        try:
            return self.folder.content[self.name]
        except KeyError:
            raise _missing(self.name) from None

    def open(self, mode: str, buffering: int = -1) -> Reading:
        """Open it for reading."""
        assert mode == "rb"
        return Reading(self.read_bytes())

    def stat(self) -> SimpleNamespace:
        """Return its size."""
        return SimpleNamespace(st_size=len(self.read_bytes()))

    def replace(self, target: FilePath) -> None:
        """Give it another name."""
        content = self.read_bytes()
        del self.folder.content[self.name]
        target.folder.content[target.name] = content

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete it."""
        if self.folder.content.pop(self.name, None) is None and not missing_ok:
            raise _missing(self.name)

    def take(self) -> int:
        """Return a descriptor."""
        self.read_bytes()
        _open[fd := next(_numbers)] = (self.folder, self.name)
        return fd


class MemoryFiles:
    """`linkd.log.files.DiskFiles` on such a folder."""

    def open(self, path: Any, *, create: bool = False) -> int:
        """Open a file for writing."""
        if create:
            if path.exists():
                raise FileExistsError(errno.EEXIST, "File exists", path.name)
            path.folder.content[path.name] = b""
        return int(path.take())

    def write(self, fd: int, at: int, buffers: Sequence[bytes]) -> None:
        """Write at a place."""
        folder, name = _open[fd]
        content = folder.content
        old, fresh = content[name], b"".join(buffers)
        content[name] = old[:at].ljust(at, b"\0") + fresh + old[at + len(fresh) :]

    def sync(self, fd: int) -> None:
        """Nothing waits."""

    def uncache(self, fd: int, at: int, size: int) -> None:
        """Nothing is cached."""

    def sync_dir(self, path: Any) -> None:
        """Nothing waits."""

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file."""
        folder, name = _open[fd]
        content = folder.content
        content[name] = content[name][:size].ljust(size, b"\0")

    def close(self, fd: int) -> None:
        """Close it."""
        del _open[fd]

    def rename(self, old: Any, new: Any) -> None:
        """Give a file another name."""
        old.replace(new)

    def unlink(self, path: Any) -> None:
        """Delete a file."""
        path.unlink()

    def free_bytes(self, path: Any) -> int:
        """There is enough."""
        return 1 << 40


def _missing(name: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "No such file or directory", name)


def forget() -> None:
    """Forget what was left open."""
    _open.clear()


def open(path: FilePath, flags: int) -> int:  # noqa: A001 - stands in for os.open
    """Open a file for reading, as `os.open`."""
    return path.take()


def pread(fd: int, size: int, at: int) -> bytes:
    """Return up to `size` bytes from `at` on, as `os.pread`."""
    folder, name = _open[fd]
    return folder.content[name][at : at + size]


def close(fd: int) -> None:
    """Close a descriptor, as `os.close`; one that was forgotten too."""
    _open.pop(fd, None)


def fstat(size: int) -> SimpleNamespace:
    """Return how large an open file is, as `os.fstat`."""
    return SimpleNamespace(st_size=size)
