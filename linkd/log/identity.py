"""What a log is, beside its segments: so that it stays itself when they are damaged or gone."""

from __future__ import annotations

from pathlib import Path

import msgspec

from linkd.log.files import Files
from linkd.log.seal import read_small, write_small

_NAME = "identity"


class Identity(msgspec.Struct, array_like=True, frozen=True):
    """Who a log is.

    Args:
        log: Its id.
        seed: The secret start of its CRCs.
        number: A segment that there was; where none reaches it, some are gone.
        next: No offset below may be given out again.
        oldest: The oldest segment that was not deleted on purpose; 0 before the first.
        first: The first offset in it.
    """

    log: str
    seed: int
    number: int
    next: int
    oldest: int = 0
    first: int = 1


def load_identity(folder: Path) -> Identity | None:
    """Return who the log in `folder` is, or None where the file is missing or damaged."""
    raw = read_small(folder / _NAME)
    try:
        return None if raw is None else msgspec.msgpack.decode(raw, type=Identity)
    except msgspec.DecodeError:
        return None


def save_identity(files: Files, folder: Path, identity: Identity) -> None:
    """Write who the log is.

    Raises:
        OSError: The disk refuses.
    """
    write_small(files, folder / _NAME, msgspec.msgpack.encode(identity), 0.0)
    files.sync_dir(folder)
