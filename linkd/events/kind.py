"""One kind of line that linkd logs."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["debug", "info", "warn", "error"]

COMMON_FIELDS = ("peer", "generation", "address", "old", "new", "reason", "detail")
"""Fields that any line may have, in this order, ahead of its own."""


class Kind(msgspec.Struct, frozen=True):
    """One kind of line.

    Args:
        name: Stable: programs look for it.
        level: Where the caller gives none.
        fields: Its own fields, beside the common ones.
        meaning: What has happened.
        act: What the reader does about it.
        folds: Fields that make two lines repeats of each other; empty: never folded.
    """

    name: str
    level: Level
    fields: tuple[str, ...]
    meaning: str
    act: str
    folds: tuple[str, ...] = ()


def kind(
    name: str, level: Level, fields: str, meaning: str, act: str = "Nothing.", folds: str = ""
) -> Kind:
    """Return a row; `fields` and `folds` are words separated by spaces."""
    return Kind(name, level, tuple(fields.split()), meaning, act, tuple(folds.split()))
