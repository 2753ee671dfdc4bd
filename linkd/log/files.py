"""File operations of the log in one class, its lock, and when it refuses publishes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random, SystemRandom

import msgspec

from linkd import clock
from linkd.errors import LogDamaged

_MOST_BUFFERS = 1000


class DiskFiles:
    """What the log asks of the disk; tests put theirs here. All methods raise OSError.

    A write syncs of itself (O_DSYNC): the thread that writes gives up and awaits the interpreter's
    lock once for a commit, not twice.
    """

    preallocates = True
    """Zeros ahead of what is written make small commits cheaper."""

    is_shared = False
    """Other instances may write the log meanwhile."""

    def lock(self, folder: Path) -> int:
        """Keep other daemons out of the log; return the file to close at the end."""
        return lock(folder)

    def open(self, path: Path, *, create: bool = False) -> int:
        """Open a file for reading and durable writing; create it where it must not be there yet."""
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


def room(files: DiskFiles, folder: Path) -> int:
    """Return the free bytes of the disk; a huge number if they are unknown."""
    try:
        return files.free_bytes(folder)
    except OSError:
        return 2**62


def lock(folder: Path) -> int:
    """Make the folder where it is missing and keep other daemons out.

    Return the file to close at the end.

    Raises:
        LogDamaged: One is in already, or the folder is not ours.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LogDamaged(explain_os_error(error, folder)) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise LogDamaged(
            f"{folder} is in use by another linkd: stop it, or set another node.state_dir"
        ) from None
    return fd


def explain_os_error(error: OSError, folder: Path) -> str:
    """Return why a file can't be opened, and what to do."""
    where = error.filename or folder
    if isinstance(error, PermissionError):
        return (
            f"{where} may not be read and written by this user (uid {os.geteuid()}):"
            f" run `chown -R` on {folder} for the user that linkd runs as"
        )
    return f"{where}: {error.strerror}; check the disk, then start linkd again"


class Environment(msgspec.Struct, frozen=True):
    """What a log touches of the world; tests put their own here.

    Args:
        files: The disk.
        rng: Where ids, epochs and seeds come from.
        monotonic: Seconds that only grow, those of a suspended host too.
        wall: Unix seconds.
        synchronised: Whether the wall clock is.
        boot: A word that is the same until the next boot; empty where there is none.
        call_at_iteration_end: Makes a call at the end of the reactor's iteration, in its thread;
            None where the end is not known.
    """

    files: DiskFiles = msgspec.field(default_factory=DiskFiles)
    rng: Random = msgspec.field(default_factory=SystemRandom)
    monotonic: Callable[[], float] = clock.boottime
    wall: Callable[[], float] = clock.wall
    call_at_iteration_end: Callable[[Callable[[], None]], object] | None = None
    synchronised: Callable[[], bool] = clock.is_synchronised
    boot: str = ""
