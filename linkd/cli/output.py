"""Format numbers, times and tables for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Literal

import msgspec

Colour = Literal["green", "yellow", "red", "dim", "bold"]

_CODES: dict[Colour, str] = {"green": "32", "yellow": "33", "red": "31", "dim": "2", "bold": "1"}
_DASH = "–"


def disk_stalled(seconds: float) -> str:
    """Return the sentence about a disk that finishes no commit."""
    return f"the disk has not finished a commit for {duration(seconds)}"


def duration(seconds: float | None) -> str:
    """Return a duration in few characters: `12ms 3.2s 59s 4m12s 3h04m 12d`; a dash for None."""
    if seconds is None:
        return _DASH
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 9.95:
        return f"{seconds * 1000:.0f}ms" if seconds < 0.9995 else f"{seconds:.1f}s"
    return _long(round(seconds))


def _long(whole: int) -> str:
    """Return a duration of ten seconds or more."""
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    if whole < 10 * 86_400:
        return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"
    return f"{whole // 86_400}d"


def clock_time(stamp: str) -> str:
    """Return an RFC 3339 time in UTC for people: `11-29 20:22:44 UTC`."""
    return f"{stamp[5:19].replace('T', ' ')} UTC"


def size(count: float | None) -> str:
    """Return a number of bytes with its unit: `512 B`, `1.2 KiB`, `10 GiB`."""
    if count is None:
        return _DASH
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        count /= 1024
        if count < 1023.5 or unit == "PiB":
            break
    return f"{count:.1f} {unit}" if count < 9.95 else f"{count:.0f} {unit}"


def number(count: int | None) -> str:
    """Return a count with commas, or a dash."""
    return _DASH if count is None else f"{count:,}"


def short(count: int) -> str:
    """Return a count in at most five characters."""
    for limit, unit, width in (
        (99_999, 1, ""),
        (9_999_500, 1_000, "k"),
        (9_999_500_000, 1_000_000, "M"),
    ):
        if count <= limit:
            return f"{count / unit:.0f}{width}"
    return f"{count / 1e9:.0f}G"


def plural(count: int, word: str) -> str:
    """Return `1 record`, `2 records`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def cut(text: str, width: int) -> str:
    """Return `text` in at most `width` characters, with an ellipsis if it was cut."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def printable(text: str) -> str:
    """Return `text` on one line, without control characters: peers must not control a terminal."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def json_text(content: bytes) -> str:
    """Return JSON as one line without control characters, its value unchanged.

    In strings they are escaped; between strings tabs and line ends become spaces.
    """
    text = content.decode()
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def print_json(value: object) -> None:
    """Print a value as one line of JSON without control characters."""
    print(json_text(msgspec.json.encode(value)))


def _escaped(letter: str) -> str:
    if letter in "\t\r\n":
        return " "
    units = letter.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int]) -> list[str]:
    """Return lines of aligned columns; those whose index is in `right` are right-aligned."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    ]


class Colours:
    """Colours, on a terminal only.

    Args:
        on: Whether to colour; None: if standard output is a terminal and NO_COLOR is not set.
    """

    def __init__(self, on: bool | None = None) -> None:
        self.on = (sys.stdout.isatty() and not os.environ.get("NO_COLOR")) if on is None else on

    def __call__(self, text: str, colour: Colour) -> str:
        """Return `text` in `colour`."""
        return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if self.on else text
