"""Files that are whole or not there, owned by whom the directory belongs to."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def make_directory(path: Path, mode: int) -> None:
    """Make `path` if it isn't there; it then belongs to the owner of the directory above."""
    if path.is_dir():
        return
    path.mkdir(mode=mode)
    path.chmod(mode)
    _adopt(path)


def write_whole(path: Path, content: bytes, mode: int) -> None:
    """Write a file so that a crash leaves the old or the new one, never a part.

    It belongs to the owner of its directory, so that a command run by root writes for the daemon.

    Raises:
        OSError: It can't be written; the old one stays.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(descriptor)
        _adopt(temporary)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _adopt(path: Path) -> None:
    """Give what root has made to the owner of the directory that it lies in."""
    if os.geteuid() == 0:
        above = path.parent.stat()
        os.chown(path, above.st_uid, above.st_gid)
