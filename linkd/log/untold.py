"""Losses that were found and that perhaps nobody has heard of yet.

Noted on disk before the folder shows no more of them, so that they are told at the next start if a
crash comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from linkd.log.engine import Told
from linkd.log.files import Files
from linkd.log.seal import read_small, write_small

_NAME = "untold"
_MOST = 1000


class Loss(msgspec.Struct, array_like=True, frozen=True):
    """A loss.

    Args:
        detail: The sentence about it.
        aside: The name of the file that is set aside with it, empty where none is. Without that
            file a crash came before: the damage is where it was, and is found anew.
    """

    detail: str
    aside: str = ""


_losses = msgspec.msgpack.Decoder(list[Loss])


class Untold:
    """The note in a log's folder. Where the disk refuses it, losses are told by this run or never.

    Args:
        files: The disk.
        folder: Where the segments lie.
    """

    def __init__(self, files: Files, folder: Path) -> None:
        self._files = files
        self._folder = folder

    def told(self) -> list[Told]:
        """Return what is to be told, oldest first."""
        return [_as_told(loss) for loss in self._losses()]

    def note(self, detail: str, aside: str = "") -> None:
        """Note a loss durably; `aside` is the name that a file is about to get."""
        losses, new = self._losses(), Loss(detail, aside)
        if new not in losses and len(losses) < _MOST:
            self._save([*losses, new])

    def forget(self, told: Sequence[Told]) -> None:
        """The operator was told these."""
        losses = self._losses()
        left = [loss for loss in losses if _as_told(loss) not in told]
        if left:
            self._save(left)
        else:
            with suppress(OSError):
                self._files.unlink(self._path)

    @property
    def _path(self) -> Path:
        return self._folder / _NAME

    def _losses(self) -> list[Loss]:
        """Return the noted losses that came to pass."""
        raw = read_small(self._path)
        try:
            losses = [] if raw is None else _losses.decode(raw)
        except msgspec.DecodeError:
            return []
        return [one for one in losses if not one.aside or (self._folder / one.aside).exists()]

    def _save(self, losses: list[Loss]) -> None:
        """Write the note, as far as the disk lets us."""
        with suppress(OSError):
            write_small(self._files, self._path, msgspec.msgpack.encode(losses), 0.0)
            self._files.sync_dir(self._folder)


def _as_told(loss: Loss) -> Told:
    return Told("error", "log.damaged", loss.detail)
