"""One daemon at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from linkd.errors import LogDamaged


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
        raise LogDamaged(not_ours(error, folder)) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise LogDamaged(
            f"{folder} is in use by another linkd: stop it, or set another node.state_dir"
        ) from None
    return fd


def not_ours(error: OSError, folder: Path) -> str:
    """Say what is wrong with a file that can't be opened, and what to do."""
    where = error.filename or folder
    if isinstance(error, PermissionError):
        return (
            f"{where} may not be read and written by this user (uid {os.geteuid()}):"
            f" run `chown -R` on {folder} for the user that linkd runs as"
        )
    return f"{where}: {error.strerror}; check the disk, then start linkd again"
