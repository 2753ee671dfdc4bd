"""Medians, tables, plots: how measurements are told."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent.parent / "docs" / "measurements"


class Figure(NamedTuple):
    """A median, the least and the most of its rounds."""

    median: float
    least: float
    most: float


def figure(values: Sequence[float]) -> Figure:
    """Sum rounds up.

    Raises:
        statistics.StatisticsError: There are none.
    """
    return Figure(statistics.median(values), min(values), max(values))


def short(value: float) -> str:
    """Write a number with three digits that count: 1,230,000, 12.3, 0.0123."""
    if value == 0:
        return "0"
    digits = 2
    scale = abs(value)
    while scale >= 10:
        digits, scale = digits - 1, scale / 10
    while scale < 1 and digits < 6:
        digits, scale = digits + 1, scale * 10
    return f"{round(value, digits):,.{max(0, digits)}f}"


def spread(found: Figure, write: Callable[[float], str] = short) -> str:
    """Write a median with its spread."""
    return f"{write(found.median)} ({write(found.least)} to {write(found.most)})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its columns aligned."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(head), rule, *[line(row) for row in rows]])


def python() -> str:
    """Name the interpreter; distributions build theirs with optimisations, others often without."""
    whose = " of the distribution" if sys.base_prefix == "/usr" else ""
    return f"Python {platform.python_version()}{whose}"


def machine() -> str:
    """Describe where and when this was measured."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {model}, {os.cpu_count()} cores, "
        f"{memory:.0f} GiB, Linux {platform.release()}, {python()}; "
        f"load average at the start {load}"
    )


class Bar(NamedTuple):
    """One bar of a plot."""

    label: str
    found: Figure


drawing = True
"""Whether plots are written: a quick run leaves those of the full one alone."""


def plot(name: str, title: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> None:
    """Draw groups of horizontal bars with their spread, each group on its own scale."""
    left, wide, line = 230, 420, 22
    parts: list[str] = []
    y = 46
    for head, bars in groups:
        parts.append(f'<text x="10" y="{y}" font-weight="bold">{escape(head)}</text>')
        y += 8
        most = max(bar.found.most for bar in bars) or 1.0
        for bar in bars:
            low, middle, high = (
                wide * value / most for value in (bar.found.least, bar.found.median, bar.found.most)
            )
            fill = "#2563a8" if bar.label.startswith("linkd") else "#9a9a9a"
            mid = y + line / 2
            parts.append(
                f'<text x="{left - 8}" y="{mid + 4}" text-anchor="end">{escape(bar.label)}</text>'
                f'<rect x="{left}" y="{y + 3}" width="{middle:.1f}" height="{line - 6}" '
                f'fill="{fill}"/><path d="M{left + low:.1f} {mid}H{left + high:.1f}" '
                f'stroke="#111"/><text x="{left + high + 6:.1f}" y="{mid + 4}">'
                f"{short(bar.found.median)}</text>"
            )
            y += line
        y += 26
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{y}" '
        f'viewBox="0 0 760 {y}" font-family="sans-serif" font-size="13">'
        f'<rect width="760" height="{y}" fill="#fff"/>'
        f'<text x="10" y="20" font-size="15" font-weight="bold">{escape(title)}</text>'
        + "\n".join(parts)
        + "</svg>\n"
    )
    if drawing:
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{name}.svg").write_text(text)
